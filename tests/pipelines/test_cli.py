"""The command line as a person meets it: words, exit codes, streams."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from filterdb import __version__
from filterdb.testing import make_store
from pipelines.arguments import build_parser
from pipelines.cli import COMMANDS, main
from pipelines.output import format_cell

EXIT_WORDS = "exit codes: 0 done"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_store(tmp_path_factory.mktemp("store"), n_models=3, seed=1).path)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"filterdb {__version__}\n"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_two_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0
    assert EXIT_WORDS in shown
    examples = [line.split() for line in shown.splitlines() if line.startswith("  filterdb ")]
    assert len(examples) >= 2
    for words in examples:
        assert words[1] == command


def test_examples_in_the_help_parse() -> None:
    import shlex

    for action in build_parser()._actions:
        for parser in getattr(action, "choices", None) or {}:
            epilog = action.choices[parser].epilog  # type: ignore[index, union-attr, call-overload]
            for line in epilog.splitlines():
                if line.startswith("  filterdb "):
                    build_parser().parse(shlex.split(line)[1:][: _until_pipe(line)])


def _until_pipe(line: str) -> int | None:
    import shlex

    words = shlex.split(line)[1:]
    return words.index(">") if ">" in words else None


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["extarct", "demo"], "extract"),
        (["extract", "demo", "--stroe", "x"], "--store"),
        (["query", "x", "select 1", "--format", "jsn"], "json"),
        (["catalog", "lst", "demo"], "list"),
        (["catalog", "list", "demoo"], "demo"),
        (["catalog", "list", "demo", "--select", "tsak = 'ocr'"], "task"),
        (["catalog", "list", "demo", "--select", "task = 'orc'"], "ocr"),
        (["extract", "demo", "--store", "x", "--scheduler", "thread", "--dry-run"], "threads"),
    ],
)
def test_a_wrong_word_names_the_nearest(
    words: list[str], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    shown = told(capsys)
    assert shown.startswith("error: ")
    assert nearest in shown


def test_unknown_columns_and_tables_in_sql(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", store, "select n_filtres from layers"]) == 2
    assert "n_filters" in told(capsys)
    assert main(["query", store, "select * from layer"]) == 2
    assert "layers" in told(capsys)
    assert main(["query", store, "selct 1"]) == 2
    assert "selct" in told(capsys)


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from read_text('/etc/hostname')",
        "copy models to '/tmp/filterdb-test-out.csv'",
        "attach '/tmp/filterdb-test.db' as other",
        "install httpfs",
        "set enable_external_access = true",
        "select getenv('HOME')",
        "select * from glob('/*')",
    ],
)
def test_sql_reads_the_store_and_nothing_else(
    sql: str, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["query", store, sql]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert not Path("/tmp/filterdb-test-out.csv").exists()
    assert not Path("/tmp/filterdb-test.db").exists()


def test_query_formats(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "select model_id, n_filters, training_dataset, paper from models order by 1"
    assert main(["query", store, sql, "--format", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert len(records) == 3
    assert main(["query", store, sql, "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model_id,n_filters,training_dataset,paper"
    assert lines[1].startswith(f"{records[0]['model_id']},{records[0]['n_filters']},")
    assert main(["query", store, sql]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["query", store, "select * from models where false", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_query_as_parquet(store: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "query", store, "from models", "--format",
         "parquet"],
        capture_output=True,
        check=True,
    )  # fmt: skip
    (tmp_path / "out.parquet").write_bytes(done.stdout)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 3


def test_errors_are_json_too_where_json_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "/nowhere/model.onnx", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["message"]
    assert captured.err.startswith("error: ")


@pytest.mark.parametrize("asked", [["--json"], ["--format", "json"], ["--format=json"]])
def test_a_query_answers_and_fails_in_json(
    store: str, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["query", store, "select count(*) as n from models", *asked]) == 0
    assert json.loads(capsys.readouterr().out) == [{"n": 3}]
    assert main(["query", store, "select * from modles", *asked]) == 2
    assert "modles" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (472_803.4, "472800"), (-12_345.6, "-12350"), (0.000_012_34, "1.234e-05"),
        (9_999.9, "10000"), (1e300, "1e+300"), (float("nan"), "nan"), (float("-inf"), "-inf"),
    ],
)  # fmt: skip
def test_large_means_are_no_powers_of_ten(value: float, text: str) -> None:
    assert format_cell(value) == text


@pytest.mark.parametrize("command", ["query", "verify", "analyze"])
def test_no_store(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = ["select 1"] if command == "query" else []
    assert main([command, str(tmp_path / "none"), *extra]) == 1
    assert "error: " in told(capsys)


def test_verify_names_the_file_of_a_flipped_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_store(tmp_path / "store", n_models=2, seed=3)
    assert main(["verify", str(made.path)]) == 0
    shard = sorted((made.path / "filters").glob("*.h5"))[0]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(bytes(content))
    assert main(["verify", str(made.path)]) == 1
    assert shard.name in capsys.readouterr().out


def test_a_closed_pipe_is_silent(store: str) -> None:
    line = (
        f"{sys.executable} -m pipelines.cli query {store} "
        "'select l.* from layers l, layers m, layers n' --format csv | head -1"
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("layer_uid,")
    assert done.stderr == ""


def test_quiet_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_store(tmp_path / "store", n_models=1, seed=3)
    assert main(["verify", str(made.path), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""
