"""Layer quality and its findings, from layer states."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from filterdb.analysis.findings import KINDS
from filterdb.analysis.quality import quality_tables
from filterdb.errors import AnalysisError
from filterdb.metrics import entropy, null, orthogonality, randomness, sparsity
from filterdb.store.schema import FINDINGS, QUALITY


def rows_of(tables):
    quality, findings = quality_tables(*tables)
    assert quality.schema.equals(QUALITY.arrow)
    assert findings.schema.equals(FINDINGS.arrow)
    return quality.to_pylist(), findings.to_pylist()


def names(findings, uid):
    return [f["finding"] for f in findings if f["layer_uid"] == uid]


def low_rank(rng, n_out, n_in, spread=0.1):
    pattern = np.outer(rng.normal(size=n_out * n_in), rng.normal(size=9))
    return (pattern + spread * rng.normal(size=pattern.shape)).reshape(n_out, n_in, 3, 3)


def test_metrics_equal_the_plain_forms(rng, make_layer, make_tables):
    weights = low_rank(rng, 16, 8, 0.5)
    weights[:3, :4] *= 1e-4
    quality, _ = rows_of(make_tables([make_layer("m", "a", weights)]))
    filters = weights.reshape(-1, 9)
    sparse = sparsity.sparse_filters(filters)
    for row, values in zip(quality, (filters, filters[~sparse]), strict=True):
        h = entropy.variance_entropy_of_filters(values)
        n = float(len(values))
        assert row["entropy"] == pytest.approx(h, abs=1e-9)
        assert row["entropy_norm"] == pytest.approx(h / np.log10(9), abs=1e-9)
        assert row["t_h_ratio"] == pytest.approx(h / randomness.entropy_threshold(n), abs=1e-9)
        assert row["sparsity"] == pytest.approx(sparse.mean())
        assert row["p_random"] == pytest.approx(float(null.p_value(h, n, 9)), abs=1e-9)
        expected = float(null.expected_entropy(n, 9))
        assert row["effect_random"] == pytest.approx(1 - h / expected, abs=1e-9)
        assert row["orthogonality"] == pytest.approx(orthogonality.row_orthogonality(weights))
        assert row["null_reason"] is None
    assert [row["sparse"] for row in quality] == ["kept", "removed"]


def test_each_finding_where_it_belongs(rng, make_layer, make_tables):
    layers = {
        "nan": np.full((4, 4, 3, 3), np.nan),
        "zero": np.zeros((4, 4, 3, 3)),
        "constant": np.full((4, 4, 3, 3), -0.25),
        "dead": low_rank(rng, 16, 16, 0.4),
        "poor": low_rank(rng, 16, 16, 0.01),
        "random": rng.normal(size=(64, 32, 3, 3)),
        "few": rng.normal(size=(4, 4, 3, 3)),
        "good": low_rank(rng, 32, 32, 0.6),
    }
    layers["dead"][:4] = 0.0
    made = [make_layer("m", name, w) for name, w in layers.items()]
    made.append(make_layer("n", "copy", layers["good"], duplicate_of="m/good"))
    _, findings = rows_of(make_tables(made))
    assert names(findings, "m/nan") == ["non_finite"]
    assert names(findings, "m/zero") == ["all_zero"]
    assert names(findings, "m/constant") == ["constant"]
    assert names(findings, "m/dead")[:2] == ["dead", "sparse"]
    assert "low_diversity" in names(findings, "m/poor")
    assert "random" in names(findings, "m/random")
    assert "random_inconclusive" in names(findings, "m/few")
    assert names(findings, "m/good") == []
    assert names(findings, "n/copy") == ["duplicated"]
    assert {f["finding"] for f in findings} <= set(KINDS)
    assert all(f["severity"] == KINDS[f["finding"]].severity for f in findings)
    random = next(f for f in findings if f["finding"] == "random")
    assert random["p_value"] >= randomness.RANDOM_LEVEL
    assert random["effect"] <= randomness.RANDOM_EFFECT
    assert random["statistic"] >= random["threshold"]


def test_random_layers_are_called_random_and_family_error_is_controlled(
    rng, make_layer, make_tables
):
    made = [
        make_layer(f"m{i}", f"l{j}", rng.normal(size=(16, 16, 3, 3)))
        for i in range(20)
        for j in range(8)
    ]
    _, findings = rows_of(make_tables(made))
    random = [f for f in findings if f["finding"] == "random"]
    # Each of 20 models keeps all of its 8 layers with probability .99; effect <= .02 nearly always.
    assert len(random) >= 152


def test_a_small_deviation_is_significant_but_not_an_effect(rng, make_layer, make_tables):
    weights = rng.normal(size=(512, 512, 3, 3)).astype(np.float32)
    weights[:, :, 1, 1] *= 1.02
    quality, findings = rows_of(make_tables([make_layer("m", "a", weights)]))
    assert quality[0]["p_random"] < 1e-6
    assert quality[0]["effect_random"] < 1e-3
    assert "random" not in names(findings, "m/a")


def test_every_null_has_its_reason(rng, make_layer, make_tables):
    made = [
        make_layer("m", "nan", np.full((2, 2, 3, 3), np.inf)),
        make_layer("m", "one", rng.normal(size=(1, 1, 3, 3))),
        make_layer("m", "two", rng.normal(size=(2, 1, 3, 3))),
        make_layer("m", "pointwise", rng.normal(size=(8, 4, 1, 1))),
        make_layer("m", "huge", rng.normal(size=(2, 2, 13, 13))),
        make_layer("m", "same", np.ones((3, 3, 3, 3))),
        make_layer("m", "line", rng.normal(size=(9, 9, 9))),
        make_layer("m", "zero", np.zeros((9, 9, 3, 3))),
    ]
    quality, _ = rows_of(make_tables(made))
    metrics = (
        "sparsity",
        "entropy",
        "entropy_norm",
        "t_h_ratio",
        "p_random",
        "effect_random",
        "orthogonality",
    )
    for row in quality:
        if any(row[m] is None for m in metrics):
            assert row["null_reason"], row
    reason = {row["layer_uid"]: row["null_reason"] for row in quality if row["sparse"] == "kept"}
    assert "non-finite" in reason["m/nan"]
    assert "1 filters" in reason["m/one"]
    assert "T_H is not positive" in reason["m/two"]
    assert "one coefficient" in reason["m/pointwise"]
    assert "169 coefficients" in reason["m/huge"]
    assert "all the same" in reason["m/same"]
    assert "3x3 only" in reason["m/line"]
    assert quality[-2]["sparsity"] == 1.0


def test_empty_tables_give_empty_tables(make_tables):
    quality, findings = quality_tables(*make_tables([]))
    assert quality.num_rows == findings.num_rows == 0


def test_a_state_without_its_layer_is_an_error(rng, make_layer, make_tables):
    layers, states = make_tables([make_layer("m", "a", rng.normal(size=(2, 2, 3, 3)))])
    with pytest.raises(AnalysisError, match="m/a"):
        quality_tables(layers.slice(0, 0), states)


@pytest.fixture
def peer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchconvquality
    return torchconvquality


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(64, 3, 3, 3), (64, 64, 3, 3), (16, 1, 3, 3), (10, 7, 3, 3)])
def test_agreement_with_torchconvquality(peer, rng, make_layer, make_tables, shape):
    import torch

    weights = low_rank(rng, shape[0], shape[1], 0.3)
    weights[: shape[0] // 5] *= 1e-3
    theirs = peer.measure_conv_weight_quality(torch.from_numpy(weights))
    quality, _ = rows_of(make_tables([make_layer("m", "a", weights)]))
    kept, removed = quality
    assert kept["sparsity"] == pytest.approx(theirs["sparsity"], abs=1e-6)
    assert kept["entropy"] == pytest.approx(theirs["variance_entropy"], abs=1e-6)
    assert kept["t_h_ratio"] == pytest.approx(theirs["variance_entropy_norm"], abs=1e-6)
    assert removed["entropy"] == pytest.approx(theirs["variance_entropy_clean"], abs=1e-6)
    assert removed["t_h_ratio"] == pytest.approx(theirs["variance_entropy_clean_norm"], abs=1e-6)
    assert kept["orthogonality"] == pytest.approx(theirs["orthogonality"], abs=1e-6)


@pytest.mark.torch
def test_where_torchconvquality_is_wrong(peer, rng, make_layer, make_tables):
    import torch

    one_axis = np.zeros((4, 4, 3, 3))  # one singular value is not zero: 0·log 0
    one_axis[:, :, 0, 0] = rng.normal(size=(4, 4))
    single = rng.normal(size=(1, 8, 3, 3))  # one output channel: division by zero
    made = [make_layer("m", "axis", one_axis), make_layer("m", "single", single)]
    quality, _ = rows_of(make_tables(made))
    assert np.isnan(peer.variance_entropy(torch.from_numpy(one_axis))[0])
    assert quality[0]["entropy"] == pytest.approx(0.0, abs=1e-12)
    assert peer.orthogonality(torch.from_numpy(single)) == -np.inf
    assert quality[2]["orthogonality"] is None
    assert "fewer than two" in quality[2]["null_reason"]
    zero_row = rng.normal(size=(4, 8, 3, 3))  # a dead channel counts there as a deviation of 1
    zero_row[0] = 0.0
    ours = rows_of(make_tables([make_layer("m", "z", zero_row)]))[0][0]["orthogonality"]
    assert ours == pytest.approx(peer.orthogonality(torch.from_numpy(zero_row[1:])), abs=1e-12)
    assert abs(peer.orthogonality(torch.from_numpy(zero_row)) - ours) > 0.01
    grouped = torch.nn.Conv2d(8, 8, 3, groups=8)  # depthwise: rows that see different inputs
    assert peer.orthogonality(grouped.weight.detach()) < 1.0
    depthwise = make_layer("m", "d", grouped.weight.detach().numpy(), groups=8)
    assert rows_of(make_tables([depthwise]))[0][0]["orthogonality"] is None
