"""Orthogonality of one layer by blocked matrix products.

The plain forms these are tested against stand in :mod:`filterdb.metrics.orthogonality`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.stats.kernels import batched_row_products

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from filterdb.types import AnyArray, FloatArray, Shape


#: Rows of one block of the Gram matrix: 2,048² float64 are 32 MB.
GRAM_ROWS = 2048
#: Coefficients of the groups handled at once: depthwise layers have thousands of tiny groups.
GROUP_ELEMENTS = 1 << 20
#: Multiply-adds beyond which a value is left out with a reason (about half a minute of one core).
MAX_MULTIPLY_ADDS = 6e11


def row_orthogonality(weights: AnyArray, groups: int) -> tuple[float | None, str | None]:
    """Compute O = 1 − Σ|ŴŴᵀ − I| / Σ M(M − 1) over the groups.

    Parameters
    ----------
    weights
        (M, C/g, *kernel), finite.
    groups
        Channel groups; rows of different groups see different inputs and are not compared.

    Returns
    -------
    tuple of float or None, str or None
        O in [0, 1], or None with the reason.

    Notes
    -----
    Zero rows are left out. With several groups the sum and the number of pairs are taken over all
    of them (filter_metrics.md §3).
    """
    rows = weights.reshape(groups, len(weights) // groups, -1)
    work = 0.5 * groups * rows.shape[1] ** 2 * rows.shape[2]
    if work > MAX_MULTIPLY_ADDS:
        return None, f"orthogonality: {work:.0e} multiply-adds, more than {MAX_MULTIPLY_ADDS:.0e}"
    deviation, pairs = 0.0, 0
    for group in rows if rows.shape[1] > 1 else ():
        unit = _unit_rows(group)
        deviation += _off_diagonal(unit)
        pairs += len(unit) * (len(unit) - 1)
    if pairs == 0:
        return None, "orthogonality: fewer than two non-zero output channels in every group"
    return 1.0 - deviation / pairs, None


def _unit_rows(group: AnyArray) -> FloatArray:
    matrix = np.asarray(group, dtype=np.float64)
    # Scaling by the largest entry first keeps squares of tiny weights from underflowing.
    largest = np.abs(matrix).max(axis=1, initial=0.0)
    matrix = matrix[largest > 0] / largest[largest > 0, None]
    return np.asarray(matrix / np.sqrt(np.einsum("ij,ij->i", matrix, matrix))[:, None])


def _off_diagonal(unit: FloatArray) -> float:
    """Σ over all entries of |ŴŴᵀ − I|."""
    total = 0.0
    for start in range(0, len(unit), GRAM_ROWS):
        block = unit[start : start + GRAM_ROWS]
        gram = block @ block.T
        gram[np.diag_indices(len(block))] -= 1.0
        total += float(np.abs(gram).sum())
        for other in range(start + GRAM_ROWS, len(unit), GRAM_ROWS):
            total += 2.0 * float(np.abs(block @ unit[other : other + GRAM_ROWS].T).sum())
    return total


def convolutional_orthogonality(
    weights: AnyArray, groups: int, stride: Sequence[int]
) -> tuple[float | None, str | None]:
    """Compute L = ‖conv(K, K, padding=P, stride=S) − I₀‖²_F − max(0, M − C·ΠS).

    Parameters
    ----------
    weights
        (M, C/g, *kernel), finite.
    groups
        Channel groups: the operator is block diagonal, so L is the sum over the groups.
    stride
        One per spatial axis.

    Returns
    -------
    tuple of float or None, str or None
        L ≥ 0, or None with the reason.

    Notes
    -----
    P = ⌊(k − 1)/S⌋·S per axis (Wang et al. 2020; Achour, Malgouyres and Mamalet 2022). The product
    at offset −a is the transpose of that at a, so half of them are computed. At stride 1 the sum
    over offsets is the same for the kernel with input and output channels exchanged, and the
    smaller side is taken.
    """
    kernel = weights.shape[2:]
    grouped = weights.reshape(groups, len(weights) // groups, *weights.shape[1:])
    strided = any(s != 1 for s in stride)
    if not strided and grouped.shape[1] > grouped.shape[2]:
        grouped = np.swapaxes(grouped, 1, 2)
    n_out, n_in = grouped.shape[1:3]
    offsets = list(_half_offsets(kernel, stride))
    overlap = sum(
        int(np.prod([k - abs(a) for k, a in zip(kernel, o, strict=True)])) for o in offsets
    )
    work = float(groups) * n_out**2 * n_in * overlap
    if work > MAX_MULTIPLY_ADDS:
        return None, f"l_orth: {work:.0e} multiply-adds, more than {MAX_MULTIPLY_ADDS:.0e}"
    surplus = max(0, n_out - n_in * int(np.prod(stride)))
    at_once = max(1, GROUP_ELEMENTS // grouped[0].size)
    total = 0.0
    for start in range(0, groups, at_once):
        some = np.asarray(grouped[start : start + at_once], dtype=np.float64)
        total += float((_squared_deviations(some, offsets) - surplus).sum())
    return max(0.0, total), None


def _half_offsets(kernel: Shape, stride: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Offsets within the padding that are not the negative of an earlier one."""
    axes = []
    for k, s in zip(kernel, stride, strict=True):
        reach = (k - 1) // s * s
        axes.append(range(-reach, reach + 1, s))
    for offset in itertools.product(*axes):
        if offset >= tuple(-a for a in offset):
            yield offset


def _squared_deviations(kernels: FloatArray, offsets: list[tuple[int, ...]]) -> FloatArray:
    """‖conv(K, K) − I₀‖²_F of each group; kernels (groups, n_out, n_in, *kernel) → (groups,)."""
    n_groups, n_out = kernels.shape[:2]
    total = np.zeros(n_groups)
    diagonal = np.arange(n_out)
    for offset in offsets:
        here: tuple[Any, ...] = tuple(
            slice(max(0, a), k + min(0, a)) for a, k in zip(offset, kernels.shape[3:], strict=True)
        )
        there: tuple[Any, ...] = tuple(
            slice(max(0, -a), k + min(0, -a))
            for a, k in zip(offset, kernels.shape[3:], strict=True)
        )
        first = kernels[(Ellipsis, *here)].reshape(n_groups, n_out, -1)
        second = kernels[(Ellipsis, *there)].reshape(n_groups, n_out, -1) if any(offset) else first
        product = batched_row_products(first, second)
        if not any(offset):
            product[:, diagonal, diagonal] -= 1.0
        weight = 2.0 if any(offset) else 1.0
        total += weight * np.einsum("gij,gij->g", product, product)
    return total
