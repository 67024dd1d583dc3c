"""Divergences between distributions of filter coefficients (filter_metrics.md §5).

A distribution here is a histogram per component: counts or mass (..., components, bins) over one
common range. Leading axes are independent cases, so a thousand permutations are one call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from filterdb.types import FloatArray

#: What an empty bin holds, in density units: the published code adds float32's ε.
EMPTY_DENSITY = float(np.finfo(np.float32).eps)
BINS = 70


def mass(counts: FloatArray) -> FloatArray:
    """Return counts as shares that sum to 1 along the last axis.

    Parameters
    ----------
    counts
        (..., bins), not negative.

    Returns
    -------
    ndarray
        The same shape; zeros where there is no count at all.
    """
    values = np.asarray(counts, dtype=np.float64)
    total = values.sum(axis=-1, keepdims=True)
    shares = np.zeros_like(values)
    np.divide(values, total, out=shares, where=total > 0)
    return shares


def floored(shares: FloatArray, bin_width: float) -> FloatArray:
    """Return shares with empty bins lifted to float32's ε in density units, renormalised.

    Parameters
    ----------
    shares
        (..., bins), summing to 1.
    bin_width
        Width of a bin, in units of the coefficient.

    Returns
    -------
    ndarray
        The same shape, positive, summing to 1.
    """
    lifted = np.where(shares > 0.0, shares, EMPTY_DENSITY * bin_width)
    lifted /= lifted.sum(axis=-1, keepdims=True)
    return lifted


def drift(
    first: FloatArray, second: FloatArray, weights: FloatArray, bin_width: float
) -> FloatArray:
    """Compute D = Σᵢ wᵢ·[KL(Pᵢ‖Qᵢ) + KL(Qᵢ‖Pᵢ)], natural logarithm.

    Parameters
    ----------
    first, second
        (..., components, bins) shares.
    weights
        (components,): the explained variance ratio.
    bin_width
        Width of a bin.

    Returns
    -------
    ndarray
        (...) D ≥ 0.

    Notes
    -----
    Gavrikov and Keuper, CVPR 2022, equation 4: both directions are summed, not halved. The two
    sum to Σ(P − Q)(log P − log Q), which cannot be negative.
    """
    p, q = floored(first, bin_width), floored(second, bin_width)
    logs = p / q
    np.log(logs, out=logs)
    p -= q
    return np.asarray(np.einsum("...b,...b->...", p, logs) @ weights)


def drift_matrix(shares: FloatArray, weights: FloatArray, bin_width: float) -> FloatArray:
    """Compute D between all pairs at once, by two matrix products.

    Parameters
    ----------
    shares
        (groups, components, bins).
    weights
        (components,).
    bin_width
        Width of a bin.

    Returns
    -------
    ndarray
        (groups, groups), symmetric, zero diagonal: dᵢ + dⱼ − A·Lᵀ − (A·Lᵀ)ᵀ clipped at 0, with
        A = w·P and L = log P.
    """
    p = floored(shares, bin_width)
    logs = np.log(p).reshape(len(p), -1)
    weighted = (p * weights[:, None]).reshape(len(p), -1)
    own = np.einsum("ij,ij->i", weighted, logs)
    cross = weighted @ logs.T
    result = np.clip(own[:, None] + own[None, :] - cross - cross.T, 0.0, None)
    np.fill_diagonal(result, 0.0)
    return np.asarray(result)


def jensen_shannon(first: FloatArray, second: FloatArray, weights: FloatArray) -> FloatArray:
    """Compute Σᵢ wᵢ·JS(Pᵢ, Qᵢ), base 2: the divergence, not its root; no floor.

    Parameters
    ----------
    first, second
        (..., components, bins) shares.
    weights
        (components,) summing to 1.

    Returns
    -------
    ndarray
        (...) in [0, 1].
    """
    middle = first + second
    middle *= 0.5
    return np.asarray(0.5 * (_relative(first, middle) + _relative(second, middle)) @ weights)


def _relative(p: FloatArray, q: FloatArray) -> FloatArray:
    """Σ p log2(p/q) along the last axis, for p = 0 wherever q = 0."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0.0)
    np.log2(ratio, out=ratio)
    return np.asarray(np.einsum("...b,...b->...", p, ratio))


def wasserstein(first: FloatArray, second: FloatArray, bin_width: float) -> FloatArray:
    """Compute the 1-Wasserstein distance of each component from its histogram.

    Parameters
    ----------
    first, second
        (..., components, bins) shares.
    bin_width
        Width of a bin; the mass of a bin is taken to sit at its centre.

    Returns
    -------
    ndarray
        (..., components), in units of the coefficient.
    """
    gap = np.cumsum(first - second, axis=-1)[..., :-1]
    return np.asarray(np.abs(gap).sum(axis=-1) * bin_width)


def frechet(
    first_mean: FloatArray,
    first_covariance: FloatArray,
    second_mean: FloatArray,
    second_covariance: FloatArray,
) -> FloatArray:
    """Compute the squared Fréchet distance of two Gaussian distributions.

    Parameters
    ----------
    first_mean, second_mean
        (..., k²).
    first_covariance, second_covariance
        (..., k², k²).

    Returns
    -------
    ndarray
        (...) |m₁ − m₂|² + tr(C₁ + C₂ − 2(C₁^½ C₂ C₁^½)^½), clipped at 0.

    Notes
    -----
    Dowson and Landau 1982.
    """
    half = _matrix_root(first_covariance)
    inner = np.linalg.eigvalsh(np.swapaxes(half, -1, -2) @ second_covariance @ half)
    overlap = np.sqrt(np.clip(inner, 0.0, None)).sum(axis=-1)
    traces = np.trace(first_covariance, axis1=-2, axis2=-1) + np.trace(
        second_covariance, axis1=-2, axis2=-1
    )
    apart = ((first_mean - second_mean) ** 2).sum(axis=-1)
    return np.asarray(np.clip(apart + traces - 2.0 * overlap, 0.0, None))


def _matrix_root(covariance: FloatArray) -> FloatArray:
    """Return some R with R·Rᵀ = C; the eigenvalues of Rᵀ·C₂·R are the same for all of them."""
    try:
        return np.asarray(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:  # a flat group: some direction has no variance at all
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.clip(values, 0.0, None))[..., None, :])
