"""A file known by its hash: its record, and the sink that hashes it on the way in."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filterdb.errors import HashMismatchError, PipelineError
from filterdb.files import disk_errors, free_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What to do where the cache cannot be written.
CACHE_TIP = "free some room or set FILTERDB_CACHE to another folder"


@dataclass(frozen=True)
class Stored:
    """A file on this machine that is known by its hash.

    Parameters
    ----------
    path
        Where it lies.
    sha256, bytes
        Of its content.
    name
        The file's own name.
    uri
        Where it came from, as far as could be resolved.
    """

    path: Path
    sha256: str
    bytes: int
    name: str
    uri: str = ""


@dataclass(frozen=True)
class Filled:
    """What whoever filled a sink knows about the file.

    Parameters
    ----------
    name
        The file's own name.
    uri
        Resolved source URI.
    """

    name: str
    uri: str = ""


class Sink:
    """A file being filled, hashed on the way.

    Parameters
    ----------
    file
        Opened for writing bytes.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0

    def write(self, block: bytes) -> None:
        """Append bytes.

        Parameters
        ----------
        block
            Any number of them.

        Raises
        ------
        PipelineError
            Where the disk does not take them.
        """
        with cache_errors(Path(self._file.name)):
            self._file.write(block)
        self._hash.update(block)
        self.bytes += len(block)

    def reserve(self, size: int) -> None:
        """Refuse at once what the disk has no room for.

        Parameters
        ----------
        size
            Bytes about to come.

        Raises
        ------
        PipelineError
            Naming what is free and what is needed.
        """
        folder = Path(self._file.name).parent
        free = free_bytes(folder)
        if size - self.bytes > free:
            raise PipelineError(
                f"the cache at {folder.parent} needs {size:,} bytes for one file, "
                f"{free:,} are free",
                tip=CACHE_TIP,
            )

    def restart(self) -> None:
        """Drop what was written, for a source that cannot go on where it broke off."""
        with cache_errors(Path(self._file.name)):
            self._file.seek(0)
            self._file.truncate()
        self._hash = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        """Hash of what was written so far."""
        return self._hash.hexdigest()

    def verify(self, expected: str | None, *, what: str) -> None:
        """Make sure that the right bytes came.

        Parameters
        ----------
        expected
            Hash they should have; None checks nothing.
        what
            Their source, for the message.

        Raises
        ------
        HashMismatchError
            Where the hash is another.
        """
        if expected is not None and self.sha256 != expected:
            raise HashMismatchError(
                f"{what}: sha256 of the {self.bytes:,} bytes is not the expected one: "
                f"expected {expected}, got {self.sha256}",
                tip="the file changed at its source, or the catalogue names another one",
            )


def member_key(archive_sha256: str, nested: tuple[str, ...]) -> str:
    """Name a member in the cache: it is known by its archive's hash and its path.

    Parameters
    ----------
    archive_sha256
        Of the outermost archive.
    nested
        Path inside it, then inside that member, and so on.

    Returns
    -------
    str
        The cache's key.
    """
    return "".join([f"member:{archive_sha256}", *(f"!/{name}" for name in nested)])


@contextmanager
def cache_errors(path: Path) -> Iterator[None]:
    """Turn what the disk refuses to the cache into one clear error.

    Parameters
    ----------
    path
        Where one wanted to write, for the message.

    Yields
    ------
    None
        The body runs; an OSError in it becomes a PipelineError.
    """
    with disk_errors(path, what="the cache at", tip=CACHE_TIP):
        yield
