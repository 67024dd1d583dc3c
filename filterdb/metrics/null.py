"""The distribution of H for independent Gaussian filters, at every n and k² (filter_metrics.md §3).

The statistic is X = (n − 1)·k²·(ln k² − H·ln 10). For n filters with i.i.d. Gaussian weights the
centred scatter matrix is a Wishart matrix with ν = n − 1 degrees of freedom, and X tends to χ²
with k²(k² + 1)/2 − 1 degrees of freedom. At finite n its first three moments lie below those of
χ² by factors that depend smoothly on k²/ν; the factors were sampled once by Bartlett's
decomposition (:func:`sample_statistic`, :func:`fit_moment_ratios`) and stand below as polynomials.
A Pearson III distribution with these moments gives the tail. For k² = 2 the law is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from filterdb.metrics.null_table import MOMENT_RATIOS

if TYPE_CHECKING:
    from filterdb.types import FloatArray

#: ν / k² at which the moments were sampled.
SAMPLED_RATIOS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.3, 5.0, 10.0, 20.0, 50.0)
_SAMPLED_VALUES = 1 << 18


def degrees_of_freedom(n_coefficients: int) -> int:
    """Return the degrees of freedom of the limiting χ².

    Parameters
    ----------
    n_coefficients
        k².

    Returns
    -------
    int
        k²(k² + 1)/2 − 1.
    """
    return n_coefficients * (n_coefficients + 1) // 2 - 1


def moment_ratios(n: FloatArray, n_coefficients: int) -> FloatArray:
    """Return mean, variance and skewness of X relative to those of χ².

    Parameters
    ----------
    n
        (...) filters, more than k².
    n_coefficients
        k² ≥ 3.

    Returns
    -------
    ndarray
        (3, ...).
    """
    sizes = np.array(sorted(MOMENT_RATIOS), dtype=np.float64)
    table = np.array([MOMENT_RATIOS[int(size)] for size in sizes])
    # Linear in 1/k² between the sizes sampled.
    flat = table.reshape(len(sizes), -1)
    polynomial = np.array(
        [np.interp(-1.0 / n_coefficients, -1.0 / sizes, column) for column in flat.T]
    ).reshape(table.shape[1:])
    ratio = n_coefficients / (np.asarray(n, dtype=np.float64) - 1.0)
    powers = np.stack([ratio ** (i + 1) for i in range(len(polynomial[0]))])
    return np.asarray(1.0 + np.tensordot(polynomial, powers, axes=1))


def expected_entropy(n: FloatArray | float, n_coefficients: int) -> FloatArray:
    """Return E[H] of independent Gaussian filters.

    Parameters
    ----------
    n
        (...) filters.
    n_coefficients
        k².

    Returns
    -------
    ndarray
        In (0, log10 k²); NaN where n ≤ k² or k² < 2.
    """
    count = np.asarray(n, dtype=np.float64)
    if n_coefficients < 2:
        return np.full_like(count, np.nan)
    usable = count > n_coefficients
    safe = np.where(usable, count, 2.0 * n_coefficients + 1.0)
    if n_coefficients == 2:
        deficit = _expected_deficit_of_two(safe)
    else:
        mean = moment_ratios(safe, n_coefficients)[0] * degrees_of_freedom(n_coefficients)
        deficit = mean / ((safe - 1.0) * n_coefficients * np.log(10.0))
    return np.where(usable, np.log10(n_coefficients) - deficit, np.nan)


def p_value(entropy: FloatArray | float, n: FloatArray | float, n_coefficients: int) -> FloatArray:
    """Return the probability of an entropy this low or lower under independent Gaussian filters.

    Parameters
    ----------
    entropy
        H, log10.
    n
        Filters.
    n_coefficients
        k².

    Returns
    -------
    ndarray
        In [0, 1]; NaN where H is NaN, n ≤ k² or k² < 2.
    """
    from scipy import special

    observed, count = np.broadcast_arrays(
        np.asarray(entropy, dtype=np.float64), np.asarray(n, dtype=np.float64)
    )
    usable = np.isfinite(observed) & (count > n_coefficients)
    if n_coefficients < 2:
        return np.full(observed.shape, np.nan)
    safe = np.where(usable, count, 2.0 * n_coefficients + 1.0)
    values = np.where(usable, observed, 0.0)
    if n_coefficients == 2:
        probability = _p_value_of_two(values, safe)
    else:
        freedom = degrees_of_freedom(n_coefficients)
        deficit = np.log(n_coefficients) - values * np.log(10.0)
        statistic = (safe - 1.0) * n_coefficients * deficit
        mean, variance, skew = moment_ratios(safe, n_coefficients)
        skewness = skew * np.sqrt(8.0 / freedom)
        standard = (statistic - mean * freedom) / np.sqrt(variance * 2.0 * freedom)
        shape = 4.0 / skewness**2
        probability = special.gammaincc(shape, np.maximum(0.0, shape + standard * np.sqrt(shape)))
    return np.where(usable, probability, np.nan)


def _p_value_of_two(entropy: FloatArray, n: FloatArray) -> FloatArray:
    """k² = 2: v = 4p(1 − p) falls with H and P(v ≤ x) = x^((ν − 1)/2) exactly."""
    low, high = np.zeros_like(entropy), np.full_like(entropy, 0.5)
    for _ in range(60):
        middle = 0.5 * (low + high)
        rest = 1.0 - middle
        logs = np.log10(np.maximum(middle, 1e-300))
        below = -(middle * logs + rest * np.log10(rest)) < entropy
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    share = 0.5 * (low + high)
    return np.asarray((4.0 * share * (1.0 - share)) ** ((n - 2.0) / 2.0))


def _expected_deficit_of_two(n: FloatArray) -> FloatArray:
    """log10 2 − E[H] for k² = 2, by quadrature over v = u^(2/(ν − 1)), u uniform."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    uniform, weight = 0.5 * (nodes + 1.0), 0.5 * weights
    v = uniform ** (2.0 / (np.maximum(n, 3.0)[..., None] - 2.0))
    share = 0.5 * (1.0 - np.sqrt(1.0 - v))
    entropy = -(share * np.log10(share) + (1.0 - share) * np.log10(1.0 - share))
    return np.asarray(np.log10(2.0) - entropy @ weight)


def sample_statistic(
    n_coefficients: int, degrees: int, draws: int, generator: np.random.Generator
) -> FloatArray:
    """Draw X by Bartlett's decomposition of the Wishart matrix; the cost does not depend on n.

    Parameters
    ----------
    n_coefficients
        k².
    degrees
        ν = n − 1, at least k².
    draws
        How many.
    generator
        Source of randomness.

    Returns
    -------
    ndarray
        (draws,).
    """
    size, position = n_coefficients, np.arange(n_coefficients)
    rows = max(1, _SAMPLED_VALUES // size**2)
    parts = []
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        factor = np.tril(generator.standard_normal((count, size, size)), -1)
        factor[:, position, position] = np.sqrt(
            generator.chisquare(degrees - position, (count, size))
        )
        eigenvalues = np.clip(np.linalg.eigvalsh(factor @ factor.swapaxes(1, 2)), 0.0, None)
        shares = eigenvalues / eigenvalues.sum(axis=1, keepdims=True)
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        parts.append(degrees * size * (np.log(size) + (shares * logs).sum(axis=1)))
    return np.concatenate(parts)


def fit_moment_ratios(
    n_coefficients: int, draws: int, generator: np.random.Generator, *, degree: int = 5
) -> FloatArray:
    """Sample the moments of X over a range of n and fit them: one entry of the table.

    Parameters
    ----------
    n_coefficients
        k² ≥ 3.
    draws
        Draws at each n.
    generator
        Source of randomness.
    degree
        Degree of the polynomials in k²/ν; their constant term is 1.

    Returns
    -------
    ndarray
        (3, degree): mean, variance, skewness; the coefficient of (k²/ν)¹ first.
    """
    freedom = degrees_of_freedom(n_coefficients)
    degrees = sorted({round(n_coefficients * ratio) for ratio in SAMPLED_RATIOS})
    observed = []
    for nu in degrees:
        draw = sample_statistic(n_coefficients, nu, draws, generator)
        deviation = draw - draw.mean()
        variance = float((deviation**2).mean())
        skewness = float((deviation**3).mean()) / variance**1.5
        chi_square = (freedom, 2.0 * freedom, np.sqrt(8.0 / freedom))
        observed.append(
            [draw.mean() / chi_square[0], variance / chi_square[1], skewness / chi_square[2]]
        )
    ratio = n_coefficients / np.array(degrees, dtype=np.float64)
    powers = np.stack([ratio ** (i + 1) for i in range(degree)], axis=1)
    solution = np.linalg.lstsq(powers, np.array(observed) - 1.0, rcond=None)[0]
    return np.asarray(solution.T, dtype=np.float64)
