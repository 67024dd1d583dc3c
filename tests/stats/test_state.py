"""The layer state: its values, its laws, and what it says where it has no value."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from threadpoolctl import threadpool_limits

from filterdb.stats.state import LayerState, layer_state, unpack_scatter
from filterdb.store.schema import LAYER_STATES

MERGEABLE = (
    "n", "n_zero", "n_nonfinite", "absmax", "mean", "m2", "m3", "m4",
    "sum", "scatter", "scaled_sum", "scaled_scatter",
)  # fmt: skip

weights_1d = hnp.arrays(
    np.float64,
    st.tuples(st.integers(0, 12), st.just(1), st.just(2), st.just(2)),
    elements=st.one_of(st.just(0.0), st.floats(-4, 4, allow_nan=False, width=32)),
)


def close(first: LayerState, second: LayerState, names: tuple[str, ...] | None = None) -> None:
    for field in dataclasses.fields(LayerState):
        if names is not None and field.name not in names:
            continue
        a, b = getattr(first, field.name), getattr(second, field.name)
        if a is None or b is None or isinstance(a, str):
            assert a == b, field.name
        else:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=field.name)


def test_fields_are_the_columns_of_layer_states():
    columns = [c.name for c in LAYER_STATES.columns]
    assert [f.name for f in dataclasses.fields(LayerState)] == columns[2:]


def test_values_against_plain_numpy(rng):
    weights = rng.normal(size=(6, 4, 3, 3)).astype(np.float32)
    weights[0, 0] = 0.0
    weights[1, 2] *= 1e-4
    weights[1, 3] *= 3e-3
    weights[2, 0] *= 0.02
    state = layer_state(weights)
    f = weights.reshape(24, 9).astype(np.float64)
    peak = np.abs(f).max(axis=1)
    scaled = f / np.where(peak == 0, 1, peak)[:, None]
    top = peak.max()
    assert (state.n, state.n_zero, state.n_nonfinite) == (24, 1, 0)
    assert state.absmax == top
    counts = [int((peak < e * top).sum()) for e in (0.001, 0.01, 0.1)]
    assert [state.n_sparse_001, state.n_sparse_01, state.n_sparse_1] == counts
    assert counts[0] < counts[1] < counts[2]
    for power, value in ((2, state.m2), (3, state.m3), (4, state.m4)):
        np.testing.assert_allclose(value, ((f - f.mean()) ** power).sum(), rtol=1e-12)
    np.testing.assert_allclose(state.mean, f.mean(), rtol=1e-12)
    sparse = peak < 0.01 * top
    pairs = {
        "": f, "scaled_": scaled, "sparse_": f[sparse], "sparse_scaled_": scaled[sparse]
    }  # fmt: skip
    for prefix, values in pairs.items():
        np.testing.assert_allclose(getattr(state, prefix + "sum"), values.sum(0), atol=1e-12)
        scatter = unpack_scatter(getattr(state, prefix + "scatter"), 9)
        np.testing.assert_allclose(scatter, values.T @ values, atol=1e-12)
    assert state.null_reason is None


def test_blocks_of_a_large_layer_add_up(rng):
    weights = rng.normal(size=(400, 100, 3, 3)).astype(np.float16)
    state = layer_state(weights, l_orth=False)
    f = weights.reshape(-1, 9).astype(np.float64)
    np.testing.assert_allclose(unpack_scatter(state.scatter, 9), f.T @ f, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(state.m4, ((f - f.mean()) ** 4).sum(), rtol=1e-12)


def test_memory_layout_and_threads_do_not_change_a_bit(rng):
    weights = rng.normal(size=(8, 16, 3, 3)).astype(np.float32)
    strided = np.asfortranarray(weights)
    read_only = weights.copy()
    read_only.flags.writeable = False
    assert layer_state(weights) == layer_state(strided) == layer_state(read_only)


@pytest.mark.parametrize(
    "shape", [(96, 80, 3, 3), (300, 120, 1, 1), (64, 300, 1, 2), (20_000, 1, 1)]
)
def test_number_of_blas_threads_does_not_change_a_bit(rng, shape):
    weights = rng.normal(size=shape).astype(np.float32)
    states = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            states.append(layer_state(weights, l_orth=shape[0] < 1_000))
    assert states[0] == states[1]


@given(weights_1d, weights_1d)
@settings(max_examples=60, deadline=None)
def test_state_of_a_concatenation_is_the_merge(a, b):
    both = layer_state(np.concatenate([a, b]))
    close(both, layer_state(a).merge(layer_state(b)), MERGEABLE)


@given(weights_1d, weights_1d, weights_1d)
@settings(max_examples=60, deadline=None)
def test_merge_is_associative_and_commutative(a, b, c):
    x, y, z = (layer_state(w) for w in (a, b, c))
    close(x.merge(y).merge(z), x.merge(y.merge(z)))
    close(x.merge(y), y.merge(x))


@given(weights_1d)
@settings(max_examples=40, deadline=None)
def test_empty_is_the_identity_and_records_round_trip(a):
    state = layer_state(a)
    empty = LayerState.empty(4)
    assert state.merge(empty) == state == empty.merge(state)
    assert LayerState.from_record(state.to_record()) == state
    assert LayerState.from_record(json.loads(json.dumps(state.to_record()))) == state
    assert pickle.loads(pickle.dumps(state)) == state


def test_record_fits_the_table(rng):
    states = [
        layer_state(rng.normal(size=(3, 2, 3, 3))),
        layer_state(np.full((1, 1, 3), np.nan)),
        layer_state(np.zeros((2, 2, 13, 13), np.float32)),
    ]
    rows = [{"layer_uid": str(i), "weights": "raw", **s.to_record()} for i, s in enumerate(states)]
    table = pa.Table.from_pylist(rows, schema=LAYER_STATES.arrow)
    assert [LayerState.from_record(row) for row in table.to_pylist()] == states


def test_non_finite_weights_keep_the_counts_only():
    weights = np.ones((2, 3, 3, 3), np.float32)
    weights[0, 0, 0, 0], weights[1, 1, 2, 2], weights[1, 2] = np.nan, -np.inf, 0.0
    state = layer_state(weights)
    assert (state.n, state.n_zero, state.n_nonfinite) == (6, 1, 2)
    assert state.scatter is None
    assert state.absmax is None
    assert state.null_reason == "non-finite: 2 of 6 filters hold a NaN or an infinity"
    merged = state.merge(layer_state(np.ones((1, 1, 3, 3))))
    assert merged.n == 7
    assert merged.mean is None
    assert "non-finite" in merged.null_reason


def test_all_zero_layer_is_all_sparse():
    state = layer_state(np.zeros((3, 2, 3, 3), np.float32))
    assert state.n_zero == state.n_sparse_001 == state.n_sparse_01 == state.n_sparse_1 == 6
    assert state.orthogonality is None
    assert "non-zero output channels" in state.null_reason


def test_large_kernels_have_sums_but_no_scatters(rng):
    state = layer_state(rng.normal(size=(2, 3, 12, 12)))
    assert len(state.sum) == 144
    assert state.scatter is state.scaled_scatter is state.sparse_scatter is None
    assert "144 coefficients" in state.null_reason


def test_sparse_is_strict_at_the_threshold():
    weights = np.zeros((3, 1, 1, 2))
    weights[:, 0, 0, 0] = [1.0, 0.01, np.nextafter(0.01, 0)]
    assert layer_state(weights).n_sparse_01 == 1


def test_weights_too_large_for_fourth_powers():
    state = layer_state(np.full((2, 1, 3, 3), 1e200))
    assert state.absmax == 1e200
    assert "too large" in state.null_reason
    assert state.m2 is None


@pytest.mark.parametrize(
    ("weights", "groups", "stride", "match"),
    [
        (np.zeros((3, 1, 3, 3)), 2, None, "divide 3"),
        (np.zeros((3, 1, 3, 3)), 1, (1,), "2 positive"),
        (np.zeros((3, 3)), 1, None, "floating"),
        (np.zeros((3, 1, 3), int), 1, None, "int64"),
    ],
)
def test_wrong_arguments_say_what_they_are(weights, groups, stride, match):
    with pytest.raises(ValueError, match=match):
        layer_state(weights, groups, stride=stride)


def test_kernels_of_other_sizes_do_not_merge():
    with pytest.raises(ValueError, match="9 and 4"):
        LayerState.empty(9).merge(LayerState.empty(4))
