"""The numbered weights of Keras 3: ``layers/conv2d_1/vars/0``.

Keras names the groups after the classes of the layers (never after the layers' own names), so
class and number tell what each weight is. Groups below a layer of somebody's own are named after
its attributes; there the shapes have to tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filterdb.layers.raw import ConvAttributes, Node, NodeOp, layout_of_rank

if TYPE_CHECKING:
    from filterdb.types import Shape

VARS = re.compile(r"^(?:(.*)/)?vars/(\d+)$")
#: Where the state of training lies in a store.
OPTIMIZER = re.compile(r"^_?optimizer(/|$)")
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
    # Of a recurrent convolution; the cells of other recurrent layers have kernels of two axes.
    "cell": ("conv", ("weight", "recurrent", "bias")),
    "p_re_lu": ("norm", ("weight",)),
}  # fmt: skip


#: Names Keras itself gives the variables of its classes, in the order in which it creates them.
_LEAVES: Mapping[str, tuple[str, ...]] = {
    "dense": ("kernel", "bias"), "embedding": ("embeddings",), "p_re_lu": ("alpha",),
    "cell": ("kernel", "recurrent_kernel", "bias"),
}  # fmt: skip
_CONVOLUTION = re.compile(r"(^|_)(separable_|depthwise_)?(conv|convolution|deconvolution)_?[123]d")
_NORMS = ("layer_normalization", "group_normalization", "instance_normalization")


def snake_case(name: str) -> str:
    """Return a class's name as Keras writes it into paths.

    Parameters
    ----------
    name
        ``Conv2DTranspose``; a package in front of it (``Custom>Block``) is dropped.

    Returns
    -------
    str
        ``conv2d_transpose``.
    """
    name = re.sub(r"\W+", "", name.rsplit(">", 1)[-1])
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def leaf_names(kind: str, shapes: Sequence[Shape], config: Mapping[str, Any]) -> list[str]:
    """Name the numbered variables of one layer as earlier versions of Keras did.

    Parameters
    ----------
    kind
        The layer's class, or its group's name.
    shapes
        Of its variables, by number.
    config
        The layer's configuration; empty where there is none.

    Returns
    -------
    list of str
        "kernel", "bias", "moving_mean", …; the number where nothing tells.
    """
    kind = _CLASS.sub(r"\1", snake_case(kind))
    names = list(_names_of(kind, shapes, config))[: len(shapes)]
    return names + [str(i) for i in range(len(names), len(shapes))]


def _names_of(kind: str, shapes: Sequence[Shape], config: Mapping[str, Any]) -> Sequence[str]:
    match = _CONVOLUTION.search(kind)
    affine = [n for n, key in (("gamma", "scale"), ("beta", "center")) if config.get(key, True)]
    if match:
        kernels = {
            "separable_": ("depthwise_kernel", "pointwise_kernel"),
            "depthwise_": ("depthwise_kernel",),
        }.get(match[2] or "", ("kernel",))
        return (*kernels, "bias")
    if kind in _LEAVES:
        return _LEAVES[kind]
    if kind in _NORMS:
        return affine
    looks = len(shapes) == 4 and len(shapes[0]) == 1 and len(set(shapes)) == 1
    if "batch_normalization" in kind or looks:
        # Only the configuration, or four vectors, tell which of scale and shift is there.
        known = affine if config else affine if len(shapes) == 4 else []
        return (*known, "moving_mean", "moving_variance")
    rank = len(shapes[0]) if shapes else 0
    told = len(shapes) < 2 or shapes[1] == shapes[0][-1:]
    if told and (rank in (2, 4, 5) or (rank == 3 and "conv" in kind)):
        return ("kernel", "bias")
    return ()


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
    kernels = [r for r in ("depthwise", "pointwise", "weight", "recurrent") if r in by_role]
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
