"""The folder as a whole: structure, links, sentences, determinism, escaping, budgets."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

from filterdb.errors import UsageError
from filterdb.report.build import build_report
from filterdb.report.model import ReportOptions
from filterdb.store.schema import TABLES

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.store import Store


def pages(report: Path) -> list[Path]:
    return [report / "index.html", *sorted((report / "models").glob("*.html"))]


def read_csv(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def test_every_page_is_well_formed_and_its_ids_are_unique(report, read_page):
    for path in pages(report):
        page = read_page(path)
        assert len(page.ids) == len(set(page.ids)), path.name
        assert page.tags.count("h1") == 1


def test_every_link_resolves(report, read_page):
    ids = {path: set(read_page(path).ids) for path in pages(report)}
    checked = 0
    for path in ids:
        for link in read_page(path).links:
            if link.startswith("data:"):
                continue
            assert not re.match(r"[a-z]+:|//", link), f"{path.name} points outside: {link}"
            target, _, fragment = link.partition("#")
            file = (path.parent / unquote(target)).resolve() if target else path
            assert file.is_file(), f"{path.name}: {link}"
            anchor = unquote(fragment).split("?")[0]
            if anchor:
                assert anchor in ids[file], f"{path.name}: {link}"
            checked += 1
    assert checked > 300


def test_references_of_accessible_names_exist(report, read_page):
    for path in pages(report):
        page = read_page(path)
        for _, attributes in page.attributes:
            for name in ("aria-labelledby", "aria-controls"):
                for target in (attributes.get(name) or "").split():
                    assert target in page.ids, (path.name, name, target)


def test_each_figure_has_a_title_a_caption_and_data(report, read_page):
    page = read_page(report / "index.html")
    record = json.loads((report / "report.json").read_text())
    numbers = {re.match(r"fig-(\d+)", f["slug"])[1] for f in record["figures"]}
    assert numbers == {str(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16)}
    for figure in record["figures"]:
        assert figure["question"].endswith("?")
        assert f"{figure['slug']}-title" in page.ids
        assert f"{figure['slug']}-caption" in page.ids
        assert figure["missing"] is None, figure
        rows = read_csv(report / figure["data"])
        assert len(rows) > 1
        assert len({len(r) for r in rows}) == 1
        assert re.search(r"\bn = \d|n in brackets", figure["caption"]), figure


def test_every_sentence_is_what_its_query_answers(report, demo: Store):
    record = json.loads((report / "report.json").read_text())
    sentences = record["sentences"] + record["models"]
    assert len(record["summary"]) <= 7
    assert len(record["summary"]) >= 5
    assert len({s["slug"] for s in sentences}) == len(sentences) >= 10 + 22
    for sentence in sentences:
        rows = demo.sql(sentence["sql"]).to_pylist()
        assert len(rows) == 1, sentence["slug"]
        for name, value in sentence["values"].items():
            got = rows[0][name]
            if isinstance(value, float) and got is not None:
                assert math.isclose(float(got), value, rel_tol=1e-9), (sentence["slug"], name)
            else:
                assert got == value, (sentence["slug"], name)
        assert "nan" not in sentence["text"].lower().split()
        assert not re.search(r"\bNone\b(?! of)", sentence["text"])


def test_summary_says_size_and_what_failed(report, read_page):
    text = read_page(report / "index.html").text
    assert "22 models" in text
    assert "2 of 24 models could not be read" in text
    assert "NaN" not in text


def test_report_is_byte_equal_for_the_same_store(report, demo, tmp_path):
    summary = build_report(demo, tmp_path / "again", options=ReportOptions())
    assert not summary.up_to_date

    def digests(folder: Path) -> dict[str, str]:
        return {
            str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }

    first, second = digests(report), digests(tmp_path / "again")
    assert {k for k in first if first[k] != second.get(k)} == set()
    assert first.keys() == second.keys()
    assert len(first) == summary.n_files


def test_a_report_that_is_there_is_left_alone(report, demo):
    before = (report / "index.html").stat().st_mtime_ns
    summary = build_report(demo, report, options=ReportOptions())
    assert summary.up_to_date
    assert summary.n_models == 22
    assert (report / "index.html").stat().st_mtime_ns == before


def test_other_peoples_folders_are_refused(demo, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="no report"):
        build_report(demo, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_budgets(report):
    index = report / "index.html"
    assert index.stat().st_size <= 3_000_000
    for page in (report / "models").glob("*.html"):
        assert page.stat().st_size <= 150_000, page.name
    total = sum(p.stat().st_size for p in report.rglob("*") if p.is_file())
    assert total <= 5_000_000
    svgs = re.findall(r"<svg class=\"chart\".*?</svg>", index.read_text(), re.DOTALL)
    assert len(svgs) >= 12
    assert max(map(len, svgs)) <= 150_000


def test_without_model_pages_nothing_points_at_them(demo, tmp_path, read_page):
    options = ReportOptions(model_pages="none")
    summary = build_report(demo, tmp_path / "r", options=options)
    assert summary.n_pages == 0
    assert not (tmp_path / "r" / "models").exists()
    assert not any("models/" in link for link in read_page(summary.path).links)


def test_evil_names_stay_text(report, read_page):
    page = read_page(report / "models" / "planted.html")
    assert "<script>alert(1)</script>/../x" in page.text
    index = (report / "index.html").read_text()
    assert "<script>alert" not in index
    assert index.count("<script") == index.count("</script>")
    assert all(re.fullmatch(r"[a-z0-9._-]+\.html", p.name) for p in pages(report))
    assert all(not re.search(r"[\s<>\"]", i) for i in page.ids)
    assert max(map(len, page.ids)) <= 130
    assert "block." * 50 in page.text


def test_columns_are_described_from_the_schema(report):
    text = (report / "data" / "columns.md").read_text()
    for name in ("models", "layers", "quality", "results"):
        for column in TABLES[name].columns:
            assert f"| {column.name} |" in text


def test_tables_are_whole(report, demo):
    import pyarrow.parquet as pq

    for name in ("models", "layers", "quality", "findings", "skipped", "failures", "results"):
        table = pq.read_table(report / "data" / f"{name}.parquet")
        assert table.equals(demo.tables[name].arrow), name
        rows = read_csv(report / "data" / f"{name}.csv")
        assert rows[0] == table.column_names
        assert len(rows) == table.num_rows + 1


def test_markdown_holds_summary_and_queries(report):
    text = (report / "report.md").read_text()
    assert text.startswith("# Convolution filters of 22 models\n")
    assert "filterdb query STORE" in text
    assert "<script>" not in text.replace("<script>alert(1)</script>", "")


def test_no_number_is_nan_and_no_word_is_none(report, read_page):
    for path in pages(report):
        words = re.findall(r"\b(?:nan|NaN|None|inf|null)\b", read_page(path).text)
        assert not [w for w in words if w in ("nan", "NaN", "inf")], path.name
    text = read_page(report / "models" / "model-004.html").text
    assert not re.search(r"\bNone\b(?! of)", text)
