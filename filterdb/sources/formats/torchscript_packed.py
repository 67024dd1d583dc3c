"""Convolutions packed for a backend (quantised by fbgemm or qnnpack, float by XNNPACK)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from filterdb.sources.formats.torchscript_values import UNKNOWN, Packed, Parameter, Value

_Numbers: TypeAlias = Callable[[Parameter], list[Value]]


def packed_of(kind: str, state: Value, numbers_of: _Numbers) -> Value:
    """Return the convolution an object of a class compiled into torch holds.

    Parameters
    ----------
    kind
        Its class: ``Conv2dPackedParamsBase``, ``Conv2dOpContext``, ….
    state
        What the archive stores of it, converted.
    numbers_of
        Returns the values of a small stored tensor.

    Returns
    -------
    Packed or Parameter or Unknown
        A linear layer's weight; UNKNOWN for other classes, and for versions that are not known.
    """
    if not isinstance(state, tuple):
        return UNKNOWN
    if kind in ("Conv2dOpContext", "TransposeConv2dOpContext") and len(state) >= 7:
        weight, bias, stride, padding, *rest = state
        transposed = kind.startswith("Transpose")
        dilation, groups = rest[1:3] if transposed else rest[:2]
        return Packed(weight, bias, stride, padding, dilation, groups, transposed)
    if kind.startswith("Conv") and kind.endswith("PackedParamsBase"):
        return _quantised(state, numbers_of)
    return state[0] if state and isinstance(state[0], Parameter) else UNKNOWN


def _quantised(state: tuple[Value, ...], numbers_of: _Numbers) -> Value:
    # ATen/native/quantized/cpu/conv_serialization.h: version 2 holds a tensor of numbers and the
    # weight, then the bias; version 3 holds the numbers as a list, then [None, weight, bias].
    if len(state) != 3 or not all(isinstance(part, list | tuple) for part in state[1:]):
        return UNKNOWN
    version, first, second = state
    if version == "2" and len(first) == 2 and isinstance(first[0], Parameter):
        return _with(numbers_of(first[0]), first[1], second[0] if second else None)
    if version == 3 and len(second) > 2:
        return _with(list(first), second[1], second[2])
    return UNKNOWN


def _with(numbers: list[Value], weight: Value, bias: Value) -> Packed:
    # Spatial axes; stride, padding, dilation and output padding, one per axis; groups; transposed.
    rank = numbers[0] if numbers and numbers[0] in (1, 2, 3) else 0
    if not rank or len(numbers) < 3 + 4 * rank:
        return Packed(weight, bias)
    stride, padding, dilation = (numbers[1 + i * rank : 1 + (i + 1) * rank] for i in range(3))
    groups, transposed = numbers[1 + 4 * rank : 3 + 4 * rank]
    return Packed(weight, bias, stride, padding, dilation, groups, bool(transposed))
