"""Strides, paddings, dilations and groups of ONNX convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.layers.raw import ConvAttributes

if TYPE_CHECKING:
    from filterdb.sources.formats.onnx_flatten import Operation


#: Deformable convolutions of MMCV, from before ONNX had its own: positions of weight and bias.
MMCV_CONV = {"MMCVDeformConv2d": (2, -1), "MMCVModulatedDeformConv2d": (3, 4)}


def mmcv_attributes(operation: Operation, layout: str | None) -> ConvAttributes:
    """Translate the attributes of MMCV's operators, which have names of their own.

    Parameters
    ----------
    operation
        One of :data:`MMCV_CONV`.
    layout
        Axis letters of its weight.

    Returns
    -------
    ConvAttributes
        None for what is not stated once per axis.
    """
    stated = {name: operation.integers(name) for name in ("stride", "dilation", "padding")}
    pairs = {name: n if n and len(n) == 2 else None for name, n in stated.items()}
    groups = int(operation.number("groups", 1))
    return ConvAttributes(layout, groups, pairs["stride"], pairs["dilation"], pairs["padding"])


def conv_attributes(operation: Operation, rank: int, layout: str | None) -> ConvAttributes:
    """Translate strides, dilations, pads and groups.

    Parameters
    ----------
    operation
        A convolution.
    rank
        Number of spatial axes; 0 where unknown.
    layout
        Axis letters of its weight.

    Returns
    -------
    ConvAttributes
        With ONNX's defaults filled in.
    """
    ones = (1,) * rank if rank > 0 else None
    return ConvAttributes(
        layout=layout,
        groups=int(operation.number("group", 1)),
        stride=operation.integers("strides") or ones,
        dilation=operation.integers("dilations") or ones,
        padding=_padding(operation, rank),
    )


def _padding(operation: Operation, rank: int) -> tuple[int, ...] | None:
    automatic = operation.text("auto_pad")
    if automatic.startswith("SAME"):
        return None
    pads = None if automatic == "VALID" else operation.integers("pads")
    if pads is None:
        return (0,) * rank if rank > 0 else None
    half = len(pads) // 2
    begin, end = pads[:half], pads[half:]
    return begin if begin == end else pads
