"""What a registered module is: its class name and instance dictionary, turned into a node."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from filterdb.layers.raw import SPATIAL_LETTERS, ConvAttributes, Node, NodeOp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from filterdb.types import Shape

_CONV_CLASS = re.compile(r"(Lazy)?Conv(Transpose)?[123]d")
_IDENTITY_CLASS = re.compile(r"Identity|\w*Dropout\w*|DropPath|QuantStub|DeQuantStub")
_BATCH_NORM_ROLES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "mean",
    "running_var": "var",
}


def module_node(
    name: str,
    class_name: str,
    attributes: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, Shape]],
) -> Node:
    """Describe one registered module.

    Parameters
    ----------
    name
        Its path in the model, "" for the model itself.
    class_name
        Name of its class, without its module.
    attributes
        Its instance dictionary (stride, padding, …), as far as the file has it.
    tensors
        Its own parameters and buffers: leaf name → (tensor name, shape).

    Returns
    -------
    Node
        Without inputs and outputs. Subclasses of convolutions count as such by their attributes,
        batch norms by their statistics.
    """
    op = _operation(class_name, attributes, tensors)
    roles = _BATCH_NORM_ROLES if op == "batch_norm" else {"weight": "weight", "bias": "bias"}
    weights = {role: tensors[leaf][0] for leaf, role in roles.items() if leaf in tensors}
    conv = None
    if op in ("conv", "conv_transpose"):
        conv = _conv_attributes(attributes, tensors["weight"][1], transposed=op != "conv")
    epsilon = attributes.get("eps") if op == "batch_norm" else None
    return Node(
        name=name or class_name,
        op=op,
        weights=weights,
        conv=conv,
        epsilon=epsilon if type(epsilon) is float else None,
        source_op=class_name,
    )


def _operation(
    class_name: str, attributes: Mapping[str, Any], tensors: Mapping[str, tuple[str, Shape]]
) -> NodeOp:
    low = class_name.lower()
    rank = len(tensors["weight"][1]) if "weight" in tensors else 0
    convolves = _CONV_CLASS.fullmatch(class_name) or {"kernel_size", "in_channels"} <= set(
        attributes
    )
    if convolves and rank - 2 in SPATIAL_LETTERS:
        flag = attributes.get("transposed")
        transposed = flag if type(flag) is bool else "transpose" in low or "deconv" in low
        return "conv_transpose" if transposed else "conv"
    if {"running_mean", "running_var"} <= set(tensors) and "instance" not in low:
        return "batch_norm"
    if "norm" in low or low.endswith("prelu"):
        return "norm"
    if rank == 2 and ("linear" in low or "in_features" in attributes):
        return "linear"
    if rank == 2 and ("embedding" in low or "num_embeddings" in attributes):
        return "embedding"
    if not tensors and _IDENTITY_CLASS.fullmatch(class_name):
        return "identity"
    return "other"


def _conv_attributes(
    attributes: Mapping[str, Any], shape: Shape, *, transposed: bool
) -> ConvAttributes:
    space = SPATIAL_LETTERS[len(shape) - 2]
    groups = attributes.get("groups")
    padding = attributes.get("padding")
    return ConvAttributes(
        layout=("IO" if transposed else "OI") + space,
        groups=groups if type(groups) is int and groups > 0 else None,
        stride=_per_axis(attributes.get("stride"), len(space), least=1),
        dilation=_per_axis(attributes.get("dilation"), len(space), least=1),
        padding=_per_axis(0 if padding == "valid" else padding, len(space), least=0),
    )


def _per_axis(value: Any, rank: int, *, least: int) -> tuple[int, ...] | None:
    if type(value) is int:
        value = (value,) * rank
    if not isinstance(value, list | tuple) or len(value) != rank:
        return None
    if not all(type(part) is int and least <= part < 1 << 31 for part in value):
        return None
    return tuple(value)
