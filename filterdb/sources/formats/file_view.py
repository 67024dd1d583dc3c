"""Bytes of a model file, mapped while its header is parsed and read piecewise afterwards.

Readers keep byte offsets, not maps: a `Tensor.load` opens the file again, so a listed model holds
no descriptor, may cross to another thread or process, and a file cut short in between is an error
instead of a bus error.
"""

from __future__ import annotations

import mmap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from filterdb.errors import FetchError, MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.base import EXPANSION_SLACK, MAX_EXPANSION, MAX_RANK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from filterdb.types import AnyArray, Shape

#: What the header parsers index and slice.
ByteSource: TypeAlias = bytes | mmap.mmap


@contextmanager
def map_file(path: Path) -> Iterator[ByteSource]:
    """Map a file read-only for the length of a ``with`` block.

    Parameters
    ----------
    path
        The file.

    Yields
    ------
    bytes or mmap
        Something to index and slice; ``b""`` for an empty file, which cannot be mapped.

    Raises
    ------
    FetchError
        If the file cannot be opened.
    """
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, 2)
            view = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise FetchError(f"cannot open {path.name}: {error.strerror or error}") from error
    try:
        yield view
    finally:
        if isinstance(view, mmap.mmap):
            view.close()


def read_array(path: Path, offset: int, count: int, dtype: Any) -> AnyArray:
    """Read `count` values at a byte offset.

    Parameters
    ----------
    path
        The file.
    offset
        Byte offset of the first value.
    count
        Number of values.
    dtype
        Their stored type, with byte order.

    Returns
    -------
    ndarray
        (count,), native byte order, owned by the caller.

    Raises
    ------
    FetchError
        If the file cannot be read.
    MalformedFileError
        If it ends before the last value.
    """
    stored = np.dtype(dtype)
    try:
        values = np.fromfile(path, dtype=stored, count=count, offset=offset)
    except OSError as error:
        raise FetchError(f"cannot read {path.name}: {error.strerror or error}") from error
    if values.size != count:
        raise MalformedFileError(
            f"{path.name} ends early: expected {count} values of {stored.itemsize} bytes at byte "
            f"{offset}, got {values.size}"
        )
    return values.astype(stored.newbyteorder("="), copy=False)


def check_shape(shape: Shape, *, what: str) -> int:
    """Return the number of elements of a shape read from a file.

    Parameters
    ----------
    shape
        The extents as the file gives them.
    what
        The array's name, for the message.

    Returns
    -------
    int
        Their product.

    Raises
    ------
    MalformedFileError
        If an extent is negative, or the rank or the product is absurd.
    """
    elements, bound = 1, 1
    for extent in shape:
        if extent < 0:
            raise MalformedFileError(f"{what} has a negative extent in its shape {shape[:8]}")
        elements *= extent
        bound *= max(extent, 1)
        if bound > 1 << 48:
            break
    if len(shape) > MAX_RANK or bound > 1 << 48:
        raise MalformedFileError(
            f"{what} has an absurd shape (rank {len(shape)}, begins {list(shape[:8])})"
        )
    return elements


def check_expansion(nbytes: int, file_size: int, *, what: str) -> None:
    """Refuse an array much larger than the file that describes it.

    Parameters
    ----------
    nbytes
        Bytes the array would take in memory.
    file_size
        Bytes of the file.
    what
        The array's name, for the message.

    Raises
    ------
    UnsafeCheckpointError
        If `nbytes` exceeds the bound all readers share.
    """
    bound = MAX_EXPANSION * file_size + EXPANSION_SLACK
    if nbytes > bound:
        raise UnsafeCheckpointError(
            f"{what} would take {nbytes} bytes in memory, more than the {bound} allowed for a "
            f"file of {file_size} bytes"
        )


def unpack_nibbles(packed: AnyArray, count: int, *, signed: bool) -> AnyArray:
    """Unpack 4-bit integers stored two a byte, low half first.

    Parameters
    ----------
    packed
        (ceil(count / 2),) uint8.
    count
        Number of values.
    signed
        Two's complement.

    Returns
    -------
    ndarray
        (count,) int8 or uint8.
    """
    values = np.empty(packed.size * 2, np.uint8)
    values[0::2] = packed & 0x0F
    values[1::2] = packed >> 4
    values = values[:count]
    if not signed:
        return values
    return ((values ^ 8).astype(np.int8) - np.int8(8)).astype(np.int8)


def unpack_pairs(packed: AnyArray, count: int, *, signed: bool) -> AnyArray:
    """Unpack 2-bit integers stored four a byte, lowest bits first.

    Parameters
    ----------
    packed
        (ceil(count / 4),) uint8.
    count
        Number of values.
    signed
        Two's complement.

    Returns
    -------
    ndarray
        (count,) int8 or uint8.
    """
    bits = (packed[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)
    values: AnyArray = bits.reshape(-1)[:count]
    return ((values ^ 2).astype(np.int8) - np.int8(2)).astype(np.int8) if signed else values


def dequantise(
    values: AnyArray,
    scale: AnyArray,
    zero_point: AnyArray | None,
    *,
    axis: int,
    block_size: int = 0,
) -> AnyArray:
    """Return ``(values − zero_point) · scale`` as float32.

    Parameters
    ----------
    values
        Integers, any shape.
    scale
        One value; or one per index of `axis`; or, with `block_size`, one per block along `axis`
        (the shape of `values` with ``ceil(extent / block_size)`` at `axis`).
    zero_point
        Like `scale`; None is zero.
    axis
        The axis the scales run along.
    block_size
        0 where scales are per tensor or per axis.

    Returns
    -------
    ndarray
        Shape of `values`, float32.

    Raises
    ------
    MalformedFileError
        If the scales fit the values in none of these ways.
    """
    result: AnyArray = values.astype(np.float32)
    # A scale that is not finite makes weights that are not, which is for later stages to say.
    with np.errstate(all="ignore"):
        if zero_point is not None and zero_point.size:
            result -= _spread(zero_point, values.shape, axis, block_size)
        result *= _spread(scale, values.shape, axis, block_size)
    return result


def _spread(factor: AnyArray, shape: Shape, axis: int, block_size: int) -> AnyArray:
    """Shape quantisation parameters so that they broadcast against values of `shape`."""
    factor = factor.astype(np.float32)
    if factor.size == 1:
        return factor.reshape(())
    place = axis + len(shape) if axis < 0 else axis
    if 0 <= place < len(shape):
        if factor.size == shape[place]:
            return factor.reshape([-1 if i == place else 1 for i in range(len(shape))])
        blocks = -(-shape[place] // block_size) if block_size > 0 else 0
        if blocks and factor.shape == (*shape[:place], blocks, *shape[place + 1 :]):
            # A block may be stated far longer than the axis it lies on.
            wide = np.repeat(factor, min(block_size, shape[place]), axis=place)
            return np.take(wide, np.arange(shape[place]), axis=place)
    raise MalformedFileError(
        f"quantisation parameters of shape {factor.shape} do not fit values of shape {shape} "
        f"along axis {axis}"
    )
