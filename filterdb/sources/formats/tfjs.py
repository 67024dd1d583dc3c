"""TensorFlow.js models: a JSON file with the topology and a manifest of binary shards.

Three kinds: layers models (the topology is Keras' configuration), graph models (a GraphDef), and
manifests alone (``weights_manifest.json``), whose names have to tell. The manifest lists groups;
in each, the bytes of the shards follow one another and the weights lie in them in order.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from filterdb.errors import (
    FetchError,
    MalformedFileError,
    MissingCompanionError,
    UnsafeCheckpointError,
)
from filterdb.layers.raw import Node, RawModel, Tensor
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.keras_graph import keras_nodes, parse_config
from filterdb.sources.formats.keras_weights import Weight
from filterdb.sources.formats.tf_graph import graph_nodes, named_convolutions
from filterdb.sources.formats.tf_inline import inline
from filterdb.sources.formats.tf_library import library_from_json
from filterdb.sources.formats.tfjs_text import (
    MAX_TEXT,
    encoded_range,
    is_script,
    load_document,
    script_suffix,
)
from filterdb.sources.formats.tfjs_weights import Shard, group_tensors, small_integers

if TYPE_CHECKING:
    from pathlib import Path

_SEEN = (b'"modelTopology"', b'"weightsManifest"')
#: Real networks have some thousands; each takes more than a kilobyte of memory.
_MAX_WEIGHTS = 100_000


def sniff(head: bytes, file: ModelFile) -> bool:
    """Whether this is a TensorFlow.js model or manifest.

    Parameters
    ----------
    head
        The file's first bytes.
    file
        The file.

    Returns
    -------
    bool
        True for JSON with the keys TensorFlow.js writes.
    """
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if is_script(file):
        return _in_script(file)
    if start[:1] == b"[":
        return b'"weights"' in start and b'"dtype"' in start and b'"shape"' in start
    if start[:1] != b"{":
        return False
    if any(word in head for word in _SEEN):
        return True
    if file.suffix != ".json":
        return False
    try:  # a long signature may come first; the manifest comes last
        with file.path.open("rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(max(0, size - 65536))
            tail = handle.read()
    except OSError:
        return False
    return any(word in tail for word in _SEEN)


def _in_script(file: ModelFile) -> bool:
    """Whether a script holds topology and manifest of a model."""
    try:
        with map_file(file.path) as data:
            return len(data) <= MAX_TEXT and all(data.find(word.strip(b'"')) >= 0 for word in _SEEN)
    except FetchError:
        return False


def companions(file: ModelFile) -> tuple[str, ...]:
    """Name the shards of a model.

    Parameters
    ----------
    file
        The JSON file.

    Returns
    -------
    tuple of str
        Paths relative to its folder, in the manifest's order, each once.

    Raises
    ------
    MalformedFileError
        If it is not what TensorFlow.js writes.
    UnsafeCheckpointError
        If a path leaves the folder.
    """
    groups = _groups(load_document(file))
    return tuple(dict.fromkeys(path for group in groups for path in _paths(group, file)))


def read(file: ModelFile) -> RawModel:
    """List the weights of a TensorFlow.js model, with its graph.

    Parameters
    ----------
    file
        The JSON file; its shards are the companions.

    Returns
    -------
    RawModel
        ``has_edges`` where the file has a topology.

    Raises
    ------
    FetchError
        If a file cannot be opened.
    MalformedFileError
        If the JSON is not what TensorFlow.js writes or the shards are too short.
    MissingCompanionError
        If a shard is not there.
    UnsafeCheckpointError
        If a path leaves the folder or sizes are absurd.
    """
    document = load_document(file)
    tensors = _tensors(document, file)
    topology = document.get("modelTopology") if isinstance(document, Mapping) else None
    notes = _notes(document)
    nodes: tuple[Node, ...] = ()
    is_graph = isinstance(topology, Mapping) and "node" in topology
    if isinstance(topology, Mapping):
        nodes = _graph(topology, tensors) if is_graph else _layers(topology, tensors)
    has_edges = bool(nodes)
    return RawModel(
        format="tfjs",
        tensors=tensors,
        nodes=nodes or named_convolutions({t.name: t.shape for t in tensors}),
        has_edges=has_edges,
        folds_batch_norm=is_graph,
        default_layout="HWIO",
        notes=notes,
    )


def _groups(document: object) -> list[Mapping[str, Any]]:
    manifest = document.get("weightsManifest") if isinstance(document, Mapping) else document
    if manifest is None and isinstance(document, Mapping):
        if isinstance(document.get("weightSpecs"), list):  # the weights are in the file itself
            return [{"weights": document["weightSpecs"], "paths": []}]
        raise MalformedFileError("JSON without a weightsManifest")
    if not isinstance(manifest, list) or not all(isinstance(g, Mapping) for g in manifest):
        raise MalformedFileError("the weightsManifest is no list of groups")
    return manifest


def _paths(group: Mapping[str, Any], file: ModelFile) -> list[str]:
    paths = group.get("paths")
    if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
        raise MalformedFileError("a group of the weightsManifest has no list of paths")
    # A build step that makes scripts of a model's files names them all alike.
    suffix = script_suffix(file.name or file.path.name) if is_script(file) else ""
    return [_inside(path if path.endswith(suffix) else path + suffix) for path in paths]


def _inside(path: str) -> str:
    normal = posixpath.normpath(path)
    if (
        not path
        or path.startswith(("/", "~"))
        or normal in (".", "..")
        or normal.startswith("../")
        or "\\" in path
        or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path)
        or any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in path)
    ):
        raise UnsafeCheckpointError(f"shard {path!r} does not lie in the model's own folder")
    return normal


def _tensors(document: object, file: ModelFile) -> tuple[Tensor, ...]:
    found: list[Tensor] = []
    for number, group in enumerate(_groups(document)):
        shards = [_shard(path, file) for path in _paths(group, file)]
        if not shards and isinstance(document, Mapping) and "weightSpecs" in document:
            shards = [_encoded(file.path, file.name or file.path.name)]
        specs = group.get("weights")
        if not isinstance(specs, list) or not all(isinstance(s, Mapping) for s in specs):
            raise MalformedFileError("a group of the weightsManifest has no list of weights")
        if len(found) + len(specs) > _MAX_WEIGHTS:
            raise UnsafeCheckpointError(f"{file.name}: more than {_MAX_WEIGHTS:,} weights")
        found += group_tensors(specs, shards, number=number)
    names = {t.name for t in found}
    if len(names) < len(found):
        raise MalformedFileError(f"{file.name}: two weights have one name")
    return tuple(found)


def _shard(path: str, file: ModelFile) -> Shard:
    place = file.companions.get(path)
    if place is None:
        raise MissingCompanionError(f"{file.name or file.path.name} needs {path}, which is missing")
    try:
        if is_script(file):
            return _encoded(place, path)
        return Shard(place, place.stat().st_size)
    except FileNotFoundError as error:
        raise MissingCompanionError(
            f"{file.name or file.path.name} needs {path}, which is missing"
        ) from error
    except OSError as error:
        raise FetchError(f"cannot open {path}: {error.strerror or error}") from error


def _encoded(place: Path, label: str) -> Shard:
    start, length = encoded_range(place, label)
    return Shard(place, length * 3 // 4, encoded_at=start)


def _layers(topology: Mapping[str, Any], tensors: Sequence[Tensor]) -> tuple[Node, ...]:
    config = topology.get("model_config", topology)
    if isinstance(config, str):
        config = parse_config(config)
    if not isinstance(config, Mapping) or "config" not in config:
        return ()
    return keras_nodes(config, [Weight(t.name, t.name, "", t.shape) for t in tensors])


def _graph(topology: Mapping[str, Any], tensors: Sequence[Tensor]) -> tuple[Node, ...]:
    by_name = {t.name: t for t in tensors}

    def small_constant(name: str) -> tuple[int, ...] | None:
        return small_integers(by_name[name]) if name in by_name else None

    return graph_nodes(
        inline(library_from_json(topology)).operations,
        {t.name: t.shape for t in tensors},
        small_constant=small_constant,
    )


def _notes(document: object) -> tuple[str, ...]:
    if not isinstance(document, Mapping):
        return ()
    return tuple(
        f"{label} {document[key][:100]}"
        for key, label in (("generatedBy", "generated by"), ("convertedBy", "converted by"))
        if isinstance(document.get(key), str) and document[key]
    )


READER = FormatReader(
    "tfjs", "TensorFlow.js", (".json",), sniff=sniff, read=read, companions=companions
)
