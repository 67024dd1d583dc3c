"""``filterdb report``: the page of an analysed store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.console import Console, format_bytes, format_seconds, plural

if TYPE_CHECKING:
    from filterdb.report.model import ModelPages
    from filterdb.store import Store


def run(
    store_path: Path, out: Path, *, model_pages: ModelPages, force: bool, console: Console
) -> int:
    """Write the report folder.

    Parameters
    ----------
    store_path
        An analysed store.
    out
        Folder to write; replaced where it is an earlier report.
    model_pages
        all, findings or none.
    force
        Also replace a folder that is no report.
    console
        Where to talk.

    Returns
    -------
    int
        0.
    """
    from filterdb.report.build import build_report
    from filterdb.store import open_store

    started = time.monotonic()
    store = open_store(store_path)
    with console.progress() as progress:
        summary = build_report(store, out, model_pages=model_pages, force=force, progress=progress)
    if summary.up_to_date:
        console.say(f"{out} is up to date")
    else:
        console.say(
            f"report of {plural(summary.n_models, 'model')}: {plural(summary.n_files, 'file')}, "
            f"{format_bytes(summary.n_bytes)} in {format_seconds(time.monotonic() - started)}"
        )
    if not _is_analysed(store):
        console.say(
            f"{store_path} is not analysed, so most is left out: filterdb analyze {store_path}"
        )
    console.hint(f"open {summary.path}")
    return 0


def _is_analysed(store: Store) -> bool:
    from filterdb.errors import IncompleteStoreError

    try:
        _ = store.results
    except IncompleteStoreError:
        return False
    return True
