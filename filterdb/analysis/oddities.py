"""Findings that need the filters themselves, beside those that follow from layer states.

filter_metrics.md §6: repeated filters, prunable channels, outliers, few distinct values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from filterdb.analysis.findings import KINDS, FindingKind, Severity

if TYPE_CHECKING:
    from filterdb.layers.model import ConvLayer
    from filterdb.types import AnyArray

#: Share of repeated filters from which a layer is named.
REPEATED_SHARE = 0.01
#: |γ/√(v + ε)| below which BatchNorm mutes its channel.
PRUNABLE_SCALE = 1e-3
#: Distance from the median, in median absolute deviations, of an outlier.
OUTLIER_DEVIATIONS = 8.0
#: A layer of at most this many distinct values was quantised …
FEW_VALUES = 256
#: … unless it has few weights anyhow.
MANY_WEIGHTS = 4 * FEW_VALUES
#: Medians of larger layers are taken from evenly spaced weights.
_SAMPLE = 1 << 16

ODDITIES: dict[str, FindingKind] = {
    kind.name: kind
    for kind in (
        FindingKind(
            "duplicate_filters",
            "unusual",
            f"at least {REPEATED_SHARE:.0%} of the filters repeat another of the layer exactly; "
            "zero filters and 1x1 left out",
        ),
        FindingKind(
            "prunable",
            "note",
            f"BatchNorm scales channels by less than {PRUNABLE_SCALE:g}: "
            "the statistic is their share",
        ),
        FindingKind(
            "outliers",
            "note",
            f"weights lie more than {OUTLIER_DEVIATIONS:g} median absolute deviations from the "
            "median: the statistic is the largest distance",
        ),
        FindingKind(
            "few_values",
            "note",
            f"at most {FEW_VALUES} distinct values: the weights were quantised",
        ),
    )
}

#: Every finding of ``inspect``; the statistics of a store know "duplicated" alone.
INSPECT_KINDS: dict[str, FindingKind] = {
    **{name: kind for name, kind in KINDS.items() if name != "duplicated"},
    **ODDITIES,
}


@dataclass(frozen=True)
class Finding:
    """One named finding of one layer.

    Parameters
    ----------
    name, severity
        As in :data:`INSPECT_KINDS`.
    statistic, threshold, p
        The value that crossed a threshold; p where a test was made.
    detail
        One sentence.
    """

    name: str
    severity: Severity
    statistic: float | None
    threshold: float | None
    p: float | None
    detail: str


def oddities(layer: ConvLayer, weights: AnyArray) -> list[Finding]:
    """Look at one layer's weights.

    Parameters
    ----------
    layer
        The layer.
    weights
        Its canonical weights.

    Returns
    -------
    list of Finding
        In the order of :data:`ODDITIES`; none of the weights' own where they are not finite.
    """
    found = []
    if np.isfinite(weights).all():
        values = weights.reshape(-1)
        found += _repeated(weights.reshape(layer.n_filters, layer.n_coefficients))
        found += _outliers(values)
        found += _few_values(values)
    return found + _prunable(layer)


def repeated_filters(filters: AnyArray) -> int:
    """Count the filters that repeat an earlier one exactly, zero filters left out.

    Parameters
    ----------
    filters
        (n, k²) floats.

    Returns
    -------
    int
        0 to n − 1. −0 equals 0.
    """
    rows = filters[filters.any(axis=1)]
    if len(rows) < 2:
        return 0
    # Equal bits give equal sums of bits times odd numbers; unequal ones collide once in 2⁶⁴.
    bits = np.ascontiguousarray(rows + 0).view(f"u{rows.itemsize}")
    random = np.random.default_rng(0)
    keys = np.zeros(len(rows), np.uint64)
    for column in range(rows.shape[1]):
        odd = np.uint64(2 * int(random.integers(1, 1 << 62)) + 1)
        keys += bits[:, column].astype(np.uint64) * odd
        keys ^= keys >> np.uint64(29)
    keys.sort()
    return int(np.count_nonzero(keys[1:] == keys[:-1]))


def _repeated(filters: AnyArray) -> list[Finding]:
    if filters.shape[1] < 2:
        return []
    n, count = len(filters), repeated_filters(filters)
    if count < REPEATED_SHARE * n or count == 0:
        return []
    detail = f"{count:,} of {n:,} filters repeat another one exactly"
    return [_finding("duplicate_filters", count / n, REPEATED_SHARE, detail)]


def _outliers(values: AnyArray) -> list[Finding]:
    step = max(1, len(values) // _SAMPLE)
    sample = np.asarray(values[::step], dtype=np.float64)
    median = float(np.median(sample))
    deviation = float(np.median(np.abs(sample - median)))
    if deviation == 0.0 or len(values) < MANY_WEIGHTS:
        return []  # Most weights are the same (pruned, quantised), or there are too few to tell.
    limit = OUTLIER_DEVIATIONS * deviation
    far = int(np.count_nonzero(values > median + limit))
    far += int(np.count_nonzero(values < median - limit))
    if far == 0:
        return []
    largest = max(float(values.max()) - median, median - float(values.min())) / deviation
    detail = f"{far:,} of {len(values):,} weights, the farthest at {largest:.1f} deviations"
    return [_finding("outliers", largest, OUTLIER_DEVIATIONS, detail)]


def _few_values(values: AnyArray) -> list[Finding]:
    if len(values) < MANY_WEIGHTS:
        return []
    # Nearly every layer shows more values at once; only the others are sorted whole.
    if len(np.unique(values[: 4 * MANY_WEIGHTS])) > FEW_VALUES:
        return []
    distinct = len(np.unique(values))
    if not 1 < distinct <= FEW_VALUES:
        return []
    detail = f"{len(values):,} weights take {distinct} values"
    return [_finding("few_values", float(distinct), float(FEW_VALUES), detail)]


def _prunable(layer: ConvLayer) -> list[Finding]:
    if layer.read_batch_norm is None:
        return []
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.abs(layer.read_batch_norm().scale)
    count = int(np.count_nonzero(scale < PRUNABLE_SCALE))
    if count == 0:
        return []
    detail = f"BatchNorm scales {count} of {len(scale)} channels by less than {PRUNABLE_SCALE:g}"
    return [_finding("prunable", count / len(scale), 0.0, detail)]


def _finding(name: str, statistic: float, threshold: float, detail: str) -> Finding:
    severity = ODDITIES[name].severity
    return Finding(name, severity, float(statistic), float(threshold), None, detail)
