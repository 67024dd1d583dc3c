"""Tables in and out of Parquet files, checked against their declared schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import CorruptShardError, StoreError
from filterdb.files import write_bytes_durably

if TYPE_CHECKING:
    import pyarrow as pa

    from filterdb.store.schema import TableSchema

ROW_GROUP_ROWS = 65536


def rows_to_table(schema: TableSchema, rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """Make an Arrow table of records.

    Parameters
    ----------
    schema
        The declared table.
    rows
        One mapping a row; nullable columns may be left out.

    Returns
    -------
    pyarrow.Table
        With exactly the declared columns.

    Raises
    ------
    StoreError
        A column that is unknown, missing, null where it may not be, or of another type.
    """
    import pyarrow as pa

    records = list(rows)
    known = {c.name for c in schema.columns}
    for row in records:
        if unknown := set(row) - known:
            raise StoreError(f"table {schema.name} has no column {sorted(unknown)[0]!r}")
    arrays = []
    for column in schema.columns:
        values = [row.get(column.name) for row in records]
        try:
            arrays.append(pa.array(values, type=column.type))
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise StoreError(
                f"table {schema.name}, column {column.name!r}: expected {column.type}, "
                f"got a value that is not ({error})"
            ) from error
    return check_table(schema, pa.Table.from_arrays(arrays, schema=schema.arrow))


def check_table(schema: TableSchema, table: pa.Table) -> pa.Table:
    """Return `table` with the declared schema, or say what is wrong with it.

    Parameters
    ----------
    schema
        The declared table.
    table
        Columns of the same names and types, in any order.

    Returns
    -------
    pyarrow.Table
        Columns in declared order, one chunk each, no metadata.

    Raises
    ------
    StoreError
        A column is missing, unknown, of another type, or null where it may not be.
    """
    import pyarrow as pa

    want = schema.arrow
    names = set(table.column_names)
    if missing := [n for n in want.names if n not in names]:
        raise StoreError(f"table {schema.name} lacks the column {missing[0]!r}")
    if unknown := sorted(names - set(want.names)):
        raise StoreError(f"table {schema.name} has no column {unknown[0]!r}")
    columns = []
    for field in want:
        column = table.column(field.name)
        if not field.nullable and column.null_count:
            raise StoreError(
                f"table {schema.name}: {column.null_count} null values in {field.name!r}, "
                "which may not be null"
            )
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except pa.ArrowException as error:
                raise StoreError(
                    f"table {schema.name}, column {field.name!r}: expected {field.type}, "
                    f"got {column.type} ({error})"
                ) from error
        # How a table came together must not show in its bytes: one chunk, whatever the pieces.
        columns.append(column.combine_chunks())
    return pa.Table.from_arrays(columns, schema=want)


def table_bytes(table: pa.Table, metadata: Mapping[str, str] | None = None) -> memoryview:
    """Return the Parquet file of a table, the same bytes for the same rows.

    Parameters
    ----------
    table
        As :func:`check_table` returns it.
    metadata
        Key-value metadata of the schema.

    Returns
    -------
    memoryview
        The file's content.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(dict(metadata) if metadata else None),
        sink,
        compression="zstd",
        compression_level=3,
        row_group_size=ROW_GROUP_ROWS,
        version="2.6",
        data_page_version="1.0",
        use_dictionary=True,
        write_statistics=True,
        write_page_checksum=True,
    )
    return memoryview(sink.getvalue())


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table durably.

    Parameters
    ----------
    path
        Final name; its folder exists.
    table
        As :func:`check_table` returns it.
    """
    write_bytes_durably(path, table_bytes(table))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file.

    Parameters
    ----------
    path
        The file.
    columns
        Those wanted; None is all.

    Returns
    -------
    pyarrow.Table
        Its rows.

    Raises
    ------
    CorruptShardError
        The file is missing or is no readable Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            return file.read(columns=None if columns is None else list(columns))
    except FileNotFoundError as error:
        raise CorruptShardError(f"{path} is missing", tip=VERIFY_TIP) from error
    except (pa.ArrowException, OSError) as error:
        raise CorruptShardError(f"{path} is damaged: {error}", tip=VERIFY_TIP) from error


VERIFY_TIP = "filterdb verify STORE lists all that is wrong; extract again into a new store"


def rows_at(table: pa.Table, positions: Sequence[int]) -> pa.Table:
    """Return some rows of a table.

    Parameters
    ----------
    table
        The table.
    positions
        Row numbers, in the order wanted.

    Returns
    -------
    pyarrow.Table
        Those rows.
    """
    import pyarrow as pa

    # pyarrow imports all of pandas before it turns a Python value into an array; bytes it takes
    # as they are.
    content = pa.py_buffer(np.array(positions, dtype=np.int64).tobytes())
    return table.take(pa.Array.from_buffers(pa.int64(), len(positions), [None, content]))


def stack(schema: TableSchema, tables: Sequence[Any]) -> pa.Table:
    """Concatenate tables of one schema.

    Parameters
    ----------
    schema
        The declared table, also of an empty result.
    tables
        In order; may be empty.

    Returns
    -------
    pyarrow.Table
        All rows.
    """
    import pyarrow as pa

    if not tables:
        return schema.arrow.empty_table()
    return pa.concat_tables([t.select(schema.arrow.names).cast(schema.arrow) for t in tables])
