"""PaddlePaddle's parameters as they lie in ``.pdiparams``: tensors one behind the other.

Each is a version, its levels of detail (sequence lengths, unused by parameters), a second version,
a ``TensorDesc`` with its own length, and the values (paddle/phi/core/serialization).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.companion_files import file_size
from filterdb.sources.formats.file_view import check_shape, map_file, read_array
from filterdb.sources.formats.graph_constants import Constant
from filterdb.sources.formats.paddle_proto import ELEMENT_TYPES, ProgramParser
from filterdb.sources.formats.protobuf_wire import WireReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from filterdb.sources.formats.file_view import ByteSource
    from filterdb.sources.formats.paddle_proto import Variable
    from filterdb.types import AnyArray, Shape, SkipReason

_MAX_LEVELS = 64
_MAX_HEADER = 4096
_STORED = {"bool": "<u1", "bfloat16": "<u2", "float8_e4m3fn": "<u1", "float8_e5m2": "<u1"}
_UNREAD = frozenset({"complex64", "complex128"})


@dataclass(frozen=True, slots=True)
class _Place:
    dtype: str
    shape: Shape
    offset: int
    end: int


def read_combined(path: Path, names: Sequence[str], label: str) -> dict[str, Constant]:
    """List the parameters of one file that holds all of them.

    Parameters
    ----------
    path
        The file.
    names
        Of its parameters, in file order.
    label
        The file's name, for messages.

    Returns
    -------
    dict of str to Constant
        In file order.

    Raises
    ------
    MalformedFileError
        If the file holds fewer, more or other tensors.
    """
    found: dict[str, Constant] = {}
    with map_file(path) as data:
        position = 0
        for name in names:
            if position >= len(data):
                raise MalformedFileError(
                    f"{label} holds {len(found)} parameters, the program names {len(names)}",
                    tip="do program and parameters belong to one model?",
                )
            place = _tensor(data, position, f"{label}, parameter {name!r}")
            found[name] = _constant(path, name, place)
            position = place.end
        if position != len(data):
            raise MalformedFileError(
                f"{label}: {len(names)} parameters end at byte {position}, the file has "
                f"{len(data)}",
                tip="do program and parameters belong to one model?",
            )
    return found


def read_single(path: Path, name: str) -> Constant:
    """Read where the values of a file of one parameter lie.

    Parameters
    ----------
    path
        The file.
    name
        Of the parameter.

    Returns
    -------
    Constant
        Not loaded.
    """
    return read_combined(path, [name], path.name)[name]


def check_variables(found: Mapping[str, Constant], variables: Mapping[str, Variable]) -> None:
    """Make sure that parameters have the shapes the program states.

    Parameters
    ----------
    found
        Parameters of the file.
    variables
        Of the program.

    Raises
    ------
    MalformedFileError
        If one has not.
    """
    for name, constant in found.items():
        stated = variables[name].shape
        if stated and all(n > 0 for n in stated) and stated != constant.shape:
            raise MalformedFileError(
                f"parameter {name!r} is of shape {list(constant.shape)}, the program states "
                f"{list(stated)}",
                tip="do program and parameters belong to one model?",
            )


def _tensor(data: ByteSource, position: int, what: str) -> _Place:
    end = len(data)

    def number(layout: str) -> int:
        nonlocal position
        size = struct.calcsize(layout)
        if size > end - position:
            raise MalformedFileError(f"{what} is cut off at byte {end}")
        value = struct.unpack(layout, data[position : position + size])[0]
        position += size
        return int(value)

    def expect_version() -> None:
        version = number("<I")
        if version != 0:
            raise MalformedFileError(f"{what} is of version {version} at byte {position}, not 0")

    expect_version()
    levels = number("<Q")
    if levels > _MAX_LEVELS:
        raise MalformedFileError(f"{what} has {levels} levels of detail")
    for _ in range(levels):
        length = number("<Q")
        if length > end - position:
            raise MalformedFileError(f"{what}: a level of detail leaves the file")
        position += length
    expect_version()
    size = number("<i")
    if not 0 <= size <= min(_MAX_HEADER, end - position):
        raise MalformedFileError(f"{what}: a description of {size} bytes at byte {position}")
    header = bytes(data[position : position + size])
    element, shape = ProgramParser(WireReader(header, where=what)).tensor_type(0, size)
    position += size
    dtype = ELEMENT_TYPES.get(element)
    if dtype is None:
        raise MalformedFileError(f"{what} has elements of the unknown type {element}")
    n_bytes = check_shape(shape, what=what) * np.dtype(_STORED.get(dtype, dtype)).itemsize
    if n_bytes > end - position:
        raise MalformedFileError(
            f"{what} of shape {list(shape)} and type {dtype} needs {n_bytes} bytes at byte "
            f"{position}, the file has {end}"
        )
    return _Place(dtype, shape, position, position + n_bytes)


def _constant(path: Path, name: str, place: _Place) -> Constant:
    skip: tuple[SkipReason, str] | None = None
    if place.dtype in _UNREAD:
        skip = ("unsupported_dtype", f"elements of type {place.dtype}")
    return Constant(
        name, place.shape, place.dtype, partial(_load, path, place),
        storage=(path.name, place.offset), skip=skip,
    )  # fmt: skip


def _load(path: Path, place: _Place) -> AnyArray:
    stored = np.dtype(_STORED.get(place.dtype, place.dtype)).newbyteorder("<")
    count = (place.end - place.offset) // stored.itemsize
    if place.end > file_size(path):
        raise MalformedFileError(f"{path.name} has become shorter than {place.end} bytes")
    values = read_array(path, place.offset, count, stored)
    if place.dtype == "bfloat16":
        # bfloat16 is the upper half of a float32: shifting it there loses nothing.
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif place.dtype.startswith("float8"):
        import ml_dtypes

        values = values.view(getattr(ml_dtypes, place.dtype)).astype(np.float32)
    return values.reshape(place.shape)
