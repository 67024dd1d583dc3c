"""Which BatchNorm follows which convolution, and its vectors.

With a graph: the BatchNorm (or the pair of a per-channel Mul and Add that some converters make of
it) that is the only reader of the convolution's output, looking through identity nodes and a
per-channel bias added in between.

Without a graph, :mod:`filterdb.layers.namesakes` goes by names and order.

What remains: ``none`` where no BatchNorm of this length is left over, ``unknown`` where one is,
``folded_in_file`` where the format's converters fold and the convolution has a bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import LayerError
from filterdb.layers.model import BatchNorm

if TYPE_CHECKING:
    from filterdb.layers.candidates import Candidate
    from filterdb.layers.depth import Graph
    from filterdb.layers.raw import Node, Tensor
    from filterdb.types import BatchNormStatus, FloatArray

#: torch's and Keras' (or TensorFlow's) default, for files that do not state it.
EPSILON_TORCH = 1e-5
EPSILON_TENSORFLOW = 1e-3


@dataclass(frozen=True)
class Affine:
    """Tensors of one BatchNorm.

    Parameters
    ----------
    name
        For errors.
    gamma, beta, mean, var
        None stands for ones, zeros, zeros and ones.
    epsilon
        Added to the variance.
    channels
        Length of the vectors.
    shift
        Per-channel bias added between convolution and BatchNorm.
    """

    name: str
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    epsilon: float
    channels: int
    shift: Tensor | None = None

    def read(self) -> BatchNorm:
        """Load the vectors.

        Returns
        -------
        BatchNorm
            float64 vectors of `channels` elements.

        Raises
        ------
        LayerError
            If a vector has another length.
        """
        mean = self._vector(self.mean, 0.0)
        if self.shift is not None:
            mean = mean - self._vector(self.shift, 0.0)
        return BatchNorm(
            gamma=self._vector(self.gamma, 1.0),
            beta=self._vector(self.beta, 0.0),
            mean=mean,
            var=self._vector(self.var, 1.0),
            epsilon=self.epsilon,
        )

    def _vector(self, tensor: Tensor | None, fill: float) -> FloatArray:
        if tensor is None:
            return np.full(self.channels, fill)
        with np.errstate(invalid="ignore"):  # some NaNs say so when they are widened
            values = np.asarray(tensor.load(), dtype=np.float64).reshape(-1)
        if values.size != self.channels:
            raise LayerError(
                f"{self.name}: {tensor.name} holds {values.size} values for "
                f"{self.channels} channels"
            )
        return values


@dataclass(frozen=True)
class Pairing:
    """What follows one convolution.

    Parameters
    ----------
    status
        As in the layer table.
    affine
        The BatchNorm, where `status` is "separate".
    """

    status: BatchNormStatus
    affine: Affine | None = None


def pair_in_graph(
    candidates: Sequence[Candidate],
    nodes: Sequence[Node],
    graph: Graph,
    tensors: Mapping[str, Tensor],
    *,
    folds: bool,
) -> list[Pairing]:
    """Pair convolutions with the BatchNorm the graph puts behind them.

    Parameters
    ----------
    candidates
        Convolutions, each with its node.
    nodes, graph
        The file's graph.
    tensors
        Tensors by name.
    folds
        The format's converters fold BatchNorm into convolutions.

    Returns
    -------
    list of Pairing
        One per candidate.
    """
    pairings = []
    for candidate in candidates:
        position = candidate.module.node
        affine = None
        if position is not None:
            affine = _behind(position, candidate.out_channels, nodes, graph, tensors)
        if affine is not None:
            pairings.append(Pairing("separate", affine))
        elif folds and _has_bias(candidate, nodes, graph):
            pairings.append(Pairing("folded_in_file"))
        else:
            pairings.append(Pairing("none"))
    return pairings


def _has_bias(candidate: Candidate, nodes: Sequence[Node], graph: Graph) -> bool:
    if "bias" in candidate.module.tensors:
        return True
    readers = graph.consumers[candidate.module.node or 0]
    return len(readers) == 1 and nodes[readers[0]].op == "add"


def _behind(
    position: int,
    channels: int,
    nodes: Sequence[Node],
    graph: Graph,
    tensors: Mapping[str, Tensor],
) -> Affine | None:
    shift: Tensor | None = None
    seen = {position}
    while len(graph.consumers[position]) == 1:
        position = graph.consumers[position][0]
        node = nodes[position]
        if position in seen:
            return None
        seen.add(position)
        if node.op == "identity":
            continue
        constant = tensors.get(node.weights.get("constant", ""))
        per_channel = constant is not None and _per_channel(constant, channels)
        if node.op == "add" and per_channel and shift is None:
            shift = constant
            continue
        if node.op == "batch_norm":
            return _of_node(node, channels, tensors, shift)
        if node.op == "multiply" and per_channel:
            return _of_pair(position, channels, nodes, graph, tensors, shift)
        return None
    return None


def _per_channel(tensor: Tensor, channels: int) -> bool:
    return (
        channels > 1
        and sorted(tensor.shape)[-1:] == [channels]
        and (int(np.prod(tensor.shape)) == channels)
    )


def _of_node(
    node: Node, channels: int, tensors: Mapping[str, Tensor], shift: Tensor | None
) -> Affine | None:
    vectors = {r: tensors.get(node.weights.get(r, "")) for r in ("gamma", "beta", "mean", "var")}
    if vectors["mean"] is None or vectors["var"] is None:
        return None
    if int(np.prod(vectors["mean"].shape)) != channels:
        return None
    epsilon = EPSILON_TORCH if node.epsilon is None else node.epsilon
    return Affine(node.name, **vectors, epsilon=epsilon, channels=channels, shift=shift)


def _of_pair(
    position: int,
    channels: int,
    nodes: Sequence[Node],
    graph: Graph,
    tensors: Mapping[str, Tensor],
    shift: Tensor | None,
) -> Affine | None:
    """Take a Mul and an Add of per-channel constants; a Mul alone is a layer scale, not a norm."""
    scale = tensors[nodes[position].weights["constant"]]
    readers = graph.consumers[position]
    if len(readers) != 1 or nodes[readers[0]].op != "add":
        return None
    offset = tensors.get(nodes[readers[0]].weights.get("constant", ""))
    if offset is None or not _per_channel(offset, channels):
        return None
    return Affine(
        nodes[position].name, scale, offset, None, None, 0.0, channels=channels, shift=shift
    )


def reader_of(affine: Affine) -> partial[BatchNorm]:
    """Return a callable that loads a BatchNorm; it can be pickled where its tensors can.

    Parameters
    ----------
    affine
        The tensors.

    Returns
    -------
    callable
        ``() -> BatchNorm``.
    """
    return partial(Affine.read, affine)
