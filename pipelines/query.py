"""``filterdb query``: SQL over a store's tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.output import write_arrow

if TYPE_CHECKING:
    from pipelines.console import Console


def run(store_path: Path, sql: str, *, output_format: str, console: Console) -> int:
    """Answer one SELECT on standard output.

    Parameters
    ----------
    store_path
        The store.
    sql
        One SELECT.
    output_format
        table, csv, json or parquet.
    console
        Where to talk.

    Returns
    -------
    int
        0.
    """
    from filterdb.store import open_store

    table = open_store(store_path).sql(sql).arrow
    write_arrow(table, output_format)
    if output_format == "table" and table.num_rows == 0:
        console.say("no rows")
    return 0
