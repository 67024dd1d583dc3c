"""A pytest plugin that keeps the small model files other tests make, as seeds for fuzzing.

``pytest -p tests.fuzz.harvest tests/sources/formats``, with ``FUZZ_HARVEST=FOLDER``: each file a
test names as a :class:`~filterdb.sources.formats.base.ModelFile` and some reader reads becomes an
input in ``FOLDER/<format>``.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from filterdb.errors import FilterDBError
from filterdb.sources.formats import FORMATS, base
from tests.fuzz import packing

MAX_BYTES = 12_000
_made: list[base.ModelFile] = []


_init = base.ModelFile.__init__


def _remember(self: base.ModelFile, *arguments: Any, **named: Any) -> None:
    _init(self, *arguments, **named)
    _made.append(self)


base.ModelFile.__init__ = _remember  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: Any) -> Any:
    _made.clear()
    try:
        return (yield)
    finally:
        for file in list({f.path: f for f in _made}.values())[:40]:
            _keep(file)
        _made.clear()


def _keep(file: base.ModelFile) -> None:
    folder = Path(os.environ["FUZZ_HARVEST"])
    if not file.path.is_file() or file.path.stat().st_size > MAX_BYTES:
        return
    head = file.path.read_bytes()[:4096]
    for name in FORMATS:
        reader = FORMATS[name]
        if not reader.sniff(head, file):
            continue
        try:
            parts = reader.companions(file)
        except FilterDBError:
            parts = ()
        found = {part: file.companions.get(part) or file.path.parent / part for part in parts}
        files = {_plain(file.name or file.path.name): file.path.read_bytes()}
        files |= {p: path.read_bytes() for p, path in found.items() if path.is_file()}
        data = packing.pack(files)
        if len(data) <= MAX_BYTES:
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def _plain(name: str) -> str:
    return name if packing.is_inside(name) else "model"
