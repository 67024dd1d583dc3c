"""Commits: what is in force, what goes stale, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from filterdb.errors import IncompleteStoreError, StoreError
from filterdb.store import open_store
from filterdb.store.collect import collect_tables
from filterdb.store.manifest import current_manifest
from filterdb.store.parquet import rows_to_table
from filterdb.store.schema import FINDINGS, LAYERS, QUALITY
from filterdb.store.shards import assemble_shard
from filterdb.store.staging import stage_model
from filterdb.store.verify import verify
from filterdb.store.writer import commit, create, locked, next_plan, pending
from filterdb.testing import extract_entries, make_entries, make_model

ENTRIES = make_entries(6)


def finding(uid: str) -> dict[str, Any]:
    return {
        "layer_uid": uid,
        "weights": "raw",
        "finding": "dead",
        "severity": "defect",
        "detail": "all zero",
    }


def files(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}


def test_appending_keeps_what_is_there(tmp_path: Path) -> None:
    first = extract_entries(tmp_path / "s", ENTRIES[:3])
    shards = {row["path"]: row for row in first.manifest.to_pylist() if row["kind"] == "filters"}
    second = extract_entries(tmp_path / "s", ENTRIES)
    assert second.generation == 2
    assert second.models["model_id"].to_pylist() == [e.id for e in ENTRIES]
    rows = {row["path"]: row for row in second.manifest.to_pylist()}
    assert {path: rows[path] for path in shards} == shards
    before = first.layers.to_pylist()
    assert second.layers.to_pylist()[: len(before)] == before
    assert second.fingerprint != first.fingerprint
    assert verify(second.path) == []


def test_nothing_to_do_writes_nothing(tmp_path: Path) -> None:
    extract_entries(tmp_path / "s", ENTRIES[:2])
    before = {p: (tmp_path / "s" / p).stat().st_mtime_ns for p in files(tmp_path / "s")}
    assert extract_entries(tmp_path / "s", ENTRIES[:2]).generation == 1
    after = {p: (tmp_path / "s" / p).stat().st_mtime_ns for p in files(tmp_path / "s")}
    del before[".lock"], after[".lock"]
    assert after == before


def test_a_retry_counts_attempts_and_gets_a_new_shard(tmp_path: Path) -> None:
    bad = ENTRIES[1].id
    store = extract_entries(tmp_path / "s", ENTRIES[:3], fail=[bad])
    assert store.failures.to_pylist()[0]["attempts"] == 1
    # Not retryable: the next run leaves it alone, and a retry that fails again is counted.
    assert extract_entries(tmp_path / "s", ENTRIES[:3]).generation == 1
    store = extract_entries(tmp_path / "s", ENTRIES[:3], fail=[bad], retry=True)
    assert store.failures.to_pylist()[0]["attempts"] == 2
    closed = {row["shard"] for row in store.layers.to_pylist()}
    store = extract_entries(tmp_path / "s", ENTRIES[:3], retry=True)
    assert store.failures.num_rows == 0
    assert set(store.models["model_id"].to_pylist()) == {e.id for e in ENTRIES[:3]}
    late = {r["shard"] for r in store.layers.to_pylist() if r["model_id"] == bad}
    assert not late & closed - {None}
    assert store.models["model_id"].to_pylist() == [
        m for m in store.plan.models if m in {e.id for e in ENTRIES}
    ]
    assert verify(store.path) == []


def test_a_model_without_convolutions_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with locked(path):
        create(path)
        plan = next_plan(path, ENTRIES[:2], retry=False)
        stage_model(path, ENTRIES[0].id, make_model(ENTRIES[0], specs=()))
        stage_model(path, ENTRIES[1].id, make_model(ENTRIES[1]))
        shard = assemble_shard(path, 0, plan.members(0))
        assert shard is not None
        commit(path, tables=collect_tables(path, plan), shards=[shard], plan=plan)
    store = open_store(path)
    assert store.models["status"].to_pylist() == ["no_convolutions", "ok"]
    assert set(store.layers["model_id"].to_pylist()) == {ENTRIES[1].id}
    assert verify(path) == []


def test_duplicates_name_the_first_layer_of_an_earlier_model(tmp_path: Path) -> None:
    store = extract_entries(tmp_path / "s", ENTRIES[:2])
    marked = {r["layer_uid"]: r["duplicate_of"] for r in store.layers.to_pylist()}
    assert marked.pop("model-001/stem.weight") == "model-000/stem.weight"
    assert set(marked.values()) == {None}  # shared within one model is no duplicate


def test_unchanged_tables_keep_their_files_and_derived_ones_go_stale(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = extract_entries(path, ENTRIES[:2])
    uid = store.layers["layer_uid"][0].as_py()
    with locked(path):
        commit(path, tables={"findings": rows_to_table(FINDINGS, [finding(uid)])})
    analysed = open_store(path)
    assert analysed.generation == 2
    assert analysed.findings.num_rows == 1
    assert analysed.fingerprint == store.fingerprint
    generations = {r["path"]: r["generation"] for r in analysed.manifest.to_pylist()}
    assert generations["tables/00001/layers.parquet"] == 1
    assert generations["tables/00002/findings.parquet"] == 2
    extended = extract_entries(path, ENTRIES[:3])
    with pytest.raises(IncompleteStoreError, match="no table 'findings' yet"):
        extended.findings  # noqa: B018
    assert "findings" not in extended.tables


def test_an_analysis_keeps_the_stages_of_an_interrupted_extraction(tmp_path: Path) -> None:
    path = tmp_path / "s"
    extract_entries(path, ENTRIES[:2])
    with locked(path):
        create(path)
        stage_model(path, ENTRIES[2].id, make_model(ENTRIES[2]))
        commit(path, tables={"quality": rows_to_table(QUALITY, [])})
    assert (path / "_wip" / ENTRIES[2].id).is_dir()
    extract_entries(path, ENTRIES[:3])
    assert list((path / "_wip").iterdir()) == []


def test_garbage_is_removed_by_the_next_commit(tmp_path: Path) -> None:
    path = tmp_path / "s"
    extract_entries(path, ENTRIES[:2])
    (path / "filters" / "00099.h5").write_bytes(b"left by a dead job")
    (path / "tables" / "00007").mkdir()
    (path / "tables" / "00007" / "layers.parquet").write_bytes(b"likewise")
    old = files(path)
    extract_entries(path, ENTRIES[:3])
    assert not {"filters/00099.h5", "tables/00007/layers.parquet"} & files(path)
    # A reader that opened the store before still finds its tables …
    assert "tables/00001/layers.parquet" in files(path) & old
    extract_entries(path, ENTRIES)
    # … until the commit after that.
    assert "tables/00001/layers.parquet" not in files(path)


def test_a_reader_overtaken_twice_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = extract_entries(path, ENTRIES[:2])
    extract_entries(path, ENTRIES[:3])
    assert store.models.num_rows == 2
    extract_entries(path, ENTRIES)
    with pytest.raises(StoreError, match="committed to since it was opened") as caught:
        store.layers  # noqa: B018
    assert caught.value.tip == "open the store again"


def test_a_closed_shard_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    extract_entries(path, ENTRIES[:1])
    with locked(path):
        create(path)
        stage_model(path, ENTRIES[1].id, make_model(ENTRIES[1]))
        shard = assemble_shard(path, 0, [ENTRIES[1].id])
        assert shard is not None
        plan = next_plan(path, ENTRIES[:2], retry=False)
        assert pending(path, plan, [e.id for e in ENTRIES[:2]], retry=False) == (ENTRIES[1].id,)
        with pytest.raises(StoreError, match=r"shard 0 of .* is closed"):
            commit(path, tables=collect_tables(path, plan), shards=[shard], plan=plan)
    assert verify(path) == []
    assert current_manifest(path).generation == 1


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"layer": []}, "a store has no table 'layer'"),
        ({"findings": [{"layer_uid": "x"}]}, "null values in 'weights'"),
    ],
)
def test_tables_that_break_the_schema_are_refused(
    tmp_path: Path, tables: dict[str, list[dict[str, Any]]], message: str
) -> None:
    import pyarrow as pa

    path = tmp_path / "s"
    extract_entries(path, ENTRIES[:1])
    arrow = {n: pa.Table.from_pylist(rows, schema=FINDINGS.arrow) for n, rows in tables.items()}
    with locked(path), pytest.raises(StoreError, match=message):
        commit(path, tables=arrow)
    assert open_store(path).generation == 1


def test_missing_and_surplus_columns_are_refused(tmp_path: Path) -> None:
    store = extract_entries(tmp_path / "s", ENTRIES[:1])
    layers = store.layers.arrow
    surplus = layers.append_column("colour", layers.column("kernel"))
    with locked(store.path):
        with pytest.raises(StoreError, match="lacks the column 'kernel'"):
            commit(store.path, tables={"layers": layers.drop_columns(["kernel"])})
        with pytest.raises(StoreError, match="has no column 'colour'"):
            commit(store.path, tables={"layers": surplus})


def test_how_a_table_came_together_does_not_show(tmp_path: Path) -> None:
    import pyarrow as pa

    from filterdb.store.parquet import check_table, table_bytes

    store = extract_entries(tmp_path / "s", ENTRIES[:3])
    whole = store.layers.arrow
    pieces = pa.concat_tables([whole.slice(i, 1) for i in range(whole.num_rows)])
    shuffled = pieces.select(pieces.column_names[::-1])
    assert bytes(table_bytes(check_table(LAYERS, shuffled))) == bytes(
        table_bytes(check_table(LAYERS, whole))
    )


def test_an_interrupted_first_extraction_says_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with locked(path):
        create(path)
        stage_model(path, ENTRIES[0].id, make_model(ENTRIES[0]))
    with pytest.raises(IncompleteStoreError, match="has not finished") as caught:
        open_store(path)
    assert "filterdb extract" in str(caught.value)
