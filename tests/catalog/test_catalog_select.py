"""``--select``: what it chooses, what it says where nothing fits, and what it cannot reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from filterdb.catalog import ArchiveState, Entry, by_archive, select_entries, take_census
from filterdb.errors import UnknownNameError, UsageError

ENTRIES = (
    Entry(id="a", uri="pypi:p==1!/a.onnx", archive_sha256="0" * 64, bytes=10, format="onnx",
          task="ocr", training_dataset=("ICDAR", "COCO")),
    Entry(id="b", uri="pypi:p==1!/b.onnx", archive_sha256="0" * 64, bytes=20, format="onnx",
          task="ocr", paper="it's"),
    Entry(id="c", uri="npm:q@1.0.0!/c.pt", bytes=None, format="torch", task="segmentation"),
    Entry(id="d", uri="file:d.pt", bytes=40, format="torch", task="denoising", base="/x"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "ids"),
    [
        (None, "abcd"),
        ("task = 'ocr'", "ab"),
        ("task in ('ocr', 'denoising') and bytes > 10", "bd"),
        ("bytes is null", "c"),
        ("list_contains(training_dataset, 'COCO')", "a"),
        ("len(training_dataset) = 0", "bcd"),
        ("paper = 'it''s'", "b"),
        ("model_id like 'a%' or id = 'd'", "ad"),
        ("bytes >= (select max(bytes) from models)", "d"),
        ("task = 'ocr' -- and a remark", "ab"),
        ("uri ~ '^npm:.*'", "c"),
    ],
)
def test_conditions(condition: str | None, ids: str) -> None:
    assert "".join(entry.id for entry in select_entries(ENTRIES, condition)) == ids


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("task = 'orc'", r"no model has task = 'orc' \(did you mean 'ocr' \(2 models\)\?\)"),
        ("task='segmantation' and bytes>0", r"did you mean 'segmentation' \(1 model\)"),
        ("task in ('orc')", "did you mean 'ocr'"),
        ("format = 'keras'", "no model has format = 'keras' .*there are: onnx, torch"),
        ("list_contains(training_dataset, 'Coco')", "did you mean 'COCO'"),
        ("'Coco' = ANY(training_dataset)", "did you mean 'COCO'"),
        ("bytes > 1000", "no model of 4 fits 'bytes > 1000'"),
        ('task = "ocr"', "single quotes: task = 'ocr'"),
        ("", "cannot be evaluated"),
        ("task = ", "what would stand after WHERE"),
        ("1 = 1) union select (1", "cannot be evaluated"),
        ("true limit 1", "cannot be evaluated"),
        ("1 = 1; drop table models", "more than one condition"),
        ("1 = 1; --", "more than one condition|cannot be evaluated"),
        ("bytes = 'many'", "cannot be evaluated"),
        ("task = '\ud800'", "is no text"),
    ],
)
def test_what_is_wrong_is_said(condition: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select_entries(ENTRIES, condition)


def test_an_unknown_column_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no column 'tsk'.*nearest: task"):
        select_entries(ENTRIES, "tsk = 'ocr'")


def test_a_condition_reaches_no_file_and_no_variable(tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("id\na\n")
    hidden = [{"id": "a"}]
    for condition in (
        f"id in (select id from read_csv('{secret}'))",
        f"id in (select id from '{secret}')",
        f"id in (select content from read_text('{secret}'))",
        f"'{secret}' in (select file from glob('{tmp_path}/*'))",
        "id in (select id from hidden)",
        "id = getenv('HOME')",
    ):
        with pytest.raises(UsageError):
            select_entries(ENTRIES, condition)
    assert hidden


def test_the_census_counts_archives_once() -> None:
    groups = by_archive(ENTRIES)
    assert [len(group) for group in groups.values()] == [2, 1, 1]
    unknown = take_census(ENTRIES)
    assert (unknown.n_models, unknown.n_archives, unknown.n_archives_to_fetch) == (4, 3, 3)
    assert (unknown.bytes_to_fetch, unknown.n_archives_of_unknown_size) == (70, 3)
    assert (unknown.model_bytes, unknown.n_models_without_size) == (70, 1)
    assert unknown.by_task == (("ocr", 2), ("denoising", 1), ("segmentation", 1))
    states = {"0" * 64: ArchiveState(100, True), "npm:q@1.0.0": ArchiveState(7, False)}
    census = take_census(ENTRIES, states)
    assert (census.n_archives_cached, census.bytes_cached) == (1, 100)
    assert (census.n_archives_to_fetch, census.bytes_to_fetch) == (2, 47)
    assert census.n_archives_of_unknown_size == 1


def test_relative_paths_of_two_catalogues_are_two_files() -> None:
    here = Entry(id="a", uri="file:m.pt", base="/here")
    there = Entry(id="b", uri="file:m.pt", base="/there")
    assert len(by_archive([here, there])) == 2
