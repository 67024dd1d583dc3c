"""Analysis as a job: the same tables whatever the workers, nothing done twice, the report."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

import filterdb
from filterdb.engine import Cluster, parse_cluster
from filterdb.store.verify import verify
from filterdb.testing import make_store
from pipelines import analyse
from pipelines.console import Console

if TYPE_CHECKING:
    from pathlib import Path

QUIET = Console(quiet=True)
TABLES = ("quality", "findings", "results", "bases", "histograms")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("extracted"), n_models=8, seed=5).path


def copy_of(store: Path, target: Path) -> Path:
    return shutil.copytree(store, target)


def analyse_with(store: Path, cluster: Cluster, **options: object) -> dict[str, str]:
    """Analyse; return table → hash."""
    arguments: dict[str, object] = {"by": None, "compat": None, **options}
    analyse.run(store, cluster=cluster, console=QUIET, **arguments)  # type: ignore[arg-type]
    rows = filterdb.open(store).manifest.to_pylist()
    names = {row["path"].rsplit("/", 1)[-1].removesuffix(".parquet"): row for row in rows}
    return {name: names[name]["sha256"] for name in TABLES}


@pytest.fixture(scope="module")
def analysed(extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = copy_of(extracted, tmp_path_factory.mktemp("analysed") / "store")
    analyse_with(store, Cluster("sync"))
    return store


def hashes(store: Path) -> dict[str, str]:
    rows = filterdb.open(store).manifest.to_pylist()
    return {row["path"]: row["sha256"] for row in rows}


@pytest.mark.parametrize(("kind", "n"), [("threads", 1), ("threads", 2), ("processes", 4)])
def test_tables_do_not_depend_on_workers(
    kind: str, n: int, extracted: Path, analysed: Path, tmp_path: Path
) -> None:
    store = copy_of(extracted, tmp_path / "store")
    analyse_with(store, parse_cluster(kind, n))
    assert hashes(store) == hashes(analysed)
    assert verify(store) == []


def test_a_dask_cluster_gives_the_same_bits(
    extracted: Path, analysed: Path, tmp_path: Path
) -> None:
    from distributed import LocalCluster

    store = copy_of(extracted, tmp_path / "store")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        analyse_with(store, parse_cluster(cluster.scheduler_address))
    assert hashes(store) == hashes(analysed)


def test_a_second_run_does_nothing(analysed: Path) -> None:
    before = filterdb.open(analysed).generation
    analyse_with(analysed, Cluster("sync"))
    assert filterdb.open(analysed).generation == before


def test_another_grouping_is_added_and_the_others_kept(analysed: Path, tmp_path: Path) -> None:
    store = copy_of(analysed, tmp_path / "store")
    analyse_with(store, Cluster("sync"), by=["architecture"])
    axes = filterdb.open(store).sql("select distinct axis from results order by axis")
    assert [row["axis"] for row in axes.to_pylist()] == [
        "*",
        "architecture",
        "depth_decile",
        "task",
        "visual_category",
    ]
    key = "analysis, fingerprint, axis, group_a, group_b, kernel, component, metric"
    twice = filterdb.open(store).sql(f"select {key} from results group by all having count(*) > 1")
    assert twice.to_pylist() == []


def test_compatible_mode_stands_beside_the_default(analysed: Path, tmp_path: Path) -> None:
    store = copy_of(analysed, tmp_path / "store")
    analyse_with(store, Cluster("sync"), compat="cnn-filter-db")
    modes = filterdb.open(store).sql("select distinct weighting, sparse from results order by all")
    assert modes.to_pylist() == [
        {"weighting": "filter", "sparse": "removed"},
        {"weighting": "model", "sparse": "kept"},
    ]


def test_pca_of_all_filters_equals_scikit_learn(extracted: Path, tmp_path: Path) -> None:
    from sklearn.decomposition import PCA

    store = copy_of(extracted, tmp_path / "store")
    analyse_with(store, Cluster("sync"), by=["task"], compat="cnn-filter-db")
    opened = filterdb.open(store)
    kept = []
    for block in opened.filters("3x3"):
        filters = np.asarray(block.values, dtype=np.float64)
        filters = filters[np.abs(filters).max(axis=1) >= 0.01 * np.abs(filters).max()]
        kept.append(filters / np.abs(filters).max(axis=1, keepdims=True))
    peer = PCA(svd_solver="full").fit(np.concatenate(kept))
    (basis,) = opened.sql(
        "select * from bases where axis = '*' and kernel = '3x3' and weighting = 'filter'"
    ).to_pylist()
    assert basis["n_filters"] == sum(map(len, kept))
    np.testing.assert_allclose(basis["evr"], peer.explained_variance_ratio_, atol=1e-8)
    np.testing.assert_allclose(basis["mean"], peer.mean_, atol=1e-8)
    components = np.reshape(basis["components"], (9, 9))
    cosines = np.abs(np.einsum("ij,ij->i", components, peer.components_))
    np.testing.assert_allclose(cosines, 1.0, atol=1e-8)


def test_the_report_is_written_and_names_its_page(analysed: Path, tmp_path: Path) -> None:
    from pipelines import build_report

    assert (
        build_report.run(
            analysed, tmp_path / "report", model_pages="all", force=False, console=QUIET
        )
        == 0
    )
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert record["n_models"] == 8
    assert "8 models" in page
