"""How deep a convolution lies: longest path in the graph, else order of registration."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filterdb.layers.raw import Node
    from filterdb.types import DepthSource


@dataclass(frozen=True)
class Depth:
    """Where a layer lies.

    Parameters
    ----------
    level
        conv_depth, from 0.
    share
        conv_depth_norm, 0 to 1.
    decile
        0 to 9.
    source
        graph or registration.
    """

    level: int
    share: float
    decile: int
    source: DepthSource


def ranked(levels: Sequence[int], source: DepthSource) -> list[Depth]:
    """Turn levels into depths.

    Parameters
    ----------
    levels
        One per layer: any integers that order the layers.
    source
        Where they come from.

    Returns
    -------
    list of Depth
        Rank of each level among the distinct ones; the share is 0 where there is one level.
    """
    rank = {level: i for i, level in enumerate(sorted(set(levels)))}
    deepest = len(rank) - 1
    return [
        Depth(
            level=rank[v],
            share=rank[v] / deepest if deepest else 0.0,
            # In integers: 10·(7/10) must not become 6 by rounding.
            decile=min(9, 10 * rank[v] // deepest) if deepest else 0,
            source=source,
        )
        for v in levels
    ]


@dataclass(frozen=True)
class Graph:
    """Who reads whose output, by node position.

    Parameters
    ----------
    producers
        For each node, the nodes whose outputs it reads.
    consumers
        For each node, the nodes that read its outputs.
    order
        A topological order, or None where the nodes form a cycle.
    """

    producers: tuple[tuple[int, ...], ...]
    consumers: tuple[tuple[int, ...], ...]
    order: tuple[int, ...] | None

    def levels(self, nodes: Sequence[Node]) -> list[int] | None:
        """Longest path from an input to each node, counted in nodes.

        Parameters
        ----------
        nodes
            The nodes the graph was made of. ``identity`` nodes add nothing, so that a converter's
            casts and dequantisations do not change the depth.

        Returns
        -------
        list of int or None
            None where the nodes form a cycle.
        """
        if self.order is None:
            return None
        level = [0] * len(nodes)
        for i in self.order:
            above = max((level[p] for p in self.producers[i]), default=0)
            level[i] = above + (nodes[i].op != "identity")
        return level

    def marked_above(self, marks: Sequence[bool]) -> list[bool]:
        """For each node, whether any node before it (itself left out) is marked.

        Parameters
        ----------
        marks
            One per node.

        Returns
        -------
        list of bool
            All False where the nodes form a cycle.
        """
        return self._spread(marks, self.order or (), self.producers)

    def marked_below(self, marks: Sequence[bool]) -> list[bool]:
        """For each node, whether any node after it (itself left out) is marked.

        Parameters
        ----------
        marks
            One per node.

        Returns
        -------
        list of bool
            All False where the nodes form a cycle.
        """
        return self._spread(marks, tuple(reversed(self.order or ())), self.consumers)

    def _spread(
        self, marks: Sequence[bool], order: Sequence[int], towards: tuple[tuple[int, ...], ...]
    ) -> list[bool]:
        found = [False] * len(self.producers)
        for i in order:
            found[i] = any(marks[j] or found[j] for j in towards[i])
        return found


def graph_of(nodes: Sequence[Node]) -> Graph:
    """Join nodes by the names of the activations they write and read.

    Parameters
    ----------
    nodes
        Nodes with inputs and outputs.

    Returns
    -------
    Graph
        `order` is None for a malformed file whose nodes form a cycle.
    """
    last_writer: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for name in node.outputs:
            last_writer[name] = i
    # Some formats (Caffe's in-place layers) write one name several times: a reader means the last
    # writer before it. A name written only later belongs to a file that is not sorted.
    so_far: dict[str, int] = {}
    producers = []
    consumers: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        read = [*node.inputs, *([node.dynamic_weight] if node.dynamic_weight else [])]
        found = (so_far.get(n, last_writer.get(n, i)) for n in read)
        sources = tuple(j for j in dict.fromkeys(found) if j != i)
        so_far.update(dict.fromkeys(node.outputs, i))
        producers.append(sources)
        for j in sources:
            consumers[j].append(i)
    waiting = [len(p) for p in producers]
    ready = deque(i for i, n in enumerate(waiting) if n == 0)
    order: list[int] = []
    while ready:
        i = ready.popleft()
        order.append(i)
        for j in consumers[i]:
            waiting[j] -= 1
            if waiting[j] == 0:
                ready.append(j)
    whole = tuple(order) if len(order) == len(nodes) else None
    return Graph(tuple(producers), tuple(tuple(c) for c in consumers), whole)
