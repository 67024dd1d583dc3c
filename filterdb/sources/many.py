"""Many entries at once: each archive fetched once, several in flight."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

from filterdb.catalog.census import by_archive
from filterdb.errors import SourceError, UsageError
from filterdb.sources.fetching import Fetched, fetch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from filterdb.catalog.model import Entry
    from filterdb.sources.cache import Cache
    from filterdb.types import ProgressHook


def fetch_entry(entry: Entry, cache: Cache, *, progress: ProgressHook | None = None) -> Fetched:
    """Bring a catalogue entry's files to this machine.

    Parameters
    ----------
    entry
        Of a catalogue.
    cache
        Where they are kept.
    progress
        Told of bytes.

    Returns
    -------
    Fetched
        As :func:`fetch` returns.
    """
    return fetch(
        entry.uri,
        cache=cache,
        base=entry.base,
        archive_sha256=entry.archive_sha256,
        companions=entry.companions,
        format=entry.format,
        progress=progress,
    )


def fetch_many(
    entries: Iterable[Entry],
    cache: Cache,
    *,
    workers: int = 4,
    progress: ProgressHook | None = None,
) -> Iterator[tuple[Entry, Fetched | Exception]]:
    """Bring many entries' files to this machine, several archives at a time.

    Parameters
    ----------
    entries
        Of one or more catalogues. Those of one archive are taken one after another, so that it
        is fetched once.
    cache
        Where files are kept.
    workers
        Archives in flight.
    progress
        Told of bytes, from any thread.

    Yields
    ------
    entry, outcome
        As they get ready. The outcome is what was fetched, or the SourceError (or UsageError:
        a name that does not exist) that entry met. What is wrong with the cache itself is raised.
    """

    def take(group: tuple[Entry, ...]) -> list[tuple[Entry, Fetched | Exception]]:
        return [(entry, _outcome(entry, cache, progress)) for entry in group]

    pool = ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="filterdb-fetch")
    try:
        futures: list[Future[list[tuple[Entry, Fetched | Exception]]]] = [
            pool.submit(take, group) for group in by_archive(entries).values()
        ]
        for future in as_completed(futures):
            yield from future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _outcome(entry: Entry, cache: Cache, progress: ProgressHook | None) -> Fetched | Exception:
    try:
        return fetch_entry(entry, cache, progress=progress)
    except (SourceError, UsageError) as error:
        return error
