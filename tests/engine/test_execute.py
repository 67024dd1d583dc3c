"""The engine gives the same outcomes in the same order wherever tasks run."""

from __future__ import annotations

import os
import threading
import time

import pytest

from filterdb.engine import Cluster, parse_cluster, run
from filterdb.engine.cluster import available_cores
from filterdb.errors import PipelineError, StoreError, UnknownNameError, UsageError

TASKS = list(range(12))


def square_slowly(n: int) -> int:
    # Later tasks finish first, so an engine that returned in order of finishing would be caught.
    time.sleep(0.002 * (12 - n))
    return n * n


def refuse_seven(n: int) -> int:
    if n == 7:
        raise StoreError("seven is no good", tip="take another")
    return n


@pytest.mark.parametrize("kind", ["sync", "threads", "processes"])
def test_outcomes_come_in_task_order(kind: str) -> None:
    seen: list[int] = []
    outcomes = run(
        square_slowly,
        TASKS,
        cluster=parse_cluster(kind, 2),
        on_outcome=lambda outcome: seen.append(outcome.index),
    )
    assert [o.value for o in outcomes] == [n * n for n in TASKS]
    assert sorted(seen) == TASKS
    workers = {o.worker for o in outcomes}
    assert len(workers) == (1 if kind == "sync" else 2)
    assert all(o.seconds > 0 for o in outcomes)


def test_progress_counts_every_task() -> None:
    told: list[tuple[str, int, int | None]] = []
    run(
        square_slowly,
        TASKS[:3],
        cluster=Cluster("sync"),
        label="squares",
        progress=lambda *event: told.append(event),
    )
    assert told == [("squares", n, 3) for n in range(4)]


def test_no_tasks_no_outcomes() -> None:
    assert run(square_slowly, [], cluster=Cluster("threads", 2)) == []


@pytest.mark.parametrize("kind", ["sync", "threads", "processes"])
def test_an_error_stops_the_run_and_keeps_its_type(kind: str) -> None:
    with pytest.raises(StoreError) as caught:
        run(refuse_seven, TASKS, cluster=parse_cluster(kind, 2))
    assert caught.value.message == "seven is no good"
    assert caught.value.tip == "take another"


def test_blas_is_held_to_one_thread() -> None:
    outcomes = run(blas_threads, [0, 1], cluster=Cluster("threads", 2))
    assert all(o.value in (set(), {1}) for o in outcomes)


def blas_threads(_: int) -> set[int]:
    import numpy as np
    from threadpoolctl import threadpool_info

    np.ones((4, 4)) @ np.ones((4, 4))
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filterdb.engine.execute.CONNECT_TIMEOUT_S", 1)
    with pytest.raises(PipelineError, match="no dask scheduler answers"):
        run(square_slowly, TASKS, cluster=parse_cluster("tcp://127.0.0.1:1"))


def test_parse_cluster() -> None:
    assert parse_cluster() == Cluster("threads", available_cores())
    assert parse_cluster("processes", 3) == Cluster("processes", 3)
    assert parse_cluster(None, 0) == Cluster("sync", 1)
    assert parse_cluster("tcp://host:1").kind == "address"
    with pytest.raises(UsageError, match="--workers is -1"):
        parse_cluster(None, -1)
    with pytest.raises(UnknownNameError) as caught:
        parse_cluster("thread")
    assert caught.value.nearest == ["threads"]


def test_worker_names_tell_processes_apart() -> None:
    (outcome,) = run(square_slowly, [1], cluster=Cluster("sync"))
    _, process, thread = outcome.worker.rsplit(":", 2)
    assert int(process) == os.getpid()
    assert int(thread) == threading.get_ident()
