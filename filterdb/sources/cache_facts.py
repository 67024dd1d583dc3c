"""What is said of a cache: where it is, how much it keeps, what it holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from filterdb.errors import PipelineError, UsageError

#: Bytes kept at most unless told otherwise.
DEFAULT_LIMIT = 32 * 1024**3


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds.

    Parameters
    ----------
    path
        Its folder.
    limit
        Bytes kept at most, None for no bound.
    n_objects, bytes
        Files and their size together.
    n_entries
        Names by which they are known.
    n_in_use
        Files a running process holds.
    """

    path: Path
    limit: int | None
    n_objects: int
    bytes: int
    n_entries: int
    n_in_use: int


@dataclass(frozen=True)
class Cleared:
    """What clearing a cache did.

    Parameters
    ----------
    n_removed, bytes_removed
        Files that went, and the room they took.
    n_kept
        Files a running process holds.
    """

    n_removed: int
    bytes_removed: int
    n_kept: int


def default_root() -> Path:
    """Return the cache folder of this user.

    Returns
    -------
    Path
        ``$FILTERDB_CACHE``, else ``filterdb`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises
    ------
    PipelineError
        Where none of them is set and the user has no home folder.
    """
    own = os.environ.get("FILTERDB_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    # XDG: a relative path is to be ignored.
    if shared and Path(shared).is_absolute():
        return Path(shared) / "filterdb"
    try:
        return Path.home() / ".cache" / "filterdb"
    except RuntimeError as error:
        raise PipelineError(
            "no home folder to keep a cache in", tip="set FILTERDB_CACHE to a folder"
        ) from error


def default_limit() -> int:
    """Return how many bytes a cache of this user keeps.

    Returns
    -------
    int
        ``$FILTERDB_CACHE_LIMIT``, else 32 GiB.

    Raises
    ------
    UsageError
        Where the variable is no number.
    """
    text = os.environ.get("FILTERDB_CACHE_LIMIT", "")
    if not text:
        return DEFAULT_LIMIT
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"FILTERDB_CACHE_LIMIT={text!r} is not a number of bytes")
    return int(text)
