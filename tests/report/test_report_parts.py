"""Numbers, links, packed tables and charts."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import altair as alt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filterdb.report.charts.corpus import inline
from filterdb.report.charts.render import draw, polish
from filterdb.report.corpus import weighted_quantiles
from filterdb.report.links import anchor, make_links, slug
from filterdb.report.model import Grid, GridColumn
from filterdb.report.numbers import count, megabytes, share, short, wilson
from filterdb.report.tables import pack_grid, script_json, spark_bytes, unpack_grid


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,234"), (0.02134, "0.0213"), (-3.14159, "−3.14"), (2.1e-7, "2.1e−7"),
     (None, "–"), (math.nan, "–"), (12.345, "12.3")],
)  # fmt: skip
def test_short_numbers(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 %"), (1, "100 %"), (0.9999, "over 99 %"), (0.0001, "under 0.1 %"), (0.021, "2.1 %"),
     (None, "–"), (0.5, "50 %")],
)  # fmt: skip
def test_shares_are_never_rounded_to_all_or_nothing(value, text):
    assert share(value).replace("\u00a0", " ") == text


def test_counts_and_sizes():
    assert count(1234567) == "1,234,567"
    assert count(None) == "–"
    assert megabytes(1_234_567).replace("\u00a0", " ") == "1.23 MB"


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_interval_holds_the_share(hits, n):
    hits = min(hits, n)
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1
    assert wilson(0, 0) is None


@given(st.text(max_size=300))
def test_slugs_and_anchors_are_safe(text):
    assert re.fullmatch(r"[a-z0-9_-](?:[a-z0-9._-]*[a-z0-9_])?|model", slug(text)), slug(text)
    assert len(slug(text)) <= 80
    assert ".." not in slug(text)
    assert re.fullmatch(r"[A-Za-z0-9_.:/-]{1,120}", anchor(text))


@given(st.lists(st.text(max_size=8), min_size=1, max_size=20, unique=True))
def test_pages_and_anchors_are_unique_whatever_the_names(names):
    links = make_links(names, [(f"u{i}", "m", n) for i, n in enumerate(names)], with_page=names)
    assert len({p.lower() for p in links.pages.values()}) == len(names)
    assert len({a.lower() for a in links.anchors.values()}) == len(names)


def grid_of(**columns):
    kinds = {"w": "words", "t": "text", "i": "integer", "d": "decimal", "f": "float"}
    n = len(next(iter(columns.values())))
    made = tuple(GridColumn(k, k, kinds[k[0]], v, k) for k, v in columns.items())
    return Grid("g", "G", made, n, "t")


rows = st.integers(0, 40).flatmap(
    lambda n: st.fixed_dictionaries(
        {
            "w": st.lists(st.none() | st.text(max_size=5), min_size=n, max_size=n),
            "i": st.lists(st.none() | st.integers(-(2**40), 2**40), min_size=n, max_size=n),
            "d": st.lists(st.none() | st.floats(0, 1), min_size=n, max_size=n),
            "f": st.lists(st.none() | st.floats(-1e6, 1e6, width=32), min_size=n, max_size=n),
        }
    )
)


@given(rows)
def test_packed_columns_come_back(columns):
    back = unpack_grid(pack_grid(grid_of(**columns)))
    assert back["w"] == columns["w"]
    assert back["i"] == columns["i"]
    assert back["f"] == columns["f"]
    for got, given_ in zip(back["d"], columns["d"], strict=True):
        assert (got is None) == (given_ is None)
        assert got is None or abs(got - given_) <= 0.5e-4 + 1e-12


def test_many_words_and_text():
    words = [f"w{i}" for i in range(300)]
    back = unpack_grid(pack_grid(grid_of(w=words, t=[f"a\nb{i}" for i in range(300)])))
    assert back["w"] == words
    assert back["t"][7] == "a b7"


def test_sixty_thousand_rows_are_less_than_a_megabyte():
    import numpy as np

    rng = np.random.default_rng(0)
    n = 60_000
    packed = pack_grid(
        grid_of(
            w=[f"model-{i // 46}" for i in range(n)],
            t=[f"layer{i % 46 // 4}.{i % 4}.conv" for i in range(n)],
            i=rng.integers(1, 2048, n).tolist(),
            d1=rng.beta(1, 9, n).tolist(),
            d2=rng.beta(9, 1, n).tolist(),
            f=rng.random(n).tolist(),
        )
    )
    assert len(packed.body) < 1_000_000


def test_decimals_round_as_duckdb_does(demo):
    values = [1 / 32, 3 / 32, 0.00005, 0.12345, 0.5, 2 / 3]
    listed = ", ".join(f"({v!r}::double)" for v in values)
    asked = demo.sql(f"select round(v, 4) as r from (values {listed}) t(v)")["r"].to_pylist()
    assert unpack_grid(pack_grid(grid_of(d=values)))["d"] == asked


def test_script_json_cannot_end_its_element():
    text = script_json({"a": "</script><!--"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!--"}
    with pytest.raises(ValueError, match="JSON"):
        script_json(math.nan)


def test_sparks():
    assert spark_bytes([0, 1, None, math.nan, 0.5], 0, 1) == bytes([0, 254, 255, 255, 127])


def test_weighted_quantiles():
    assert weighted_quantiles([1.0, 2.0, 3.0], [1, 1, 1], (0.5,)) == [2.0]
    assert weighted_quantiles([0.0, 10.0], [99, 1], (0.5,))[0] < 1.0


def chart(text="a"):
    data = [{"x": 1.23456, "y": text, "u": "#t?q=a"}, {"x": 2.0, "y": "b", "u": "models/b.html#l"}]
    return (
        alt.Chart(inline(data))
        .mark_circle(clip=True)
        .encode(x="x:Q", y="y:N", href="u:N", description="y:N")
    )


def test_a_chart_has_a_name_own_ids_and_local_links():
    svg = draw(chart(), slug="fig-3").svg
    assert 'role="graphics-document document"' in svg
    assert 'aria-labelledby="fig-3-title fig-3-caption"' in svg
    ids = re.findall(r' id="([^"]+)"', svg)
    assert ids
    assert all(i.startswith("fig-3-") for i in ids)
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(ids)
    assert re.findall(r'href="([^"]+)"', svg) == ["#t?q=a", "models/b.html#l"]
    assert svg.count('tabindex="0"') == 1
    assert not re.search(r"\d\.\d{3,}", re.sub(r'aria-label="[^"]*"', "", svg))
    assert "currentColor" in svg
    assert "vega.github.io" not in svg


def test_the_same_chart_gives_the_same_bytes_in_another_process():
    here = draw(chart(), slug="f")
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tests.report.test_report_parts import chart\n"
        "from filterdb.report.charts.render import draw\n"
        "draw(chart('other'), slug='x'); d = draw(chart(), slug='f')\n"
        "sys.stdout.write(d.svg)"
    )
    there = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert there.stdout == here.svg
    assert draw(chart(), slug="f").spec == here.spec


def test_names_in_a_chart_are_escaped():
    svg = draw(chart('<script>alert(1)</script>"'), slug="f").svg
    assert "<script" not in svg


def test_links_with_a_base_address_become_local():
    svg = '<svg><a xlink:href="//vega.github.io/vega/models/a.html#x" target="_blank"></a></svg>'
    assert 'href="models/a.html#x"' in polish(svg, slug="f")
    assert "target" not in polish(svg, slug="f")
