"""Small drawings made by hand: bullets, strips over depth, spectra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import escape

if TYPE_CHECKING:
    from collections.abc import Sequence


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def bullet(value: float | None, marks: Sequence[float] | None) -> str:
    """Draw a value on the marks of its population; the words stand beside it.

    Parameters
    ----------
    value
        0 to 1, or None.
    marks
        Values at 1, 25, 50, 75 and 99 %, or None where too few layers compare.

    Returns
    -------
    str
        An element that the style sheet draws, 120 pixels wide; not spoken.
    """

    def at(v: float) -> str:
        return _n(100 * min(1.0, max(0.0, v))) + "%"

    places = "" if value is None else f"--v:{at(value)}"
    if marks:
        places += "".join(f";--{name}:{at(m)}" for name, m in zip("abcde", marks, strict=True))
    kinds = ("u" if marks is None else "u p") + (" x" if value is None else "")
    return f'<i class="{kinds}" style="{places}"></i>'


def spectrum(shares: Sequence[float]) -> str:
    """Draw the shares of variance of a layer's filters.

    Parameters
    ----------
    shares
        Descending, sum 1.

    Returns
    -------
    str
        SVG of 120 × 16, one bar a component (at most 16).
    """
    shown = list(shares)[:16]
    step = 116 / max(9, len(shown))
    bars = "".join(
        f"M{round(6 + i * step)} 16v-{_n(max(0.4, 15 * v))}" for i, v in enumerate(shown)
    )
    return f'<svg viewBox="0 0 120 16" aria-hidden="true"><path class="sp" d="{bars}"/></svg>'


def depth_strip(
    bands: Sequence[dict[str, Any]], points: Sequence[dict[str, Any]], *, title: str
) -> str:
    """Draw a model's layers over depth on the bands of the corpus.

    Parameters
    ----------
    bands
        From `sections.quality.depth_bands`.
    points
        depth, value, link, speech; one a layer.
    title
        Metric.

    Returns
    -------
    str
        SVG of 300 × 110.
    """
    left, right, top, bottom = 28.0, 294.0, 20.0, 92.0

    def x(depth: float) -> str:
        return _n(left + (right - left) * depth)

    def y(value: float) -> str:
        return _n(bottom - (bottom - top) * min(1.0, max(0.0, value)))

    parts = [
        f'<text x="0" y="12" font-size="12" font-weight="600" fill="currentColor">{escape(title)}'
        "</text>",
        f'<path d="M{_n(left)} {_n(top)}V{_n(bottom)}H{_n(right)}" fill="none" '
        'stroke="var(--line)"/>',
        *(
            f'<text x="{_n(left - 4)}" y="{_n(float(y(v)) + 4)}" font-size="11" text-anchor="end" '
            f'fill="var(--muted)">{v}</text>'
            for v in (0, 1)
        ),
        f'<text x="{_n(left)}" y="106" font-size="11" fill="var(--muted)">input</text>'
        f'<text x="{_n(right)}" y="106" font-size="11" text-anchor="end" fill="var(--muted)">'
        "output</text>",
    ]
    for low, high, opacity in (("p5", "p95", ".2"), ("p25", "p75", ".35")):
        if len(bands) > 1:
            ahead = "L".join(f"{x(b['depth'])} {y(b[high])}" for b in bands)
            back = "L".join(f"{x(b['depth'])} {y(b[low])}" for b in reversed(bands))
            parts.append(f'<path d="M{ahead}L{back}z" fill="var(--mark)" opacity="{opacity}"/>')
    if len(bands) > 1:
        line = "L".join(f"{x(b['depth'])} {y(b['p50'])}" for b in bands)
        parts.append(f'<path d="M{line}" fill="none" stroke="var(--mark)" stroke-width="1.5"/>')
    for index, p in enumerate(points):
        parts.append(
            f'<a href="{escape(p["link"])}" tabindex="{-1 if index else 0}" '
            f'aria-label="{escape(p["speech"])}">'
            f'<circle cx="{x(p["depth"])}" cy="{y(p["value"])}" r="3.2"/></a>'
        )
    return (
        f'<svg class="chart" viewBox="0 0 300 110" role="group" aria-label="{escape(title)} of the '
        f'layers by depth, {len(points)} marks">{"".join(parts)}</svg>'
    )
