"""How many groups a convolution of a state dict has, which no state dict says.

A kernel of ``I`` input channels behind a layer that emits ``E = g·I`` has g groups, or the network
takes E channels apart before it convolves (Res2Net's splits, maxout and gated units, pixel
shuffles). What decides, in this order:

* **depthwise** (``I`` = 1): a name that says so; the layer before emits as many channels; the
  last two to four layers together do (ShuffleNet and GhostNet join them); a linear layer, norm
  or scale right before it has a half to a quarter of them (a multiplier: FastViT, EdgeNeXt, PiT);
  or the kernel is larger than 1 and nothing emits, or reads, a single channel.
* **grouped** (``I`` > 1), by strong evidence: 8 groups or more within one block; layers counted in
  sequence (``conv1`` → ``conv2``, ``c1x1_a`` → ``c3x3_b``); or a norm of E channels between, in
  the kernel's own block (RepVGG). Two strong cases make a file one with groups. Then its others
  follow by weaker evidence: as many groups, or as many channels a group under a like name.
* Not where the layer before reads as many channels and is not grouped itself: two branches then
  read one map. Nor two groups in a network most of whose layers emit twice what the next reads.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from filterdb.layers.names import last_part, tokens

if TYPE_CHECKING:
    from filterdb.layers.candidates import Candidate
    from filterdb.layers.modules import Module

#: Names that say depthwise.
DEPTHWISE = re.compile(r"depth_?wise|(^|[._/])(conv_?)?dw(_?conv)?\d*(?=$|[._/])|dwconv", re.I)
#: More branches than this are not joined ahead of a depthwise convolution, nor is a depthwise
#: multiplier larger.
_MOST_JOINED = 4
#: As many groups are no accident of shapes.
_MANY_GROUPS = 8
_SHUFFLED = frozenset(
    {"up", "upconv", "upsample", "upsampling", "upsampler", "unpool", "decoder", "dec"}
    | {"shuffle", "shuffler", "tail", "pixelshuffle", "subpixel"}
)
#: What lies beside the main path, so that its width says nothing of what follows it.
NO_EVIDENCE = frozenset({"se", "squeeze", "shortcut", "downsampler", "skip"})
_SIZE = re.compile(r"_?(\d+x\d+|kxk)")
#: What wraps a convolution's own name.
_WRAPPERS = ("conv", "conv2d")


def depthwise_groups(
    name: str,
    out: int,
    *,
    emitted: Sequence[int],
    width: int | None,
    larger: bool,
) -> int:
    """Conclude the groups of a kernel of one input channel.

    Parameters
    ----------
    name
        Of the convolution.
    out
        Its output channels.
    emitted
        Output channels of the convolutions before it, of the same rank.
    width
        Channels of the linear layer, norm (of layers, not batches) or scale right before it, where
        the file keeps the order.
    larger
        The kernel is larger than 1, some convolution comes before, and none of this rank emits or
        reads a single channel: a map of one channel has to come from somewhere.

    Returns
    -------
    int
        1 where it is taken for an ordinary convolution of a map of one channel.
    """
    before = emitted[-1] if emitted else 0
    if out in (before, width):
        return out
    if width is not None and _multiple(out, width):
        return width
    if out in [*accumulate(emitted[: -_MOST_JOINED - 1 : -1])][1:]:
        return out
    # Halves, one of which no layer made (ShuffleNet).
    if _multiple(out, before):
        return out
    return out if larger or DEPTHWISE.search(name) is not None else 1


def _multiple(out: int, channels: int) -> bool:
    return channels > 1 and out % channels == 0 and out // channels <= _MOST_JOINED


def with_groups(
    candidates: Sequence[Candidate], modules: Sequence[Module], *, ordered: bool
) -> list[Candidate]:
    """Give grouped convolutions (ResNeXt, RegNet, …) that no node describes their groups.

    Parameters
    ----------
    candidates
        In order of construction.
    modules
        All modules in that order.
    ordered
        The file keeps the order; by the alphabet, ``bn1`` always stands before ``conv1``.

    Returns
    -------
    list of Candidate
        The same, some with more groups.
    """
    strong, weak = _proposals(candidates, modules if ordered else ())
    strong |= _repeated(candidates, weak)
    if len(strong) < 2:
        return list(candidates)
    counts = {g for g in strong.values() if g >= _MANY_GROUPS}
    alike = {(pattern(candidates[i]), candidates[i].shape[1]) for i in strong}
    found = dict(strong)
    for i, groups in weak.items():
        same = (pattern(candidates[i]), candidates[i].shape[1]) in alike
        if same or groups in counts:
            found[i] = groups
    _spread(candidates, found)
    return [replace(c, groups=found.get(i, c.groups)) for i, c in enumerate(candidates)]


def pattern(candidate: Candidate) -> str:
    """Return a convolution's name without its numbers.

    Parameters
    ----------
    candidate
        A convolution.

    Returns
    -------
    str
        ``layer#.#.conv#``.
    """
    return re.sub(r"\d+", "#", candidate.module.name)


def _open(candidate: Candidate) -> bool:
    """Whether shape and name leave it open how many groups there are."""
    return (
        candidate.op == "conv"
        and candidate.attributes.groups is None
        and candidate.groups == 1
        and candidate.layout.startswith("OI")
        and candidate.shape[1] > 1
        and not _SHUFFLED & set(tokens(candidate.module.name))
    )


def _proposals(
    candidates: Sequence[Candidate], modules: Sequence[Module]
) -> tuple[dict[int, int], dict[int, int]]:
    strong: dict[int, int] = {}
    weak: dict[int, int] = {}
    halving = _halves(candidates)
    for i, (before, candidate) in enumerate(pairwise(candidates), start=1):
        out, into = candidate.shape[:2]
        emitted = before.out_channels
        if not _open(candidate) or out % emitted or emitted % into or emitted == into:
            continue
        groups = emitted // into
        if before.shape[1] == into and i - 1 not in strong | weak and _emits(into, candidates, i):
            continue  # Two branches that read the same map.
        if groups == 2 and halving:
            continue
        names = before.module.name, candidate.module.name
        together = _together(*names)
        if max(candidate.kernel) == 1:
            listed = pattern(before) == pattern(candidate) and emitted == out == before.groups
            if listed and together and groups >= _MANY_GROUPS:
                strong[i] = groups
        elif (together and groups >= _MANY_GROUPS) or successor(*names):
            strong[i] = groups
        elif emitted == out:
            normed = _norm_between(before, candidate, modules)
            (strong if normed else weak)[i] = groups
    return strong, weak


def _emits(width: int, candidates: Sequence[Candidate], i: int) -> bool:
    """Whether one of the three layers before the one before i, in its block, has this width."""
    block = _block(candidates[i].module.name)
    near = candidates[max(0, i - 4) : i - 1]
    return any(c.out_channels == width and c.module.name.startswith(block) for c in near)


def _repeated(candidates: Sequence[Candidate], weak: Mapping[int, int]) -> dict[int, int]:
    """Many groups under one name in layers of different widths (CSP's downsampling)."""
    many = {i: g for i, g in weak.items() if g >= _MANY_GROUPS}
    widths: dict[str, set[int]] = {}
    for i in many:
        widths.setdefault(pattern(candidates[i]), set()).add(candidates[i].out_channels)
    return {i: g for i, g in many.items() if len(widths[pattern(candidates[i])]) > 1}


def _halves(candidates: Sequence[Candidate]) -> bool:
    """Whether nearly every layer emits twice what the next reads (maxout, gated units)."""
    ratios = Counter(
        before.out_channels / after.shape[1]
        for before, after in pairwise(candidates)
        if after.shape[1] > 1
    )
    return ratios[2.0] > 2 * ratios[1.0]


def _norm_between(before: Candidate, candidate: Candidate, modules: Sequence[Module]) -> bool:
    block = _block(candidate.module.name)
    return bool(block) and any(
        m.kind in ("batch_norm", "norm")
        and m.channels == before.out_channels
        and m.name.startswith(block)
        for m in modules[before.module.position + 1 : candidate.module.position]
        if not before.module.name.startswith(block)
    )


def _spread(candidates: Sequence[Candidate], found: dict[int, int]) -> None:
    """Let neighbours of the same shape in one block have the same groups (in place)."""
    positions = range(1, len(candidates))
    # Forwards for a second layer (conv2 → conv2b, a 1×1 branch), backwards for a list's first.
    for i, j in [*((i, i - 1) for i in positions), *((i - 1, i) for i in reversed(positions))]:
        one, other = candidates[i], candidates[j]
        if i in found or not _open(one) or (j not in found):
            continue
        names = one.module.name, other.module.name
        if one.shape[:2] != other.shape[:2] or _block(names[0]) != _block(names[1]):
            continue
        # A list's first, unless the layer before it emits just what it reads.
        first = pattern(one) == pattern(other) and one.kernel == other.kernel
        explained = i > 0 and candidates[i - 1].out_channels == one.shape[1]
        if i > j or (first and not explained):
            found[i] = found[j]


def _block(name: str) -> str:
    """Drop what wraps a convolution's own name: ``block.c3x3.conv`` lies in ``block.``."""
    return last_part(_own(name))[0]


def _own(name: str) -> str:
    parent, last = last_part(name)
    return parent[:-1] if last in _WRAPPERS and parent else name


def _together(before: str, after: str) -> bool:
    block = _block(before)
    return after.startswith(block) if block else _block(after) == ""


def successor(before: str, after: str) -> bool:
    """Whether two names differ in one number or letter only, by one.

    Parameters
    ----------
    before, after
        Names of convolutions.

    Returns
    -------
    bool
        True for ``conv1`` → ``conv2``, ``a`` → ``b``, ``c1x1_a`` → ``c3x3_b``, ``conv1`` →
        ``conv2.conv``.
    """
    first, second = (re.split(r"([._/])", _SIZE.sub("", _own(n))) for n in (before, after))
    if len(first) != len(second):
        return False
    different = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    if len(different) != 1:
        return False
    a, b = different[0]
    if len(a) == len(b) == 1 and a.isalpha() and b.isalpha():
        return ord(b) - ord(a) == 1
    lettered = [re.fullmatch(r"(.*_)([a-z])", n) for n in (a, b)]
    if lettered[0] and lettered[1] and lettered[0][1] == lettered[1][1]:
        return ord(lettered[1][2]) - ord(lettered[0][2]) == 1
    match_a, match_b = re.fullmatch(r"(.*?[A-Za-z_])(\d+)", a), re.fullmatch(r"(.*?)(\d+)", b)
    return (
        match_a is not None
        and match_b is not None
        and match_a[1] == match_b[1]
        and int(match_b[2]) - int(match_a[2]) == 1
    )


def agreed(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Let namesakes of one input channel agree whether they are depthwise.

    Parameters
    ----------
    candidates
        In order of construction.

    Returns
    -------
    list of Candidate
        A 1×1 kernel, and one of a rank that is not the file's first, is not depthwise where an
        earlier namesake has nothing before it to read but one channel; a larger kernel is
        depthwise where most of its namesakes are.
    """
    open_ones = [
        c for c in candidates if c.attributes.groups is None and c.op == "conv" and c.shape[1] == 1
    ]
    plain = {
        _kind(c) for c in open_ones if c.groups == 1 < c.out_channels and _alone(c, candidates)
    }
    votes: dict[str, Counter[bool]] = {}
    for c in open_ones:
        if max(c.kernel) > 1:
            votes.setdefault(pattern(c), Counter())[c.groups > 1] += 1
    changed: Mapping[int, int] = {
        c.module.position: 1
        for c in open_ones
        if c.groups > 1 and _kind(c) in plain and _alone(c, candidates)
    } | {
        c.module.position: c.out_channels
        for c in open_ones
        if max(c.kernel) > 1
        and c.groups == 1 < c.out_channels
        and c.module.position != candidates[0].module.position
        and not _alone(c, candidates)
        and votes[pattern(c)][True] > votes[pattern(c)][False]
    }
    found = [replace(c, groups=changed.get(c.module.position, c.groups)) for c in candidates]
    for i, (before, after) in enumerate(pairwise(found), start=1):
        # A second branch of another size beside a depthwise multiplier reads the same map.
        beside = after.module.name.startswith(_block(_block(before.module.name)[:-1]) or "\0")
        multiplied = 1 == before.shape[1] < before.groups < before.out_channels
        if (
            beside
            and multiplied
            and after.op == "conv"
            and after.attributes.groups is None
            and (after.groups, after.shape[:2]) == (after.out_channels, before.shape[:2])
            and after.kernel != before.kernel
        ):
            found[i] = replace(after, groups=before.groups)
    return found


def _alone(candidate: Candidate, candidates: Sequence[Candidate]) -> bool:
    """Whether nothing speaks for depthwise but a neighbour: a 1×1 kernel, or a rank of its own."""
    return max(candidate.kernel) == 1 or len(candidate.kernel) != len(candidates[0].kernel)


def _kind(candidate: Candidate) -> tuple[str, tuple[int, ...]]:
    flat = max(candidate.kernel) == 1
    return pattern(candidate), () if flat else candidate.shape
