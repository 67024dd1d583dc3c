"""FORMAT.md is complete: it lists what schema.py declares, and a reader can be written from it."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from filterdb.store.format_md import FORMAT_PATH, rendered
from filterdb.store.schema import FORMAT_NAME, FORMAT_VERSION, MANIFEST, TABLES
from filterdb.testing import make_entries, make_model

if TYPE_CHECKING:
    from filterdb.store import Store

READER = Path(__file__).with_name("format_reader.py")
TEXT = FORMAT_PATH.read_text(encoding="utf-8")


def test_the_columns_are_those_declared() -> None:
    assert rendered(TEXT) == TEXT, "run python -m filterdb.store.format_md"
    for schema in (*TABLES.values(), MANIFEST):
        section = TEXT.split(f"### {schema.name}\n")[1].split("\n### ")[0]
        for column in schema.columns:
            assert f"| {column.name} | " in section
            assert column.text in section
    assert f'"{FORMAT_NAME}"' in TEXT
    assert f"format {FORMAT_VERSION}\n" in TEXT


def test_a_reader_written_from_the_page_alone(pristine: Store) -> None:
    done = subprocess.run(
        [sys.executable, str(READER), str(pristine.path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = {
        layer.row["layer_uid"]: hashlib.sha256(layer.weights.tobytes()).hexdigest()
        for entry in make_entries(8)[:7]
        for layer in make_model(entry).layers
        if layer.row["kernel"] != "1x1"
    }
    assert json.loads(done.stdout) == expected


def test_that_reader_imports_nothing_else() -> None:
    tree = ast.parse(READER.read_text(encoding="utf-8"))
    found = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert found == {"hashlib", "json", "sys", "pathlib", "h5py", "pyarrow.parquet"}


@pytest.mark.parametrize("name", ["store.json", "manifest.parquet", "plan.json", ".lock", "_wip"])
def test_every_file_of_a_store_is_explained(pristine: Store, name: str) -> None:
    assert (pristine.path / name).exists() or name == "plan.json"
    assert name in TEXT
