"""A cache of files addressed by their content: filled atomically, shared by processes, bounded.

::

    objects/ab/<sha256>   the files, read-only; their access time is the mark of last use
    index/ab/<sha256 of the key>.json   key → sha256, bytes, name, resolved URI
    locks/  tmp/  pins/   of running processes; a killed one's are swept by the next

A file is written under ``tmp/``, hashed on the way, synced, then renamed; its index entry comes
after it. So an object that is there is whole. The size of an object is checked at every look-up
and its hash the first time a process uses it: a damaged object is dropped and fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filterdb.files import file_sha256, sync_file, sync_folder
from filterdb.sources.cache_facts import CacheInfo, Cleared, default_limit, default_root
from filterdb.sources.locks import hold, locked
from filterdb.sources.pins import Pins
from filterdb.sources.stored import Filled, Sink, Stored, cache_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class Cache:
    """A folder of files addressed by content.

    Parameters
    ----------
    root
        The folder; ``$FILTERDB_CACHE``, else ``filterdb`` in the user's cache folder.
    limit
        Bytes kept at most; the files used longest ago go first, files in use never. None for no
        bound; ``$FILTERDB_CACHE_LIMIT`` (bytes), else 32 GiB by default.

    Notes
    -----
    Pickles as its two parameters; marks of use belong to the process. What :meth:`get` and
    :meth:`find` return is marked as in use until :meth:`release`, or the end of the process.
    """

    def __init__(
        self, root: str | Path | None = None, *, limit: int | Literal["default"] | None = "default"
    ) -> None:
        self.root = (default_root() if root is None else Path(root).expanduser()).absolute()
        self.limit = default_limit() if limit == "default" else limit
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._mutex = threading.Lock()
        self._swept = False
        self._pins = Pins(self.root / "pins", guard=self._guard)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (str(self.root), self.limit))

    def __repr__(self) -> str:
        return f"Cache({str(self.root)!r}, limit={self.limit})"

    def find(self, key: str, *, sha256: str | None = None) -> Stored | None:
        """Look a file up.

        Parameters
        ----------
        key
            The name it was put under.
        sha256
            Its hash, if known: then it is found whatever name it came under.

        Returns
        -------
        Stored or None
            None where it is not there, or not whole, or of another hash.
        """
        entry = self._entry(key)
        if entry is None or (sha256 is not None and entry["sha256"] != sha256):
            if sha256 is None:
                return None
            entry = {"sha256": sha256, "bytes": None, "name": "", "uri": ""}
        digest = entry["sha256"]
        path = self._object(digest)
        if not path.exists():
            return None
        with cache_errors(self.root):
            self._pins.add(digest)
        try:
            sound = self._is_sound(path, digest, entry["bytes"])
        except FileNotFoundError:
            sound = False
        if not sound:
            self._pins.remove(digest)
            return None
        return Stored(path, digest, path.stat().st_size, entry["name"], entry["uri"])

    def peek(self, key: str, *, sha256: str | None = None) -> int | None:
        """Tell whether a file seems to be there, without reading or marking it.

        Parameters
        ----------
        key, sha256
            As for :meth:`find`.

        Returns
        -------
        int or None
            Its size; None where it is not there.
        """
        entry = self._entry(key)
        digest = sha256 or (entry["sha256"] if entry is not None else None)
        if digest is None:
            return None
        try:
            return self._object(digest).stat().st_size
        except FileNotFoundError:
            return None

    def get(
        self,
        key: str,
        fill: Callable[[Sink], Filled],
        *,
        sha256: str | None = None,
    ) -> Stored:
        """Look a file up, or have it filled in.

        Parameters
        ----------
        key
            The name to find it under again.
        fill
            Writes the content; called at most once, by one process and thread at a time for a
            key: others wait and take what the first one brought.
        sha256
            The hash it must have, if known.

        Returns
        -------
        Stored
            Marked as in use.

        Raises
        ------
        HashMismatchError
            Where other bytes came.
        PipelineError
            Where the cache cannot be written.
        """
        found = self.find(key, sha256=sha256)
        if found is not None:
            return found
        self._prepare()
        with self._key_lock(key):
            # Somebody else may have brought it while we waited.
            found = self.find(key, sha256=sha256)
            if found is None:
                found = self._fill(key, fill, sha256)
        self._evict()
        return found

    def release(self, *digests: str) -> None:
        """Say that files are no longer in use.

        Parameters
        ----------
        *digests
            Their hashes; one that is in use twice stays in use once.
        """
        for digest in digests:
            self._pins.remove(digest)

    def info(self) -> CacheInfo:
        """Count what is there.

        Returns
        -------
        CacheInfo
            All zero for a cache that does not exist yet.
        """
        objects = list(self._objects())
        in_use: set[str] = set()
        if objects:
            with cache_errors(self.root), locked(self._guard):
                in_use = self._pins.all()
        return CacheInfo(
            path=self.root,
            limit=self.limit,
            n_objects=len(objects),
            bytes=sum(size for _, size, _ in objects),
            n_entries=sum(1 for _ in self.root.glob("index/*/*.json")),
            n_in_use=sum(1 for path, _, _ in objects if path.name in in_use),
        )

    def clear(self) -> Cleared:
        """Remove every file no running process uses.

        Returns
        -------
        Cleared
            What went and what stayed.
        """
        if not self.root.is_dir():
            return Cleared(0, 0, 0)
        with cache_errors(self.root):
            self._sweep()
            with locked(self._guard):
                in_use = self._pins.all()
                objects = list(self._objects())
                removed = [item for item in objects if item[0].name not in in_use]
                for path, _, _ in removed:
                    path.unlink(missing_ok=True)
                self._drop_stale_entries()
            for path in (self.root / "locks").glob("*"):
                handle = hold(path)
                if handle is not None:
                    path.unlink(missing_ok=True)
                    os.close(handle)
        return Cleared(
            len(removed), sum(size for _, size, _ in removed), len(objects) - len(removed)
        )

    # The folder ------------------------------------------------------------------------------

    @property
    def _guard(self) -> Path:
        return self.root / "guard"

    def _object(self, digest: str) -> Path:
        return self.root / "objects" / digest[:2] / digest

    def _index(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.root / "index" / name[:2] / f"{name}.json"

    def _objects(self) -> Iterator[tuple[Path, int, int]]:
        for path in self.root.glob("objects/*/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield path, status.st_size, status.st_atime_ns

    def _entry(self, key: str) -> dict[str, Any] | None:
        try:
            entry = json.loads(self._index(key).read_bytes())
        except (OSError, ValueError):
            return None
        kinds = {"key": str, "sha256": str, "bytes": int, "name": str, "uri": str}
        if not isinstance(entry, dict) or entry.get("key") != key:
            return None
        return entry if all(isinstance(entry.get(k), t) for k, t in kinds.items()) else None

    def _prepare(self) -> None:
        with cache_errors(self.root):
            for name in ("objects", "index", "locks", "tmp", "pins"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            tag = self.root / "CACHEDIR.TAG"
            if not tag.exists():
                # What backup programs look for, to leave the folder out.
                tag.write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
            with self._mutex:
                first, self._swept = not self._swept, True
            if first:
                self._sweep()

    @contextlib.contextmanager
    def _key_lock(self, key: str) -> Iterator[None]:
        path = self.root / "locks" / self._index(key).stem
        with locked(path):
            yield

    # Filling ---------------------------------------------------------------------------------

    def _fill(self, key: str, fill: Callable[[Sink], Filled], sha256: str | None) -> Stored:
        with self._temporary() as file:
            sink = Sink(file)
            filled = fill(sink)
            sink.verify(sha256, what=filled.uri or key)
            digest, size = sink.sha256, sink.bytes
            with cache_errors(self.root):
                self._pins.add(digest)
                sync_file(file)
                target = self._object(digest)
                target.parent.mkdir(exist_ok=True)
                Path(file.name).chmod(0o444)
                Path(file.name).rename(target)
                sync_folder(target.parent)
        entry = {"key": key, "sha256": digest, "bytes": size, **asdict(filled)}
        self._write_entry(key, entry)
        self._remember(target, digest)
        return Stored(target, digest, size, filled.name, filled.uri)

    def _write_entry(self, key: str, entry: Mapping[str, Any]) -> None:
        path = self._index(key)
        with self._temporary() as file, cache_errors(self.root):
            file.write(json.dumps(entry, sort_keys=True).encode())
            sync_file(file)
            path.parent.mkdir(exist_ok=True)
            Path(file.name).rename(path)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Any]:
        path = self.root / "tmp" / f"{os.getpid()}-{secrets.token_hex(8)}"
        # Under the guard, so that no sweep meets the file before it is held.
        with cache_errors(self.root), locked(self._guard, shared=True):
            file = path.open("xb")
            held = hold(path)
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):
                file.close()
            path.unlink(missing_ok=True)
            if held is not None:
                os.close(held)

    def _sweep(self) -> None:
        with locked(self._guard):
            for path in (self.root / "tmp").glob("*"):
                handle = hold(path)
                if handle is not None:
                    path.unlink(missing_ok=True)
                    os.close(handle)

    # Looking up ------------------------------------------------------------------------------

    def _is_sound(self, path: Path, digest: str, size: int | None) -> bool:
        status = path.stat()
        mark = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._verified.get(digest) != mark:
            if (size is not None and status.st_size != size) or file_sha256(path) != digest:
                path.unlink(missing_ok=True)
                return False
            self._remember(path, digest)
        with contextlib.suppress(PermissionError):
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        return True

    def _remember(self, path: Path, digest: str) -> None:
        status = path.stat()
        with self._mutex:
            self._verified[digest] = (status.st_ino, status.st_mtime_ns, status.st_size)

    # Bounding --------------------------------------------------------------------------------

    def _evict(self) -> None:
        if self.limit is None:
            return
        total = sum(size for _, size, _ in self._objects())
        if total <= self.limit:
            return
        with cache_errors(self.root), locked(self._guard):
            in_use = self._pins.all()
            for path, size, _ in sorted(self._objects(), key=lambda item: (item[2], item[0])):
                if total <= self.limit:
                    break
                if path.name not in in_use:
                    path.unlink(missing_ok=True)
                    total -= size
            self._drop_stale_entries()

    def _drop_stale_entries(self) -> None:
        for path in self.root.glob("index/*/*.json"):
            try:
                digest = str(json.loads(path.read_bytes())["sha256"])
            except (OSError, ValueError, KeyError, TypeError):
                digest = ""
            if not digest or not self._object(digest).exists():
                path.unlink(missing_ok=True)


def _rebuild(root: str, limit: int | None) -> Cache:
    return Cache(root, limit=limit)
