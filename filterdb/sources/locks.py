"""File locks that die with their process, so that a kill never leaves one behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock, waiting for it.

    Parameters
    ----------
    path
        The lock's file; made where missing.
    shared
        Many may hold it at once, unless one wants it alone.

    Yields
    ------
    None
        While the lock is held. Threads of one process exclude one another too.
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, how)
            if _is_still(handle, path):
                yield
                return
        finally:
            os.close(handle)


def hold(path: Path) -> int | None:
    """Take a lock if nobody has it.

    Parameters
    ----------
    path
        A file that exists.

    Returns
    -------
    int or None
        An open file descriptor that holds the lock until it is closed; None where another
        process (or thread) holds it, or the file is gone.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    if not _is_still(handle, path):
        os.close(handle)
        return None
    return handle


def _is_still(handle: int, path: Path) -> bool:
    # Whoever waited on a file that was removed meanwhile holds a lock nobody else sees.
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
