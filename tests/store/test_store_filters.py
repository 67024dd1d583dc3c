"""Filters: views of the file, one layer at a time, or one dask array."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from filterdb.errors import CorruptShardError, UnknownNameError, UsageError
from filterdb.store import Store, open_store
from filterdb.store.filters import map_dataset
from filterdb.testing import make_entries, make_model


def expected(kernel: str, tasks: tuple[str, ...] = ()) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Filters straight from the models that were staged."""
    return [
        (str(layer.row["layer_uid"]), layer.weights.reshape(-1, np.prod(layer.weights.shape[2:])))
        for entry in make_entries(8)[:7]
        if not tasks or entry.task in tasks
        for layer in make_model(entry).layers
        if layer.row["kernel"] == kernel and layer.row["shared_with"] is None
    ]


@pytest.mark.parametrize("kernel", ["3x3", "5x5", "7x7"])
def test_blocks_in_plan_order_shared_weights_once(pristine: Store, kernel: str) -> None:
    blocks = list(pristine.filters(kernel))
    assert [b.layer["layer_uid"] for b in blocks] == [uid for uid, _ in expected(kernel)]
    for block, (_, values) in zip(blocks, expected(kernel), strict=True):
        assert block.values.dtype == values.dtype
        assert np.array_equal(block.values, values)
        assert not block.values.flags.writeable


def test_a_block_knows_its_layer_and_its_model(pristine: Store) -> None:
    block = next(iter(pristine.filters("3x3")))
    assert block.layer["task"] == "classification"
    assert block.layer["name"] == "block1.conv1"
    assert block.layer["model_name"] == "Model 0"
    assert block.layer["n_filters"] == len(block.values)
    assert block.layer["model_n_filters"] > block.layer["n_filters"]
    assert "(128, 9) float32" in repr(block)


def test_where_takes_columns_of_layers_and_models(pristine: Store) -> None:
    found = [b.layer["layer_uid"] for b in pristine.filters("3x3", where="task = 'ocr'")]
    assert found == [uid for uid, _ in expected("3x3", ("ocr",))]
    deep = pristine.filters("3x3", where="conv_depth_norm > .5 -- a comment\n and groups = 1")
    assert {b.layer["name"] for b in deep} == {"block2.conv1", "up"}
    assert list(pristine.filters("3x3", where="false")) == []
    with pytest.raises(UnknownNameError, match="no column 'tsak' in layer_view") as caught:
        pristine.filters("3x3", where="tsak = 'ocr'")
    assert "task" in caught.value.nearest
    with pytest.raises(UsageError):
        pristine.filters("3x3", where="task = 'ocr")
    with pytest.raises(UsageError):
        pristine.filters("3x3", where="true); select * from (models")


def test_select_layers_keeps_plan_order(pristine: Store) -> None:
    table = pristine.select_layers("kernel = '3x3'")
    every = [r["layer_uid"] for r in pristine.layers.to_pylist() if r["kernel"] == "3x3"]
    assert table["layer_uid"].to_pylist() == every
    assert table["sparsity"].null_count == len(every)  # not analysed
    assert pristine.select_layers().num_rows == pristine.layers.num_rows


def test_kernels_that_are_not_there(pristine: Store) -> None:
    with pytest.raises(UnknownNameError) as caught:
        pristine.filters("3x4")
    assert "no kernel '3x4'" in str(caught.value)
    assert "3x3 (4,032), 5x5 (1,008), 7x7 (168)" in str(caught.value)
    with pytest.raises(UsageError, match="1x1 kernels have no shape"):
        pristine.filters("1x1")
    for odd in ("", "x", "3X3", "banana"):
        with pytest.raises(UnknownNameError):
            pristine.filters(odd)


def test_conversion_is_asked_for(pristine: Store) -> None:
    for block in pristine.filters("3x3", dtype=np.float64):
        assert block.values.dtype == np.float64
        assert not block.values.flags.writeable


def test_dask_chunk_borders_are_layer_borders(pristine: Store) -> None:
    filters = pristine.filters("3x3")
    whole = np.concatenate([values.astype(np.float64) for _, values in expected("3x3")])
    borders = set(np.cumsum([0] + [len(v) for _, v in expected("3x3")]).tolist())
    for chunk_bytes in (1, 5_000, 2**26):
        array = filters.to_dask(chunk_bytes=chunk_bytes)
        assert array.shape == whole.shape
        assert array.dtype == np.float64  # the one float64 model decides
        assert set(np.cumsum([0, *array.chunks[0]]).tolist()) <= borders
        assert np.array_equal(array.compute(scheduler="sync"), whole)
    assert len(filters.to_dask(chunk_bytes=1).chunks[0]) == len(filters)
    assert len(filters.to_dask().chunks[0]) == 1
    single = pristine.filters("3x3", where="model_id = 'model-002'").to_dask()
    assert single.dtype == np.float16
    assert filters.to_dask(dtype="float32").sum(axis=0).compute(scheduler="sync").shape == (9,)
    assert pristine.filters("3x3", where="false").to_dask().compute().shape == (0, 9)


def test_dask_tasks_carry_paths_not_arrays(pristine: Store) -> None:
    array = pristine.filters("3x3").to_dask(chunk_bytes=1)
    n_bytes = len(pickle.dumps(dict(array.dask)))
    assert n_bytes < 1_000 * len(array.chunks[0])
    assert n_bytes < array.nbytes / 4


def test_the_same_question_has_the_same_name(pristine: Store) -> None:
    names = {pristine.filters("3x3").to_dask().name for _ in range(2)}
    assert len(names) == 1
    assert pristine.filters("3x3", where="groups = 1").to_dask().name not in names


def test_a_shard_of_another_size_is_refused(spoilable: Store) -> None:
    with (spoilable.path / "filters/00000.h5").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CorruptShardError, match=r"00000\.h5 is not the file that was committed"):
        next(iter(spoilable.filters("3x3")))


def test_a_missing_shard(spoilable: Store) -> None:
    (spoilable.path / "filters/00000.h5").unlink()
    with pytest.raises(CorruptShardError, match=r"00000\.h5 is missing"):
        next(iter(open_store(spoilable.path).filters("3x3")))


def test_chunked_and_empty_data_sets_are_read_too(tmp_path: Path) -> None:
    values = np.arange(90, dtype=np.float32).reshape(10, 9)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset("2d/3x3/float32", data=values, chunks=(5, 9), compression="gzip")
        file.create_dataset("2d/5x5/float32", shape=(0, 25), dtype="float32")
    read = map_dataset(tmp_path / "other.h5", "2d/3x3/float32")
    assert np.array_equal(read, values)
    assert not read.flags.writeable
    assert map_dataset(tmp_path / "other.h5", "2d/5x5/float32").shape == (0, 25)
    with pytest.raises(CorruptShardError, match="data set 2d/7x7/float32 cannot be read"):
        map_dataset(tmp_path / "other.h5", "2d/7x7/float32")
