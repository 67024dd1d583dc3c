"""Stores that lack things: the page says so in one sentence and stays whole."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from filterdb.report.build import build_report
from filterdb.testing import LayerSpec, failed_model, make_entries, make_model
from tests.report.report_stores import analyse, write_store


def built(store, tmp_path, read_page):
    summary = build_report(store, tmp_path / "report")
    page = read_page(summary.path)
    assert len(page.ids) == len(set(page.ids))
    assert "NaN" not in page.text
    record = json.loads((summary.path.parent / "report.json").read_text())
    for sentence in record["sentences"] + record["models"][:30]:
        assert store.sql(sentence["sql"]).num_rows == 1
    return summary, page, record


def test_not_analysed(tmp_path, read_page):
    entries = make_entries(3)
    store = write_store(tmp_path / "s", [(e, make_model(e)) for e in entries])
    summary, page, record = built(store, tmp_path, read_page)
    assert summary.n_models == 3
    assert "Run filterdb analyze STORE" in page.text
    assert {"fig-1", "fig-2", "fig-3"} <= {f["slug"] for f in record["figures"] if f["data"]}
    assert any("analyze" in m for m in summary.missing)


def test_one_model(tmp_path, read_page):
    entry = make_entries(1)[0]
    store = analyse(write_store(tmp_path / "s", [(entry, make_model(entry))]))
    summary, page, record = built(store, tmp_path, read_page)
    assert "Convolution filters of one model" in page.text
    assert not [s for s in record["sentences"] if s["slug"].startswith("drift-task")]
    assert summary.n_pages == 1


def test_nothing_could_be_read(tmp_path, read_page):
    entries = make_entries(2)
    store = write_store(tmp_path / "s", [(e, failed_model(e)) for e in entries])
    _, page, _ = built(store, tmp_path, read_page)
    assert "2 of 2 models could not be read" in page.text


def test_no_3x3_filters_and_no_labels(tmp_path, read_page):
    specs = (
        LayerSpec("a", 16, 8, (5, 5), "spatial", folded=False),
        LayerSpec("b", 16, 8, (1, 1), "pointwise", folded=False),
    )
    entries = [replace(e, task="unknown", visual_category="unknown") for e in make_entries(4)]
    store = analyse(write_store(tmp_path / "s", [(e, make_model(e, specs=specs)) for e in entries]))
    summary, page, _ = built(store, tmp_path, read_page)
    assert "no basis of 3×3 filters" in page.text
    assert "No drift was computed" in page.text
    assert len(summary.missing) >= 3


def test_groups_of_one_model_are_in_no_sentence(demo, report):
    record = json.loads((report / "report.json").read_text())
    drift = [s for s in record["sentences"] if s["slug"] == "drift-task"]
    assert len(drift) == 1
    assert "denoising" not in drift[0]["text"]
    assert "denoising" in (report / "data" / "fig9-task.csv").read_text()


def test_random_twins_get_their_row(tmp_path, read_page):
    entries = make_entries(6)
    models = []
    for number, entry in enumerate(entries):
        record = make_model(entry)
        if number >= 4:
            record = replace(record, model={**record.model, "init_of": "resnet", "seed": number})
        models.append((entry, record))
    store = analyse(write_store(tmp_path / "s", models))
    _, page, record = built(store, tmp_path, read_page)
    assert "Random-initialised twins (2 models)" in page.text
    assert "All trained models (4 models)" in page.text
    assert "Do trained and untrained layers differ?" in page.text
    plain = next(f for f in record["figures"] if f["slug"] == "fig-6")
    assert "dashed: random-initialised twins" in plain["caption"]


def test_no_twins_no_row(report, read_page):
    text = read_page(report / "index.html").text
    assert "Random-initialised twins (" not in text
    assert "no random-initialised twins" in text


def test_grouping_by_an_expression(tmp_path, read_page):
    expression = "case when n_parameters > 8000 then '<large>' else 'small' end"
    entries = make_entries(8)
    store = write_store(tmp_path / "s", [(e, make_model(e)) for e in entries])
    store = analyse(store, by=(expression, "training_dataset"))
    _, page, _ = built(store, tmp_path, read_page)
    assert any(i.startswith("fig-7-case-when") for i in page.ids)


@pytest.mark.slow
def test_a_thousand_models(tmp_path, read_page):
    specs = (
        LayerSpec("a", 8, 3, (3, 3), "stem", folded=False),
        LayerSpec("b", 8, 8, (3, 3), "spatial", folded=False),
    )
    entries = make_entries(1_000, tasks=tuple(f"task_{i}" for i in range(60)))
    store = write_store(tmp_path / "s", [(e, make_model(e, specs=specs)) for e in entries])
    store = analyse(store, by=("task",))
    summary, page, _ = built(store, tmp_path, read_page)
    assert summary.index_bytes <= 3_000_000
    assert summary.n_bytes <= 80_000_000
    assert "The 40 largest of 60 groups are drawn" in page.text
