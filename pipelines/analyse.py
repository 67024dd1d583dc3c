"""Analysis: layer quality and PCA from the states, shift from two passes over the filters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filterdb.engine import Cluster
from filterdb.engine import run as run_tasks
from filterdb.errors import IncompleteStoreError
from pipelines.console import Console, format_seconds, plural
from pipelines.run_log import RunLog

if TYPE_CHECKING:
    import pyarrow as pa

    from filterdb.analysis.basis import Basis
    from filterdb.analysis.config import AnalysisConfig
    from filterdb.analysis.shift import ScanTask
    from filterdb.store import Store
    from filterdb.types import AnyArray, FloatArray, ProgressHook


@dataclass(frozen=True)
class _Range:
    """First pass: the range of every layer's coefficients."""

    reference: Mapping[str, Basis]

    def __call__(self, task: ScanTask) -> FloatArray:
        from filterdb.work import observe

        return observe.coefficient_range(task, self.reference[task.kernel])


@dataclass(frozen=True)
class _Histogram:
    """Second pass: every layer's coefficients in the bins the first pass gave."""

    reference: Mapping[str, Basis]
    edges: Mapping[str, FloatArray]

    def __call__(self, task: ScanTask) -> AnyArray:
        from filterdb.work import observe

        return observe.coefficient_histogram(
            task, self.reference[task.kernel], self.edges[task.kernel]
        )


def run(
    store_path: Path,
    *,
    by: Sequence[str] | None,
    compat: str | None,
    cluster: Cluster,
    console: Console,
) -> int:
    """Analyse a store and commit the results to it.

    Parameters
    ----------
    store_path
        The store.
    by
        Groupings: columns or SQL expressions; None for the default ones.
    compat
        "cnn-filter-db" or None.
    cluster
        Where the passes over the filters run.
    console
        Where to talk.

    Returns
    -------
    int
        0.
    """
    from filterdb.analysis.config import AnalysisConfig
    from filterdb.analysis.grouping import default_by
    from filterdb.store import open_store
    from filterdb.store.writer import commit, locked

    started = time.monotonic()
    open_store(store_path)  # a clear error before a lock file is left where no store is
    with locked(store_path):
        store = open_store(store_path)
        config = AnalysisConfig(by=tuple(by or default_by(store)), compat=compat)  # type: ignore[arg-type]
        if _up_to_date(store, config):
            console.say(f"the analyses of {store_path} are up to date")
            return 0
        log = RunLog(store_path, "analyze")
        log.start(cluster=str(cluster), by=config.by, compat=compat)
        with console.progress() as progress:
            tables = compute(store, config, cluster=cluster, log=log, progress=progress)
        commit(store_path, tables=tables)
        log.end(seconds=round(time.monotonic() - started, 3))
    console.say(
        f"analysed {plural(store.layers.num_rows, 'layer')} of "
        f"{plural(store.models.num_rows, 'model')} by {', '.join(config.by)} "
        f"in {format_seconds(time.monotonic() - started)}: "
        f"{plural(tables['findings'].num_rows, 'finding')}"
    )
    console.hint(f"next: filterdb report {store_path} --out report")
    return 0


def compute(
    store: Store,
    config: AnalysisConfig,
    *,
    cluster: Cluster,
    log: RunLog,
    progress: ProgressHook | None,
) -> dict[str, pa.Table]:
    """Compute every table an analysis commits.

    Parameters
    ----------
    store
        An open store.
    config
        What to compute.
    cluster
        Where the passes run.
    log
        Run log.
    progress
        Progress hook.

    Returns
    -------
    dict
        quality, findings, results, bases and histograms; rows of other runs are kept.
    """
    from filterdb.analysis import pca, quality, shift

    quality_table, findings = quality.quality_tables(store.layers.arrow, store.layer_states.arrow)
    pca_results, bases = pca.analyse(store, config)
    reference = shift.reference_bases(store, config)
    tasks = shift.scan_tasks(store, config)

    def scan(function: Any, label: str) -> list[Any]:
        outcomes = run_tasks(
            function,
            tasks,
            cluster=cluster,
            label=label,
            progress=progress,
            on_outcome=lambda outcome: log.task(outcome, label=label, task=outcome.index),
        )
        return [outcome.value for outcome in outcomes]

    ranges = scan(_Range(reference), "ranges of coefficients")
    edges = shift.bin_edges(tasks, ranges, config.bins)
    counts = scan(_Histogram(reference, edges), "histograms of coefficients")
    if progress is not None:
        progress("comparing groups", 0, None)
    shift_results, histograms = shift.analyse(store, config, tasks, ranges, counts)
    return {
        "quality": quality_table,
        "findings": findings,
        "results": _merged(store, "results", pca_results, shift_results),
        "bases": _merged(store, "bases", bases),
        "histograms": _merged(store, "histograms", histograms),
    }


def _merged(store: Store, name: str, *fresh: pa.Table) -> pa.Table:
    """Put new rows in the place of those of the same fingerprint and axis; keep the others.

    Rows of an earlier version of the same analysis mean something else and go.
    """
    import pyarrow as pa

    new = pa.concat_tables(fresh)
    try:
        old = store.table(name).arrow
    except IncompleteStoreError:
        return new
    replaced = _runs(new)
    current = set(_columns(new, "analysis", "version"))
    named = {analysis for analysis, _ in current}
    keep = [
        pair not in replaced and (kind in current or kind[0] not in named)
        for pair, kind in zip(_pairs(old), _columns(old, "analysis", "version"), strict=True)
    ]
    return pa.concat_tables([old.filter(pa.array(keep, pa.bool_())), new])


def _columns(table: pa.Table, *names: str) -> list[tuple[str, str]]:
    return list(zip(*(table.column(name).to_pylist() for name in names), strict=True))


def _pairs(table: pa.Table) -> list[tuple[str, str]]:
    return _columns(table, "fingerprint", "axis")


def _runs(table: pa.Table) -> set[tuple[str, str]]:
    return set(_pairs(table))


def _up_to_date(store: Store, config: AnalysisConfig) -> bool:
    """Whether every grouping asked for is there, computed from these filters."""
    from filterdb.analysis import pca, shift

    try:
        _ = store.quality
        done = _runs(store.results.arrow)
    except IncompleteStoreError:
        return False
    analyses = [pca] if not shift.scan_tasks(store, config) else [pca, shift]
    fingerprints = [config.fingerprint(a.NAME, a.VERSION, store.fingerprint) for a in analyses]
    return all((f, axis) in done for f in fingerprints for axis in config.by)
