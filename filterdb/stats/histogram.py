"""Coefficients of filters on a PCA basis: their range, and how they fall into bins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from filterdb.stats import kernels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.types import AnyArray, FloatArray, Scaling, Sparse

#: ε of the filters that ``sparse = removed`` leaves out.
SPARSE_EPSILON = 0.01
#: Distance from an edge, in bins, within which the edge itself is asked.
CLOSE_TO_EDGE = 1e-6


@dataclass(frozen=True, eq=False)
class Projection:
    """How filters of one kernel become coefficients.

    Parameters
    ----------
    mean
        (k²,) subtracted after scaling.
    components
        (components, k²).
    scaling
        "max_abs" or "none".
    sparse
        "removed" leaves out filters with all |w| < .01·max|layer|.
    """

    mean: FloatArray
    components: FloatArray
    scaling: Scaling = "max_abs"
    sparse: Sparse = "kept"

    def blocks(self, filters: AnyArray) -> Iterator[FloatArray]:
        """Yield the coefficients of one layer's filters, block by block.

        Parameters
        ----------
        filters
            (n, k²), a whole layer: sparse filters are told by the layer's largest weight.

        Yields
        ------
        ndarray
            (components, filters of the block).
        """
        peaks = kernels.peaks(filters)
        divisors = kernels.scale_divisors(peaks) if self.scaling == "max_abs" else None
        keep = None
        if self.sparse == "removed":
            keep = ~kernels.sparse_mask(peaks, float(peaks.max(initial=0.0)), SPARSE_EPSILON)
        for start, stop, block in kernels.blocks(filters):
            if divisors is not None:
                block /= divisors[start:stop]
            block -= self.mean[:, None]
            coefficients = self.components @ block
            yield coefficients if keep is None else coefficients[:, keep[start:stop]]


def coefficient_range(filters: AnyArray, projection: Projection) -> tuple[float, float]:
    """Return the smallest and the largest coefficient over all components.

    Parameters
    ----------
    filters
        (n, k²) of one layer.
    projection
        Scaling and basis.

    Returns
    -------
    tuple of float
        (inf, −inf) where no filter counts.
    """
    low, high = np.inf, -np.inf
    for coefficients in projection.blocks(filters):
        if coefficients.size:
            low = min(low, float(coefficients.min()))
            high = max(high, float(coefficients.max()))
    return low, high


def coefficient_counts(filters: AnyArray, projection: Projection, edges: FloatArray) -> AnyArray:
    """Count the coefficients of each component in bins of equal width.

    Parameters
    ----------
    filters
        (n, k²) of one layer.
    projection
        Scaling and basis.
    edges
        (bins + 1,) from ``numpy.linspace``. Coefficients beyond either end are counted in the
        outermost bin.

    Returns
    -------
    ndarray
        (components, bins) int64, as ``numpy.histogram`` counts: a bin holds its left edge, the last
        bin both.
    """
    n_components, n_bins = len(projection.components), len(edges) - 1
    counts = np.zeros(n_components * n_bins, dtype=np.int64)
    offsets = (np.arange(n_components) * n_bins)[:, None]
    for coefficients in projection.blocks(filters):
        index = bin_index(coefficients, edges) + offsets
        counts += np.bincount(index.ravel(), minlength=len(counts))
    return counts.reshape(n_components, n_bins)


def bin_index(values: FloatArray, edges: FloatArray) -> AnyArray:
    """Return the bin of each value; the edges decide, not the arithmetic that finds them.

    Parameters
    ----------
    values
        Any shape.
    edges
        (bins + 1,) ascending, equally spaced.

    Returns
    -------
    ndarray
        int64, 0 to bins − 1.
    """
    n_bins = len(edges) - 1
    width = (edges[-1] - edges[0]) / n_bins
    guess = (values - edges[0]) / width
    index = np.clip(guess, 0, n_bins - 1).astype(np.int64)
    # Only a value this close to an edge can have been put on its wrong side by rounding.
    reach = max(CLOSE_TO_EDGE, CLOSE_TO_EDGE**2 * float(np.abs(edges).max()) / width)
    doubtful = np.abs(guess - np.rint(guess)) < reach
    near, value = index[doubtful], values[doubtful]
    near -= (value < edges[near]) & (near > 0)
    near += (value >= edges[near + 1]) & (near < n_bins - 1)
    index[doubtful] = near
    return np.asarray(index)
