"""Keras' layer classes as operations: what each does, and how it lays out its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from filterdb.layers.names import registration_order
from filterdb.layers.raw import ConvAttributes, Node, NodeOp, layout_of_rank
from filterdb.sources.formats.keras_weights import Weight, by_role

#: Classes and the names third parties give theirs: QConv2D, Convolution2D, PartialConv2D ….
_CONV = re.compile(r"(Conv|Convolution|Deconvolution)([123])D", re.I)
_TRANSPOSED = re.compile(r"Transpose|^Deconv", re.I)
_DEPTHWISE = re.compile(r"Depthwise", re.I)
_SEPARABLE = re.compile(r"Separable", re.I)
_OPS: Mapping[str, NodeOp] = {
    "BatchNormalization": "batch_norm", "BatchNormalizationV1": "batch_norm",
    "BatchNormalizationV2": "batch_norm", "SyncBatchNormalization": "batch_norm",
    "LayerNormalization": "norm", "GroupNormalization": "norm", "InstanceNormalization": "norm",
    "UnitNormalization": "norm", "PReLU": "norm",
    "Embedding": "embedding", "Dense": "linear", "TimeDistributedDense": "linear",
    "Dropout": "identity", "SpatialDropout1D": "identity", "SpatialDropout2D": "identity",
    "SpatialDropout3D": "identity", "GaussianNoise": "identity", "GaussianDropout": "identity",
    "AlphaDropout": "identity", "ActivityRegularization": "identity", "InputLayer": "identity",
    "Identity": "identity",
}  # fmt: skip
#: Known to hold kernels of three and more axes that are no convolutions.
_ATTENTION = re.compile(r"Attention|Einsum|LocallyConnected", re.I)
#: ConvLSTM2D, ConvGRU2D …: convolutions of the input and of the state.
_RECURRENT = re.compile(r"Conv(LSTM|GRU|RNN)([123])D", re.I)
_KERNELS = ("weight", "depthwise", "pointwise", "recurrent")
_MAX_EXTENT = 1 << 31


def layer_nodes(
    value: str,
    kind: str,
    config: Mapping[str, Any],
    weights: Sequence[Weight],
    inputs: tuple[str, ...],
) -> Iterator[Node]:
    """Turn one call of a layer into nodes, the last of which writes `value`.

    Parameters
    ----------
    value
        Name of the node and of its output.
    kind
        Keras' class name.
    config
        The layer's configuration.
    weights
        The layer's own.
    inputs
        Names of what it reads.

    Yields
    ------
    Node
        One; two for a separable or recurrent convolution; one a kernel or BatchNorm for a layer of
        an unknown class that owns such.
    """
    roles = by_role(weights)
    match = _CONV.search(kind)
    if _SEPARABLE.search(kind) and match and {"depthwise", "pointwise"} <= roles.keys():
        yield from _separable(value, kind, config, roles, inputs)
    elif _RECURRENT.search(kind) and {"weight", "recurrent"} <= roles.keys():
        yield from _recurrent(value, kind, config, roles, inputs)
    elif match and _fits(roles, int(match[2])):
        yield from _convolution(value, kind, config, roles, inputs)
    elif match is None and kind in _OPS:
        yield _plain(value, kind, config, roles, inputs)
    elif kind == "Activation" and config.get("activation") == "linear":
        yield Node(value, "identity", inputs, (value,), source_op=kind)
    else:
        yield from _unknown(value, kind, weights, inputs)


def _fits(roles: Mapping[str, Weight], rank: int) -> bool:
    kernel = roles.get("depthwise") or roles.get("weight")
    # Keras 1 kept 1-D kernels with four axes, (k, 1, in, out).
    return kernel is None or len(kernel.shape) in (rank + 2, 4)


def _separable(
    value: str,
    kind: str,
    config: Mapping[str, Any],
    roles: Mapping[str, Weight],
    inputs: tuple[str, ...],
) -> Iterator[Node]:
    rank = len(roles["depthwise"].shape) - 2
    middle = f"{value}.depthwise"
    yield Node(
        middle, "conv", inputs, (middle,), {"weight": roles["depthwise"].tensor},
        _attributes(config, layout_of_rank("HWIM", rank), roles["depthwise"].shape),
        source_op=kind,
    )  # fmt: skip
    ones = (1,) * rank
    pointwise = ConvAttributes(layout_of_rank("HWIO", rank), 1, ones, ones, (0,) * rank)
    yield Node(
        f"{value}.pointwise", "conv", (middle,), (f"{value}.pointwise",),
        _only(roles, pointwise="weight", bias="bias"), pointwise, source_op=kind,
    )  # fmt: skip
    yield _activation(value, f"{value}.pointwise", config)


def _convolution(
    value: str,
    kind: str,
    config: Mapping[str, Any],
    roles: Mapping[str, Weight],
    inputs: tuple[str, ...],
) -> Iterator[Node]:
    match = _CONV.search(kind)
    kernel = roles.get("depthwise") or roles.get("weight")
    depthwise = _DEPTHWISE.search(kind) is not None or "depthwise" in roles
    op: NodeOp = "conv_transpose" if _TRANSPOSED.search(kind) else "conv"
    letters = "HWIM" if depthwise else "HWOI" if op == "conv_transpose" else "HWIO"
    if config.get("dim_ordering") == "th":  # Keras 1 on Theano
        letters = "OIHW"
    rank = len(kernel.shape) - 2 if kernel else int(match[2]) if match else 2
    weights = _only(roles, weight="weight", depthwise="weight", bias="bias")
    shape = kernel.shape if kernel else (0,) * (rank + 2)
    stated = match is None or int(match[2]) == rank
    conv = _attributes(config if stated else None, layout_of_rank(letters, rank), shape)
    linear = f"{value}.linear"
    yield Node(value, op, inputs, (linear,), weights, conv, source_op=kind)
    yield _activation(value, linear, config)


def _recurrent(
    value: str,
    kind: str,
    config: Mapping[str, Any],
    roles: Mapping[str, Weight],
    inputs: tuple[str, ...],
) -> Iterator[Node]:
    """Two convolutions that are summed: of the input, and of the state one step before.

    The kernels of a convolutional LSTM hold four gates side by side along the output axis. The
    second is never strided and keeps the map's size.
    """
    rank = len(roles["weight"].shape) - 2
    layout = layout_of_rank("HWIO", rank)
    middle = f"{value}.input"
    yield Node(
        middle, "conv", inputs, (middle,), _only(roles, weight="weight", bias="bias"),
        _attributes(config, layout, roles["weight"].shape), source_op=kind,
    )  # fmt: skip
    state = ConvAttributes(layout, 1, (1,) * rank, (1,) * rank, None)
    linear = f"{value}.linear"
    yield Node(
        f"{value}.state", "conv", (middle,), (linear,), _only(roles, recurrent="weight"),
        state, source_op=kind,
    )  # fmt: skip
    yield Node(value, "other", (linear,), (value,), source_op="Activation")


def _activation(value: str, linear: str, config: Mapping[str, Any]) -> Node:
    """Return the layer's own activation, which keeps a later BatchNorm from being folded."""
    function = config.get("activation")
    op: NodeOp = "identity" if function is None or function == "linear" else "other"
    return Node(f"{value}.activation", op, (linear,), (value,), source_op="Activation")


def _plain(
    value: str,
    kind: str,
    config: Mapping[str, Any],
    roles: Mapping[str, Weight],
    inputs: tuple[str, ...],
) -> Node:
    op = _OPS[kind]
    epsilon = None
    if op == "batch_norm":
        stated = config.get("epsilon", 1e-3)
        if isinstance(stated, int | float) and math.isfinite(stated) and stated >= 0:
            epsilon = float(stated)
    weights = {} if op == "identity" else {r: w.tensor for r, w in roles.items()}
    return Node(value, op, inputs, (value,), weights, epsilon=epsilon, source_op=kind)


def _unknown(
    value: str, kind: str, weights: Sequence[Weight], inputs: tuple[str, ...]
) -> Iterator[Node]:
    """Take the kernels of a layer of somebody's own for convolutions, one after the other."""
    scopes: dict[str, list[Weight]] = {}
    for weight in weights:
        scopes.setdefault("/".join(weight.scopes), []).append(weight)
    listed = list(scopes)
    for scope in (listed[i] for i in registration_order(listed)):
        if _ATTENTION.search(kind) or _ATTENTION.search(scope):
            continue
        for node in _parts(value, kind, scope, scopes[scope]):
            yield replace(node, inputs=inputs)
            inputs = node.outputs
    yield Node(value, "other", inputs, (value,), source_op=kind)


def _parts(value: str, kind: str, scope: str, weights: Sequence[Weight]) -> Iterator[Node]:
    """Tell by names and shapes what one scope of a layer of somebody's own is."""
    roles = by_role(weights)
    if {"mean", "var"} <= roles.keys():
        name = f"{value}/{scope}"
        norm = {r: w.tensor for r, w in roles.items() if r in ("gamma", "beta", "mean", "var")}
        yield Node(name, "batch_norm", (), (name,), norm, source_op=kind)
        return
    kernels = [w for w in weights if w.role in _KERNELS and _is_kernel(w, scope or kind)]
    for weight in kernels:
        leaf = weight.name.split(":")[0]
        name = f"{value}/{scope if scope and len(kernels) == 1 else leaf}"
        letters = "HWIM" if weight.role == "depthwise" else "HWIO"
        transposed = "transpose" in scope.lower() and weight.role == "weight"
        layout = layout_of_rank("HWOI" if transposed else letters, len(weight.shape) - 2)
        conv = _attributes(None, layout, weight.shape)
        parts = {"weight": weight.tensor}
        if weight is kernels[-1] and "bias" in roles:
            parts["bias"] = roles["bias"].tensor
        op: NodeOp = "conv_transpose" if transposed else "conv"
        yield Node(name, op, (), (name,), parts, conv, source_op=kind)


def _is_kernel(weight: Weight, where: str) -> bool:
    # Kernels of three axes are attention projections as often as 1-D convolutions.
    rank = len(weight.shape)
    return rank in (4, 5) or (rank == 3 and "conv" in where.rsplit("/", 1)[-1].lower())


def _only(roles: Mapping[str, Weight], **names: str) -> dict[str, str]:
    return {new: roles[old].tensor for old, new in names.items() if old in roles}


def _attributes(
    config: Mapping[str, Any] | None, layout: str, shape: Sequence[int]
) -> ConvAttributes:
    """Read a convolution's attributes; without a configuration only its shape speaks."""
    rank = len(layout) - 2
    depthwise = shape[layout.index("I")] if "M" in layout and shape else None
    if config is None:
        return ConvAttributes(layout=layout, groups=depthwise or 1)
    valid = config.get("padding", config.get("border_mode", "valid")) == "valid"
    groups = config.get("groups", 1)
    known = isinstance(groups, int) and not isinstance(groups, bool) and 0 < groups < _MAX_EXTENT
    return ConvAttributes(
        layout=layout,
        groups=depthwise or (groups if known else None),
        stride=_extents(_first(config, "strides", "subsample", "subsample_length"), rank),
        dilation=_extents(_first(config, "dilation_rate", "atrous_rate"), rank),
        padding=(0,) * rank if valid else None,
    )


def _first(config: Mapping[str, Any], *keys: str) -> object:
    return next((config[k] for k in keys if config.get(k) is not None), 1)


def _extents(value: object, rank: int) -> tuple[int, ...] | None:
    many = list(value) if isinstance(value, list | tuple) else [value]
    whole = [v for v in many if isinstance(v, int) and not isinstance(v, bool)]
    if len(whole) != len(many) or any(not 0 < v < _MAX_EXTENT for v in whole):
        return None
    if len(whole) == 1:
        whole *= rank
    return tuple(whole) if len(whole) == rank else None
