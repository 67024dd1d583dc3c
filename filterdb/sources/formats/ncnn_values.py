"""Arrays of an ncnn ``.bin``: half precision, int8 with scales, tables of 256 values, floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.file_view import check_expansion, check_shape, read_array

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.sources.formats.file_view import ByteSource
    from filterdb.sources.formats.ncnn_weights import Block
    from filterdb.types import AnyArray, Shape

_FLOAT16, _INT8, _FLOAT32_KEPT = 0x01306B47, 0x000D4B38, 0x0002C056
_TABLE_BYTES = 1024


@dataclass(frozen=True)
class Stored:
    """Where one array lies.

    Parameters
    ----------
    shape
        Its shape.
    encoding
        "float32", "float16", "int8" or "table" (uint8 indices behind 256 floats).
    offset
        Of the first value (of the table).
    end
        First byte behind it.
    """

    shape: Shape
    encoding: str
    offset: int
    end: int

    @property
    def dtype(self) -> str:
        """Stored element type in numpy's words."""
        return "uint8" if self.encoding == "table" else self.encoding


def locate(data: ByteSource, position: int, block: Block, what: str) -> Stored:
    """Find out how the array at a position is encoded and where it ends.

    Parameters
    ----------
    data
        The ``.bin``.
    position
        Where the array begins, its tag included.
    block
        What the layer expects.
    what
        Layer and role, for messages.

    Returns
    -------
    Stored
        Its place.

    Raises
    ------
    MalformedFileError
        If the file ends before it.
    """
    count = check_shape(block.shape, what=what)
    encoding = "float32"
    if block.flagged:
        if position + 4 > len(data):
            raise _short(data, position, 4, what)
        tag = int.from_bytes(data[position : position + 4], "little")
        position += 4
        if tag == _FLOAT16:
            encoding = "float16"
        elif tag == _INT8:
            encoding = "int8"
        elif tag not in (0, _FLOAT32_KEPT):
            encoding = "table"
    width = {"float32": 4, "float16": 2, "int8": 1, "table": 1}[encoding]
    n_bytes = -(-count * width // 4) * 4 + (_TABLE_BYTES if encoding == "table" else 0)
    if position + n_bytes > len(data):
        raise _short(data, position, n_bytes, what)
    return Stored(block.shape, encoding, position, position + n_bytes)


def _short(data: ByteSource, position: int, n_bytes: int, what: str) -> MalformedFileError:
    return MalformedFileError(
        f"{what} needs {n_bytes} bytes at byte {position} of the weights, which are {len(data)} "
        "bytes long"
    )


def load_stored(path: Path, stored: Stored, scale: Stored | None, file_size: int) -> AnyArray:
    """Read an array.

    Parameters
    ----------
    path
        The ``.bin``.
    stored
        Where it lies.
    scale
        Where the scales of int8 values lie: one per row, per group of rows, or one for all. ncnn
        multiplies by them to quantise, so they divide here.
    file_size
        Bytes of the file.

    Returns
    -------
    ndarray
        Of its shape: float16 or float32.

    Raises
    ------
    MalformedFileError
        If the scales do not fit.
    """
    count = int(np.prod(stored.shape, dtype=np.int64))
    # Integers, their float32 values and, for int8, a few arrays of a value a row.
    rows = 5 * stored.shape[0] if stored.encoding == "int8" and stored.shape else 0
    check_expansion(4 * (count + rows), file_size, what="an ncnn weight")
    if stored.encoding == "table":
        table = read_array(path, stored.offset, 256, "<f4")
        values = table[read_array(path, stored.offset + _TABLE_BYTES, count, "<u1")]
    else:
        kinds = {"float32": "<f4", "float16": "<f2", "int8": "<i1"}
        values = read_array(path, stored.offset, count, kinds[stored.encoding])
    values = values.reshape(stored.shape)
    if stored.encoding != "int8" or scale is None:
        return values
    divisors = read_array(path, scale.offset, int(np.prod(scale.shape)), "<f4")
    rows = stored.shape[0]
    if not divisors.size or rows % divisors.size:
        raise MalformedFileError(f"{divisors.size} int8 scales for {rows} rows of weights")
    per_row = np.repeat(divisors, rows // divisors.size)
    result: AnyArray = values.astype(np.float32)
    # Scales that make weights infinite are for later stages to judge.
    with np.errstate(all="ignore"):
        factors = np.where(per_row == 0, np.float32(0), np.float32(1) / per_row)
        result *= factors.reshape(-1, *[1] * (values.ndim - 1))
    return result
