"""numpy arrays as pickles describe them, understood without unpickling."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.file_view import check_shape
from filterdb.sources.formats.pickle_values import Global, Record
from filterdb.sources.formats.stored_array import MemoryBytes, StoredArray, c_strides

if TYPE_CHECKING:
    from filterdb.types import Shape

_RECONSTRUCT = frozenset(
    {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
)
_FROM_BUFFER = frozenset(
    {("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")}
)
NUMPY_CONSTRUCTORS = _RECONSTRUCT | _FROM_BUFFER
_SIMPLE_TYPE = re.compile(r"[<>=|]?([fiub])([1248])")
_KINDS = {"f": "float", "i": "int", "u": "uint", "b": "bool"}


def numpy_array(record: Record, where: str) -> StoredArray | None:
    """Return the array a record describes.

    Parameters
    ----------
    record
        A record of one of ``NUMPY_CONSTRUCTORS``.
    where
        The file's name for messages.

    Returns
    -------
    StoredArray or None
        None for arrays of objects or records, which hold no plain numbers.

    Raises
    ------
    MalformedFileError
        Shape, type and bytes do not fit one another.
    """
    kind = record.kind
    if kind is not None and (kind.module, kind.name) in _FROM_BUFFER:
        if len(record.args) != 4:
            raise MalformedFileError(f"{where}: a numpy array with {len(record.args)} arguments")
        data, dtype, shape, order = record.args
        fortran = order == "F"
    else:
        state = record.state
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            return None
        shape, dtype, fortran, data = state[-4:]
    name, big_endian = _element_type(dtype)
    if not name or not isinstance(data, bytes | str):
        return None
    sizes = _shape(shape, where)
    itemsize = max(int(re.sub(r"\D", "", name) or "8") // 8, 1)
    nbytes = math.prod(sizes) * itemsize
    if isinstance(data, str):
        data = _python2_bytes(data, nbytes)
    if nbytes != len(data):
        raise MalformedFileError(
            f"{where}: a numpy array of shape {sizes} and type {name} with {len(data)} bytes"
        )
    strides = c_strides(sizes[::-1])[::-1] if fortran else c_strides(sizes)
    return StoredArray(MemoryBytes(data), 0, sizes, strides, name, big_endian)


def _python2_bytes(text: str, nbytes: int) -> bytes:
    # Python 2 wrote bytes as strings, which were decoded as UTF-8 where that was possible.
    for encoding in ("utf-8", "latin-1"):
        data = text.encode(encoding, "replace")
        if len(data) == nbytes:
            return data
    return b""


def _shape(value: Any, where: str) -> Shape:
    if not isinstance(value, tuple) or not all(type(size) is int for size in value):
        raise MalformedFileError(f"{where}: a numpy array without a shape")
    check_shape(value, what=f"{where}: a numpy array")
    return value


def _element_type(value: Any) -> tuple[str, bool]:
    """Return numpy's name of a plain number type ("" for others) and its byte order."""
    if type(value) is not Record or value.kind != Global("numpy", "dtype") or not value.args:
        return "", False
    match = _SIMPLE_TYPE.fullmatch(value.args[0]) if type(value.args[0]) is str else None
    if match is None:
        return "", False
    letter, size = match.groups()
    name = "bool" if letter == "b" else f"{_KINDS[letter]}{8 * int(size)}"
    if name == "float8" or (letter == "b" and size != "1"):
        return "", False
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "<"
    return name, order == ">"
