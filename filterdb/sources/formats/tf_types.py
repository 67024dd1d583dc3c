"""TensorFlow's element types, shapes and constants (``types.proto``, ``tensor.proto``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import FetchError, MalformedFileError
from filterdb.sources.formats.file_view import check_shape
from filterdb.sources.formats.protobuf_wire import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    WireReader,
    decode_varints,
    signed,
)

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.types import AnyArray, Shape

#: ``DataType`` → numpy's word. Quantised integers are integers with a meaning.
DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string",
    8: "complex64", 9: "int64", 10: "bool", 11: "int8", 12: "uint8", 13: "int32", 14: "bfloat16",
    15: "int16", 16: "uint16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32",
    23: "uint64",
}  # fmt: skip
#: Field of ``TensorProto`` that holds the values of a type, where they are not raw bytes.
_TYPED = {
    "float32": 5, "float64": 6, "int32": 7, "uint8": 7, "int16": 7, "int8": 7, "uint16": 7,
    "complex64": 9, "int64": 10, "bool": 11, "complex128": 12, "float16": 13, "bfloat16": 13,
    "uint32": 16, "uint64": 17,
}  # fmt: skip
_FIXED = {"float32": "<f4", "float64": "<f8", "complex64": "<f4", "complex128": "<f8"}
_MAX_PIECES = 1 << 20


def type_name(number: int) -> str:
    """Return the word for an element type.

    Parameters
    ----------
    number
        As in ``types.proto``.

    Returns
    -------
    str
        "type 57" where it is not one of numbers and text.
    """
    return DTYPES.get(number % 100 if 100 < number < 200 else number, f"type {number}")


def item_size(dtype: str) -> int | None:
    """Return the bytes of an element.

    Parameters
    ----------
    dtype
        A word of :data:`DTYPES`.

    Returns
    -------
    int or None
        None for text and unknown types.
    """
    if dtype == "bfloat16":
        return 2
    return None if dtype == "string" or dtype.startswith("type ") else np.dtype(dtype).itemsize


def read_shape(wire: WireReader, start: int, end: int, *, what: str) -> Shape | None:
    """Read a ``TensorShapeProto``.

    Parameters
    ----------
    wire
        The file.
    start, end
        Byte range of the message.
    what
        Whose shape, for messages.

    Returns
    -------
    tuple of int or None
        None where the rank is unknown; unknown extents are −1.

    Raises
    ------
    MalformedFileError
        If there are more axes than arrays have.
    """
    extents: list[int] = []
    for number, kind, value, stop in wire.fields(start, end):
        if number == 3 and kind == VARINT and value:
            return None
        if number == 2 and kind == BYTES:
            size = 0
            for field, inner, content, _ in wire.fields(value, stop):
                if field == 1 and inner == VARINT:
                    size = signed(content)
            extents.append(size)
            if len(extents) > 254:
                raise MalformedFileError(f"{what} has more than 254 axes")
    return tuple(extents)


@dataclass(frozen=True, slots=True)
class Constant:
    """A ``TensorProto``: type and shape, and where its values lie.

    Parameters
    ----------
    dtype
        Word of :data:`DTYPES`.
    shape
        Its extents.
    pieces
        (wire type, start, end) of the typed fields, or (-1, start, end) of raw bytes.
    elements
        Product of `shape`.
    """

    dtype: str
    shape: Shape
    pieces: tuple[tuple[int, int, int], ...]
    elements: int

    @property
    def stored_bytes(self) -> int:
        """Bytes its values take in the file."""
        return sum(1 if kind == VARINT else end - start for kind, start, end in self.pieces)


def read_constant(
    wire: WireReader, start: int, end: int, *, what: str, dtype: str = "type 0"
) -> Constant:
    """Read a ``TensorProto`` without its values.

    Parameters
    ----------
    wire
        The file.
    start, end
        Byte range of the message.
    what
        Name of the constant, for messages.
    dtype
        Its type where it does not say one itself.

    Returns
    -------
    Constant
        What it says.

    Raises
    ------
    MalformedFileError
        If it is damaged or its shape absurd.
    """
    shape: Shape = ()
    raw: list[tuple[int, int, int]] = []
    typed: dict[int, list[tuple[int, int, int]]] = {}
    for number, kind, value, stop in wire.fields(start, end):
        if number == 1 and kind == VARINT:
            dtype = type_name(value)
        elif number == 2 and kind == BYTES:
            found = read_shape(wire, value, stop, what=what)
            if found is None:
                raise MalformedFileError(f"constant {what} has no shape")
            shape = found
        elif number == 4 and kind == BYTES and stop > value:
            raw = [(-1, value, stop)]
        elif number >= 5 and number != 14:
            pieces = typed.setdefault(number, [])
            pieces.append((kind, value, stop))
            if len(pieces) > _MAX_PIECES:
                raise MalformedFileError(f"constant {what}: too many single values")
    elements = check_shape(shape, what=f"constant {what}")
    number = 8 if dtype == "string" else _TYPED.get(dtype, 0)
    return Constant(dtype, shape, tuple(raw or typed.get(number, [])), elements)


@dataclass(frozen=True, slots=True)
class ConstantValues:
    """Loads a constant.

    Parameters
    ----------
    path
        The file.
    constant
        As parsed.
    base
        Added to its positions: where the parsed bytes begin in the file.
    """

    path: Path
    constant: Constant
    base: int = 0

    def __call__(self) -> AnyArray:
        """Load the array; one stored value stands for all that follow it."""
        constant = self.constant
        try:
            with self.path.open("rb") as handle:
                pieces = []
                for kind, start, end in constant.pieces:
                    if kind == VARINT:
                        pieces.append((kind, start.to_bytes(8, "little")))
                        continue
                    handle.seek(self.base + start)
                    pieces.append((kind, handle.read(end - start)))
        except OSError as error:
            raise FetchError(f"cannot read {self.path.name}: {error.strerror or error}") from error
        return constant_array(constant, pieces, what=self.path.name)


def constant_array(constant: Constant, pieces: list[tuple[int, bytes]], *, what: str) -> AnyArray:
    """Make an array of a constant's bytes.

    Parameters
    ----------
    constant
        Type and shape.
    pieces
        (wire type, bytes) for each of its pieces; a single varint comes as eight bytes.
    what
        For messages.

    Returns
    -------
    ndarray
        Native byte order; bfloat16 as float32.

    Raises
    ------
    MalformedFileError
        If bytes and shape do not go together.
    """
    if item_size(constant.dtype) is None:
        raise MalformedFileError(f"{what}: {constant.dtype} is no number")
    parts = [_decoded(constant.dtype, kind, data, what) for kind, data in pieces]
    parts = parts or [np.zeros(0, _plain(constant.dtype))]
    values = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if values.size < constant.elements and values.size and constant.pieces[0][0] != -1:
        values = np.concatenate(
            [values, np.full(constant.elements - values.size, values[-1], values.dtype)]
        )
    elif not values.size and not constant.pieces:
        values = np.zeros(constant.elements, _plain(constant.dtype))
    if values.size != constant.elements:
        raise MalformedFileError(
            f"{what}: a constant of shape {list(constant.shape)} holds {values.size:,} values"
        )
    if constant.dtype == "bfloat16":
        values = (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return values.reshape(constant.shape)


def _plain(dtype: str) -> np.dtype[np.generic]:
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def _decoded(dtype: str, kind: int, data: bytes, what: str) -> AnyArray:
    plain = _plain(dtype)
    if kind == -1:
        stored = plain.newbyteorder("<")
    elif kind == VARINT:
        return _of_integers(np.frombuffer(data, "<u8"), dtype)
    elif dtype in _FIXED and kind in (BYTES, FIXED32, FIXED64):
        stored = np.dtype(_FIXED[dtype])
    else:
        return _of_integers(decode_varints(np.frombuffer(data, np.uint8)), dtype)
    if len(data) % stored.itemsize:
        raise MalformedFileError(f"{what}: {len(data)} bytes are no whole number of {dtype}")
    values = np.frombuffer(data, stored)
    if kind != -1 and dtype.startswith("complex"):
        if values.size % 2:
            raise MalformedFileError(f"{what}: half a complex number")
        return values.astype(values.dtype.newbyteorder("=")).view(plain)
    return values.astype(plain, copy=False)


def _of_integers(values: AnyArray, dtype: str) -> AnyArray:
    if dtype in ("float16", "bfloat16"):  # bits, in an integer
        return values.astype(np.uint16).view(_plain(dtype))
    if dtype in _FIXED:
        raise MalformedFileError(f"{dtype} values stored as integers")
    return values.astype(np.int64).astype(_plain(dtype))
