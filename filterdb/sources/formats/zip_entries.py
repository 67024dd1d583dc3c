"""Zip containers (torch, npz) with every size and offset checked before it is believed."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.errors import (
    FetchError,
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.containers import check_directory
from filterdb.sources.formats.base import (
    EXPANSION_SLACK,
    MAX_EXPANSION,
    MAX_SHARING,
    MAX_TENSORS,
    SHARING_SLACK,
)
from filterdb.sources.formats.file_view import ByteSource, map_file
from filterdb.sources.formats.stored_array import DeflatedBytes, FileBytes, StoredBytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LOCAL = struct.Struct("<4sHHHHHLLLHH")
_ENCRYPTED = 0x1
_PREFIX_SIZE = 64 * 1024
#: Everything the zip module raises on bytes that are no proper zip file.
_BROKEN = (
    zipfile.BadZipFile,
    EOFError,
    IndexError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class ZipEntries:
    """The members of a zip file.

    Parameters
    ----------
    path
        The file.
    label
        Its name for messages.
    members
        Member name → its bytes.
    checksums
        Member name → CRC-32 the directory names.
    """

    path: Path
    label: str
    members: Mapping[str, StoredBytes]
    checksums: Mapping[str, int]

    def read(self, name: str) -> bytes:
        """Return a whole member, its checksum verified."""
        member = self.members[name]
        data = member.view(0, member.size).tobytes()
        if zlib.crc32(data) != self.checksums[name]:
            raise MalformedFileError(f"{self.label}: the checksum of {name!r} does not fit")
        return data

    def head(self, name: str) -> bytes:
        """Return the first 64 KiB of a member, unverified where it lies stored."""
        member = self.members[name]
        return member.view(0, min(_PREFIX_SIZE, member.size)).tobytes()


def open_zip(path: Path, label: str) -> ZipEntries:
    """Read the directory of a zip file.

    Parameters
    ----------
    path
        The file.
    label
        Its name for messages.

    Returns
    -------
    ZipEntries
        Its members, in directory order; nothing of them has been read.

    Raises
    ------
    MalformedFileError
        The directory is broken, members overlap, repeat a name or reach beyond the file.
    UnsafeCheckpointError
        The members would inflate to many times the file, or are absurdly many.
    UnsupportedFormatError
        A member is encrypted or compressed by anything else than deflate.
    FetchError
        The disk does not give the file.
    """
    try:
        if not path.stat().st_size:
            raise MalformedFileError(f"{label}: the file is empty")
        with path.open("rb") as handle:
            handle.read(1)
    except OSError as error:
        raise FetchError(f"cannot read {label}: {error.strerror or error}") from error
    try:
        with path.open("rb") as handle:
            check_directory(handle, path.stat().st_size, label)
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except SourceError:
        raise
    except _BROKEN as error:
        raise MalformedFileError(
            f"{label}: not a readable zip file, it may be cut short: {error}"
        ) from error
    if len(infos) > MAX_TENSORS + 1000:
        raise UnsafeCheckpointError(f"{label}: a zip file of {len(infos):,} members")
    with map_file(path) as data:
        members = _members(path, label, infos, data)
    return ZipEntries(path, label, members, {info.filename: info.CRC for info in infos})


def _members(
    path: Path, label: str, infos: list[zipfile.ZipInfo], data: ByteSource
) -> dict[str, StoredBytes]:
    members: dict[str, StoredBytes] = {}
    inflated, bound = 0, MAX_SHARING * len(data) + SHARING_SLACK
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.filename
        start = _data_offset(label, info, data)
        if info.header_offset < end or start + info.compress_size > len(data):
            raise MalformedFileError(
                f"{label}: member {name!r} (bytes {info.header_offset} to "
                f"{start + info.compress_size}) overlaps another or reaches beyond the file of "
                f"{len(data)} bytes"
            )
        end = start + info.compress_size
        inflated += info.file_size
        if inflated > bound or not _may_inflate(info, len(data)):
            raise UnsafeCheckpointError(
                f"{label}: a zip file of {len(data):,} bytes that would inflate to {inflated:,} "
                f"bytes or more; {bound:,} are the most, and far less for one member",
                tip="no weights compress like that: this is a decompression bomb",
            )
        if name in members:
            raise MalformedFileError(f"{label}: two members are called {name!r}")
        if info.flag_bits & _ENCRYPTED:
            raise UnsupportedFormatError(f"{label}: member {name!r} is encrypted")
        members[name] = _bytes_of(path, label, info, start)
    return {info.filename: members[info.filename] for info in infos}


def _may_inflate(info: zipfile.ZipInfo, file_size: int) -> bool:
    """Whether a member may be held twice: inflated, and in another order."""
    bound = MAX_EXPANSION * file_size + EXPANSION_SLACK
    return info.compress_type == zipfile.ZIP_STORED or 2 * info.file_size <= bound + file_size


def _bytes_of(path: Path, label: str, info: zipfile.ZipInfo, start: int) -> StoredBytes:
    if info.compress_type == zipfile.ZIP_STORED:
        if info.compress_size != info.file_size:
            raise MalformedFileError(
                f"{label}: member {info.filename!r} is stored, but as {info.compress_size} bytes "
                f"for {info.file_size}"
            )
        return FileBytes(path, start, info.file_size)
    if info.compress_type == zipfile.ZIP_DEFLATED:
        return DeflatedBytes(path, start, info.compress_size, info.file_size, info.CRC)
    raise UnsupportedFormatError(
        f"{label}: member {info.filename!r} is compressed by method {info.compress_type}; stored "
        f"and deflated members are read"
    )


def _data_offset(label: str, info: zipfile.ZipInfo, data: ByteSource) -> int:
    offset = info.header_offset
    if not 0 <= offset <= len(data) - _LOCAL.size:
        raise MalformedFileError(f"{label}: member {info.filename!r} lies outside the file")
    fields = _LOCAL.unpack(data[offset : offset + _LOCAL.size])
    if fields[0] != b"PK\3\4":
        raise MalformedFileError(
            f"{label}: member {info.filename!r} has no header at byte {offset}"
        )
    return offset + _LOCAL.size + int(fields[9]) + int(fields[10])
