"""The numbered weights of Keras 3: ``layers/conv2d_1/vars/0``.

Keras names the groups after the classes of the layers (never after the layers' own names), so
class and number tell what each weight is. Groups below a layer of somebody's own are named after
its attributes; there the shapes have to tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.layers.raw import ConvAttributes, Node, NodeOp, layout_of_rank

if TYPE_CHECKING:
    from filterdb.types import Shape

VARS = re.compile(r"^(?:(.*)/)?vars/(\d+)$")
_CLASS = re.compile(r"^(.*?)(_\d+)?$")
_OPS: Mapping[str, tuple[NodeOp, tuple[str, ...]]] = {
    "conv1d": ("conv", ("weight", "bias")),
    "conv2d": ("conv", ("weight", "bias")),
    "conv3d": ("conv", ("weight", "bias")),
    "conv1d_transpose": ("conv_transpose", ("weight", "bias")),
    "conv2d_transpose": ("conv_transpose", ("weight", "bias")),
    "conv3d_transpose": ("conv_transpose", ("weight", "bias")),
    "depthwise_conv1d": ("conv", ("depthwise", "bias")),
    "depthwise_conv2d": ("conv", ("depthwise", "bias")),
    "separable_conv1d": ("conv", ("depthwise", "pointwise", "bias")),
    "separable_conv2d": ("conv", ("depthwise", "pointwise", "bias")),
    "dense": ("linear", ("weight", "bias")),
    "embedding": ("embedding", ("weight",)),
    "layer_normalization": ("norm", ("gamma", "beta")),
    "group_normalization": ("norm", ("gamma", "beta")),
    "p_re_lu": ("norm", ("weight",)),
}  # fmt: skip


@dataclass(frozen=True)
class _Layer:
    """Tensor names and shapes of one ``vars`` group, by number."""

    name: str
    kind: str
    tensors: tuple[str, ...]
    shapes: tuple[Shape, ...]


def variable_nodes(shapes: Mapping[str, Shape]) -> tuple[Node, ...]:
    """Turn numbered weights into registered modules.

    Parameters
    ----------
    shapes
        Tensor name → shape, in file order.

    Returns
    -------
    tuple of Node
        Without edges, in file order; groups whose class and shapes tell nothing are left out.
    """
    groups: dict[str, dict[int, str]] = {}
    for name in shapes:
        match = VARS.match(name)
        if match and "optimizer" not in name.split("/", 1)[0]:
            groups.setdefault(match[1] or "", {})[int(match[2])] = name
    nodes: list[Node] = []
    for path, numbered in groups.items():
        tensors = tuple(numbered[i] for i in sorted(numbered))
        kind = _CLASS.match(path.rsplit("/", 1)[-1])
        layer = _Layer(path, kind[1] if kind else "", tensors, tuple(shapes[t] for t in tensors))
        nodes += _nodes_of(layer)
    return tuple(nodes)


def _nodes_of(layer: _Layer) -> list[Node]:
    if layer.kind == "batch_normalization" or _looks_like_batch_norm(layer):
        return _batch_norm(layer)
    op, roles = _OPS.get(layer.kind, ("conv", ("weight", "bias")))
    if op == "linear" and len(layer.shapes[0]) > 2:
        return []
    if op != "conv" and op != "conv_transpose":
        return [Node(layer.name, op, weights=dict(zip(roles, layer.tensors, strict=False)),
                     source_op=layer.kind)]  # fmt: skip
    return _convolutions(layer, op, roles)


def _convolutions(layer: _Layer, op: NodeOp, roles: Sequence[str]) -> list[Node]:
    known = layer.kind in _OPS
    rank = len(layer.shapes[0]) - 2
    # Kernels of three axes are attention projections as often as 1-D convolutions.
    if rank not in (1, 2, 3) or (not known and (rank == 1 or not _has_bias_or_nothing(layer))):
        return []
    by_role = dict(zip(roles, layer.tensors, strict=False))
    bias = {"bias": by_role["bias"]} if "bias" in by_role else {}
    nodes = []
    kernels = [r for r in ("depthwise", "pointwise", "weight") if r in by_role]
    for role in kernels:
        letters = "HWIM" if role == "depthwise" else "HWOI" if op == "conv_transpose" else "HWIO"
        layout = layout_of_rank(letters, rank)
        if len(layer.shapes[layer.tensors.index(by_role[role])]) != len(layout):
            continue
        name = layer.name if len(kernels) == 1 else f"{layer.name}.{role}"
        weights = {"weight": by_role[role], **(bias if role == kernels[-1] else {})}
        nodes.append(Node(name, op, weights=weights, conv=ConvAttributes(layout),
                          source_op=layer.kind))  # fmt: skip
    return nodes


def _has_bias_or_nothing(layer: _Layer) -> bool:
    return len(layer.shapes) == 1 or layer.shapes[1:] == (layer.shapes[0][-1:],)


def _looks_like_batch_norm(layer: _Layer) -> bool:
    return (
        layer.kind not in _OPS
        and len(layer.shapes) == 4
        and len(layer.shapes[0]) == 1
        and len(set(layer.shapes)) == 1
    )


def _batch_norm(layer: _Layer) -> list[Node]:
    vectors = [t for t, shape in zip(layer.tensors, layer.shapes, strict=True) if len(shape) == 1]
    # Scale and shift may be switched off; one of the two alone cannot be told from the other.
    if len(vectors) == 4:
        roles: tuple[str, ...] = ("gamma", "beta", "mean", "var")
    elif len(vectors) == 2:
        roles = ("mean", "var")
    else:
        return []
    return [Node(layer.name, "batch_norm", weights=dict(zip(roles, vectors, strict=True)),
                 source_op=layer.kind)]  # fmt: skip
