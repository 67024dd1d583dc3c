"""``file:`` — a file of this machine, read where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.errors import FetchError, HashMismatchError, SourceError, nearest
from filterdb.files import file_sha256
from filterdb.sources.stored import Stored

if TYPE_CHECKING:
    from filterdb.sources.origins import Request


def obtain(request: Request) -> Stored:
    """Find a local file and hash it.

    Parameters
    ----------
    request
        Its body is a path, relative to the request's base or absolute.

    Returns
    -------
    Stored
        The file itself: nothing is copied.

    Raises
    ------
    SourceError
        Where there is no such file.
    FetchError
        Where it cannot be read.
    HashMismatchError
        Where it is not the file the catalogue names.
    """
    # Messages name the file as the catalogue does: they end in tables that travel.
    name = request.uri.body
    path = (request.base / name).absolute()
    if not path.is_file():
        if path.is_dir():
            tip = "name one file in it; `filterdb catalog scan` makes a catalogue of a whole folder"
            raise SourceError(f"file {name!r} is a folder, not a file", tip=tip)
        if path.exists():
            raise SourceError(f"file {name!r} is a device or a pipe, not a regular file")
        raise SourceError(f"file {name!r} is not there", tip=_neighbours(path, name))
    try:
        digest = file_sha256(path)
        size = path.stat().st_size
    except OSError as error:
        raise FetchError(f"file {name!r} cannot be read: {error.strerror or error}") from error
    if request.sha256 is not None and digest != request.sha256:
        raise HashMismatchError(
            f"file {name!r}: sha256 is not the expected one: "
            f"expected {request.sha256}, got {digest}",
            tip="the file changed since the catalogue was written",
        )
    request.tell(path.name, size, size)
    return Stored(path, digest, size, path.name, str(request.uri))


def measure(request: Request) -> int | None:
    """Look how large a local file is.

    Parameters
    ----------
    request
        As for :func:`obtain`.

    Returns
    -------
    int or None
        Bytes; None where there is no such file.
    """
    try:
        return (request.base / request.uri.body).stat().st_size
    except OSError:
        return None


def _neighbours(path: Path, name: str) -> str | None:
    if not path.parent.is_dir():
        return f"there is no folder {str(Path(name).parent)!r} either"
    try:
        close = nearest(path.name, [p.name for p in path.parent.iterdir()])
    except OSError:
        return None
    return f"nearest: {', '.join(close)}" if close else None


ORIGIN = obtain
MEASURE = measure
