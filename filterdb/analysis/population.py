"""Layer states of one kernel, merged into one unit per model.

A unit is what is resampled, permuted and averaged: models are independent of one another, the
filters of one model are not (filter_metrics.md §5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.analysis.tables import ListColumn, floats, kernel_sizes, strings
from filterdb.stats.state import unpack_scatter

if TYPE_CHECKING:
    from filterdb.analysis.config import AnalysisConfig
    from filterdb.types import AnyArray, FloatArray, Weighting


@dataclass(frozen=True)
class KernelStates:
    """The layers of one kernel that an analysis counts.

    Parameters
    ----------
    kernel
        "3x3".
    rows
        (layers,) row numbers in the table ``layers``, ascending.
    model
        (layers,) a number for each model.
    n
        (layers,) filters that count.
    moments
        (layers, k² + k⁴) Σf then Σffᵀ of the scaled filters that count.
    counts
        (layers, k²·bins) coefficients per component and bin, after a scan.
    """

    kernel: str
    rows: AnyArray
    model: AnyArray
    n: FloatArray
    moments: FloatArray
    counts: FloatArray | None = None

    @property
    def n_coefficients(self) -> int:
        """k²."""
        return _side(self.moments.shape[1])

    def only(self, chosen: AnyArray) -> KernelStates:
        """Return some of the layers.

        Parameters
        ----------
        chosen
            (layers,) bool.

        Returns
        -------
        KernelStates
            A copy.
        """
        counts = None if self.counts is None else self.counts[chosen]
        return KernelStates(
            self.kernel,
            self.rows[chosen],
            self.model[chosen],
            self.n[chosen],
            self.moments[chosen],
            counts,
        )

    def with_counts(self, counts: FloatArray) -> KernelStates:
        """Return the same layers with their histograms.

        Parameters
        ----------
        counts
            (layers, k², bins).

        Returns
        -------
        KernelStates
            A copy.
        """
        return replace(self, counts=counts.reshape(len(self.rows), -1))


@dataclass(frozen=True)
class Units:
    """Sums per model, in the form in which groups are averages of units.

    Parameters
    ----------
    model
        (units,) model numbers, ascending.
    n
        (units,) filters.
    weight
        (units,) 1 where models weigh equally, else the filters.
    moments
        (units, k² + k⁴) first and second moments, times `weight`.
    counts
        (units, k²·bins) shares per bin, times `weight`; no columns before a scan.
    """

    model: AnyArray
    n: FloatArray
    weight: FloatArray
    moments: FloatArray
    counts: FloatArray

    @property
    def n_filters(self) -> int:
        """Filters of all units."""
        return int(self.n.sum())

    def __len__(self) -> int:
        return len(self.model)


def included_layers(layers: Any) -> AnyArray:
    """Return which rows of ``layers`` analyses count.

    Parameters
    ----------
    layers
        Arrow table.

    Returns
    -------
    ndarray
        (rows,) bool. Left out are fully connected layers stored as convolutions, and further uses
        of shared weights, which are stored once. Copies of weights in another model stay: each
        model counts for what it is.
    """
    role, shared = strings(layers, "role"), strings(layers, "shared_with")
    pairs = zip(role, shared, strict=True)
    return np.array([r != "fc_as_conv" and s is None for r, s in pairs], dtype=bool)


def kernels_of(layers: Any) -> dict[str, int]:
    """Return the kernels with a shape, and how many filters of each are counted.

    Parameters
    ----------
    layers
        Arrow table.

    Returns
    -------
    dict
        In order of falling count, then of name.
    """
    included, sizes = included_layers(layers), kernel_sizes(layers)
    totals: dict[str, int] = {}
    rows = zip(strings(layers, "kernel"), floats(layers, "n_filters"), included, sizes, strict=True)
    for kernel, n, counted, size in rows:
        if counted and size > 1:
            totals[str(kernel)] = totals.get(str(kernel), 0) + int(n)
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def kernel_states(layers: Any, states: Any, kernel: str, config: AnalysisConfig) -> KernelStates:
    """Gather the states of one kernel.

    Parameters
    ----------
    layers, states
        Arrow tables.
    kernel
        "3x3".
    config
        Weights, scaling and treatment of sparse filters.

    Returns
    -------
    KernelStates
        Layers whose state is null (non-finite weights, kernels too large) are left out. With
        folded weights, a layer without a folded state is its own folded form.
    """
    at = _state_rows(layers, states, kernel, config.weights)
    rows = np.array(sorted(at), dtype=np.int64)
    chosen = np.array([at[row] for row in rows], dtype=np.int64)
    prefix = "scaled_" if config.scaling == "max_abs" else ""
    size = int(kernel_sizes(layers.slice(int(rows[0]), 1))[0]) if len(rows) else 1
    total = ListColumn(states, f"{prefix}sum").matrix(chosen)
    triangle = ListColumn(states, f"{prefix}scatter").matrix(chosen)
    n = floats(states, "n")[chosen]
    if config.sparse == "removed":
        total = total - ListColumn(states, f"sparse_{prefix}sum").matrix(chosen)
        triangle = triangle - ListColumn(states, f"sparse_{prefix}scatter").matrix(chosen)
        n = n - floats(states, "n_sparse_01")[chosen]
    if len(rows):
        scatter = unpack_scatter(triangle, size).reshape(len(rows), -1)
    else:
        total, scatter = np.zeros((0, 1)), np.zeros((0, 1))
    numbers = model_numbers(layers)
    return KernelStates(kernel, rows, numbers[rows], n, np.hstack([total, scatter]))


def model_numbers(layers: Any) -> AnyArray:
    """Return a number for the model of every row of ``layers``, by first appearance.

    Parameters
    ----------
    layers
        Arrow table.

    Returns
    -------
    ndarray
        (rows,) int64.
    """
    numbers: dict[str | None, int] = {}
    models = strings(layers, "model_id")
    return np.array([numbers.setdefault(m, len(numbers)) for m in models], dtype=np.int64)


def _state_rows(layers: Any, states: Any, kernel: str, weights: str) -> dict[int, int]:
    """Row of ``layers`` → row of ``layer_states``."""
    included = included_layers(layers)
    position = {
        uid: i
        for i, (uid, name) in enumerate(
            zip(strings(layers, "layer_uid"), strings(layers, "kernel"), strict=True)
        )
        if name == kernel and included[i]
    }
    present = ListColumn(states, "scatter").lengths >= 0
    found: dict[int, int] = {}
    uids, kinds = strings(states, "layer_uid"), strings(states, "weights")
    for wanted in ("raw",) if weights == "raw" else ("raw", "folded"):
        for i, (uid, kind) in enumerate(zip(uids, kinds, strict=True)):
            row = position.get(uid) if kind == wanted else None
            if row is None:
                continue
            if present[i]:
                found[row] = i
            else:
                found.pop(row, None)
    return found


def units(states: KernelStates, chosen: AnyArray, weighting: Weighting) -> Units:
    """Merge layers into one unit per model.

    Parameters
    ----------
    states
        Layers of one kernel.
    chosen
        (layers,) bool: which of them.
    weighting
        By model or by filter.

    Returns
    -------
    Units
        Models without a filter that counts have no unit.
    """
    places = np.flatnonzero(chosen & (states.n > 0))
    places = places[np.argsort(states.model[places], kind="stable")]
    models, first = np.unique(states.model[places], return_index=True)
    counts = states.counts if states.counts is not None else np.zeros((len(states.n), 0))
    if len(places) == 0:
        nothing = np.zeros(0)
        return Units(
            models,
            nothing,
            nothing,
            np.zeros((0, states.moments.shape[1])),
            np.zeros((0, counts.shape[1])),
        )
    n = np.add.reduceat(states.n[places], first)
    moments = np.add.reduceat(states.moments[places], first, axis=0)
    histogram = np.add.reduceat(counts[places], first, axis=0)
    if weighting == "filter":
        return Units(models, n, n, moments, np.asarray(histogram, dtype=np.float64))
    shares = histogram / n[:, None]
    return Units(models, n, np.ones(len(n)), moments / n[:, None], shares)


def averaged(
    group: Units, selection: FloatArray | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Average units into the mean, covariance and bin shares of a group.

    Parameters
    ----------
    group
        The units.
    selection
        (draws, units) how often each unit counts in each draw; None is once each, one draw.

    Returns
    -------
    tuple of ndarray
        (draws, k²) mean, (draws, k², k²) covariance, (draws, k²·bins) shares.
    """
    chosen = np.ones((1, len(group))) if selection is None else selection
    weight = (chosen @ group.weight)[:, None]
    moments, shares = (chosen @ group.moments) / weight, (chosen @ group.counts) / weight
    size = _side(moments.shape[1])
    mean = moments[:, :size]
    second = moments[:, size:].reshape(len(moments), size, size)
    return mean, second - mean[:, :, None] * mean[:, None, :], shares


def as_histograms(shares: FloatArray, n_components: int) -> FloatArray:
    """Return shares per component, each summing to 1 but for rounding.

    Parameters
    ----------
    shares
        (draws, components·bins).
    n_components
        k².

    Returns
    -------
    ndarray
        (draws, components, bins).
    """
    return shares.reshape(len(shares), n_components, -1)


def _side(n_moments: int) -> int:
    """k² from k² + k⁴."""
    return round((math.sqrt(1.0 + 4.0 * n_moments) - 1.0) / 2.0)
