"""Pages from values: templates, style, script and fonts, all inlined."""

from __future__ import annotations

import base64
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from filterdb._version import __version__
from filterdb.report.model import Grid, Report, Sentence
from filterdb.report.numbers import NONE, short
from filterdb.report.palette import VIK
from filterdb.report.shell import shell_quoted
from filterdb.report.tables import pack_grid

if TYPE_CHECKING:
    from collections.abc import Mapping

_HERE = Path(__file__).resolve().parent
_GRID_START = (
    'D.documentElement.classList.add("js");\n'
    "const start = () => { figures(); Promise.all([...D.querySelectorAll('.fg')].map(grid))"
    ".then(() => { D.documentElement.dataset.ready = performance.now().toFixed(0); }); };\n"
)
_PAGE_START = (
    'D.documentElement.classList.add("js");\n'
    'const start = () => { figures(); sheets(); D.documentElement.dataset.ready = "1"; };\n'
)
_RUN = (
    'if (D.readyState === "loading") D.addEventListener("DOMContentLoaded", start); else start();\n'
)


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["datum"] = _datum
    environment.filters["lines"] = _lines
    environment.filters["shell"] = shell_quoted
    return environment


def _datum(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, float):
        return short(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _lines(text: str) -> Markup:
    return Markup("<br>").join(escape(line) for line in text.split("\n"))


def _template_text(name: str) -> str:
    return (_HERE / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def style(*, is_index: bool) -> str:
    """Return the style sheet without needless white space.

    Parameters
    ----------
    is_index
        With the grid's rules.

    Returns
    -------
    str
        CSS.
    """
    text = _template_text("page.css")
    if not is_index:
        text = "\n".join(line for line in text.split("\n") if not line.startswith(".fg"))
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"\n\s*", "\n", text).strip()


@functools.cache
def fonts() -> str:
    """Return the embedded font faces as CSS."""
    faces = []
    for weight in (400, 600):
        data = (_HERE / "fonts" / f"filterdb-sans-{weight}.woff2").read_bytes()
        faces.append(
            f'@font-face{{font-family:"Filterdb Sans";font-weight:{weight};'
            f"src:url(data:font/woff2;base64,{base64.b64encode(data).decode()})}}"
        )
    return "\n".join(faces)


@functools.cache
def script(*, is_index: bool) -> str:
    """Return the page's script.

    Parameters
    ----------
    is_index
        With the grid, or with the pictures' inspector.

    Returns
    -------
    str
        JavaScript without comment lines and indentation.
    """
    part, start = ("grid.js", _GRID_START) if is_index else ("sheets.js", _PAGE_START)
    text = _template_text("base.js") + _template_text(part) + start + _RUN
    lines = (line.strip() for line in text.split("\n"))
    body = "\n".join(line for line in lines if line and not line.startswith("//"))
    return f"(() => {{\n{body}\n}})();"


def index_page(report: Report, *, store_name: str, date: str) -> str:
    """Return index.html.

    Parameters
    ----------
    report
        What it says.
    store_name
        What the store is called in queries.
    date
        Day it was made, or empty.

    Returns
    -------
    str
        One file that needs no other.
    """
    grids = [b for s in report.sections for b in s.blocks if isinstance(b, Grid)]
    shown = [
        {
            "slug": s.slug,
            "title": s.title,
            "blocks": [(type(b).__name__, b) for b in s.blocks],
        }
        for s in report.sections
    ]
    text: str = (
        _environment()
        .get_template("index.html.j2")
        .render(
            report={"title": report.title, "lead": report.lead, "summary": report.summary,
                    "sentences": report.sentences, "sections": shown},
            packed={g.slug: pack_grid(g) for g in grids},
            css=style(is_index=True),
            fonts=fonts(),
            script=script(is_index=True),
            store_name=store_name,
            date=date,
            version=__version__,
        )
    )  # fmt: skip
    return text


def model_page(
    context: Mapping[str, Any], *, store_name: str, previous: Any, following: Any
) -> str:
    """Return the page of a model.

    Parameters
    ----------
    context
        From :func:`filterdb.report.pages.model_context`.
    store_name
        What the store is called in queries.
    previous, following
        name and href of the neighbours, or None.

    Returns
    -------
    str
        One file.
    """
    text: str = (
        _environment()
        .get_template("model.html.j2")
        .render(
            **context,
            previous=previous,
            next=following,
            store_name=store_name,
            css=style(is_index=False),
            script=script(is_index=False),
            vik=VIK.tobytes().hex(),
        )
    )
    return text


def markdown(report: Report, *, store_name: str) -> str:
    """Return the findings as text for a terminal or a diff.

    Parameters
    ----------
    report
        What it says.
    store_name
        What the store is called in queries.

    Returns
    -------
    str
        Markdown.
    """
    lines = [f"# {report.title}", "", report.lead, "", "## Summary", ""]
    lines += [f"{i}. {_plain(s.text)}" for i, s in enumerate(report.summary, 1)]
    for section in report.sections:
        lines += ["", f"## {section.title}"]
        lines += _section_lines(section.blocks)
    lines += ["", "## Queries", ""]
    for sentence in report.sentences:
        lines += [f"* {sentence.slug} ({sentence.n:,} {sentence.n_unit})", ""]
        lines += [f"      filterdb query {store_name} {shell_quoted(sentence.sql)}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _section_lines(blocks: Any) -> list[str]:
    lines: list[str] = []
    for block in blocks:
        kind = type(block).__name__
        if kind in ("Sentence", "Paragraph"):
            lines += ["", _plain(block.text)]
        elif kind == "Figure":
            text = block.missing or block.caption
            data = "" if block.missing else f" Data: data/{block.file_stem}.csv"
            lines += ["", f"**{block.label}. {block.question}** {_plain(text)}{data}"]
        elif kind == "Table" and not block.plain:
            lines += ["", f"### {block.title}", "", *_table_lines(block)]
        elif kind == "Definitions":
            lines += [""] + [f"* **{t}**: {_plain(m)}" for t, m in block.items]
    return lines


def _table_lines(table: Any) -> list[str]:
    def row(texts: Any) -> str:
        return "| " + " | ".join(str(t).replace("|", "\\|") for t in texts) + " |"

    heads = [row(table.heads), row("---" for _ in table.heads)]
    strip = re.compile(r"<[^>]+>")
    body = [row(_plain(c.text or strip.sub("", c.html)) for c in cells) for cells in table.rows]
    return heads + body


def _plain(text: str) -> str:
    return " ".join(text.split())


def sentence_record(sentence: Sentence) -> dict[str, Any]:
    """Return a sentence as a record of report.json.

    Parameters
    ----------
    sentence
        The sentence.

    Returns
    -------
    dict
        Plain values.
    """
    return {
        "slug": sentence.slug,
        "text": sentence.text,
        "values": dict(sentence.values),
        "n": sentence.n,
        "n_unit": sentence.n_unit,
        "link": sentence.link,
        "sql": sentence.sql,
    }
