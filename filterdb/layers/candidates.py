"""Each convolution's operation, layout and groups: as the graph says, else by evidence.

A state dict holds shapes and names only. What is concluded from them, and what is not:

* **transposed** where the caller's globs say so; where a bias is as long as the *input* axis and
  not as the output axis; where no bias is there and the BatchNorm that follows in the same parent
  is so long (unless the file is sorted by the alphabet, which puts others there); where an even
  kernel without a bias has as many inputs *that way round* as the layer before has outputs, and
  nothing emits as many as the other way round would need; where a bias shows that the second axis
  holds one of several groups; where the name says deconv or transpose; or, for equal axes, where
  an even kernel lies in something called up. Otherwise it is an ordinary convolution.
* **depthwise** where a kernel has one input channel, is not the first convolution, and the layer
  before emits as many channels (or a divisor of them: ShuffleNet joins halves), or the kernel is
  larger than 1 and nothing before emits, or reads, a single channel, or the name says so. A
  multiplier is never concluded. Otherwise one input channel is taken at its word.
* **grouped** where the layer before, in the same block, emits an integer multiple of the input
  axis and a divisor of this layer's outputs; the two are counted in sequence (``conv1`` →
  ``conv2``) or the multiple is at least 8; this is so twice in the file; and nothing is called up
  or shuffle. Otherwise one group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING

from filterdb.errors import LayerError
from filterdb.layers.layout import LayoutChoice, axes_sizes
from filterdb.layers.names import last_part, split_name, tokens
from filterdb.layers.normalise import canonical_shape, layout_for
from filterdb.layers.raw import ConvAttributes, Node, Tensor

if TYPE_CHECKING:
    from filterdb.layers.modules import Module
    from filterdb.types import Op, Shape

_DEPTHWISE = re.compile(r"depth_?wise|(^|[._/])(conv_?)?dw(_?conv)?\d*(?=$|[._/])|dwconv", re.I)
_TRANSPOSED = re.compile(r"deconv|transpose|(^|[._/])(t_?conv|convt|conv_t)\d*(?=$|[._/])", re.I)
_UP = frozenset({"up", "upconv", "upsample", "upsampling", "upsampler", "unpool", "decoder", "dec"})
#: More branches than this are not joined ahead of a depthwise convolution.
_MOST_JOINED = 4
#: As many groups are no accident of shapes.
_MANY_GROUPS = 8
_SHUFFLED = frozenset({*_UP, "shuffle", "shuffler", "tail", "pixelshuffle", "subpixel"})


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
    grouped = _grouped(convolutions, nodes, choice)
    found: list[Candidate] = []
    by_rank: dict[int, list[int]] = {}
    single: set[int] = set()
    for module in convolutions:
        rank = len(module.tensors["weight"].shape)
        emitted = by_rank.setdefault(rank, [])
        node = nodes[module.node] if module.node is not None else None
        told = node.conv if node is not None and node.conv is not None else ConvAttributes()
        after = following.get(module.position) if ordered else None
        op = _op(module, node, choice, transposed, after, emitted)
        layout = told.layout or _layout(module, op, choice)
        groups = told.groups
        if groups is None:
            groups = grouped.get(module.position) or _groups(
                module, op, layout, emitted, single=rank in single
            )
        found.append(_candidate(module, op, layout, groups, told))
        emitted.append(found[-1].out_channels)
        if 1 in (found[-1].in_channels, found[-1].out_channels):
            single.add(rank)
    return _agreed(found)


def _agreed(candidates: list[Candidate]) -> list[Candidate]:
    """Take back a 1×1 kernel's being depthwise where its namesakes are not."""

    def pattern(c: Candidate) -> str:
        return re.sub(r"\d+", "#", c.module.name)

    flat = [c for c in candidates if c.attributes.groups is None and max(c.kernel) == 1]
    plain = {pattern(c) for c in flat if c.in_channels == 1 < c.out_channels}
    wrong = {
        c.module.position
        for c in flat
        if c.groups == c.in_channels > 1 and c.op == "conv" and pattern(c) in plain
    }
    return [replace(c, groups=1) if c.module.position in wrong else c for c in candidates]


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
    emitted = _emitted(module, after)
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
    up = bool(_UP & set(tokens(module.name)[-4:])) and "conv" not in tokens(module.name)[-1:]
    return "conv_transpose" if named or (even and up and out == into) else "conv"


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
    told = emitted == into != out or _DEPTHWISE.search(weight.name) is not None
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


def _groups(module: Module, op: Op, layout: str, emitted: Sequence[int], *, single: bool) -> int:
    size = dict(zip(layout, module.tensors["weight"].shape, strict=True))
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
        return 1
    if size["I"] != 1 or size["O"] == 1:
        return 1
    larger = any(n > 1 for axis, n in size.items() if axis not in "OI")
    found = _is_depthwise(module.name, size["O"], emitted, larger=larger, single=single)
    return size["O"] if found else 1


def _is_depthwise(
    name: str, out: int, emitted: Sequence[int], *, larger: bool, single: bool
) -> bool:
    """Whether a kernel of one input channel is depthwise, by the layers before it."""
    if _DEPTHWISE.search(name):
        return True
    if not emitted:
        return False
    before = emitted[-1]
    if before > 1 and out % before == 0 and out // before <= _MOST_JOINED:
        return True
    # A map of one channel has to come from somewhere: from the image, or from a layer.
    return larger and not single


def _grouped(
    convolutions: Sequence[Module], nodes: Sequence[Node], choice: LayoutChoice
) -> Mapping[int, int]:
    """Find grouped convolutions (ResNeXt, RegNet) among those whose groups nobody states."""
    proposals: dict[int, int] = {}
    if choice.family != "OIHW":
        return proposals
    for before, module in pairwise(convolutions):
        stated = module.node is not None and nodes[module.node].conv is not None
        if stated or len(before.tensors["weight"].shape) < 3:
            continue
        emitted = before.tensors["weight"].shape[0]
        out, into, kernel = axes_sizes(module.tensors["weight"].shape, "OIHW")
        shuffled = _SHUFFLED & set(tokens(module.name))
        if into < 2 or max(kernel) == 1 or out % emitted or emitted % into or shuffled:
            continue
        groups = emitted // into
        together = groups >= _MANY_GROUPS and _block(before.name) == _block(module.name)
        if groups > 1 and (together or _successor(before.name, module.name)):
            proposals[module.position] = groups
    return proposals if len(proposals) > 1 else {}


def _block(name: str) -> str:
    """Drop what wraps a convolution's own name: ``block.c3x3.conv`` lies in ``block.``."""
    parent, last = last_part(name)
    return last_part(parent[:-1])[0] if last in ("conv", "conv2d") else parent


def _successor(before: str, after: str) -> bool:
    """Whether two names differ in one number or letter only, by one: conv1 → conv2, a → b."""
    first, second = re.split(r"([._/])", before), re.split(r"([._/])", after)
    if len(first) != len(second):
        return False
    different = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    if len(different) != 1:
        return False
    a, b = different[0]
    if len(a) == len(b) == 1 and a.isalpha() and b.isalpha():
        return ord(b) - ord(a) == 1
    match_a, match_b = re.fullmatch(r"(.*?[A-Za-z_])(\d+)", a), re.fullmatch(r"(.*?)(\d+)", b)
    return (
        match_a is not None
        and match_b is not None
        and match_a[1] == match_b[1]
        and int(match_b[2]) - int(match_a[2]) == 1
    )
