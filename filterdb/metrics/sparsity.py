"""Sparsity: the share of filters whose every weight is small (filter_metrics.md §3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from filterdb.types import AnyArray, FloatArray

#: ε of the published definition, relative to the layer's largest weight.
EPSILON = 0.01


def sparse_filters(filters: AnyArray, epsilon: float = EPSILON) -> AnyArray:
    """Return which filters of a layer are sparse.

    Parameters
    ----------
    filters
        (n, k²), the whole layer and finite.
    epsilon
        Threshold relative to max|w|.

    Returns
    -------
    ndarray
        (n,) bool: all |w| < ε·max|w|, strictly; all True in a layer of zeros.
    """
    magnitude = np.abs(np.asarray(filters, dtype=np.float64))
    largest = magnitude.max(initial=0.0)
    if largest == 0.0:
        return np.ones(len(magnitude), dtype=bool)
    return np.asarray((magnitude < epsilon * largest).all(axis=1))


def sparsity(n_sparse: FloatArray | float, n: FloatArray | float) -> FloatArray:
    """Return S = n_sparse / n.

    Parameters
    ----------
    n_sparse, n
        Sparse filters and all filters of a layer; arrays broadcast.

    Returns
    -------
    ndarray
        S in [0, 1]; NaN where n = 0.
    """
    sparse, every = np.asarray(n_sparse, dtype=np.float64), np.asarray(n, dtype=np.float64)
    shares = np.full(np.broadcast(sparse, every).shape, np.nan)
    np.divide(sparse, every, out=shares, where=every > 0)
    return shares
