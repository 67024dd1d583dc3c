"""Containers: exact names, bounds, and every way an archive can be wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import stat
import struct
import tarfile
import zipfile
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filterdb.errors import (
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources import containers
from filterdb.sources.container_kinds import container_kind
from filterdb.sources.containers import extract_member, list_members

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILES = {
    "pkg/a.pt": random.Random(1).randbytes(3000),
    "pkg/odd [1] 100%.bin": b"odd",
    "pkg/empty": b"",
    "top.txt": b"top" * 1000,
}


def make_zip(path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("pkg")
        for name, content in FILES.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, mode: str, prefix: str = "") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in FILES.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "deflated.zip": make_zip,
    "stored.whl": lambda p: make_zip(p, zipfile.ZIP_STORED),
    "bzip2.zip": lambda p: make_zip(p, zipfile.ZIP_BZIP2),
    "plain.tar": lambda p: make_tar(p, "w"),
    "gnu.tar.gz": lambda p: make_tar(p, "w:gz"),
    "b.tar.bz2": lambda p: make_tar(p, "w:bz2"),
    "x.tar.xz": lambda p: make_tar(p, "w:xz"),
    "dot.tgz": lambda p: make_tar(p, "w:gz", "./"),
}


def extract(path: Path, name: str) -> bytes:
    blocks: list[bytes] = []
    extract_member(path, name, blocks.append, what=path.name)
    return b"".join(blocks)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_member_comes_out_exactly(tmp_path: Path, kind: str) -> None:
    path = MAKERS[kind](tmp_path / kind)
    assert {m.name: m.bytes for m in list_members(path, what=kind)} == {
        name: len(content) for name, content in FILES.items()
    }
    for name, content in FILES.items():
        assert extract(path, name) == content


@pytest.mark.parametrize("kind", MAKERS)
def test_an_unknown_member_names_the_nearest(tmp_path: Path, kind: str) -> None:
    path = MAKERS[kind](tmp_path / kind)
    with pytest.raises(SourceError, match=r"no member 'pkg/b.pt' \(nearest: pkg/a.pt.* in all"):
        extract(path, "pkg/b.pt")
    with pytest.raises(SourceError, match=r"nearest: pkg/a.pt \("):
        extract(path, "a.pt")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_truncated_archive_is_said_with_its_size(tmp_path: Path, kind: str) -> None:
    path = MAKERS[kind](tmp_path / kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError) as caught:
        extract(path, "top.txt")
    assert isinstance(caught.value, MalformedFileError)
    assert f"{len(whole) // 2:,} bytes" in str(caught.value)


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_never_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    tmp_path = tmp_path_factory.getbasetemp()
    path = tmp_path / kind
    if not path.exists():
        MAKERS[kind](path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    broken = tmp_path / "broken"
    broken.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    try:
        got = extract(broken, "pkg/a.pt")
    except SourceError:
        return
    # A flipped bit in a plain tar's content cannot be seen here: the archive's hash tells.
    assert len(got) == len(FILES["pkg/a.pt"])


def test_other_files_are_no_containers(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for content in (b"", b"\x80\x02}q\x00.", b"\x89HDF\r\n\x1a\n", b"PK"):
        path.write_bytes(content)
        assert container_kind(path) is None
        with pytest.raises(UnsupportedFormatError, match="is no container"):
            extract(path, "a")


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, target in (
            ("link", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard", tarfile.LNKTYPE, "../../etc/passwd"),
            ("pipe", tarfile.FIFOTYPE, ""),
            ("device", tarfile.CHRTYPE, ""),
            ("folder", tarfile.DIRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    for name in ("link", "hard", "pipe", "device", "folder"):
        with pytest.raises(UnsafeCheckpointError, match="a link, a folder"):
            extract(path, name)
    assert list_members(path, what="x") == []
    zipped = tmp_path / "x.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
        archive.mkdir("folder")
    for name in ("link", "folder/"):
        with pytest.raises(UnsafeCheckpointError, match="a link, a folder"):
            extract(zipped, name)


def test_a_name_that_climbs_can_only_be_read_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escape.txt", "out")
        archive.writestr("/absolute.txt", "out")
    extract(path, "../../escape.txt")
    assert not list(tmp_path.parent.glob("escape.txt"))
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", "2")
    with pytest.raises(MalformedFileError, match="there 2 times"):
        extract(path, "a")
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
        archive.addfile(tarfile.TarInfo("a"))
    with pytest.raises(MalformedFileError, match="there twice"):
        extract(tar, "a")


def test_encrypted_and_foreign_compression_are_said(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip")
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02", whole.rindex(b"top.txt") - 60)
    flagged = bytearray(whole)
    flagged[at + 8] |= 1
    path.write_bytes(flagged)
    with pytest.raises(UnsupportedFormatError, match="is encrypted"):
        extract(path, "top.txt")
    odd = bytearray(whole)
    odd[at + 10] = 93
    path.write_bytes(odd)
    with pytest.raises(UnsupportedFormatError, match="zip method 93"):
        extract(path, "top.txt")


def patch_zip(path: Path, *, declared: int) -> None:
    """Change what the archive claims of its only member's size, in both places."""
    whole = bytearray(path.read_bytes())
    central = whole.index(b"PK\x01\x02")
    struct.pack_into("<I", whole, central + 24, declared)
    struct.pack_into("<I", whole, 22, declared)
    path.write_bytes(whole)


def test_a_member_may_not_inflate_beyond_its_claim(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    content = random.Random(2).randbytes(5000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", content)
    patch_zip(path, declared=100)
    got: list[bytes] = []
    with pytest.raises((UnsafeCheckpointError, MalformedFileError)):
        extract_member(path, "a", got.append, what="x")
    assert sum(map(len, got)) <= 100
    patch_zip(path, declared=6000)
    with pytest.raises(MalformedFileError, match=r"truncated or damaged|expected 6,000 bytes"):
        extract(path, "a")


def test_a_zip_bomb_is_refused_by_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1 << 20))
    patch_zip(path, declared=(1 << 30) + 1)
    written: list[bytes] = []
    with pytest.raises(UnsafeCheckpointError, match=r"inflates 1,0\d\d bytes to 1,073,741,825"):
        extract_member(path, "a", written.append, what="bomb.zip")
    assert written == []


def test_a_member_above_the_absolute_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "MAX_MEMBER_BYTES", 1000)
    for path in (make_zip(tmp_path / "a.zip"), make_tar(tmp_path / "a.tar", "w")):
        with pytest.raises(UnsafeCheckpointError, match="claims 3,000 bytes, 1,000 is the most"):
            extract(path, "pkg/a.pt")


def test_a_tar_bomb_is_stopped_while_it_inflates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "RATIO_FREE_BYTES", 1 << 20)
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("zeros")
        member.size = 64 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
        archive.addfile(tarfile.TarInfo("wanted"))
    with pytest.raises(UnsafeCheckpointError, match="decompression bomb"):
        extract(path, "wanted")
    written: list[bytes] = []
    with pytest.raises(UnsafeCheckpointError, match="decompression bomb"):
        extract_member(path, "zeros", written.append, what="x")
    assert written == []


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("PaxHeaders/x")
    header.type, header.size = tarfile.XHDTYPE, 8 << 30
    path = tmp_path / "x.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(UnsafeCheckpointError, match="tar header claims 8,589,9"):
        extract(path, "x")


def test_an_xz_dictionary_of_gigabytes_is_not_allocated(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 8 << 20}]
    packed = bytearray(lzma.compress(bytes(100), format=lzma.FORMAT_XZ, filters=filters))
    # The block header's dictionary size, and the checksum behind it.
    at = packed.index(b"\x21\x01", 12) + 2
    packed[at] = 40
    size = (packed[12] + 1) * 4
    crc = zlib.crc32(bytes(packed[12 : 12 + size - 4]))
    struct.pack_into("<I", packed, 12 + size - 4, crc)
    path = tmp_path / "x.tar.xz"
    path.write_bytes(packed)
    with pytest.raises(MalformedFileError, match=r"[Mm]emory"):
        extract(path, "a")


def test_a_huge_table_of_contents_is_not_read(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip")
    whole = bytearray(path.read_bytes())
    at = whole.rindex(b"PK\x05\x06")
    struct.pack_into("<I", whole, at + 12, 1 << 30)
    path.write_bytes(whole)
    with pytest.raises(UnsafeCheckpointError, match="table of contents takes 1,073,741,824"):
        extract(path, "top.txt")


def test_holes_are_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("holes")
    header.size = 0
    raw = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    raw[156:157] = b"S"
    raw[483:495] = b"77777777777\0"
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(raw) + bytes(1024))
    with pytest.raises(SourceError):
        extract(path, "holes")


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_a_compressed_file_holds_its_plain_form(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"model.onnx{suffix}"
    content = random.Random(3).randbytes(5000)
    path.write_bytes(compress(content))
    assert container_kind(path) == "compressed"
    assert [m.name for m in list_members(path, what="x")] == ["model.onnx"]
    assert extract(path, "model.onnx") == content
    with pytest.raises(SourceError, match="no member 'other'") as caught:
        extract(path, "other")
    assert "model.onnx" in str(caught.value)
    path.write_bytes(compress(content)[:-20])
    with pytest.raises(MalformedFileError, match="truncated or damaged"):
        extract(path, "model.onnx")


def test_a_compressed_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "RATIO_FREE_BYTES", 1 << 20)
    path = tmp_path / "zeros.gz"
    path.write_bytes(gzip.compress(b"x" * (20 << 20)))
    with pytest.raises(UnsafeCheckpointError, match="decompression bomb"):
        extract(path, "zeros")


@pytest.mark.parametrize("head", [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x28\xb5\x2f\xfd"])
def test_archives_that_are_not_entered_are_named(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "x.7z"
    path.write_bytes(head + bytes(100))
    with pytest.raises(UnsupportedFormatError, match=r"7z archive|RAR archive|Zstandard") as caught:
        extract(path, "a")
    assert "unpack it" in str(caught.value)


def test_a_zip_file_behind_padding_is_entered(tmp_path: Path) -> None:
    plain = make_zip(tmp_path / "x.zip", zipfile.ZIP_STORED)
    padded = tmp_path / "x.task"
    padded.write_bytes(b"\0\0" + plain.read_bytes())
    assert container_kind(padded) == "zip"
    assert extract(padded, "top.txt") == FILES["top.txt"]
