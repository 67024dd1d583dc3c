"""Keras HDF5 files: whole models, weights alone, and the weights files of Keras 3.

* A model (``model.save``) holds its configuration in an attribute and its weights in
  ``model_weights``, one group a layer; the configuration becomes the graph.
* A weights file of Keras 1 and 2 has the groups only; their names tell what a weight is.
* A weights file of Keras 3 (``….weights.h5``) numbers the weights of each layer (``vars/0``) and
  calls its groups after the layers' classes; those become nodes without edges.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, SourceError
from filterdb.layers.raw import Node, RawModel, Tensor
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.hdf5_arrays import (
    H5_ERRORS,
    MAGIC,
    StoredArray,
    check_readable,
    lies_in_one_piece,
    list_arrays,
    open_file,
)
from filterdb.sources.formats.hdf5_guard import check_survivable
from filterdb.sources.formats.keras_graph import keras_nodes, parse_config
from filterdb.sources.formats.keras_vars import VARS, variable_nodes
from filterdb.sources.formats.keras_weights import Weight, weight_role

if TYPE_CHECKING:
    import h5py

    from filterdb.types import SkipReason

_OPTIMIZER = re.compile(r"^(optimizer_weights|optimizer|_?optimizer_\w+)/")


def sniff(head: bytes, _file: ModelFile) -> bool:
    """Whether these are the first bytes of an HDF5 file.

    Parameters
    ----------
    head
        The file's first bytes.

    Returns
    -------
    bool
        True for the signature of HDF5.
    """
    return head.startswith(MAGIC)


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
    check_readable(file)
    check_survivable(file.path)
    return _read(file)


def rehearse(path: str) -> None:
    """Do with libhdf5 all that reading a file will do, in a process that may die of it.

    Parameters
    ----------
    path
        The file.
    """
    with contextlib.suppress(SourceError):
        for tensor in _read(ModelFile(Path(path))).tensors:
            if tensor.skip is None and not lies_in_one_piece(tensor):
                with contextlib.suppress(SourceError):
                    tensor.load()


def _read(file: ModelFile) -> RawModel:
    with open_file(file) as root:
        try:
            return _read_root(root, file)
        except SourceError:
            raise
        except H5_ERRORS as error:
            name = file.name or file.path.name
            raise MalformedFileError(f"{name} is no readable HDF5: {error}") from error


def _read_root(root: h5py.File, file: ModelFile) -> RawModel:
    listed = list_arrays(root, file)  # first: from here on no link leads out of the file
    holder = root.get("model_weights", root)
    prefix = "" if holder is root else "model_weights/"
    ranks = _ranks(holder)
    # Data sets that no list names follow in the order they were created.
    listed.sort(key=lambda a: ranks.get(a.path.removeprefix(prefix), len(ranks)))
    flips = _text(_attribute(root, holder, "backend")) == "theano"
    tensors: list[Tensor] = []
    weights: list[Weight] = []
    names: set[str] = set()
    for array in listed:
        group, name = _group_and_name(array, prefix)
        name = name if name not in names else array.path
        names.add(name)
        optimizer = _OPTIMIZER.match(array.path) is not None
        # Theano convolves where everybody else correlates.
        flipped = flips and len(array.shape) > 2 and weight_role(name) == "weight"
        skip: tuple[SkipReason, str] | None = None
        if optimizer:
            skip = ("optimizer_state", array.path)
        tensors.append(array.tensor(name, skip=skip, flipped=flipped))
        if not optimizer:
            weights.append(Weight(name, name, group, array.shape))
    nodes, has_edges = _nodes(root, holder, weights)
    version = _text(_attribute(root, holder, "keras_version"))
    return RawModel(
        format="keras_h5",
        tensors=tuple(tensors),
        nodes=nodes,
        has_edges=has_edges,
        default_layout="HWIO",
        notes=(f"keras {version}",) if version else (),
    )


def _nodes(
    root: h5py.File, holder: h5py.Group, weights: Sequence[Weight]
) -> tuple[tuple[Node, ...], bool]:
    text = _text(_attribute(root, holder, "model_config"))
    if text:
        return keras_nodes(parse_config(text), weights), True
    if any(VARS.search(w.name) for w in weights):
        return variable_nodes({w.tensor: w.shape for w in weights}), False
    return (), False


def _group_and_name(array: StoredArray, prefix: str) -> tuple[str, str]:
    """Top-level layer of a data set, and the name Keras gave the weight."""
    inside = array.path.removeprefix(prefix)
    group, _, name = inside.partition("/")
    if not name or VARS.search(inside) or not array.path.startswith(prefix):
        return "", array.path
    # In a group called like the layer stands the layer's own scope: conv/conv/kernel:0.
    return (group, name) if "/" in name or prefix else (group, inside)


def _ranks(holder: h5py.Group) -> Mapping[str, int]:
    """Place of each data set by the lists Keras keeps; HDF5 itself sorts by the alphabet."""
    paths: list[str] = []
    for layer in _list(holder, "layer_names"):
        group = holder.get(layer)
        if group is not None and hasattr(group, "attrs"):
            paths += [f"{layer}/{name}" for name in _list(group, "weight_names")]
    return {path: i for i, path in reversed(list(enumerate(paths)))}


def _list(group: h5py.Group, name: str) -> list[str]:
    """Read a list of names; one too long for an attribute is cut into ``name0``, ``name1``, …."""
    if name in group.attrs:
        return [_text(v) for v in _values(group.attrs[name])]
    found: list[str] = []
    part = 0
    while f"{name}{part}" in group.attrs:
        found += [_text(v) for v in _values(group.attrs[f"{name}{part}"])]
        part += 1
    return found


def _values(attribute: object) -> Sequence[object]:
    import numpy as np

    return list(np.atleast_1d(np.asarray(attribute, dtype=object)))


def _attribute(root: h5py.File, holder: h5py.Group, name: str) -> object:
    return root.attrs.get(name, holder.attrs.get(name))


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


READER = FormatReader(
    "keras_h5", "Keras HDF5", (".h5", ".hdf5", ".keras_h5"), sniff=sniff, read=read
)
