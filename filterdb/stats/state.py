"""The state of a layer: everything later analyses need to know of its filters.

Definitions: filter_metrics.md §2; columns: ``layer_states`` of :mod:`filterdb.store.schema`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.stats import kernels
from filterdb.stats.orthogonality import convolutional_orthogonality, row_orthogonality
from filterdb.types import MAX_SCATTER_COEFFICIENTS, AnyArray, FloatArray

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Sums = tuple[float, ...]

#: Fourth powers of larger weights leave no room in float64 for the sums of a large layer.
LARGEST_WEIGHT = 1e70
#: The thresholds ε of the sparse counts, relative to the layer's largest weight.
SPARSE_EPSILONS = (0.001, 0.01, 0.1)
MERGED = "orthogonality, l_orth: of one layer only, this is a merge"

_LIST_FIELDS = (
    "sum",
    "scatter",
    "scaled_sum",
    "scaled_scatter",
    "sparse_sum",
    "sparse_scatter",
    "sparse_scaled_sum",
    "sparse_scaled_scatter",
)
_COUNT_FIELDS = ("n_sparse_001", "n_sparse_01", "n_sparse_1")


@dataclass(frozen=True)
class LayerState:
    """Mergeable sums over the filters of a layer.

    Parameters
    ----------
    n, n_zero, n_nonfinite
        Filters; those all zero; those with a NaN or an infinity. Always there.
    absmax
        Largest |w|.
    mean, m2, m3, m4
        Mean coefficient; Σ(w − mean)², ³ and ⁴.
    sum, scatter
        Σf (k²) and the upper triangle, row-major, of Σffᵀ, not centred.
    scaled_sum, scaled_scatter
        The same of f/max|f| (a zero filter stays zero and counts).
    n_sparse_001, n_sparse_01, n_sparse_1
        Filters with all |w| < ε·max|layer|, ε = .001, .01, .1; all of them in a layer of zeros.
    sparse_sum, sparse_scatter, sparse_scaled_sum, sparse_scaled_scatter
        The four sums over the filters sparse at .01, to be subtracted for ``sparse = removed``.
    orthogonality, l_orth
        Of one layer; null in a merge.
    null_reason
        Why something is null; several reasons are joined by "; ".

    Notes
    -----
    Merging two states that each hold all of their layer is exact but for rounding. The sparse
    parts are relative to each layer's own maximum, so merging across layers adds what was sparse
    within each; they are not those of the concatenated filters.
    """

    n: int
    n_zero: int
    n_nonfinite: int
    absmax: float | None = None
    mean: float | None = None
    m2: float | None = None
    m3: float | None = None
    m4: float | None = None
    sum: Sums | None = None
    scatter: Sums | None = None
    scaled_sum: Sums | None = None
    scaled_scatter: Sums | None = None
    n_sparse_001: int | None = None
    n_sparse_01: int | None = None
    n_sparse_1: int | None = None
    sparse_sum: Sums | None = None
    sparse_scatter: Sums | None = None
    sparse_scaled_sum: Sums | None = None
    sparse_scaled_scatter: Sums | None = None
    orthogonality: float | None = None
    l_orth: float | None = None
    null_reason: str | None = None

    @classmethod
    def empty(cls, n_coefficients: int) -> LayerState:
        """Return the identity of :meth:`merge` for kernels of this size.

        Parameters
        ----------
        n_coefficients
            k².

        Returns
        -------
        LayerState
            Of no filter at all.
        """
        return layer_state(np.zeros((0, 1, n_coefficients)))

    def merge(self, other: LayerState) -> LayerState:
        """Return the state of the filters of both.

        Parameters
        ----------
        other
            A state of kernels of the same size.

        Returns
        -------
        LayerState
            A null of either side is a null of the merge. Orthogonality is null unless one side
            is empty.

        Raises
        ------
        ValueError
            If the kernels differ in size.
        """
        if other.n == 0 or self.n == 0:
            _same_size(self, other)
            return other if self.n == 0 else self
        _same_size(self, other)
        merged: dict[str, Any] = {
            "n": self.n + other.n,
            "n_zero": self.n_zero + other.n_zero,
            "n_nonfinite": self.n_nonfinite + other.n_nonfinite,
            "null_reason": _join_reasons(self.null_reason, other.null_reason, MERGED),
        }
        for name in _LIST_FIELDS:
            mine, theirs = getattr(self, name), getattr(other, name)
            both = mine is not None and theirs is not None
            merged[name] = tuple(np.add(mine, theirs).tolist()) if both else None
        for name in _COUNT_FIELDS:
            mine, theirs = getattr(self, name), getattr(other, name)
            merged[name] = mine + theirs if mine is not None and theirs is not None else None
        if self.absmax is not None and other.absmax is not None:
            merged["absmax"] = max(self.absmax, other.absmax)
            merged |= _merge_moments(self, other)
        return LayerState(**merged)

    def to_record(self) -> dict[str, Any]:
        """Return the columns of ``layer_states`` after ``weights``.

        Returns
        -------
        dict
            Plain ints, floats, lists, strings and None.
        """
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in _LIST_FIELDS:
            if record[name] is not None:
                record[name] = list(record[name])
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> LayerState:
        """Return the state that a row of ``layer_states`` holds.

        Parameters
        ----------
        record
            The row; other columns are ignored.

        Returns
        -------
        LayerState
            Equal to the one :meth:`to_record` was called on.
        """
        values = {f.name: record[f.name] for f in fields(cls)}
        for name in _LIST_FIELDS:
            if values[name] is not None:
                values[name] = tuple(values[name])
        return cls(**values)


def layer_state(
    weights: AnyArray,
    groups: int = 1,
    *,
    stride: Sequence[int] | None = None,
    transposed: bool = False,
    l_orth: bool = True,
) -> LayerState:
    """Compute the state of one layer.

    Parameters
    ----------
    weights
        (M, C/g, *kernel), any floating dtype; for the folded state multiply by the BatchNorm's
        scale first.
    groups
        Channel groups.
    stride
        One per spatial axis, for `l_orth`; 1 where unknown.
    transposed
        The layer is a transposed convolution: `l_orth` is then that of its adjoint, the ordinary
        convolution with input and output channels exchanged.
    l_orth
        Whether to compute the convolutional orthogonality, by far the dearest part.

    Returns
    -------
    LayerState
        In float64, the same bits on every machine with the same BLAS. With a non-finite weight
        only the counts.

    Raises
    ------
    ValueError
        If `groups` does not divide M, or `stride` has another number of axes.
    """
    weights = np.asarray(weights)
    strides = _checked(weights, groups, stride)
    filters = np.ascontiguousarray(weights).reshape(
        weights.shape[0] * weights.shape[1], int(np.prod(weights.shape[2:]))
    )
    filter_peaks = kernels.peaks(filters)
    absmax = float(filter_peaks.max(initial=0.0))
    counts = LayerState(
        n=len(filters),
        n_zero=int(np.count_nonzero(filter_peaks == 0.0)),
        n_nonfinite=int(np.count_nonzero(~np.isfinite(filter_peaks))),
    )
    if counts.n_nonfinite:
        of = f"{counts.n_nonfinite} of {counts.n} filters hold a NaN or an infinity"
        return replace(counts, null_reason=f"non-finite: {of}")
    if absmax > LARGEST_WEIGHT:
        reason = f"too large: |w| up to {absmax:.1e}, sums of powers would overflow"
        return replace(counts, absmax=absmax, null_reason=reason)
    state = _with_sums(counts, filters, filter_peaks, absmax)
    state, reasons = _with_orthogonality(
        state, weights, groups, strides, transposed=transposed, l_orth=l_orth
    )
    if state.scatter is None:
        reasons.insert(
            0, f"scatters: {filters.shape[1]} coefficients, more than {MAX_SCATTER_COEFFICIENTS}"
        )
    return replace(state, null_reason=_join_reasons(*reasons))


def unpack_scatter(triangle: Sequence[float] | FloatArray, n_coefficients: int) -> FloatArray:
    """Return full symmetric matrices from upper triangles.

    Parameters
    ----------
    triangle
        (..., k²(k²+1)/2), row-major.
    n_coefficients
        k².

    Returns
    -------
    ndarray
        (..., k², k²).
    """
    values = np.asarray(triangle, dtype=np.float64)
    full = np.zeros((*values.shape[:-1], n_coefficients, n_coefficients))
    rows, columns = np.triu_indices(n_coefficients)
    full[..., rows, columns] = values
    full[..., columns, rows] = values
    return full


def _checked(weights: AnyArray, groups: int, stride: Sequence[int] | None) -> tuple[int, ...]:
    rank = weights.ndim - 2
    if rank < 1 or not np.issubdtype(weights.dtype, np.floating):
        got = f"{weights.dtype} {weights.shape}"
        raise ValueError(f"weights must be floating (M, C/g, *kernel), got {got}")
    if groups < 1 or weights.shape[0] % groups:
        raise ValueError(f"groups must divide {weights.shape[0]} output channels, got {groups}")
    strides = (1,) * rank if stride is None else tuple(stride)
    if len(strides) != rank or min(strides) < 1:
        raise ValueError(f"stride must be {rank} positive integers, got {strides}")
    return strides


def _with_sums(
    counts: LayerState, filters: AnyArray, filter_peaks: FloatArray, absmax: float
) -> LayerState:
    scatter = filters.shape[1] <= MAX_SCATTER_COEFFICIENTS
    divisors = kernels.scale_divisors(filter_peaks)
    raw = kernels.filter_sums(filters, divisors=None, scatter=scatter)
    scaled = kernels.filter_sums(filters, divisors=divisors, scatter=scatter)
    masks = [kernels.sparse_mask(filter_peaks, absmax, epsilon) for epsilon in SPARSE_EPSILONS]
    sparse, sparse_divisors = filters[masks[1]], divisors[masks[1]]
    sparse_raw = kernels.filter_sums(sparse, divisors=None, scatter=scatter)
    sparse_scaled = kernels.filter_sums(sparse, divisors=sparse_divisors, scatter=scatter)
    n_values = filters.size
    powers = kernels.moments(filters, float(raw.sum.sum()) / n_values if n_values else 0.0)
    return replace(
        counts,
        absmax=absmax,
        mean=powers.mean,
        m2=powers.m2,
        m3=powers.m3,
        m4=powers.m4,
        sum=tuple(raw.sum.tolist()),
        scatter=_triangle(raw.scatter),
        scaled_sum=tuple(scaled.sum.tolist()),
        scaled_scatter=_triangle(scaled.scatter),
        n_sparse_001=int(masks[0].sum()),
        n_sparse_01=int(masks[1].sum()),
        n_sparse_1=int(masks[2].sum()),
        sparse_sum=tuple(sparse_raw.sum.tolist()),
        sparse_scatter=_triangle(sparse_raw.scatter),
        sparse_scaled_sum=tuple(sparse_scaled.sum.tolist()),
        sparse_scaled_scatter=_triangle(sparse_scaled.scatter),
    )


def _with_orthogonality(
    state: LayerState,
    weights: AnyArray,
    groups: int,
    stride: tuple[int, ...],
    *,
    transposed: bool,
    l_orth: bool,
) -> tuple[LayerState, list[str]]:
    if state.n == 0:
        return state, []
    rows, rows_reason = row_orthogonality(weights, groups)
    if l_orth:
        adjoint = _adjoint(weights, groups) if transposed else weights
        value, reason = convolutional_orthogonality(adjoint, groups, stride)
    else:
        value, reason = None, "l_orth: not asked for"
    reasons = [r for r in (rows_reason, reason) if r is not None]
    return replace(state, orthogonality=rows, l_orth=value), reasons


def _adjoint(weights: AnyArray, groups: int) -> AnyArray:
    grouped = weights.reshape(groups, len(weights) // groups, *weights.shape[1:])
    swapped = np.swapaxes(grouped, 1, 2)
    return swapped.reshape(groups * swapped.shape[1], *swapped.shape[2:])


def _triangle(matrix: FloatArray | None) -> Sums | None:
    if matrix is None:
        return None
    return tuple(matrix[np.triu_indices(len(matrix))].tolist())


def _same_size(first: LayerState, second: LayerState) -> None:
    if first.sum is None or second.sum is None:
        return
    if len(first.sum) != len(second.sum):
        sizes = f"{len(first.sum)} and {len(second.sum)} coefficients"
        raise ValueError(f"cannot merge states of kernels of {sizes}")


def _join_reasons(*reasons: str | None) -> str | None:
    parts = {part for reason in reasons if reason for part in reason.split("; ")}
    return "; ".join(sorted(parts)) or None


def _merge_moments(first: LayerState, second: LayerState) -> dict[str, float | None]:
    """Chan's and Pébay's formulas for central moments of a union, in any order of the two."""
    if first.sum is None or second.sum is None:
        return {}
    assert first.mean is not None
    assert second.mean is not None
    a, b = float(first.n * len(first.sum)), float(second.n * len(second.sum))
    a2, a3, a4 = (float(v or 0.0) for v in (first.m2, first.m3, first.m4))
    b2, b3, b4 = (float(v or 0.0) for v in (second.m2, second.m3, second.m4))
    n, d = a + b, second.mean - first.mean
    u, v = a / n, b / n
    return {
        "mean": u * first.mean + v * second.mean,
        "m2": a2 + b2 + d * d * a * v,
        "m3": a3 + b3 + d**3 * a * v * (u - v) + 3.0 * d * (u * b2 - v * a2),
        "m4": a4
        + b4
        + d**4 * a * v * (u * u - u * v + v * v)
        + 6.0 * d * d * (u * u * b2 + v * v * a2)
        + 4.0 * d * (u * b3 - v * a3),
    }
