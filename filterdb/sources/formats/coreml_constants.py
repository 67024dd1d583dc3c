"""Constants of an ML Program, and the operations that decompress them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.coreml_values import Numbers, blob_range, n_bytes, unpack_bits
from filterdb.sources.formats.file_view import check_expansion, check_shape
from filterdb.sources.formats.graph_constants import Constant, Load, Refusal, look_up

if TYPE_CHECKING:
    from filterdb.sources.formats.base import ModelFile
    from filterdb.sources.formats.coreml_mil import Value
    from filterdb.types import AnyArray, Shape, SkipReason

#: Numbers looked up at a time.
_BLOCK = 1 << 20


def stored_constant(file: ModelFile, size: int, name: str, value: Value) -> Constant:
    """Describe a constant the program stores.

    Parameters
    ----------
    file
        The model.
    size
        Its bytes.
    name
        Of the constant.
    value
        What the program says of it.

    Returns
    -------
    Constant
        Not loaded.

    Raises
    ------
    SourceError
        If bytes and shape do not fit together, or a weight file is absent.
    """
    what = f"constant {name!r}"
    count = check_shape(value.shape, what=what)
    needed = n_bytes(value.element, count)
    if needed is None or value.payload in ("string", "pieces"):
        reason: tuple[SkipReason, str] = ("unsupported_dtype", f"values of type {value.element!r}")
        refusal = Refusal(f"{what} holds {value.element or 'no'} values")
        return Constant(name, value.shape, value.element, refusal, skip=reason)
    if value.payload == "number":
        numbers: Load = Single(value.ranges[0][0])
        return Constant(name, value.shape, value.element, Shaped(numbers, value.shape))
    path, ranges, element = file.path, tuple(value.ranges), value.element
    available = size
    if value.blob is not None:
        path, start, end = blob_range(file, *value.blob)
        ranges, available = ((start, end),), end
    elif value.payload not in ("", "bytes"):
        element = value.payload
        needed = {"varint": None, "float32": 4 * count, "float64": 8 * count}[element]
    have = sum(b - a for a, b in ranges)
    if not ranges and count:
        raise MalformedFileError(f"{what} of shape {list(value.shape)} holds no values")
    fits = count <= have <= 10 * count if needed is None else have == needed
    if not fits:
        raise MalformedFileError(
            f"{what} of shape {list(value.shape)} and type {value.element} needs {needed} bytes, "
            f"got {have}"
        )
    check_expansion(4 * count, available, what=what)
    load = Shaped(Numbers(path, ranges, element, count), value.shape)
    place = ("blob" if value.blob else "file", *ranges[0]) if ranges else None
    return Constant(name, value.shape, value.element, load, storage=place)


@dataclass(frozen=True, slots=True)
class Single:
    """One integer."""

    value: int

    def __call__(self) -> AnyArray:
        """Return it."""
        return np.array([self.value], np.int64)


@dataclass(frozen=True, slots=True)
class Shaped:
    """Numbers in a shape."""

    source: Load
    shape: Shape

    def __call__(self) -> AnyArray:
        """Load them."""
        values = self.source()
        if values.size != math.prod(self.shape):
            raise MalformedFileError(f"{values.size} numbers for a shape of {list(self.shape)}")
        return values.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Palette:
    """Places in tables of numbers, or of short vectors (iOS 18, ``constexpr_lut_to_dense``).

    Parameters
    ----------
    places
        Loads the places.
    tables
        Loads (…, n_numbers, vector) tables; their first axes divide those of the places.
    shape
        Of the result.
    axis
        Along which vectors lie.
    """

    places: Load
    tables: Load
    shape: Shape
    axis: int

    def __call__(self) -> AnyArray:
        """Load the numbers."""
        places = self.places()
        tables = self.tables()
        rank = places.ndim
        if tables.ndim != rank + 2 or (places.size and int(places.max()) >= tables.shape[-2]):
            raise MalformedFileError(
                f"places of shape {places.shape} do not fit tables of shape {tables.shape}"
            )
        if places.size * tables.shape[-1] != math.prod(self.shape):
            raise MalformedFileError(
                f"{places.size} places in tables of {tables.shape[-1]} for {list(self.shape)}"
            )
        if tables.size == tables.shape[-2]:
            return look_up(tables.reshape(-1), places).reshape(self.shape)
        index = [
            (np.arange(extent) // max(1, extent // tables.shape[axis])).reshape(
                [-1 if i == axis else 1 for i in range(rank)]
            )
            for axis, extent in enumerate(places.shape)
        ]
        values = np.empty(math.prod(self.shape), tables.dtype)
        rows = max(1, _BLOCK // max(1, math.prod(places.shape[1:])))
        position = 0
        for start in range(0, len(places), rows):
            here = slice(start, start + rows)
            found = tables[(index[0][here], *index[1:], places[here])]
            # Vectors lie along one axis, behind the place they stand for.
            block = np.moveaxis(found, -1, self.axis + 1).reshape(-1)
            values[position : position + block.size] = block
            position += block.size
        return values.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class PackedPalette:
    """Places packed into bytes, and one table (iOS 16)."""

    places: Load
    table: Load
    shape: Shape

    def __call__(self) -> AnyArray:
        """Load the numbers."""
        table = self.table().reshape(-1)
        bits = max(1, (table.size - 1).bit_length())
        if bits > 8:
            raise MalformedFileError(f"a table of {table.size} numbers for places of a byte")
        raw = self.places().astype(np.uint8, copy=False).reshape(-1)
        codes = unpack_bits(raw, math.prod(self.shape), bits, low_first=True)
        return look_up(table, codes).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Sparse:
    """Numbers where a mask says so, zeros elsewhere."""

    numbers: Load
    mask: Load
    shape: Shape
    #: The mask is bits in bytes (iOS 16), not an array of its own (iOS 18).
    packed: bool

    def __call__(self) -> AnyArray:
        """Load the numbers."""
        count = math.prod(self.shape)
        mask = self.mask().reshape(-1)
        if self.packed:
            mask = unpack_bits(mask.astype(np.uint8, copy=False), count, 1, low_first=True)
        numbers = self.numbers().reshape(-1)
        chosen = mask != 0
        n_chosen = int(np.count_nonzero(chosen))
        if mask.size != count or n_chosen != numbers.size:
            raise MalformedFileError(
                f"{numbers.size} numbers for {n_chosen} places among {mask.size} of {count}"
            )
        values = np.zeros(count, numbers.dtype)
        values[chosen] = numbers
        return values.reshape(self.shape)
