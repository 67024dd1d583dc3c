"""What is known of archives before they are fetched: cached or not, and how large."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.catalog.census import ArchiveState, by_archive
from filterdb.catalog.uri import parse_uri
from filterdb.errors import SourceError
from filterdb.sources.origins import Request, find_measure
from filterdb.sources.stored import member_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from filterdb.catalog.model import Entry
    from filterdb.sources.cache import Cache


def look_up(
    entries: Iterable[Entry], cache: Cache, *, ask: bool = False, workers: int = 8
) -> dict[str, ArchiveState]:
    """Look up the archives of a selection.

    Parameters
    ----------
    entries
        The selection.
    cache
        What counts as cached.
    ask
        Ask indexes and servers for the sizes of what is not cached; else only this machine is
        looked at. Whoever does not answer leaves a size unknown.
    workers
        Questions in flight.

    Returns
    -------
    dict of str to ArchiveState
        By :func:`~filterdb.catalog.census.archive_key`, for
        :func:`~filterdb.catalog.census.take_census`.
    """
    groups = by_archive(entries)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="filterdb-look") as pool:
        states = pool.map(lambda group: _state(group, cache, ask=ask), groups.values())
        return dict(zip(groups, states, strict=True))


def _state(group: tuple[Entry, ...], cache: Cache, *, ask: bool) -> ArchiveState:
    first = group[0]
    uri = parse_uri(first.uri).archive
    request = Request(uri, cache, Path(first.base), first.archive_sha256)
    measure = find_measure(uri.scheme)
    if uri.scheme == "file":
        # Read where it lies: there is nothing to fetch.
        return ArchiveState(measure(request) if measure is not None else None, cached=True)
    if uri.scheme == "init":
        # Made here, now or before: there is nothing to fetch either.
        return ArchiveState(sum(entry.bytes or 0 for entry in group), cached=True)
    size = cache.peek(str(uri), sha256=first.archive_sha256)
    if size is not None:
        return ArchiveState(size, cached=True)
    if all(_has_members(entry, cache) for entry in group):
        return ArchiveState(sum(entry.bytes or 0 for entry in group), cached=True)
    if not ask or measure is None:
        return ArchiveState(None, cached=False)
    try:
        return ArchiveState(measure(request), cached=False)
    except SourceError:
        return ArchiveState(None, cached=False)


def _has_members(entry: Entry, cache: Cache) -> bool:
    uri = parse_uri(entry.uri)
    if entry.archive_sha256 is None or not uri.nested:
        return False
    names = [uri, *(uri.sibling(name) for name in entry.companions)]
    return all(cache.peek(member_key(entry.archive_sha256, n.nested)) is not None for n in names)
