"""The page in a real browser: offline, quiet, whole at every width, usable by keyboard."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from filterdb.store import Store

pytestmark = pytest.mark.browser

READY = "document.documentElement.dataset.ready"
#: Text of a chart that lies outside its drawing.
OUTSIDE = """() => [...document.querySelectorAll('svg.chart')].flatMap(s => {
  const b = s.getBoundingClientRect();
  return [...s.querySelectorAll('text')].filter(t => { const r = t.getBoundingClientRect();
    return r.width && (r.left < b.left - 1 || r.right > b.right + 1 || r.top < b.top - 1
      || r.bottom > b.bottom + 1); }).map(t => t.textContent); })"""
STOPS = """() => [...document.querySelectorAll('a[href],button,input,textarea,summary,[tabindex]')]
  .filter(e => e.tabIndex >= 0 && e.checkVisibility()).length"""


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    """Open a page of the report; afterwards nothing may have been asked for or complained of."""
    contexts, asked, said = [], [], []

    def go(path: str = "index.html", *, width: int = 1440, script: bool = True, **more: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, java_script_enabled=script,
            **more,
        )  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: asked.append(r.url))
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
        page.goto(report.as_uri() + "/" + path)
        if script:
            page.wait_for_function(READY, timeout=30_000)
        return page

    yield go
    for context in contexts:
        context.close()
    base = report.as_uri()
    outside = [u for u in asked if not u.startswith("data:") and not (
        u.startswith(base) and u.split("#")[0].endswith(".html"))]  # fmt: skip
    assert outside == []
    assert said == []


@pytest.mark.parametrize("width", [1440, 768, 390])
def test_nothing_is_cut_or_wider_than_the_window(open_page, width):
    page = open_page(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate("document.querySelectorAll('*').length") <= 10_000


@pytest.mark.parametrize("width", [1200, 390])
def test_a_model_page_is_whole_too(open_page, width):
    page = open_page("models/planted.html", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE) == []


def test_every_figure_has_a_name_a_summary_and_named_marks(open_page):
    page = open_page()
    figures = page.evaluate("""() => [...document.querySelectorAll('figure.fig')].map(f => {
      const name = document.getElementById(f.getAttribute('aria-labelledby')).textContent;
      const svg = f.querySelector('svg.chart');
      const named = svg ? svg.getAttribute('aria-labelledby').split(' ').every(
        i => document.getElementById(i).textContent.length > 10) : true;
      const marks = svg ? svg.querySelectorAll('.role-mark [aria-label]').length
        : [...f.querySelectorAll('img')].filter(i => i.alt.length > 10).length;
      return [name, named, marks]; })""")
    assert len(figures) >= 19
    for name, named, marks in figures:
        assert "?" in name
        assert named, name
        assert marks > 0, name


def test_at_most_sixty_tab_stops_and_arrows_within_a_figure(open_page):
    page = open_page()
    assert page.evaluate(STOPS) <= 60
    page.focus("#fig-8-task svg a[tabindex='0']")
    before = page.evaluate("document.activeElement.querySelector('[aria-label]').ariaLabel")
    page.keyboard.press("ArrowRight")
    after = page.evaluate("document.activeElement.querySelector('[aria-label]').ariaLabel")
    assert before != after
    assert page.locator("#fig-8-task svg a[tabindex='0']").count() == 1
    assert "D = " in page.locator(".tip").text_content()


def test_a_hollow_mark_is_a_link_inside_too(open_page):
    page = open_page()
    mark = page.locator("#fig-16 svg a").first
    mark.scroll_into_view_if_needed()
    middle = mark.bounding_box()
    x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
    assert page.evaluate(f"!!document.elementFromPoint({x}, {y}).closest('a')")


@pytest.mark.parametrize("path", ["index.html", "models/planted.html"])
def test_what_scrolls_sideways_can_be_stepped_to(open_page, path):
    page = open_page(path, width=390)
    wide = page.evaluate("""() => [...document.querySelectorAll('.scroll,.plot')]
      .filter(e => e.scrollWidth > e.clientWidth)
      .map(e => e.tabIndex >= 0 || !!e.querySelector('a[href],button'))""")
    assert len(wide) > 0
    assert all(wide)
    assert page.evaluate("[...document.querySelectorAll('th')].every(e => e.textContent.trim())")


def shown_rows(page: Any, grid: str) -> list[dict[str, str]]:
    """Return what "Save as CSV" gives."""
    import csv

    page.evaluate(f"document.querySelector('#{grid} .fg-more').open = true")
    with page.expect_download() as download:
        page.click(f"#{grid} .fg-save")
    text = download.value.path().read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize(
    ("grid", "query"),
    [
        ("layers", "task=ocr sparsity>0.1"),
        ("layers", "finding=sparse kernel!=7x7"),
        ("layers", "p<0.01 conv1"),
        ("layers", "role~point"),
        ("layers", "entropy<=0.5 depth>=0.2"),
        ("layers", 'finding!=sparse "block2"'),
        ("models", "dataset=coco layers=8 sparsity_median>0.1"),
        ("models", "finding=sparse"),
        ("found", "finding=sparse value>0.16"),
        ("skipped", "reason=fully_connected tensors>0"),
    ],
)
def test_filtered_rows_are_those_of_the_same_query(open_page, demo: Store, grid, query):
    page = open_page()
    page.fill(f"#{grid} input", query)
    page.wait_for_function(f"location.hash.startsWith('#{grid}?q=')")
    page.evaluate(f"document.querySelector('#{grid} .fg-more').open = true")
    page.click(f"#{grid} .fg-copy")
    rows = shown_rows(page, grid)
    sql = page.input_value(f"#{grid} .fg-sql")
    asked = demo.sql(sql).to_pylist()
    keys = {"layers": ("model", "layer"), "models": ("name",), "skipped": ("model", "reason"),
            "found": ("model", "layer", "finding")}[grid]  # fmt: skip

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(" ".join(str(row[k]).split()) for k in keys)

    assert sorted(map(key, rows)) == sorted(map(key, asked))
    total = page.evaluate(
        f"JSON.parse(document.querySelector('#{grid} .fg-meta').textContent).rows"
    )
    assert 0 < len(rows) < total or query.startswith(("reason", "dataset"))
    by_key = {key(r): r for r in asked}
    for row in rows:
        for name, text in row.items():
            want = by_key[key(row)][name]
            if isinstance(want, float):
                assert float(text) == pytest.approx(want, rel=1e-6, abs=1e-12), (name, row)
            elif isinstance(want, int):
                assert int(text) == want
    assert f"{len(rows):,} of {total:,} rows" in page.text_content(f"#{grid} .fg-count")


def test_an_unknown_column_is_named(open_page):
    page = open_page()
    page.fill("#layers input", "sparsty>0.5")
    page.wait_for_function("document.querySelector('#layers .fg-count').textContent.includes('no')")
    text = page.text_content("#layers .fg-count")
    assert "no column sparsty" in text
    assert "sparsity" in text


def test_filter_and_sort_live_in_the_address(open_page, report):
    page = open_page("index.html#layers?q=task%3Docr&sort=sparsity-")
    assert page.input_value("#layers input") == "task=ocr"
    head = page.locator("#layers [aria-sort]")
    assert head.get_attribute("aria-sort") == "descending"
    values = [float(v) for v in (r["sparsity"] or "nan" for r in shown_rows(page, "layers"))]
    known = [v for v in values if v == v]
    assert known == sorted(known, reverse=True)


def test_from_a_finding_to_the_layer_and_back_to_the_row(open_page):
    page = open_page("index.html#found?q=finding%3Dsparse")
    page.focus("#found .fg-box")
    for _ in range(4):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    where = page.get_attribute("#found .fg-box", "aria-activedescendant")
    name = page.locator(f"#{where} a").text_content()
    page.keyboard.press("Enter")
    page.wait_for_url("**/models/*.html*")
    target = page.evaluate("document.getElementById(decodeURIComponent(location.hash.slice(1)))"
                           ".querySelector('h3').textContent")  # fmt: skip
    assert name.startswith(target.replace("#", "").strip()[:20])
    page.go_back()
    page.wait_for_function(READY)
    assert "row=3" in page.evaluate("location.hash")


def test_grid_keyboard(open_page):
    page = open_page()
    page.focus("#layers .fg-box")
    page.keyboard.press("Control+End")
    active = page.get_attribute("#layers .fg-box", "aria-activedescendant")
    total = int(page.get_attribute("#layers .fg-box", "aria-rowcount")) - 1
    assert re.match(rf"layers-{total - 1}-", active)
    assert page.locator(f"#{active}").is_visible()
    page.keyboard.press("Control+Home")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert page.locator("#layers [aria-sort='ascending']").count() == 1


def test_without_javascript_all_figures_and_the_worst_findings_are_there(open_page):
    page = open_page(script=False, width=1280)
    assert page.locator("figure.fig svg.chart").first.is_visible()
    assert page.locator("#found-plain").is_visible()
    assert page.locator("#found-plain tbody tr").count() >= 20
    assert not page.locator(".fg").first.is_visible()
    assert "JavaScript is off" in page.text_content("#summary")
    assert page.evaluate is not None
    model = open_page("models/planted.html", script=False)
    assert model.locator(".sheet img").first.is_visible()


def test_print_shows_the_plain_tables_and_stays_short(open_page):
    page = open_page()
    page.emulate_media(media="print")
    assert page.locator("#found-plain").is_visible()
    assert not page.locator("nav.nav").is_visible()
    assert not page.locator("#layers").is_visible()
    pdf = page.pdf(format="A4", print_background=True)
    assert 5 <= len(re.findall(rb"/Type\s*/Page[^s]", pdf)) <= 20


def test_the_planted_sobel_is_drawn_upright(open_page):
    page = open_page("models/planted.html")
    picture = page.locator("#sobel .sheet img")
    assert "all 4 filters" in picture.get_attribute("alt")
    assert "±2.00, this layer" in page.text_content("#sobel .under")
    got = page.evaluate("""() => { const im = document.querySelector('#sobel .sheet img');
      const c = document.createElement('canvas'); c.width = im.naturalWidth;
      c.height = im.naturalHeight; const x = c.getContext('2d'); x.drawImage(im, 0, 0);
      return [im.naturalWidth, im.naturalHeight,
        [...x.getImageData(0, 0, c.width, c.height).data]]; }""")
    width, height, data = got
    assert (width, height) == (15, 3)
    signs = [
        [0 if (p := data[4 * (y * width + x):][:4])[0] == p[2] else (1 if p[0] > p[2] else -1)
         for x in range(3)]
        for y in range(3)
    ]  # fmt: skip
    assert signs in ([[-1, 0, 1]] * 3, [[-1, -1, -1], [0, 0, 0], [1, 1, 1]])
    empty = page.locator("#empty .under").first.text_content()
    assert "Every weight is zero" in empty


def test_scales_and_the_numbers_of_a_filter(open_page):
    page = open_page("models/planted.html")
    before = page.get_attribute("#sobel .sheet img", "src")
    page.check("input[name=scale][value=filter]")
    after = page.get_attribute("#sobel .sheet img", "src")
    assert before != after
    assert "own scale" in page.text_content("#sobel .under")
    page.check("input[name=scale][value=layer]")
    assert page.get_attribute("#sobel .sheet img", "src") == before
    page.hover("#sobel .sheet img", position={"x": 4, "y": 4})
    tip = page.locator(".tip").text_content()
    assert re.search(r"output 0, input [01], norm 3\.5", tip)
    assert "−2" in tip


def test_dark_mode_keeps_the_data_colours(open_page):
    light, dark = open_page(), open_page(color_scheme="dark")
    ask = "getComputedStyle(document.body).backgroundColor"
    assert light.evaluate(ask) != dark.evaluate(ask)
    mark = "getComputedStyle(document.querySelector('#fig-3 svg .mark-rect path')).fill"
    assert light.evaluate(mark) == dark.evaluate(mark)


def test_report_json_is_readable(report):
    assert json.loads((report / "report.json").read_text())["schema"] == 1
