"""What fuzzing found once, one small input a finding (``tests/fuzz/packing.py`` packs them)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.archives import check_archive
from tests.fuzz.oracle import check
from tests.fuzz.packing import unpack

_FOLDER = Path(__file__).parent / "crashes"
_FILES = sorted(path for path in _FOLDER.glob("*/*") if path.is_file())


def test_the_inputs_are_small() -> None:
    assert _FILES
    assert max(path.stat().st_size for path in _FILES) < 4096


@pytest.mark.parametrize("path", _FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_fuzzing_found(tmp_path: Path, path: Path) -> None:
    files = unpack(path.read_bytes(), "model")
    if path.parent.name == "containers":
        check_archive(files, tmp_path / "input")
    else:
        check(path.parent.name, files, tmp_path / "input")
