"""One writer at a time."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filterdb.errors import StoreExistsError
from filterdb.files import disk_errors, make_folder
from filterdb.store.layout import LOCK_FILE, STORE_FILE


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Hold the store for writing.

    The kernel drops the lock when its process dies, however it dies, so a lock is never stale.
    The folder is created where it is missing. Readers take no lock.

    Parameters
    ----------
    path
        The store's folder.

    Yields
    ------
    Path
        The same folder.

    Raises
    ------
    StoreExistsError
        Another job writes into this store (its process and host are named), or the folder holds
        something that is no store.
    PipelineError
        The folder cannot be created or written.
    """
    folder = Path(path)
    make_folder(folder)
    _refuse_foreign(folder)
    lock = folder / LOCK_FILE
    with disk_errors(lock):
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreExistsError(
                f"another job is writing into {folder}: {_holder(handle)}",
                tip="wait until it has ended, or choose another --store",
            ) from None
        note = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        with disk_errors(lock, needed=len(note)):
            os.ftruncate(handle, 0)
            os.pwrite(handle, note, 0)
        yield folder
    finally:
        # The file stays: removing it would let a third job lock a new file of the same name.
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        note = json.loads(os.pread(handle, 4096, 0))
        return f"process {note['pid']} on {note['host']}"
    except (ValueError, KeyError, TypeError):
        return "its process has not written its name yet"


def _refuse_foreign(folder: Path) -> None:
    with disk_errors(folder):
        names = {p.name for p in folder.iterdir()}
    if STORE_FILE not in names and names - {LOCK_FILE, f".{STORE_FILE}.tmp"}:
        some = ", ".join(sorted(names)[:3])
        raise StoreExistsError(
            f"{folder} is not empty and holds no store (found {some})",
            tip="choose a new or an empty folder for --store",
        )
