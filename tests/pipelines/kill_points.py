"""Run an extraction again and again, killed each time at another file operation.

``python kill_points.py CATALOGUE FOLDER SEED N`` runs one extraction itself, then forks a child per
point. A child counts its renames, fsyncs, unlinks and mkdirs and kills itself with SIGKILL just
before the chosen one; a second child finishes the job. The stores are left in FOLDER for the
caller to compare: ``undisturbed`` and one ``killed-<point>`` each. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filterdb.engine import Cluster
from pipelines.console import Console
from pipelines.extract_filters import ExtractConfig, run

COUNTED = ("rename", "replace", "fsync", "unlink", "mkdir", "rmdir")


class Counter:
    """Counts file operations; at the chosen one, the process dies."""

    def __init__(self, fatal: int | None) -> None:
        self.fatal = fatal
        self.log: list[str] = []
        for name in COUNTED:
            setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.log.append(f"{name} {args[-1] if name in ('rename', 'replace') else ''}")
            if len(self.log) == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return counted


def extract(catalogue: str, store: Path, fatal: int | None, log_path: Path | None = None) -> int:
    """Extract in a forked child; return its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            counter = Counter(fatal)
            cache = store.parent / f"{store.name}-cache"
            config = ExtractConfig(catalogue, store, cluster=Cluster("sync"), cache_path=cache)
            code = run(config, console=Console(quiet=True))
            if log_path is not None:
                log_path.write_text(json.dumps(counter.log))
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def main() -> None:
    catalogue, folder, seed, n_points = sys.argv[1:]
    root, log_path = Path(folder), Path(folder) / "operations.json"
    # Once in this process, so that the children find every module imported already.
    warm = ExtractConfig(
        catalogue, root / "warm", cluster=Cluster("sync"), cache_path=root / "warm-cache"
    )
    run(warm, console=Console(quiet=True))
    status = extract(catalogue, root / "undisturbed", None, log_path)
    assert os.waitstatus_to_exitcode(status) in (0, 3), status
    operations = json.loads(log_path.read_text())
    # The point that matters most: everything is in place but the manifest does not say so yet.
    last = max(i for i, op in enumerate(operations, 1) if op.endswith("manifest.parquet"))
    points = {last, last - 1, last + 1}
    draw = random.Random(int(seed))
    points |= set(draw.sample(range(1, len(operations)), int(n_points)))
    points = sorted(p for p in points if p <= len(operations))
    for point in points:
        store = root / f"killed-{point}"
        status = extract(catalogue, store, point)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, (point, status)
        code = os.waitstatus_to_exitcode(extract(catalogue, store, None))
        assert code in (0, 3), (point, code)
    sys.stdout.write(
        json.dumps({"points": points, "manifest": last, "operations": len(operations)})
    )


if __name__ == "__main__":
    main()
