"""Sums over the filters of one layer, in float64.

There is exactly one path from weights to sums: numpy over blocks whose size depends on the kernel
only. So the same layer gives the same bits on every worker, whatever else that worker does. A
compiled kernel may later replace the bodies here; it would then replace them everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.types import AnyArray, FloatArray

#: Values of one block; 2¹⁷ float64 stay in a core's second-level cache.
BLOCK_VALUES = 1 << 17


@dataclass(frozen=True)
class Moments:
    """Mean and sums of powers of the deviations from it, over all coefficients.

    Parameters
    ----------
    mean
        Mean coefficient.
    m2, m3, m4
        Σ(w − mean)², ³, ⁴.
    """

    mean: float
    m2: float
    m3: float
    m4: float


@dataclass(frozen=True)
class FilterSums:
    """First and second moments of a set of filters, not centred.

    Parameters
    ----------
    sum
        Σf, (k²,).
    scatter
        Σffᵀ, (k², k²); None where it was not asked for.
    """

    sum: FloatArray
    scatter: FloatArray | None


def blocks(filters: AnyArray) -> Iterator[tuple[int, int, FloatArray]]:
    """Yield the filters in blocks, as float64 with one coefficient a row.

    Parameters
    ----------
    filters
        (n, k²), any floating dtype.

    Yields
    ------
    tuple of int, int, ndarray
        Start, stop and the block (k², stop − start), C-contiguous: numpy reduces over filters
        several times faster along this layout than along rows of nine values.
    """
    rows = max(1, BLOCK_VALUES // max(1, filters.shape[1]))
    for start in range(0, len(filters), rows):
        stop = min(start + rows, len(filters))
        yield start, stop, np.array(filters[start:stop].T, dtype=np.float64, order="C")


def peaks(filters: AnyArray) -> FloatArray:
    """Return the largest magnitude within each filter.

    Parameters
    ----------
    filters
        (n, k²).

    Returns
    -------
    ndarray
        (n,) max|f|; NaN or infinity where the filter holds one.
    """
    result = np.empty(len(filters))
    for start, stop, block in blocks(filters):
        np.abs(block).max(axis=0, out=result[start:stop])
    return result


def scale_divisors(filter_peaks: FloatArray) -> FloatArray:
    """Return what max-abs scaling divides each filter by: its peak, or 1 for a zero filter.

    Parameters
    ----------
    filter_peaks
        (n,) max|f|.

    Returns
    -------
    ndarray
        (n,), nowhere zero.
    """
    return np.where(filter_peaks == 0.0, 1.0, filter_peaks)


def sparse_mask(filter_peaks: FloatArray, absmax: float, epsilon: float) -> AnyArray:
    """Return which filters are sparse: all |w| < ε·max|layer|, strictly.

    Parameters
    ----------
    filter_peaks
        (n,) max|f|.
    absmax
        max|w| of the layer.
    epsilon
        Threshold relative to `absmax`.

    Returns
    -------
    ndarray
        (n,) bool. All True in a layer of zeros.
    """
    if absmax == 0.0:
        return np.ones(len(filter_peaks), dtype=bool)
    return np.asarray(filter_peaks < epsilon * absmax)


def filter_sums(filters: AnyArray, *, divisors: FloatArray | None, scatter: bool) -> FilterSums:
    """Sum filters and their outer products.

    Parameters
    ----------
    filters
        (n, k²).
    divisors
        (n,) what to divide each filter by first; None for raw filters.
    scatter
        Whether the outer products are wanted.

    Returns
    -------
    FilterSums
        Zero where there is no filter.
    """
    n_coefficients = filters.shape[1]
    total = np.zeros(n_coefficients)
    products = np.zeros((n_coefficients, n_coefficients)) if scatter else None
    for start, stop, block in blocks(filters):
        if divisors is not None:
            block /= divisors[start:stop]
        total += block.sum(axis=1)
        if products is not None:
            products += row_products(block, block)
    return FilterSums(total, products)


def row_products(first: FloatArray, second: FloatArray) -> FloatArray:
    """Multiply the rows of two matrices with one another.

    Parameters
    ----------
    first, second
        (m, n).

    Returns
    -------
    ndarray
        (m, m) first @ second.T. For m = 1 without BLAS, whose dot product adds up in another order
        with another number of threads; matrix products cut up the result, not the sums.
    """
    if len(first) == 1:
        return np.asarray(np.einsum("ij,kj->ik", first, second))
    return np.asarray(first @ second.T)


def batched_row_products(first: FloatArray, second: FloatArray) -> FloatArray:
    """Multiply the rows of many pairs of matrices, as :func:`row_products` does of one.

    Parameters
    ----------
    first, second
        (batch, m, n).

    Returns
    -------
    ndarray
        (batch, m, m).
    """
    if first.shape[1] == 1:
        return np.asarray(np.einsum("bij,bkj->bik", first, second))
    return np.asarray(first @ second.swapaxes(1, 2))


def moments(filters: AnyArray, mean: float) -> Moments:
    """Sum the powers of the deviations from a mean that is known already.

    Parameters
    ----------
    filters
        (n, k²).
    mean
        Mean coefficient.

    Returns
    -------
    Moments
        Two passes, so nothing cancels.
    """
    m2 = m3 = m4 = 0.0
    for _, _, block in blocks(filters):
        block -= mean
        square = block * block
        m2 += float(square.sum())
        m3 += float((square * block).sum())
        m4 += float((square * square).sum())
    return Moments(mean, m2, m3, m4)
