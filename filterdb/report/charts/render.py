"""From an Altair chart to an SVG that can stand in the page.

vl-convert measures text with the fonts it knows, numbers its clip paths per process and leaves the
chart nameless; this module registers the page's own font, renumbers, names, strips and rounds, so
that the same chart gives the same bytes in any process.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FONT = "Filterdb Sans"
_FONT_PATH = Path(__file__).resolve().parent.parent / "fonts"

_TEXT = "currentColor"
_MUTED = "var(--muted)"
_GRID = "var(--grid)"

#: Vega-Lite configuration of every chart.
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": FONT,
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        "labelColor": _TEXT,
        "titleColor": _TEXT,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 600,
        "labelLimit": 0,
        "titleLimit": 0,
        "domainColor": _MUTED,
        "tickColor": _MUTED,
        "gridColor": _GRID,
        "labelPadding": 4,
        "titlePadding": 8,
    },
    "legend": {
        "labelColor": _TEXT,
        "titleColor": _TEXT,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 600,
        "labelLimit": 0,
        "titleLimit": 0,
    },
    "header": {
        "labelColor": _TEXT,
        "titleColor": _TEXT,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "labelLimit": 0,
    },
    "title": {"color": _TEXT, "fontSize": 13, "fontWeight": 600, "limit": 0, "anchor": "start"},
    "text": {"color": _TEXT, "fontSize": 12},
}


@dataclass(frozen=True)
class Drawing:
    """A rendered chart.

    Parameters
    ----------
    svg
        Markup for the page.
    spec
        The Vega-Lite specification it came from, data included.
    """

    svg: str
    spec: dict[str, Any]


@functools.cache
def _register_fonts() -> None:
    import vl_convert

    vl_convert.register_font_directory(str(_FONT_PATH))


def draw(chart: Any, *, slug: str) -> Drawing:
    """Render a chart.

    Parameters
    ----------
    chart
        Altair chart of any kind.
    slug
        Unique in the page: prefixes every id and names the title and caption elements
        ``{slug}-title`` and ``{slug}-caption``.

    Returns
    -------
    Drawing
        SVG and specification.
    """
    import altair
    import vl_convert

    _register_fonts()
    # Altair numbers views in the process; their names are made anew below.
    with altair.data_transformers.enable("default", max_rows=None):
        spec = chart.to_dict()
    spec = _rename_generated(spec)
    # The page's own text colours, not a theme's: CONFIG replaces Altair's default view size too.
    spec["config"] = CONFIG
    return Drawing(polish(vl_convert.vegalite_to_svg(spec), slug=slug), spec)


def _rename_generated(spec: dict[str, Any]) -> dict[str, Any]:
    """Give views and parameters names that depend on their order only."""
    names: dict[str, str] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: rename(v) if k in ("name", "views") else walk(v) for k, v in node.items()}
        if isinstance(node, list):
            return [walk(v) for v in node]
        return node

    def rename(value: Any) -> Any:
        if isinstance(value, list):
            return [rename(v) for v in value]
        if isinstance(value, str) and re.fullmatch(r"(view|param)[\w-]*", value):
            return names.setdefault(value, f"v{len(names) + 1}")
        return walk(value)

    renamed = walk(spec)
    assert isinstance(renamed, dict)
    return renamed


_NUMBER = re.compile(r"-?\d*\.\d{3,}(?:e-?\d+)?")
_GEOMETRY = re.compile(
    r'(?<=[ "])(d|transform|x|y|x1|x2|y1|y2|cx|cy|r|width|height|points|viewBox)="([^"]*)"'
)


def polish(svg: str, *, slug: str) -> str:
    """Make a vl-convert SVG fit for inlining.

    Parameters
    ----------
    svg
        As rendered.
    slug
        Prefix of ids.

    Returns
    -------
    str
        Unique ids, a role and a name, coordinates of two decimals, one tab stop, no foreign links.
    """
    svg = _unique_ids(svg, slug)
    svg = _GEOMETRY.sub(lambda m: f'{m[1]}="{_NUMBER.sub(_round, m[2])}"', svg)
    svg = _one_tab_stop(_local_links(svg))
    return _name_root(svg, slug).strip()


def _round(match: re.Match[str]) -> str:
    value = f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if value in ("", "-0") else value


def _unique_ids(svg: str, slug: str) -> str:
    order: dict[str, str] = {}
    for found in re.findall(r'\bid="([^"]+)"', svg):
        order.setdefault(found, f"{slug}-i{len(order) + 1}")
    for old, new in order.items():
        svg = re.sub(rf'\bid="{re.escape(old)}"', f'id="{new}"', svg)
        svg = svg.replace(f"url(#{old})", f"url(#{new})")
    return svg


def _local_links(svg: str) -> str:
    """Keep links into the report, drop what a base address was prefixed to, and their targets."""
    svg = re.sub(
        r'(xlink:)?href="(?:https?:)?(?://|\\/\\/)?[^"#]*?vega\.github\.io/[^"#]*?'
        r'((?:#|models/)[^"]*)"',
        r'href="\2"',
        svg,
    )
    svg = re.sub(r'xlink:href="', 'href="', svg)
    return re.sub(r' target="[^"]*"', "", svg)


def _one_tab_stop(svg: str) -> str:
    """Only the first link of a figure is in the tab order; arrows move among the others."""
    head, link, tail = svg.partition("<a ")
    if not link:
        return svg
    return head + '<a tabindex="0" ' + tail.replace("<a ", '<a tabindex="-1" ')


def _name_root(svg: str, slug: str) -> str:
    def root(match: re.Match[str]) -> str:
        attributes = re.sub(r' (class|version|xmlns:xlink|role|style)="[^"]*"', "", match[1])
        width = re.search(r' width="(\d+)', attributes)
        return (
            f'<svg class="chart" role="graphics-document document" '
            f'aria-labelledby="{slug}-title {slug}-caption" '
            f'style="--w:{width[1] if width else 600}px"{attributes}>'
        )

    return re.sub(r"<svg((?: [^>]*)?)>", root, svg, count=1)
