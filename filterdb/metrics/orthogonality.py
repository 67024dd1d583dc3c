"""Orthogonality of a layer, in its plain form (filter_metrics.md §3).

What extraction runs is the blocked form in :mod:`filterdb.stats.orthogonality`; these are the
definitions it is tested against.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filterdb.types import AnyArray, FloatArray


def row_orthogonality(weights: AnyArray, groups: int = 1) -> float:
    """Compute O = 1 − Σ|ŴŴᵀ − I| / (M(M − 1)), over the groups together.

    Parameters
    ----------
    weights
        (M, C/g, *kernel).
    groups
        Channel groups.

    Returns
    -------
    float
        O in [0, 1]; zero rows are left out; NaN where no group has two rows.
    """
    deviation, pairs = 0.0, 0
    for group in np.split(np.asarray(weights, dtype=np.float64), groups):
        rows = group.reshape(len(group), -1)
        norms = np.linalg.norm(rows, axis=1)
        unit = rows[norms > 0] / norms[norms > 0, None]
        deviation += float(np.abs(unit @ unit.T - np.eye(len(unit))).sum())
        pairs += len(unit) * (len(unit) - 1)
    return 1.0 - deviation / pairs if pairs else float("nan")


def convolutional_orthogonality(weights: AnyArray, stride: Sequence[int]) -> float:
    """Compute L = ‖conv(K, K, padding=P, stride=S) − I₀‖²_F − max(0, M − C·ΠS), one group.

    Parameters
    ----------
    weights
        (M, C, *kernel).
    stride
        One per spatial axis; P = ⌊(k − 1)/S⌋·S.

    Returns
    -------
    float
        L ≥ 0; 0 for an orthogonal convolution.
    """
    kernel = np.asarray(weights, dtype=np.float64)
    n_out, n_in, *extent = kernel.shape
    pads = [(k - 1) // s * s for k, s in zip(extent, stride, strict=True)]
    padded = np.pad(kernel, [(0, 0), (0, 0), *((p, p) for p in pads)])
    total = 0.0
    for start in itertools.product(
        *(range(0, 2 * p + 1, s) for p, s in zip(pads, stride, strict=True))
    ):
        window = tuple(slice(a, a + k) for a, k in zip(start, extent, strict=True))
        shifted = padded[(slice(None), slice(None), *window)].reshape(n_out, -1)
        product = kernel.reshape(n_out, -1) @ shifted.T
        if start == tuple(pads):
            product = product - np.eye(n_out)
        total += float((product**2).sum())
    return float(total - max(0, n_out - n_in * int(np.prod(stride))))


def circulant_operator(weights: AnyArray, stride: int, side: int) -> FloatArray:
    """Return the matrix 𝒦 of a two-dimensional convolution with circular padding.

    Parameters
    ----------
    weights
        (M, C, k, k).
    stride
        S, on both axes.
    side
        N, the side of the output; the input's side is S·N.

    Returns
    -------
    ndarray
        (M·N², C·(S·N)²). N²·L = ‖𝒦𝒦ᵀ − I‖²_F where M ≤ C·S², else ‖𝒦ᵀ𝒦 − I‖²_F, provided that
        S·N ≥ 2k − 1 (Achour, Malgouyres and Mamalet 2022).
    """
    n_out, n_in, height, width = weights.shape
    big = stride * side
    operator = np.zeros((n_out, side, side, n_in, big, big))
    for row, column in itertools.product(range(side), repeat=2):
        for i, j in itertools.product(range(height), range(width)):
            there = ((row * stride + i) % big, (column * stride + j) % big)
            operator[:, row, column, :, there[0], there[1]] += weights[:, :, i, j]
    return operator.reshape(n_out * side * side, n_in * big * big)
