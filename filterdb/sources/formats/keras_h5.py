"""Keras HDF5 files: whole models, weights alone, and the weights files of Keras 3.

* A model (``model.save``) holds its configuration in an attribute and its weights in
  ``model_weights``, one group a layer; the configuration becomes the graph.
* A weights file of Keras 1 and 2 has the groups only; their names tell what a weight is.
* A weights file of Keras 3 (``….weights.h5``) numbers the weights of each layer (``vars/0``) and
  calls its groups after the layers' classes; those become nodes without edges. A list of several
  such files (``….weights.json``) is read with them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from filterdb.layers.raw import Node, RawModel, Tensor
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.hdf5_contents import (
    MAGIC,
    Contents,
    StoredArray,
    read_contents,
    whole_file,
)
from filterdb.sources.formats.keras_graph import keras_nodes, parse_config
from filterdb.sources.formats.keras_normalised import normalised
from filterdb.sources.formats.keras_shards import is_list, read_shards, shard_names
from filterdb.sources.formats.keras_vars import VARS, variable_nodes
from filterdb.sources.formats.keras_weights import Weight, weight_role

if TYPE_CHECKING:
    from filterdb.types import SkipReason

_OPTIMIZER = re.compile(r"^(optimizer_weights|optimizer|_?optimizer_\w+)/")
_HOLDER = "model_weights"


def sniff(head: bytes, _file: ModelFile) -> bool:
    """Whether these are the first bytes of an HDF5 file.

    Parameters
    ----------
    head
        The file's first bytes.

    Returns
    -------
    bool
        True for the signature of HDF5, and for a list of such files.
    """
    return head.startswith(MAGIC) or is_list(head)


def companions(file: ModelFile) -> tuple[str, ...]:
    """Return the names of the files a list of weights stands for.

    Parameters
    ----------
    file
        The main file.

    Returns
    -------
    tuple of str
        Empty for HDF5 files.
    """
    return shard_names(file) if _is_list(file) else ()


def _is_list(file: ModelFile) -> bool:
    try:
        with file.path.open("rb") as handle:
            return is_list(handle.read(4096))
    except OSError:
        return False


def read(file: ModelFile) -> RawModel:
    """List the tensors of a Keras HDF5 file, with the graph where the file describes it.

    Parameters
    ----------
    file
        The file.

    Returns
    -------
    RawModel
        ``has_edges`` where a ``model_config`` was found.

    Raises
    ------
    FetchError
        If the file cannot be opened.
    MalformedFileError
        Truncated, or not the structure Keras writes.
    UnsafeCheckpointError
        The file points outside itself or declares more than it can hold.
    """
    if _is_list(file):
        return read_shards(file)
    contents = read_contents(whole_file(file))
    prefix = f"{_HOLDER}/" if _has_holder(contents) else ""
    holder = prefix.removesuffix("/")
    ranks = _ranks(contents, holder)
    # Data sets that no list names follow in the order they were created.
    listed = sorted(
        contents.arrays, key=lambda a: ranks.get(a.path.removeprefix(prefix), len(ranks))
    )
    layers = frozenset(la for la in contents.texts("layer_names", holder) if "/" in la)
    flips = contents.text("backend", "", holder) == "theano"
    tensors: list[Tensor] = []
    weights: list[Weight] = []
    names: set[str] = set()
    for array in listed:
        group, name = _group_and_name(array, prefix, layers)
        name = name if name not in names else array.path
        names.add(name)
        optimizer = _OPTIMIZER.match(array.path) is not None
        # Theano convolves where everybody else correlates.
        flipped = flips and len(array.shape) > 2 and weight_role(name) == "weight"
        skip: tuple[SkipReason, str] | None = None
        if optimizer:
            skip = ("optimizer_state", array.path)
        tensors.append(contents.tensor(array, name, skip=skip, flipped=flipped))
        if not optimizer:
            weights.append(Weight(name, name, group, array.shape))
    config = contents.text("model_config", "", holder)
    if "WeightNormalization" in config:
        tensors = normalised(tensors)
    nodes, has_edges = _nodes(config, weights)
    version = contents.text("keras_version", "", holder)
    return RawModel(
        format="keras_h5",
        tensors=tuple(tensors),
        nodes=nodes,
        has_edges=has_edges,
        default_layout="HWIO",
        notes=(f"keras {version}",) if version else (),
    )


def _has_holder(contents: Contents) -> bool:
    return _HOLDER in contents.attributes or any(
        a.path.startswith(f"{_HOLDER}/") for a in contents.arrays
    )


def _nodes(text: str, weights: Sequence[Weight]) -> tuple[tuple[Node, ...], bool]:
    if text:
        return keras_nodes(parse_config(text), weights), True
    if any(VARS.search(w.name) for w in weights):
        return variable_nodes({w.tensor: w.shape for w in weights}), False
    return (), False


def _group_and_name(array: StoredArray, prefix: str, layers: Collection[str]) -> tuple[str, str]:
    """Top-level layer of a data set, and the name Keras gave the weight.

    `layers` are those whose own names hold slashes, so that their groups nest.
    """
    inside = array.path.removeprefix(prefix)
    group, _, name = inside.partition("/")
    if not name or VARS.search(inside) or not array.path.startswith(prefix):
        return "", array.path
    ends = [i for i, c in enumerate(inside) if c == "/" and inside[:i] in layers]
    if ends:
        group, name = inside[: ends[-1]], inside[ends[-1] + 1 :]
    # In a group called like the layer stands the layer's own scope: conv/conv/kernel:0.
    return (group, name) if "/" in name or prefix else (group, inside)


def _ranks(contents: Contents, holder: str) -> Mapping[str, int]:
    """Place of each data set by the lists Keras keeps; HDF5 itself sorts by the alphabet."""
    paths: list[str] = []
    for layer in contents.texts("layer_names", holder):
        group = f"{holder}/{layer}" if holder else layer
        paths += [f"{layer}/{name}" for name in contents.texts("weight_names", group)]
    return {path: i for i, path in reversed(list(enumerate(paths)))}


READER = FormatReader(
    "keras_h5",
    "Keras HDF5",
    (".h5", ".hdf5", ".keras_h5"),
    sniff=sniff,
    read=read,
    companions=companions,
)
