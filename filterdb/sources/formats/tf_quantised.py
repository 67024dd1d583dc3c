"""Constants a TensorFlow graph keeps as integers, and the ranges that give them a meaning.

``Dequantize`` maps integers to a range (``dequantize_op.cc``); ``QuantizedConv2D`` takes integers
and the range of its kernel. Both are written here as what they stand for: a kernel of floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from filterdb.sources.formats.tf_operations import Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from filterdb.sources.formats.tf_types import Constant, ConstantValues
    from filterdb.types import AnyArray

#: Where an operation on integers keeps the range of its kernel.
_RANGES = {"QuantizedConv2D": 4, "QuantizedDepthwiseConv2D": 4}
_FLOAT = {"QuantizedConv2D": "Conv2D", "QuantizedDepthwiseConv2D": "DepthwiseConv2dNative"}
_INTEGERS = frozenset({"uint8", "int8", "uint16", "int16", "int32"})


@dataclass(frozen=True, slots=True)
class Range:
    """How integers are read.

    Parameters
    ----------
    low, high
        What the smallest and the largest integer stand for.
    mode
        MIN_COMBINED, MIN_FIRST or SCALED.
    narrow
        The smallest signed integer is not used (SCALED).
    """

    low: float
    high: float
    mode: str
    narrow: bool = False


@dataclass(frozen=True, slots=True)
class RangedValues:
    """Loads a constant of integers as float32.

    Parameters
    ----------
    integers
        The stored constant.
    range
        What they mean.
    """

    integers: ConstantValues
    range: Range

    def __call__(self) -> AnyArray:
        """Load the array."""
        return from_range(self.integers(), self.range)


def from_range(values: AnyArray, given: Range) -> AnyArray:
    """Map integers to the numbers they stand for, as TensorFlow's Dequantize does.

    Parameters
    ----------
    values
        Integers.
    given
        Their range and how it is meant.

    Returns
    -------
    ndarray
        float32.
    """
    limits = np.iinfo(values.dtype)
    single = np.float32
    low, high = single(given.low), single(given.high)
    with np.errstate(all="ignore"):
        if given.mode == "SCALED":
            bottom = limits.min + (1 if given.narrow else 0)
            if limits.min == 0:
                scale = single(high / single(limits.max))
            else:
                scale = single(max(low / single(bottom), high / single(limits.max)))
            return np.asarray(values.astype(np.float32) * scale)
        steps = single(float(limits.max) - float(limits.min))
        scale = single((high - low) / steps)
        if given.mode == "MIN_FIRST":
            # The range is moved so that one integer stands for zero exactly.
            start = low if low == high else single(np.round(low / scale) * scale)
            offset = single(start - single(limits.min) * scale)
            return np.asarray(values.astype(np.float32) * scale + offset)
        half = 0.0 if limits.min == 0 else (float(limits.max) - float(limits.min) + 1) / 2
        return np.asarray((values.astype(np.float32) + single(half)) * scale + low)


def rewrite(
    operations: Sequence[Operation],
    constants: Mapping[str, Constant | None],
    scalar: Callable[[str], float | None],
) -> tuple[list[Operation], dict[str, Range]]:
    """Replace operations on integers by those on floats.

    Parameters
    ----------
    operations
        Of a graph.
    constants
        Its constants.
    scalar
        Reads a constant of one number, None where there is none.

    Returns
    -------
    tuple of (list of Operation, dict of str to Range)
        The operations, and the range of each constant that has one.
    """
    by_name = {o.name: o for o in operations}
    ranges: dict[str, Range] = {}

    def origin(value: str) -> str | None:
        """Name of the constant behind a value."""
        name = value.split(":", 1)[0]
        for _ in range(16):
            if name in constants:
                return name
            operation = by_name.get(name)
            if (
                operation is None
                or operation.op not in ("Identity", "Enter")
                or not operation.inputs
            ):
                return None
            name = operation.inputs[0].split(":", 1)[0]
        return None

    def ranged(values: Sequence[str], mode: str, *, narrow: bool) -> bool:
        name, first, last = (origin(value) for value in values)
        constant = constants.get(name) if name is not None else None
        if name is None or first is None or last is None or constant is None:
            return False
        start, end = scalar(first), scalar(last)
        if constant.dtype not in _INTEGERS or start is None or end is None:
            return False
        ranges[name] = Range(start, end, mode, narrow)
        return True

    found = []
    for operation in operations:
        inputs, attributes = operation.inputs, operation.attributes
        place = _RANGES.get(operation.op, 0)
        if operation.op == "Dequantize" and len(inputs) >= 3:
            mode = attributes.get("mode")
            narrow = attributes.get("narrow_range") is True
            words = mode if isinstance(mode, str) and mode else "MIN_COMBINED"
            if ranged(inputs[:3], words, narrow=narrow):
                operation = Operation(operation.name, "Identity", inputs[:1], {})
        elif place and len(inputs) > place + 1:
            kernel = constants.get(origin(inputs[1]) or "")
            signed = kernel is not None and kernel.dtype.startswith("int")
            mode_word = "SCALED" if signed else "MIN_FIRST"
            if ranged((inputs[1], *inputs[place : place + 2]), mode_word, narrow=False):
                operation = Operation(operation.name, _FLOAT[operation.op], inputs[:2], attributes)
        found.append(operation)
    return found, ranges
