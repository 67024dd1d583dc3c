"""Containers without a table of contents of their own: another file says what lies where.

Two kinds are in use. Emscripten's packager (MediaPipe's web solutions) joins files into ``X.data``
and writes their names and places into the script that loads them. Others cut one file into chunks
and list them in a JSON file (``resources.json``). Scripts are searched as text and never run.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filterdb.catalog.uri import check_member
from filterdb.errors import MalformedFileError, UnsafeCheckpointError, UsageError
from filterdb.sources.container_kinds import no_member
from filterdb.sources.containers import MAX_MEMBER_BYTES, MAX_MEMBERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from filterdb.sources.containers import Write

#: No table of contents is larger; parsed, it takes up to thirty times as much memory.
MAX_TABLE_BYTES = 4 * 1024**2
_BLOCK = 1 << 20
_CALL = re.compile(r"loadPackage\(\s*(?=\{)")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Piece:
    """A run of bytes.

    Parameters
    ----------
    file
        Name of the file it lies in, relative to the container's folder; "" is the container.
    start, end
        Byte range in that file.
    sha256
        Of these bytes, where the table says.
    """

    file: str
    start: int
    end: int
    sha256: str | None = None


def loader_names(name: str) -> tuple[str, ...]:
    """Name the scripts that may hold the table of contents of a packaged file.

    Parameters
    ----------
    name
        The file's own name.

    Returns
    -------
    tuple of str
        In the order in which to look; empty where it is no packaged file.
    """
    if not name.endswith(".data"):
        return ()
    stem = name.removesuffix(".data")
    return (f"{stem}_loader.js", f"{stem}.js", f"{name}.js", f"{stem}.js.metadata")


def is_chunk_list(path: Path) -> bool:
    """Tell a JSON file that lists chunks.

    Parameters
    ----------
    path
        Any file.

    Returns
    -------
    bool
        True where it is small, a JSON object, and speaks of chunks at its beginning.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return head[:1] == b"{" and b'"chunks"' in head and path.stat().st_size <= MAX_TABLE_BYTES


def package_table(script: Path, size: int, *, what: str) -> dict[str, tuple[Piece, ...]]:
    """Read the table of contents of a packaged file out of its loader.

    Parameters
    ----------
    script
        The loader, or the JSON written instead of it.
    size
        Bytes of the packaged file.
    what
        The packaged file's name in messages.

    Returns
    -------
    dict
        Member (without the leading slash) → its one piece.

    Raises
    ------
    MalformedFileError
        Where there is no table, or it does not fit the file.
    UnsafeCheckpointError
        Where it is larger than any.
    """
    text = _read(script, what)
    call = _CALL.search(text)
    start = call.end() if call is not None else 0
    table = _parse(text, start, what) if call is not None or text[:1] == "{" else None
    files = table.get("files") if isinstance(table, dict) else None
    if not isinstance(files, list):
        raise MalformedFileError(
            f'{what}: its loader names no files: expected loadPackage({{"files": [...]}}) in it, '
            "got none"
        )
    members: dict[str, tuple[Piece, ...]] = {}
    _check_count(len(files), what)
    for entry in files:
        given: dict[str, Any] = entry if isinstance(entry, dict) else {}
        name, begin, end = given.get("filename"), given.get("start"), given.get("end")
        if not isinstance(name, str) or not isinstance(begin, int) or not isinstance(end, int):
            raise MalformedFileError(
                f"{what}: its loader lists {str(entry)[:120]!r}: expected filename, start and end"
            )
        name = name.removeprefix("/")
        if not 0 <= begin <= end <= size:
            raise MalformedFileError(
                f"{what}: member {name!r} is bytes {begin:,} to {end:,} of a file of {size:,} bytes"
            )
        if name in members:
            raise MalformedFileError(f"{what}: member {name!r} is there twice")
        members[name] = (Piece("", begin, end),)
    return members


def chunk_table(path: Path, *, what: str) -> dict[str, tuple[Piece, ...]]:
    """Read a list of chunks.

    Parameters
    ----------
    path
        The JSON file.
    what
        Its name in messages.

    Returns
    -------
    dict
        Member (without the leading slash) → its chunks, in order and without gaps.

    Raises
    ------
    MalformedFileError
        Where it is no such list, or the chunks of a member leave gaps.
    UnsafeCheckpointError
        Where it is larger than any, or names files elsewhere.
    """
    table = _parse(_read(path, what), 0, what)
    members: dict[str, tuple[Piece, ...]] = {}
    listed = table.items() if isinstance(table, dict) else ()
    for name, entry in listed:
        chunks = entry.get("chunks") if isinstance(entry, dict) else None
        if not isinstance(chunks, list):
            continue
        _check_count(len(members) + len(chunks), what)
        pieces = tuple(_chunk(chunk, name, what) for chunk in chunks)
        total = sum(piece.end for piece in pieces)
        stated = entry.get("size", total)
        if stated != total or total > MAX_MEMBER_BYTES:
            raise MalformedFileError(
                f"{what}: member {name!r} claims {stated} bytes, its {len(pieces)} chunks are "
                f"{total:,}"
            )
        position = 0
        for chunk, piece in zip(chunks, pieces, strict=True):
            if chunk["offsets"][0] != position:
                raise MalformedFileError(
                    f"{what}: the chunks of member {name!r} leave a gap or overlap at byte "
                    f"{position:,}"
                )
            position += piece.end
        members[name.removeprefix("/")] = pieces
    if not members:
        raise MalformedFileError(f"{what} lists no files in chunks")
    return members


def _chunk(chunk: Any, name: str, what: str) -> Piece:
    given: dict[str, Any] = chunk if isinstance(chunk, dict) else {}
    digest, offsets = given.get("hash"), given.get("offsets", ())
    file = given.get("name", digest)
    if not isinstance(file, str) or not _is_range(offsets):
        raise MalformedFileError(
            f"{what}: a chunk of member {name!r} reads {str(chunk)[:120]!r}: expected a hash or "
            "name, and two offsets"
        )
    try:
        check_member(file.removeprefix("/"))
    except UsageError as error:
        raise UnsafeCheckpointError(
            f"{what}: a chunk of member {name!r} is to lie in {file!r}, outside the folder"
        ) from error
    known = digest if isinstance(digest, str) and _HASH.fullmatch(digest) else None
    return Piece(file.removeprefix("/"), 0, offsets[1] - offsets[0], known)


def copy_pieces(
    table: Mapping[str, tuple[Piece, ...]],
    name: str,
    write: Write,
    *,
    locate: Callable[[str], Path],
    what: str,
) -> None:
    """Put a member together.

    Parameters
    ----------
    table
        Member → pieces.
    name
        The member.
    write
        Called with its bytes, block by block.
    locate
        Path of a piece's file; brings it to this machine first.
    what
        The container's name in messages.

    Raises
    ------
    SourceError
        Where there is no such member; names the nearest.
    MalformedFileError
        Where a piece is shorter or longer than the table says, or has another hash.
    """
    if name not in table:
        raise no_member(name, list(table), what)
    for piece in table[name]:
        _copy(piece, locate(piece.file), write, what=f"{what}: member {name!r}")


def _copy(piece: Piece, path: Path, write: Write, *, what: str) -> None:
    size, digest = path.stat().st_size, hashlib.sha256()
    if piece.end > size or (piece.file and piece.end != size):
        raise MalformedFileError(
            f"{what}: its piece {piece.file or path.name} is {size:,} bytes, expected {piece.end:,}"
        )
    with path.open("rb") as file:
        file.seek(piece.start)
        left = piece.end - piece.start
        while left:
            block = file.read(min(_BLOCK, left))
            if not block:
                raise MalformedFileError(f"{what}: its piece {piece.file} is truncated")
            left -= len(block)
            digest.update(block)
            write(block)
    if piece.sha256 not in (None, digest.hexdigest()):
        raise MalformedFileError(
            f"{what}: sha256 of its piece {piece.file} is {digest.hexdigest()}, expected "
            f"{piece.sha256}"
        )


def _is_range(offsets: Any) -> bool:
    return (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(isinstance(n, int) for n in offsets)
        and 0 <= offsets[0] <= offsets[1] <= MAX_MEMBER_BYTES
    )


def _check_count(count: int, what: str) -> None:
    if count > MAX_MEMBERS:
        raise UnsafeCheckpointError(f"{what}: a table of more than {MAX_MEMBERS:,} pieces")


def _read(path: Path, what: str) -> str:
    size = path.stat().st_size
    if size > MAX_TABLE_BYTES:
        raise UnsafeCheckpointError(
            f"{what}: its table of contents takes {size:,} bytes, {MAX_TABLE_BYTES:,} is the most"
        )
    return path.read_text("utf-8-sig", "replace")


def _parse(text: str, start: int, what: str) -> Any:
    """Parse the JSON value that begins at a place of a text."""
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError) as error:
        raise MalformedFileError(
            f"{what}: its table of contents is no JSON: {error}",
            tip="the loader must be as Emscripten's packager wrote it",
        ) from error
