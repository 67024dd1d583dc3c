"""Weights of Keras 3 spread over several files: ``m.weights.json`` names ``m_00000.weights.h5`` ….

``model.save_weights("m.weights.json", max_shard_size=…)`` writes them. The list maps each group of
weights to the file, or files, that hold it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from filterdb.catalog.uri import check_member
from filterdb.errors import FetchError, MalformedFileError, UnsafeCheckpointError, UsageError
from filterdb.layers.raw import RawModel, Tensor
from filterdb.sources.formats.companion_files import companion_path
from filterdb.sources.formats.hdf5_contents import read_contents, whole_file
from filterdb.sources.formats.keras_graph import MAX_CONFIG_BYTES, parse_config
from filterdb.sources.formats.keras_vars import OPTIMIZER, variable_nodes

if TYPE_CHECKING:
    from filterdb.sources.formats.base import ModelFile
    from filterdb.types import Shape, SkipReason

_SUFFIX = ".weights.h5"


def is_list(head: bytes) -> bool:
    """Whether a file begins like a list of Keras' weight files.

    Parameters
    ----------
    head
        Its first bytes.

    Returns
    -------
    bool
        True for JSON that maps weights to ``.weights.h5`` files.
    """
    return head.lstrip()[:1] == b"{" and b'"weight_map"' in head and _SUFFIX.encode() + b'"' in head


def shard_names(file: ModelFile) -> tuple[str, ...]:
    """Return the names of the files that hold the weights.

    Parameters
    ----------
    file
        The list.

    Returns
    -------
    tuple of str
        In the order in which the list names them.

    Raises
    ------
    FetchError
        If the list cannot be read.
    MalformedFileError
        If it is none.
    UnsafeCheckpointError
        If a name leads out of the list's folder.
    """
    label = file.name or file.path.name
    try:
        with file.path.open("rb") as handle:
            text = handle.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise FetchError(f"cannot read {label}: {error.strerror or error}") from error
    listed = parse_config(text, what=label).get("weight_map")
    if not isinstance(listed, Mapping):
        raise MalformedFileError(f"{label}: no weight_map that names files of weights")
    named = [
        n for value in listed.values() for n in (value if isinstance(value, list) else [value])
    ]
    names = tuple(dict.fromkeys(n for n in named if isinstance(n, str)))
    for name in names:
        try:
            check_member(name)
        except UsageError as error:
            raise UnsafeCheckpointError(
                f"{label}: names {name!r} as a file of weights, which would lead out of its folder"
            ) from error
    return names


def read_shards(file: ModelFile) -> RawModel:
    """List the tensors of all files of weights.

    Parameters
    ----------
    file
        The list, with the files it names as companions.

    Returns
    -------
    RawModel
        Modules without edges: the classes of the layers are all that is known of the network.

    Raises
    ------
    MissingCompanionError
        One of the files is not there.
    MalformedFileError
        Damaged.
    UnsafeCheckpointError
        A file points outside itself or declares more than it can hold.
    """
    tensors: list[Tensor] = []
    shapes: dict[str, Shape] = {}
    taken: set[str] = set()
    for name in shard_names(file):
        path = companion_path(file, name)
        contents = read_contents(whole_file(type(file)(path, name=name)))
        for array in contents.arrays:
            called = array.path if array.path not in taken else f"{name}/{array.path}"
            taken.add(called)
            skip: tuple[SkipReason, str] | None = None
            if OPTIMIZER.match(array.path):
                skip = ("optimizer_state", array.path)
            else:
                shapes[called] = array.shape
            tensors.append(contents.tensor(array, called, skip=skip))
    return RawModel(
        "keras_h5", tuple(tensors), variable_nodes(shapes), default_layout="HWIO",
        notes=("weights in several files",),
    )  # fmt: skip
