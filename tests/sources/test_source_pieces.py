"""Packaged files beside their loader, and files cut into chunks: entered like any container."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filterdb.errors import (
    MalformedFileError,
    MissingCompanionError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources import Cache, fetch, open_raw
from filterdb.sources.pieces import MAX_TABLE_BYTES, chunk_table, package_table

PARTS = {"/models/a.tflite": b"first" * 30, "/labels [1].txt": b"cat\n", "/b": b""}


def loader(parts: dict[str, bytes]) -> str:
    entries, position = [], 0
    for name, content in parts.items():
        end = position + len(content)
        entries.append({"filename": name, "start": position, "end": end, "audio": 0})
        position = end
    table = json.dumps({"files": entries, "remote_package_size": position})
    return f"var loadPackage = function(metadata) {{ }};\n  loadPackage({table});\n }})();"


def package(folder: Path, name: str = "x_loader.js") -> Path:
    (folder / "x.data").write_bytes(b"".join(PARTS.values()))
    (folder / name).write_text(loader(PARTS))
    return folder / "x.data"


def content_of(uri: str | Path, cache: Cache) -> bytes:
    return fetch(uri, cache=cache).file.path.read_bytes()


@pytest.mark.parametrize("name", ["x_loader.js", "x.js", "x.data.js"])
def test_a_packaged_file_is_entered_by_its_loader(tmp_path: Path, cache: Cache, name: str) -> None:
    path = package(tmp_path, name)
    for member, content in PARTS.items():
        found = fetch(f"{path}!{member}", cache=cache)
        assert found.file.path.read_bytes() == content
        assert found.uri.endswith(f"x.data!{member}")


def test_a_packaged_file_in_an_archive_brings_its_loader(tmp_path: Path, cache: Cache) -> None:
    package(tmp_path)
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for name in ("x.data", "x_loader.js"):
            archive.add(tmp_path / name, f"web/{name}")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive_zip:
        archive_zip.writestr("dist/web.tgz", inner.getvalue())
    uri = f"{tmp_path / 'all.zip'}!/dist/web.tgz!/web/x.data!/models/a.tflite"
    assert content_of(uri, cache) == PARTS["/models/a.tflite"]


def test_without_its_loader_a_packaged_file_stays_closed(tmp_path: Path, cache: Cache) -> None:
    path = package(tmp_path, "elsewhere.txt")
    with pytest.raises(MissingCompanionError, match=r"x_loader\.js, x\.js"):
        fetch(f"{path}!/b", cache=cache)


def test_an_unknown_member_of_a_package_names_the_nearest(tmp_path: Path, cache: Cache) -> None:
    path = package(tmp_path)
    with pytest.raises(SourceError, match=r"no member 'a\.tflite'.*nearest: models/a\.tflite"):
        fetch(f"{path}!/a.tflite", cache=cache)


@pytest.mark.parametrize(
    "script",
    [
        "",
        "loadPackage(metadata)",
        "loadPackage({files: [1]})",
        'loadPackage({"files": 3})',
        'loadPackage({"files": ["a"]})',
        'loadPackage({"files": [{"filename": "a", "start": 0, "end": 100000}]})',
        'loadPackage({"files": [{"filename": "a", "start": -1, "end": 1}]})',
        'loadPackage({"files": [{"filename": "a", "start": 2, "end": 1}]})',
        'loadPackage({"files": [{"filename": "a", "start": 0.5, "end": 1}]})',
        'loadPackage({"files": [{"filename": "a", "start": 0, "end": 1e400}]})',
        'loadPackage({"files": ' + '[{"filename": "a", "start": 0, "end": 1}, ' * 1
        + '{"filename": "/a", "start": 0, "end": 1}]})',
        'loadPackage({"files": ' + "[" * 200_000,
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, cache: Cache, script: str) -> None:
    path = package(tmp_path)
    (tmp_path / "x_loader.js").write_text(script)
    with pytest.raises(MalformedFileError):
        fetch(f"{path}!/a", cache=cache)


def chunked(folder: Path, content: bytes, size: int) -> dict[str, Any]:
    chunks = []
    for start in range(0, len(content), size):
        piece = content[start : start + size]
        digest = hashlib.sha256(piece).hexdigest()
        (folder / digest).write_bytes(piece)
        chunks.append({"hash": digest, "offsets": [start, start + len(piece)]})
    return {"chunks": chunks, "size": len(content), "mime": "application/octet-stream"}


def test_what_may_be_entered_is_named(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"/models/m": chunked(tmp_path, b"abc", 2)}))
    path = package(tmp_path)
    (tmp_path / "m.onnx.gz").write_bytes(gzip.compress(b"no tar, no model"))
    for name, hint in (("r.json", "!/models/m"), (path.name, "x_loader.js"),
                       ("m.onnx.gz", "!/m.onnx")):  # fmt: skip
        with pytest.raises(UnsupportedFormatError) as caught:
            open_raw(fetch(tmp_path / name, cache=cache))
        assert hint in str(caught.value)


def test_chunks_are_put_together(tmp_path: Path, cache: Cache) -> None:
    content = bytes(range(256)) * 40
    table = {"/models/medium": chunked(tmp_path, content, 1000), "version": 2}
    (tmp_path / "resources.json").write_text(json.dumps(table))
    assert content_of(f"{tmp_path}/resources.json!/models/medium", cache) == content
    with pytest.raises(SourceError, match=r"no member 'models/big'.*models/medium"):
        fetch(f"{tmp_path}/resources.json!/models/big", cache=cache)


def test_a_damaged_or_missing_chunk_is_said(tmp_path: Path, cache: Cache) -> None:
    table = {"/m": chunked(tmp_path, bytes(range(200)), 100)}
    (tmp_path / "r.json").write_text(json.dumps(table))
    piece = tmp_path / table["/m"]["chunks"][1]["hash"]
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-1])
    with pytest.raises(MalformedFileError, match="is 99 bytes, expected 100"):
        fetch(f"{tmp_path}/r.json!/m", cache=cache)
    piece.write_bytes(whole[:-1] + b"\xff")
    with pytest.raises(MalformedFileError, match="sha256"):
        fetch(f"{tmp_path}/r.json!/m", cache=cache)
    piece.unlink()
    with pytest.raises(MissingCompanionError):
        fetch(f"{tmp_path}/r.json!/m", cache=cache)


@pytest.mark.parametrize("name", ["../secret", "/../secret", "a/../../b", "C\\x", "/etc//passwd"])
def test_chunks_lie_in_their_folder(tmp_path: Path, cache: Cache, name: str) -> None:
    entry = {"chunks": [{"hash": name, "offsets": [0, 1]}]}
    (tmp_path / "r.json").write_text(json.dumps({"/m": entry}))
    with pytest.raises(UnsafeCheckpointError, match="outside the folder"):
        fetch(f"{tmp_path}/r.json!/m", cache=cache)


@pytest.mark.parametrize(
    "entry",
    [
        {"chunks": [{"hash": "a", "offsets": [1, 2]}]},
        {"chunks": [{"hash": "a", "offsets": [0, 2]}, {"hash": "b", "offsets": [3, 4]}]},
        {"chunks": [{"hash": "a", "offsets": [0, 2]}], "size": 3},
        {"chunks": [{"hash": "a", "offsets": [2, 0]}]},
        {"chunks": [{"hash": "a", "offsets": [0]}]},
        {"chunks": [{"offsets": [0, 1]}]},
        {"chunks": ["a"]},
        {"chunks": [{"hash": "a", "offsets": [0, 1 << 70]}]},
    ],
)
def test_chunks_that_do_not_fit_are_refused(tmp_path: Path, entry: Any) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"/m": entry}))
    with pytest.raises(MalformedFileError):
        chunk_table(path, what="r.json")


def test_a_table_has_a_bound(tmp_path: Path, cache: Cache) -> None:
    path = package(tmp_path)
    (tmp_path / "x_loader.js").write_text(loader(PARTS) + " " * MAX_TABLE_BYTES)
    with pytest.raises(UnsafeCheckpointError, match="table of contents takes"):
        fetch(f"{path}!/b", cache=cache)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_tables_of_any_bytes_end_in_one_error(content: bytes, at: int) -> None:
    good = loader(PARTS).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.js"
        for data in (content, good[:at] + content + good[at:], good[: -at or None]):
            path.write_bytes(data)
            with contextlib.suppress(SourceError):
                package_table(path, 154, what="x")
            with contextlib.suppress(SourceError):
                chunk_table(path, what="x")
