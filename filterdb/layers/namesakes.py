"""Pair convolutions and BatchNorms where no graph says which follows which.

Names and order decide. A BatchNorm is taken only if it is as long as the convolution has
outputs, stands behind it in the order of construction, and either has the name the convolution's
BatchNorm would have (``conv1`` → ``bn1``, ``0`` → ``1``, ``X.conv`` → ``X.bn``) or is the very
next module of the same parent. A separable convolution's two halves share their parent's name
(``0.depthwise``, ``0.pointwise`` → ``1``). A BatchNorm that stands before its namesake belongs to a
pre-activation network and is left alone. In files sorted by the alphabet the order says nothing:
there the name must fit, and namesakes of convolutions whose inputs and outputs differ in number
must be as long as the outputs, at least once and always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from filterdb.layers.batchnorm import Affine, Pairing
from filterdb.layers.names import batch_norm_names, last_part, tokens

if TYPE_CHECKING:
    from filterdb.layers.candidates import Candidate
    from filterdb.layers.modules import Module

_BRANCH = frozenset({"shortcut", "downsample", "skip", "residual", "identity"})


def pair_by_name(
    candidates: Sequence[Candidate],
    modules: Sequence[Module],
    *,
    ordered: bool,
    folds: bool,
    epsilon: float,
) -> list[Pairing]:
    """Pair convolutions with BatchNorms by names, order and length.

    Parameters
    ----------
    candidates
        Convolutions; their module's position is their place in `modules`.
    modules
        All modules in order of construction.
    ordered
        False where the file does not keep the order of construction, so that order says nothing.
    folds
        The format's converters fold BatchNorm into convolutions.
    epsilon
        ε of those BatchNorms that state none.

    Returns
    -------
    list of Pairing
        One per candidate.
    """
    norms = [m for m in modules if m.kind == "batch_norm"]
    if not norms:
        return [
            Pairing("folded_in_file" if folds and c.bias_length is not None else "none")
            for c in candidates
        ]
    by_name = {m.name.lower(): m for m in norms}
    taken: dict[int, Module] = {}
    claimed: set[int] = set()
    for i, match in _by_name(candidates, by_name, ordered=ordered).items():
        if match.position not in claimed:
            taken[i] = match
            claimed.add(match.position)
    if not ordered:
        for i, match in _by_family(candidates, by_name).items():
            if i not in taken and match.position not in claimed:
                taken[i] = match
                claimed.add(match.position)
    else:
        named = set(taken)
        separable = _separable(candidates)
        for i, candidate in enumerate(candidates):
            name = candidate.module.name
            if i in separable:
                name = last_part(name)[0][:-1]
            after = _next(candidate, modules, name)
            if i in named or after is None or after.position in claimed:
                continue
            taken[i] = after
            claimed.add(after.position)
    free = {m.channels for m in norms if m.position not in claimed}
    return [
        Pairing("separate", _of_module(taken[i], epsilon))
        if i in taken
        else Pairing("unknown" if c.out_channels in free else "none")
        for i, c in enumerate(candidates)
    ]


def _by_name(
    candidates: Sequence[Candidate], by_name: Mapping[str, Module], *, ordered: bool
) -> dict[int, Module]:
    found: dict[int, Module] = {}
    behind = before = 0
    for i, candidate in enumerate(candidates):
        for name in batch_norm_names(candidate.module.name):
            norm = by_name.get(name)
            if norm is None:
                continue
            if norm.channels != candidate.out_channels:
                before += norm.channels == candidate.in_channels
                continue
            if ordered and norm.position < candidate.module.position:
                continue
            behind += candidate.in_channels != candidate.out_channels
            found[i] = norm
            break
    # Sorted by the alphabet, `bn1` always precedes `conv1`. What tells is the length of namesakes
    # where inputs and outputs differ in number: one as long as the inputs shows that this network
    # normalises before it convolves, and none at all shows nothing.
    return found if ordered or (behind and not before) else {}


#: timm's EfficientNet family numbers its norms by the order of execution.
_NUMBERED: tuple[tuple[str, ...], ...] = (
    ("conv_pw", "conv_dw", "conv_pwl"),
    ("conv_exp", "conv_pwl"),
    ("conv_dw", "conv_pw"),
    ("conv_stem",),
)


def _by_family(candidates: Sequence[Candidate], by_name: Mapping[str, Module]) -> dict[int, Module]:
    """Pair the blocks of EfficientNets, whose names say the order where the file does not."""
    blocks: dict[str, dict[str, int]] = {}
    for i, candidate in enumerate(candidates):
        parent, last = last_part(candidate.module.name)
        blocks.setdefault(parent, {})[last] = i
    found: dict[int, Module] = {}
    for parent, members in blocks.items():
        chain = next((c for c in _NUMBERED if set(c) <= members.keys()), ())
        for number, last in enumerate(chain, start=1):
            norm = by_name.get(f"{parent}bn{number}".lower())
            i = members[last]
            if norm is not None and norm.channels == candidates[i].out_channels:
                found[i] = norm
    return found


def _separable(candidates: Sequence[Candidate]) -> set[int]:
    """Find pointwise convolutions that share a parent with just the depthwise one before them."""
    parents = [last_part(c.module.name)[0] for c in candidates]
    return {
        i
        for i, (first, second) in enumerate(pairwise(candidates), start=1)
        if parents[i]
        and parents[i] == parents[i - 1]
        and parents.count(parents[i]) == 2
        and second.module.position == first.module.position + 1
        and first.groups == first.in_channels == second.in_channels
        and max(second.kernel) == 1 < max(first.kernel)
    }


def _next(candidate: Candidate, modules: Sequence[Module], name: str) -> Module | None:
    position = candidate.module.position + 1
    if position >= len(modules):
        return None
    after = modules[position]
    parent, last = last_part(name)
    same_parent = last_part(after.name)[0] == parent
    if _BRANCH & (set(tokens(last)) - set(tokens(last_part(after.name)[1]))):
        return None  # What is registered behind a shortcut need not be applied behind it.
    following = last_part(after.name)[1]
    if last.isdigit() and following.isdigit() and int(following) != int(last) + 1:
        return None  # A Sequential with something between them, an activation most likely.
    fits = after.kind == "batch_norm" and after.channels == candidate.out_channels
    return after if fits and same_parent else None


def _of_module(module: Module, epsilon: float) -> Affine:
    return Affine(
        name=module.name,
        gamma=module.tensors.get("gamma"),
        beta=module.tensors.get("beta"),
        mean=module.tensors["mean"],
        var=module.tensors["var"],
        epsilon=epsilon if module.epsilon is None else module.epsilon,
        channels=module.channels or 0,
    )
