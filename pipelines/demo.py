"""``filterdb demo``: the main job, end to end, on real models."""

from __future__ import annotations

import time
from pathlib import Path

from filterdb.engine import parse_cluster
from pipelines import analyse, build_report, extract_filters
from pipelines.console import Console, format_seconds

CATALOGUE = "demo"


def run(
    out: Path,
    *,
    scheduler: str | None,
    n_workers: int | None,
    cache_path: Path | None,
    console: Console,
) -> int:
    """Fetch, extract, analyse and report the demo catalogue.

    Parameters
    ----------
    out
        Folder that gets ``store/`` and ``report/``.
    scheduler, n_workers
        Where tasks run, see :func:`filterdb.engine.parse_cluster`.
    cache_path
        Cache of fetched files; None for the default.
    console
        Where to talk.

    Returns
    -------
    int
        0, or 3 where models failed.
    """
    started = time.monotonic()
    cluster = parse_cluster(scheduler, n_workers)
    store_path, report_path = out / "store", out / "report"
    config = extract_filters.ExtractConfig(
        CATALOGUE, store_path, cluster=cluster, cache_path=cache_path
    )
    inner = console.without_hints()
    code = extract_filters.run(config, console=inner)
    analyse.run(store_path, by=None, compat=None, cluster=cluster, console=inner)
    build_report.run(store_path, report_path, model_pages="all", force=False, console=inner)
    console.say(f"done in {format_seconds(time.monotonic() - started)}; open this page:")
    # The one line of data this command has: a script can take it from here.
    print(report_path / "index.html")
    return code
