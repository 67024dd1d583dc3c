"""Marks of the files running processes use, so that a bounded cache never drops those."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import weakref
from collections import Counter
from typing import TYPE_CHECKING

from filterdb.sources.locks import hold, locked

if TYPE_CHECKING:
    from pathlib import Path


class Pins:
    """What this process uses, written where the others see it.

    One small file a process, locked while the process lives: the lock of a killed one is free,
    and its file is removed by whoever looks next.

    Parameters
    ----------
    folder
        Where the files of all processes lie.
    guard
        Lock held alone while files are dropped: a pin set under it (shared) is either seen by
        that, or set after the file was gone.
    """

    def __init__(self, folder: Path, *, guard: Path) -> None:
        self._folder = folder
        self._guard = guard
        self._counts: Counter[str] = Counter()
        self._mutex = threading.Lock()
        self._path: Path | None = None
        self._handle = -1
        self._pid = -1

    def add(self, digest: str) -> None:
        """Mark a file as in use, once more.

        Parameters
        ----------
        digest
            Its hash.
        """
        # The guard before the mutex, as whoever drops files takes them: the other way round two
        # threads could wait for one another.
        with locked(self._guard, shared=True), self._mutex:
            self._counts[digest] += 1
            # A forked child shares its parent's file: it starts one of its own.
            if self._counts[digest] == 1 or self._pid != os.getpid():
                self._write()

    def remove(self, digest: str) -> None:
        """Take one mark away.

        Parameters
        ----------
        digest
            Its hash; nothing happens where it is not marked.
        """
        if digest not in self._counts:
            return
        with locked(self._guard, shared=True), self._mutex:
            if self._counts[digest] > 1:
                self._counts[digest] -= 1
                return
            if self._counts.pop(digest, 0):
                self._write()

    def all(self) -> set[str]:
        """Collect the marks of every running process; the caller holds the guard alone.

        Returns
        -------
        set of str
            Hashes in use.
        """
        with self._mutex:
            found = set(self._counts)
        for path in self._folder.glob("*"):
            if path == self._path:
                continue
            handle = hold(path)
            if handle is not None:
                path.unlink(missing_ok=True)
                os.close(handle)
                continue
            with contextlib.suppress(FileNotFoundError):
                found.update(path.read_text(encoding="ascii").split())
        return found

    def _write(self) -> None:
        if self._pid != os.getpid():
            self._open()
        content = "\n".join(sorted(self._counts)).encode("ascii")
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, content, 0)

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        path.touch(exist_ok=False)
        handle = hold(path)
        if handle is None:
            raise BlockingIOError(f"{path} was taken by somebody else")
        self._path, self._handle, self._pid = path, handle, os.getpid()
        weakref.finalize(self, _close, path, handle, os.getpid())


def _close(path: Path, handle: int, pid: int) -> None:
    if os.getpid() == pid:
        path.unlink(missing_ok=True)
    os.close(handle)
