"""Weights stored in parts: weight normalisation, spectral normalisation and pruning masks.

torch writes ``weight_g`` and ``weight_v`` (or ``parametrizations.weight.original0/1``) for
weight normalisation, w = g·v/‖v‖ (Salimans & Kingma 2016), and ``weight_orig``, ``weight_u``,
``weight_v`` (``parametrizations.weight.original``, ``.0._u``, ``.0._v``) for spectral
normalisation, w = W/σ with σ = uᵀ W v (Miyato et al. 2018), and ``weight_orig`` with
``weight_mask`` for pruning, w = W·mask. The network applies w, so w is what
is read; the parts become rows of ``skipped``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import LayerError
from filterdb.layers.names import REPARAMETRISED_LEAVES, split_name
from filterdb.layers.raw import Tensor

if TYPE_CHECKING:
    from filterdb.types import AnyArray, Shape


@dataclass(frozen=True)
class Assembled:
    """A file's tensors after putting weights together.

    Parameters
    ----------
    tensors
        The file's tensors; the part that carries the weight's name is replaced by the weight.
    parts
        Name of each part that is no longer in `tensors` → what it was.
    """

    tensors: tuple[Tensor, ...]
    parts: dict[str, tuple[Tensor, str]]


def assemble(tensors: Sequence[Tensor]) -> Assembled:
    """Replace the parts of reparametrised weights by the weights they make.

    Parameters
    ----------
    tensors
        In file order.

    Returns
    -------
    Assembled
        Unchanged where nothing is reparametrised.
    """
    owners: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        prefix, leaf = split_name(tensor.name)
        if leaf in REPARAMETRISED_LEAVES:
            owners.setdefault(prefix, {})[leaf] = tensor
    load: Callable[[], AnyArray]
    others: tuple[str, ...]
    made: dict[str, Tensor] = {}
    parts: dict[str, tuple[Tensor, str]] = {}
    for leaves in owners.values():
        if "weight_orig" in leaves and "weight_u" in leaves:
            base, others, what = "weight_orig", ("weight_u", "weight_v"), "spectral normalisation"
            load = partial(
                _spectral_norm, leaves["weight_orig"], leaves["weight_u"], leaves.get("weight_v")
            )
        elif "weight_orig" in leaves and "weight_mask" in leaves:
            base, others, what = "weight_orig", ("weight_mask",), "pruning"
            load = partial(_pruned, leaves["weight_orig"], leaves["weight_mask"])
        elif "weight_g" in leaves and "weight_v" in leaves:
            base, others, what = "weight_v", ("weight_g",), "weight normalisation"
            load = partial(_weight_norm, leaves["weight_g"], leaves["weight_v"])
        else:
            continue
        weight = leaves[base]
        made[weight.name] = Tensor(
            name=weight.name,
            shape=weight.shape,
            dtype=weight.dtype,
            load=load,
            quantised=weight.quantised,
            skip=weight.skip,
        )
        gone = [leaves[o] for o in others if o in leaves]
        parts.update({t.name: (t, f"part of {what}") for t in gone})
    kept = tuple(made.get(t.name, t) for t in tensors if t.name not in parts)
    return Assembled(kept, parts)


def _pruned(original: Tensor, mask: Tensor) -> AnyArray:
    stored, kept = original.load(), mask.load()
    if kept.shape != stored.shape:
        raise LayerError(
            f"{original.name}: its pruning mask {mask.name} has shape {kept.shape}, "
            f"not {stored.shape}"
        )
    return np.asarray(stored * kept, dtype=stored.dtype)


def _weight_norm(magnitude: Tensor, direction: Tensor) -> AnyArray:
    stored = direction.load()
    g, v = magnitude.load().astype(np.float64), stored.astype(np.float64)
    if g.ndim not in (0, v.ndim) or any(
        a not in (1, b) for a, b in zip(g.shape, v.shape, strict=False)
    ):
        raise LayerError(
            f"{direction.name}: weight normalisation's magnitude {magnitude.name} has shape "
            f"{g.shape}, which does not fit {v.shape}"
        )
    axes = tuple(i for i in range(v.ndim) if g.ndim == 0 or g.shape[i] == 1)
    norm = np.sqrt(np.sum(v * v, axis=axes, keepdims=True))
    # 0/0: torch gives NaN here and so does the network.
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(g * (v / norm), dtype=stored.dtype)


def _spectral_norm(original: Tensor, left: Tensor, right: Tensor | None) -> AnyArray:
    stored = original.load()
    u = left.load().astype(np.float64)
    weight = stored.astype(np.float64)
    # torch normalises over the output axis: the first, or the second of transposed convolutions.
    axis = _axis_of(u.shape, weight.shape, None if right is None else right.shape)
    if axis is None:
        raise LayerError(
            f"{original.name}: spectral normalisation's {left.name} has shape {u.shape}, "
            f"which fits no axis of {weight.shape}"
        )
    matrix = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    v = None if right is None else right.load().astype(np.float64)
    sigma = u @ (matrix @ v) if v is not None else np.linalg.norm(matrix.T @ u)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weight / sigma, dtype=stored.dtype)


def _axis_of(u: Shape, weight: Shape, v: Shape | None) -> int | None:
    size = int(np.prod(weight))
    for axis in range(min(2, len(weight))):
        rest = size // max(weight[axis], 1)
        if u == (weight[axis],) and (v is None or v == (rest,)):
            return axis
    return None
