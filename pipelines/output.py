"""Tables and JSON on standard output: aligned for people, complete and plain for pipes."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.console import printable

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows a terminal is shown; a pipe gets all.
TERMINAL_ROWS = 40
#: Widest column on a terminal.
TERMINAL_COLUMN = 48


def to_json(value: Any) -> str:
    """Return JSON without NaN: what is not finite becomes null."""
    return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def write_arrow(table: pa.Table, output_format: str) -> None:
    """Write an Arrow table to standard output.

    Parameters
    ----------
    table
        Any table.
    output_format
        "table", "csv", "json" or "parquet".
    """
    if output_format == "parquet":
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        sys.stdout.buffer.write(buffer.getvalue())
    elif output_format == "json":
        print(to_json(table.to_pylist()))
    elif output_format == "csv":
        sys.stdout.write(to_csv(table.column_names, table.to_pylist()))
    else:
        write_rows(table.column_names, table.to_pylist())


def to_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return CSV with a header; lists are JSON in one cell, null is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_cell(row[c]) for c in columns])
    return buffer.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return to_json(value)
    return "" if value is None else value


def write_rows(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print aligned columns: cut to the terminal's width, or whole in a pipe.

    Parameters
    ----------
    columns
        Names, in order.
    rows
        Records.
    """
    terminal = sys.stdout.isatty()
    shown = rows[:TERMINAL_ROWS] if terminal else rows
    cells = [[format_cell(row[c]) for c in columns] for row in shown]
    if not terminal:
        print("\t".join(columns))
        for line in cells:
            print("\t".join(line))
        return
    widths = [
        min(TERMINAL_COLUMN, max([len(c), *(len(line[i]) for line in cells)]))
        for i, c in enumerate(columns)
    ]
    room, n_columns = shutil.get_terminal_size().columns, 0
    for width in widths:
        room -= width + 2
        if room < -2 and n_columns:
            break
        n_columns += 1
    right = [all(_is_number(row[c]) for row in shown) for c in columns]
    for line in [list(columns), *cells]:
        print("  ".join(_fit(line[i], widths[i], right[i]) for i in range(n_columns)).rstrip())
    if len(shown) < len(rows) or n_columns < len(columns):
        print(
            f"({len(shown):,} of {len(rows):,} rows, {n_columns} of {len(columns)} columns; "
            "a pipe or --format csv gives all)"
        )


def _fit(text: str, width: int, right: bool) -> str:
    text = text if len(text) <= width else text[: width - 1] + "…"
    return text.rjust(width) if right else text.ljust(width)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def format_cell(value: Any) -> str:
    """Return one value for a person: four significant digits, – for null."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        rounded = f"{value:.4g}"
        return f"{float(rounded):.0f}" if "e+" in rounded and abs(value) < 1e12 else rounded
    if isinstance(value, list):
        return ", ".join(format_cell(v) for v in value)
    return printable(str(value).replace("\n", " ").replace("\t", " "))
