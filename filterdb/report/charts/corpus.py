"""Charts of what is in the corpus (figures 1 to 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

Rows = Sequence[dict[str, Any]]
MARK = "var(--mark)"
MUTED = "var(--muted)"


def inline(rows: Rows) -> alt.InlineData:
    """Return rows as inline data; numpy numbers become plain ones.

    Parameters
    ----------
    rows
        One dictionary a mark.

    Returns
    -------
    altair.InlineData
        Without a name made up by Altair.
    """
    return alt.InlineData(values=[{k: _plain(v) for k, v in row.items()} for row in rows])


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def matrix(cells: Rows, tasks: Sequence[str], categories: Sequence[str]) -> alt.LayerChart:
    """Draw figure 1: models by task and visual category.

    Parameters
    ----------
    cells
        task, category, models, speech; one a cell, empty ones with 0.
    tasks, categories
        Order of rows and columns.

    Returns
    -------
    altair.LayerChart
        Dots whose area grows with the root of the count, and the count.
    """
    x = alt.X("category:N", sort=list(categories), title="visual category",
              scale=alt.Scale(domain=list(categories)),
              axis=alt.Axis(labelAngle=-40, ticks=False, grid=True, tickBand="extent"))  # fmt: skip
    y = alt.Y("task:N", sort=list(tasks), title=None, scale=alt.Scale(domain=list(tasks)),
              axis=alt.Axis(ticks=False, grid=True, tickBand="extent"))  # fmt: skip
    filled = [c for c in cells if c["models"]]
    dots = (
        alt.Chart(inline(filled))
        .mark_circle(color=MARK, opacity=1, xOffset=-9)
        .encode(
            x=x,
            y=y,
            size=alt.Size(
                "models:Q",
                scale=alt.Scale(type="sqrt", domainMin=0, range=[0, 260]),
                legend=None,
            ),
            description="speech:N",
        )
    )
    text = (
        alt.Chart(inline(filled))
        .mark_text(align="left", dx=3, fontSize=12, aria=False)
        .encode(x=x, y=y, text="models:Q")
    )
    return alt.layer(dots, text).properties(width={"step": 44}, height={"step": 24})


def kernels(rows: Rows, pointwise: Rows) -> alt.VConcatChart | alt.LayerChart:
    """Draw figure 2: filters by kernel; layers without shape apart.

    Parameters
    ----------
    rows
        kernel, filters, label, speech; most first.
    pointwise
        kernel, layers, label, speech of kernels of one coefficient.

    Returns
    -------
    altair chart
        Dots on a log scale.
    """
    parts = []
    if rows:
        parts.append(_dots(rows, "filters", "filters (log scale)"))
    if pointwise:
        parts.append(_dots(pointwise, "layers", "layers (log scale): these have no shape to study"))
    return alt.vconcat(*parts, spacing=18) if len(parts) > 1 else parts[0]


def _dots(rows: Rows, field: str, title: str) -> alt.LayerChart:
    top = max(row[field] for row in rows)
    order = [row["kernel"] for row in rows]
    x = alt.X(f"{field}:Q", title=title, scale=alt.Scale(type="log", domain=[1, top * 3]),
              axis=alt.Axis(format="~s", values=_decades(1, top * 3)))  # fmt: skip
    y = alt.Y("kernel:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False))
    base = alt.Chart(inline(rows))
    rule = base.mark_rule(color="var(--grid)", aria=False).encode(x=x, x2=alt.X2Datum(1), y=y)
    dot = base.mark_circle(size=70, color=MARK, opacity=1).encode(x=x, y=y, description="speech:N")
    text = base.mark_text(align="left", dx=9, aria=False).encode(x=x, y=y, text="label:N")
    return alt.layer(rule, dot, text).properties(width=560, height={"step": 22})


def _decades(low: float, high: float, *, steps: tuple[int, ...] = (1,)) -> list[int]:
    """Return powers of ten (times `steps`) between two numbers; twos and fives where few."""
    if high < 100 * max(1.0, low):
        steps = (1, 2, 5)
    first = math.floor(math.log10(max(1.0, low)))
    powers = range(first, math.ceil(math.log10(high)) + 1)
    return [s * 10**p for p in powers for s in steps if low <= s * 10**p <= high]


def bars(rows: Rows) -> alt.HConcatChart:
    """Draw figure 3: what was left out, by reason.

    Parameters
    ----------
    rows
        reason, tensors, models, link, speech; most tensors first.

    Returns
    -------
    altair.HConcatChart
        Two panels, tensors and models.
    """
    order = [row["reason"] for row in rows]

    def panel(field: str, title: str, labels: bool) -> alt.LayerChart:
        top = max(row[field] for row in rows)
        y = alt.Y("reason:N", sort=order, title=None,
                  axis=alt.Axis(labels=labels, ticks=False, domain=False))  # fmt: skip
        x = alt.X(f"{field}:Q", title=title, scale=alt.Scale(domain=[0, top * 1.25]),
                  axis=alt.Axis(tickCount=4, format="~s", grid=False))  # fmt: skip
        base = alt.Chart(inline(rows))
        bar = base.mark_bar(color=MARK, height=13).encode(
            x=x, y=y, href="link:N", description="speech:N"
        )
        text = base.mark_text(align="left", dx=5, aria=False).encode(
            x=x, y=y, text=alt.Text(f"{field}:Q", format=",")
        )
        return alt.layer(bar, text).properties(width=270, height={"step": 22})

    return alt.hconcat(
        panel("tensors", "tensors", True), panel("models", "models", False), spacing=22
    )


def owners(rows: Rows, named: Rows) -> alt.LayerChart:
    """Draw figure 4: filters per model by rank.

    Parameters
    ----------
    rows
        rank, filters; all models.
    named
        rank, filters, name, link, speech; the largest ten.

    Returns
    -------
    altair.LayerChart
        Log against log, the largest as links.
    """
    x = alt.X("rank:Q", title="rank of the model (log scale)",
              scale=alt.Scale(type="log", nice=False, domain=[0.9, max(12, len(rows) * 1.1)]),
              axis=alt.Axis(values=_decades(1, 2 * len(rows), steps=(1, 2, 5)),
                            format="~s"))  # fmt: skip
    top = max(row["filters"] for row in rows)
    low = min(row["filters"] for row in rows)
    y = alt.Y("filters:Q", title="filters larger than 1×1 (log scale)",
              scale=alt.Scale(type="log", domain=[max(1, low / 2), top * 2]),
              axis=alt.Axis(values=_decades(low / 2, top * 2), format="~s"))  # fmt: skip
    line = (
        alt.Chart(inline(rows)).mark_line(color=MUTED, strokeWidth=1.5, aria=False).encode(x=x, y=y)
    )
    dots = (
        alt.Chart(inline(named))
        .mark_circle(size=64, color=MARK, opacity=1)
        .encode(x=x, y=y, href="link:N", description="speech:N")
    )
    labels = (
        alt.Chart(inline(named[:1]))
        .mark_text(align="left", dx=9, dy=-9, aria=False)
        .encode(x=x, y=y, text="name:N")
    )
    return alt.layer(line, dots, labels).properties(width=600, height=260)
