"""Files brought into the cache ahead of the workers that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from filterdb.catalog.model import Entry
    from filterdb.sources import Cache, Fetched
    from filterdb.types import ModelId, ProgressHook

#: Downloads at a time; they wait for the network, not for a core.
N_DOWNLOADS = 6


def prefetch(
    entries: Sequence[Entry],
    cache: Cache,
    *,
    on_fetched: Callable[[Fetched], object],
    progress: ProgressHook | None = None,
) -> dict[ModelId, FetchError]:
    """Bring the files of all entries into the cache at once; several often share an archive.

    Parameters
    ----------
    entries
        Whose files are wanted.
    cache
        Where they go.
    on_fetched
        Called with what came; it is in use until released.
    progress
        Told of bytes.

    Returns
    -------
    dict of str to FetchError
        By id, what could not be reached. Other errors come again, with their stage, when a worker
        opens the file.
    """
    from filterdb.sources import fetch_many

    unreached: dict[ModelId, FetchError] = {}
    for entry, result in fetch_many(entries, cache, workers=N_DOWNLOADS, progress=progress):
        if isinstance(result, FetchError):
            unreached[entry.id] = result
        elif not isinstance(result, Exception):
            on_fetched(result)
    return unreached
