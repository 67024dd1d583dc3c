"""A table of a store as callers meet it."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from filterdb.errors import UnknownNameError, nearest
from filterdb.store.schema import TABLES

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

HEAD_ROWS = 5
MAX_COLUMNS = 8
CELL_WIDTH = 28
#: Likeness from which a column of another table is what was probably meant.
VERY_CLOSE = 0.8


class Table:
    """An Arrow table with a name, that prints itself and opens as whatever you work with.

    Parameters
    ----------
    arrow
        The rows.
    name
        What it is a table of, for messages.

    Examples
    --------
    >>> from filterdb.testing import temporary_store
    >>> with temporary_store(n_models=2) as store:
    ...     store.models["model_id"].to_pylist()
    ['model-000', 'model-001']
    """

    def __init__(self, arrow: pa.Table, *, name: str = "result") -> None:
        self._arrow = arrow
        self.name = name

    @property
    def arrow(self) -> pa.Table:
        """The Arrow table itself."""
        return self._arrow

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self._arrow.num_rows)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self._arrow.column_names)

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema."""
        return self._arrow.schema

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        if column not in self._arrow.column_names:
            raise self._unknown(str(column))
        return self._arrow.column(column)

    def _unknown(self, column: str) -> UnknownNameError:
        error = UnknownNameError("column", column, self.column_names, where=self.name)
        elsewhere = [
            f"{schema.name}.{name}"
            for schema in TABLES.values()
            if schema.name != self.name
            for name in nearest(column, [c.name for c in schema.columns], n=1)
            if SequenceMatcher(None, column, name).ratio() > VERY_CLOSE
        ]
        if elsewhere and self.name in TABLES:
            error.tip = f"{error.tip}; another table has {', '.join(elsewhere[:3])}"
        return error

    def select(self, columns: Sequence[str]) -> Table:
        """Return the table with some of its columns.

        Parameters
        ----------
        columns
            Names, in the order wanted.

        Returns
        -------
        Table
            The same rows.

        Raises
        ------
        UnknownNameError
            There is no such column; the nearest are named.
        """
        for column in columns:
            self[column]
        return Table(self._arrow.select(list(columns)), name=self.name)

    def to_pylist(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries.

        Returns
        -------
        list of dict
            One a row.
        """
        rows: list[dict[str, Any]] = self._arrow.to_pylist()
        return rows

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas data frame.

        Returns
        -------
        pandas.DataFrame
            A copy.
        """
        frame: pd.DataFrame = self._arrow.to_pandas()
        return frame

    def to_polars(self) -> Any:
        """Return a Polars data frame (Polars must be installed).

        Returns
        -------
        polars.DataFrame
            Without a copy where Polars can.
        """
        import polars as pl

        return pl.from_arrow(self._arrow)

    def to_dask(self, *, npartitions: int = 1) -> Any:
        """Return a dask data frame.

        Parameters
        ----------
        npartitions
            Pieces; tables are small, one will nearly always do.

        Returns
        -------
        dask.dataframe.DataFrame
            Lazily split.
        """
        import dask.dataframe as dd

        return dd.from_pandas(self.to_pandas(), npartitions=npartitions)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._arrow.__arrow_c_stream__(requested_schema)

    def __arrow_c_schema__(self) -> object:
        return self._arrow.schema.__arrow_c_schema__()

    def _meaning(self, column: str) -> str:
        schema = TABLES.get(self.name)
        texts = {c.name: c.text for c in schema.columns} if schema else {}
        return texts.get(column, "")

    def _head(self) -> tuple[list[str], list[list[str]]]:
        names = self.column_names[:MAX_COLUMNS]
        rows = self._arrow.slice(0, HEAD_ROWS).select(names).to_pylist()
        return names, [[_cell(row[name]) for name in names] for row in rows]

    def _note(self) -> str:
        shown_rows = min(HEAD_ROWS, self.num_rows)
        shown = min(MAX_COLUMNS, len(self.column_names))
        return (
            f"{shown_rows:,} of {self.num_rows:,} rows, {shown} of {len(self.column_names)} columns"
        )

    def __repr__(self) -> str:
        names, rows = self._head()
        head = f"<filterdb.Table {self.name}  {_count(self.num_rows, len(self.column_names))}>"
        width = max((len(n) for n in self.column_names), default=0)
        columns = [
            f"  {f.name:<{width}}  {f.type!s:<14} {self._meaning(f.name)}".rstrip()
            for f in self._arrow.schema
        ]
        return "\n".join([head, *columns, "", *_aligned([names, *rows]), f"  {self._note()}"])

    def _repr_html_(self) -> str:
        names, rows = self._head()
        types = {f.name: str(f.type) for f in self._arrow.schema}
        header = "".join(
            f'<th title="{html.escape(self._meaning(n), quote=True)}">{html.escape(n)}<br>'
            f"<small>{html.escape(types[n])}</small></th>"
            for n in names
        )
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        return (
            f"<table><caption>{html.escape(self.name)}: {html.escape(self._note())}</caption>"
            f"<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
        )


def _count(rows: int, columns: int) -> str:
    return f"{rows:,} rows × {columns} columns"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        inside = ", ".join(_cell(v) for v in value[:4])
        text = f"[{inside}{', …' if len(value) > 4 else ''}]"
    else:
        text = str(value)
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 1] + "…"


def _aligned(rows: list[list[str]]) -> list[str]:
    if not rows[0]:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    pad: Callable[[str, int], str] = str.ljust
    return ["  " + "  ".join(map(pad, row, widths)).rstrip() for row in rows]
