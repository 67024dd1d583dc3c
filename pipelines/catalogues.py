"""``filterdb catalog``: list and check catalogues, write one from a folder of checkpoints."""

from __future__ import annotations

import collections
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console import Console, format_bytes, plural
from pipelines.output import to_json, write_rows

if TYPE_CHECKING:
    from filterdb.catalog import Catalogue, Entry

LISTED = ("id", "task", "visual_category", "architecture", "format", "bytes", "licence_weights")


def run(action: str, target: str, *, select: str | None, as_json: bool, console: Console) -> int:
    """Do one of list, check and scan.

    Parameters
    ----------
    action
        list, check or scan.
    target
        Catalogue name or path; for scan a folder.
    select
        SQL condition; of list and check.
    as_json
        Records instead of text.
    console
        Where to talk.

    Returns
    -------
    int
        0.
    """
    if action == "scan":
        return _scan(Path(target), as_json=as_json, console=console)
    from filterdb.catalog import load_catalogue, select_entries

    catalogue = load_catalogue(target)
    entries = select_entries(catalogue.entries, select)
    if action == "list":
        return _list(entries, as_json=as_json, console=console)
    return _check(catalogue, entries, as_json=as_json, console=console)


def _record(entry: Entry) -> dict[str, Any]:
    record = asdict(entry)
    del record["base"]  # a path of this machine
    return record


def _list(entries: Sequence[Entry], *, as_json: bool, console: Console) -> int:
    if as_json:
        print(to_json([_record(e) for e in entries]))
        return 0
    write_rows(LISTED, [_record(e) for e in entries])
    console.say(plural(len(entries), "model"))
    return 0


def _check(
    catalogue: Catalogue, entries: Sequence[Entry], *, as_json: bool, console: Console
) -> int:
    counts = {
        column: dict(collections.Counter(getattr(e, column) for e in entries).most_common())
        for column in ("task", "visual_category", "format", "licence_weights")
    }
    archives = {e.archive_sha256 or e.uri.split("!/")[0] for e in entries}
    facts: dict[str, Any] = {
        "catalogue": catalogue.name,
        "sha256": catalogue.sha256,
        "n_models": len(entries),
        "n_archives": len(archives),
        "bytes": sum(e.bytes or 0 for e in entries),
        **counts,
    }
    if as_json:
        print(to_json(facts))
        return 0
    print(
        f"{catalogue.name}: {plural(len(entries), 'model')} in {plural(len(archives), 'archive')}, "
        f"model files {format_bytes(facts['bytes'])}"
    )
    for column, count in counts.items():
        words = ", ".join(f"{word} {n}" for word, n in count.items())
        print(f"{column.replace('_', ' ')} ({len(count)}): {words}")
    console.say(f"{catalogue.path} is a valid catalogue")
    return 0


def _scan(folder: Path, *, as_json: bool, console: Console) -> int:
    from filterdb.catalog import to_toml
    from filterdb.sources.scan import scan_folder

    with console.progress() as progress:
        # Paths relative to this folder, where a shell puts `> mine.toml`.
        found = scan_folder(folder, base=Path.cwd(), progress=progress)
    if as_json:
        print(to_json([_record(e) for e in found.catalogue.entries]))
    else:
        sys.stdout.write(to_toml(found.catalogue))
    for unread in found.unread:
        name = unread.path.rsplit("/", 1)[-1]
        console.say(f"left out: {unread.path}: {unread.reason.removeprefix(f'{name}: ')}")
    console.say(
        f"{plural(len(found.catalogue.entries), 'model')} found, "
        f"{plural(len(found.unread), 'file')} left out; "
        "fill in task and visual_category where they say unknown"
    )
    return 0
