"""Kernels among variables whose names say nothing: ``base/variables/12``, ``DW2``, ``Variable_3``.

A saved model keeps lists of variables by number only, in the order of construction; programs call
variables as they like. Types, shapes and neighbours still tell: a variable of four or five axes is
a kernel, and four vectors as long as its outputs behind it are its BatchNorm.
"""

from __future__ import annotations

import re
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

from filterdb.layers.modules import kernel_objection
from filterdb.layers.raw import ConvAttributes, Node, layout_of_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filterdb.layers.raw import Tensor
    from filterdb.types import Shape

_NUMBERED = re.compile(r"(^|/)(\w*variables|weights|\w*_weights)/\d+$")
#: Larger maps without a name are positions, not kernels.
_LARGEST = 15
_BATCH_NORM = ("gamma", "beta", "mean", "var")


def unnamed_layers(tensors: Sequence[Tensor]) -> tuple[Node, ...]:
    """Find convolutions among variables without telling names.

    Parameters
    ----------
    tensors
        Of a checkpoint, numbered ones in order.

    Returns
    -------
    tuple of Node
        Convolutions, and the BatchNorms of numbered ones; empty where names tell.
    """
    network = [
        t
        for t in tensors
        if t.skip is None and t.dtype in ("float32", "float16", "bfloat16", "float64")
    ]
    if any(len(t.shape) > 3 and kernel_objection(t.name, t.shape) is None for t in network):
        network = [t for t in network if _NUMBERED.search(t.name)]
    nodes: list[Node] = []
    for i, tensor in enumerate(network):
        if not _is_kernel(tensor.shape):
            continue
        numbered = _NUMBERED.search(tensor.name) is not None
        if not numbered and kernel_objection(tensor.name, tensor.shape) is None:
            continue
        behind = network[i + 1 : i + 6] if numbered else []
        nodes += _layer(tensor, _neighbours(tensor, behind))
    return tuple(nodes)


def _is_kernel(shape: Shape) -> bool:
    if len(shape) not in (4, 5) or min(shape) < 1:
        return False
    space, into = shape[:-2], shape[-2]
    return max(space) <= _LARGEST and (max(space) > 1 or into > 1)


def _neighbours(tensor: Tensor, behind: Sequence[Tensor]) -> list[Tensor]:
    """Return those numbered on without a gap."""
    chain = [tensor, *behind]
    return [
        b for _, b in takewhile(lambda pair: _follows(pair[0].name, pair[1].name), pairwise(chain))
    ]


def _follows(before: str, after: str) -> bool:
    (list_a, _, a), (list_b, _, b) = before.rpartition("/"), after.rpartition("/")
    return list_a == list_b and a.isdigit() and b.isdigit() and int(b[:9]) == int(a[:9]) + 1


def _layer(tensor: Tensor, behind: Sequence[Tensor]) -> list[Node]:
    into, out = tensor.shape[-2:]
    following = behind[0].shape if behind else ()
    # A kernel for every channel is followed by the pointwise one, or by vectors of its channels.
    depthwise = out == 1 < into and (following[-2:-1] == (into,) or following == (into,))
    letters = "HWIM" if depthwise else "HWIO"
    emitted = into if depthwise else out
    vectors = list(takewhile(lambda t: t.shape == (emitted,), behind))
    weights = {"weight": tensor.name}
    if len(vectors) in (1, 5):
        weights["bias"] = vectors[0].name
        vectors = vectors[1:]
    attributes = ConvAttributes(layout_of_rank(letters, len(tensor.shape) - 2))
    nodes = [Node(tensor.name, "conv", weights=weights, conv=attributes)]
    if len(vectors) == len(_BATCH_NORM):
        roles = {role: t.name for role, t in zip(_BATCH_NORM, vectors, strict=True)}
        nodes.append(Node(vectors[0].name, "batch_norm", weights=roles))
    return nodes
