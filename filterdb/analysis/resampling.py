"""Permutations and bootstrap draws over models (filter_metrics.md §5).

Two groups may share models (layers of different depth in one network) or not (tasks). Models in
both are swapped as pairs; models in one group only are dealt out anew, each side keeping its size.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from filterdb.types import AnyArray, FloatArray

#: Models of the smaller side, and distinct relabellings, below which there is no test.
MIN_MODELS, MIN_RELABELLINGS = 3, 10


@dataclass(frozen=True)
class Pairing:
    """How two groups of units go together.

    Parameters
    ----------
    n_first, n_second
        Units of either group.
    shared_first, shared_second
        (pairs,) positions of the models that are in both.
    only_first, only_second
        Positions of the others.
    """

    n_first: int
    n_second: int
    shared_first: AnyArray
    shared_second: AnyArray
    only_first: AnyArray
    only_second: AnyArray

    @property
    def n_relabellings(self) -> int:
        """Distinct ways to relabel, the two groups not being told apart."""
        alone = len(self.only_first) + len(self.only_second)
        ways: int = 2 ** len(self.shared_first) * math.comb(alone, len(self.only_first))
        swappable = len(self.only_first) == len(self.only_second)
        return max(1, ways // 2 if swappable else ways)

    @property
    def why_not_tested(self) -> str | None:
        """Why there is no p-value, or None where there is one."""
        smaller = min(self.n_first, self.n_second)
        if smaller < MIN_MODELS:
            return f"not tested: {self.n_first} against {self.n_second} models, 3 against 3 needed"
        if self.n_relabellings < MIN_RELABELLINGS:
            return f"not tested: {len(self.shared_first)} models in both groups are too few to swap"
        return None


def pairing(first: AnyArray, second: AnyArray) -> Pairing:
    """Match the models of two groups.

    Parameters
    ----------
    first, second
        Model numbers of either group's units, ascending.

    Returns
    -------
    Pairing
        Positions in the two.
    """
    _, a, b = np.intersect1d(first, second, assume_unique=True, return_indices=True)
    return Pairing(
        n_first=len(first),
        n_second=len(second),
        shared_first=a,
        shared_second=b,
        only_first=np.setdiff1d(np.arange(len(first)), a),
        only_second=np.setdiff1d(np.arange(len(second)), b),
    )


def generator(seed: int, *words: str) -> np.random.Generator:
    """Return a stream of its own for every comparison.

    Parameters
    ----------
    seed
        The run's seed.
    words
        What is compared: axis, groups, kernel.

    Returns
    -------
    numpy.random.Generator
        The same whatever else is computed, and in whatever order.
    """
    digest = hashlib.sha256("\x1f".join(words).encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], dtype=np.uint32).tolist()])


def permutations(
    pair: Pairing, draws: int, random: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Relabel the units of two groups at random.

    Parameters
    ----------
    pair
        How the groups go together.
    draws
        How many relabellings.
    random
        Source of randomness.

    Returns
    -------
    tuple of ndarray
        (draws, n_first + n_second) 0 or 1: which units, of the first then of the second group,
        make up the first group and which the second.
    """
    size = pair.n_first + pair.n_second
    first, second = np.zeros((draws, size)), np.zeros((draws, size))
    a, b = pair.shared_first, pair.shared_second + pair.n_first
    swap = random.random((draws, len(a))) < 0.5
    first[:, a], first[:, b] = ~swap, swap
    second[:, a], second[:, b] = swap, ~swap
    alone = np.concatenate([pair.only_first, pair.only_second + pair.n_first]).astype(np.int64)
    if len(alone):
        dealt = random.permuted(np.tile(alone, (draws, 1)), axis=1)
        cut = len(pair.only_first)
        np.put_along_axis(first, dealt[:, :cut], 1.0, axis=1)
        np.put_along_axis(second, dealt[:, cut:], 1.0, axis=1)
    return first, second


def bootstrap(
    pair: Pairing, draws: int, random: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Draw models with replacement; a model in both groups is drawn for both.

    Parameters
    ----------
    pair
        How the groups go together.
    draws
        How many.
    random
        Source of randomness.

    Returns
    -------
    tuple of ndarray
        (draws, n_first) and (draws, n_second): how often each unit counts.
    """
    first, second = np.zeros((draws, pair.n_first)), np.zeros((draws, pair.n_second))
    both = resample(len(pair.shared_first), draws, random)
    first[:, pair.shared_first], second[:, pair.shared_second] = both, both
    first[:, pair.only_first] = resample(len(pair.only_first), draws, random)
    second[:, pair.only_second] = resample(len(pair.only_second), draws, random)
    return first, second


def resample(n: int, draws: int, random: np.random.Generator) -> FloatArray:
    """Draw n of n with replacement.

    Parameters
    ----------
    n
        Units.
    draws
        How many times.
    random
        Source of randomness.

    Returns
    -------
    ndarray
        (draws, n) how often each unit was drawn; rows sum to n.
    """
    if n == 0:
        return np.zeros((draws, 0))
    return random.multinomial(n, np.full(n, 1.0 / n), size=draws).astype(np.float64)


def halves(n: int, draws: int, random: np.random.Generator) -> FloatArray:
    """Split n units into two halves at random.

    Parameters
    ----------
    n
        Units, at least 2.
    draws
        How many times.
    random
        Source of randomness.

    Returns
    -------
    ndarray
        (draws, n) 1 where the unit is in the first half, which holds ⌊n/2⌋ of them.
    """
    first = np.zeros((draws, n))
    order = random.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)
    np.put_along_axis(first, order[:, : n // 2], 1.0, axis=1)
    return first


def bias_corrected_interval(
    estimate: FloatArray, draws: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return a 95 % interval of a quantity that resampling inflates.

    Parameters
    ----------
    estimate
        (...) the estimate.
    draws
        (draws, ...) its values in bootstrap draws.

    Returns
    -------
    tuple of ndarray
        Lower and upper end.

    Notes
    -----
    A resampled divergence exceeds the estimate by about as much as the estimate exceeds the truth,
    so percentiles of the draws may lie wholly above it. Both ends are moved down by the median
    excess; the interval then holds the estimate. Divergences are not negative, so callers clip
    the lower end at 0. In simulations of D between groups of models, what is called 95 % covered
    the truth in .79 to .83 of cases with 4 models a side, .87 to .94 with 10 and .89 to .95 with
    30, where percentiles covered it in none if the groups did not differ.
    """
    low, middle, high = np.percentile(draws, [2.5, 50.0, 97.5], axis=0)
    shift = middle - estimate
    return np.asarray(low - shift), np.asarray(high - shift)


def permutation_p_value(estimate: FloatArray, draws: FloatArray) -> FloatArray:
    """Return (1 + number of draws at least as large) / (1 + draws).

    Parameters
    ----------
    estimate
        (...) the estimate.
    draws
        (draws, ...) its values under relabelling.

    Returns
    -------
    ndarray
        (...) in (0, 1].
    """
    # A relabelling equal to the labels gives the estimate again, but for rounding.
    margin = 1e-9 * np.abs(estimate)
    return np.asarray((1.0 + (draws >= estimate - margin).sum(axis=0)) / (1.0 + len(draws)))
