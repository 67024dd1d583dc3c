"""kill -9 before every single change to the disk: the next run ends in the undisturbed store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("kill_driver.py")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of fsyncs take minutes on a disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def outcomes(folder: Path, first: int, stride: int) -> list[dict[str, object]]:
    command = [sys.executable, str(DRIVER), str(folder), str(first), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found: list[dict[str, object]], *, at_least: int) -> None:
    assert sum(o["killed"] is True for o in found) >= at_least
    assert found[-1]["killed"] is False
    for outcome in found:
        assert outcome["readable"], f"the store was not whole after the kill: {outcome}"
        assert outcome["again"] == 0, outcome
        assert outcome["equal"], f"another store came out: {outcome}"


def test_some_points(folder: Path) -> None:
    check(outcomes(folder, 1, 8), at_least=20)


@pytest.mark.slow
def test_every_point(folder: Path) -> None:
    check(outcomes(folder, 1, 1), at_least=100)
