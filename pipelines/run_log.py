"""The run log: who did what, and how long it took. Never part of a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filterdb.files import disk_errors

if TYPE_CHECKING:
    from filterdb.engine import Outcome

LOG_FOLDER = "log"


class RunLog:
    """One JSON line per finished task, in ``<store>/log/<job>.jsonl``.

    Parameters
    ----------
    store_path
        The store.
    job
        "extract", "analyze".
    """

    def __init__(self, store_path: Path, job: str) -> None:
        self.path = store_path / LOG_FOLDER / f"{job}.jsonl"
        with disk_errors(self.path):
            self.path.parent.mkdir(exist_ok=True)
        self.workers: set[str] = set()

    def start(self, **facts: Any) -> None:
        """Begin a run; earlier runs of the job stay in the file."""
        self._write({"event": "start", **facts})

    def task(self, outcome: Outcome[Any], **facts: Any) -> None:
        """Note one finished task."""
        self.workers.add(outcome.worker)
        record = {"event": "task", "worker": outcome.worker, "seconds": round(outcome.seconds, 4)}
        self._write({**record, **facts})

    def end(self, **facts: Any) -> None:
        """Note the end of the run."""
        self._write({"event": "end", "n_workers_seen": len(self.workers), **facts})

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, default=str) + "\n"
        needed = len(line)
        with disk_errors(self.path, needed=needed), self.path.open("a", encoding="utf-8") as file:
            file.write(line)
