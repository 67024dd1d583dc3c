"""Which layer of one checkpoint is which of another."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Literal

from filterdb.analysis.likeness import pair_alike

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filterdb.layers.model import ConvLayer
    from filterdb.types import Shape

How = Literal["name", "order", "weights"]


@dataclass(frozen=True)
class Match:
    """Two layers taken for the same.

    Parameters
    ----------
    first, second
        Positions in either checkpoint.
    how
        By equal names, by place among layers of equal shape, or among those by equal weights.
    """

    first: int
    second: int
    how: How


@dataclass(frozen=True)
class Matching:
    """How two checkpoints' layers correspond.

    Parameters
    ----------
    matches
        Pairs of equal shape, in the order of the first checkpoint.
    reshaped
        Pairs of equal name whose shapes differ, (first, second).
    removed, added
        What is only in the first, only in the second.
    """

    matches: tuple[Match, ...]
    reshaped: tuple[tuple[int, int], ...]
    removed: tuple[int, ...]
    added: tuple[int, ...]


def match_layers(first: Sequence[ConvLayer], second: Sequence[ConvLayer]) -> Matching:
    """Match layers by name, and what is left by order and shape.

    Parameters
    ----------
    first, second
        Layers of two checkpoints, repeated uses of shared weights among them.

    Returns
    -------
    Matching
        Every layer appears once. What names leave is aligned as two texts are compared, by the
        longest common runs of shapes, and then paired by shape alone; where weights show that
        layers of one shape are listed in another order, they decide.
    """
    by_name: dict[str, list[int]] = {}
    for j, layer in enumerate(second):
        by_name.setdefault(layer.name, []).append(j)
    matches: list[Match] = []
    left: list[int] = []
    taken: set[int] = set()
    for i, layer in enumerate(first):
        same = [j for j in by_name.get(layer.name, ()) if j not in taken]
        fitting = [j for j in same if shape_of(second[j]) == shape_of(layer)]
        if fitting:
            matches.append(Match(i, fitting[0], "name"))
            taken.add(fitting[0])
        else:
            left.append(i)
    right = [j for j in range(len(second)) if j not in taken]
    matches += _by_weights(first, second, left, right, _by_order(first, second, left, right))
    left, right = _unmatched(left, right, matches)
    reshaped = []
    for i in left:
        same = [j for j in right if second[j].name == first[i].name]
        if same:
            reshaped.append((i, same[0]))
            right.remove(same[0])
    left = [i for i in left if i not in {r[0] for r in reshaped}]
    matches.sort(key=lambda m: m.first)
    return Matching(tuple(matches), tuple(reshaped), tuple(left), tuple(right))


def _unmatched(
    left: Sequence[int], right: Sequence[int], matches: Sequence[Match]
) -> tuple[list[int], list[int]]:
    firsts, seconds = {m.first for m in matches}, {m.second for m in matches}
    return [i for i in left if i not in firsts], [j for j in right if j not in seconds]


def shape_of(layer: ConvLayer) -> tuple[str, Shape]:
    """Return what two layers must share to be compared weight by weight.

    Parameters
    ----------
    layer
        A layer.

    Returns
    -------
    tuple
        Operation and canonical shape.
    """
    return layer.op, (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)


def _by_order(
    first: Sequence[ConvLayer],
    second: Sequence[ConvLayer],
    left: Sequence[int],
    right: Sequence[int],
) -> list[Match]:
    shapes = [shape_of(first[i]) for i in left], [shape_of(second[j]) for j in right]
    blocks = SequenceMatcher(None, *shapes, autojunk=False).get_matching_blocks()
    aligned = [
        Match(left[block.a + k], right[block.b + k], "order")
        for block in blocks
        for k in range(block.size)
    ]
    # Parallel branches may be listed in another order: what is left is paired by shape alone.
    rest, others = _unmatched(left, right, aligned)
    for i in rest:
        fitting = [j for j in others if shape_of(second[j]) == shape_of(first[i])]
        if fitting:
            aligned.append(Match(i, fitting[0], "order"))
            others.remove(fitting[0])
    return aligned


def _by_weights(
    first: Sequence[ConvLayer],
    second: Sequence[ConvLayer],
    left: Sequence[int],
    right: Sequence[int],
    aligned: Sequence[Match],
) -> list[Match]:
    """Pair anew, within each shape, what was paired by order and is not alike."""
    partner = {match.first: match.second for match in aligned}
    matches: list[Match] = []
    for shape in dict.fromkeys(shape_of(first[match.first]) for match in aligned):
        lefts = [i for i in left if shape_of(first[i]) == shape]
        rights = [j for j in right if shape_of(second[j]) == shape]
        pairs = [(lefts.index(i), rights.index(partner[i])) for i in lefts if i in partner]
        found = pair_alike([first[i] for i in lefts], [second[j] for j in rights], pairs)
        before = set(pairs)
        matches += [
            Match(lefts[i], rights[j], "order" if (i, j) in before else "weights") for i, j in found
        ]
    return matches
