"""Shift between groups: equal to a straightforward computation from the raw filters."""

from __future__ import annotations

import itertools
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import linalg, stats
from scipy.spatial import distance

from filterdb.analysis import shift, shift_groups
from filterdb.analysis.config import AnalysisConfig
from filterdb.errors import AnalysisError, UnknownNameError
from filterdb.store.schema import HISTOGRAMS, RESULTS
from filterdb.testing import make_store
from filterdb.work import observe
from tests.analysis.scans import shifted as run

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("shift"), n_models=12)


@pytest.fixture(autouse=True)
def small_groups_count(request, monkeypatch):
    """The store of these tests is small: let a hundred filters do."""
    if "few_filters" not in request.node.name:
        monkeypatch.setattr(shift_groups, "MIN_FILTERS", 100)


def picked(results, axis, metric, a, b, component=None):
    rows = [
        r
        for r in results.to_pylist()
        if (r["axis"], r["metric"], r["group_a"], r["group_b"]) == (axis, metric, a, b)
        and r["component"] == component
    ]
    assert len(rows) == 1
    return rows[0]


class Straightforward:
    """Everything again from the filters, in plain loops, one distribution at a time."""

    def __init__(self, store, config: AnalysisConfig) -> None:
        self.config = config
        self.rows: list[dict] = []
        parts = []
        for block in store.filters("3x3"):
            values = block.values.astype(np.float64)
            peak = np.abs(values).max(axis=1)
            scaled = values / np.where(peak == 0, 1, peak)[:, None]
            if config.sparse == "removed":
                scaled = scaled[peak >= 0.01 * peak.max()]
            self.rows.append(block.layer)
            parts.append(scaled)
        models = [row["model_id"] for row in self.rows]
        size = {
            m: sum(len(p) for p, n in zip(parts, models, strict=True) if n == m) for m in models
        }
        weight = np.concatenate([
            np.full(len(p), 1.0 / size[m] if config.weighting == "model" else 1.0)
            for p, m in zip(parts, models, strict=True)
        ])  # fmt: skip
        weight /= weight.sum()
        filters = np.concatenate(parts)
        mean = weight @ filters
        covariance = (filters - mean).T @ ((filters - mean) * weight[:, None])
        values, vectors = np.linalg.eigh(covariance)
        self.evr = values[::-1] / values.sum()
        components = vectors[:, ::-1].T
        peaks = components[np.arange(9), np.abs(components).argmax(axis=1)]
        components = components * np.sign(peaks)[:, None]
        self.scaled = parts
        self.coefficients = [(p - mean) @ components.T for p in parts]
        pooled = np.concatenate(self.coefficients)
        self.edges = np.linspace(pooled.min(), pooled.max(), 71)

    def _by_model(self, parts: Sequence[np.ndarray], column: str, group: str) -> list[np.ndarray]:
        models: dict[str, list[np.ndarray]] = {}
        for row, values in zip(self.rows, parts, strict=True):
            if str(row[column]) == group:
                models.setdefault(row["model_id"], []).append(values)
        merged = [np.concatenate(v) for v in models.values()]
        return merged if self.config.weighting == "model" else [np.concatenate(merged)]

    def density(self, column: str, group: str, component: int) -> np.ndarray:
        of_model = self._by_model(self.coefficients, column, group)
        return np.mean(
            [np.histogram(v[:, component], self.edges, density=True)[0] for v in of_model], axis=0
        )

    def divergences(self, column: str, a: str, b: str) -> dict[str, float]:
        drift = jensen = 0.0
        for i, weight in enumerate(self.evr):
            p, q = self.density(column, a, i), self.density(column, b, i)
            jensen += weight * distance.jensenshannon(p, q, base=2) ** 2
            p = np.where(p == 0, np.finfo(np.float32).eps, p)
            q = np.where(q == 0, np.finfo(np.float32).eps, q)
            drift += weight * (stats.entropy(p, q) + stats.entropy(q, p))
        return {"drift": drift, "jensen_shannon": jensen, "frechet": self.frechet(column, a, b)}

    def frechet(self, column: str, a: str, b: str) -> float:
        moments = []
        for group in (a, b):
            of_model = self._by_model(self.scaled, column, group)
            mean = np.mean([v.mean(axis=0) for v in of_model], axis=0)
            second = np.mean([v.T @ v / len(v) for v in of_model], axis=0)
            moments.append((mean, second - np.outer(mean, mean)))
        (m1, c1), (m2, c2) = moments
        return float(((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real))

    def wasserstein(self, column: str, a: str, b: str, component: int) -> float:
        centres = (self.edges[1:] + self.edges[:-1]) / 2
        p, q = (self.density(column, group, component) for group in (a, b))
        return float(stats.wasserstein_distance(centres, centres, p, q))


@pytest.mark.parametrize(
    "settings",
    [{}, {"weighting": "filter"}, {"compat": "cnn-filter-db"}, {"sparse": "removed"}],
    ids=["default", "by filter", "compatible", "sparse removed"],
)
def test_equals_a_straightforward_computation_from_the_raw_filters(store, settings):
    config = AnalysisConfig(by=("task", "depth_decile"), draws=2, permutations=2, **settings)
    results, _ = run(store, config)
    assert results.schema.equals(RESULTS.arrow)
    plain = Straightforward(store, config)
    for axis in config.by:
        groups = sorted({str(row[axis]) for row in plain.rows})
        for a, b in itertools.combinations(groups, 2):
            for metric, value in plain.divergences(axis, a, b).items():
                tolerance = 1e-9 if metric != "frechet" else 1e-7  # of sqrtm, not of ours
                found = picked(results, axis, metric, a, b)["value"]
                assert found == pytest.approx(value, abs=tolerance), (a, b, metric)
        for component in (1, 9):
            found = picked(results, axis, "wasserstein", *groups[:2], component)["value"]
            expected = plain.wasserstein(axis, *groups[:2], component - 1)
            assert found == pytest.approx(expected, abs=1e-9)


def test_rest_is_all_other_groups(store):
    results, _ = run(
        store,
        AnalysisConfig(
            by=("task", "case task when 'ocr' then 1 else 0 end"), draws=2, permutations=2
        ),
    )
    against_rest = picked(results, "task", "drift", "ocr", "*")["value"]
    other = picked(results, "case task when 'ocr' then 1 else 0 end", "drift", "0", "1")["value"]
    assert against_rest == pytest.approx(other, rel=1e-12)


def test_tables_are_the_same_however_the_scan_was_cut(store, monkeypatch):
    config = AnalysisConfig(by=("task",), draws=10, permutations=10)
    whole = run(store, config)
    monkeypatch.setattr(shift, "TASK_BYTES", 5_000)
    tasks = shift.scan_tasks(store, config)
    assert len(tasks) > len({t.shard_path for t in tasks})
    cut = run(store, config, tasks[::-1])
    assert whole[0].equals(cut[0])
    assert whole[1].equals(cut[1])


def test_tasks_are_a_path_and_integers(store):
    tasks = shift.scan_tasks(store, AnalysisConfig())
    layers = store.layers.to_pylist()
    seen = [row for task in tasks for row, _, _ in task.rows]
    assert len(seen) == len(set(seen))
    expected = [
        i
        for i, row in enumerate(layers)
        if row["kernel"] == "3x3" and row["shared_with"] is None and row["role"] != "fc_as_conv"
    ]
    assert sorted(seen) == expected
    assert len(pickle.dumps(tasks)) < 10_000


def test_histograms_are_shares_on_one_scale(store):
    _, histograms = run(store, AnalysisConfig(by=("task",), draws=2, permutations=2))
    assert histograms.schema.equals(HISTOGRAMS.arrow)
    rows = histograms.to_pylist()
    assert len({(r["low"], r["high"]) for r in rows}) == 1
    for row in rows:
        assert len(row["mass"]) == 70
        assert sum(row["mass"]) == pytest.approx(1.0, abs=1e-12)
    whole = [r for r in rows if r["axis"] == "*"]
    assert [r["component"] for r in whole] == list(range(1, 10))
    assert whole[0]["n_models"] == 12
    parts = [r for r in rows if r["axis"] == "task" and r["component"] == 1]
    mixed = sum(r["n_models"] * np.array(r["mass"]) for r in parts) / 12
    np.testing.assert_allclose(mixed, whole[0]["mass"], atol=1e-12)


def test_uncertainty_is_stated_or_its_absence_explained(store):
    pair = "case when model_id < 'model-010' then 'a' else 'b' end"
    results, _ = run(
        store,
        AnalysisConfig(by=("task", "model_id", "depth_decile", pair), draws=40, permutations=99),
    )
    for row in results.to_pylist():
        complete = all(row[c] is not None for c in ("low", "high", "noise_floor", "p_value"))
        assert complete == (row["null_reason"] is None), row
        assert row["value"] is not None
        if row["low"] is not None:
            assert 0.0 <= row["low"] <= row["high"]
            assert row["low"] - 1e-12 <= row["value"] <= row["high"] + 1e-12
        if row["p_value"] is not None:
            assert 1 / 100 <= row["p_value"] <= 1.0
            assert row["q_value"] >= row["p_value"] - 1e-12
    single = picked(results, "model_id", "drift", "model-000", "model-001")
    assert "interval: 1 against 1 models, 3 against 3 needed" in single["null_reason"]
    assert single["low"] is None
    two = picked(results, pair, "drift", "b", "b")
    assert two["low"] is None
    assert "halves of 2 models" in two["null_reason"]
    decile = picked(results, "depth_decile", "drift", "1", "2")
    assert decile["p_value"] is not None
    assert (decile["n_models"], decile["n_models_b"]) == (12, 12)


def test_few_models_are_tested_in_every_way_there_is(store):
    results, _ = run(store, AnalysisConfig(by=("task",), draws=5))
    models = [r["task"] for r in store.models.to_pylist()]
    pairs = [
        r
        for r in results.to_pylist()
        if r["metric"] == "drift" and r["group_b"] not in ("*", r["group_a"])
    ]
    assert pairs
    for row in pairs:
        assert {models.count(row["group_a"]), models.count(row["group_b"])} == {3}
        assert row["p_value"] * 10 == round(row["p_value"] * 10) >= 1
    seeded, _ = run(store, AnalysisConfig(by=("task",), draws=5, seed=3))
    again = [picked(seeded, "task", "drift", r["group_a"], r["group_b"]) for r in pairs]
    assert [(r["p_value"], r["noise_floor"]) for r in again] == [
        (r["p_value"], r["noise_floor"]) for r in pairs
    ]


def test_few_filters_are_said_and_not_tested(store):
    results, _ = run(store, AnalysisConfig(by=("depth_decile",), draws=5, permutations=5))
    row = picked(results, "depth_decile", "drift", "2", "*")
    assert row["null_reason"] == "no interval, not tested: 192 filters in 2, 1,000 needed"
    assert row["low"] is row["p_value"] is row["q_value"] is None
    assert row["value"] > row["noise_floor"] > 0


def test_halves_of_a_group_show_the_noise(store):
    results, _ = run(store, AnalysisConfig(by=("task", "architecture"), draws=40, permutations=2))
    half = picked(results, "task", "drift", "ocr", "ocr")
    between = picked(results, "task", "drift", "classification", "super_resolution")
    assert 0 < half["value"] < between["value"]
    assert (half["n_models"], half["n_models_b"]) == (1, 2)
    assert half["p_value"] is None
    of_four = picked(results, "architecture", "drift", "unet", "unet")
    assert of_four["low"] < of_four["value"] < of_four["high"]


def test_seed_decides(store):
    drift = [
        picked(
            run(store, AnalysisConfig(by=("task",), draws=20, permutations=20, seed=s))[0],
            "task",
            "drift",
            "ocr",
            "*",
        )
        for s in (0, 0, 1)
    ]
    assert drift[0] == drift[1]
    assert drift[0]["value"] == drift[2]["value"]
    assert drift[0]["noise_floor"] != drift[2]["noise_floor"]


def test_other_kernels_on_request(store):
    config = AnalysisConfig(by=("task",), kernels=("7x7", "5x5"), draws=2, permutations=2)
    results, histograms = run(store, config)
    assert set(results["kernel"].to_pylist()) == {"7x7", "5x5"}
    assert max(histograms["component"].to_pylist()) == 49


def test_a_kernel_that_is_not_there_is_named(store):
    with pytest.raises(UnknownNameError, match="no kernel '1x1'"):
        shift.scan_tasks(store, AnalysisConfig(kernels=("1x1",)))


def test_a_store_without_3x3_has_no_tasks_and_empty_tables(store):
    config = AnalysisConfig(by=("task",), kernels=())
    assert shift.scan_tasks(store, config) == []
    results, histograms = run(store, config)
    assert results.num_rows == histograms.num_rows == 0


def test_folded_weights_are_refused(store):
    with pytest.raises(AnalysisError, match="without BatchNorm"):
        shift.scan_tasks(store, AnalysisConfig(weights="folded"))


def test_a_scan_that_does_not_fit_the_states_is_an_error(store):
    config = AnalysisConfig(by=("task",), draws=2, permutations=2)
    tasks = shift.scan_tasks(store, config)
    bases = shift.reference_bases(store, config)
    ranges = [observe.coefficient_range(t, bases[t.kernel]) for t in tasks]
    edges = shift.bin_edges(tasks, ranges, 70)
    counts = [observe.coefficient_histogram(t, bases[t.kernel], edges["3x3"]) for t in tasks]
    with pytest.raises(AnalysisError, match="not scanned"):
        shift.analyse(store, config, tasks[1:], ranges[1:], counts[1:])
    counts[0] = counts[0] + 1
    with pytest.raises(AnalysisError, match="its state counts"):
        shift.analyse(store, config, tasks, ranges, counts)


def test_bins_of_a_single_value():
    task = shift.ScanTask("x", "2d/3x3/float32", "3x3", ((0, 0, 1),))
    edges = shift.bin_edges([task], [np.array([[2.0, 2.0]])], 4)["3x3"]
    assert edges.tolist() == [1.5, 1.75, 2.0, 2.25, 2.5]
    nothing = shift.bin_edges([task], [np.array([[np.inf, -np.inf]])], 4)["3x3"]
    assert np.isfinite(nothing).all()
