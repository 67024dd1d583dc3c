"""Verify: clean stores are clean, and one flipped byte anywhere names its file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from filterdb.errors import IncompleteStoreError, StoreNotFoundError
from filterdb.files import file_sha256
from filterdb.store.manifest import Manifest, ManifestRow, read_manifest, write_manifest
from filterdb.store.parquet import write_table
from filterdb.store.verify import verify
from filterdb.store.writer import create, locked

if TYPE_CHECKING:
    from filterdb.store import Store


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def reseal(store_path: Path, name: str) -> None:
    """Make the manifest agree with a changed file, to see what is checked beyond hashes."""
    old = read_manifest(store_path)
    rows = []
    for row in old.rows:
        file = store_path / row.path
        changed = ManifestRow(
            row.path, row.kind, row.rows, file.stat().st_size, file_sha256(file), row.generation
        )
        rows.append(changed if row.path == name else row)
    write_manifest(
        store_path,
        Manifest(
            tuple(rows), old.generation, old.extractions, old.plan_sha256, old.settings_sha256
        ),
    )


def test_a_clean_store(pristine: Store) -> None:
    seen: list[tuple[str, int, int | None]] = []
    assert verify(pristine.path, lambda *step: seen.append(step)) == []
    assert [path for path, _, _ in seen] != []
    assert {path for path, _, _ in seen} == set(pristine.manifest["path"].to_pylist())
    assert seen[-1][1] == seen[-1][2] == len(seen)


def test_one_flipped_byte_names_its_file_and_no_other(spoilable: Store) -> None:
    rng = np.random.default_rng(0)
    for row in spoilable.manifest.to_pylist():
        path = spoilable.path / row["path"]
        whole = path.read_bytes()
        for at in (0, len(whole) - 1, *rng.integers(0, len(whole), 5)):
            flip(path, int(at))
            found = verify(spoilable.path)
            assert [p.path for p in found] == [row["path"]], (row["path"], at)
            assert row["path"] in str(found[0])
            path.write_bytes(whole)
    assert verify(spoilable.path) == []


def test_a_flipped_byte_of_the_manifest_is_seen(spoilable: Store) -> None:
    path = spoilable.path / "manifest.parquet"
    whole = path.read_bytes()
    seen = 0
    positions = np.random.default_rng(0).integers(0, len(whole), 60)
    for at in positions:
        flip(path, int(at))
        found = verify(spoilable.path)
        # A byte that nothing reads (statistics, padding, the writer's name) changes no answer.
        if found:
            assert [p.path for p in found] == ["manifest.parquet"], int(at)
            seen += 1
        path.write_bytes(whole)
    assert seen > len(positions) / 4


def test_a_changed_setting_is_seen(spoilable: Store) -> None:
    path = spoilable.path / "store.json"
    path.write_text(path.read_text().replace("2000000", "3000000"))
    assert [p.path for p in verify(spoilable.path)] == ["store.json"]


@pytest.mark.parametrize(("name", "what"), [("filters/00000.h5", "file"), ("models", "file")])
def test_missing_files(spoilable: Store, name: str, what: str) -> None:
    path = name if "/" in name else f"tables/00001/{name}.parquet"
    (spoilable.path / path).unlink()
    assert [(p.path, p.what) for p in verify(spoilable.path)] == [(path, what)]


def test_a_truncated_file(spoilable: Store) -> None:
    path = spoilable.path / "filters/00000.h5"
    path.write_bytes(path.read_bytes()[:-100])
    assert [(p.path, p.what) for p in verify(spoilable.path)] == [("filters/00000.h5", "bytes")]


def test_filters_are_checked_against_the_layer_table_too(spoilable: Store) -> None:
    """A shard that was swapped, hash and all, still does not fit its layers."""
    name = "filters/00000.h5"
    with h5py.File(spoilable.path / name, "r+") as file:
        file["2d/7x7/float32"][0, 0] += 1
    reseal(spoilable.path, name)
    found = verify(spoilable.path)
    assert [p.path for p in found] == [name]
    assert "model-000/stem.weight" in found[0].what


def test_rows_with_gaps_or_beyond_the_end(spoilable: Store) -> None:
    name = "tables/00001/layers.parquet"
    table = spoilable.layers.arrow
    index = table.column_names.index("stop")
    stops = table.column("stop").to_pylist()
    stops[0] += 1
    write_table(spoilable.path / name, table.set_column(index, table.schema.field("stop"), [stops]))
    reseal(spoilable.path, name)
    found = verify(spoilable.path)
    assert {p.path for p in found} == {"filters/00000.h5"}
    assert any("rows of model-000/stem.weight" in p.what for p in found)


def test_rows_that_name_nothing(spoilable: Store) -> None:
    name = "tables/00001/models.parquet"
    write_table(spoilable.path / name, spoilable.models.arrow.slice(1))
    reseal(spoilable.path, name)
    whats = {(p.path, p.what) for p in verify(spoilable.path)}
    assert (name, "rows") in whats
    assert ("tables/00001/layers.parquet", "model_id model-000") in whats


def test_a_table_with_other_columns(spoilable: Store) -> None:
    name = "tables/00001/skipped.parquet"
    pq.write_table(spoilable.skipped.arrow.drop_columns(["reason"]), spoilable.path / name)
    reseal(spoilable.path, name)
    assert [(p.path, p.what) for p in verify(spoilable.path)] == [(name, "schema")]


def test_there_must_be_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        verify(tmp_path / "nowhere")
    with locked(tmp_path / "s"):
        create(tmp_path / "s")
    with pytest.raises(IncompleteStoreError):
        verify(tmp_path / "s")
