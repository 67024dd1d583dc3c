"""Charts of layer quality (figures 13 to 16)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from filterdb.report.charts.corpus import MARK, Rows, inline

if TYPE_CHECKING:
    from collections.abc import Sequence


def bands(rows: Rows, twins: Rows, *, title: str, domain: tuple[float, float]) -> alt.LayerChart:
    """Draw figures 13 to 15: a metric over depth.

    Parameters
    ----------
    rows
        depth, p5, p25, p50, p75, p95, speech; one a depth bin.
    twins
        depth, p50 of random initialisations; empty where there are none.
    title
        Of the vertical axis.
    domain
        Its ends.

    Returns
    -------
    altair.LayerChart
        Two bands and the median.
    """
    x = alt.X("depth:Q", title="depth in the network (0 = input, 1 = output)",
              scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=10, grid=False))  # fmt: skip
    base = alt.Chart(inline(rows))

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(domain=list(domain)),
                     axis=alt.Axis(tickCount=5))  # fmt: skip

    layers: list[alt.Chart] = [
        base.mark_area(color=MARK, opacity=0.2, aria=False).encode(x=x, y=y("p5"), y2="p95:Q"),
        base.mark_area(color=MARK, opacity=0.38, aria=False).encode(x=x, y=y("p25"), y2="p75:Q"),
        base.mark_line(color="currentColor", strokeWidth=2, aria=False).encode(x=x, y=y("p50")),
        base.mark_circle(color="currentColor", size=34, opacity=1).encode(
            x=x, y=y("p50"), description="speech:N"
        ),
    ]
    if twins:
        layers.append(
            alt.Chart(inline(twins))
            .mark_line(color="currentColor", strokeDash=[5, 4], strokeWidth=1.5, aria=False)
            .encode(x=x, y=y("p50"))
        )
    return alt.layer(*layers).properties(width=600, height=220)


def cells(
    counts: Rows,
    worst: Rows,
    rules: Sequence[dict[str, float]],
    *,
    right: float,
    bottom: float,
) -> alt.LayerChart:
    """Draw figure 16: sparsity against entropy.

    Parameters
    ----------
    counts
        x0, x1, y0, y1, layers, shade (log10), speech; cells that hold layers.
    worst
        x, y, link, speech; the worst layers.
    rules
        value: entropy below which random filters would not fall.
    right, bottom
        Ends of the axes towards the worst corner.

    Returns
    -------
    altair.LayerChart
        Counted cells and linked marks.
    """
    x = alt.X("x0:Q", title="sparsity: share of nearly empty filters",
              scale=alt.Scale(domain=[0, right]),
              axis=alt.Axis(format="%", grid=False))  # fmt: skip
    y = alt.Y("y0:Q", title="entropy, share of the possible",
              scale=alt.Scale(domain=[bottom, 1]), axis=alt.Axis(grid=False))  # fmt: skip
    top = max(row["shade"] for row in counts)
    layers: list[alt.Chart] = [
        alt.Chart(inline(counts))
        .mark_rect(aria=False)
        .encode(
            x=x,
            x2="x1:Q",
            y=y,
            y2="y1:Q",
            color=alt.Color(
                "shade:Q",
                scale=alt.Scale(scheme="viridis", domain=[0, max(top, 1)]),
                legend=alt.Legend(
                    title="layers",
                    labelExpr="format(pow(10, datum.value), ',.0f')",
                    values=list(range(int(max(top, 1)) + 1)),
                    gradientLength=140,
                ),
            ),
        )
    ]
    if rules:
        layers.append(
            alt.Chart(inline(rules))
            .mark_rule(color="currentColor", strokeDash=[5, 4], aria=False)
            .encode(y=alt.Y("value:Q"))
        )
    if worst:
        layers.append(
            alt.Chart(inline(worst))
            .mark_point(
                color="#d55e00", shape="triangle-up", filled=False, size=60, strokeWidth=1.8
            )
            .encode(x=alt.X("x:Q"), y=alt.Y("y:Q"), href="link:N", description="speech:N")
        )
    return alt.layer(*layers).properties(width=520, height=380)
