"""A state dict's tensors, gathered into the modules that own them, and what each module is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from filterdb.layers.names import (
    BETA_LEAVES,
    BIAS_LEAVES,
    BUFFER_LEAVES,
    GAMMA_LEAVES,
    MEAN_LEAVES,
    VARIANCE_LEAVES,
    WEIGHT_LEAVES,
    split_name,
    tokens,
)

if TYPE_CHECKING:
    from filterdb.layers.raw import Tensor

Kind = Literal["conv", "linear", "batch_norm", "norm", "embedding", "other"]


@dataclass(frozen=True)
class Module:
    """One module of a network, as far as its tensors show it.

    Parameters
    ----------
    name
        Without the parameter's name.
    kind
        conv (of any sort), linear, batch_norm, norm, embedding or other.
    tensors
        Parameter role → tensor: weight, bias; BatchNorm gamma, beta, mean, var.
    channels
        Length of a norm's vectors; output channels of a linear layer; None elsewhere.
    inputs
        Input channels of a linear layer; None elsewhere.
    position
        Rank in the order of construction.
    epsilon
        BatchNorm's ε, if stated.
    node
        Position of the node it was read from; None where tensor names alone tell of it.
    """

    name: str
    kind: Kind
    tensors: Mapping[str, Tensor]
    channels: int | None = None
    inputs: int | None = None
    position: int = 0
    epsilon: float | None = None
    node: int | None = None


_EMBEDDING = re.compile(
    r"(^|[._/])(pos(itional)?_?(emb|enc)\w*|position\w*|\w*_pos|(abs|rel|relative)_?pos\w*|rel_[hw]\b|"
    r"\w*embeddings?|\w*_embed|\w*tokens?_?\d*|token_emb\w*|wte|wpe|queries|query_feat\w*|prototypes?|"
    r"codebook\w*|relative_position_bias\w*|attention_bias\w*|latents?)(?=$|[./:])",
    re.I,
)
_NOT_A_KERNEL = re.compile(
    r"(^|[._/])(blur\w*|gauss\w*|filt|sobel\w*|dct\w*|mel\w*|stft\w*|istft\w*|window\w*|experts?|"
    r"layer_?scale\w*|gammas?|ls\d?)(?=$|[._/])",
    re.I,
)
_ATTENTION = re.compile(r"(^|[._/])(query|key|value|qkv|attention|attn\w*)(?=$|[._/])", re.I)
#: Experts (out, in) side by side; grouped linear layers (DeepFilterNet).
_MATRICES = re.compile(
    r"(^|[._/])(experts?|linear_(in|out)|grouped_?linear|\w*_fc_emb)(?=$|[._/])", re.I
)
_RESAMPLE = re.compile(r"(^|[._/])(up_?sample|down_?sample|resample)\w*$", re.I)
_BARE_WEIGHT = re.compile(r"^(w|weights?|kernels?|filters?|conv\w*|arr)_?\d*$", re.I)
_CONV_NAME = re.compile(r"conv|kernel|(^|[._/])(patch_embed\w*|stem\w*)", re.I)


def kernel_objection(name: str, shape: Sequence[int]) -> str | None:
    """Say why a tensor of three or more axes is no convolution kernel.

    Parameters
    ----------
    name
        The tensor's name.
    shape
        Its shape.

    Returns
    -------
    str or None
        The objection in a few words; None where it may be one.
    """
    prefix, leaf = split_name(name)
    low = leaf.lower()
    rank = len(shape) - 2
    if low in BUFFER_LEAVES:
        return f"{leaf} is no weight"
    if low in BIAS_LEAVES:
        return "a bias"
    if any(n == 0 for n in shape):
        return "empty"
    named = low in WEIGHT_LEAVES or _BARE_WEIGHT.match(leaf.lstrip("_")) is not None
    if not named:
        return f"nothing in {leaf!r} says that it is a kernel"
    # `patch_embed.proj.weight` is a convolution, `pos_embed` a table: ask about the last part only
    # where the parameter itself carries the word.
    where = prefix if low in WEIGHT_LEAVES else name
    tail = where.rsplit(".", 1)[-1].rsplit("/", 1)[-1]
    # A lookup table's `weight` has two axes, never four.
    table = rank < 2 or low != "weight"
    if table and _EMBEDDING.search(tail) and not _CONV_NAME.search(where):
        return "an embedding by its name"
    if _NOT_A_KERNEL.search(tail) and not _CONV_NAME.search(tail):
        return "a fixed filter or scale by its name"
    # SuperGlue's projections are convolutions of length 1; Keras calls its einsum weights "kernel".
    convolved = low.startswith("weight") and shape[-1] == 1
    if rank == 1 and _ATTENTION.search(where) and "conv" not in where.lower() and not convolved:
        return "an attention projection by its name"
    if rank == 1 and _MATRICES.search(where):
        return "a stack of matrices by its name"
    if low == "kernel" and tuple(shape[:2]) == (1, 1) and _RESAMPLE.search(where):
        return "a fixed filter by its name"
    if sum(n > 1 for n in shape) <= 1 and re.search(r"norm|bn|scale|gamma|gain|prelu", tail, re.I):
        return "a per-channel parameter"
    return None


def modules_of(tensors: Sequence[Tensor]) -> list[Module]:
    """Gather tensors into modules.

    Parameters
    ----------
    tensors
        In file order.

    Returns
    -------
    list of Module
        In the order of their first tensors.
    """
    owned: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        prefix, leaf = split_name(tensor.name)
        # A bare parameter in the root is its own module: `conv1`, `W1`, `class_token`.
        key = prefix if prefix else f"\0{leaf}"
        names = owned.setdefault(key, {})
        names[leaf.lower() if leaf.lower() not in names else leaf] = tensor
    found: list[Module] = []
    for key, leaves in owned.items():
        name = "" if key.startswith("\0") else key
        found += _modules_in(name, leaves)
    return [replace(m, position=i) for i, m in enumerate(found)]


def _pick(leaves: Mapping[str, Tensor], names: frozenset[str]) -> Tensor | None:
    return next((leaves[n] for n in leaves if n in names), None)


def _modules_in(name: str, leaves: Mapping[str, Tensor]) -> list[Module]:
    mean, var = _pick(leaves, MEAN_LEAVES), _pick(leaves, VARIANCE_LEAVES)
    if mean and var and len(mean.shape) == 1 and mean.shape == var.shape:
        return [_batch_norm(name, leaves, mean, var)]
    weights = [
        (leaf, t)
        for leaf, t in leaves.items()
        if leaf in WEIGHT_LEAVES or (len(t.shape) > 2 and kernel_objection(t.name, t.shape) is None)
    ]
    bias = _pick(leaves, BIAS_LEAVES)
    if not weights:
        other = {**leaves}
        return [Module(name, "other", other)] if other else []
    modules = []
    for position, (leaf, weight) in enumerate(weights):
        parts = {"weight": weight}
        # In a separable convolution the one bias belongs to the last (pointwise) kernel.
        if bias is not None and position == len(weights) - 1:
            parts["bias"] = bias
        modules.append(_single(_name_of(name, leaf, weight, len(weights)), weight, parts))
    return modules


def _name_of(name: str, leaf: str, weight: Tensor, n_weights: int) -> str:
    if not name:
        return weight.name
    return name if n_weights == 1 else f"{name}.{leaf}"


def _single(name: str, weight: Tensor, parts: Mapping[str, Tensor]) -> Module:
    shape = weight.shape
    if len(shape) > 2:
        kind: Kind = "conv" if kernel_objection(weight.name, shape) is None else "other"
        return Module(name, kind, parts)
    if len(shape) == 2:
        if is_embedding_name(weight.name):
            return Module(name, "embedding", parts)
        swapped = split_name(weight.name)[1].lower() in {"kernel", "weights"}
        outputs, inputs = (shape[1], shape[0]) if swapped else (shape[0], shape[1])
        return Module(name, "linear", parts, channels=outputs, inputs=inputs)
    return Module(name, "norm", parts, channels=shape[0] if shape else None)


def is_embedding_name(name: str) -> bool:
    """Whether a tensor's name says that it is a lookup table or a position code.

    Parameters
    ----------
    name
        The tensor's name.

    Returns
    -------
    bool
        True for ``pos_embed``, ``class_token``, ``wte.weight`` ….
    """
    if _EMBEDDING.search(name) is None:
        return False
    # `patch_embed.proj.weight` of two axes is a linear layer.
    prefix, _ = split_name(name)
    return not {"proj", "linear", "fc", "dense", "mlp"} & set(tokens(prefix)[-2:])


def _batch_norm(name: str, leaves: Mapping[str, Tensor], mean: Tensor, var: Tensor) -> Module:
    parts = {"mean": mean, "var": var}
    for role, names in (("gamma", GAMMA_LEAVES), ("beta", BETA_LEAVES)):
        tensor = _pick({k: v for k, v in leaves.items() if v.shape == mean.shape}, names)
        if tensor is not None and tensor not in (mean, var):
            parts[role] = tensor
    return Module(name, "batch_norm", parts, channels=int(np.prod(mean.shape)))
