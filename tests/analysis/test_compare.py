"""Two checkpoints, layer by layer."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filterdb.analysis.compare import Comparison, compare_models
from filterdb.analysis.deltas import delta, stable_rank
from filterdb.analysis.inspect import SourceInfo
from filterdb.layers.detect import find_layers
from filterdb.layers.raw import RawModel, Tensor


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _compare(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> Comparison:
    models = []
    for arrays in (first, second):
        tensors = tuple(
            Tensor(n, a.shape, a.dtype.name, partial(_same, a)) for n, a in arrays.items()
        )
        models.append(find_layers(RawModel("test", tensors)))
    sources = tuple(SourceInfo(n, "torch", "0" * 64, 1) for n in ("a.pt", "b.pt"))
    result = compare_models(models[0], models[1], sources=(sources[0], sources[1]))
    json.dumps(result.to_json(), allow_nan=False)
    assert result.text()
    return result


def _net(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"stem": (8, 3, 3, 3), "a": (16, 8, 3, 3), "b": (16, 16, 3, 3), "head": (4, 16, 1, 1)}
    return {
        f"{name}.weight": rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def test_equal_checkpoints_are_identical_and_do_not_drift() -> None:
    found = _compare(_net(), _net())
    assert found.identical
    assert found.relations == {"equal": 4}
    assert "all equal" in found.summary()
    assert [d.drift for d in found.drifts] == [pytest.approx(0.0, abs=1e-12)]


def test_change_is_measured_against_the_definitions() -> None:
    before, after = _net(), _net()
    u, v = np.random.default_rng(1).normal(size=(2, 16))
    low_rank = np.outer(u, np.tile(v, 9)).reshape(16, 16, 3, 3).astype(np.float32)
    after["b.weight"] = before["b.weight"] + low_rank
    after["a.weight"] = before["a.weight"].copy()
    after["a.weight"][0, 0, 0, 0] += 1
    found = {c.first.name: c for c in _compare(before, after).layers}
    a, b = before["b.weight"].astype(float), after["b.weight"].astype(float)
    d = found["b"].delta
    assert d.relation == "changed"
    assert d.relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a))
    cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    assert d.cosine == pytest.approx(cosine)
    assert d.largest == pytest.approx(np.abs(b - a).max())
    assert d.stable_rank == pytest.approx(1.0, abs=1e-4)
    assert found["a"].delta.share_changed == pytest.approx(1 / before["a.weight"].size)
    assert found["stem"].delta.relation == "equal"


@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 99))
def test_stable_rank_is_that_of_the_singular_values(m: int, n: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(m, n)) * 1e-30
    values = np.linalg.svd(matrix, compute_uv=False)
    assert stable_rank(matrix) == pytest.approx((values**2).sum() / values[0] ** 2)


def test_stable_rank_of_large_matrices_iterates_to_the_same() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 700)) + 0.01 * rng.normal(
        size=(300, 700)
    )
    values = np.linalg.svd(matrix, compute_uv=False)
    assert stable_rank(matrix) == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "relation"),
    [
        (lambda w: np.swapaxes(w, -1, -2), "transposed"),
        (lambda w: w[..., ::-1, ::-1], "rotated_180"),
        (lambda w: w[:, ::-1], "input_channels_reversed"),
        (lambda w: w * 1.5, "changed"),
    ],
)
def test_rearrangements_are_named(change, relation: str) -> None:
    weights = np.random.default_rng(3).normal(size=(8, 3, 3, 3))
    assert delta(weights, np.ascontiguousarray(change(weights))).relation == relation


def test_a_network_stored_transposed_is_said_to_be() -> None:
    turned = {n: np.ascontiguousarray(np.swapaxes(w, -1, -2)) for n, w in _net().items()}
    found = _compare(_net(), turned)
    assert found.rearrangement == "transposed"
    assert "spatial transpose" in found.summary()
    assert not found.identical


def test_layers_are_matched_by_name_then_order_then_shape() -> None:
    second = {f"renamed.{i}.weight": w for i, w in enumerate(_net().values())}
    found = _compare(_net(), second)
    assert found.identical
    assert {c.how for c in found.layers} == {"order"}
    net = _net()
    branches = {
        "stem.weight": net["stem.weight"],
        "x.weight": net["head.weight"],
        "y.weight": net["a.weight"],
        "z.weight": net["b.weight"],
    }
    swapped = _compare(net, branches)
    assert swapped.relations == {"equal": 4}


def test_added_removed_and_reshaped_layers() -> None:
    before, after = _net(), _net()
    del after["a.weight"]
    after["head.weight"] = np.ones((5, 16, 1, 1), np.float32)
    after["new.weight"] = np.ones((2, 2, 5, 5), np.float32)
    found = _compare(before, after)
    assert [layer.name for layer in found.removed] == ["a"]
    assert [layer.name for layer in found.added] == ["new"]
    assert [(a.name, b.name) for a, b in found.reshaped] == [("head", "head")]
    assert "1 reshaped, 1 removed, 1 added" in found.summary()
    assert not found.identical


def test_other_dtypes_with_equal_values_are_equal_and_said() -> None:
    before = {n: w.astype(np.float16) for n, w in _net().items()}
    after = {n: w.astype(np.float32) for n, w in before.items()}
    found = _compare(before, after)
    assert found.identical
    assert all(c.dtype_changed for c in found.layers)
    assert "4 are stored in another element type" in found.summary()


def test_weights_that_are_not_finite_cannot_be_compared() -> None:
    after = _net()
    after["a.weight"][0] = np.nan
    found = {c.first.name: c.delta for c in _compare(_net(), after).layers}
    assert found["a"].relation == "not_comparable"
    assert found["a"].relative is None
    assert found["a"].null_reason
    both = _compare(after, after)
    assert {c.delta.relation for c in both.layers} == {"equal"}


def test_zero_weights_have_no_relative_change() -> None:
    zero = np.zeros((4, 3, 3, 3))
    same, other = delta(zero, zero), delta(zero, zero + 1)
    assert (same.relation, same.relative, same.cosine) == ("equal", None, None)
    assert (other.relation, other.relative, other.largest) == ("changed", None, 1.0)


def test_drift_grows_with_the_change() -> None:
    net = _net()
    smooth = {n: np.cumsum(w, axis=-1) if w.ndim == 4 else w for n, w in net.items()}
    little = {n: w + 0.01 * s for (n, w), s in zip(net.items(), smooth.values(), strict=True)}
    far, near = _compare(net, smooth).drifts[0], _compare(net, little).drifts[0]
    assert far.drift is not None
    assert near.drift is not None
    assert 0 <= near.drift < far.drift
    assert (far.n_first, far.n_second) == (24 + 128 + 256,) * 2


def test_nothing_in_common_is_said() -> None:
    found = _compare({"a.weight": np.ones((2, 2, 3, 3), np.float32)}, {})
    assert found.summary() == "The checkpoints have no layer in common."


def _with_batch_norm(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A network with BatchNorm apart, and the same with it folded in, in float32."""
    rng = np.random.default_rng(seed)
    apart, folded = {}, {}
    for name, after, shape in (("conv1", "bn1", (8, 3, 3, 3)), ("conv2", "bn2", (16, 8, 3, 3))):
        weight, gamma = rng.normal(size=shape), rng.normal(size=shape[0])
        var = rng.uniform(0.1, 2.0, size=shape[0])
        apart[f"{name}.weight"] = weight
        apart |= {f"{after}.weight": gamma, f"{after}.bias": rng.normal(size=shape[0])}
        apart |= {f"{after}.running_mean": rng.normal(size=shape[0]), f"{after}.running_var": var}
        folded[f"{name}.weight"] = weight * (gamma / np.sqrt(var + 1e-5))[:, None, None, None]
        folded[f"{name}.bias"] = rng.normal(size=shape[0])
    apart["head.weight"] = folded["head.weight"] = rng.normal(size=(4, 16, 1, 1))
    return tuple({n: a.astype(np.float32) for n, a in side.items()} for side in (apart, folded))  # type: ignore[return-value]


@pytest.mark.parametrize("order", [1, -1], ids=["folded later", "folded first"])
def test_batch_norm_folded_into_one_side_is_said(order: int) -> None:
    found = _compare(*_with_batch_norm()[::order])
    assert found.relations == {"folded": 2, "equal": 1}
    assert not found.identical
    assert found.folded_difference is not None
    assert 0 < found.folded_difference < 5e-7
    assert "1 equal, 2 equal once BatchNorm is folded in (largest relative" in found.summary()
    record = found.to_json()
    assert record["summary"]["folded_difference"] == found.folded_difference
    assert record["layers"][0]["relation"] == "folded"
    assert record["layers"][0]["folded_difference"] > 0
    assert record["layers"][2]["folded_difference"] is None
    assert any("folded" in line.split() for line in found.text())


def test_what_folding_does_not_explain_is_changed() -> None:
    apart, folded = _with_batch_norm()
    folded["conv2.weight"][0, 0, 0, 0] += 0.1
    found = _compare(apart, folded)
    assert found.relations == {"folded": 1, "changed": 1, "equal": 1}
    assert "1 equal, 1 equal once BatchNorm is folded in" in found.summary()
    assert "1 changed: by" in found.summary()
    assert "most in conv2" in found.summary()
    apart["bn2.running_var"][0] = -1.0
    assert _compare(apart, folded).relations == {"folded": 1, "changed": 1, "equal": 1}
    # With BatchNorm on both sides the weights themselves are compared.
    assert _compare(apart, apart | {"conv1.weight": folded["conv1.weight"]}).relations == {
        "equal": 2,
        "changed": 1,
    }


def test_drift_without_sums_gives_the_reason_that_concerns_it() -> None:
    rng = np.random.default_rng(0)
    wide = {"wide.weight": rng.normal(size=(8, 8, 13, 13)).astype(np.float32)}
    (found,) = _compare(wide, wide).drifts
    assert (found.drift, found.kernel) == (None, "13x13")
    assert found.null_reason == "169 coefficients, more than 121"
    broken = _net()
    broken["b.weight"][0, 0, 0, 0] = np.nan
    drifts = {d.kernel: d for d in _compare(_net(), broken).drifts}
    assert drifts["3x3"].null_reason == "1 of 256 filters hold a NaN or an infinity"


def test_branches_in_another_order_are_paired_by_their_weights() -> None:
    """A converter may list parallel branches crosswise: that is no change of weights."""
    rng = np.random.default_rng(11)
    branches = [rng.normal(size=(6, 4, 3, 3)).astype(np.float32) for _ in range(4)]
    stem = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    new = rng.normal(size=(6, 4, 3, 3)).astype(np.float32)
    half = branches[2].astype(np.float16).astype(np.float32)
    nets = []
    for name, order in (("a", branches), ("b", [branches[1], branches[0], new, half])):
        kernels = {f"{name}{i}.weight": kernel for i, kernel in enumerate(order)}
        nets.append({f"{name}.stem.weight": stem, **kernels})
    found = _compare(nets[0], nets[1])
    pairs = {c.first.name: (c.second.name, c.how, c.delta.relation) for c in found.layers}
    assert pairs == {
        "a.stem": ("b.stem", "order", "equal"),
        "a0": ("b1", "weights", "equal"),
        "a1": ("b0", "weights", "equal"),
        "a2": ("b3", "weights", "changed"),
        "a3": ("b2", "weights", "changed"),
    }
    assert found.layers[3].delta.relative == pytest.approx(0.0, abs=1e-3)
    assert "1 of them by order and shape, 4 by shape and weights" in found.summary()
