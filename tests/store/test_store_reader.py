"""Opening a store: what it says of itself, and what it says when something is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from filterdb.errors import (
    CorruptShardError,
    FormatVersionError,
    IncompleteStoreError,
    StoreNotFoundError,
    UnknownNameError,
    UsageError,
)
from filterdb.store import Store, open_store
from filterdb.testing import make_entries, make_model, make_store


def test_golden_round_trip(pristine: Store) -> None:
    """What was staged is what is read: every filter, bit for bit."""
    rows = {r["layer_uid"]: r for r in pristine.layers.to_pylist()}
    states = pristine.layer_states.to_pylist()
    for entry in make_entries(8)[:7]:
        model = make_model(entry)
        for layer in model.layers:
            row = rows.pop(str(layer.row["layer_uid"]))
            assert {k: row[k] for k in layer.row} == dict(layer.row)
            mine = [s for s in states if s["layer_uid"] == row["layer_uid"]]
            assert mine == [{**s} for s in layer.states]
            if row["shard"] is None:
                assert row["kernel"] == "1x1"
                continue
            values = pristine.layer(entry.id, str(row["name"])).values
            assert values.dtype == layer.weights.dtype
            assert np.array_equal(values.reshape(layer.weights.shape), layer.weights)
    assert rows == {}
    assert pristine.failures["model_id"].to_pylist() == ["model-007"]
    assert pristine.skipped.num_rows == 7


def test_the_same_models_give_the_same_store(pristine: Store, tmp_path: Path) -> None:
    again = make_store(tmp_path, n_models=8, n_failures=1)
    assert again.manifest.to_pylist() == pristine.manifest.to_pylist()
    assert again.fingerprint == pristine.fingerprint
    assert make_store(tmp_path, n_models=8, seed=1, name="other").fingerprint != again.fingerprint


def test_repr_says_what_is_in_it(pristine: Store) -> None:
    text = repr(pristine)
    assert "format 1 · 7 models · 56 layers" in text
    assert "3×3 4,032" in text
    assert "1×1 (7 layers)" in text
    assert "classification 2" in text
    assert text.endswith("… 4")


def test_a_table_prints_itself(pristine: Store) -> None:
    text = repr(pristine.layers)
    assert text.startswith("<filterdb.Table layers  56 rows × 33 columns>")
    assert "model_id/tensor[#use]" in text
    assert "5 of 56 rows, 8 of 33 columns" in text
    page = pristine.layers._repr_html_()
    assert page.count("<tr>") == 6
    hostile = pristine.sql("select '<script>' as \"<b>\"")._repr_html_()
    assert "<script>" not in hostile
    assert "<b>" not in hostile


def test_a_table_opens_as_what_one_works_with(pristine: Store) -> None:
    import duckdb
    import polars as pl
    import pyarrow as pa

    layers = pristine.layers
    assert pa.table(layers).equals(layers.arrow)
    assert layers.to_pandas().shape == (56, 33)
    assert layers.to_polars().shape == (56, 33)
    assert pl.DataFrame(layers).shape == (56, 33)
    assert len(layers.to_dask(npartitions=2)) == 56
    with duckdb.connect() as connection:
        connection.register("mine", layers.arrow)
        assert connection.execute("select count(*) from mine").fetchall() == [(56,)]
    assert layers.select(["name", "kernel"]).column_names == ["name", "kernel"]


def test_a_store_counts_the_filters_it_holds(pristine: Store) -> None:
    line = repr(pristine).splitlines()[0]
    assert f" · {sum(pristine.kernels().values()):,} filters larger than 1×1 · " in line
    counted = pristine.models["n_filters"].to_pylist()
    assert sum(counted) > sum(pristine.kernels().values())


def test_a_wrong_column_names_the_nearest(pristine: Store) -> None:
    with pytest.raises(KeyError, match="no column 'kernle' in layers") as caught:
        pristine.layers["kernle"]
    assert isinstance(caught.value, UnknownNameError)
    assert caught.value.nearest[0] == "kernel"
    with pytest.raises(UnknownNameError, match=r"another table has quality\.sparsity"):
        pristine.layers["sparsty"]


def test_tables_by_name(pristine: Store) -> None:
    assert pristine.tables["models"] is pristine.models
    assert "quality" not in pristine.tables
    assert list(pristine.tables)[:2] == ["models", "layers"]
    with pytest.raises(IncompleteStoreError, match="run filterdb analyze"):
        pristine.tables["quality"]
    with pytest.raises(UnknownNameError, match="layers"):
        pristine.tables["layer"]


def test_one_layer(pristine: Store) -> None:
    layer = pristine.layer("model-000", "block1.depthwise")
    assert layer.values.shape == (16, 9)
    assert not layer.values.flags.writeable
    assert layer.row["task"] == "classification"
    assert layer.row["model_name"] == "Model 0"
    assert [s["weights"] for s in layer.states] == ["raw", "folded"]
    assert "conv 16×1×3×3, depthwise, 16 filters" in repr(layer)
    assert layer.block.layer == layer.row
    by_tensor = pristine.layer("model-000", "block1.depthwise.weight")
    assert by_tensor.row == layer.row
    with pytest.raises(UnknownNameError, match=r"block1\.depthwise"):
        pristine.layer("model-000", "block1.deptwise")
    with pytest.raises(UnknownNameError, match="model-000"):
        pristine.layer("model-0000", "stem")
    with pytest.raises(UsageError, match="1x1 kernels have no shape"):
        pristine.layer("model-000", "block1.pointwise").values  # noqa: B018


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no such folder"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(StoreNotFoundError, match=r"holds no store\.json"):
        open_store(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreNotFoundError):
        open_store(tmp_path / "file")


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "zarr"}])
def test_another_version_is_told_before_anything_else(
    spoilable: Store, change: dict[str, object]
) -> None:
    path = spoilable.path / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (spoilable.path / "manifest.parquet").unlink()
    with pytest.raises(FormatVersionError, match=r"this filterdb reads filterdb-store version 1"):
        open_store(spoilable.path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b"\xff\xfe"])
def test_a_damaged_settings_file(spoilable: Store, content: bytes) -> None:
    (spoilable.path / "store.json").write_bytes(content)
    with pytest.raises(CorruptShardError, match=r"store\.json is damaged"):
        open_store(spoilable.path)


def test_a_damaged_manifest(spoilable: Store) -> None:
    (spoilable.path / "manifest.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(CorruptShardError, match=r"manifest\.parquet is damaged"):
        open_store(spoilable.path)


def test_a_table_of_another_size(spoilable: Store) -> None:
    with (spoilable.path / "tables/00001/models.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CorruptShardError, match=r"models\.parquet is not the file"):
        open_store(spoilable.path).models  # noqa: B018


def test_a_missing_table(spoilable: Store) -> None:
    shutil.rmtree(spoilable.path / "tables")
    with pytest.raises(CorruptShardError, match=r"models\.parquet is missing"):
        open_store(spoilable.path).models  # noqa: B018
