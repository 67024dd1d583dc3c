"""Is a layer told apart from noise? The published threshold, and ours (filter_metrics.md §3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from filterdb.metrics.null import degrees_of_freedom, expected_entropy

if TYPE_CHECKING:
    from filterdb.types import FloatArray

#: L, x0, k, b of the published logistic.
THRESHOLD_PARAMETERS = (1.2618047, 2.30436435, 0.88767525, -0.31050834)
#: Published degeneration rule: margin below T_H, entropy and sparsity.
DEGENERATE_MARGIN, DEGENERATE_ENTROPY, DEGENERATE_SPARSITY = 0.02, 0.5, 0.14
#: Entropy deficit up to which a layer may count as random.
RANDOM_EFFECT = 0.02
#: Family-wise level of the test of randomness over the layers of a model.
RANDOM_LEVEL = 0.01


def entropy_threshold(n: FloatArray | float) -> FloatArray:
    """Return the published T_H(n) = L/(1 + exp(−k(log2 n − x0))) + b, for 3x3 kernels.

    Parameters
    ----------
    n
        Filters.

    Returns
    -------
    ndarray
        NaN for n ≤ 2, where T_H is not positive.

    Notes
    -----
    Gavrikov and Keuper, CVPR 2022, section 5. It is too strict at n = 256 and far too lenient at
    n = 65,536; :mod:`filterdb.metrics.null` is what filterdb itself decides by.
    """
    scale, middle, slope, offset = THRESHOLD_PARAMETERS
    count = np.asarray(n, dtype=np.float64)
    safe = np.maximum(count, 3.0)
    threshold = scale / (1.0 + np.exp(-slope * (np.log2(safe) - middle))) + offset
    return np.where(count > 2, threshold, np.nan)


def degenerate_published(entropy: FloatArray, n: FloatArray, sparsity: FloatArray) -> FloatArray:
    """Apply the published rule (H ≥ T_H − .02) or (H < .5 and S ≥ .14), for 3x3 kernels.

    Parameters
    ----------
    entropy, n, sparsity
        H, filters and S of each layer.

    Returns
    -------
    ndarray
        1 or 0; NaN where H or T_H is not defined.
    """
    threshold = entropy_threshold(n) - DEGENERATE_MARGIN
    random = entropy >= threshold
    poor = (entropy < DEGENERATE_ENTROPY) & (sparsity >= DEGENERATE_SPARSITY)
    known = np.isfinite(entropy) & np.isfinite(threshold)
    return np.where(known, (random | poor).astype(np.float64), np.nan)


def entropy_deficit(entropy: FloatArray, n: FloatArray, n_coefficients: int) -> FloatArray:
    """Return the effect size 1 − H / E[H of independent Gaussian filters].

    Parameters
    ----------
    entropy
        H.
    n
        Filters.
    n_coefficients
        k².

    Returns
    -------
    ndarray
        About 0 for noise, towards 1 for filters that are all alike; NaN where not defined.
    """
    expected = expected_entropy(n, n_coefficients)
    return np.asarray(1.0 - np.asarray(entropy, dtype=np.float64) / expected)


def minimum_filters(n_coefficients: int) -> int:
    """Return the number of filters below which "random" cannot be said.

    Parameters
    ----------
    n_coefficients
        k² ≥ 2.

    Returns
    -------
    int
        The smallest n > k² at which an entropy deficit of :data:`RANDOM_EFFECT` moves the test
        statistic by three of its standard deviations; 72 for 3x3.
    """
    spread = 3.0 * np.sqrt(2.0 * degrees_of_freedom(n_coefficients))
    per_filter = RANDOM_EFFECT * n_coefficients * np.log(n_coefficients)
    return max(n_coefficients + 1, int(np.ceil(spread / per_filter)))


def holm(p_values: FloatArray) -> FloatArray:
    """Adjust p-values by Holm's step-down procedure, which controls the family-wise error.

    Parameters
    ----------
    p_values
        (n,); NaN is left out of the family.

    Returns
    -------
    ndarray
        (n,) adjusted, at most 1; NaN where it was NaN.
    """
    adjusted = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(np.isfinite(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else steps
    return adjusted


def benjamini_hochberg(p_values: FloatArray) -> FloatArray:
    """Adjust p-values so that the expected share of false discoveries is controlled.

    Parameters
    ----------
    p_values
        (n,); NaN is left out of the family.

    Returns
    -------
    ndarray
        (n,) q-values; NaN where it was NaN.
    """
    adjusted = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(np.isfinite(p_values))
    if len(tested):
        order = tested[np.argsort(-p_values[tested], kind="stable")]
        ranks = np.arange(len(order), 0, -1)
        steps = p_values[order] * len(order) / ranks
        adjusted[order] = np.minimum(1.0, np.minimum.accumulate(steps))
    return adjusted
