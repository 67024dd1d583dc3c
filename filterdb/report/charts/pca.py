"""Charts of explained variance (figure 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from filterdb.report.charts.corpus import MARK, Rows, inline

if TYPE_CHECKING:
    from collections.abc import Sequence


def cumulative(
    groups: Rows, everyone: Rows, twins: Rows, published: Rows, *, n_components: int
) -> alt.LayerChart:
    """Draw figure 6: cumulative explained variance.

    Parameters
    ----------
    groups, everyone, twins
        component, value, group, speech; several rows a line.
    published
        The same, of CNN Filter DB.
    n_components
        Components there are.

    Returns
    -------
    altair.LayerChart
        One line a group, thin; all models, bold; random twins dashed; published hollow.
    """
    ticks = list(range(1, n_components + 1))
    x = alt.X("component:Q", title="components kept",
              scale=alt.Scale(domain=[0.8, n_components + 2.6]),
              axis=alt.Axis(values=ticks, format="d", grid=False))  # fmt: skip
    y = alt.Y("value:Q", title="share of variance explained",
              scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=6))  # fmt: skip
    layers = []
    if groups:
        layers.append(
            alt.Chart(inline(groups))
            .mark_line(color="var(--muted)", opacity=0.45, strokeWidth=1, aria=False)
            .encode(x=x, y=y, detail="group:N")
        )
    if twins:
        layers.append(
            alt.Chart(inline(twins))
            .mark_line(color="currentColor", strokeDash=[5, 4], strokeWidth=1.5, aria=False)
            .encode(x=x, y=y)
        )
    layers.append(
        alt.Chart(inline(everyone))
        .mark_line(color=MARK, strokeWidth=3, aria=False)
        .encode(x=x, y=y)
    )
    layers.append(
        alt.Chart(inline(everyone))
        .mark_circle(color=MARK, size=50, opacity=1)
        .encode(x=x, y=y, description="speech:N")
    )
    if published:
        layers.append(
            alt.Chart(inline(published))
            .mark_point(color="currentColor", size=70, filled=False, strokeWidth=1.5)
            .encode(x=x, y=y, description="speech:N")
        )
    layers.append(_labels(everyone, twins, published, groups, n_components=n_components))
    return alt.layer(*layers).properties(width=560, height=280)


def _labels(
    everyone: Rows, twins: Rows, published: Rows, groups: Rows, *, n_components: int
) -> alt.Chart:
    """Name the lines in a corner they do not reach, instead of a legend."""
    names: Sequence[tuple[Rows, str]] = (
        (everyone, "bold: all models"),
        (twins, "dashed: random twins"),
        (published, "○ CNN Filter DB"),
        (groups, "thin: one group each"),
    )
    texts = [text for lines, text in names if lines]
    rows = [
        {"component": n_components - 2.4, "value": 0.08 * (len(texts) - i), "text": text}
        for i, text in enumerate(texts)
    ]
    return (
        alt.Chart(inline(rows))
        .mark_text(align="left", aria=False)
        .encode(x=alt.X("component:Q"), y=alt.Y("value:Q"), text="text:N")
    )
