"""Any framework's weight layout → canonical (out_channels, in_channels / groups, *kernel).

Letters are those of :data:`filterdb.layers.raw.Layout`. Frameworks differ in the order of the axes
only: all of them apply the kernel as a cross-correlation, so nothing is ever flipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import LayerError

if TYPE_CHECKING:
    from filterdb.types import AnyArray, Op, Shape

_SPATIAL = "DHW"

#: Order of the axes by family, for the ranks 1 to 3. The names are the catalogue's.
FAMILIES: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "OIHW": {1: "OIW", 2: "OIHW", 3: "OIDHW"},
        "HWIO": {1: "WIO", 2: "HWIO", 3: "DHWIO"},
        "OHWI": {1: "OWI", 2: "OHWI", 3: "ODHWI"},
    }
)


def family_of(layout: str) -> str:
    """Return the family of a layout: "OIHW", "HWIO" or "OHWI".

    Parameters
    ----------
    layout
        Axis letters.

    Returns
    -------
    str
        A key of :data:`FAMILIES`.
    """
    if layout[0] in _SPATIAL:
        return "HWIO"
    return "OIHW" if layout[1] in "IO" else "OHWI"


def layout_for(family: str, rank: int, *, transposed: bool = False) -> str:
    """Return the axis letters of a family's weights.

    Parameters
    ----------
    family
        A key of :data:`FAMILIES`.
    rank
        Spatial axes, 1 to 3.
    transposed
        torch and TensorFlow swap I and O for transposed convolutions; OHWI frameworks do not.

    Returns
    -------
    str
        Axis letters.
    """
    layout = FAMILIES[family][rank]
    if transposed and family != "OHWI":
        return layout.translate(str.maketrans("IO", "OI"))
    return layout


def canonical_shape(
    shape: Shape, layout: str, *, groups: int = 1, op: Op = "conv", where: str = "weights"
) -> Shape:
    """Return the shape :func:`canonical` would give.

    Parameters
    ----------
    shape
        As stored.
    layout
        Axis letters, one per axis.
    groups
        Channel groups.
    op
        conv or conv_transpose; decides which of O and I counts all groups.
    where
        Name used in errors.

    Returns
    -------
    tuple of int
        (out_channels, in_channels / groups, *kernel).

    Raises
    ------
    LayerError
        If layout and shape disagree, or channels do not divide into the groups.
    """
    if len(shape) != len(layout):
        raise LayerError(
            f"{where}: layout {layout} names {len(layout)} axes, the tensor has shape {shape}"
        )
    if groups < 1:
        raise LayerError(f"{where}: {groups} groups; there is at least one")
    size = dict(zip(layout, shape, strict=True))
    kernel = tuple(size[a] for a in _SPATIAL if a in size)
    if any(n < 1 for n in shape):
        raise LayerError(f"{where}: shape {shape} holds no weights")
    if "M" in size:
        result = (size["I"] * size["M"], 1, *kernel)
        _check_groups(size["I"], groups, "input channels (depthwise)", where)
        return result
    if "1" in size:
        if size["1"] != 1:
            raise LayerError(f"{where}: axis {layout.index('1')} of {shape} should be of length 1")
        _check_groups(size["O"], groups, "output channels", where)
        return (size["O"], 1, *kernel)
    if op == "conv_transpose" and _input_counts_all(layout):
        _check_groups(size["I"], groups, "input channels", where)
        return (size["O"] * groups, size["I"] // groups, *kernel)
    _check_groups(size["O"], groups, "output channels", where)
    return (size["O"], size["I"], *kernel)


def _input_counts_all(layout: str) -> bool:
    # IOHW (torch, ONNX) and HWOI (TensorFlow): I holds every input channel, O those of one group.
    return layout.startswith("IO") or layout.endswith("OI")


def _check_groups(channels: int, groups: int, what: str, where: str) -> None:
    if channels % groups:
        raise LayerError(f"{where}: {channels} {what} do not divide into {groups} groups")


def canonical(
    array: AnyArray, layout: str, *, groups: int = 1, op: Op = "conv", where: str = "weights"
) -> AnyArray:
    """Bring weights into canonical form.

    Parameters
    ----------
    array
        Weights as stored.
    layout
        Axis letters, one per axis of `array`.
    groups
        Channel groups.
    op
        conv or conv_transpose.
    where
        Name used in errors.

    Returns
    -------
    ndarray
        (out_channels, in_channels / groups, *kernel), C-contiguous, dtype unchanged. Output
        channels are ordered as the layer emits them: group by group; depthwise multipliers of one
        input channel side by side.

    Raises
    ------
    LayerError
        As :func:`canonical_shape`.
    """
    shape = canonical_shape(array.shape, layout, groups=groups, op=op, where=where)
    spatial = [layout.index(a) for a in _SPATIAL if a in layout]
    if "M" in layout:
        axes = [layout.index("I"), layout.index("M"), *spatial]
    elif "1" in layout:
        axes = [layout.index("O"), layout.index("1"), *spatial]
    elif op == "conv_transpose" and groups > 1 and _input_counts_all(layout):
        moved = array.transpose([layout.index("I"), layout.index("O"), *spatial])
        kernel = moved.shape[2:]
        split = moved.reshape(groups, moved.shape[0] // groups, moved.shape[1], *kernel)
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(shape)
    else:
        axes = [layout.index("O"), layout.index("I"), *spatial]
    return np.ascontiguousarray(array.transpose(axes)).reshape(shape)


def stored(
    weights: AnyArray, layout: str, *, groups: int = 1, op: Op = "conv", where: str = "weights"
) -> AnyArray:
    """Undo :func:`canonical`.

    Parameters
    ----------
    weights
        (out_channels, in_channels / groups, *kernel).
    layout
        Axis letters of the result.
    groups
        Channel groups.
    op
        conv or conv_transpose.
    where
        Name used in errors.

    Returns
    -------
    ndarray
        The weights as a framework of this layout would store them.

    Raises
    ------
    LayerError
        If the weights cannot be stored so (depthwise layouts need one input channel per group).
    """
    kernel = weights.shape[2:]
    letters = [a for a in _SPATIAL if a in layout]
    if len(letters) != len(kernel):
        raise LayerError(f"{where}: layout {layout} cannot hold a kernel of rank {len(kernel)}")
    if ("M" in layout or "1" in layout) and weights.shape[1] != 1:
        raise LayerError(f"{where}: depthwise layout {layout} holds one input channel per group")
    if "M" in layout:
        named = weights.reshape(groups, weights.shape[0] // groups, *kernel)
        order = ["I", "M", *letters]
    elif "1" in layout:
        named, order = weights, ["O", "1", *letters]
    elif op == "conv_transpose" and _input_counts_all(layout):
        split = weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], *kernel)
        joined = split.swapaxes(1, 2)
        named = joined.reshape(groups * weights.shape[1], weights.shape[0] // groups, *kernel)
        order = ["I", "O", *letters]
    else:
        named, order = weights, ["O", "I", *letters]
    return np.ascontiguousarray(named.transpose([order.index(a) for a in layout]))
