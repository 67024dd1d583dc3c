"""What a selection would cost, before anything is fetched."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.catalog.uri import parse_uri

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from filterdb.catalog.model import Entry


@dataclass(frozen=True)
class ArchiveState:
    """What is known of one archive without fetching it.

    Parameters
    ----------
    bytes
        Its size, or None where nobody has said.
    cached
        Whether nothing needs to be fetched for these models.
    """

    bytes: int | None
    cached: bool


@dataclass(frozen=True)
class Census:
    """Counts of a selection.

    Parameters
    ----------
    n_models, n_archives
        Entries, and the pieces to be fetched for them.
    model_bytes
        Model files together, as far as the catalogue says.
    n_models_without_size
        Entries whose size it does not say.
    n_archives_cached, bytes_cached
        Archives that need no fetching, and their size as far as known.
    n_archives_to_fetch, bytes_to_fetch
        The others. Where an archive's size is unknown its models' size stands in, so that
        `bytes_to_fetch` is a lower bound if `n_archives_of_unknown_size` is not 0.
    n_archives_of_unknown_size
        Of those to fetch.
    by_scheme, by_format, by_task, by_visual_category
        Models of each, most frequent first.
    """

    n_models: int
    n_archives: int
    model_bytes: int
    n_models_without_size: int
    n_archives_cached: int
    bytes_cached: int
    n_archives_to_fetch: int
    bytes_to_fetch: int
    n_archives_of_unknown_size: int
    by_scheme: tuple[tuple[str, int], ...]
    by_format: tuple[tuple[str, int], ...]
    by_task: tuple[tuple[str, int], ...]
    by_visual_category: tuple[tuple[str, int], ...]


def archive_key(entry: Entry) -> str:
    """Name the piece an entry's files come in; equal for entries that share it.

    Parameters
    ----------
    entry
        Of a catalogue.

    Returns
    -------
    str
        The archive's hash where known, else its URI.
    """
    if entry.archive_sha256:
        return entry.archive_sha256
    archive = str(parse_uri(entry.uri).archive)
    # Relative paths of two catalogues are not the same file.
    return f"{entry.base}\n{archive}" if archive.startswith("file:") else archive


def by_archive(entries: Iterable[Entry]) -> dict[str, tuple[Entry, ...]]:
    """Group entries by the piece they come in.

    Parameters
    ----------
    entries
        In any order.

    Returns
    -------
    dict of str to tuple of Entry
        :func:`archive_key` → entries, in order of first appearance.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(archive_key(entry), []).append(entry)
    return {key: tuple(group) for key, group in groups.items()}


def take_census(
    entries: Iterable[Entry], states: Mapping[str, ArchiveState] | None = None
) -> Census:
    """Count a selection.

    Parameters
    ----------
    entries
        The selection.
    states
        :func:`archive_key` → state, as :func:`filterdb.sources.look_up` finds them. Archives not
        in it count as not cached and of unknown size.

    Returns
    -------
    Census
        Counts and bytes.
    """
    chosen = tuple(entries)
    groups = by_archive(chosen)
    nothing = ArchiveState(None, False)
    states = {key: (states or {}).get(key, nothing) for key in groups}
    cached = {key for key, state in states.items() if state.cached}
    unknown = {key for key, state in states.items() if state.bytes is None}

    def size(key: str) -> int:
        known = states[key].bytes
        return sum(entry.bytes or 0 for entry in groups[key]) if known is None else known

    return Census(
        n_models=len(chosen),
        n_archives=len(groups),
        model_bytes=sum(entry.bytes or 0 for entry in chosen),
        n_models_without_size=sum(1 for entry in chosen if entry.bytes is None),
        n_archives_cached=len(cached),
        bytes_cached=sum(size(key) for key in cached),
        n_archives_to_fetch=len(groups) - len(cached),
        bytes_to_fetch=sum(size(key) for key in groups if key not in cached),
        n_archives_of_unknown_size=len(unknown - cached),
        by_scheme=_count(parse_uri(entry.uri).scheme for entry in chosen),
        by_format=_count(entry.format for entry in chosen),
        by_task=_count(entry.task for entry in chosen),
        by_visual_category=_count(entry.visual_category for entry in chosen),
    )


def _count(words: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])))
