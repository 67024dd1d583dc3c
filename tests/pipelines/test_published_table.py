"""The published table of files tried still says what the readers see."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from filterdb.catalog.load import load_catalogue
from filterdb.work.survey import SurveyTask, survey_file
from pipelines.survey_list import Row, read_list

TABLE = Path(__file__).parents[2] / "reports" / "formats" / "rows.csv"


def test_the_table_adds_up() -> None:
    with TABLE.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len({row["uri"] for row in rows}) == len(rows) == 1_315
    read = [row for row in rows if row["read"] == "yes"]
    assert len(read) >= 0.98 * len(rows)
    assert all(row["reason"] for row in rows if row["read"] == "no")
    differing = [row for row in read if row["agrees"] == "no"]
    assert all(row["explanation"] for row in differing)
    settled = [row for row in read if row["agrees"] == "yes" or row["other_rules"]]
    assert len(settled) >= 0.97 * len(read)


@pytest.mark.packages
def test_the_demos_files_are_seen_as_published(shared_cache: Path | None) -> None:
    cached = {entry.archive_sha256 for entry in load_catalogue("demo").entries}
    with TABLE.open(encoding="utf-8", newline="") as lines:
        published = {row["uri"]: row for row in csv.DictReader(lines)}
    files = [file for file in read_list(TABLE) if file.archive_sha256 in cached]
    assert len(files) > 50
    cache = None if shared_cache is None else str(shared_cache)
    for number, file in enumerate(files):
        seen = survey_file(SurveyTask(file.entry(number, "."), cache))
        assert not seen.retryable, seen.message
        shown = Row(file, seen).cells()
        assert shown == list(published[file.uri].values()), file.uri
