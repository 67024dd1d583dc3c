"""Each convolution's operation, layout and groups: as the graph says, else by evidence.

A state dict holds shapes and names only. What is concluded from them, and what is not:

* **transposed** where the caller's globs say so; where a bias is as long as the *input* axis and
  not as the output axis; where no bias is there and the BatchNorm that follows in the same parent
  is so long (unless the file is sorted by the alphabet, which puts others there); where an even
  kernel without a bias has as many inputs *that way round* as the layer before has outputs, and
  nothing emits as many as the other way round would need; where a bias shows that the second axis
  holds one of several groups; where the name says deconv or transpose; or where an even kernel lies
  in something called up and its axes are equal, or one of them is 1 (bilinear upsampling, channel
  by channel). Otherwise it is an ordinary convolution.
* **depthwise** and **grouped** as :mod:`filterdb.layers.groups` concludes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING

from filterdb.errors import LayerError
from filterdb.layers.groups import DEPTHWISE, NO_EVIDENCE, agreed, depthwise_groups, with_groups
from filterdb.layers.layout import LayoutChoice, axes_sizes
from filterdb.layers.names import last_part, split_name, tokens
from filterdb.layers.normalise import canonical_shape, layout_for
from filterdb.layers.raw import ConvAttributes, Node, Tensor

if TYPE_CHECKING:
    from filterdb.layers.modules import Module
    from filterdb.types import Op, Shape

_TRANSPOSED = re.compile(
    r"deconv|transpose|(^|[._/])(t_?p?_?conv|convtr?|conv_tr?)\d*(?=$|[._/])", re.I
)
_UP = frozenset({"up", "upconv", "upsample", "upsampling", "upsampler", "unpool", "decoder", "dec"})


@dataclass(frozen=True)
class Candidate:
    """One use of one convolution, understood but without its place in the network.

    Parameters
    ----------
    module
        Where it was found; its weight is ``module.tensors["weight"]``.
    op, layout, groups
        As applied.
    shape
        Canonical shape of the weights.
    attributes
        Stride, dilation and padding, if the file says.
    """

    module: Module
    op: Op
    layout: str
    groups: int
    shape: Shape
    attributes: ConvAttributes

    @property
    def tensor(self) -> Tensor:
        """The weight tensor."""
        return self.module.tensors["weight"]

    @property
    def out_channels(self) -> int:
        """Output channels of all groups."""
        return self.shape[0]

    @property
    def in_channels(self) -> int:
        """Input channels of all groups."""
        return self.shape[1] * self.groups

    @property
    def kernel(self) -> Shape:
        """Spatial extent."""
        return self.shape[2:]

    @property
    def stride(self) -> Shape | None:
        """Stride per axis, if known."""
        return self.attributes.stride

    @property
    def bias_length(self) -> int | None:
        """Length of the bias, None where there is none."""
        bias = self.module.tensors.get("bias")
        return bias.shape[0] if bias is not None and len(bias.shape) == 1 else None


def candidates_of(
    modules: Sequence[Module],
    nodes: Sequence[Node],
    choice: LayoutChoice,
    *,
    transposed: Sequence[str] = (),
    ordered: bool = True,
) -> list[Candidate]:
    """Understand every convolution among the modules.

    Parameters
    ----------
    modules
        In order of construction (graph: execution).
    nodes
        The file's nodes, for the modules that have one.
    choice
        Layout of those convolutions whose node states none.
    transposed
        Globs of tensor names that are transposed convolutions.
    ordered
        False where the file does not keep the order of construction, so that neighbours mean less.

    Returns
    -------
    list of Candidate
        In the order of `modules`.

    Raises
    ------
    LayerError
        If what a node says does not fit its tensor.
    """
    convolutions = [m for m in modules if m.kind == "conv"]
    following = {m.position: after for m, after in pairwise(modules)}
    imaged = {len(s) for s in (m.tensors["weight"].shape for m in convolutions) if _imaged(s)}
    # What makes so many channels of so many is not a depthwise multiplier elsewhere.
    widened = {
        m.tensors["weight"].shape[:2] for m in convolutions if not NO_EVIDENCE & set(tokens(m.name))
    }
    found: list[Candidate] = []
    by_rank: dict[int, list[int]] = {}
    single: set[int] = set()
    before_shape: Shape = ()
    for module in convolutions:
        weight = module.tensors["weight"]
        rank = len(weight.shape)
        emitted = by_rank.setdefault(rank, [])
        node = nodes[module.node] if module.node is not None else None
        told = node.conv if node is not None and node.conv is not None else ConvAttributes()
        after = following.get(module.position) if ordered else None
        # What has the shape of the layer before it may be a second branch (sine beside cosine).
        twin = weight.shape == before_shape
        # One of one channel in the middle of a network is depthwise.
        twin |= 1 in weight.shape[:2] and module is not convolutions[-1]
        before_shape = weight.shape
        op = _op(module, node, choice, transposed, after, () if twin else emitted)
        layout = told.layout or _layout(module, op, choice)
        groups = told.groups
        if groups is None:
            width = _width(modules, module.position) if ordered else None
            if (weight.shape[0], width) in widened:
                width = None
            first = not emitted and not (not ordered and rank in imaged)
            last = module is convolutions[-1]
            before = _Before(emitted, width, first, rank in single, last)
            groups = _groups(module, op, layout, before)
        found.append(_candidate(module, op, layout, groups, told))
        if not NO_EVIDENCE & set(tokens(module.name)):
            emitted.append(found[-1].out_channels)
        if 1 in (found[-1].in_channels, found[-1].out_channels):
            single.add(rank)
    return with_groups(agreed(found), modules, ordered=ordered)


def _candidate(module: Module, op: Op, layout: str, groups: int, told: ConvAttributes) -> Candidate:
    weight = module.tensors["weight"]
    if len(weight.shape) == len(layout) and "M" in layout:
        groups = weight.shape[layout.index("I")]
    shape = canonical_shape(weight.shape, layout, groups=groups, op=op, where=weight.name)
    rank = len(shape) - 2
    for what in ("stride", "dilation"):
        value = getattr(told, what)
        if value is not None and len(value) != rank:
            raise LayerError(
                f"{module.name}: {what} {value} for a kernel of {rank} axes ({weight.name})"
            )
    return Candidate(module, op, layout, groups, shape, told)


def _op(
    module: Module,
    node: Node | None,
    choice: LayoutChoice,
    transposed: Sequence[str],
    after: Module | None,
    earlier: Sequence[int],
) -> Op:
    weight = module.tensors["weight"]
    if any(fnmatchcase(weight.name, glob) for glob in transposed):
        return "conv_transpose"
    if node is not None and node.op in ("conv", "conv_transpose"):
        return "conv_transpose" if node.op == "conv_transpose" else "conv"
    out, into, kernel = axes_sizes(weight.shape, choice.family)
    named = _TRANSPOSED.search(module.name) is not None
    if choice.family == "OHWI":
        # These frameworks keep the output axis first; only a name can tell.
        return "conv_transpose" if named else "conv"
    emitted = _emitted(module, after if max(kernel) > 1 else None)
    if _is_depthwise_hwim(weight, choice, emitted):
        return "conv"
    if emitted is not None and out != into:
        if emitted == into:
            return "conv_transpose"
        if emitted == out:
            return "conv"
        groups = emitted // into if "bias" in module.tensors else 0
        if groups > 1 and emitted % into == 0 and out % groups == 0:
            return "conv_transpose"  # The second axis holds one group.
    even = all(k % 2 == 0 for k in kernel)
    if even and emitted is None and earlier and earlier[-1] == out != into not in earlier:
        return "conv_transpose"
    up = bool(_UP & set(tokens(module.name))) and "conv" not in tokens(module.name)[-1:]
    # Bilinear upsampling channel by channel (CenterNet): one output per group, without a bias.
    single = into == 1 < out and emitted is None and kernel[0] > 2
    return "conv_transpose" if named or (even and up and (out == into or single)) else "conv"


def _emitted(module: Module, after: Module | None) -> int | None:
    """Output channels by the bias, else by the BatchNorm registered right behind."""
    bias = module.tensors.get("bias")
    if bias is not None and len(bias.shape) == 1:
        return bias.shape[0]
    if (
        after is not None
        and after.kind == "batch_norm"
        and last_part(after.name)[0] == last_part(module.name)[0]
    ):
        return after.channels
    return None


def _is_depthwise_hwim(weight: Tensor, choice: LayoutChoice, emitted: int | None) -> bool:
    # Keras 3 calls a depthwise kernel (h, w, channels, 1) plainly "kernel".
    if choice.family != "HWIO" or len(weight.shape) < 3:
        return False
    leaf = split_name(weight.name)[1].lower()
    into, out = weight.shape[-2:]
    if leaf.startswith("depthwise"):
        return True
    told = emitted == into != out or DEPTHWISE.search(weight.name) is not None
    return out == 1 and into > 1 and told and "transpose" not in weight.name.lower()


def _layout(module: Module, op: Op, choice: LayoutChoice) -> str:
    weight = module.tensors["weight"]
    rank = len(weight.shape) - 2
    if rank not in (1, 2, 3):
        raise LayerError(f"{weight.name}: a kernel of {rank} axes; there are 1, 2 and 3")
    if op == "conv" and _is_depthwise_hwim(weight, choice, _emitted(module, None)):
        return layout_for("HWIO", rank).replace("O", "M")
    bias = module.tensors.get("bias")
    if (
        choice.family == "OHWI"
        and weight.shape[0] == 1 < weight.shape[-1]
        and bias is not None
        and bias.shape == (weight.shape[-1],)
    ):
        return "1" + layout_for("OHWI", rank)[1:-1] + "O"
    return layout_for(choice.family, rank, transposed=op == "conv_transpose")


@dataclass(frozen=True)
class _Before:
    """What lies around a convolution; see :func:`filterdb.layers.groups.depthwise_groups`."""

    emitted: Sequence[int]
    width: int | None
    first: bool
    single: bool
    last: bool


def _imaged(shape: Shape) -> bool:
    return len(shape) == 4 and shape[1] == 3 < shape[0]


def _width(modules: Sequence[Module], position: int) -> int | None:
    """Channels of what lies right before a module, where that is no convolution."""
    own = modules[position].name
    for module in modules[max(0, position - 8) : position][::-1]:
        # A block's own scale is registered ahead of what it scales.
        if NO_EVIDENCE & set(tokens(module.name)) or own.startswith(f"{module.name}."):
            continue
        if module.kind in ("linear", "norm") and module.channels:
            return module.channels
        if module.kind == "other" and len(module.tensors) == 1:
            (shape,) = (t.shape for t in module.tensors.values())
            # A scale per channel: (C, 1, 1).
            return max(shape) if sum(n > 1 for n in shape) == 1 else None
        return None
    return None


def _groups(module: Module, op: Op, layout: str, before: _Before) -> int:
    shape = module.tensors["weight"].shape
    if len(layout) != len(shape):
        return 1  # making the layer says what is wrong
    size = dict(zip(layout, shape, strict=True))
    if "M" in size:
        return size["I"]
    if "1" in size:
        return size["O"]
    bias = module.tensors.get("bias")
    if op == "conv_transpose":
        length = bias.shape[0] if bias is not None and len(bias.shape) == 1 else None
        # IOHW holds the outputs of one group; the bias holds those of all.
        if length is not None and length > size["O"] and length % size["O"] == 0:
            groups = length // size["O"]
            return groups if size["I"] % groups == 0 else 1
        alone = size["O"] == 1 and length is None and not before.last
        return size["I"] if alone and _UP & set(tokens(module.name)) else 1
    if size["I"] != 1 or size["O"] == 1:
        return 1
    larger = any(n > 1 for axis, n in size.items() if axis not in "OI")
    return depthwise_groups(
        module.name,
        size["O"],
        emitted=before.emitted,
        width=before.width,
        larger=larger and not before.first and not before.single,
    )
