"""filterdb.testing itself: what it makes is deterministic and covers the cases that matter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from filterdb.stats.state import LayerState, layer_state
from filterdb.store.verify import verify
from filterdb.testing import make_store, random_weights, temporary_store

if TYPE_CHECKING:
    from filterdb.store import Store


def test_a_temporary_store_is_valid_and_goes_away() -> None:
    with temporary_store(n_models=2, seed=3) as store:
        path = store.path
        assert verify(path) == []
        assert store.models.num_rows == 2
    assert not path.exists()


def test_a_store_of_failures_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path, n_models=2, n_failures=2)
    assert (store.models.num_rows, store.layers.num_rows, store.failures.num_rows) == (0, 0, 2)
    assert store.kernels() == {}
    assert "0 models" in repr(store)
    assert verify(store.path) == []
    assert store.sql("select * from layer_view").num_rows == 0


def test_an_empty_store(tmp_path: Path) -> None:
    store = make_store(tmp_path, n_models=0)
    assert store.models.num_rows == 0
    assert verify(store.path) == []


def test_the_cases_that_matter_are_in_it(pristine: Store) -> None:
    layers = pristine.layers.to_pylist()
    assert {r["stored_dtype"] for r in layers} == {None, "float16", "float32", "float64"}
    assert {r["op"] for r in layers} == {"conv", "conv_transpose"}
    assert any(r["groups"] > 1 for r in layers)
    assert any(r["shared_with"] for r in layers)
    assert any(r["duplicate_of"] for r in layers)
    assert len({r["shard"] for r in layers}) > 2
    assert len({r["task"] for r in pristine.models.to_pylist()}) == 4


def test_states_are_those_of_the_stored_filters(pristine: Store) -> None:
    for row in pristine.layer_states.to_pylist():
        if row["weights"] != "raw":
            continue
        model_id, tensor = row["layer_uid"].split("/")
        layer = pristine.layer(model_id, tensor)
        if layer.row["shard"] is None:
            continue
        kernel = tuple(int(k) for k in layer.row["kernel"].split("x"))
        weights = layer.values.reshape(layer.row["out_channels"], -1, *kernel)
        again = layer_state(weights, layer.row["groups"], stride=layer.row["stride"])
        assert LayerState.from_record(row) == again


def test_smoothness_makes_coefficients_alike() -> None:
    def spread(smoothness: float) -> float:
        rng = np.random.default_rng(0)
        weights = random_weights(rng, (64, 8, 3, 3), dtype="float64", smoothness=smoothness)
        flat = weights.reshape(-1, 9)
        return float(np.corrcoef(flat.T)[0, 1])

    assert abs(spread(0.0)) < 0.1
    assert spread(0.6) > 0.5
