"""Distances between groups (figures 8 and 9), one part for each grouping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.analysis.config import CONTROLS_BY
from filterdb.report import published
from filterdb.report.charts import drift as charts
from filterdb.report.charts.render import draw
from filterdb.report.layerwords import group_words
from filterdb.report.links import slug
from filterdb.report.model import Block, Figure, Section, Sentence
from filterdb.report.numbers import count, plural, short, words
from filterdb.report.sections.common import (
    Answer,
    Part,
    absent,
    clean,
    not_analysed,
    say,
    table_rows,
)
from filterdb.report.sections.distances import (
    FEW_FILTERS,
    MOST_GROUPS,
    OTHERS,
    Distances,
    distances_of,
    is_number,
)

if TYPE_CHECKING:
    from filterdb.report.corpus import Corpus

FDR = 0.05
_FEW = 5
_CSV = ("group_a", "group_b", "n_models", "n_models_b", "drift", "low", "high", "noise_floor",
        "p_value", "q_value", "reason")  # fmt: skip


def build(corpus: Corpus) -> Part:
    """Build the section.

    Parameters
    ----------
    corpus
        The store.

    Returns
    -------
    Part
        One pair of figures a grouping.
    """
    question = "Which groups have filters of another shape?"
    if "results" in corpus.missing:
        reason = not_analysed(corpus, "Drift")
        return Part(Section("drift", "Drift", (absent(8, question, reason),)), missing=(reason,))
    rows = corpus.results[
        (corpus.results["metric"] == "drift") & (corpus.results["kernel"] == "3x3")
    ]
    axes = [axis for axis in dict.fromkeys(rows["axis"]) if axis != CONTROLS_BY]
    if not axes:
        reason = "No drift was computed: no grouping has two groups of 3×3 filters."
        return Part(Section("drift", "Drift", (absent(8, question, reason),)), missing=(reason,))
    blocks: list[Block] = []
    headlines: list[Sentence] = []
    for axis in axes:
        distances = distances_of(rows[rows["axis"] == axis], axis, _filters(corpus, axis))
        sentence = _sentence(corpus, axis)
        if sentence is not None:
            blocks.append(sentence)
            if not headlines or sentence.values["certain"]:
                headlines.append(sentence)
        blocks += [_matrix(distances), _dots(corpus, distances)]
    missing = tuple(f"Figure {b.label}: {b.missing}" for b in blocks
                    if isinstance(b, Figure) and b.missing)  # fmt: skip
    return Part(Section("drift", "Drift", tuple(blocks)), tuple(headlines), missing)


def _filters(corpus: Corpus, axis: str) -> dict[str, int]:
    bases = corpus.bases[(corpus.bases["axis"] == axis) & (corpus.bases["kernel"] == "3x3")]
    return {str(g): int(n) for g, n in zip(bases["group"], bases["n_filters"], strict=True)}


def _sentence(corpus: Corpus, axis: str) -> Sentence | None:
    quoted = axis.replace("'", "''")
    where = (
        f"from results where metric = 'drift' and axis = '{quoted}' and group_b <> '*' and "
        f"group_a <> group_b and kernel = '3x3' and {corpus.treatment_sql}"
    )
    sql = f"""
        select count(*) as pairs, count(q_value) as tested,
        count(*) filter (q_value < {FDR}) as certain,
        arg_max(group_a, value) filter (q_value < {FDR}) as group_a,
        arg_max(group_b, value) filter (q_value < {FDR}) as group_b,
        arg_max(n_models, value) filter (q_value < {FDR}) as n_a,
        arg_max(n_models_b, value) filter (q_value < {FDR}) as n_b,
        max(value) filter (q_value < {FDR}) as d,
        arg_max(low, value) filter (q_value < {FDR}) as low,
        arg_max(high, value) filter (q_value < {FDR}) as high,
        arg_max(noise_floor, value) filter (q_value < {FDR}) as floor,
        arg_max(q_value, value) filter (q_value < {FDR}) as q {where}"""

    def write(a: Answer) -> str:
        by = words(axis)
        if not a["pairs"]:
            return ""
        if not a["tested"]:
            return (
                f"By {by}: none of {plural(a['pairs'], 'pair')} of groups could be tested, since "
                "no two groups have three models each; their distances are drawn, not judged."
            )
        if not a["certain"]:
            return (
                f"By {by}: no pair of groups differs more than chance would let it "
                f"({plural(a['tested'], 'pair')} tested over models, q\u00a0<\u00a0{FDR:g})."
            )
        return (
            f"By {by}: {count(a['certain'])} of {plural(a['tested'], 'pair')} of groups tested "
            f"differ in filter shape beyond chance (q\u00a0<\u00a0{FDR:g}); furthest apart are "
            f"{group_words(axis, str(a['group_a']))} ({count(a['n_a'])} models) and "
            f"{group_words(axis, str(a['group_b']))} ({count(a['n_b'])}): D = {short(a['d'], 2)}"
            + (
                f", 95 % interval {short(a['low'], 2)} to {short(a['high'], 2)}"
                if a["low"] is not None
                else ""
            )
            + (f", where chance gives {short(a['floor'], 2)}" if a["floor"] is not None else "")
            + "."
        )

    part = slug(axis)[:30]
    return say(corpus, f"drift-{part}", sql, write, n="pairs", n_unit="pairs of groups",
               link=f"#fig-8-{part}", link_text=f"figure 8, {words(axis)}")  # fmt: skip


def _named(distances: Distances, group: str) -> str:
    return f"{group_words(distances.axis, group)} ({distances.models.get(group, 0)})"


def _speech(distances: Distances, a: str, b: str) -> str:
    value = distances.value(a, b)
    row = distances.pairs.get((a, b))
    low, high = distances.value(a, b, "low"), distances.value(a, b, "high")
    q, floor = distances.value(a, b, "q_value"), distances.value(a, b, "noise_floor")
    between = "two halves of " if a == b else ""
    other = "" if a == b else f" against {_named(distances, b)}"
    if value is None:
        reason = clean(row["null_reason"]) if row else None
        return f"{between}{_named(distances, a)}{other}: no value; {reason or 'not computed'}"
    parts = [f"D = {short(value, 2)}"]
    if low is not None and high is not None:
        parts.append(f"95 % interval {short(low, 2)} to {short(high, 2)}")
    if floor is not None:
        parts.append(f"chance gives {short(floor, 2)}")
    if a != b:
        parts.append(f"q = {short(q, 2)}" if q is not None else "not tested, too few models")
    return f"{between}{_named(distances, a)}{other}: " + ", ".join(parts)


def _matrix(distances: Distances) -> Figure:
    question = f"Which groups by {words(distances.axis)} have filters of another shape?"
    part = slug(distances.axis)[:30]
    groups = distances.groups
    if len(groups) < 2:
        n = plural(len(groups), "group")
        reason = f"The grouping {distances.axis} has {n} with 3×3 filters; two are needed."
        return absent(8, question, reason, part=part)
    top = _top(distances)
    cells: list[dict[str, Any]] = []
    order: list[str] = []
    gap = False
    for group in groups:
        if distances.is_apart(group) and order and not gap and not is_number(group):
            order.append(" ")
            gap = True
        order.append(_named(distances, group))
    for i, a in enumerate(groups):
        for j, b in enumerate(groups):
            cells.append(_cell(distances, (a, b), lower=i >= j, top=top))
    size = 46 if len(groups) <= 13 else 36 if len(groups) <= 26 else 18
    drawing = draw(charts.matrix(cells, order, top=top, cell=size), slug=f"fig-8-{part}")
    values = [v for v in _off_diagonal(distances) if v is not None]
    pairs = (
        f"Median D {short(float(np.median(values)), 2)} over {plural(len(values), 'pair')}."
        if values
        else "No pair has a value; the reasons are in the data."
    )
    caption = (
        "D (summed over components, weighted by explained variance) between the groups’ filter "
        "shapes. Below the diagonal: the estimate; above: the lower end of its 95 % interval over "
        "models, same colours, so what is certain stays bright; on it: two random halves of the "
        "group. A dot in the corner: not beyond chance (q ≥ 0.05) or too few models to test; ×: "
        "no value. The brightest colour also stands for all above the scale. Groups of one model, "
        f"or of fewer than {FEW_FILTERS:,} filters, whose D is inflated, stand apart. "
        f"n in brackets: models. {pairs}"
    )
    if distances.axis == "task" and values:
        caption += (
            f" CNN Filter DB, pooled by filter, read {short(published.TASK_DRIFT[0], 2)} "
            f"(largest {short(published.TASK_DRIFT[2], 2)}) between its tasks."
        )
    n_all = len(distances.models)
    if n_all > len(groups):
        caption += f" The {len(groups)} largest of {n_all} groups are drawn; all are in the data."
    return Figure(8, question, caption, drawing.svg, _CSV, _data(distances), drawing.spec,
                  part=part)  # fmt: skip


def _off_diagonal(distances: Distances) -> list[float | None]:
    groups = sorted(distances.models)
    return [distances.value(a, b) for i, a in enumerate(groups) for b in groups[:i]]


def _top(distances: Distances) -> float:
    groups = sorted(g for g in distances.models if not distances.is_apart(g))
    pairs = [distances.value(a, b) for i, a in enumerate(groups) for b in groups[:i]]
    shown = [*pairs, *(distances.value(g, g) for g in groups)]
    values = [v for v in shown if v is not None]
    return float(np.quantile(values, 0.99)) if values and max(values) > 0 else 1.0


def _cell(
    distances: Distances, pair: tuple[str, str], *, lower: bool, top: float
) -> dict[str, Any]:
    a, b = pair
    shown = distances.value(a, b) if lower else distances.value(a, b, "low")
    q = distances.value(a, b, "q_value")
    shown = None if shown is None else max(0.0, shown)
    return {
        "row": _named(distances, a),
        "column": _named(distances, b),
        "shown": shown,
        "text": "" if shown is None else _cell_text(shown),
        "dark": bool(shown is not None and shown < 0.62 * top),
        "dotted": bool(lower and a != b and (q is None or q >= FDR)),
        "link": f"#fig-9-{slug(distances.axis)[:30]}",
        "speech": _speech(distances, a, b) + ("" if lower else "; cell shows the lower end"),
    }


def _cell_text(value: float) -> str:
    if value >= 0.995:
        return f"{value:.1f}"
    return f"{value:.2f}".lstrip("0") if value >= 0.005 else "0"


def _data(distances: Distances) -> tuple[tuple[Any, ...], ...]:
    rows, seen = [], set()
    for row in distances.pairs.values():
        key = (str(row["group_a"]), str(row["group_b"]))
        if key in seen:
            continue
        seen.add(key)
        rows.append({**row, "drift": row["value"], "reason": row["null_reason"]})
    rows.sort(key=lambda r: (str(r["group_a"]), str(r["group_b"])))
    return table_rows(rows, _CSV)


def _dots(corpus: Corpus, distances: Distances) -> Figure:
    question = f"How far is each group by {words(distances.axis)} from the rest?"
    part = slug(distances.axis)[:30]
    rows: list[dict[str, Any]] = []
    for group, n in distances.models.items():
        value = distances.value(group, OTHERS)
        if value is None:
            continue
        low, high = distances.value(group, OTHERS, "low"), distances.value(group, OTHERS, "high")
        kind = "one" if distances.is_apart(group) else "few" if n < _FEW else "full"
        rows.append(
            {
                "label": _named(distances, group),
                "group": group,
                "n_models": n,
                "value": max(0.0, value),
                "low": max(0.0, low) if low is not None and kind != "one" else None,
                "high": high if kind != "one" else None,
                "floor": distances.value(group, OTHERS, "noise_floor"),
                "q_value": distances.value(group, OTHERS, "q_value"),
                "kind": kind,
                "speech": _speech(distances, group, OTHERS).replace("* (0)", "all others"),
            }
        )
    if not rows:
        return absent(9, question, "No group could be compared with the rest; the reasons are in "
                      f"the data of figure 8, {words(distances.axis)}.", part=part)  # fmt: skip
    if all(is_number(r["group"]) for r in rows):
        rows.sort(key=lambda r: float(r["group"]))
    else:
        rows.sort(key=lambda r: (r["kind"] == "one", -r["value"], r["group"]))
    drawn = rows[:MOST_GROUPS]
    top = _dots_top(drawn, _rules(corpus))
    for row in drawn:
        row["off"] = f"{short(row['value'], 2)} →" if row["value"] > top else ""
    drawing = draw(charts.distances(drawn, _rules(corpus), top=top), slug=f"fig-9-{part}")
    caption = (
        "Dot: D of the group’s 3×3 filters to those of all other models; line: 95 % interval over "
        f"models (dashed: fewer than {_FEW}, few); upright stroke: what chance gives when models "
        "are dealt into groups at random; hollow: a single model, or fewer than "
        f"{FEW_FILTERS:,} filters, whose D is inflated. n in brackets: models."
    )
    rules = _rules(corpus)
    if not rules:
        why = (
            "was not analysed by them" if corpus.has_twins else "holds no random-initialised twins"
        )
        caption += (
            " No scale of seed-to-seed or trained-to-random distance can be drawn: the corpus "
            f"{why}."
        )
    columns = ("group", "n_models", "value", "low", "high", "floor", "q_value")
    return Figure(9, question, caption, drawing.svg, columns, table_rows(rows, columns),
                  drawing.spec, part=part)  # fmt: skip


def _dots_top(rows: list[dict[str, Any]], rules: list[dict[str, Any]]) -> float:
    """Return the end of the axis: groups that stand apart do not stretch it."""
    full = [r for r in rows if r["kind"] != "one"] or rows
    ends = [r["high"] if r["high"] is not None else r["value"] for r in full]
    floors = [r["floor"] for r in full if r["floor"] is not None]
    top: float = 1.08 * max(ends + floors + [r["value"] for r in rules])
    return top if top > 0 else 1.0


def _rules(corpus: Corpus) -> list[dict[str, Any]]:
    """Return D of trained against random-initialised models, where it was computed."""
    rows = corpus.results
    rows = rows[
        (rows["metric"] == "drift")
        & (rows["axis"] == CONTROLS_BY)
        & (rows["group_b"] != OTHERS)
        & (rows["group_a"] != rows["group_b"])
    ]
    values = rows["value"].dropna()
    if values.empty or not corpus.has_twins:
        return []
    return [{"value": float(values.max()), "text": "trained – random"}]
