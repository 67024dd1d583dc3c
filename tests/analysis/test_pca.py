"""PCA from layer states: scikit-learn's on the raw filters, to 1e-8."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from filterdb.analysis import pca
from filterdb.analysis.basis import Basis, principal_components
from filterdb.analysis.config import AnalysisConfig
from filterdb.analysis.population import averaged, kernel_states, units
from filterdb.errors import AnalysisError, UnknownNameError
from filterdb.store.schema import BASES, RESULTS
from filterdb.testing import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("pca"), n_models=9)


def scaled_filters(store, kernel="3x3", where=None, sparse="kept", scaling="max_abs"):
    parts, models = [], []
    for block in store.filters(kernel, where=where):
        values = block.values.astype(np.float64)
        peak = np.abs(values).max(axis=1)
        keep = peak >= 0.01 * peak.max() if sparse == "removed" else np.full(len(values), True)
        if scaling == "max_abs":
            values = values / np.where(peak == 0, 1, peak)[:, None]
        parts.append(values[keep])
        models += [block.layer["model_id"]] * int(keep.sum())
    return np.concatenate(parts), np.array(models)


def same_up_to_sign(found, expected):
    signs = np.sign((found * expected).sum(axis=1))
    np.testing.assert_allclose(found, expected * signs[:, None], atol=1e-8)


@pytest.mark.parametrize("scaling", ["max_abs", "none"])
@pytest.mark.parametrize("sparse", ["kept", "removed"])
@pytest.mark.parametrize("kernel", ["3x3", "7x7"])
def test_equals_scikit_learn(store, kernel, sparse, scaling):
    config = AnalysisConfig(by=(), weighting="filter", sparse=sparse, scaling=scaling)
    basis = pca.basis_of(
        kernel_states(store.layers.arrow, store.layer_states.arrow, kernel, config), config, ""
    )
    filters, _ = scaled_filters(store, kernel, None, sparse, scaling)
    expected = PCA().fit(filters)
    assert basis.n_filters == len(filters)
    np.testing.assert_allclose(basis.mean, expected.mean_, atol=1e-8)
    np.testing.assert_allclose(basis.eigenvalues, expected.explained_variance_, atol=1e-8)
    np.testing.assert_allclose(basis.evr, expected.explained_variance_ratio_, atol=1e-8)
    same_up_to_sign(basis.components, expected.components_)


def test_groups_equal_scikit_learn_too(store):
    config = AnalysisConfig(by=("task", "depth_decile"), weighting="filter", draws=5)
    _, bases = pca.analyse(store, config)
    assert bases.schema.equals(BASES.arrow)
    rows = [r for r in bases.to_pylist() if r["kernel"] == "3x3"]
    assert {r["axis"] for r in rows} == {"*", "task", "depth_decile"}
    for row in rows[1:]:
        filters, models = scaled_filters(store, where=f"{row['axis']} = '{row['group']}'")
        expected = PCA().fit(filters)
        assert (row["n_filters"], row["n_models"]) == (len(filters), len(set(models)))
        np.testing.assert_allclose(row["evr"], expected.explained_variance_ratio_, atol=1e-8)
        same_up_to_sign(np.reshape(row["components"], (9, 9)), expected.components_)


def test_models_weigh_equally_by_default(store):
    config = AnalysisConfig(by=())
    states = kernel_states(store.layers.arrow, store.layer_states.arrow, "3x3", config)
    basis = pca.basis_of(states, config, "")
    filters, models = scaled_filters(store)
    weights = np.array([1.0 / (models == m).sum() for m in models])
    weights /= weights.sum()
    mean = weights @ filters
    covariance = (filters - mean).T @ ((filters - mean) * weights[:, None])
    np.testing.assert_allclose(basis.mean, mean, atol=1e-10)
    np.testing.assert_allclose(basis.eigenvalues, np.linalg.eigvalsh(covariance)[::-1], atol=1e-10)


def test_folded_weights_change_raw_sums_but_not_shapes(store):
    by_weights = {}
    for weights in ("raw", "folded"):
        for scaling in ("none", "max_abs"):
            config = AnalysisConfig(by=(), weights=weights, scaling=scaling)
            states = kernel_states(store.layers.arrow, store.layer_states.arrow, "3x3", config)
            by_weights[weights, scaling] = pca.basis_of(states, config, "").evr
    np.testing.assert_allclose(
        by_weights["raw", "max_abs"], by_weights["folded", "max_abs"], atol=1e-6
    )
    assert np.abs(by_weights["raw", "none"] - by_weights["folded", "none"]).max() > 1e-4


def test_results_have_intervals_that_hold_the_estimate(store):
    results, _ = pca.analyse(store, AnalysisConfig(by=("architecture",)))
    assert results.schema.equals(RESULTS.arrow)
    rows = results.to_pylist()
    assert sum(
        r["value"] for r in rows if r["axis"] == "*" and r["kernel"] == "3x3"
    ) == pytest.approx(1)
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["null_reason"] is None
    again, _ = pca.analyse(store, AnalysisConfig(by=("architecture",)))
    assert again.equals(results)


def test_adding_a_grouping_changes_nothing_else(store):
    one, _ = pca.analyse(store, AnalysisConfig(by=("task",), draws=20))
    two, _ = pca.analyse(store, AnalysisConfig(by=("architecture", "task"), draws=20))
    rows = [r for r in two.to_pylist() if r["axis"] != "architecture"]
    assert rows == one.to_pylist()


def test_too_few_models_or_filters_are_said(tmp_path):
    store = make_store(tmp_path, n_models=2)
    results, bases = pca.analyse(store, AnalysisConfig(by=("model_id",)))
    rows = results.to_pylist()
    reasons = {r["null_reason"] for r in rows}
    assert "interval: 1 models, 3 needed" in reasons
    few = [r for r in rows if r["value"] is None]
    assert few
    assert all("needed" in r["null_reason"] for r in few)
    assert not any(
        b["kernel"] == few[0]["kernel"] and b["axis"] == "model_id" for b in bases.to_pylist()
    )
    with pytest.raises(UnknownNameError, match="11x11"):
        pca.analyse(store, AnalysisConfig(kernels=("11x11",)))


def test_fully_connected_and_shared_layers_do_not_count(rng, make_layer, make_tables):
    made = [
        make_layer("a", "one", rng.normal(size=(8, 8, 3, 3))),
        make_layer("a", "fc", rng.normal(size=(8, 8, 3, 3)), role="fc_as_conv"),
        make_layer("a", "again", rng.normal(size=(8, 8, 3, 3)), shared_with="a/one"),
        make_layer("b", "copy", rng.normal(size=(8, 8, 3, 3)), duplicate_of="a/one"),
        make_layer("b", "bad", np.full((8, 8, 3, 3), np.nan)),
    ]
    layers, states = make_tables(made)
    found = kernel_states(layers, states, "3x3", AnalysisConfig())
    assert found.rows.tolist() == [0, 3]
    assert found.model.tolist() == [0, 1]


def test_no_layer_at_all_is_no_group(make_tables):
    layers, states = make_tables([])
    config = AnalysisConfig()
    found = kernel_states(layers, states, "3x3", config)
    assert len(units(found, np.zeros(0, dtype=bool), "model")) == 0
    with pytest.raises(AnalysisError, match="no PCA of 3x3"):
        pca.basis_of(found, config, "")


def test_merging_layers_in_any_order_gives_the_same_group(store):
    config = AnalysisConfig(by=())
    states = kernel_states(store.layers.arrow, store.layer_states.arrow, "3x3", config)
    mask = np.zeros(len(states.rows), dtype=bool)
    mask[::2] = True
    for weighting in ("filter", "model"):
        merged = units(states, mask, weighting)
        mean, covariance, _ = averaged(merged)
        alone = averaged(merged, np.eye(len(merged)))
        weight = merged.weight / merged.weight.sum()
        np.testing.assert_allclose(mean[0], weight @ alone[0], atol=1e-13)
        assert covariance.shape == (1, 9, 9)


def test_sign_rule_and_order():
    values, components = principal_components(np.diag([1.0, 3.0, 2.0]))
    assert values.tolist() == [3.0, 2.0, 1.0]
    assert components.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    rng = np.random.default_rng(5)
    _, components = principal_components(np.cov(rng.normal(size=(9, 40))))
    peaks = components[np.arange(9), np.abs(components).argmax(axis=1)]
    assert (peaks > 0).all()


def test_a_row_of_bases_is_a_basis_that_projects(store):
    _, bases = pca.analyse(store, AnalysisConfig(by=("task",), weighting="filter", draws=2))
    row = next(r for r in bases.to_pylist() if r["group"] == "ocr" and r["kernel"] == "3x3")
    basis = Basis.from_row(row)
    raw = np.concatenate([b.values for b in store.filters("3x3", where="task = 'ocr'", dtype="f8")])
    coefficients = basis.project(raw)
    np.testing.assert_allclose(coefficients.mean(axis=0), 0.0, atol=1e-12)
    variances = coefficients.var(axis=0, ddof=1)
    np.testing.assert_allclose(variances, basis.eigenvalues, rtol=1e-9)


def test_basis_file_round_trip(store, tmp_path):
    config = AnalysisConfig(by=())
    states = kernel_states(store.layers.arrow, store.layer_states.arrow, "3x3", config)
    basis = pca.basis_of(states, config, "abc")
    basis.save(tmp_path / "basis.json")
    again = Basis.load(tmp_path / "basis.json")
    for name in ("mean", "components", "eigenvalues", "evr"):
        assert (getattr(again, name) == getattr(basis, name)).all()
    for name in (
        "kernel",
        "n_models",
        "n_filters",
        "weighting",
        "scaling",
        "sparse",
        "fingerprint",
    ):
        assert getattr(again, name) == getattr(basis, name)
    (tmp_path / "other.json").write_text('{"format": "filterdb-basis", "version": 7}')
    with pytest.raises(AnalysisError, match="version 7"):
        Basis.load(tmp_path / "other.json")
    (tmp_path / "text").write_text("no json")
    with pytest.raises(AnalysisError, match="no basis"):
        Basis.load(tmp_path / "text")


def test_config_refuses_what_it_cannot_do():
    with pytest.raises(AnalysisError, match="layer states"):
        AnalysisConfig(scaling="l2")
    with pytest.raises(UnknownNameError, match="weighting"):
        AnalysisConfig(weighting="models")
    with pytest.raises(AnalysisError, match="at least 1"):
        AnalysisConfig(draws=0)
    compatible = AnalysisConfig(compat="cnn-filter-db")
    assert (compatible.weighting, compatible.sparse, compatible.bins) == ("filter", "removed", 70)
    assert compatible.fingerprint("pca", "1", "x") != AnalysisConfig().fingerprint("pca", "1", "x")
    named = AnalysisConfig(by=("task",)).fingerprint("pca", "1", "x")
    assert named == AnalysisConfig().fingerprint("pca", "1", "x")
