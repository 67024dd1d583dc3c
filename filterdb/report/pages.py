"""One page a model: every layer drawn, measured and set beside its like."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from filterdb.analysis.tables import ListColumn
from filterdb.report.corpus import METRICS, Corpus, Population, records
from filterdb.report.layerwords import (
    kernel_shape,
    kernel_words,
    layer_shape,
    quality_words,
    shorten,
)
from filterdb.report.modelwords import model_sentences
from filterdb.report.numbers import count, megabytes, short, words
from filterdb.report.pictures import (
    DRAW_ALL,
    DRAW_SOME,
    filter_sheet,
    pack_filters,
    row_width,
    sample_filters,
)
from filterdb.report.sections.common import clean
from filterdb.report.sections.findings import severity_mark
from filterdb.report.sections.quality import depth_bands
from filterdb.report.spark import bullet, depth_strip, spectrum
from filterdb.stats.state import unpack_scatter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from filterdb.report.model import Sentence

#: A page is kept below this by drawing fewer filters a layer; how many stands under each picture.
PAGE_BYTES = 125_000
#: … or, where a model has many layers, below this for each of them.
_PER_LAYER = 2_100
_FIXED_BYTES = 17_000
_LAYER_BYTES = 1_350
_COUNTS = (DRAW_ALL, DRAW_SOME, 48, 32, 24, 16)
_LARGEST_DRAWN = 121


@dataclass(frozen=True)
class Pages:
    """What all model pages share.

    Parameters
    ----------
    corpus
        The store.
    bands
        Depth bands of the corpus by metric.
    shares
        Layer uid to shares of variance.
    """

    corpus: Corpus
    bands: Mapping[str, Sequence[dict[str, Any]]]
    shares: Mapping[str, Any]


def prepare(corpus: Corpus) -> Pages:
    """Compute what all pages share.

    Parameters
    ----------
    corpus
        The store.

    Returns
    -------
    Pages
        Shared values.
    """
    layers = corpus.trained_layers
    spatial = layers[layers["kernel"] != "1x1"]
    bands = {m: depth_bands(spatial, m) for m in METRICS}
    return Pages(corpus, bands, _spectra(corpus))


def _spectra(corpus: Corpus) -> dict[str, Any]:
    """Return the eigenvalues of each layer's centred scatter, as shares."""
    table = corpus.store.layer_states.arrow
    uids = table.column("layer_uid").to_pylist()
    kinds = table.column("weights").to_pylist()
    n = table.column("n").to_numpy()
    total, triangle = ListColumn(table, "sum"), ListColumn(table, "scatter")
    by_size: dict[int, list[int]] = {}
    for i, kind in enumerate(kinds):
        size = int(total.lengths[i]) if len(total.lengths) else 0
        if kind == "raw" and 1 < size <= 49 and n[i] > size and triangle.lengths[i] > 0:
            by_size.setdefault(size, []).append(i)
    out: dict[str, Any] = {}
    for size, rows in by_size.items():
        sums = total.matrix(rows)
        scatter = unpack_scatter(triangle.matrix(rows), size)
        centred = scatter - sums[:, :, None] * sums[:, None, :] / n[rows][:, None, None]
        finite = np.isfinite(centred).all(axis=(1, 2))
        values = np.linalg.eigvalsh(np.where(finite[:, None, None], centred, 0.0))[:, ::-1]
        values = np.clip(values, 0.0, None)
        weight = values.sum(axis=1)
        for i, row in enumerate(rows):
            if finite[i] and weight[i] > 0:
                out[uids[row]] = values[i] / weight[i]
    return out


def model_context(pages: Pages, model_id: str) -> dict[str, Any]:
    """Return what the template of a model's page needs.

    Parameters
    ----------
    pages
        Shared values.
    model_id
        Model.

    Returns
    -------
    dict
        Values by the template's names.
    """
    corpus = pages.corpus
    row = records(corpus.models[corpus.models["model_id"] == model_id])[0]
    rows = records(corpus.layers[corpus.layers["model_id"] == model_id])
    found: dict[str, list[dict[str, Any]]] = {}
    mine = corpus.findings[corpus.findings["model_id"] == model_id]
    for finding in records(mine):
        found.setdefault(finding["layer_uid"], []).append(finding)
    counts = _how_many(rows)
    layers = [_layer(pages, r, found.get(r["layer_uid"], []), n) for r, n in
              zip(rows, counts, strict=True)]  # fmt: skip
    sentences: tuple[Sentence, ...] = model_sentences(corpus, row)
    return {
        "m": {"name": row["name"], "lead": _lead(row), "facts": _facts(row)},
        "sentences": sentences,
        "layers": layers,
        "any_picture": any(r["sheet"] for r in layers),
        "strips": _strips(pages, rows) if "quality" not in corpus.missing else [],
        "skipped": _skipped(corpus, model_id),
        "inspect": f"filterdb inspect {shlex.quote(str(row['uri']))} "
        f"--against {corpus.options.store_name}",
    }


def _lead(row: dict[str, Any]) -> str:
    parts = [words(row["task"]), words(row["visual_category"]), row["architecture"], row["format"]]
    return " · ".join(p for p in parts if p)


def _facts(row: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("Source", row["uri"]),
        ("sha256", row["member_sha256"]),
        ("Size", megabytes(row["bytes"])),
        ("Trained on", ", ".join(row["training_dataset"]) or "not stated"),
        ("Pretrained on", ", ".join(row["pretraining_dataset"])),
        ("Licence", f"weights {row['licence_weights']}, package {row['licence_package']}"),
        ("Labels from", row["label_source"]),
        ("Paper", clean(row["paper"]) or ""),
        ("Note", clean(row["note"]) or ""),
        ("Random initialisation of", clean(row["init_of"]) or ""),
    ]
    return [(term, str(text)) for term, text in facts if text]


def _how_many(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Return how many filters of each layer to draw, so that the page keeps its size."""
    sizes = [_coefficients(r) if _is_drawn(r) else 0 for r in rows]
    room = max(PAGE_BYTES, _PER_LAYER * len(rows)) - _FIXED_BYTES - _LAYER_BYTES * len(rows)
    for most in _COUNTS:
        shown = [
            min(int(r["n_filters"]), most if r["n_filters"] <= most or most < DRAW_ALL
                else DRAW_SOME) if size else 0
            for r, size in zip(rows, sizes, strict=True)
        ]  # fmt: skip
        # A picture takes about .8 bytes a coefficient, its numbers one and eight more a filter.
        needed = sum(
            (220 + n * (0.8 * size + size + 6)) * 4 / 3
            for n, size in zip(shown, sizes, strict=True)
            if size
        )
        if needed <= room:
            return shown
    return shown


def _coefficients(row: dict[str, Any]) -> int:
    return math.prod(kernel_shape(row["kernel"]))


def _is_drawn(row: dict[str, Any]) -> bool:
    stored = row["dataset"] is not None and clean(row["shard"]) is not None
    return stored and 1 < _coefficients(row) <= _LARGEST_DRAWN


def _layer(
    pages: Pages, row: dict[str, Any], findings: Sequence[dict[str, Any]], n_drawn: int
) -> dict[str, Any]:
    corpus, uid = pages.corpus, row["layer_uid"]
    anchor = corpus.links.anchors[uid]
    shares = pages.shares.get(uid)
    drawn = _sheet(corpus, row, n_drawn) if n_drawn else None
    metrics = [_metric(corpus, row, m, label) for m, label in METRICS.items()]
    wheres = {t["where"] for t in metrics}
    return {
        "anchor": anchor,
        "href": quote(anchor, safe=":/-._~"),
        "name": row["name"],
        "short": shorten(str(row["name"]), 44),
        "role": words(row["role"]),
        "kernel": kernel_words(row["kernel"]),
        "out": count(row["out_channels"]),
        "per_group": int(row["in_channels"]) // max(1, int(row["groups"])),
        "depth": short(clean(row["conv_depth_norm"]), 2),
        "shape": layer_shape(row),
        "findings": ", ".join(words(f["finding"]) for f in findings),
        "notes": [
            {
                "mark": severity_mark(f["severity"]),
                "text": f"{words(f['finding'])}: {f['detail']}"
                + (f" (p = {short(clean(f['p_value']), 2)})" if clean(f["p_value"]) is not None
                   else ""),
            }
            for f in findings
        ],
        "metrics": metrics,
        "all": wheres.pop() if len(wheres) == 1 else "",
        "sheet": drawn,
        "why": "" if drawn else _why_no_picture(row),
        "spectrum": spectrum(shares) if shares is not None else "",
        "first": f"{short(100 * float(shares[0]), 2)} %"
        if shares is not None else "",
    }  # fmt: skip


def _why_no_picture(row: dict[str, Any]) -> str:
    if _coefficients(row) == 1:
        return "1×1: one number a filter, no shape to draw."
    if _coefficients(row) > _LARGEST_DRAWN:
        return "Kernel too large to draw here; its filters are in the store."
    return "No filters of this layer are in the store."


def _metric(corpus: Corpus, row: dict[str, Any], metric: str, label: str) -> dict[str, str]:
    value = clean(row.get(metric))
    population: Population | None = corpus.populations.get(row["population"])
    text = quality_words(metric, value)
    marks = population.marks(metric) if population else None
    where = _where(population, metric, value, str(clean(row.get("null_reason")) or ""))
    return {
        "label": label,
        "text": text,
        "svg": bullet(value, marks),
        "where": where,
    }


def _where(population: Population | None, metric: str, value: float | None, reason: str) -> str:
    if value is None:
        return reason or "not computed"
    if population is None:
        return ""
    below = population.percentile(metric, value)
    if below is None:
        return population.too_few
    n = f"{population.n_layers:,} {population.label}"
    return f"more than in all {n}" if below >= 100 else f"more than in {below:g} % of {n}"


def _sheet(corpus: Corpus, row: dict[str, Any], n_drawn: int) -> dict[str, Any]:
    sample = sample_filters(corpus.filters_of(row), count=n_drawn)
    kernel = kernel_shape(row["kernel"])
    width = kernel[-1] * (kernel[0] if len(kernel) == 3 else 1)
    columns = max(1, min(16, 96 // (width + 1)))
    sheet = filter_sheet(sample.values, kernel, limit=sample.limit, columns=columns)
    zoom = 8 if sheet.width <= 64 else 6 if sheet.width <= 96 else 4
    n = count(sample.n_total)
    which = f"all {n} filters" if n_drawn >= sample.n_total else f"{n_drawn} of {n}"
    empty = " Every weight is zero." if sample.limit == 0 else ""
    return {
        "uri": sheet.data_uri,
        "width": zoom * sheet.width,
        "height": zoom * sheet.height,
        "columns": sheet.columns,
        "packed": pack_filters(sample),
        "w": row_width(sample),
        "k": row["kernel"],
        "limit": f"{sample.limit:.6g}",
        "alt": f"{which} of {shorten(str(row['name']))}, largest norm first.{empty}",
        "under": f"{which}, by norm{empty}",
        "scale": f"±{short(sample.limit)}, this layer",
    }


def _strips(pages: Pages, rows: Sequence[dict[str, Any]]) -> list[str]:
    out = []
    for metric, label in METRICS.items():
        points = []
        for row in rows:
            value, depth = clean(row[metric]), clean(row["conv_depth_norm"])
            if value is None or depth is None or row["kernel"] == "1x1":
                continue
            anchor = pages.corpus.links.anchors[row["layer_uid"]]
            points.append(
                {
                    "depth": float(depth),
                    "value": float(value),
                    "link": "#" + quote(anchor, safe=":/-._~"),
                    "speech": f"{shorten(str(row['name']), 44)}: {quality_words(metric, value)}",
                }
            )
        if points:
            out.append(depth_strip(pages.bands[metric], points, title=label))
    return out


def _skipped(corpus: Corpus, model_id: str) -> list[dict[str, Any]]:
    mine = corpus.skipped[corpus.skipped["model_id"] == model_id]
    out = []
    for reason, rows in mine.groupby("reason", sort=True):
        names = sorted(rows["tensor"])
        more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
        text = ", ".join(shorten(n) for n in names[:3]) + more
        out.append({"reason": words(str(reason)), "n": count(len(names)), "names": text})
    return out
