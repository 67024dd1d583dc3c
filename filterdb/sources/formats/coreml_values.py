"""Numbers of a Core ML model: in its protobuf, in a weight file beside it, packed or plain."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.companion_files import companion_path, file_size
from filterdb.sources.formats.file_view import map_file, read_array
from filterdb.sources.formats.protobuf_wire import decode_varints

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.sources.formats.base import ModelFile
    from filterdb.types import AnyArray

#: Encodings that are no numpy type: bits of an element, and whether its first bit is the lowest.
PACKED = {
    "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint5": 5, "uint6": 6, "uint7": 7, "int4": 4,
}  # fmt: skip
_STORED = {
    "bool": "<u1", "float16": "<f2", "float32": "<f4", "float64": "<f8", "bfloat16": "<u2",
    "int8": "<i1", "int16": "<i2", "int32": "<i4", "int64": "<i8",
    "uint8": "<u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8",
    "float8_e4m3fn": "<u1", "float8_e5m2": "<u1",
}  # fmt: skip
#: Elements unpacked at a time; a multiple of eight, so that each block begins at a byte.
_BLOCK = 1 << 20

_MODEL_PATH = "@model_path/"
_HEADER = struct.Struct("<II")
_METADATA = struct.Struct("<IIQQ")
_SENTINEL = 0xDEADBEEF
_VERSION = 2


@dataclass(frozen=True, slots=True)
class Numbers:
    """A run of numbers, not loaded. Calling it reads them as one axis.

    Parameters
    ----------
    path
        The file they lie in.
    ranges
        Byte ranges, in order.
    element
        Their type: numpy's word, a packed one, or "varint" for protobuf's integers.
    count
        How many there are.
    low_first
        For packed ones: the lowest bits of a byte come first.
    """

    path: Path
    ranges: tuple[tuple[int, int], ...]
    element: str
    count: int
    low_first: bool = True

    def __call__(self) -> AnyArray:
        """Read them."""
        if self.element == "varint":
            unsigned = decode_varints(self._bytes())
            values: AnyArray = unsigned.view(np.int64)
        elif self.element in PACKED:
            values = unpack_bits(
                self._bytes(), self.count, PACKED[self.element], low_first=self.low_first
            )
            if self.element == "int4":
                values = ((values ^ 8).astype(np.int8) - np.int8(8)).astype(np.int8)
        else:
            values = self._plain()
        if values.size != self.count:
            raise MalformedFileError(
                f"{self.path.name}: {values.size} numbers where {self.count} were announced"
            )
        return values

    def _bytes(self) -> AnyArray:
        pieces = [read_array(self.path, a, b - a, np.uint8) for a, b in self.ranges]
        return pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.zeros(0, np.uint8)])

    def _plain(self) -> AnyArray:
        stored = np.dtype(_STORED[self.element])
        pieces = [
            read_array(self.path, a, (b - a) // stored.itemsize, stored) for a, b in self.ranges
        ]
        empty = np.zeros(0, stored.newbyteorder("="))
        values = pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, empty])
        if self.element == "bfloat16":
            # bfloat16 is the upper half of a float32: shifting it there loses nothing.
            return np.asarray((values.astype(np.uint32) << np.uint32(16)).view(np.float32))
        if self.element.startswith("float8"):
            import ml_dtypes

            return np.asarray(values.view(getattr(ml_dtypes, self.element)).astype(np.float32))
        return np.asarray(values != 0) if self.element == "bool" else values


def n_bytes(element: str, count: int) -> int | None:
    """Return how many bytes numbers take.

    Parameters
    ----------
    element
        Their type.
    count
        How many.

    Returns
    -------
    int or None
        None for types filterdb does not read.
    """
    if element in PACKED:
        return -(-count * PACKED[element] // 8)
    return count * np.dtype(_STORED[element]).itemsize if element in _STORED else None


def unpack_bits(raw: AnyArray, count: int, bits: int, *, low_first: bool) -> AnyArray:
    """Unpack unsigned integers of a few bits that follow one another without gaps.

    Parameters
    ----------
    raw
        (n_bytes,) uint8.
    count
        How many integers.
    bits
        Of each, 1 to 8.
    low_first
        Whether the first integer lies in the lowest bits of the first byte (else in its highest).

    Returns
    -------
    ndarray
        (count,) uint8.

    Raises
    ------
    MalformedFileError
        If there are too few bytes.
    """
    if 8 * raw.size < count * bits:
        raise MalformedFileError(f"{count} integers of {bits} bits in {raw.size} bytes")
    if bits == 8:
        return raw[:count]
    values = np.empty(count, np.uint8)
    places = np.arange(bits) if low_first else np.arange(bits)[::-1]
    weights = (1 << places).astype(np.uint8)
    for start in range(0, count, _BLOCK):
        here = min(_BLOCK, count - start)
        first = start * bits // 8
        block = raw[first : first + -(-here * bits // 8)]
        single = np.unpackbits(block, bitorder="little" if low_first else "big")[: here * bits]
        values[start : start + here] = single.reshape(here, bits) @ weights
    return values


def blob_range(file: ModelFile, name: str, offset: int) -> tuple[Path, int, int]:
    """Find numbers in a weight file.

    Parameters
    ----------
    file
        The model.
    name
        The weight file as the model names it ("@model_path/weights/weight.bin").
    offset
        Where its description of the numbers begins.

    Returns
    -------
    tuple
        The file, and the byte range of the numbers.

    Raises
    ------
    SourceError
        If file or range are absent, or outside the model's folder.
    """
    label = file.name or file.path.name
    path = companion_path(file, blob_name(name, label), holds="weights")
    size = file_size(path)
    if offset < 64 or offset + _METADATA.size > size:
        raise MalformedFileError(
            f"{label}: a weight at byte {offset} of {path.name}, which has {size}"
        )
    with map_file(path) as data:
        _count, version = _HEADER.unpack(data[: _HEADER.size])
        described = _METADATA.unpack(data[offset : offset + _METADATA.size])
    sentinel, _kind, length, start = described
    if version != _VERSION or sentinel != _SENTINEL:
        raise MalformedFileError(
            f"{path.name}: no description of a weight at byte {offset} (version {version})",
            tip="do model and weights belong together?",
        )
    if start + length > size:
        raise MalformedFileError(
            f"{path.name}: a weight at bytes {start} to {start + length} of {size}"
        )
    return path, start, start + length


def blob_name(name: str, label: str) -> str:
    """Return a weight file's name relative to the model's folder.

    Parameters
    ----------
    name
        As the model states it.
    label
        The model's name, for messages.

    Returns
    -------
    str
        "weights/weight.bin".

    Raises
    ------
    UnsafeCheckpointError
        If it does not begin at the model.
    """
    if not name.startswith(_MODEL_PATH):
        raise UnsafeCheckpointError(
            f"{label} keeps weights in {name[:200]!r}, which is not inside its own folder"
        )
    return name.removeprefix(_MODEL_PATH)
