"""Files on the disk: hashed, and written so that a crash cannot spoil them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from filterdb.errors import FilterDBError, PipelineError

_TIPS = {
    errno.ENOSPC: "free some space or choose another folder; what was committed is whole, "
    "and the same command goes on",
    errno.EDQUOT: "the quota of this user is used up; free some space, then run it again",
    errno.EFBIG: "a limit on file sizes is set (ulimit -f, or the file system's own)",
    errno.EACCES: "give this user the right to write there, or choose another folder",
    errno.EPERM: "give this user the right to write there, or choose another folder",
    errno.EROFS: "the file system is mounted read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
    errno.EEXIST: "a file stands where a folder is needed; choose another folder",
    errno.ENAMETOOLONG: "choose a shorter path",
}


@contextmanager
def disk_errors(
    path: Path, *, what: str = "", needed: int | None = None, tip: str | None = None
) -> Iterator[None]:
    """Turn what the disk refuses into one clear error.

    Parameters
    ----------
    path
        What is being written.
    what
        Words to stand before it, as "the cache at".
    needed
        Bytes it takes, if known.
    tip
        What to do about it; None for what suits the kind of error.

    Yields
    ------
    None
        The body runs; an OSError in it becomes a PipelineError.

    Raises
    ------
    PipelineError
        Disk full, folder not writable, path through a file, and their like.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FilterDBError):
            raise  # a clear error already
        words = os.strerror(error.errno).lower() if error.errno else str(error)
        place = f"{what} {path}" if what else f"{path}"
        size = ""
        if needed is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            size = f": needs {needed:,} bytes"
            if error.errno != errno.EFBIG:  # what is free is not what it lacks
                size += f", {free_bytes(path):,} are free"
        raise PipelineError(
            f"cannot write {place} ({words}){size}", tip=tip or _TIPS.get(error.errno or 0)
        ) from error


def free_bytes(path: Path) -> int:
    """Return the bytes free on the file system of `path` or its nearest existing parent.

    Parameters
    ----------
    path
        May not exist yet.

    Returns
    -------
    int
        Bytes this user may still write.
    """
    for folder in (path, *path.parents):
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return 0


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Parameters
    ----------
    path
        Read in blocks.

    Returns
    -------
    str
        64 lower-case hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(file: IO[bytes]) -> None:
    """Make what was written to a file durable.

    Parameters
    ----------
    file
        Open for writing.
    """
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable.

    Parameters
    ----------
    folder
        Existing folder.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, write: Callable[[BinaryIO], None], *, needed: int) -> None:
    """Write a file so that at any moment it is either absent (or the old one) or whole.

    Parameters
    ----------
    path
        Final name; its folder exists.
    write
        Called with the open temporary file beside it.
    needed
        Bytes it will take, for the message when the disk is full.

    Raises
    ------
    PipelineError
        The disk refused.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path, needed=needed):
        try:
            with temporary.open("wb") as file:
                write(file)
                sync_file(file)
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes_durably(path: Path, content: bytes | memoryview) -> None:
    """Write `content` by :func:`write_durably`.

    Parameters
    ----------
    path
        Final name; its folder exists.
    content
        All of the file.
    """

    def write(file: BinaryIO) -> None:
        file.write(content)

    write_durably(path, write, needed=len(content))


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Parameters
    ----------
    path
        The folder; may exist.

    Raises
    ------
    PipelineError
        The disk refused.
    """
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
