"""Charts of the distance between groups (figures 8 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from filterdb.report.charts.corpus import MARK, Rows, inline

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Cells at least this large carry their number.
NUMBER_FROM = 24


def matrix(cells: Rows, order: Sequence[str], *, top: float, cell: int) -> alt.LayerChart:
    """Draw figure 8: D below the diagonal, the lower end of its interval above.

    Parameters
    ----------
    cells
        row, column, shown, kind, text, dark, link, speech, few.
    order
        Groups in order; an empty name is the gap before groups of one model.
    top
        End of the colour scale.
    cell
        Width of a cell in pixels.

    Returns
    -------
    altair.LayerChart
        Rectangles, numbers where they fit, dots where q >= 0.05, crosses where n = 1.
    """
    x = alt.X("column:N", sort=list(order), scale=alt.Scale(domain=list(order)), title=None,
              axis=alt.Axis(labelAngle=-50, domain=False, ticks=False))  # fmt: skip
    y = alt.Y("row:N", sort=list(order), scale=alt.Scale(domain=list(order)), title=None,
              axis=alt.Axis(domain=False, ticks=False))  # fmt: skip
    colour = alt.Color(
        "shown:Q",
        scale=alt.Scale(scheme="viridis", domain=[0, top], clamp=True),
        legend=alt.Legend(title="D, nats", orient="right", gradientLength=180, format=".2~f"),
    )
    valued = [c for c in cells if c["shown"] is not None]
    cell_marks = (
        alt.Chart(inline(valued))
        .mark_rect(stroke="var(--bg)", strokeWidth=1)
        .encode(x=x, y=y, color=colour, description="speech:N")
    )
    if cell >= NUMBER_FROM:
        cell_marks = cell_marks.encode(href="link:N")
    marks: list[alt.Chart] = [cell_marks]
    if cell >= NUMBER_FROM:
        for dark, ink in ((True, "#ffffff"), (False, "#111111")):
            rows = [c for c in valued if c["dark"] is dark and c["text"]]
            if rows:
                marks.append(
                    alt.Chart(inline(rows))
                    .mark_text(fontSize=12, color=ink, aria=False, dy=1)
                    .encode(x=x, y=y, text="text:N")
                )
    for dark, ink in ((True, "#ffffff"), (False, "#111111")) if cell >= NUMBER_FROM else ():
        dotted = [c for c in valued if c["dotted"] and c["dark"] is dark]
        if dotted:
            marks.append(
                alt.Chart(inline(dotted))
                .mark_circle(
                    size=14,
                    color=ink,
                    opacity=1,
                    aria=False,
                    xOffset=cell / 2 - 6,
                    yOffset=6 - _height(cell) / 2,
                )
                .encode(x=x, y=y)
            )
    crossed = [c for c in cells if c["shown"] is None]
    if crossed:
        marks.append(
            alt.Chart(inline(crossed))
            .mark_text(text="×", color="var(--muted)", fontSize=12)
            .encode(x=x, y=y, description="speech:N")
        )
    return alt.layer(*marks).properties(width={"step": cell}, height={"step": _height(cell)})


def _height(cell: int) -> int:
    return max(20, cell - 8)


def distances(rows: Rows, rules: Rows, *, top: float) -> alt.LayerChart:
    """Draw figure 9: each group against all others.

    Parameters
    ----------
    rows
        label, value, low, high, floor, kind ("full", "few", "one"), off, speech; largest first.
    rules
        value, text: distances to compare with.
    top
        End of the axis; what lies beyond is written at it.

    Returns
    -------
    altair.LayerChart
        Dots with intervals, the noise floor as a tick, rules for known distances.
    """
    order = [row["label"] for row in rows]
    x = alt.X("value:Q", title="D to all other models, nats",
              scale=alt.Scale(domain=[0, top], nice=False), axis=alt.Axis(tickCount=7))  # fmt: skip
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False))
    layers: list[alt.Chart] = []
    for kind, dash in (("full", [1, 0]), ("few", [4, 3])):
        some = [r for r in rows if r["kind"] == kind and not r["off"]]
        if not some:
            continue
        base = alt.Chart(inline(some))
        if any(r["low"] is not None for r in some):
            layers.append(
                base.mark_rule(color=MARK, strokeWidth=2, strokeDash=dash, aria=False).encode(
                    x=alt.X("low:Q"), x2="high:Q", y=y
                )
            )
        layers.append(
            base.mark_circle(color=MARK, size=75, opacity=1).encode(
                x=x, y=y, description="speech:N"
            )
        )
    beyond = [r for r in rows if r["off"]]
    if beyond:
        layers.append(
            alt.Chart(inline(beyond))
            .mark_text(align="right", dx=-4)
            .encode(x=alt.XDatum(top), y=y, text="off:N", description="speech:N")
        )
    single = [r for r in rows if r["kind"] == "one" and not r["off"]]
    if single:
        layers.append(
            alt.Chart(inline(single))
            .mark_point(color=MARK, size=70, filled=False, strokeWidth=1.5)
            .encode(x=x, y=y, description="speech:N")
        )
    floors = [r for r in rows if r["floor"] is not None and r["floor"] <= top]
    if floors:
        layers.append(
            alt.Chart(inline(floors))
            .mark_tick(color="currentColor", thickness=2, size=13, aria=False)
            .encode(x=alt.X("floor:Q"), y=y)
        )
    if rules:
        base = alt.Chart(inline(rules))
        layers.append(base.mark_rule(color="var(--muted)", strokeDash=[2, 3]).encode(x=x))
        layers.append(
            base.mark_text(align="left", dx=4, baseline="top", aria=False).encode(
                x=x, y=alt.value(0), text="text:N"
            )
        )
    return alt.layer(*layers).properties(width=520, height={"step": 22})
