"""Stages and shards: whole or absent, and the same bytes for the same models."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filterdb.errors import LayerError, StoreError
from filterdb.files import file_sha256
from filterdb.layers.hashing import tensor_sha256
from filterdb.store.filters import map_dataset
from filterdb.store.layout import ALIGNMENT
from filterdb.store.shards import assemble_shard, assembled_path, place_layers
from filterdb.store.staging import StagedLayer, StagedModel, read_stage, stage_model
from filterdb.store.writer import clean, create
from filterdb.testing import (
    LayerSpec,
    convolution_weights,
    failed_model,
    make_entries,
    make_model,
    model_row,
    random_layers,
)

if TYPE_CHECKING:
    from filterdb.types import AnyArray


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return create(tmp_path / "store")


ENTRIES = make_entries(4)


def changed(layer: StagedLayer, **columns: object) -> StagedLayer:
    return replace(layer, row={**layer.row, **columns})


def test_stage_round_trip(store_path: Path) -> None:
    model = make_model(ENTRIES[0])
    stage = stage_model(store_path, "model-000", model)
    again = read_stage(store_path, "model-000", key="model-000")
    assert again == stage
    assert stage.ok
    layers = stage.table("layers").to_pylist()
    assert [r["layer_uid"] for r in layers] == [x.row["layer_uid"] for x in model.layers]
    assert stage.table("layer_states").num_rows == sum(len(x.states) for x in model.layers)
    assert stage.table("skipped").num_rows == 1
    by_name = {r["name"]: r for r in layers}
    assert by_name["block1.pointwise"]["dataset"] is None
    assert by_name["block1.pointwise"]["tensor_sha256"]
    assert by_name["block2.conv2"]["tensor_sha256"] == by_name["block2.conv1"]["tensor_sha256"]


def test_another_key_does_not_count(store_path: Path) -> None:
    stage_model(store_path, "model-000", make_model(ENTRIES[0]))
    assert read_stage(store_path, "model-000", key="edited") is None
    assert read_stage(store_path, "model-001") is None


def test_layers_may_be_a_generator_whose_error_leaves_nothing(store_path: Path) -> None:
    model = make_model(ENTRIES[0])
    layers = list(model.layers)

    def broken():
        yield layers[0]
        raise LayerError("the file ends here")

    with pytest.raises(LayerError, match="the file ends here"):
        stage_model(store_path, "model-000", replace(model, layers=broken()))
    assert read_stage(store_path, "model-000") is None
    assert list((store_path / "_wip").iterdir()) == []


def test_a_failure_may_replace_a_stage_and_be_replaced(store_path: Path) -> None:
    stage_model(store_path, "model-000", failed_model(ENTRIES[0]))
    stage = stage_model(store_path, "model-000", make_model(ENTRIES[0]))
    assert stage.ok
    stage = stage_model(store_path, "model-000", failed_model(ENTRIES[0]))
    assert not stage.ok
    assert not list(stage.path.glob("*.raw"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"n_filters": 7}, "the row says 7 filters"),
        ({"out_channels": 9}, "expected weights of"),
        ({"groups": None}, "null values in 'groups'"),
        ({"groups": 2**40}, "column 'groups': expected int32"),
        ({"colour": "red"}, "no column 'colour'"),
        ({"name": "\ud800"}, "column 'name'"),
        ({"shared_with": "model-000/nope"}, "says it shares the filters of model-000/nope"),
        ({"layer_uid": "model-000/up.weight"}, "two layers are called model-000/up.weight"),
    ],
)
def test_a_bad_row_is_the_models_fault(
    store_path: Path, columns: dict[str, object], message: str
) -> None:
    model = make_model(ENTRIES[0])
    layers = list(model.layers)
    layers[1] = changed(layers[1], **columns)
    with pytest.raises(LayerError, match=message):
        stage_model(store_path, "model-000", replace(model, layers=layers))
    assert read_stage(store_path, "model-000") is None


def test_text_that_is_none_can_still_be_told(store_path: Path) -> None:
    failed = failed_model(ENTRIES[0])
    row = {**(failed.failure or {}), "message": "tensor '\udcff' ends early"}
    stage = stage_model(store_path, "model-000", StagedModel(failure=row))
    assert stage.table("failures").column("message").to_pylist() == [r"tensor '\udcff' ends early"]


@pytest.mark.parametrize("model_id", ["", ".", "..", "../x", "a/b", "A", "+shards", "x\0"])
def test_ids_that_are_no_slugs_cannot_leave_their_folder(store_path: Path, model_id: str) -> None:
    with pytest.raises(StoreError, match="not a slug"):
        stage_model(store_path, model_id, make_model(ENTRIES[0]))


def test_neither_and_both_are_refused(store_path: Path) -> None:
    both = replace(make_model(ENTRIES[0]), failure=failed_model(ENTRIES[0]).failure)
    for record in (StagedModel(), both):
        with pytest.raises(StoreError, match="either a model or a failure"):
            stage_model(store_path, "model-000", record)


def test_a_shard_holds_the_filters_in_order(store_path: Path) -> None:
    models = [make_model(e) for e in ENTRIES[:3]]
    for entry, model in zip(ENTRIES, models, strict=False):
        stage_model(store_path, entry.id, model)
    stage_model(store_path, ENTRIES[3].id, failed_model(ENTRIES[3]))
    shard = assemble_shard(store_path, 0, [e.id for e in ENTRIES])
    assert shard is not None
    expected: dict[str, list[np.ndarray]] = {}
    for model in models:
        for layer in model.layers:
            if layer.row["kernel"] != "1x1" and layer.row["shared_with"] is None:
                name = f"2d/{layer.row['kernel']}/{layer.weights.dtype.name}"
                flat = layer.weights.reshape(layer.row["n_filters"], -1)
                expected.setdefault(name, []).append(flat)
    with h5py.File(shard.path) as file:
        found: list[str] = []
        file.visititems(lambda n, d: found.append(n) if isinstance(d, h5py.Dataset) else None)
        assert sorted(found) == sorted(expected)
        for name, parts in expected.items():
            assert np.array_equal(file[name][:], np.concatenate(parts))
            assert file[name].id.get_offset() % ALIGNMENT == 0
            assert file[name].chunks is None
        assert file.attrs["format"] == b"filterdb-shard"
        assert shard.rows == sum(file[name].shape[0] for name in found)


@settings(max_examples=25, deadline=None)
@given(st.lists(convolution_weights(), max_size=6))
def test_whatever_the_shapes_what_goes_in_comes_out(weights: list[AnyArray]) -> None:
    layers = [random_layer(f"layer{i}", w) for i, w in enumerate(weights)]
    with tempfile.TemporaryDirectory() as folder:
        store_path = create(folder)
        row = model_row(ENTRIES[0], layers)
        stage = stage_model(store_path, ENTRIES[0].id, StagedModel(model=row, layers=layers))
        [placed] = place_layers([stage.table("layers")], 0)
        shard = assemble_shard(store_path, 0, [ENTRIES[0].id])
        for row, w in zip(placed.to_pylist(), weights, strict=True):
            assert row["tensor_sha256"] == tensor_sha256(w)
            if row["shard"] is None:
                assert np.prod(w.shape[2:]) == 1
                continue
            assert shard is not None
            values = map_dataset(shard.path, row["dataset"])[row["start"] : row["stop"]]
            assert values.dtype == w.dtype
            assert np.array_equal(values.reshape(w.shape), w, equal_nan=True)
            assert not values.flags.writeable


def random_layer(name: str, weights: AnyArray) -> StagedLayer:
    spec = LayerSpec(name, weights.shape[0], weights.shape[1], weights.shape[2:], "spatial")
    [made] = random_layers(ENTRIES[0].id, np.random.default_rng(0), specs=[spec])
    return replace(made, weights=weights, states=())


def test_the_same_stages_give_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        store_path = create(tmp_path / name)
        for entry in ENTRIES[:3]:
            stage_model(store_path, entry.id, make_model(entry))
        shard = assemble_shard(store_path, 5, [e.id for e in ENTRIES[:3]])
        assert shard is not None
        assert file_sha256(shard.path) == shard.sha256
        digests.append(shard.sha256)
        time.sleep(1.1)  # a time stamp in the file would show
    assert digests[0] == digests[1]


def test_an_assembled_shard_is_taken_up_only_for_the_same_stages(store_path: Path) -> None:
    stage_model(store_path, "model-000", make_model(ENTRIES[0]))
    first = assemble_shard(store_path, 0, ["model-000"])
    assert first is not None
    written = first.path.stat().st_mtime_ns
    assert assemble_shard(store_path, 0, ["model-000"]) == first
    assert first.path.stat().st_mtime_ns == written
    stage_model(store_path, "model-000", make_model(ENTRIES[0], seed=1))
    second = assemble_shard(store_path, 0, ["model-000"])
    assert second is not None
    assert second.sha256 != first.sha256


def test_failed_models_alone_make_no_shard(store_path: Path) -> None:
    stage_model(store_path, "model-000", failed_model(ENTRIES[0]))
    assert assemble_shard(store_path, 0, ["model-000"]) is None
    assert not assembled_path(store_path, 0).exists()


def test_a_missing_stage_is_an_error(store_path: Path) -> None:
    with pytest.raises(StoreError, match="model model-000 is not staged"):
        assemble_shard(store_path, 0, ["model-000"])


def test_leftovers_of_a_dead_job_are_cleaned(store_path: Path) -> None:
    stage_model(store_path, "model-000", make_model(ENTRIES[0]))
    (store_path / "_wip" / "+tmp-model-001-99").mkdir()
    (store_path / "_wip" / "model-002").mkdir()
    clean(store_path)
    assert [p.name for p in (store_path / "_wip").iterdir()] == ["model-000"]
