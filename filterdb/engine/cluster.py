"""Where tasks run: in this thread, on local threads or processes, or on a dask cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, cast

from filterdb.errors import UnknownNameError, UsageError

Kind = Literal["sync", "threads", "processes", "address"]
LOCAL_KINDS: tuple[str, ...] = ("threads", "processes", "sync")


@dataclass(frozen=True)
class Cluster:
    """A place to run tasks.

    Parameters
    ----------
    kind
        "sync" (this thread, for debugging), "threads", "processes" or "address".
    n_workers
        Workers of a local kind, at least 1; ignored for an address.
    address
        dask scheduler address such as ``tcp://10.0.0.1:8786``.
    """

    kind: Kind = "threads"
    n_workers: int = 1
    address: str | None = None

    def __str__(self) -> str:
        if self.kind == "address":
            return f"dask cluster {self.address}"
        return f"{self.n_workers} {self.kind}" if self.kind != "sync" else "this thread"


def available_cores() -> int:
    """Return the number of cores this process may use.

    Returns
    -------
    int
        At least 1.
    """
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def parse_cluster(scheduler: str | None = None, n_workers: int | None = None) -> Cluster:
    """Understand ``--scheduler`` and ``--workers``.

    Parameters
    ----------
    scheduler
        "threads" (default), "processes", "sync", or a dask address with "://".
    n_workers
        Local workers; 0 means "sync"; default one per core.

    Returns
    -------
    Cluster
        The place to run.

    Raises
    ------
    UsageError
        For a negative number of workers.
    UnknownNameError
        For a scheduler that is neither a local kind nor an address.
    """
    if n_workers is not None and n_workers < 0:
        raise UsageError(f"--workers is {n_workers}, expected 0 or more")
    if scheduler and "://" in scheduler:
        return Cluster("address", n_workers or 1, scheduler)
    kind = scheduler or "threads"
    if kind not in LOCAL_KINDS:
        raise UnknownNameError("scheduler", kind, [*LOCAL_KINDS, "tcp://HOST:PORT"])
    if n_workers == 0 or kind == "sync":
        return Cluster("sync", 1)
    return Cluster(cast("Kind", kind), n_workers or available_cores())
