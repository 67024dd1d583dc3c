"""What trained filters look like (figures 5 to 7, groups)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import escape

from filterdb.analysis.config import CONTROLS_BY
from filterdb.report import published
from filterdb.report.charts import pca as charts
from filterdb.report.charts.render import draw
from filterdb.report.corpus import records
from filterdb.report.layerwords import group_words, kernel_shape
from filterdb.report.model import Block, Cell, Figure, Section, Sentence, Table
from filterdb.report.numbers import NONE, count, plural, share, short, words
from filterdb.report.pictures import align_signs, eigenfilter_strip, filter_sheet, fix_signs
from filterdb.report.sections.common import (
    Answer,
    Part,
    absent,
    clean,
    not_analysed,
    say,
    table_rows,
)
from filterdb.report.sections.distances import FEW_FILTERS
from filterdb.report.twins import twin_basis

if TYPE_CHECKING:
    import pandas as pd

    from filterdb.report.corpus import Corpus

KERNEL = "3x3"
_QUESTIONS = {
    5: "What do trained filters look like?",
    6: "How many numbers describe a filter?",
    7: "Do the groups’ eigenfilters differ?",
}
#: Components compared by the angle between subspaces.
_SUBSPACE = 3
_MOST_GROUPS = 40


def build(corpus: Corpus) -> Part:
    """Build the section.

    Parameters
    ----------
    corpus
        The store.

    Returns
    -------
    Part
        With a reason where there is no basis of 3×3 filters.
    """
    everyone = _everyone(corpus)
    if everyone is None:
        reason = (
            not_analysed(corpus, "Eigenfilters")
            if "bases" in corpus.missing
            else "There is no basis of 3×3 filters: the corpus holds too few of them."
        )
        section = Section("eigenfilters", "Eigenfilters", (absent(5, _QUESTIONS[5], reason),))
        return Part(section, missing=(reason,))
    headline = _sentence(corpus, everyone)
    twins = twin_basis(corpus, KERNEL)
    blocks: list[Block | None] = [
        headline,
        _pictures(corpus, everyone, twins),
        _cumulative(corpus, everyone, twins),
    ]
    blocks += [_strips(corpus, everyone, axis) for axis in _axes(corpus)]
    blocks += [_groups(corpus, axis) for axis in _axes(corpus)]
    kept = tuple(b for b in blocks if b is not None)
    missing = tuple(f"Figure {b.label}: {b.missing}" for b in kept
                    if isinstance(b, Figure) and b.missing)  # fmt: skip
    return Part(
        Section("eigenfilters", "Eigenfilters", kept),
        (headline,) if headline else (),
        missing,
    )


def _everyone(corpus: Corpus) -> pd.Series | None:
    rows = corpus.bases[(corpus.bases["axis"] == "*") & (corpus.bases["kernel"] == KERNEL)]
    return None if rows.empty else rows.iloc[0]


def _axes(corpus: Corpus) -> list[str]:
    return list(dict.fromkeys(_of_groups(corpus)["axis"]))


def _of_groups(corpus: Corpus) -> pd.DataFrame:
    """Return the bases of groups; trained against random models are no groups of a corpus."""
    bases = corpus.bases
    return bases[~bases["axis"].isin(["*", CONTROLS_BY]) & (bases["kernel"] == KERNEL)]


def _interval(corpus: Corpus, component: int) -> tuple[float, float] | None:
    rows = corpus.results
    rows = rows[
        (rows["metric"] == "evr")
        & (rows["axis"] == "*")
        & (rows["kernel"] == KERNEL)
        & (rows["component"] == component)
    ]
    if rows.empty:
        return None
    low, high = clean(rows.iloc[0]["low"]), clean(rows.iloc[0]["high"])
    return None if low is None or high is None else (low, high)


def _sentence(corpus: Corpus, everyone: pd.Series) -> Sentence | None:
    evr = np.asarray(everyone["evr"], float)
    needed = int(np.searchsorted(np.cumsum(evr), 0.9) + 1)
    sql = f"""
        select n_models, n_filters, evr[1] as first, list_sum(evr[1:{needed}]) as explained
        from bases where axis = '*' and kernel = '{KERNEL}'
        and {corpus.treatment_sql}"""

    def write(a: Answer) -> str:
        published_first = published.EVR[0]
        return (
            f"{needed} of 9 numbers explain {share(a['explained'])} of the variance of 3×3 filter "
            f"shape over {plural(a['n_models'], 'model')}; the first alone explains "
            f"{share(a['first'])} (CNN Filter DB, 647 models pooled by filter: "
            f"{share(published_first)})."
        )

    return say(corpus, "variance", sql, write, n="n_models", n_unit="models", link="#fig-6",
               link_text="figure 6")  # fmt: skip


def numbers_text(values: Any) -> str:
    """Return a filter's numbers row by row, for alternative texts.

    Parameters
    ----------
    values
        (k*k,).

    Returns
    -------
    str
        Two digits each.
    """
    array = np.asarray(values, float)
    side = round(len(array) ** 0.5)
    rows = array.reshape(side, side) if side * side == len(array) else array[None]
    return "; ".join(" ".join(short(v, 2) for v in row) for row in rows)


def _pictures(corpus: Corpus, everyone: pd.Series, twins: Any) -> Figure:
    rows = [("All trained models", everyone, True)]
    if twins is not None:
        rows.append(("Random-initialised twins", twins, False))
    limit = max(float(np.abs(np.asarray(basis["components"], float)).max()) for _, basis, _ in rows)
    html, data = ['<div class="eigen">'], []
    for name, basis, with_interval in rows:
        size = 9
        components = fix_signs(np.asarray(basis["components"], float).reshape(size, size))
        evr = np.asarray(basis["evr"], float)
        n = plural(int(basis["n_models"]), "model")
        html.append(f'<div class="name">{escape(name)} ({n})</div><div class="row">')
        for i, component in enumerate(components):
            sheet = filter_sheet(component[None], kernel_shape(KERNEL), limit=limit)
            interval = _interval(corpus, i + 1) if with_interval else None
            between = (
                f"<br>{short(100 * interval[0])}–{short(100 * interval[1])}" if interval else ""
            )
            alt = f"Eigenfilter {i + 1} of {name}, rows: {numbers_text(component)}"
            html.append(
                f'<div class="one"><img class="pix" width="72" height="72" alt="{escape(alt)}" '
                f'src="{sheet.data_uri}">{short(100 * evr[i])} %{between}</div>'
            )
            data.append({"basis": name, "component": i + 1, "evr": float(evr[i]),
                         "low": interval[0] if interval else None,
                         "high": interval[1] if interval else None,
                         **{f"w{j}": float(v) for j, v in enumerate(component, 1)}})  # fmt: skip
        html.append("</div>")
    html.append(scale_bar(limit) + "</div>")
    caption = (
        "Principal components of 3×3 filters, each filter divided by its own largest weight, every "
        "model weighing the same. Blue negative, white zero, red positive, one scale for all; "
        "signs are fixed so that the largest entry is positive. Below each: share of variance it "
        "explains, and its 95 % interval over models. "
        f"n = {plural(int(everyone['n_models']), 'model')}, "
        f"{plural(int(everyone['n_filters']), 'filter')}."
    )
    columns = ("basis", "component", "evr", "low", "high", *(f"w{j}" for j in range(1, 10)))
    return Figure(5, _QUESTIONS[5], caption, "".join(html), columns, table_rows(data, columns))


def scale_bar(limit: float) -> str:
    """Return the signed colour bar as markup.

    Parameters
    ----------
    limit
        Value of its ends.

    Returns
    -------
    str
        Trusted markup.
    """
    ramp = np.linspace(-limit, limit, 63)[:, None]
    sheet = filter_sheet(ramp.reshape(1, 63), (1, 63), limit=limit)
    return (
        f'<div class="scale"><span>−{short(limit, 2)}</span><img class="pix" width="189" '
        f'height="12" alt="colour scale from minus to plus {short(limit, 2)}" '
        f'src="{sheet.data_uri}"><span>+{short(limit, 2)}</span></div>'
    )


def _cumulative(corpus: Corpus, everyone: pd.Series, twins: Any) -> Figure:
    def line(name: str, evr: Any) -> list[dict[str, Any]]:
        total = np.cumsum(np.asarray(evr, float))
        return [
            {
                "group": name,
                "component": i,
                "value": float(min(v, 1.0)),
                "speech": f"{name}: {plural(i, 'component')} explain{'s' if i == 1 else ''} "
                f"{share(float(v), 3)}",
            }
            for i, v in enumerate(total, 1)
        ]

    rows = _of_groups(corpus)
    groups = [
        point
        for row in records(rows)
        for point in line(f"{words(row['axis'])}: {words(row['group'])}", row["evr"])
    ]
    everything = line("All trained models", everyone["evr"])
    twin_line = line("Random-initialised twins", twins["evr"]) if twins is not None else []
    reference = line("CNN Filter DB, published", published.EVR)
    drawing = draw(
        charts.cumulative(groups, everything, twin_line, reference, n_components=9), slug="fig-6"
    )
    caption = (
        "Share of variance explained by the first components of 3×3 filter shape. Bold: all "
        f"{plural(int(everyone['n_models']), 'trained model')}; thin: "
        f"{plural(len(rows), 'group')}"
        + ("; dashed: random-initialised twins" if twin_line else "")
        + "; hollow: CNN Filter DB v1.0.0 (647 models, weighted by filter, see Methods). "
        "Noise would climb by one ninth a step. "
        f"n = {plural(int(everyone['n_models']), 'model')}."
    )
    columns = ("group", "component", "value")
    data = [*everything, *twin_line, *reference, *groups]
    return Figure(6, _QUESTIONS[6], caption, drawing.svg, columns, table_rows(data, columns),
                  drawing.spec)  # fmt: skip


def subspace_angle(first: Any, second: Any, n_components: int = _SUBSPACE) -> float:
    """Return the largest principal angle between the leading subspaces, degrees.

    Parameters
    ----------
    first, second
        (k*k, k*k) components, one a row.
    n_components
        How many span the subspace.

    Returns
    -------
    float
        0 to 90.
    """
    a, b = (np.asarray(x, float)[:n_components] for x in (first, second))
    cosines = np.linalg.svd(a @ b.T, compute_uv=False)
    return float(np.degrees(np.arccos(np.clip(cosines.min(), 0.0, 1.0))))


def _strips(corpus: Corpus, everyone: pd.Series, axis: str) -> Figure:
    rows = corpus.bases[(corpus.bases["axis"] == axis) & (corpus.bases["kernel"] == KERNEL)]
    reference = fix_signs(np.asarray(everyone["components"], float).reshape(9, 9))
    limit = float(np.abs(reference).max())
    items = []
    for row in records(rows):
        components = align_signs(np.asarray(row["components"], float).reshape(9, 9), reference)
        items.append((row, components, subspace_angle(components, reference)))
    if not all(str(item[0]["group"]).isdigit() for item in items):
        items.sort(key=lambda item: (-int(item[0]["n_models"]), str(item[0]["group"])))
    html = [
        '<div class="strips"><span class="head">group (models)</span>'
        '<span class="head">eigenfilters 1 to 9</span>'
        '<span class="head last">angle to all</span>'
    ]
    data = []
    whole: tuple[dict[str, Any] | None, Any, float] = (None, reference, 0.0)
    for of_group, components, angle in [whole, *items[:_MOST_GROUPS]]:
        name = "all trained models"
        n = int(everyone["n_models"])
        if of_group is not None:
            name = group_words(axis, str(of_group["group"]))
            n = int(of_group["n_models"])
        sheet = eigenfilter_strip(components, kernel_shape(KERNEL), limit=limit)
        alt = f"{name}, first three: " + " | ".join(numbers_text(c) for c in components[:3])
        html.append(
            f'<span>{escape(name)} ({count(n)}){" ×" if n == 1 else ""}</span><img class="pix" '
            f'width="{10 * sheet.width}" height="{10 * sheet.height}" alt="{escape(alt)}" '
            f'src="{sheet.data_uri}"><span class="last">'
            f"{'' if of_group is None else short(angle, 2) + '°'}</span>"
        )
        data.append({"group": name, "n_models": n, "angle": angle,
                     **{f"c{i}w{j}": float(v) for i, c in enumerate(components, 1)
                        for j, v in enumerate(c, 1)}})  # fmt: skip
    html.append("</div>" + scale_bar(limit))
    caption = (
        f"Eigenfilters of each group by {words(axis)}, signs turned towards "
        "those of all models, one scale. Right: largest angle between the span of a group’s first "
        f"{_SUBSPACE} components and that of all (0° the same, 90° nothing in common). × marks "
        "groups of one model, which cannot speak for the rest of their kind. n in brackets: models."
        + (f" The {_MOST_GROUPS} largest of {len(items)} groups are drawn."
           if len(items) > _MOST_GROUPS else "")
    )  # fmt: skip
    columns = ("group", "n_models", "angle", *(f"c{i}w{j}" for i in range(1, 10)
                                              for j in range(1, 10)))  # fmt: skip
    question = f"Do the eigenfilters of groups by {words(axis)} differ?"
    return Figure(7, question, caption, "".join(html), columns, table_rows(data, columns),
                  part=_part(axis))  # fmt: skip


def _part(axis: str) -> str:
    from filterdb.report.links import slug

    return slug(axis)[:30]


def _groups(corpus: Corpus, axis: str) -> Table | None:
    rows = corpus.bases[(corpus.bases["axis"] == axis) & (corpus.bases["kernel"] == KERNEL)]
    if rows.empty:
        return None
    to_rest = corpus.results[
        (corpus.results["metric"] == "drift")
        & (corpus.results["axis"] == axis)
        & (corpus.results["group_b"] == "*")
        & (corpus.results["kernel"] == KERNEL)
    ]
    by_group = {str(r["group_a"]): r for r in records(to_rest)}
    cells = []
    numbered = rows["group"].str.fullmatch(r"\d+").all()
    ordered = (
        rows.sort_values("group", key=lambda g: g.astype(int))
        if numbered
        else rows.sort_values(["n_models", "group"], ascending=[False, True])
    )
    for row in records(ordered):
        group = row["group"]
        d = by_group.get(str(group))
        value = clean(d["value"]) if d is not None else None
        low = clean(d["low"]) if d is not None else None
        high = clean(d["high"]) if d is not None else None
        reason = str(clean(d["null_reason"]) or "") if d is not None else "not computed"
        evr = np.asarray(row["evr"], float)
        cells.append(
            (
                Cell(group_words(axis, str(group))),
                Cell(count(row["n_models"]), number=True),
                Cell(count(row["n_filters"]), number=True),
                Cell(
                    f"({short(value, 2)})" if value is not None and row["n_filters"] < FEW_FILTERS
                    else short(value, 2),
                    number=True,
                    reason=reason,
                ),
                Cell(NONE if low is None else f"{short(low, 2)} to {short(high, 2)}",
                     number=True, reason=reason or "no interval for so few models"),
                *(Cell(short(100 * v), number=True) for v in evr[:3]),
            )
        )  # fmt: skip
    return Table(
        f"groups-{_part(axis)}",
        f"Groups by {words(axis)}",
        ("Group", "Models (effective n)", "3×3 filters", "D to the rest, nats", "95 % interval",
         "EVR 1, %", "EVR 2, %", "EVR 3, %"),
        tuple(cells[:60]),
        f"In brackets: D of fewer than {FEW_FILTERS:,} filters, inflated by their small number."
        + ("" if len(cells) <= 60 else f" The 60 largest of {len(cells)}; all are in bases.csv."),
    )  # fmt: skip
