"""SQL: the store's tables, and nothing else on the machine."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from filterdb.errors import IncompleteStoreError, UnknownNameError, UsageError
from filterdb.store.query import view_columns

if TYPE_CHECKING:
    from filterdb.store import Store
from filterdb.store import open_store
from filterdb.store.parquet import rows_to_table
from filterdb.store.schema import QUALITY
from filterdb.store.writer import commit, locked

SECRET_TABLE = pa.table({"password": ["hunter2"]})


def test_select(pristine: Store) -> None:
    table = pristine.sql("select task, count(*) as n from models group by all order by task")
    assert table.to_pylist()[0] == {"task": "classification", "n": 2}
    assert table.name == "query"


@pytest.mark.parametrize(
    "query",
    [
        "from models",
        "select * from models where task in (select task from models limit 1)",
        "with ocr as (select * from models where task = 'ocr') select count(*) from ocr",
        "with recursive t(n) as (select 1 union all select n + 1 from t where n < 3) from t",
        "select m.model_id, l.name from models m join layers l using (model_id)",
        "select unnest(training_dataset) from models",
        "select * from range(3)",
        "select * from models union all select * from models",
        "select * from LAYERS order by layer_index limit 3;",
        "describe models",
        "describe layer_view",
        "show all tables",
        "summarize models",
        "select count(*) from manifest where kind = 'filters'",
        "select sum(n_filters) over (partition by kernel) from layers",
        "select list(model_id) from models",
        "select 'a;b'",
        "-- a comment\nselect 1",
    ],
)
def test_what_is_answered(pristine: Store, query: str) -> None:
    assert pristine.sql(query).num_rows > 0


def test_the_view_joins_layers_models_and_quality(pristine: Store) -> None:
    table = pristine.sql("from layer_view")
    assert table.column_names == list(view_columns())
    assert table.num_rows == pristine.layers.num_rows
    assert len(set(view_columns())) == len(view_columns())
    assert {"model_name", "model_n_filters", "sparsity", "task", "bytes"} <= set(view_columns())


def test_quality_is_in_the_view_once_analysed(spoilable: Store) -> None:
    row = {"findings": [], "entropy": 0.5}
    uids = spoilable.layers["layer_uid"].to_pylist()
    rows = [
        {**row, "layer_uid": uid, "weights": weights, "sparse": sparse, "sparsity": value}
        for uid, share in ((uids[0], 0.9), (uids[2], 0.1))
        for weights in ("raw", "folded")
        for sparse, value in (("kept", share), ("removed", 0.0))
    ]
    with locked(spoilable.path):
        commit(spoilable.path, tables={"quality": rows_to_table(QUALITY, rows)})
    store = open_store(spoilable.path)
    assert store.sql("from layer_view").num_rows == len(uids)  # one row a layer still
    assert store.select_layers("sparsity > 0.5")["layer_uid"].to_pylist() == [uids[0]]
    assert [b.layer["layer_uid"] for b in store.filters("3x3", where="sparsity < .5")] == [uids[2]]
    assert store.sql("select count(*) as n from quality").to_pylist() == [{"n": 8}]
    assert "quality" in store.sql("show tables")["name"].to_pylist()


#: Functions that read memory at an address: only the check of names keeps these out.
ADDRESSES = re.compile("arrow_scan|pandas_scan|python_map_function")
ATTACKS = [
    "select * from read_text('{path}')",
    "select * from read_blob('{path}')",
    "select * from read_csv('{path}')",
    "select * from read_csv_auto('{path}')",
    "select * from read_json('{path}')",
    "select * from read_parquet('{parquet}')",
    "select * from parquet_scan('{parquet}')",
    "select * from parquet_metadata('{parquet}')",
    "select * from sniff_csv('{path}')",
    "select * from glob('{folder}/*')",
    "select * from '{path}'",
    "select * from '{parquet}'",
    'select * from "{parquet}"',
    "select (select content from read_text('{path}'))",
    "with x as (select * from read_text('{path}')) from x",
    "select * from models where task = (select content from read_text('{path}'))",
    "select * from models, read_text('{path}')",
    "copy models to '{folder}/out.csv'",
    "copy (select 1) to '{folder}/out.csv'",
    "copy models from '{path}'",
    "export database '{folder}'",
    "import database '{folder}'",
    "attach '{folder}/other.db' as other",
    "install httpfs",
    "load httpfs",
    "load '{path}'",
    "pragma database_list",
    "pragma enable_external_access",
    "set enable_external_access = true",
    "set threads = 64",
    "reset memory_limit",
    "set variable x = 1",
    "call duckdb_settings()",
    "select * from duckdb_settings()",
    "select * from duckdb_secrets()",
    "select * from pragma_database_list()",
    "select * from arrow_scan(1, 1, 1)",
    "select * from pandas_scan(1)",
    "select * from python_map_function(1)",
    "select * from query('select 1')",
    "select * from query_table('models')",
    "select * from sqlite_scan('{path}', 'x')",
    "select * from http_get('http://127.0.0.1/')",
    "select getenv('HOME')",
    "select current_setting('home_directory')",
    "select * from SECRET_TABLE",
    "select * from secret_table",
    "select * from secret",
    "select * from information_schema.tables",
    "select * from main.models",
    "select * from memory.main.models",
    "select * from duckdb_tables",
    "select * from sqlite_master",
    "select * from pg_class",
    "create table x as select 1",
    "create view x as select 1",
    "create function f() as 1",
    "create macro f() as table select * from read_text('{path}')",
    "insert into models select * from models",
    "update models set task = 'x'",
    "delete from models",
    "drop view models",
    "truncate models",
    "select 1; copy models to '{folder}/out.csv'",
    "select 1; select 2",
    "explain select * from models",
    "pivot models on task using count(*)",
    "explain analyze select 1; attach '{folder}/x.db'",
    "prepare p as select 1",
    "begin",
    "vacuum",
    "checkpoint",
    "",
    ";",
    "-- nothing",
]


def test_show_tables(pristine: Store) -> None:
    names = pristine.sql("show tables")["name"].to_pylist()
    expected = {"layer_view", "manifest", "models", "layers", "layer_states", "skipped"}
    assert expected <= set(names)
    assert "findings" not in names  # nothing is analysed


def test_sums_of_integers_are_integers(pristine: Store) -> None:
    row = pristine.sql("select sum(n_filters) as n, sum(9223372036854775807) as big from layers")
    assert row.to_pylist()[0]["n"] == sum(pristine.layers["n_filters"].to_pylist())
    assert str(row.schema.field("n").type) == "int64"
    assert row.to_pylist()[0]["big"] > 2**63


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_else_can_be_read_or_written(pristine: Store, tmp_path: Path, attack: str) -> None:
    secret = pa.table({"password": ["hunter2"]})  # a local variable DuckDB might look up
    (tmp_path / "secret.txt").write_text("hunter2")
    parquet = pristine.path / "tables/00001/models.parquet"
    query = attack.format(path=tmp_path / "secret.txt", folder=tmp_path, parquet=parquet)
    with pytest.raises(UsageError) as caught:
        pristine.sql(query)
    assert caught.value.exit_code == 2
    assert "hunter2" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert os.listdir(tmp_path) == ["secret.txt"]  # noqa: PTH208
    assert secret.num_rows == SECRET_TABLE.num_rows == 1


@pytest.mark.parametrize("attack", [a for a in ATTACKS if not ADDRESSES.search(a)])
def test_the_second_fence_holds_alone(
    pristine: Store, tmp_path: Path, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check of names, DuckDB's own settings still keep files out of reach."""
    monkeypatch.setattr("filterdb.store.query._needed", lambda tree, tables: ["models"])
    (tmp_path / "secret.txt").write_text("hunter2")
    parquet = pristine.path / "tables/00001/models.parquet"
    query = attack.format(path=tmp_path / "secret.txt", folder=tmp_path, parquet=parquet)
    try:
        rows = pristine.sql(query).to_pylist()
    except UsageError:
        rows = []
    assert "hunter2" not in str(rows)
    assert not any(str(tmp_path) in str(row) for row in rows)
    assert os.listdir(tmp_path) == ["secret.txt"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("query", "word", "nearest"),
    [
        ("select * from modles", "modles", "models"),
        ("select tsk from models", "tsk", "task"),
        ("select m.tsk from models m", "tsk", "task"),
        ("select tsk from (select task from models)", "tsk", "task"),
        ("select * from models order by famly", "famly", "family"),
        ("select modles.task from models", "modles", "models"),
        ("select * from models join layers using (modl_id)", "modl_id", "model_id"),
    ],
)
def test_unknown_names_name_the_nearest(
    pristine: Store, query: str, word: str, nearest: str
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        pristine.sql(query)
    assert repr(word) in str(caught.value)
    assert nearest in caught.value.nearest


def test_other_mistakes_in_duckdbs_words(pristine: Store) -> None:
    with pytest.raises(UsageError, match="syntax error") as caught:
        pristine.sql("select * form models")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("LINE 1:")
    assert lines[2].strip().startswith("^")
    with pytest.raises(UsageError, match="nosuch"):
        pristine.sql("select nosuch(task) from models")
    with pytest.raises(UsageError, match="Conversion Error"):
        pristine.sql("select cast(task as integer) from models")


@pytest.mark.parametrize("query", ["select 1" + 900 * "+1", "select '\ud800'"])
def test_what_python_cannot_parse_is_a_usage_error(pristine: Store, query: str) -> None:
    with pytest.raises(UsageError, match=r"too deep|no text"):
        pristine.sql(query)


def test_a_query_may_nest_deep(pristine: Store) -> None:
    assert pristine.sql("select 1" + 300 * "+1 " + "as n").to_pylist() == [{"n": 301}]


def test_a_table_that_is_not_there_yet(pristine: Store) -> None:
    with pytest.raises(IncompleteStoreError, match="run filterdb analyze"):
        pristine.sql("select * from quality")
    with pytest.raises(IncompleteStoreError):
        pristine.sql("select * from layer_view join quality using (layer_uid)")


def test_memory_is_bounded(pristine: Store) -> None:
    with pytest.raises(UsageError, match="Out of Memory"):
        pristine.sql("select list(range) from range(1000000000)")


def test_queries_do_not_see_one_another(pristine: Store) -> None:
    pristine.sql("select * from layers")
    with pytest.raises(UnknownNameError):
        pristine.sql("select * from query_result")
