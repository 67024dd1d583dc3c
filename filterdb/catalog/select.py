"""``--select``: an SQL condition over a catalogue's entries."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from filterdb.catalog.validate import INTEGER_KEYS, KEYS, LIST_KEYS
from filterdb.errors import UnknownNameError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

    from filterdb.catalog.model import Entry

#: Columns of a condition: the keys of an entry, its catalogue, and the id by the store's name, so
#: that one condition fits both.
SELECT_COLUMNS = (*KEYS, "catalogue", "model_id")

_COMPARISON = re.compile(
    r"""\b(?P<column>[A-Za-z_]+)\s*(?:==?|(?:NOT\s+)?I?LIKE|IN\s*\()\s*'(?P<word>(?:[^']|'')*)'""",
    re.IGNORECASE,
)
_CONTAINS = re.compile(
    r"(?:list_contains|list_has|array_contains|contains)\s*\(\s*(?P<column>[A-Za-z_]+)\s*,"
    r"\s*'(?P<word>(?:[^']|'')*)'|'(?P<word2>(?:[^']|'')*)'\s*=\s*ANY\s*\(\s*(?P<column2>[a-z_]+)",
    re.IGNORECASE,
)
_UNKNOWN_COLUMN = re.compile(r'Referenced (?:column|table) "([^"]+)" not found')


def select_entries(entries: Sequence[Entry], condition: str | None) -> tuple[Entry, ...]:
    """Keep the entries an SQL condition holds for.

    Parameters
    ----------
    entries
        Of one or more catalogues.
    condition
        What would stand after WHERE: ``task = 'ocr' AND bytes < 5e6``. None keeps all. It is
        evaluated by a fresh DuckDB that sees these entries and nothing else of this machine.

    Returns
    -------
    tuple of Entry
        In their order; at least one.

    Raises
    ------
    UnknownNameError
        For a column there is not; names the nearest.
    UsageError
        For what is not one condition, and where no entry fits: the message names the nearest
        value if a value does not exist.
    """
    if condition is None:
        return tuple(entries)
    chosen = _evaluate(entries, condition)
    if not chosen:
        raise _nothing(entries, condition)
    return tuple(entries[i] for i in chosen)


def _evaluate(entries: Sequence[Entry], condition: str) -> list[int]:
    import duckdb

    try:
        condition.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the condition {condition!a} is no text: {error.reason}") from error
    connection = duckdb.connect(":memory:")
    try:
        # Before any statement of the caller: no files, no network, no Python variables, and no
        # way back.
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET temp_directory = ''")
        connection.execute("SET memory_limit = '1GB'")
        connection.execute("SET threads = 1")
        connection.execute(_table(), _columns(entries))
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        _check_single(connection, condition)
        # The line break ends a comment the condition may close with.
        query = f"SELECT position FROM models WHERE (\n{condition}\n) ORDER BY position"
        rows = connection.execute(query).fetchall()
    except duckdb.Error as error:
        raise _explain(error, entries, condition) from error
    finally:
        connection.close()
    return [row[0] for row in rows]


def _table() -> str:
    kinds = {
        column: "VARCHAR[]"
        if column in LIST_KEYS
        else "BIGINT"
        if column in INTEGER_KEYS
        else "VARCHAR"
        for column in SELECT_COLUMNS
    }
    columns = ", ".join(
        f'unnest(CAST(? AS {kind}[])) AS "{column}"' for column, kind in kinds.items()
    )
    return f"CREATE TABLE models AS SELECT unnest(CAST(? AS BIGINT[])) AS position, {columns}"


def _columns(entries: Sequence[Entry]) -> list[list[Any]]:
    def value(entry: Entry, column: str) -> Any:
        found = getattr(entry, "id" if column == "model_id" else column)
        return list(found) if column in LIST_KEYS else found

    return [
        list(range(len(entries))),
        *([value(entry, column) for entry in entries] for column in SELECT_COLUMNS),
    ]


def _check_single(connection: duckdb.DuckDBPyConnection, condition: str) -> None:
    """Make sure that the text is one expression, bare as well as in parentheses.

    ``1) UNION SELECT (1`` would pass inside the parentheses only, ``1 ORDER BY 1`` outside only.
    """
    for text in (f"SELECT 1 WHERE\n{condition}\n", f"SELECT 1 WHERE (\n{condition}\n)"):
        if len(connection.extract_statements(text)) != 1:
            raise UsageError(
                f"{condition!r} is more than one condition",
                tip="write what would stand after WHERE, as task = 'ocr' AND bytes < 5e6",
            )


def _explain(error: duckdb.Error, entries: Sequence[Entry], condition: str) -> UsageError:
    import duckdb

    text = str(error)
    unknown = _UNKNOWN_COLUMN.search(text)
    if unknown is not None:
        word = unknown[1]
        for column in ("task", "visual_category", "format", "id", "family", "architecture"):
            if any(getattr(entry, column) == word for entry in entries):
                return UsageError(
                    f"there is no column {word!r}, but a {column}",
                    tip=f"texts take single quotes: {column} = '{word}'",
                )
        return UnknownNameError("column", word, SELECT_COLUMNS, where="the catalogue")
    first = text.strip().splitlines()[0]
    tip = f"columns there are: {', '.join(SELECT_COLUMNS)}"
    if isinstance(error, duckdb.ParserException):
        tip = "write what would stand after WHERE, as task = 'ocr' AND bytes < 5e6"
    elif isinstance(error, duckdb.PermissionException):
        tip = "a condition sees the catalogue's entries and nothing else of this machine"
    return UsageError(f"the condition {condition!r} cannot be evaluated: {first}", tip=tip)


def _nothing(entries: Sequence[Entry], condition: str) -> UsageError:
    for column, word in _compared(condition):
        counts = _values(entries, column)
        if word in counts:
            continue
        message = f"no model has {column} = {word!r}"
        close = nearest(word, counts, n=1)
        if close:
            count = counts[close[0]]
            models = f"{count} model{'' if count == 1 else 's'}"
            return UsageError(message, tip=f"did you mean {close[0]!r} ({models})?")
        if len(counts) <= 40:
            return UsageError(message, tip=f"there are: {', '.join(sorted(counts))}")
    return UsageError(f"no model of {len(entries)} fits {condition!r}")


def _compared(condition: str) -> list[tuple[str, str]]:
    found = [
        (match["column"], match["word"])
        for match in _COMPARISON.finditer(condition)
        if "%" not in match["word"]
    ]
    found += [
        (match["column"] or match["column2"], match["word"] or match["word2"] or "")
        for match in _CONTAINS.finditer(condition)
    ]
    known = {"model_id": "id"}
    pairs = [(known.get(c.lower(), c.lower()), w.replace("''", "'")) for c, w in found]
    return [(c, w) for c, w in pairs if c in SELECT_COLUMNS and c not in INTEGER_KEYS]


def _values(entries: Sequence[Entry], column: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for entry in entries:
        value = getattr(entry, column)
        counts.update(value if column in LIST_KEYS else [value] if value is not None else [])
    return counts
