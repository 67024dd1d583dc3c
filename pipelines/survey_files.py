"""``filterdb survey``: try to read every file of a list, and publish what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.engine import Cluster, Outcome
from filterdb.engine import run as run_tasks
from filterdb.files import disk_errors, make_folder, write_bytes_durably
from filterdb.work.survey import Sighting, SurveyTask, survey_file, unread
from pipelines.console import Console, plural
from pipelines.prefetch import prefetch
from pipelines.survey_list import ListedFile, Row, read_list, to_csv
from pipelines.survey_page import to_markdown

if TYPE_CHECKING:
    from filterdb.catalog.model import Entry

DONE, FAILED_MODELS = 0, 3
ROWS, PAGE, PARTIAL = "rows.csv", "README.md", "survey.partial.jsonl"
#: Files fetched ahead of being read; a cache smaller than the whole list is then enough.
BATCH = 48


@dataclass(frozen=True)
class SurveyConfig:
    """What to try, where to write, and with what.

    Parameters
    ----------
    list_path
        The list.
    out
        Folder of the results.
    notes
        What is known besides: layouts, explanations of differences.
    cluster
        Where files are read.
    cache_path
        Cache of fetched files; None for the default.
    """

    list_path: Path
    out: Path
    notes: Path | None = None
    cluster: Cluster = field(default_factory=Cluster)
    cache_path: Path | None = None


def run(config: SurveyConfig, *, console: Console) -> int:
    """Try every file of the list; what an interrupted run has tried is not tried again.

    Parameters
    ----------
    config
        What and where.
    console
        Where to talk.

    Returns
    -------
    int
        0, or 3 where files were not read.
    """
    files = read_list(config.list_path, config.notes)
    make_folder(config.out)
    seen = _survey(files, config, console)
    rows = [
        Row(file, _not_tried(file) if file.obstacle else seen[number])
        for number, file in enumerate(files)
    ]
    write_bytes_durably(config.out / ROWS, to_csv(rows).encode())
    write_bytes_durably(config.out / PAGE, to_markdown(rows).encode())
    (config.out / PARTIAL).unlink(missing_ok=True)
    unread = [row for row in rows if not row.is_read]
    compared = [row for row in rows if row.is_compared]
    agree = sum(row.agrees for row in compared)
    console.say(
        f"read {len(rows) - len(unread):,} of {plural(len(rows), 'file')}"
        + (f"; counts as listed in {agree:,} of {len(compared):,}" if compared else "")
        + f"; {config.out / PAGE}"
    )
    return FAILED_MODELS if unread else DONE


def _not_tried(file: ListedFile) -> Sighting:
    return Sighting(file.uri, error="NotTried", message=file.obstacle)


def _survey(
    files: Sequence[ListedFile], config: SurveyConfig, console: Console
) -> dict[int, Sighting]:
    """Return what was seen, by row."""
    partial = config.out / PARTIAL
    seen = _taken_up(partial, files)
    if seen:
        console.say(f"{plural(len(seen), 'file')} kept from the run before")
    base = str(config.list_path.resolve().parent)
    todo = [
        (number, file.entry(number, base))
        for number, file in enumerate(files)
        if not file.obstacle and number not in seen
    ]
    done, total = 0, len(todo)
    with console.progress() as progress:
        for batch in _batches(todo):
            for number, sighting in _try(batch, config):
                seen[number] = sighting
                _keep(partial, number, sighting)
                done += 1
                if progress is not None:
                    progress("trying files", done, total)
    return seen


def _batches(todo: Sequence[tuple[int, Entry]]) -> Iterator[list[tuple[int, Entry]]]:
    """Cut into batches that do not part the files of one archive."""
    batch: list[tuple[int, Entry]] = []
    for number, entry in todo:
        same = bool(batch) and batch[-1][1].archive_sha256 == entry.archive_sha256
        if len(batch) >= BATCH and not (same and entry.archive_sha256):
            yield batch
            batch = []
        batch.append((number, entry))
    if batch:
        yield batch


def _try(
    batch: Sequence[tuple[int, Entry]], config: SurveyConfig
) -> Iterator[tuple[int, Sighting]]:
    from filterdb.sources import Cache

    cache = Cache(config.cache_path)
    numbers = {entry.id: number for number, entry in batch}
    entries = [entry for _, entry in batch]
    held: list[str] = []
    unreached = prefetch(entries, cache, on_fetched=lambda got: held.extend(got.objects))
    for entry in entries:
        if entry.id in unreached:
            yield numbers[entry.id], unread(entry.uri, unreached[entry.id])
    path = None if config.cache_path is None else str(config.cache_path.resolve())
    tasks = [SurveyTask(entry, path) for entry in entries if entry.id not in unreached]
    outcomes: list[Outcome[Sighting]] = run_tasks(survey_file, tasks, cluster=config.cluster)
    cache.release(*held)
    for outcome in outcomes:
        yield numbers[tasks[outcome.index].entry.id], outcome.value


def _keep(partial: Path, number: int, sighting: Sighting) -> None:
    if sighting.retryable:
        return
    line = json.dumps([number, asdict(sighting)]) + "\n"
    with disk_errors(partial, needed=len(line)), partial.open("a", encoding="utf-8") as file:
        file.write(line)


def _taken_up(partial: Path, files: Sequence[ListedFile]) -> dict[int, Sighting]:
    """Read what a run that was stopped has left; a line cut short is not there."""
    try:
        lines = partial.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    seen: dict[int, Sighting] = {}
    for line in lines:
        try:
            number, record = json.loads(line)
            otherwise = tuple((words, n, k) for words, n, k in record.pop("otherwise", ()))
            sighting = Sighting(**record, otherwise=otherwise)
        except (ValueError, TypeError, AttributeError):
            continue
        if 0 <= number < len(files) and files[number].uri == sighting.uri:
            seen[number] = sighting
    return seen
