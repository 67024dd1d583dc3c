"""Local workers: threads and processes that end when the run ends, however it ends."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import signal
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from filterdb.errors import PipelineError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from filterdb.engine.cluster import Cluster

#: prctl(2): send this process a signal when its parent dies.
_PR_SET_PDEATHSIG = 1


class _Process(multiprocessing.context.SpawnProcess):
    """A worker that Ctrl-C on the terminal does not reach; the parent decides.

    The mask has to be there from the first moment: a new process spends half a second importing,
    and a KeyboardInterrupt in there is a traceback on the user's screen.
    """

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(multiprocessing.context.SpawnContext):
    """Spawned processes: a fork copies the locks of threads that do not exist in the child."""

    Process = _Process


def _die_with_parent() -> None:
    """Have Linux end this worker when its parent is killed; it would wait for ever otherwise."""
    import ctypes
    import sys

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


@contextmanager
def local_pool(cluster: Cluster, n_workers: int) -> Iterator[Executor | None]:
    """Start the workers of a local cluster.

    Parameters
    ----------
    cluster
        "sync", "threads" or "processes".
    n_workers
        How many.

    Yields
    ------
    Executor or None
        None for "sync". After an error nothing of it runs any more; Ctrl-C waits for nobody,
        since what is half done is not taken for done.

    Raises
    ------
    PipelineError
        A worker process died.
    """
    if cluster.kind == "sync":
        yield None
        return
    pool: Executor
    if cluster.kind == "threads":
        pool = ThreadPoolExecutor(n_workers, thread_name_prefix="filterdb-worker")
    else:
        pool = ProcessPoolExecutor(n_workers, mp_context=_Context(), initializer=_die_with_parent)
    others = set(multiprocessing.active_children())
    try:
        yield pool
        pool.shutdown(wait=True)
    except BrokenExecutor as error:
        raise PipelineError(
            "a worker process died (killed, or out of memory)",
            tip="run it again, with fewer --workers if memory is short; finished work is kept",
        ) from error
    except Exception:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
