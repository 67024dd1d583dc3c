"""Map a function over tasks: same outcomes in the same order, wherever they run."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from filterdb.engine.pools import local_pool
from filterdb.errors import PipelineError

if TYPE_CHECKING:
    from filterdb.engine.cluster import Cluster
    from filterdb.types import ProgressHook

T = TypeVar("T")
R = TypeVar("R")

#: Seconds to wait for a dask scheduler before saying that nobody answers.
CONNECT_TIMEOUT_S = 15


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of one task.

    Parameters
    ----------
    index
        Position of the task in the list given to :func:`run`.
    value
        What the function returned.
    worker
        ``host:process:thread`` that ran it; for the run log, never for a table.
    seconds
        Wall time inside the function.
    """

    index: int
    value: R
    worker: str
    seconds: float


@dataclass(frozen=True)
class _Call(Generic[T, R]):
    """The picklable wrapper around the caller's function.

    BLAS is held to one thread: results of a matrix product may differ in the last bit with the
    number of BLAS threads, and workers would only fight over the cores. In a process of its own
    the limit stays for good; in this process :func:`_run_local` holds it around the whole run,
    because threads that end at different times would lift it for one another.
    """

    function: Callable[[T], R]
    limit_blas: bool

    def __call__(self, index: int, task: T) -> Outcome[R]:
        if self.limit_blas:
            from threadpoolctl import threadpool_limits

            threadpool_limits(limits=1)
        worker = f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}"
        start = time.perf_counter()
        value = self.function(task)
        return Outcome(index, value, worker, time.perf_counter() - start)


def run(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    cluster: Cluster,
    label: str = "tasks",
    progress: ProgressHook | None = None,
    on_outcome: Callable[[Outcome[R]], None] | None = None,
) -> list[Outcome[R]]:
    """Run ``function(task)`` for every task.

    Parameters
    ----------
    function
        Picklable (module level, or a frozen dataclass with ``__call__``). It handles what may go
        wrong with its item itself; an exception that leaves it stops the whole run.
    tasks
        Small picklable values: paths and integers, never arrays.
    cluster
        Where to run.
    label
        What the progress hook is told.
    progress
        Called after each task with (label, done, total).
    on_outcome
        Called once per task, in the order they finish, in the calling thread or the scheduler's.

    Returns
    -------
    list of Outcome
        In the order of `tasks`.

    Raises
    ------
    PipelineError
        If a dask scheduler cannot be reached or loses its workers.
    """
    done = 0

    def note(outcome: Outcome[R]) -> None:
        nonlocal done
        done += 1
        if on_outcome is not None:
            on_outcome(outcome)
        if progress is not None:
            progress(label, done, len(tasks))

    if not tasks:
        return []
    if progress is not None:
        progress(label, 0, len(tasks))
    call: _Call[T, R] = _Call(function, limit_blas=cluster.kind in ("processes", "address"))
    if cluster.kind == "address":
        outcomes = _run_distributed(call, tasks, cluster, note)
    else:
        outcomes = _run_local(call, tasks, cluster, note)
    return sorted(outcomes, key=lambda outcome: outcome.index)


def _run_local(
    call: _Call[T, R], tasks: Sequence[T], cluster: Cluster, note: Callable[[Outcome[R]], None]
) -> list[Outcome[R]]:
    import dask
    import numpy as np  # noqa: F401 - its BLAS must be loaded to be limited
    from dask.callbacks import Callback
    from threadpoolctl import threadpool_limits

    def posttask(_key: object, value: object, _dsk: object, _state: object, _id: object) -> None:
        if isinstance(value, Outcome):
            note(value)

    # traverse=False: tasks are opaque values, dask need not look for graphs inside them.
    lazy = dask.delayed(call, pure=False, traverse=False)
    graph = [lazy(index, task) for index, task in enumerate(tasks)]
    n_workers = min(cluster.n_workers, len(tasks))
    # One task a trip: dask's default hands six to one process while others idle.
    options = {"chunksize": 1} if cluster.kind == "processes" else {}
    with (
        threadpool_limits(limits=1),
        local_pool(cluster, n_workers) as pool,
        Callback(posttask=posttask),
    ):
        return list(
            dask.compute(*graph, scheduler=cluster.kind, pool=pool, optimize_graph=False, **options)
        )


def _run_distributed(
    call: _Call[T, R], tasks: Sequence[T], cluster: Cluster, note: Callable[[Outcome[R]], None]
) -> list[Outcome[R]]:
    from distributed import Client, as_completed
    from distributed.scheduler import KilledWorker

    try:
        client = Client(cluster.address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise PipelineError(
            f"no dask scheduler answers at {cluster.address}: {error}",
            tip="start one with `dask scheduler` and workers with `dask worker ADDRESS`",
        ) from error
    outcomes: list[Outcome[R]] = []
    with client:
        if not client.scheduler_info(n_workers=-1).get("workers"):
            raise PipelineError(
                f"the dask scheduler at {cluster.address} has no workers",
                tip="start some with `dask worker ADDRESS`",
            )
        futures: list[Any] = client.map(
            call, range(len(tasks)), list(tasks), pure=False, batch_size=64
        )
        try:
            for future in as_completed(futures, loop=client.loop):
                outcome = future.result()
                outcomes.append(outcome)
                note(outcome)
        except KilledWorker as error:
            raise PipelineError(
                f"a worker died again and again on one task: {error}",
                tip="give workers more memory, or run with --workers 1 to see which model it is",
            ) from error
        finally:
            client.cancel(futures)
    return outcomes
