"""How one layer's weights differ between two checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from filterdb.types import AnyArray, FloatArray

Relation = Literal[
    "equal",
    "transposed",
    "rotated_180",
    "input_channels_reversed",
    "folded",
    "changed",
    "not_comparable",
]
#: Relative difference below which a rearranged or folded copy counts as the same weights.
SAME = 1e-6
_ITERATIONS = 200
_TOLERANCE = 1e-9
#: Gram matrices up to this side are solved whole.
_SMALL = 256


@dataclass(frozen=True)
class Delta:
    """The difference W₂ − W₁ of one layer.

    Parameters
    ----------
    relation
        ``equal`` in every bit's value; an exact rearrangement (spatial axes exchanged, kernels
        turned by 180°, input channels reversed as from RGB to BGR), also within float rounding;
        ``folded`` where BatchNorm that only one side has apart, folded into its weights, makes
        them the other's; ``changed``; ``not_comparable`` where a weight is not finite.
    relative
        ‖W₂ − W₁‖ / ‖W₁‖.
    cosine
        Of the two weight vectors.
    largest
        max|W₂ − W₁|.
    share_changed
        Share of weights that are not equal, 0 to 1.
    stable_rank
        ‖ΔW‖²_F / σ₁² of ΔW as an (out, in·k²) matrix: small where the change is of low rank, as
        adapters make it.
    null_reason
        Why a number is None.
    folded_difference
        max|W₁·γ/√(v + ε) − W₂| / max|W₂|, the BatchNorm being either side's; None unless `folded`.
    """

    relation: Relation
    relative: float | None
    cosine: float | None
    largest: float | None
    share_changed: float
    stable_rank: float | None
    null_reason: str | None
    folded_difference: float | None = None


def delta(first: AnyArray, second: AnyArray) -> Delta:
    """Compare two canonical weights of one shape.

    Parameters
    ----------
    first, second
        (out, in/g, *kernel), any floating dtypes.

    Returns
    -------
    Delta
        Computed in float64.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"weights of shapes {first.shape} and {second.shape}")
    a, b = first.astype(np.float64, copy=False), second.astype(np.float64, copy=False)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    share = float(np.count_nonzero(~same)) / same.size
    if share == 0.0 and np.isfinite(a).all():
        cosine = 1.0 if a.any() else None
        reason = None if a.any() else "relative, cosine: all weights are zero"
        relative = 0.0 if a.any() else None
        return Delta("equal", relative, cosine, 0.0, 0.0, None, reason or "stable_rank: no change")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        relation: Relation = "equal" if share == 0.0 else "not_comparable"
        return Delta(relation, None, None, None, share, None, "a weight is not finite")
    difference = b - a
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    change = float(np.linalg.norm(difference))
    reasons = []
    if norms[0] == 0.0:
        reasons.append("relative: the first's weights are all zero")
    if 0.0 in norms:
        reasons.append("cosine: weights are all zero")
    return Delta(
        relation=_relation(a, b, change, norms[0]),
        relative=change / norms[0] if norms[0] else None,
        cosine=float(np.vdot(a, b)) / (norms[0] * norms[1]) if all(norms) else None,
        largest=float(np.abs(difference).max()),
        share_changed=share,
        stable_rank=stable_rank(difference.reshape(len(difference), -1)),
        null_reason="; ".join(reasons) or None,
    )


def folded(found: Delta, apart: AnyArray, scale: FloatArray, other: AnyArray) -> Delta:
    """Say whether weights differ by a BatchNorm folded into one side only.

    Parameters
    ----------
    found
        What :func:`delta` found.
    apart
        (out, in/g, *kernel) weights whose BatchNorm stands apart.
    scale
        (out,) γ/√(v + ε).
    other
        The other side's weights.

    Returns
    -------
    Delta
        The same, or `folded` with its difference. All other numbers stay those of the weights as
        they are stored.
    """
    if found.relation != "changed" or not np.isfinite(scale).all():
        return found
    b = other.astype(np.float64, copy=False)
    with np.errstate(over="ignore"):
        gap = apart * scale.reshape(-1, *(1,) * (b.ndim - 1)) - b
    peak = float(np.abs(b).max())
    if peak == 0.0 or not float(np.linalg.norm(gap)) <= SAME * float(np.linalg.norm(b)):
        return found
    return replace(found, relation="folded", folded_difference=float(np.abs(gap).max()) / peak)


def stable_rank(matrix: FloatArray) -> float:
    """Compute ‖A‖²_F / σ₁² without a singular value decomposition.

    Parameters
    ----------
    matrix
        (m, n), finite, not all zero.

    Returns
    -------
    float
        1 to min(m, n).

    Notes
    -----
    σ₁ by power iteration on the smaller Gram side, from the row of largest norm: never above σ₁,
    so the rank is never too small by more than rounding.
    """
    peak = float(np.abs(matrix).max())
    scaled = matrix / peak
    if scaled.shape[0] > scaled.shape[1]:
        scaled = scaled.T
    gram = scaled @ scaled.T if len(scaled) <= _SMALL else None
    largest = _power_iteration(scaled) if gram is None else float(np.linalg.eigvalsh(gram)[-1])
    return max(1.0, float(np.vdot(scaled, scaled)) / largest)


def _power_iteration(matrix: FloatArray) -> float:
    """Return σ₁² of a wide matrix."""
    rows = np.einsum("ij,ij->i", matrix, matrix)
    vector = matrix @ matrix[int(np.argmax(rows))]
    value = 0.0
    for _ in range(_ITERATIONS):
        vector = vector / np.linalg.norm(vector)
        image = matrix.T @ vector
        before, value = value, float(np.vdot(image, image))
        if value - before <= _TOLERANCE * value:
            break
        vector = matrix @ image
    return value


def _relation(a: FloatArray, b: FloatArray, change: float, norm: float) -> Relation:
    """Name the rearrangement that makes one of the other, if there is one."""
    if norm == 0.0 or change <= SAME * norm:
        return "changed"
    candidates: list[tuple[Relation, FloatArray]] = []
    if a.ndim > 3 and a.shape[-1] == a.shape[-2] > 1:
        candidates.append(("transposed", np.swapaxes(b, -1, -2)))
    if max(a.shape[2:]) > 1:
        candidates.append(("rotated_180", np.flip(b, tuple(range(2, b.ndim)))))
    if a.shape[1] > 1:
        candidates.append(("input_channels_reversed", b[:, ::-1]))
    for name, rearranged in candidates:
        if float(np.linalg.norm(rearranged - a)) <= SAME * norm:
            return name
    return "changed"
