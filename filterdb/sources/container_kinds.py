"""What kind of container a file is, told from its first bytes."""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from typing import TYPE_CHECKING, Literal

from filterdb.errors import SourceError, UnsupportedFormatError, nearest
from filterdb.sources.forward_file import compression_of, decompress

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["zip", "tar", "compressed"]
#: Bytes of zeros some packers put before a zip file, at most (to align its members).
_PADDING = 64
#: Archives people ask for that are not entered.
_FOREIGN = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard",
    b"\x04\x22\x4d\x18": "compressed by LZ4",
}
#: All that the standard library raises for damaged archives.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tarfile.TarError),
    *(EOFError, ValueError, OSError, OverflowError, LookupError, RecursionError, struct.error),
)


def container_kind(path: Path) -> Kind | None:
    """Tell from its first bytes what a container is.

    Parameters
    ----------
    path
        Any file.

    Returns
    -------
    {"zip", "tar", "compressed"} or None
        None where it is none; "tar" includes the compressed ones; "compressed" is any other file
        behind gzip, bzip2 or xz.
    """
    with path.open("rb") as file:
        head = file.read(512)
        if zip_begins(head):
            return "zip"
        compression = compression_of(head)
        if compression is None:
            return "tar" if head[257:262] == b"ustar" else None
        file.seek(0)
        try:
            plain = decompress(file, compression).read(512)
        except DAMAGED:
            # Whoever opens it says what is wrong.
            return "tar"
    return "tar" if _tar_begins(plain) else "compressed"


def zip_begins(head: bytes) -> bool:
    """Tell a zip file, which may stand behind padding.

    Parameters
    ----------
    head
        The file's first bytes.

    Returns
    -------
    bool
        True where the mark of a member, or of an empty archive, comes first.
    """
    begin = head[: _PADDING + 4].lstrip(b"\0") if head[:1] == b"\0" else head
    return begin[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def _tar_begins(head: bytes) -> bool:
    """Tell a tar header: by its mark, or (before 1988, and empty archives) by its checksum."""
    if head[257:262] == b"ustar" or head == bytes(512):
        return True
    try:
        return len(head) == 512 and tarfile.TarInfo.frombuf(head, "utf-8", "replace") is not None
    except tarfile.TarError:
        return False


def kind_or_raise(path: Path, what: str) -> Kind:
    """Tell what a container is, or say what the file is instead.

    Parameters
    ----------
    path
        Any file.
    what
        Its name in messages.

    Returns
    -------
    {"zip", "tar", "compressed"}
        As :func:`container_kind`.

    Raises
    ------
    UnsupportedFormatError
        Where it is none.
    """
    kind = container_kind(path)
    if kind is None:
        with path.open("rb") as file:
            head = file.read(8)
        foreign = next((words for mark, words in _FOREIGN.items() if head.startswith(mark)), None)
        raise UnsupportedFormatError(
            f"{what} is no container filterdb enters: it "
            + (f"is {foreign}" if foreign else f"begins with {head!r}"),
            tip="unpack it and name the file in it"
            if foreign
            else "zip (wheels too), tar and single files compressed by gzip, bzip2 or xz, packaged "
            ".data files beside their loader, and JSON lists of chunks are entered",
        )
    return kind


def plain_name(name: str) -> str:
    """Name what a compressed file holds.

    Parameters
    ----------
    name
        The compressed file's own name.

    Returns
    -------
    str
        Without ``.gz``, ``.bz2`` or ``.xz``; "content" where nothing is left.
    """
    for suffix in (".gz", ".bz2", ".xz"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)] or "content"
    return name or "content"


def no_member(name: str, names: list[str], what: str) -> SourceError:
    """Return the error to raise for a member that is not there.

    Parameters
    ----------
    name
        The member.
    names
        All there are.
    what
        The container's name.

    Returns
    -------
    SourceError
        Naming the nearest.
    """
    last = name.rsplit("/", 1)[-1]
    same = [n for n in names if n.rsplit("/", 1)[-1] == last]
    close = same[:3] or nearest(name, names) or sorted(names)[:5]
    return SourceError(
        f"{what} has no member {name!r}",
        tip=f"nearest: {', '.join(close)} ({len(names)} in all)" if close else "it is empty",
    )
