"""Tar and zip files whose tables of contents would take the memory or the stack."""

from __future__ import annotations

import gzip
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from filterdb.errors import MalformedFileError, SourceError, UnsafeCheckpointError
from filterdb.sources import containers
from filterdb.sources.containers import extract_member, list_members


def _ask_both(path: Path) -> list[Callable[[], object]]:
    return [
        lambda: list_members(path, what=path.name),
        lambda: extract_member(path, "none", lambda _block: None, what=path.name),
    ]


def test_a_tar_of_very_many_members_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.tar.gz"
    path.write_bytes(gzip.compress(tarfile.TarInfo("a").tobuf() * 3000 + bytes(1024)))
    monkeypatch.setattr(containers, "MAX_MEMBERS", 2999)
    for ask in _ask_both(path):
        with pytest.raises(UnsafeCheckpointError, match="more than 2,999 members"):
            ask()
    monkeypatch.setattr(containers, "MAX_MEMBERS", 3000)
    assert len(list_members(path, what=path.name)) == 3000


def test_a_sparse_map_in_a_tar_is_not_read_into_memory(tmp_path: Path) -> None:
    n = 2_000_000
    info = tarfile.TarInfo("a")
    info.size = 2 * n + 512
    keys = {"major": "1", "minor": "0", "name": "a", "realsize": "1"}
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in keys.items()}
    path = tmp_path / "sparse.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.PAX_FORMAT) + b"%d\n" % (n // 2))
        for _ in range(16):
            file.write(b"0\n" * (n // 16))
    for ask in _ask_both(path):
        with pytest.raises(UnsafeCheckpointError, match="bytes of headers"):
            ask()


def test_headers_in_headers_of_a_tar_do_not_exhaust_the_stack(tmp_path: Path) -> None:
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 2
    first = tarfile.TarInfo("a").tobuf()
    chain = (long_name.tobuf() + b"b\0".ljust(512, b"\0")) * 1500
    path = tmp_path / "chain.tar"
    path.write_bytes(first + chain + first + bytes(1024))
    for ask in _ask_both(path):
        with pytest.raises(SourceError):
            ask()


def test_a_zip_cannot_hide_its_table_of_contents_behind_a_comment(tmp_path: Path) -> None:
    # The record that counts lies before the longest comment; the last one says all is small.
    size = containers.MAX_HEADER + 1
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, 4)
    place = struct.pack("<4sLQL", b"PK\6\7", 0, 4, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0xFFFF)
    path = tmp_path / "hidden.zip"
    path.write_bytes(b"PK\3\4" + large + place + end + bytes(0xFFFF))
    for ask in _ask_both(path):
        with pytest.raises(UnsafeCheckpointError, match="table of contents"):
            ask()


def test_a_damaged_tar_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cut.tar"
    path.write_bytes(tarfile.TarInfo("a").tobuf()[:400].ljust(512, b"\xff"))
    with pytest.raises(MalformedFileError):
        list_members(path, what="cut")
