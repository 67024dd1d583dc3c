"""Entropy, sparsity and orthogonality by depth (figures 13 to 16)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.metrics.null import degrees_of_freedom
from filterdb.report.charts import quality as charts
from filterdb.report.charts.render import draw
from filterdb.report.corpus import Corpus, weighted_quantiles
from filterdb.report.model import Block, Figure, Section, Sentence
from filterdb.report.numbers import count, plural, share, short
from filterdb.report.sections.common import (
    Answer,
    Part,
    absent,
    not_analysed,
    say,
    table_rows,
)

if TYPE_CHECKING:
    import pandas as pd

N_BINS = 10
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Cells of figure 16 along each axis.
_GRID = 40
_WORST = 60
_FEWEST_LAYERS = 5
_FIGURES = (
    (13, "entropy_norm", "Does entropy change with depth?", "entropy, share of the possible"),
    (14, "sparsity", "Does sparsity change with depth?", "share of nearly empty filters"),
    (15, "orthogonality", "Does orthogonality change with depth?", "orthogonality O"),
)


def build(corpus: Corpus) -> Part:
    """Build the section.

    Parameters
    ----------
    corpus
        The store.

    Returns
    -------
    Part
        With a reason in place of each figure that cannot be drawn.
    """
    if "quality" in corpus.missing:
        reason = not_analysed(corpus, "Layer quality")
        figures = tuple(absent(n, q, reason) for n, _, q, _ in _FIGURES)
        section = Section("quality", "Quality by depth", figures[:1])
        return Part(section, missing=(reason,))
    depth, sparse = _depth_sentence(corpus), _sparse_sentence(corpus)
    blocks: list[Block | None] = [depth, sparse]
    blocks += [_bands(corpus, *spec) for spec in _FIGURES]
    blocks.append(_cells(corpus))
    headlines = tuple(s for s in (depth, sparse) if isinstance(s, Sentence))
    kept = tuple(b for b in blocks if b is not None)
    missing = tuple(f"Figure {b.label}: {b.missing}" for b in kept
                    if isinstance(b, Figure) and b.missing)  # fmt: skip
    return Part(Section("quality", "Quality by depth", kept), headlines, missing)


def _depth_sentence(corpus: Corpus) -> Sentence | None:
    sql = """
        with ends as (select model_id, depth_decile, avg(sparsity) as s, avg(entropy_norm) as h
        from layer_view where init_of is null and depth_decile in (0, 9)
        and sparsity is not null and entropy_norm is not null group by model_id, depth_decile),
        paired as (select a.model_id, a.s as s0, b.s as s1, a.h as h0, b.h as h1
        from ends a join ends b on a.model_id = b.model_id
        where a.depth_decile = 0 and b.depth_decile = 9)
        select count(*) as models, avg(s0) as sparsity_first, avg(s1) as sparsity_last,
        avg(h0) as entropy_first, avg(h1) as entropy_last,
        count(*) filter (h1 < h0) as falling from paired"""

    def write(a: Answer) -> str:
        if a["models"] < 3:
            return ""
        return (
            f"From the first to the last tenth of depth, entropy goes from "
            f"{short(a['entropy_first'], 2)} to {short(a['entropy_last'], 2)} of the possible and "
            f"falls in {count(a['falling'])} of {plural(a['models'], 'model')}; the share of "
            f"nearly empty filters goes from {share(a['sparsity_first'])} to "
            f"{share(a['sparsity_last'])} (means, each model equal)."
        )

    return say(corpus, "depth", sql, write, n="models", n_unit="models", link="#fig-13",
               link_text="figure 13")  # fmt: skip


def _sparse_sentence(corpus: Corpus) -> Sentence | None:
    sql = """
        select count(*) as layers, count(distinct model_id) as models,
        count(*) filter (sparsity >= 0.5) as half,
        count(distinct model_id) filter (sparsity >= 0.5) as half_models,
        count(*) filter (sparsity = 0) as full_layers
        from layer_view where init_of is null and sparsity is not null and kernel <> '1x1'"""

    def write(a: Answer) -> str:
        if not a["layers"]:
            return ""
        if not a["half"]:
            return (
                f"In none of {plural(a['layers'], 'layer')} larger than 1×1 are half of the "
                "filters nearly empty (|w| < 1 % of the layer's largest); "
                f"{share(a['full_layers'] / a['layers'])} of the layers have no such filter."
            )
        return (
            f"In {count(a['half'])} of {plural(a['layers'], 'layer')} larger than 1×1 at least "
            f"half of the filters are nearly empty (|w| < 1 % of the layer's largest); they lie in "
            f"{count(a['half_models'])} of {plural(a['models'], 'model')}. "
            f"{share(a['full_layers'] / a['layers'])} of the layers have no such filter."
        )

    return say(corpus, "sparse", sql, write, n="layers", n_unit="layers", link="#fig-16",
               link_text="figure 16")  # fmt: skip


def depth_bands(
    layers: pd.DataFrame, metric: str, *, fewest: int = _FEWEST_LAYERS
) -> list[dict[str, Any]]:
    """Return the quantiles of a metric over ten depth bins, each model equal.

    Parameters
    ----------
    layers
        model_id, depth_decile and the metric.
    metric
        Column.
    fewest
        Layers below which a bin is left out.

    Returns
    -------
    list of dict
        depth (middle of the bin), p5 … p95, layers, models.
    """
    usable = layers.dropna(subset=[metric, "depth_decile"])
    out: list[dict[str, Any]] = []
    for decile, rows in usable.groupby("depth_decile", sort=True):
        if len(rows) < fewest:
            continue
        per_model = rows.groupby("model_id")[metric].transform("size")
        quantiles = weighted_quantiles(rows[metric].to_numpy(float), 1 / per_model, _SHARES)
        out.append(
            {
                "depth": (float(str(decile)) + 0.5) / N_BINS,
                **{f"p{round(100 * s)}": q for s, q in zip(_SHARES, quantiles, strict=True)},
                "layers": len(rows),
                "models": int(rows["model_id"].nunique()),
            }
        )
    return out


def _bands(corpus: Corpus, number: int, metric: str, question: str, title: str) -> Figure:
    trained = corpus.trained_layers
    layers = trained[trained["kernel"] != "1x1"]
    rows = depth_bands(layers, metric)
    if len(rows) < 3:
        return absent(number, question, "Fewer than three depth bins hold five layers with this "
                      "metric; more or deeper models are needed.")  # fmt: skip
    for row in rows:
        row["speech"] = (
            f"depth {short(row['depth'], 2)}: median {short(row['p50'])}; middle half "
            f"{short(row['p25'])} to {short(row['p75'])}; {plural(row['layers'], 'layer')} of "
            f"{plural(row['models'], 'model')}"
        )
    controls = corpus.layers[~corpus.layers["trained"] & (corpus.layers["kernel"] != "1x1")]
    # Only their median is drawn, and hardly varies: that needs few layers.
    twins = depth_bands(controls, metric, fewest=2)
    drawing = draw(
        charts.bands(rows, twins if len(twins) > 2 else [], title=title, domain=_span(rows)),
        slug=f"fig-{number}",
    )
    usable = layers.dropna(subset=[metric, "depth_decile"])
    graph = share(float((usable["depth_source"] == "graph").mean()))
    caption = (
        "Line: median; dark band: middle half; light band: 5–95 % of layers, each model counting "
        "the same in each tenth of depth. Layers larger than 1×1, raw weights, sparse filters "
        f"kept. n = {plural(len(usable), 'layer')} of "
        f"{plural(int(usable['model_id'].nunique()), 'model')}. Depth comes from the graph for "
        f"{graph} of the layers, else from the order in the file."
        + (" Dashed: random-initialised twins, median." if len(twins) > 2 else "")
    )
    columns = ("depth", "p5", "p25", "p50", "p75", "p95", "layers", "models")
    return Figure(number, question, caption, drawing.svg, columns, table_rows(rows, columns),
                  drawing.spec)  # fmt: skip


def _span(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the ends of a 0-to-1 axis, cut only where the data leave much of it empty."""
    low = min(row["p5"] for row in rows)
    high = max(row["p95"] for row in rows)
    return (math.floor(low * 10) / 10 if low > 0.5 else 0.0, 1.0 if high > 0.5 else
            math.ceil(high * 10 + 0.2) / 10)  # fmt: skip


def _cells(corpus: Corpus) -> Figure:
    question = "Which layers are both sparse and monotonous?"
    trained = corpus.trained_layers
    rows = trained[trained["kernel"] == "3x3"].dropna(subset=["sparsity", "entropy_norm"])
    if len(rows) < 10:
        return absent(16, question, f"Ten 3×3 layers with both metrics are needed; there are "
                      f"{len(rows)}.")  # fmt: skip
    s, h = rows["sparsity"].to_numpy(float), rows["entropy_norm"].to_numpy(float)
    right = min(1.0, math.ceil(10 * float(s.max()) + 0.01) / 10)
    bottom = max(0.0, math.floor(10 * float(h.min())) / 10)
    table, across, up = np.histogram2d(s, h, bins=_GRID, range=((0, right), (bottom, 1)))
    counts = [
        {
            "x0": float(across[i]),
            "x1": float(across[i + 1]),
            "y0": float(up[j]),
            "y1": float(up[j + 1]),
            "layers": int(table[i, j]),
            "shade": round(float(np.log10(table[i, j])), 4),
        }
        for i, j in np.argwhere(table > 0).tolist()
    ]
    badness = s - h
    n_worst = min(_WORST, max(5, len(rows) // 10))
    worst = [_worst(corpus, rows.iloc[i]) for i in np.argsort(-badness, kind="stable")[:n_worst]]
    rule = _noise_floor(float(rows["n_filters"].median()))
    drawing = draw(
        charts.cells(counts, worst, [{"value": rule}] if rule else [], right=right, bottom=bottom),
        slug="fig-16",
    )
    caption = (
        f"Colour: how many 3×3 layers fall into a cell of {_GRID} × {_GRID}, on a log scale; "
        f"triangles: the {len(worst)} layers with the largest sparsity minus entropy, as links. "
        "Dashed: entropy that 99 % of random layers exceed, at the median number of filters "
        f"({count(float(rows['n_filters'].median()))}); trained layers lie below it. "
        f"n = {plural(len(rows), 'layer')} of "
        f"{plural(int(rows['model_id'].nunique()), 'model')}."
    )
    columns = ("x0", "x1", "y0", "y1", "layers")
    return Figure(16, question, caption, drawing.svg, columns, table_rows(counts, columns),
                  drawing.spec)  # fmt: skip


def _worst(corpus: Corpus, row: pd.Series) -> dict[str, Any]:
    return {
        "x": float(row["sparsity"]),
        "y": float(row["entropy_norm"]),
        "link": corpus.links.layer(row["layer_uid"]) or "#layers",
        "speech": f"{row['name']} of {row['model_name']}: sparsity {share(row['sparsity'])}, "
        f"entropy {short(row['entropy_norm'], 2)}, {plural(row['n_filters'], 'filter')}",
    }


def _noise_floor(n_filters: float, n_coefficients: int = 9) -> float | None:
    """Return the entropy, as a share of the possible, that 99 % of Gaussian layers exceed."""
    from scipy import special

    if n_filters <= 4 * n_coefficients:
        return None
    quantile = float(special.chdtri(degrees_of_freedom(n_coefficients), 0.01))
    deficit = quantile / (n_filters * n_coefficients * math.log(10))
    return max(0.0, 1 - deficit / math.log10(n_coefficients))
