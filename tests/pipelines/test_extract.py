"""Extraction as a job: the same store whatever the workers, and whatever interrupts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

import filterdb
from filterdb.engine import Cluster, parse_cluster
from filterdb.errors import CatalogError, StoreExistsError, UsageError
from filterdb.store.verify import verify
from pipelines.console import Console
from pipelines.extract_filters import ExtractConfig, dry_run, run
from tests.pipelines.models import write_models

QUIET = Console(quiet=True)
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def extract(catalogue: Path, store: Path, cluster: Cluster | None = None, **options: object) -> int:
    config = ExtractConfig(
        str(catalogue),
        store,
        cluster=cluster or Cluster("sync"),
        cache_path=store.parent / f"{store.name}-cache",
        **options,  # type: ignore[arg-type]
    )
    return run(config, console=QUIET)


def listing(store: Path) -> dict[str, str]:
    """Path → hash of every file the manifest names; equal listings are equal stores."""
    rows = filterdb.open(store).manifest.to_pylist()
    return {row["path"]: row["sha256"] for row in rows}


@pytest.fixture(scope="module")
def undisturbed(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    assert extract(catalogue, store) == 3
    return store


def test_every_filter_is_the_source_s_own(catalogue: Path, undisturbed: Path) -> None:
    store = filterdb.open(undisturbed)
    for index in range(5):
        source = load_file(str(catalogue.parent / f"net-{index}.safetensors"))
        blocks = [
            b for k in ("3x3", "5x5") for b in store.filters(k, where=f"model_id = 'net-{index}'")
        ]
        for block, name in zip(blocks, ("conv1", "conv2", "up"), strict=True):
            weights = source[f"{name}.weight"]
            assert block.layer["name"] == name
            assert block.values.dtype == weights.dtype
            np.testing.assert_array_equal(block.values, weights.reshape(len(block.values), -1))


def test_a_broken_model_is_a_row_and_stops_nothing(undisturbed: Path) -> None:
    store = filterdb.open(undisturbed)
    (failure,) = store.failures.to_pylist()
    assert (failure["model_id"], failure["stage"]) == ("broken", "open")
    assert failure["error"] == "MalformedFileError"
    assert failure["retryable"] is False
    assert store.models.num_rows == 5


def test_folded_states_only_where_a_batch_norm_follows(undisturbed: Path) -> None:
    rows = filterdb.open(undisturbed).sql(
        "select name, bn, list_sort(list(distinct weights)) as weights "
        "from layer_states join layers using (layer_uid) group by all order by all"
    )
    assert {(r["name"], r["bn"], *r["weights"]) for r in rows.to_pylist()} == {
        ("conv1", "separate", "folded", "raw"),
        ("conv2", "none", "raw"),
        ("up", "none", "raw"),
    }


@pytest.mark.parametrize(
    ("kind", "n_workers"),
    [("threads", 1), ("threads", 2), ("threads", 4), ("processes", 1), ("processes", 4)],
)
def test_tables_do_not_depend_on_workers(
    kind: str, n_workers: int, catalogue: Path, undisturbed: Path, tmp_path: Path
) -> None:
    assert extract(catalogue, tmp_path / "store", parse_cluster(kind, n_workers)) == 3
    assert listing(tmp_path / "store") == listing(undisturbed)
    if n_workers > 1:
        assert workers_seen(tmp_path / "store") > 1


def test_a_dask_cluster_gives_the_same_bits(
    catalogue: Path, undisturbed: Path, tmp_path: Path
) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        extract(catalogue, tmp_path / "store", parse_cluster(cluster.scheduler_address))
    assert listing(tmp_path / "store") == listing(undisturbed)
    assert workers_seen(tmp_path / "store") == 2


def workers_seen(store: Path) -> int:
    lines = (store / "log" / "extract.jsonl").read_text().splitlines()
    tasks = [json.loads(line) for line in lines]
    return len({t["worker"] for t in tasks if t["event"] == "task" and "model_id" in t})


def test_a_second_run_does_nothing(catalogue: Path, undisturbed: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.parquet")}
    assert extract(catalogue, undisturbed) == 3
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.parquet")} == before


def test_new_entries_are_appended_and_old_shards_kept(tmp_path: Path) -> None:
    catalogue = write_models(tmp_path / "models", n_models=3)
    extract(catalogue, tmp_path / "store")
    first = listing(tmp_path / "store")
    write_models(tmp_path / "models", n_models=6)
    extract(catalogue, tmp_path / "store")
    second = listing(tmp_path / "store")
    shards = {path for path in first if path.startswith("filters/")}
    assert {p: second[p] for p in shards} == {p: first[p] for p in shards}
    assert len(second) > len(first)
    assert filterdb.open(tmp_path / "store").models.num_rows == 6
    assert verify(tmp_path / "store") == []


def test_a_mended_model_is_taken_with_retry_failed(tmp_path: Path) -> None:
    catalogue = write_models(tmp_path / "models", n_models=2)
    extract(catalogue, tmp_path / "store")
    good = (tmp_path / "models" / "net-0.safetensors").read_bytes()
    (tmp_path / "models" / "broken.safetensors").write_bytes(good)
    assert extract(catalogue, tmp_path / "store") == 3
    assert extract(catalogue, tmp_path / "store", retry_failed=True) == 0
    store = filterdb.open(tmp_path / "store")
    assert store.failures.num_rows == 0
    assert store.models.num_rows == 3
    # The same weights as net-0: found by hash.
    twins = store.sql("select count(*) as n from layers where duplicate_of is not null")
    assert twins.to_pylist() == [{"n": 4}] or twins.to_pylist() == [{"n": 3}]
    assert verify(tmp_path / "store") == []


def test_killed_anywhere_and_run_again_gives_the_same_store(
    catalogue: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_points.py"), str(catalogue), str(tmp_path), "1", "24"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    assert len(told["points"]) >= 20
    assert told["manifest"] in told["points"]
    expected = listing(tmp_path / "undisturbed")
    for point in told["points"]:
        store = tmp_path / f"killed-{point}"
        assert listing(store) == expected, f"killed before operation {point}"
        assert verify(store) == []
    same_content(tmp_path / "undisturbed", tmp_path / f"killed-{told['manifest']}")


def same_content(first: Path, second: Path) -> None:
    """Compare by content too, in case equal hashes in a manifest were the lie."""
    for row in filterdb.open(first).manifest.to_pylist():
        one, two = first / row["path"], second / row["path"]
        if one.suffix == ".parquet":
            assert pq.read_table(one).equals(pq.read_table(two))
        elif one.suffix == ".h5":
            with h5py.File(one) as a, h5py.File(two) as b:
                names: list[str] = []
                a.visit(names.append)
                for name in names:
                    if isinstance(a[name], h5py.Dataset):
                        np.testing.assert_array_equal(a[name][()], b[name][()])


def test_two_extractions_at_once(catalogue: Path, tmp_path: Path) -> None:
    from filterdb.store.lock import locked

    with locked(tmp_path / "store"), pytest.raises(StoreExistsError, match="another job"):
        extract(catalogue, tmp_path / "store")


def test_dry_run_writes_nothing(
    catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ExtractConfig(str(catalogue), tmp_path / "store", cache_path=tmp_path / "cache")
    assert dry_run(config, console=Console()) == 0
    assert list(tmp_path.iterdir()) == []
    told = capsys.readouterr().err
    assert "6 models" in told
    assert "nothing was written" in told


def test_catalogue_errors_come_before_anything_is_written(tmp_path: Path) -> None:
    catalogue = write_models(tmp_path / "models", n_models=1)
    text = catalogue.read_text()
    catalogue.write_text(text.replace("architecture =", "architektur ="))
    with pytest.raises(CatalogError, match="architektur"):
        extract(catalogue, tmp_path / "store")
    catalogue.write_text(text)
    with pytest.raises(UsageError, match="tusk"):
        extract(catalogue, tmp_path / "store", select="tusk = 'ocr'")
    assert not (tmp_path / "store").exists()
