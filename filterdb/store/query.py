"""SQL over a store's tables, and over nothing else.

Every query runs in a new in-memory DuckDB whose connection to the world is cut before the query is
seen: no files, no network, no extensions, no Python variables, no changed settings. What a query
may name is checked first on its parsed form, so that DuckDB never meets a function that reads
memory or files. Two fences, either of which would do.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from filterdb.errors import IncompleteStoreError, UnknownNameError, UsageError
from filterdb.store.schema import LAYERS, MODELS, QUALITY

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

MEMORY_LIMIT = "2GB"
THREADS = 2
#: The only functions that may stand in FROM.
TABLE_FUNCTIONS = frozenset({"range", "generate_series", "unnest", "repeat"})
#: Functions that tell something of the machine or the connection.
REFUSED_FUNCTIONS = frozenset(
    {"getenv", "current_setting", "getvariable", "query", "query_table", "read_text", "read_blob"}
)
LAYER_VIEW = "layer_view"
SETTINGS = (
    "SET python_enable_replacements = false",
    "SET enable_progress_bar = false",  # it would draw into the data on standard output
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    f"SET memory_limit = '{MEMORY_LIMIT}'",
    f"SET threads = {THREADS}",
    "SET temp_directory = ''",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


def view_columns() -> dict[str, str]:
    """Return the columns of ``layer_view`` and where each comes from.

    Returns
    -------
    dict
        Name in the view to ``table.column``. Names of `layers` stand as they are; those of
        `models` and of `quality` (raw weights, sparse filters kept) that clash are prefixed with
        ``model_`` and ``quality_``.
    """
    columns = {c.name: f"layers.{c.name}" for c in LAYERS.columns}
    for schema, prefix in ((MODELS, "model_"), (QUALITY, "quality_")):
        for column in schema.columns:
            if column.name in (*MODELS.key, *QUALITY.key):
                continue
            name = prefix + column.name if column.name in columns else column.name
            columns[name] = f"{schema.name}.{column.name}"
    return columns


def run_query(query: str, tables: Mapping[str, Callable[[], pa.Table]]) -> pa.Table:
    """Answer one SELECT statement.

    Parameters
    ----------
    query
        SQL as DuckDB speaks it: one SELECT, WITH, FROM, DESCRIBE, SUMMARIZE or SHOW TABLES.
    tables
        Every table there could be, by name, and how to load it (which raises
        IncompleteStoreError where it is not in this store yet).

    Returns
    -------
    pyarrow.Table
        The answer.

    Raises
    ------
    UnknownNameError
        A table or column that does not exist; the nearest are named.
    UsageError
        Anything else that is wrong with the query, in DuckDB's words.
    """
    import duckdb

    with duckdb.connect(":memory:") as connection:
        _execute(connection, SETTINGS[0])
        tree = _parse(connection, query)
        loaded = _register(connection, _needed(tree, tables), tables)
        for setting in SETTINGS[1:]:
            _execute(connection, setting)
        try:
            return _plain_integers(_answer(connection, query))
        except duckdb.Error as error:
            raise _explained(error, loaded) from error


def _answer(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """Run in a thread of its own, since DuckDB does not hear Ctrl-C in every query."""
    outcome: Future[pa.Table] = Future()

    def work() -> None:
        try:
            outcome.set_result(connection.sql(query).to_arrow_table())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            outcome.set_exception(error)

    worker = threading.Thread(target=work, name="filterdb-query", daemon=True)
    worker.start()
    try:
        return outcome.result()
    except KeyboardInterrupt:
        connection.interrupt()
        worker.join()  # a connection in use cannot be closed
        raise


def _plain_integers(table: pa.Table) -> pa.Table:
    """Turn the decimals DuckDB adds integers up to into integers again, where they fit."""
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type) and field.type.scale == 0:
            try:
                column = table.column(index).cast(pa.int64())
            except pa.ArrowInvalid:
                continue
            table = table.set_column(index, field.name, column)
    return table


def _execute(
    connection: duckdb.DuckDBPyConnection, statement: str, values: list[object] | None = None
) -> list[Any]:
    """Run a statement to its end: a result left open blocks the connection."""
    return list(connection.execute(statement, values or []).fetchall())


def _parse(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    """Parse without binding; refuse all but one SELECT."""
    import duckdb

    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the query is no text: {error.reason}") from error
    try:
        statements = connection.extract_statements(query)
    except duckdb.Error as error:
        raise UsageError(_first_lines(error)) from error
    if len(statements) != 1:
        raise UsageError(
            f"expected one SELECT statement, got {len(statements)}",
            tip="ask one question at a time",
        )
    answer = _execute(connection, "SELECT json_serialize_sql(?)", [query])
    try:
        tree: dict[str, Any] = json.loads(answer[0][0])
    except RecursionError as error:
        raise UsageError(
            "the query nests its expressions too deep",
            tip="write a IN (…) for long chains of OR, list_sum([…]) for long sums",
        ) from error
    if tree.get("error", True):
        raise UsageError(
            "only a plain SELECT, FROM, WITH, DESCRIBE, SUMMARIZE or SHOW TABLES is answered here",
            tip="a store is changed by extract and analyze, never by SQL; "
            "instead of PIVOT use sum(…) FILTER (WHERE …)",
        )
    return tree


def _walk(node: object) -> Iterator[dict[str, Any]]:
    waiting = [node]
    while waiting:  # no recursion: a query may nest deeper than Python does
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(reversed(node.values()))
        elif isinstance(node, list):
            waiting.extend(reversed(node))


def _needed(tree: dict[str, Any], tables: Mapping[str, Callable[[], pa.Table]]) -> list[str]:
    """Names of the tables a parsed query reads, all checked."""
    nodes = list(_walk(tree))
    local = {
        str(item["key"]).casefold()
        for node in nodes
        if isinstance(node.get("cte_map"), dict)
        for item in node["cte_map"].get("map", [])
    }
    local |= {str(n["cte_name"]).casefold() for n in nodes if n.get("cte_name")}
    known = [*tables, LAYER_VIEW]
    needed: dict[str, None] = {}
    for node in nodes:
        _refuse_functions(node)
        if node.get("type") == "SHOW_REF" and node.get("query") is None:
            needed.update(dict.fromkeys(_available(tables)))
        name = str(node.get("table_name", "")) if node.get("type") == "BASE_TABLE" else ""
        if not name:
            continue
        folded = name.casefold()
        if node.get("schema_name") or node.get("catalog_name"):
            raise UsageError(
                f"table {name!r} is named with a schema; a store has none", tip=f"write {name}"
            )
        if folded in tables or folded == LAYER_VIEW:
            needed[folded] = None
        elif folded not in local:
            raise UnknownNameError("table", name, known, where="the store")
    return list(needed)


def _available(tables: Mapping[str, Callable[[], pa.Table]]) -> Iterator[str]:
    """Name the tables this store has, for SHOW TABLES."""
    for name, load in tables.items():
        try:
            load()
        except IncompleteStoreError:
            continue
        yield name
    yield LAYER_VIEW


def _refuse_functions(node: dict[str, Any]) -> None:
    if node.get("type") == "TABLE_FUNCTION":
        name = str((node.get("function") or {}).get("function_name", "")).casefold()
        if name not in TABLE_FUNCTIONS:
            raise UsageError(
                f"{name}() is not available: SQL reads the store's tables and nothing else",
                tip=f"functions in FROM: {', '.join(sorted(TABLE_FUNCTIONS))}",
            )
    elif str(node.get("function_name", "")).casefold() in REFUSED_FUNCTIONS:
        raise UsageError(
            f"{node['function_name']}() is not available: SQL reads the store's tables "
            "and nothing else"
        )


def _register(
    connection: duckdb.DuckDBPyConnection,
    needed: list[str],
    tables: Mapping[str, Callable[[], pa.Table]],
) -> dict[str, list[str]]:
    """Make the tables known; return their columns by table, for messages."""
    wanted = [n for n in needed if n != LAYER_VIEW]
    if LAYER_VIEW in needed:
        wanted += [n for n in ("layers", "models", "quality") if n not in wanted]
    columns: dict[str, list[str]] = {}
    for name in wanted:
        table = tables[name]() if name in needed or name != "quality" else _quality(tables)
        connection.register(name, table)
        columns[name] = list(table.column_names)
    if LAYER_VIEW in needed:
        selected = ", ".join(f'{source} AS "{name}"' for name, source in view_columns().items())
        _execute(
            connection,
            f"CREATE VIEW {LAYER_VIEW} AS SELECT {selected} FROM layers "
            "JOIN models USING (model_id) "
            "LEFT JOIN quality ON quality.layer_uid = layers.layer_uid "
            "AND quality.weights = 'raw' AND quality.sparse = 'kept'",
        )
        columns[LAYER_VIEW] = list(view_columns())
    return {name: columns[name] for name in needed}


def _quality(tables: Mapping[str, Callable[[], pa.Table]]) -> pa.Table:
    """Return quality for the view, whose columns are null where nothing is analysed yet."""
    try:
        return tables["quality"]()
    except IncompleteStoreError:
        return QUALITY.arrow.empty_table()


_UNKNOWN_COLUMN = re.compile(
    r'column "([^"]+)" not found|does not have a column named "([^"]+)"|'
    r'column named "([^"]+)"|Column "([^"]+)" (?:does not exist|in)'
)
_UNKNOWN_TABLE = re.compile(r'Referenced table "([^"]+)" not found')


def _explained(error: duckdb.Error, columns: dict[str, list[str]]) -> UsageError:
    text = str(error)
    if (match := _UNKNOWN_TABLE.search(text)) and columns:
        return UnknownNameError("table", match.group(1), columns, where="the query's FROM")
    if match := _UNKNOWN_COLUMN.search(text):
        word = next(g for g in match.groups() if g)
        known = [c for names in columns.values() for c in names]
        return UnknownNameError("column", word, known, where=" and ".join(columns) or "the query")
    return UsageError(_first_lines(error))


def _first_lines(error: duckdb.Error) -> str:
    """DuckDB's first line, and the query line with its caret where there is one."""
    lines = str(error).splitlines()
    at = next((i for i, line in enumerate(lines) if line.startswith("LINE ")), None)
    marked = lines[at : at + 2] if at is not None else []
    return "\n".join([lines[0], *marked])
