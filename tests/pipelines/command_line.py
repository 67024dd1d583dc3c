"""The command line as a stranger uses it, and what must hold whatever they type."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli import main

if TYPE_CHECKING:
    import pytest

#: Exit codes schema.md knows.
CODES = (0, 1, 2, 3, 4, 130)
#: Control codes other than the end of a line and the tab of a table.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Told:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on standard output."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The error's line, without its tip."""
        (line,) = [x for x in self.err.splitlines() if x.startswith("error: ")]
        return line


def checked(told: Told, code: int) -> Told:
    """Assert what holds for every answer: the code, no traceback, no control codes."""
    assert told.code in CODES, told
    assert told.code == code, told
    assert "Traceback" not in told.err + told.out, told.err
    assert not _CONTROL.search(told.err), told.err
    if code in (1, 2) and "error: " in told.err:
        assert told.err.count("error: ") == 1, told.err
        assert len(told.error) < 1500, told.error
    return told


class Line:
    """Runs ``filterdb`` in this process, with a cache of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def __call__(self, *words: object, code: int = 0) -> Told:
        self._capsys.readouterr()
        try:
            answer = main([str(word) for word in words])
        except SystemExit as left:  # --help and --version
            answer = int(left.code or 0)
        captured = self._capsys.readouterr()
        return checked(Told(answer, captured.out, captured.err), code)


def environment(**more: str) -> dict[str, str]:
    """This process's environment with `more`."""
    return {**os.environ, **more}


def apart(
    *words: object,
    code: int = 0,
    before: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Told:
    """Run ``filterdb`` in a process of its own, after a line of Python in `before`."""
    done = subprocess.run(
        starter(*words, before=before),
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment(**(env or {})),
        timeout=120,
    )
    return checked(Told(done.returncode, done.stdout, done.stderr), code)


def starter(*words: object, before: str = "") -> list[str]:
    """Words that start a process of its own."""
    program = f"import sys; {before}\nfrom pipelines.cli import main; sys.exit(main())"
    return [sys.executable, "-c", program, *map(str, words)]


def catalogue_text(models: Sequence[Mapping[str, Any]]) -> str:
    """A catalogue of `models`; each needs an id and a uri."""
    lines = ["[catalogue]", 'name = "bad"', 'title = "Bad"', 'description = "Made by a test"']
    for model in models:
        known: dict[str, Any] = {"task": "ocr", "visual_category": "natural", **model}
        lines += ["", "[[model]]"]
        # JSON's strings, lists and numbers are TOML's too.
        lines += [f"{key} = {json.dumps(value)}" for key, value in known.items()]
    return "\n".join(lines) + "\n"


def write_catalogue(folder: Path, *models: Mapping[str, Any], name: str = "bad.toml") -> Path:
    """Write a catalogue beside the files it names."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(catalogue_text(models), encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder → size and time, to see what was touched."""
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }
