"""Variance entropy H of the filters of a layer (filter_metrics.md §3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from filterdb.types import AnyArray, FloatArray

#: Variance below this share of the second moment is what rounding leaves of none at all.
NO_VARIANCE = 1e-13


def centred_scatter(scatter: FloatArray, total: FloatArray, n: FloatArray | float) -> FloatArray:
    """Return Σ(f − m)(f − m)ᵀ from the uncentred sums.

    Parameters
    ----------
    scatter
        (..., k², k²) Σffᵀ.
    total
        (..., k²) Σf.
    n
        (...) filters.

    Returns
    -------
    ndarray
        (..., k², k²); zero where n ≤ 1, and where nothing but rounding is left.
    """
    count = np.asarray(n, dtype=np.float64)[..., None, None]
    outer = total[..., :, None] * total[..., None, :] / np.maximum(count, 1.0)
    centred = scatter - outer
    spread = np.trace(centred, axis1=-2, axis2=-1)[..., None, None]
    floor = NO_VARIANCE * np.trace(scatter, axis1=-2, axis2=-1)[..., None, None]
    return np.where((count > 1.0) & (spread > floor), centred, 0.0)


def variance_entropy(centred: FloatArray) -> FloatArray:
    """Compute H = −Σ p log10 p, p the eigenvalues of a scatter matrix over their sum.

    Parameters
    ----------
    centred
        (..., k², k²) centred scatter matrices.

    Returns
    -------
    ndarray
        H in [0, log10 k²]; NaN where there is no variance.

    Notes
    -----
    The eigenvalues are the squared singular values of the column-centred (n, k²) matrix of
    filters. 0·log 0 = 0.
    """
    eigenvalues = np.clip(np.linalg.eigvalsh(centred), 0.0, None)
    total = eigenvalues.sum(axis=-1, keepdims=True)
    shares = np.divide(eigenvalues, total, out=np.zeros_like(eigenvalues), where=total > 0)
    logs = np.log10(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy = np.clip(-(shares * logs).sum(axis=-1), 0.0, None)
    return np.where(total[..., 0] > 0, entropy, np.nan)


def variance_entropy_of_filters(filters: AnyArray) -> float:
    """Compute H from the filters themselves, by singular values: the plain form.

    Parameters
    ----------
    filters
        (n, k²).

    Returns
    -------
    float
        H; NaN for fewer than two filters and for filters that are all the same.
    """
    values = np.asarray(filters, dtype=np.float64)
    if len(values) < 2:
        return float("nan")
    singular = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    if float((singular**2).sum()) <= NO_VARIANCE * float((values**2).sum()):
        return float("nan")
    shares = singular**2 / (singular**2).sum()
    shares = shares[shares > 0]
    return float(max(0.0, -(shares * np.log10(shares)).sum()))


def normalised_entropy(entropy: FloatArray | float, n_coefficients: int) -> FloatArray:
    """Return H / log10 k², comparable across kernel sizes.

    Parameters
    ----------
    entropy
        H.
    n_coefficients
        k².

    Returns
    -------
    ndarray
        In [0, 1]; NaN for k² = 1, where H can only be 0.
    """
    values = np.asarray(entropy, dtype=np.float64)
    if n_coefficients < 2:
        return np.full_like(values, np.nan)
    return np.asarray(values / np.log10(n_coefficients))
