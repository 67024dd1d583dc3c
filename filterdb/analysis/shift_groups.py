"""The numbers of distribution shift: every pair of groups, every group against the rest."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.analysis import resampling
from filterdb.analysis.config import EVERYTHING, AnalysisConfig
from filterdb.analysis.grouping import groups_of
from filterdb.analysis.population import KernelStates, Units, as_histograms, averaged, units
from filterdb.metrics import divergence
from filterdb.metrics.randomness import benjamini_hochberg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.types import AnyArray, FloatArray

NAME, VERSION = "shift", "2"
#: One value a pair; wasserstein has one a component besides.
SCALAR_METRICS = ("drift", "jensen_shannon", "frechet")
COMPONENT_METRIC = "wasserstein"
#: Models of the smaller group below which there is no interval: what varies between one or two
#: models is not known, and resampling them would show hardly any spread.
MIN_MODELS_FOR_INTERVAL = 3
#: Filters of the smaller group below which divergences are neither tested nor given an interval:
#: plug-in D of two samples of one distribution is 1.83 at 100 filters, .17 at 1,000.
MIN_FILTERS = 1000
#: Models of a group below which its random halves have no spread to speak of.
MIN_MODELS_FOR_HALVES = 4
#: Draws measured at once: their histograms stay in the cache of a core.
DRAWS_AT_ONCE = 40


@dataclass(frozen=True)
class Scale:
    """What all groups of one kernel are measured on.

    Parameters
    ----------
    config
        Draws, seed, treatment.
    evr
        (k²,) weights of the components.
    edges
        (bins + 1,) edges of the bins.
    fingerprint
        Of the analysis.
    """

    config: AnalysisConfig
    evr: FloatArray
    edges: FloatArray
    fingerprint: str

    @property
    def bin_width(self) -> float:
        """Width of a bin."""
        return float((self.edges[-1] - self.edges[0]) / (len(self.edges) - 1))


@dataclass(frozen=True)
class _Pair:
    """Two groups, the second of which may be the rest of the axis."""

    group_a: str
    group_b: str
    first: Units
    second: Units


def histogram_rows(
    states: KernelStates, axis: str, label: list[str | None] | None, scale: Scale
) -> Iterator[dict[str, Any]]:
    """Yield rows of ``histograms`` for the groups of one grouping.

    Parameters
    ----------
    states
        Scanned layers of one kernel.
    axis
        The grouping.
    label
        Group of each layer; None puts all into one.
    scale
        Basis, bins and treatment.

    Yields
    ------
    dict
        One row a group and component.
    """
    for group, chosen in _groups(states, label):
        merged = units(states, chosen, scale.config.weighting)
        if not len(merged):
            continue
        shares = as_histograms(averaged(merged)[2], states.n_coefficients)[0]
        for component, row in enumerate(shares):
            yield {
                "analysis": NAME,
                "version": VERSION,
                "fingerprint": scale.fingerprint,
                "axis": axis,
                "group": group,
                "kernel": states.kernel,
                "component": component + 1,
                "low": float(scale.edges[0]),
                "high": float(scale.edges[-1]),
                "mass": row.tolist(),
                "n_models": len(merged),
                "n_filters": merged.n_filters,
            }


def result_rows(
    states: KernelStates, axis: str, label: list[str | None], scale: Scale
) -> list[dict[str, Any]]:
    """Compute the rows of ``results`` for one grouping.

    Parameters
    ----------
    states
        Scanned layers of one kernel.
    axis
        The grouping.
    label
        Group of each layer, None for layers outside this grouping.
    scale
        Basis, bins and treatment.

    Returns
    -------
    list of dict
        Every group against the rest (``group_b`` "*"), every pair of groups, and for every group
        of two or more models two random halves of it (``group_b`` = ``group_a``): what a pair of
        groups without any difference looks like.
    """
    weighting = scale.config.weighting
    chosen = dict(_groups(states, label))
    within = np.array([name is not None for name in label], dtype=bool)
    merged = {group: units(states, mask, weighting) for group, mask in chosen.items()}
    present = [group for group in merged if len(merged[group])]
    pairs = []
    for group in present:
        rest = units(states, within & ~chosen[group], weighting)
        if len(rest):
            pairs.append(_Pair(group, EVERYTHING, merged[group], rest))
    pairs += [_Pair(a, b, merged[a], merged[b]) for a, b in itertools.combinations(present, 2)]
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        rows.extend(_compare(pair, axis, states.kernel, scale))
    for group in present:
        rows.extend(_halves(group, merged[group], axis, states.kernel, scale))
    _adjust(rows)
    return rows


def _groups(states: KernelStates, label: list[str | None] | None) -> Iterator[tuple[str, AnyArray]]:
    if label is None:
        yield EVERYTHING, np.ones(len(states.rows), dtype=bool)
        return
    for group in groups_of(label):
        yield group, np.array([name == group for name in label], dtype=bool)


def _measure(
    first: tuple[FloatArray, FloatArray, FloatArray],
    second: tuple[FloatArray, FloatArray, FloatArray],
    scale: Scale,
) -> FloatArray:
    """All metrics of two (batches of) groups: (draws, scalar metrics + components)."""
    size = len(scale.evr)
    p, q = as_histograms(first[2], size), as_histograms(second[2], size)
    scalars = (
        divergence.drift(p, q, scale.evr, scale.bin_width),
        divergence.jensen_shannon(p, q, scale.evr),
        divergence.frechet(first[0], first[1], second[0], second[1]),
    )
    distances = divergence.wasserstein(p, q, scale.bin_width)
    return np.concatenate([np.stack(scalars, axis=-1), distances], axis=-1)


def _measure_draws(
    first: Units, in_first: FloatArray, second: Units, in_second: FloatArray, scale: Scale
) -> FloatArray:
    """All metrics of many draws: (draws, scalar metrics + components)."""
    parts = []
    for start in range(0, len(in_first), DRAWS_AT_ONCE):
        some = slice(start, start + DRAWS_AT_ONCE)
        parts.append(
            _measure(averaged(first, in_first[some]), averaged(second, in_second[some]), scale)
        )
    return np.concatenate(parts)


def _compare(pair: _Pair, axis: str, kernel: str, scale: Scale) -> Iterator[dict[str, Any]]:
    draws, first, second = scale.config.draws, pair.first, pair.second
    matched = resampling.pairing(first.model, second.model)
    value = _measure(averaged(first), averaged(second), scale)[0]
    blank = np.full_like(value, np.nan)
    low, high, floor, p = blank, blank, blank, blank
    reasons = []
    words = (NAME, axis, pair.group_a, pair.group_b, kernel)
    few = _too_few_filters(pair)
    if few is None and min(len(first), len(second)) >= MIN_MODELS_FOR_INTERVAL:
        random = resampling.generator(scale.config.seed, *words, "bootstrap")
        a, b = resampling.bootstrap(matched, draws, random)
        drawn = _measure_draws(first, a, second, b, scale)
        low, high = resampling.bias_corrected_interval(value, drawn)
        low = np.clip(low, 0.0, None)
    elif few is None:
        needed = f"{MIN_MODELS_FOR_INTERVAL} against {MIN_MODELS_FOR_INTERVAL} needed"
        reasons.append(f"interval: {len(first)} against {len(second)} models, {needed}")
    untested = few or matched.why_not_tested
    if matched.n_relabellings > 1:
        random = resampling.generator(scale.config.seed, *words, "permutation")
        both = _joined(first, second)
        # A mean needs fewer relabellings than a small p-value.
        most = scale.config.permutations if untested is None else draws
        a, exact = resampling.relabellings(matched, most, random)
        drawn = _measure_draws(both, a, both, 1.0 - a, scale)
        floor = drawn.mean(axis=0)
        if untested is None:
            p = resampling.permutation_p_value(value, drawn, exact=exact)
    else:
        reasons.append("noise_floor: there is one way to label the models")
    if untested is not None:
        reasons.append(untested)
    columns = {"value": value, "low": low, "high": high, "noise_floor": floor, "p_value": p}
    yield from _rows(pair, axis, kernel, scale, columns, "; ".join(reasons) or None)


def _too_few_filters(pair: _Pair) -> str | None:
    sides = ((pair.group_a, pair.first), (pair.group_b, pair.second))
    group, smaller = min(sides, key=lambda side: side[1].n_filters)
    if smaller.n_filters >= MIN_FILTERS:
        return None
    name = "the rest" if group == EVERYTHING else group
    have = f"{smaller.n_filters:,} filters in {name}"
    return f"no interval, not tested: {have}, {MIN_FILTERS:,} needed"


def _halves(
    group: str, members: Units, axis: str, kernel: str, scale: Scale
) -> Iterator[dict[str, Any]]:
    if len(members) < 2:
        return
    random = resampling.generator(scale.config.seed, NAME, axis, group, group, kernel, "halves")
    first = resampling.halves(len(members), scale.config.draws, random)
    drawn = _measure_draws(members, first, members, 1.0 - first, scale)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    mean = drawn.mean(axis=0)
    columns = {"value": mean, "noise_floor": mean}
    pair = _Pair(group, group, members, members)
    reason = "not tested: the group against itself, mean and spread over random halves"
    if len(members) >= MIN_MODELS_FOR_HALVES:
        columns |= {"low": low, "high": high}
    else:
        needed = f"{MIN_MODELS_FOR_HALVES} needed"
        reason = f"interval: halves of {len(members)} models, {needed}; {reason}"
    for row in _rows(pair, axis, kernel, scale, columns, reason):
        row["n_filters"] = members.n_filters
        row["n_models"], row["n_models_b"] = len(members) // 2, len(members) - len(members) // 2
        yield row


def _joined(first: Units, second: Units) -> Units:
    return Units(
        model=np.concatenate([first.model, second.model]),
        n=np.concatenate([first.n, second.n]),
        weight=np.concatenate([first.weight, second.weight]),
        moments=np.concatenate([first.moments, second.moments]),
        counts=np.concatenate([first.counts, second.counts]),
    )


def _rows(
    pair: _Pair,
    axis: str,
    kernel: str,
    scale: Scale,
    columns: dict[str, FloatArray],
    reason: str | None,
) -> Iterator[dict[str, Any]]:
    config = scale.config
    n_scalars = len(SCALAR_METRICS)
    for i in range(n_scalars + len(scale.evr)):
        row: dict[str, Any] = {
            "analysis": NAME,
            "version": VERSION,
            "fingerprint": scale.fingerprint,
            "axis": axis,
            "group_a": pair.group_a,
            "group_b": pair.group_b,
            "kernel": kernel,
            "component": None if i < n_scalars else i - n_scalars + 1,
            "metric": SCALAR_METRICS[i] if i < n_scalars else COMPONENT_METRIC,
            "n_models": len(pair.first),
            "n_models_b": len(pair.second),
            "n_filters": pair.first.n_filters + pair.second.n_filters,
            "weighting": config.weighting,
            "weights": config.weights,
            "scaling": config.scaling,
            "sparse": config.sparse,
            "null_reason": reason,
        }
        for name, values in columns.items():
            row[name] = None if np.isnan(values[i]) else float(values[i])
        yield row


def _adjust(rows: list[dict[str, Any]]) -> None:
    """Benjamini and Hochberg within one axis, kernel and metric."""
    for metric in (*SCALAR_METRICS, COMPONENT_METRIC):
        family = [row for row in rows if row["metric"] == metric]
        p = [np.nan if row.get("p_value") is None else row["p_value"] for row in family]
        adjusted = benjamini_hochberg(np.array(p, dtype=np.float64))
        for row, q in zip(family, adjusted, strict=True):
            row["q_value"] = None if np.isnan(q) else float(q)
