"""Extraction: catalogue → plan → staged models → shards → one commit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.engine import Cluster, Outcome
from filterdb.engine import run as run_tasks
from filterdb.errors import FetchError, PipelineError, StoreNotFoundError
from filterdb.work.extract import ExtractOutcome, ExtractTask, extract_model, stage_failure
from pipelines.console import Console, format_bytes, format_seconds, plural
from pipelines.prefetch import prefetch
from pipelines.run_log import RunLog

if TYPE_CHECKING:
    from filterdb.catalog import Census
    from filterdb.catalog.model import Entry
    from filterdb.store.plan import Plan
    from filterdb.store.shards import AssembledShard
    from filterdb.types import ModelId, ProgressHook

DONE, FAILED_MODELS = 0, 3


@dataclass(frozen=True)
class ExtractConfig:
    """What to extract, where to, and with what.

    Parameters
    ----------
    catalogue
        Name or path.
    store_path
        Folder of the store; made if it does not exist.
    select
        SQL condition over the catalogue's columns.
    cluster
        Where tasks run.
    retry_failed
        Also try again what failed for good.
    cache_path
        Cache of fetched files; None for the default.
    """

    catalogue: str
    store_path: Path
    select: str | None = None
    cluster: Cluster = field(default_factory=Cluster)
    retry_failed: bool = False
    cache_path: Path | None = None


@dataclass(frozen=True)
class _ShardTask:
    """One shard to assemble: a path, a number, and the models in it."""

    store_path: str
    number: int
    model_ids: tuple[ModelId, ...]


def run(config: ExtractConfig, *, console: Console) -> int:
    """Extract what the store does not hold yet.

    Parameters
    ----------
    config
        What and where.
    console
        Where to talk.

    Returns
    -------
    int
        0, or 3 where models failed.
    """
    from filterdb.store.writer import create, locked, next_plan, pending

    started = time.monotonic()
    entries = _entries(config)
    with locked(config.store_path) as store_path:
        create(store_path)
        retry = config.retry_failed
        plan = next_plan(store_path, entries, retry=retry)
        todo = pending(store_path, plan, [e.id for e in entries], retry=retry)
        if not todo:
            return _up_to_date(store_path, entries, console)
        by_id = {e.id: e for e in entries}
        tasks = [
            ExtractTask(str(store_path.resolve()), by_id[m], _optional(config.cache_path))
            for m in todo
        ]
        log = RunLog(store_path, "extract")
        log.start(catalogue=config.catalogue, cluster=str(config.cluster), n_models=len(tasks))
        outcomes = _extract(tasks, config, log, console)
        with console.progress() as progress:
            shards = _assemble(store_path, plan, todo, config, log, progress)
            _commit(store_path, plan, shards)
        log.end(seconds=round(time.monotonic() - started, 3))
    return _summary(config, outcomes, time.monotonic() - started, console)


def dry_run(config: ExtractConfig, *, console: Console) -> int:
    """Say what an extraction would fetch, write and take. Writes nothing.

    Parameters
    ----------
    config
        What and where.
    console
        Where to talk.

    Returns
    -------
    int
        0.
    """
    from filterdb.catalog import take_census
    from filterdb.files import free_bytes
    from filterdb.sources import Cache, look_up

    entries = _entries(config)
    done = _already(config.store_path, retry=config.retry_failed)
    todo = [e for e in entries if e.id not in done]
    counted = take_census(todo, look_up(todo, Cache(config.cache_path), ask=True))
    if len(todo) < len(entries):
        console.say(f"{len(entries) - len(todo):,} of {plural(len(entries), 'model')} done already")
    _say_census(counted, console)
    folder = config.store_path.resolve()
    unknown = sum(e.bytes is None for e in todo)
    more = f" besides {plural(unknown, 'model')} of unknown size" if unknown else ""
    console.say(
        f"store at most {format_bytes(counted.model_bytes)}{more}; "
        f"disk free {format_bytes(free_bytes(folder))}"
    )
    console.say("nothing was written")
    return DONE


def _say_census(counted: Census, console: Console) -> None:
    fetch = "none to fetch"
    if counted.n_archives_to_fetch:
        unknown = counted.n_archives_of_unknown_size
        fetch = (
            f"{counted.n_archives_to_fetch:,} to fetch "
            f"({'at least ' if unknown else ''}{format_bytes(counted.bytes_to_fetch)})"
        )
    console.say(
        f"{plural(counted.n_models, 'model')} in {plural(counted.n_archives, 'archive')}: "
        f"{counted.n_archives_cached:,} cached, {fetch}"
    )


def _entries(config: ExtractConfig) -> tuple[Entry, ...]:
    from filterdb.catalog import load_catalogue, select_entries

    catalogue = load_catalogue(config.catalogue)
    return select_entries(catalogue.entries, config.select)


def _optional(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _already(store_path: Path, *, retry: bool) -> set[ModelId]:
    from filterdb.store import open_store

    try:
        store = open_store(store_path)
    except (StoreNotFoundError, PipelineError):
        return set()
    failed = [r for r in store.failures.to_pylist() if not (retry or r["retryable"])]
    return {r["model_id"] for r in (*store.models.to_pylist(), *failed)}


def _extract(
    tasks: Sequence[ExtractTask], config: ExtractConfig, log: RunLog, console: Console
) -> list[ExtractOutcome]:
    """Fetch, then extract every model that is not staged already."""
    from filterdb.store.staging import read_stage

    fresh = [t for t in tasks if read_stage(Path(t.store_path), t.entry.id, key=t.key) is None]
    if len(fresh) < len(tasks):
        console.say(f"{plural(len(tasks) - len(fresh), 'model')} kept from the run before")
    with console.progress() as progress:
        failed = _prefetch(fresh, config, progress)
    ready = [t for t in fresh if t.entry.id not in failed]
    for task in fresh:
        if task.entry.id in failed:
            stage_failure(task, "fetch", failed[task.entry.id])

    def note(outcome: Outcome[ExtractOutcome]) -> None:
        log.task(outcome, model_id=outcome.value.model_id, error=outcome.value.error)

    with console.progress() as progress:
        run_tasks(
            extract_model,
            ready,
            cluster=config.cluster,
            label="extracting models",
            progress=progress,
            on_outcome=note,
        )
    return [_outcome(t) for t in tasks]


def _outcome(task: ExtractTask) -> ExtractOutcome:
    """Read back what is staged, whichever run staged it."""
    from filterdb.store.staging import read_stage

    stage = read_stage(Path(task.store_path), task.entry.id)
    if stage is None:
        raise PipelineError(f"the stage of {task.entry.id} is gone", tip="run the command again")
    if not stage.ok:
        row = stage.table("failures").to_pylist()[0]
        return ExtractOutcome(
            task.entry.id,
            stage=row["stage"],
            error=row["error"],
            message=row["message"],
            retryable=row["retryable"],
        )
    model = stage.table("models").to_pylist()[0]
    return ExtractOutcome(task.entry.id, model["n_conv_layers"], model["n_filters_3x3"])


def _prefetch(
    tasks: Sequence[ExtractTask], config: ExtractConfig, progress: ProgressHook | None
) -> dict[ModelId, FetchError]:
    from filterdb.sources import Cache

    cache = Cache(config.cache_path)
    entries = [t.entry for t in tasks]
    return prefetch(
        entries, cache, on_fetched=lambda got: cache.release(*got.objects), progress=progress
    )


def _assemble(
    store_path: Path,
    plan: Plan,
    todo: Sequence[ModelId],
    config: ExtractConfig,
    log: RunLog,
    progress: ProgressHook | None,
) -> list[AssembledShard]:
    shard_of = plan.shard_of
    members: dict[int, list[ModelId]] = {}
    for model_id in todo:
        members.setdefault(shard_of[model_id], []).append(model_id)
    tasks = [_ShardTask(str(store_path), n, tuple(ids)) for n, ids in sorted(members.items())]
    outcomes = run_tasks(
        _assemble_one,
        tasks,
        cluster=replace(config.cluster, kind="sync") if len(tasks) == 1 else config.cluster,
        label="assembling shards",
        progress=progress,
        on_outcome=lambda outcome: log.task(outcome, shard=tasks[outcome.index].number),
    )
    return [o.value for o in outcomes if o.value is not None]


def _assemble_one(task: _ShardTask) -> AssembledShard | None:
    from filterdb.store.shards import assemble_shard

    return assemble_shard(Path(task.store_path), task.number, task.model_ids)


def _commit(store_path: Path, plan: Plan, shards: Sequence[AssembledShard]) -> None:
    from filterdb.store.collect import collect_tables
    from filterdb.store.writer import commit

    commit(store_path, tables=collect_tables(store_path, plan), shards=shards, plan=plan)


def _up_to_date(store_path: Path, entries: Sequence[Entry], console: Console) -> int:
    from filterdb.store import open_store

    store = open_store(store_path)
    failed = {r["model_id"] for r in store.failures.to_pylist()} & {e.id for e in entries}
    console.say(
        f"{store_path} is up to date: {plural(len(entries) - len(failed), 'model')} extracted"
        + (f", {len(failed)} failed before (--retry-failed tries again)" if failed else "")
    )
    return FAILED_MODELS if failed else DONE


def _summary(
    config: ExtractConfig, outcomes: Sequence[ExtractOutcome], seconds: float, console: Console
) -> int:
    good = [o for o in outcomes if not o.failed]
    failed = [o for o in outcomes if o.failed]
    console.say(
        f"extracted {len(good)} of {plural(len(outcomes), 'model')}, "
        f"{plural(sum(o.n_layers for o in good), 'layer')}, "
        f"{plural(sum(o.n_filters_3x3 for o in good), 'filter')} of 3×3 "
        f"in {format_seconds(seconds)}" + (f"; {len(failed)} failed:" if failed else "")
    )
    for outcome in failed[:10]:
        console.say(f"  {outcome.model_id}: {outcome.stage}: {outcome.message}")
    if len(failed) > 10:
        console.say(f"  and {len(failed) - 10} more")
    if failed:
        console.say(f'failures: filterdb query {config.store_path} "select * from failures"')
        again = sum(o.retryable for o in failed)
        if again:
            console.say(f"the same command tries {again:,} of them again")
    console.hint(f"next: filterdb analyze {config.store_path}")
    return FAILED_MODELS if failed else DONE
