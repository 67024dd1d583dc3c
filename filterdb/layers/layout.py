"""Which axis is which, where no graph says: one decision for a whole file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.errors import LayerError
from filterdb.layers.names import split_name
from filterdb.layers.normalise import FAMILIES, family_of

if TYPE_CHECKING:
    from filterdb.layers.modules import Module
    from filterdb.types import Shape

#: No kernel met so far is longer along a side of a square (31: RepLKNet).
_LARGEST_SQUARE = 31


@dataclass(frozen=True)
class LayoutChoice:
    """The family of a file's weights and why.

    Parameters
    ----------
    family
        "OIHW", "HWIO" or "OHWI".
    why
        A few words for people.
    """

    family: str
    why: str


def choose_layout(modules: Sequence[Module], *, layout: str, default: str | None) -> LayoutChoice:
    """Choose the family of layouts of every convolution that no node describes.

    The catalogue's word goes first, then the reader's, then Keras-like parameter names
    (``kernel``, ``depthwise_kernel``, TF-slim's ``weights``), then a vote of the file's tensors:
    for each family, how many kernels are square and small, how many biases are as long as the
    output axis, and how often one layer's outputs are the next layer's inputs. A tie is torch's.

    Parameters
    ----------
    modules
        The file's modules in order of construction.
    layout
        "auto" or a family named by the catalogue.
    default
        The reader's layout of 4-D weights, if it knows.

    Returns
    -------
    LayoutChoice
        The family and the reason.

    Raises
    ------
    LayerError
        If `layout` names no family.
    """
    if layout != "auto":
        if layout not in FAMILIES:
            raise LayerError(f"no layout {layout!r}", tip=f"there are: auto, {', '.join(FAMILIES)}")
        return LayoutChoice(layout, "stated by the catalogue")
    if default is not None:
        return LayoutChoice(family_of(default), "stated by the format")
    convolutions = [m for m in modules if m.kind == "conv"]
    leaves = {split_name(m.tensors["weight"].name)[1].lower() for m in convolutions}
    if leaves and all(n.endswith("kernel") or n == "weights" for n in leaves):
        return LayoutChoice("HWIO", "parameters named as TensorFlow names them")
    if leaves and leaves <= {"w"}:
        return LayoutChoice("OIHW", "parameters named as Chainer names them")
    votes = {f: _vote(convolutions, f) for f in FAMILIES}
    best = max(FAMILIES, key=lambda f: votes[f])
    if votes[best] == votes["OIHW"]:
        return LayoutChoice("OIHW", "torch's order; the shapes do not speak against it")
    return LayoutChoice(best, "the shapes chain only in this order")


def axes_sizes(shape: Shape, family: str) -> tuple[int, int, Shape]:
    """Read a weight's shape under a family.

    Parameters
    ----------
    shape
        As stored, of 3 to 5 axes.
    family
        A key of :data:`filterdb.layers.normalise.FAMILIES`.

    Returns
    -------
    tuple of (int, int, tuple of int)
        Output axis, input axis, kernel.
    """
    if family == "OIHW":
        return shape[0], shape[1], shape[2:]
    if family == "OHWI":
        return shape[0], shape[-1], shape[1:-1]
    return shape[-1], shape[-2], shape[:-2]


def _vote(modules: Sequence[Module], family: str) -> int:
    score = 0
    previous: int | None = None
    for module in modules:
        weight, bias = module.tensors["weight"], module.tensors.get("bias")
        if len(weight.shape) not in (3, 4, 5):
            continue
        out, into, kernel = axes_sizes(weight.shape, family)
        score += len(set(kernel)) == 1 and kernel[0] <= _LARGEST_SQUARE
        score -= 2 * (max(kernel) > _LARGEST_SQUARE)
        if bias is not None and len(bias.shape) == 1:
            length = bias.shape[0]
            # A transposed convolution's bias is as long as the other axis.
            score += 2 if length == out else 0 if length == into else -2
        score += previous is not None and into == previous
        previous = out
    return score
