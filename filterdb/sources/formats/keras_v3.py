"""Keras 3 archives (``.keras``): a zip file of configuration and weights.

``config.json`` holds the network, ``model.weights.h5`` the weights, numbered and filed under the
classes of their layers; large models spread them over several such files, listed in
``model.weights.json``. The configuration is read as data: modules it names are never imported,
functions it carries (Lambda layers) never run. Nothing is extracted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from filterdb.errors import MalformedFileError, UnsupportedFormatError
from filterdb.layers.raw import Node, RawModel, Tensor
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.hdf5_contents import MAGIC, Contents, Hdf5Source, read_contents
from filterdb.sources.formats.keras_graph import (
    MAX_CONFIG_BYTES,
    graph_nodes,
    has_layers,
    parse_config,
)
from filterdb.sources.formats.keras_paths import PathIndex, Variable
from filterdb.sources.formats.keras_vars import OPTIMIZER, VARS, variable_nodes
from filterdb.sources.formats.stored_array import DeflatedBytes, FileBytes
from filterdb.sources.formats.zip_entries import open_zip

if TYPE_CHECKING:
    from filterdb.sources.formats.zip_entries import ZipEntries
    from filterdb.types import SkipReason

_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
_SHARDS = "model.weights.json"
_TAIL_BYTES = 64 * 1024


def sniff(head: bytes, file: ModelFile) -> bool:
    """Whether this is a zip file with Keras' members.

    Parameters
    ----------
    head
        The file's first bytes.
    file
        The file; its directory, at the end, names the members.

    Returns
    -------
    bool
        True where a configuration and weights are among them.
    """
    if not head.startswith(b"PK\3\4"):
        return False
    tail = _tail(file)
    return _CONFIG.encode() in tail and b"model.weights." in tail


def _tail(file: ModelFile) -> bytes:
    try:
        with file.path.open("rb") as handle:
            handle.seek(max(handle.seek(0, 2) - _TAIL_BYTES, 0))
            return handle.read(_TAIL_BYTES)
    except OSError:
        return b""


def read(file: ModelFile) -> RawModel:
    """List the tensors of a Keras archive, with its graph.

    Parameters
    ----------
    file
        The file.

    Returns
    -------
    RawModel
        ``has_edges`` unless the model is a class of somebody's own, whose code alone says how its
        layers hang together.

    Raises
    ------
    FetchError
        If the file cannot be opened.
    MalformedFileError
        Damaged, or not what Keras writes.
    UnsafeCheckpointError
        It would inflate absurdly, or its weights point outside.
    UnsupportedFormatError
        The weights are kept in another way than HDF5.
    """
    label = file.name or file.path.name
    entries = open_zip(file.path, label)
    config = parse_config(_text(entries, _CONFIG), what=f"{label}: {_CONFIG}")
    tensors: list[Tensor] = []
    variables: list[Variable] = []
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for member in _stores(entries):
        contents = read_contents(_source(entries, member))
        labels.update(_labels(contents))
        for array in contents.arrays:
            name = array.path if array.path not in taken else f"{member}/{array.path}"
            taken.add(name)
            path = array.path.replace("\\", "/")  # as written on Windows
            skip: tuple[SkipReason, str] | None = None
            if OPTIMIZER.match(path):
                skip = ("optimizer_state", path)
            elif VARS.match(path):
                variables.append(Variable(name, path, array.shape))
            tensors.append(contents.tensor(array, name, skip=skip))
    nodes, has_edges = _nodes(config, variables, labels)
    return RawModel(
        format="keras_v3",
        tensors=tuple(tensors),
        nodes=nodes,
        has_edges=has_edges,
        default_layout="HWIO",
        notes=_notes(entries),
    )


def _nodes(
    config: Mapping[str, Any], variables: Sequence[Variable], labels: Mapping[str, str]
) -> tuple[tuple[Node, ...], bool]:
    if not has_layers(config):
        return variable_nodes({v.tensor: v.shape for v in variables}), False
    nodes = graph_nodes(config, PathIndex(config, variables, labels))
    owned = {name for node in nodes for name in node.weights.values()}
    # What a subclass keeps beside its layers is in no configuration: kernels without a place.
    free = variable_nodes({v.tensor: v.shape for v in variables if v.tensor not in owned})
    kernels = [n for n in free if n.op in ("conv", "conv_transpose")]
    return (*nodes, *kernels), True


def _text(entries: ZipEntries, name: str) -> bytes:
    member = entries.members.get(name)
    if member is None:
        raise MalformedFileError(
            f"{entries.label}: no {name} among its members {sorted(entries.members)[:8]}"
        )
    if member.size > MAX_CONFIG_BYTES:
        raise MalformedFileError(
            f"{entries.label}: {name} takes {member.size:,} bytes; {MAX_CONFIG_BYTES:,} are the "
            "most"
        )
    return entries.read(name)


def _stores(entries: ZipEntries) -> list[str]:
    """Names of the members that hold weights."""
    if _WEIGHTS in entries.members:
        return [_WEIGHTS]
    if _SHARDS in entries.members:
        listed = parse_config(_text(entries, _SHARDS), what=_SHARDS).get("weight_map")
        named = listed.values() if isinstance(listed, Mapping) else ()
        many = [n for v in named for n in (v if isinstance(v, list) else [v])]
        stores = list(dict.fromkeys(n for n in many if isinstance(n, str)))
        missing = [n for n in stores if n not in entries.members]
        if missing or not stores:
            raise MalformedFileError(f"{entries.label}: {_SHARDS} names {missing[:3] or 'no file'}")
        return stores
    others = [n for n in entries.members if n.startswith("model.weights")]
    raise UnsupportedFormatError(
        f"{entries.label}: weights are read from {_WEIGHTS}; there is {others[:3] or 'none'}"
    )


def _source(entries: ZipEntries, member: str) -> Hdf5Source:
    stored = entries.members[member]
    label = f"{entries.label}: {member}"
    if stored.view(0, min(len(MAGIC), stored.size)).tobytes() != MAGIC:
        raise MalformedFileError(f"{label} is no HDF5")
    if isinstance(stored, DeflatedBytes):
        return Hdf5Source(entries.path, stored.offset, stored.size, stored.compressed, label)
    assert isinstance(stored, FileBytes)
    return Hdf5Source(entries.path, stored.offset, stored.size, None, label)


def _labels(contents: Contents) -> dict[str, str]:
    """Path of a group → the name its ``vars`` group carries."""
    found = {}
    for path, attributes in contents.attributes.items():
        group, _, last = path.replace("\\", "/").rpartition("/")
        name = attributes.get("name")
        if last == "vars" and isinstance(name, str):
            found[group] = name
    return found


def _notes(entries: ZipEntries) -> tuple[str, ...]:
    if "metadata.json" not in entries.members:
        return ()
    try:
        version = json.loads(_text(entries, "metadata.json")).get("keras_version")
    except (ValueError, AttributeError, RecursionError):
        return ()
    return (f"keras {version}"[:100].encode("utf-8", "replace").decode(),) if version else ()


READER = FormatReader("keras_v3", "Keras 3 archive", (".keras",), sniff=sniff, read=read)
