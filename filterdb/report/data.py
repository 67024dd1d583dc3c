"""The data folder: every figure and table as files, and what their columns mean."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from filterdb.errors import IncompleteStoreError
from filterdb.store.schema import TABLES

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.report.corpus import Corpus
    from filterdb.report.model import Figure

#: Tables written whole; states, bases and histograms stay in the store (they are large).
_WHOLE = ("models", "layers", "quality", "findings", "skipped", "failures", "results", "bases")


def write_figure(folder: Path, figure: Figure) -> None:
    """Write the data of one figure.

    Parameters
    ----------
    folder
        data/.
    figure
        The figure; nothing is written where it is missing.
    """
    if not figure.rows:
        return
    write_csv(folder / f"{figure.file_stem}.csv", figure.columns, figure.rows)
    if figure.spec is not None:
        text = json.dumps(figure.spec, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        (folder / f"{figure.file_stem}.vl.json").write_text(text + "\n", encoding="utf-8")


def write_csv(path: Path, columns: Any, rows: Any) -> None:
    """Write a CSV file, empty cells where there is no value.

    Parameters
    ----------
    path
        File.
    columns
        Heads.
    rows
        Cells.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if v is None else v for v in row] for row in rows)
    path.write_text(buffer.getvalue(), encoding="utf-8")


def write_tables(folder: Path, corpus: Corpus) -> None:
    """Write the store's tables as Parquet and CSV.

    Parameters
    ----------
    folder
        data/.
    corpus
        The store.
    """
    import pyarrow.parquet as pq

    for name in _WHOLE:
        try:
            table = corpus.store.tables[name].arrow
        except IncompleteStoreError:
            continue
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        lists = [f.name for f in table.schema if str(f.type).startswith("list")]
        columns = {c: table.column(c).to_pylist() for c in table.column_names}
        for c in lists:
            columns[c] = [None if v is None else " ".join(map(str, v)) for v in columns[c]]
        write_csv(folder / f"{name}.csv", table.column_names, zip(*columns.values(), strict=True))


def columns_text() -> str:
    """Return columns.md: what every column of every table means."""
    lines = ["# Columns", ""]
    for name in _WHOLE:
        schema = TABLES[name]
        lines += [f"## {name}", "", f"One row is {schema.text}.", "",
                  "| column | type | null | meaning |", "|---|---|---|---|"]  # fmt: skip
        for column in schema.columns:
            null = "yes" if column.nullable else "no"
            meaning = column.text.replace("|", "\\|")
            lines.append(f"| {column.name} | {column.type} | {null} | {meaning} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
