"""Takes single members out of zip and tar archives and compressed files, within bounds.

Nothing is ever unpacked by the archive's own names: a member is asked for by its exact name and
written under one of ours, so no name, link or device in an archive can reach anything.
"""

from __future__ import annotations

import contextlib
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, TypeAlias

from filterdb.errors import (
    FetchError,
    FilterDBError,
    MalformedFileError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.container_kinds import DAMAGED, kind_or_raise, no_member, plain_name
from filterdb.sources.forward_file import MAX_HEADER, ForwardFile, compression_of, decompress

if TYPE_CHECKING:
    from pathlib import Path

#: No member is larger.
MAX_MEMBER_BYTES = 64 * 1024**3
#: Nothing inflates to more than this many times its compressed size …
MAX_RATIO = 200
#: … unless it stays below this many bytes.
RATIO_FREE_BYTES = 1024**3
#: No archive of models holds more files; each takes about a kilobyte of memory.
MAX_MEMBERS = 200_000
#: Memory the table of contents of a zip file may take beyond the file's size, and how many times
#: its bytes it takes.
_DIRECTORY_MEMORY = 160 * 1024**2
_DIRECTORY_FACTOR = 24
_BLOCK = 1 << 20

Write: TypeAlias = Callable[[bytes], None]


@dataclass(frozen=True)
class Member:
    """One file in a container.

    Parameters
    ----------
    name
        Its exact path.
    bytes
        Its size as declared.
    """

    name: str
    bytes: int


def list_members(path: Path, *, what: str, label: str = "") -> list[Member]:
    """List the files of a container, without folders, links and devices.

    Parameters
    ----------
    path
        The container.
    what
        Its name in messages.
    label
        Its own file name, where the path's is another (a cache's).

    Returns
    -------
    list of Member
        In the container's order; of a compressed file its plain form, whose size is not known
        before it is inflated (0).

    Raises
    ------
    UnsupportedFormatError
        Where it is no container.
    MalformedFileError
        Where it is damaged.
    UnsafeCheckpointError
        Where it breaks a bound.
    """
    kind = kind_or_raise(path, what)
    if kind == "compressed":
        return [Member(plain_name(label or path.name), 0)]
    if kind == "zip":
        with _open_zip(path, what) as archive:
            return [Member(i.filename, i.file_size) for i in archive.infolist() if _is_plain_zip(i)]
    with _open_tar(path, what) as archive:
        members = _tar_members(archive, what)
        return [Member(_tar_name(m), m.size) for m in members if m.isreg()]


def extract_member(path: Path, name: str, write: Write, *, what: str, label: str = "") -> None:
    """Copy one member of a container.

    Parameters
    ----------
    path
        The container.
    name
        The member's exact name.
    write
        Called with its bytes, block by block.
    what
        The container's name in messages.
    label
        Its own file name, where the path's is another (a cache's).

    Raises
    ------
    SourceError
        Where there is no such member; names the nearest.
    UnsupportedFormatError
        Where it is no container, or the member is encrypted or compressed in a way not read.
    MalformedFileError
        Where the container is truncated or damaged.
    UnsafeCheckpointError
        Where the member is a link or a device, or inflates beyond the bounds.
    """
    kind = kind_or_raise(path, what)
    if kind == "compressed":
        _inflate(path, name, write, what=what, label=label or path.name)
    elif kind == "zip":
        with _open_zip(path, what) as archive:
            _extract_zip(archive, name, write, what=what)
    else:
        with _open_tar(path, what) as archive:
            _extract_tar(archive, name, write, what=what, packed=path.stat().st_size)


def _check_size(name: str, size: int, packed: int, what: str) -> None:
    if size > MAX_MEMBER_BYTES:
        raise UnsafeCheckpointError(
            f"{what}: member {name!r} claims {size:,} bytes, {MAX_MEMBER_BYTES:,} is the most"
        )
    if size > RATIO_FREE_BYTES and size > MAX_RATIO * max(packed, 1):
        raise UnsafeCheckpointError(
            f"{what}: member {name!r} inflates {packed:,} bytes to {size:,}, "
            f"{size / max(packed, 1):,.0f} times; {MAX_RATIO} times is the most "
            f"above {RATIO_FREE_BYTES:,} bytes",
            tip="no weights compress like that: this is a decompression bomb",
        )


def _copy(source: IO[bytes], write: Write, *, name: str, size: int, what: str) -> None:
    done = 0
    while done < size:
        block = source.read(min(_BLOCK, size - done))
        if not block:
            raise MalformedFileError(
                f"{what}: member {name!r} is truncated: expected {size:,} bytes, got {done:,}"
            )
        done += len(block)
        write(block)
    if source.read(1):
        raise UnsafeCheckpointError(
            f"{what}: member {name!r} goes on after the {size:,} bytes it claims"
        )


@contextlib.contextmanager
def _damage(what: str) -> Iterator[None]:
    """Turn all that the standard library says of a damaged archive into one error."""
    try:
        yield
    except FilterDBError:
        raise
    except NotImplementedError as error:
        raise UnsupportedFormatError(f"{what} cannot be read: {error}") from error
    except DAMAGED as error:
        # bz2 and gzip report damage as an OSError too, but the system did not number it.
        if isinstance(error, OSError) and error.errno is not None:
            raise FetchError(f"{what} cannot be read: {error.strerror}") from error
        raise MalformedFileError(f"{what} is truncated or damaged: {error}") from error


# Zip --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_zip(path: Path, what: str) -> Iterator[zipfile.ZipFile]:
    size = path.stat().st_size
    with _damage(f"{what}: the zip archive of {size:,} bytes"), path.open("rb") as file:
        check_directory(file, size, what)
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            yield archive


def check_directory(file: IO[bytes], size: int, what: str) -> None:
    """Refuse a zip file whose table of contents is too large to be read into memory.

    Parameters
    ----------
    file
        Open for reading; where it stands changes.
    size
        Its size in bytes.
    what
        Its name in messages.

    Raises
    ------
    MalformedFileError
        There is no table of contents.
    UnsafeCheckpointError
        It is too large.
    """
    # The end record with the longest comment, and the two records of large archives before it.
    file.seek(max(0, size - 65_557 - 76))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0:
        raise MalformedFileError(
            f"{what}: a zip archive of {size:,} bytes without its table of contents: "
            "expected it at the end, got none",
            tip="the file is truncated: fetch it again",
        )
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    zip64 = tail.rfind(b"PK\x06\x06", 0, at)
    if zip64 >= 0:
        length = int.from_bytes(tail[zip64 + 40 : zip64 + 48], "little")
    # Python's record of a member takes some twenty times its entry.
    bound = min(MAX_HEADER, (_DIRECTORY_MEMORY + size) // _DIRECTORY_FACTOR)
    if length > bound:
        raise UnsafeCheckpointError(
            f"{what}: the zip's table of contents takes {length:,} bytes, {bound:,} is the most "
            f"for an archive of {size:,} bytes"
        )


def _is_plain_zip(info: zipfile.ZipInfo) -> bool:
    mode = info.external_attr >> 16
    return not info.is_dir() and (stat.S_IFMT(mode) in (0, stat.S_IFREG))


def _extract_zip(archive: zipfile.ZipFile, name: str, write: Write, *, what: str) -> None:
    found = [info for info in archive.infolist() if info.filename == name]
    if not found:
        names = [i.filename for i in archive.infolist() if _is_plain_zip(i)]
        raise no_member(name, names, what)
    info = found[0]
    if len(found) > 1:
        raise MalformedFileError(f"{what}: member {name!r} is there {len(found)} times")
    if not _is_plain_zip(info):
        raise UnsafeCheckpointError(f"{what}: member {name!r} is a link, a folder or a device")
    if info.flag_bits & 0x1:
        raise UnsupportedFormatError(
            f"{what}: member {name!r} is encrypted", tip="filterdb takes no passwords: decrypt it"
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        raise UnsupportedFormatError(
            f"{what}: member {name!r} is compressed by zip method {info.compress_type}",
            tip="stored, deflate and bzip2 are read",
        )
    _check_size(name, info.file_size, info.compress_size, what)
    with archive.open(info) as source:
        _copy(source, write, name=name, size=info.file_size, what=what)


# Tar --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_tar(path: Path, what: str) -> Iterator[tarfile.TarFile]:
    size = path.stat().st_size
    with _damage(f"{what}: the tar archive of {size:,} bytes"), path.open("rb") as file:
        compression = compression_of(file.read(8))
        file.seek(0)
        bound = max(MAX_RATIO * size, RATIO_FREE_BYTES)
        plain = ForwardFile(decompress(file, compression), bound=bound, what=what)
        with tarfile.open(fileobj=plain, mode="r:") as archive:  # type: ignore[call-overload]
            yield archive


def _tar_members(archive: tarfile.TarFile, what: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members, which are not kept, within bounds on their number and headers."""
    for count, member in enumerate(archive, start=1):
        if count > MAX_MEMBERS:
            raise UnsafeCheckpointError(
                f"{what}: a tar archive of more than {MAX_MEMBERS:,} members"
            )
        archive.members.clear()  # type: ignore[attr-defined]
        yield member
        archive.fileobj.expect_header()  # type: ignore[attr-defined]


def _tar_name(member: tarfile.TarInfo) -> str:
    # "./weights/model.pt" is how `tar c .` writes it. Bytes that are no UTF-8 are spelt out.
    name = member.name.removeprefix("./")
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def _extract_tar(
    archive: tarfile.TarFile, name: str, write: Write, *, what: str, packed: int
) -> None:
    names: list[str] = []
    found = False
    for member in _tar_members(archive, what):
        if member.isreg():
            names.append(_tar_name(member))
        if _tar_name(member) != name:
            continue
        if found:
            raise MalformedFileError(f"{what}: member {name!r} is there twice")
        if not member.isreg() or member.issparse():
            raise UnsafeCheckpointError(
                f"{what}: member {name!r} is a link, a folder, a device or has holes"
            )
        _check_size(name, member.size, packed, what)
        source = archive.extractfile(member)
        if source is None:
            raise MalformedFileError(f"{what}: member {name!r} cannot be read")
        archive.fileobj.expect_content()  # type: ignore[attr-defined]
        with source:
            _copy(source, write, name=name, size=member.size, what=what)
        found = True
    if not found and getattr(archive.fileobj, "ended", False):
        raise MalformedFileError(
            f"{what}: the tar archive of {packed:,} bytes ends without its end mark, before "
            f"{name!r} was met: expected two empty blocks, got none"
        )
    if not found:
        raise no_member(name, names, what)


# Single files ------------------------------------------------------------------------------------


def _inflate(path: Path, name: str, write: Write, *, what: str, label: str) -> None:
    size = path.stat().st_size
    if name != plain_name(label):
        raise no_member(name, [plain_name(label)], what)
    bound, done = max(MAX_RATIO * size, RATIO_FREE_BYTES), 0
    with _damage(f"{what}: the compressed file of {size:,} bytes"), path.open("rb") as file:
        compression = compression_of(file.read(8))
        file.seek(0)
        plain = decompress(file, compression)
        while block := plain.read(_BLOCK):
            done += len(block)
            if done > min(bound, MAX_MEMBER_BYTES):
                raise UnsafeCheckpointError(
                    f"{what}: inflates {size:,} bytes to more than the {bound:,} allowed",
                    tip="no weights compress like that: this is a decompression bomb",
                )
            write(block)
