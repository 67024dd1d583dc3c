"""``WeightParams``: how a Core ML neural network keeps the numbers of a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import MalformedFileError
from filterdb.layers.raw import Tensor
from filterdb.sources.formats.coreml_values import Numbers
from filterdb.sources.formats.file_view import check_expansion, check_shape, dequantise
from filterdb.sources.formats.graph_constants import look_up
from filterdb.sources.formats.protobuf_wire import BYTES, FIXED32, VARINT

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.sources.formats.protobuf_wire import WireReader
    from filterdb.types import AnyArray, Shape, SkipReason


#: Writers pack floats; one that does not writes each by itself.
_MAX_RANGES = 1 << 16


@dataclass
class WeightRecord:
    """One ``WeightParams`` message: byte ranges of what it holds."""

    floats: list[tuple[int, int]] = field(default_factory=list)
    halves: list[tuple[int, int]] = field(default_factory=list)
    raw: list[tuple[int, int]] = field(default_factory=list)
    signed: bool = False
    bits: int = 8
    scale: list[tuple[int, int]] = field(default_factory=list)
    bias: list[tuple[int, int]] = field(default_factory=list)
    table: list[tuple[int, int]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether it holds no numbers."""
        return not (self.floats or self.halves or self.raw)


def parse_weights(wire: WireReader, start: int, end: int) -> WeightRecord:
    """Parse a ``WeightParams`` message.

    Parameters
    ----------
    wire
        The file.
    start, end
        Its byte range.

    Returns
    -------
    WeightRecord
        Nothing of it is loaded.
    """
    record = WeightRecord()
    for number, kind, value, stop in wire.fields(start, end):
        if number == 1:
            _floats(wire, record.floats, kind, value, stop)
        elif number == 2 and kind == BYTES and stop > value:
            record.halves = [(value, stop)]
        elif number in (30, 31) and kind == BYTES and stop > value:
            record.raw, record.signed = [(value, stop)], number == 31
        elif number == 40 and kind == BYTES:
            _quantisation(wire, record, value, stop)
    return record


def _floats(
    wire: WireReader, ranges: list[tuple[int, int]], kind: int, value: int, end: int
) -> None:
    if kind not in (BYTES, FIXED32) or (end - value) % 4:
        raise wire.malformed("floats of a broken length", value)
    if value < end:
        ranges.append((value, end))
    if len(ranges) > _MAX_RANGES:
        raise wire.malformed(f"a weight in more than {_MAX_RANGES} pieces", value)


def _quantisation(wire: WireReader, record: WeightRecord, start: int, end: int) -> None:
    for number, kind, value, stop in wire.fields(start, end):
        if number == 1 and kind == VARINT:
            record.bits = value
        elif number in (101, 102) and kind == BYTES:
            for n, k, v, s in wire.fields(value, stop):
                if number == 102 and n == 1:
                    _floats(wire, record.table, k, v, s)
                elif number == 101 and n in (1, 2):
                    _floats(wire, record.scale if n == 1 else record.bias, k, v, s)


@dataclass(frozen=True, slots=True)
class _Quantised:
    """Integers times a scale plus a bias, or places in a table. Calling it loads them."""

    integers: Numbers
    shape: Shape
    axis: int
    scale: Numbers | None
    bias: Numbers | None
    table: Numbers | None

    def __call__(self) -> AnyArray:
        codes = self.integers().reshape(self.shape)
        if self.table is not None:
            return look_up(self.table(), codes)
        scale = np.ones(1, np.float32) if self.scale is None else self.scale()
        values = dequantise(codes, scale, None, axis=self.axis)
        if self.bias is not None:
            # The same way of spreading over an axis that the scale has.
            ones = [n if i == self.axis else 1 for i, n in enumerate(self.shape)]
            values += dequantise(np.ones(ones, np.int8), self.bias(), None, axis=self.axis)
        return values


@dataclass(frozen=True, slots=True)
class _Shaped:
    numbers: Numbers
    shape: Shape

    def __call__(self) -> AnyArray:
        return self.numbers().reshape(self.shape)


def weight_tensor(
    record: WeightRecord, name: str, shape: Shape, *, path: Path, size: int, axis: int = 0
) -> Tensor:
    """Describe a layer's numbers as a tensor.

    Parameters
    ----------
    record
        The message.
    name
        Of the tensor.
    shape
        As the layer's other fields have it; an extent of −1 is filled in.
    path, size
        The file, and its size in bytes.
    axis
        Along which quantisation may differ.

    Returns
    -------
    Tensor
        Not loaded.

    Raises
    ------
    MalformedFileError
        If the message holds another number of values.
    """
    element, ranges, bits = _stored(record, name)
    have = sum(b - a for a, b in ranges)
    held = 8 * have // bits
    if shape.count(-1) == 1:
        rest = math.prod(n for n in shape if n != -1)
        shape = tuple((held // rest if rest else 0) if n == -1 else n for n in shape)
    count = check_shape(shape, what=f"tensor {name!r}")
    if have != -(-count * bits // 8):
        raise MalformedFileError(
            f"tensor {name!r} of shape {list(shape)} needs {-(-count * bits // 8)} bytes, "
            f"got {have}"
        )
    check_expansion(4 * count, size, what=f"tensor {name!r}")
    numbers = Numbers(path, tuple(ranges), element, count, low_first=False)
    storage = ("file", ranges[0][0]) if ranges else None
    if not record.raw:
        return Tensor(name, shape, element, _Shaped(numbers, shape), storage=storage)
    scale, bias, table = (
        _parameter(path, ranges) for ranges in (record.scale, record.bias, record.table)
    )
    skip: tuple[SkipReason, str] | None = None
    if scale is None and table is None:
        skip = ("missing_scale", f"{bits}-bit values without a scale or table")
    load = _Quantised(numbers, shape, axis, scale, bias, table)
    return Tensor(name, shape, element, load, quantised=True, storage=storage, skip=skip)


def _stored(record: WeightRecord, name: str) -> tuple[str, list[tuple[int, int]], int]:
    """Return the stored type, where the values lie, and their bits."""
    if record.raw:
        if not 1 <= record.bits <= 8:
            raise MalformedFileError(f"tensor {name!r} has values of {record.bits} bits")
        if record.signed:
            return "int8", record.raw, 8
        return f"uint{record.bits}", record.raw, record.bits
    if record.halves:
        return "float16", record.halves, 16
    return "float32", record.floats, 32


def _parameter(path: Path, ranges: list[tuple[int, int]]) -> Numbers | None:
    if not ranges:
        return None
    return Numbers(path, tuple(ranges), "float32", sum(b - a for a, b in ranges) // 4)
