"""Checks of one checkpoint."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filterdb.analysis.inspect import InspectReport, SourceInfo, inspect_layers
from filterdb.analysis.measured import METRICS
from filterdb.analysis.oddities import INSPECT_KINDS, repeated_filters
from filterdb.analysis.quality import quality_tables
from filterdb.analysis.reference import Reference, half_decade, reference_of
from filterdb.errors import IncompleteStoreError
from filterdb.layers.detect import find_layers
from filterdb.layers.raw import RawModel, Tensor
from filterdb.store import open_store
from filterdb.store.writer import commit, locked
from filterdb.testing import make_store

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = SourceInfo("net.pt", "torch", "0" * 64, 123)


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _report(arrays: dict[str, np.ndarray], **options: Reference) -> InspectReport:
    tensors = tuple(Tensor(n, a.shape, a.dtype.name, partial(_same, a)) for n, a in arrays.items())
    return inspect_layers(find_layers(RawModel("test", tensors)), SOURCE, **options)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def _names(report: InspectReport, layer: int = 0) -> list[str]:
    return [f.name for f in report.layers[layer].findings]


def test_json_is_what_the_contract_says() -> None:
    arrays = {"conv.weight": _normal(8, 3, 3, 3), "conv.bias": np.zeros(8, np.float32)}
    report = _report(arrays)
    record = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert list(record) == ["schema", "source", "summary", "layers", "skipped", "population"]
    assert record["source"] == {
        "uri": "net.pt", "format": "torch", "sha256": "0" * 64, "bytes": 123,
    }  # fmt: skip
    assert record["summary"]["n_layers"] == 1
    assert record["summary"]["n_filters"] == 24
    assert record["summary"]["kernels"] == {"3x3": 24}
    assert record["population"] is None
    (layer,) = record["layers"]
    assert (layer["name"], layer["kernel"], layer["role"], layer["dtype"]) == (
        "conv", "3x3", "stem", "float32",
    )  # fmt: skip
    assert (layer["in_channels"], layer["out_channels"], layer["groups"]) == (3, 8, 1)
    assert list(layer["metrics"]) == list(METRICS)
    for metric in layer["metrics"].values():
        assert set(metric) == {"value", "percentile", "reason"}
        assert metric["reason"]  # there is no population
    assert record["skipped"][0] == {
        "tensor": "conv.bias", "shape": [8], "dtype": "float32", "reason": "bias",
        "detail": "of conv",
    }  # fmt: skip


def test_metrics_are_those_of_a_store() -> None:
    weights = _normal(16, 4, 3, 3)
    report = _report({"conv.weight": weights})
    from filterdb.stats.state import layer_state
    from filterdb.store.schema import LAYER_STATES

    row = {"layer_uid": "m/a", "weights": "raw", **layer_state(weights).to_record()}
    layers = pa.table(
        {"layer_uid": ["m/a"], "model_id": ["m"], "kernel": ["3x3"],
         "duplicate_of": pa.nulls(1, pa.string())}
    )  # fmt: skip
    quality, _ = quality_tables(layers, pa.Table.from_pylist([row], LAYER_STATES.arrow))
    expected = quality.to_pylist()[0]
    assert expected["sparse"] == "kept"
    for name, metric in report.layers[0].metrics.items():
        assert metric.value == expected[name], name


def test_broken_layers_are_defects_with_null_metrics() -> None:
    bad = _normal(8, 4, 3, 3)
    bad[0, 0, 0, 0] = np.nan
    arrays = {
        "a.weight": bad,
        "b.weight": np.zeros((8, 8, 3, 3), np.float32),
        "c.weight": np.full((8, 8, 3, 3), 0.5, np.float32),
    }
    report = _report(arrays)
    assert [_names(report, i)[:1] for i in range(3)] == [
        ["non_finite"], ["all_zero"], ["constant"],
    ]  # fmt: skip
    assert {INSPECT_KINDS[n].severity for n in ("non_finite", "all_zero", "constant")} == {"defect"}
    assert all(m.value is None and m.reason for m in report.layers[0].metrics.values())
    text = "\n".join(report.text())
    assert "defect: non_finite in 1 of 3 layers" in text
    json.dumps(report.to_json(), allow_nan=False)


def test_gaussian_weights_look_random_and_structured_ones_do_not() -> None:
    flat = np.einsum("oi,hw->oihw", _normal(64, 32), np.ones((3, 3), np.float32))
    flat += 0.01 * _normal(64, 32, 3, 3)
    report = _report({"a.weight": _normal(32, 32, 3, 3), "b.weight": flat})
    assert "random" in _names(report, 0)
    assert "random" not in _names(report, 1)
    assert "low_diversity" in _names(report, 1)


def test_repeated_filters_outliers_few_values_and_prunable_channels() -> None:
    repeated = _normal(64, 8, 3, 3)
    repeated[32:] = repeated[:32]
    far = _normal(64, 64, 3, 3)
    far[3, 3, 1, 1] = 100.0
    coarse = np.round(_normal(64, 64, 3, 3) * 20) / 20
    scale = np.ones(64, np.float32)
    scale[:5] = 1e-5
    arrays = {
        "s.0.weight": repeated,
        "s.1.weight": scale,
        "s.1.bias": scale,
        "s.1.running_mean": scale,
        "s.1.running_var": np.ones(64, np.float32),
        "far.weight": far,
        "coarse.weight": coarse.astype(np.float32),
    }
    report = _report(arrays)
    found = {r.layer.name: {f.name: f for f in r.findings} for r in report.layers}
    assert found["s.0"]["duplicate_filters"].statistic == 0.5
    assert found["s.0"]["prunable"].statistic == 5 / 64
    assert found["far"]["outliers"].statistic > 100
    assert "duplicate_filters" not in found["far"]
    assert found["coarse"]["few_values"].statistic == len(np.unique(coarse.astype(np.float32)))
    assert "few_values" not in found["s.0"]


@given(
    st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.0, -2.5]), min_size=4, max_size=4)),
    st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_repeated_filters_are_counted_exactly(rows: list[list[float]], dtype: type) -> None:
    filters = np.array(rows, dtype).reshape(-1, 4)
    others = {tuple(r) for r in (filters + 0).tolist() if any(r)}
    nonzero = sum(1 for r in filters.tolist() if any(r))
    assert repeated_filters(filters) == max(0, nonzero - len(others))


def test_shared_weights_count_once_and_report_twice() -> None:
    weights = _normal(8, 8, 3, 3)
    tensors = tuple(
        Tensor(n, weights.shape, "float32", partial(_same, weights), storage=("s",))
        for n in ("a.weight", "b.weight")
    )
    report = inspect_layers(find_layers(RawModel("test", tensors)), SOURCE)
    assert report.n_filters == 64
    assert report.layers[0].metrics == report.layers[1].metrics
    assert report.layers[0].findings == report.layers[1].findings


@pytest.mark.parametrize(
    ("n", "expected"), [(1, 0), (3, 0), (4, 1), (9, 1), (10, 2), (31, 2), (32, 3), (10**6, 12)]
)
def test_half_decades(n: int, expected: int) -> None:
    assert half_decade(n) == expected


def _population(n_models: int, layers_each: int) -> Reference:
    n = n_models * layers_each
    return Reference(
        store="store",
        n_models=n_models,
        places={("spatial", "3x3", half_decade(64)): np.arange(n)},
        model=np.repeat(np.arange(n_models), layers_each),
        values={name: np.linspace(0, 1, n, endpoint=False) for name in METRICS},
    )


def test_percentiles_need_enough_layers_of_enough_models() -> None:
    arrays = {"stem.weight": _normal(4, 3, 3, 3), "a.weight": _normal(16, 4, 3, 3)}
    arrays["head.weight"] = _normal(2, 16, 1, 1)
    report = _report(arrays, population=_population(20, 10))
    metric = report.layers[1].metrics["entropy_norm"]
    assert metric.value is not None
    # 200 values 0, .005, …: those below x are ceil(200 x).
    assert metric.percentile == int(100 * np.ceil(200 * metric.value) / 200)
    assert metric.reason is None
    assert report.layers[0].metrics["entropy_norm"].reason == "no comparable layers"
    for small in (_population(19, 20), _population(20, 9)):
        few = _report(arrays, population=small).layers[1].metrics["entropy_norm"]
        assert few.percentile is None
        assert "too few comparable layers" in (few.reason or "")
    assert report.to_json()["population"] == {"store": "store", "n_models": 20}
    assert any("[" in line for line in report.text())


def _with_column(table: pa.Table, name: str, values: list[str | None]) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), [values])


def test_reference_leaves_out_twins_duplicates_and_shared_layers(tmp_path: Path) -> None:
    store = make_store(tmp_path, n_models=4)
    quality, findings = quality_tables(store.layers.arrow, store.layer_states.arrow)
    layers, models = store.layers.arrow, store.models.arrow
    owners = layers.column("model_id").to_pylist()
    twin, first = models.column("model_id").to_pylist()[:2]
    mine = [i for i, owner in enumerate(owners) if owner == first]
    uids = layers.column("layer_uid").to_pylist()
    shared: list[str | None] = layers.column("shared_with").to_pylist()
    duplicate: list[str | None] = layers.column("duplicate_of").to_pylist()
    shared[mine[0]], duplicate[mine[1]] = uids[mine[2]], uids[-1]
    layers = _with_column(layers, "shared_with", shared)
    layers = _with_column(layers, "duplicate_of", duplicate)
    origins = [f"arch of {m}" if m == twin else None for m in models.column("model_id").to_pylist()]
    models = _with_column(models, "init_of", origins)
    tables = {"quality": quality, "findings": findings, "layers": layers, "models": models}
    with locked(store.path):
        commit(store.path, tables=tables)

    reference = reference_of(open_store(store.path))

    expected = {
        uid
        for uid, owner, s, d in zip(uids, owners, shared, duplicate, strict=True)
        if owner != twin and s is None and d is None
    }
    rows = [
        r for r in quality.to_pylist()
        if (r["weights"], r["sparse"]) == ("raw", "kept") and r["layer_uid"] in expected
    ]  # fmt: skip
    assert reference.n_models == 3
    assert len(reference.model) == len(rows) == len(expected)
    np.testing.assert_array_equal(
        reference.values["sparsity"], np.array([r["sparsity"] for r in rows], dtype=float)
    )
    assert sum(len(place) for place in reference.places.values()) == len(rows)


def test_a_store_without_analysis_has_no_population(tmp_path: Path) -> None:
    with pytest.raises(IncompleteStoreError, match="analyze"):
        reference_of(make_store(tmp_path, n_models=1))


def test_a_model_without_convolutions_is_reported() -> None:
    report = _report({"fc.weight": _normal(4, 4)})
    assert report.to_json()["summary"]["n_layers"] == 0
    assert "0 convolutions" in report.text()[1]
