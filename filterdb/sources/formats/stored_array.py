"""Arrays as files keep them: bytes at an offset, strides, an element type; loaded on demand."""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from filterdb.errors import FetchError, MalformedFileError, UnsupportedFormatError
from filterdb.sources.formats.file_view import dequantise

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.types import AnyArray, Shape


#: Larger parts are inflated for each tensor in them, so that none stays in memory.
_MAX_KEPT = 64 * 1024 * 1024


class StoredBytes(Protocol):
    """A run of bytes a tensor's elements lie in."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def view(self, start: int, count: int) -> AnyArray:
        """Return `count` bytes from `start` on as a read-only uint8 array."""


@dataclass(frozen=True, slots=True)
class FileBytes:
    """Bytes that lie in the file as they are; viewing maps them.

    Parameters
    ----------
    path
        The file.
    offset, size
        Where in it, in bytes.
    """

    path: Path
    offset: int
    size: int

    def view(self, start: int, count: int) -> AnyArray:
        """Return `count` bytes from `start` on, mapped read-only."""
        if not count:
            return np.zeros(0, np.uint8)
        try:
            mapped = np.memmap(
                self.path, dtype=np.uint8, mode="r", offset=self.offset + start, shape=(count,)
            )
        except OSError as error:
            raise FetchError(f"cannot read {self.path.name}: {error}") from error
        except ValueError as error:
            raise MalformedFileError(f"{self.path.name} has become shorter: {error}") from error
        return mapped.view(np.ndarray)


@dataclass(frozen=True, slots=True)
class DeflatedBytes:
    """Bytes compressed with deflate; viewing inflates all of them.

    Parameters
    ----------
    path
        The file.
    offset, compressed
        Where in it and how many, in bytes.
    size
        Bytes once inflated; more or fewer is an error.
    crc
        CRC-32 of the inflated bytes.
    """

    path: Path
    offset: int
    compressed: int
    size: int
    crc: int

    def view(self, start: int, count: int) -> AnyArray:
        """Return `count` bytes from `start` on of the inflated bytes."""
        if self.size > _MAX_KEPT:
            plain = _inflate(self)
        else:
            try:
                stat = self.path.stat()
            except OSError as error:
                raise FetchError(f"cannot read {self.path.name}: {error}") from error
            plain = _inflate_once(self, (stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return np.frombuffer(plain, np.uint8)[start : start + count]


def _inflate(member: DeflatedBytes) -> bytes:
    packed = FileBytes(member.path, member.offset, member.compressed).view(0, member.compressed)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One byte more than announced is enough to notice a bomb.
        plain = inflater.decompress(packed.data, member.size + 1)
    except zlib.error as error:
        raise MalformedFileError(f"{member.path.name}: cannot inflate: {error}") from error
    if len(plain) != member.size or zlib.crc32(plain) != member.crc:
        raise MalformedFileError(
            f"{member.path.name}: a compressed part of {member.compressed} bytes does not inflate "
            f"to the {member.size} bytes and the checksum its header names"
        )
    return plain


@functools.lru_cache(maxsize=1)
def _inflate_once(member: DeflatedBytes, state: tuple[int, ...]) -> bytes:
    """Keep what was inflated last: many tensors may lie in one compressed storage.

    `state` changes with the file, so that nothing kept outlives it.
    """
    del state
    return _inflate(member)


@dataclass(frozen=True, slots=True)
class MemoryBytes:
    """Bytes that were read with the header (small arrays pickled in line)."""

    data: bytes

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self.data)

    def view(self, start: int, count: int) -> AnyArray:
        """Return `count` bytes from `start` on."""
        return np.frombuffer(self.data, np.uint8)[start : start + count]


@dataclass(frozen=True, slots=True)
class StoredArray:
    """One array in a run of bytes. Calling it loads the array.

    Parameters
    ----------
    source
        The bytes.
    offset
        Byte offset of the first element in them.
    shape
        Extents.
    strides
        In elements, as torch counts them; none negative.
    dtype
        Numpy's name of the element type, or "bfloat16".
    big_endian
        Byte order.
    """

    source: StoredBytes
    offset: int
    shape: Shape
    strides: tuple[int, ...]
    dtype: str
    big_endian: bool = False

    def __call__(self) -> AnyArray:
        """Load the array: native byte order, C order, possibly a read-only view of the file."""
        try:
            stored = np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)
        except TypeError as error:
            raise UnsupportedFormatError(f"values of type {self.dtype} are not read") from error
        raw = self.source.view(self.offset, span(self.shape, self.strides) * stored.itemsize)
        # A copy where elements lie across word borders: compiled kernels want aligned memory.
        if raw.ctypes.data % stored.itemsize:
            raw = raw.copy()
        flat = raw.view(stored.newbyteorder(">" if self.big_endian else "<"))
        if 0 in self.shape:
            return _native(flat.reshape(self.shape), self.dtype)
        # The stride of an axis of one element leads nowhere and may be any number.
        steps = tuple(
            stride * stored.itemsize if extent > 1 else 0
            for extent, stride in zip(self.shape, self.strides, strict=True)
        )
        view = np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)
        return _native(view, self.dtype)


@dataclass(frozen=True, slots=True)
class QuantisedArray:
    """Integers and their scales. Calling it loads ``(integers − zero points) · scales``.

    Parameters
    ----------
    integers
        The stored array.
    scale, zero_point
        One value, or stored arrays of one value per index of `axis`.
    axis
        Along which the scales run.
    """

    integers: StoredArray
    scale: float | StoredArray
    zero_point: float | StoredArray
    axis: int = 0

    def __call__(self) -> AnyArray:
        """Load the array as float32."""
        scale, zero = _values(self.scale), _values(self.zero_point)
        return dequantise(self.integers(), scale, zero, axis=self.axis)


def _values(number: float | StoredArray) -> AnyArray:
    return number() if isinstance(number, StoredArray) else np.array(number)


def span(shape: Shape, strides: tuple[int, ...]) -> int:
    """Return how many elements of storage an array reaches over.

    Parameters
    ----------
    shape, strides
        Extents and strides, in elements.

    Returns
    -------
    int
        Index of the last element plus one; 0 for an empty array.
    """
    if 0 in shape:
        return 0
    return 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))


def c_strides(shape: Shape) -> tuple[int, ...]:
    """Return the strides, in elements, of a C-ordered array.

    Parameters
    ----------
    shape
        Its extents.

    Returns
    -------
    tuple of int
        One stride per axis.
    """
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def _native(values: AnyArray, dtype: str) -> AnyArray:
    # One copy at most, whatever order bytes and axes have.
    values = np.asarray(values, dtype=values.dtype.newbyteorder("="), order="C")
    if dtype != "bfloat16":
        return values
    # bfloat16 is the upper half of a float32: shifting it there loses nothing.
    widened: AnyArray = values.astype(np.uint32)
    widened <<= 16
    return widened.view(np.float32)
