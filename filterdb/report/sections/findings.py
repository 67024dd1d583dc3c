"""Layers with findings, worst first, and all layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from filterdb.report.corpus import records
from filterdb.report.layerwords import finding_sentence, small_sheet
from filterdb.report.model import Block, Cell, Grid, GridColumn, Section, Sentence, Table
from filterdb.report.numbers import NONE, count, plural, share, short, wilson, words
from filterdb.report.palette import SEVERITIES
from filterdb.report.sections.common import Answer, Part, not_analysed, say
from filterdb.report.sections.grids import layers_grid

if TYPE_CHECKING:
    import pandas as pd

    from filterdb.report.corpus import Corpus

#: Findings printed on paper and shown without JavaScript.
PLAIN_ROWS = 200
#: Findings with a picture.
PICTURES = 200
_GRID_ROWS = 20_000


def build(corpus: Corpus) -> Part:
    """Build the section.

    Parameters
    ----------
    corpus
        The store.

    Returns
    -------
    Part
        The table of layers is there even where nothing was analysed.
    """
    if "findings" in corpus.missing:
        reason = not_analysed(corpus, "Findings")
        from filterdb.report.model import Paragraph

        section = Section(
            "findings", "Layers with findings", (Paragraph(reason), layers_grid(corpus))
        )
        return Part(section, missing=(reason,))
    defects, random = _defects(corpus), _random(corpus)
    pictures = [
        small_sheet(corpus, uid) if i < PICTURES else None
        for i, uid in enumerate(corpus.findings["layer_uid"])
    ]
    blocks: list[Block | None] = [
        defects,
        random,
        _shares(corpus),
        _grid(corpus, pictures) if len(corpus.findings) else None,
        _plain(corpus, pictures),
        layers_grid(corpus),
    ]
    headlines = tuple(s for s in (defects, random) if s is not None)
    kept = tuple(b for b in blocks if b is not None)
    return Part(Section("findings", "Layers with findings, worst first", kept), headlines)


def _defects(corpus: Corpus) -> Sentence | None:
    sql = """
        select (select count(*) from layers) as layers, (select count(*) from models) as models,
        count(distinct layer_uid) filter (severity = 'defect') as defect_layers,
        count(distinct model_id) filter (severity = 'defect') as defect_models,
        count(distinct layer_uid) filter (severity = 'unusual') as unusual_layers,
        count(distinct model_id) filter (severity = 'unusual') as unusual_models
        from findings join layers using (layer_uid) where findings.weights = 'raw'"""

    def write(a: Answer) -> str:
        if a["defect_layers"]:
            first = (
                f"{plural(a['defect_layers'], 'layer')} in {plural(a['defect_models'], 'model')} "
                "have a defect (not finite, all zero or constant)"
            )
        else:
            first = "No layer has a defect (not finite, all zero or constant)"
        return (
            f"{first}; {count(a['unusual_layers'])} of {plural(a['layers'], 'layer')}, in "
            f"{count(a['unusual_models'])} of {plural(a['models'], 'model')}, are unusual."
        )

    return say(corpus, "defects", sql, write, n="layers", n_unit="layers", link="#found",
               link_text="findings")  # fmt: skip


def _random(corpus: Corpus) -> Sentence | None:
    sql = """
        select count(*) as layers, count(distinct model_id) as models,
        count(*) filter (list_contains(findings, 'random')) as random_layers,
        count(distinct model_id) filter (list_contains(findings, 'random')) as random_models
        from layer_view where init_of is null and p_random is not null"""

    def write(a: Answer) -> str:
        if not a["layers"]:
            return ""
        interval = wilson(a["random_models"], a["models"])
        between = (
            f"; 95 % interval {share(interval[0])} to {share(interval[1])}" if interval else ""
        )
        return (
            f"Layers not told apart from random numbers: {count(a['random_layers'])} of "
            f"{plural(a['layers'], 'layer')} tested, in {count(a['random_models'])} of "
            f"{plural(a['models'], 'model')} ({share(a['random_models'] / a['models'])}{between})."
        )

    return say(corpus, "random", sql, write, n="models", n_unit="models",
               link="#found?q=finding%3Drandom", link_text="those layers")  # fmt: skip


def _shares(corpus: Corpus) -> Table | None:
    found = corpus.findings[corpus.findings["trained"]]
    if found.empty:
        return None
    n_models = len(corpus.trained_models)
    n_layers = len(corpus.trained_layers)
    rows = []
    grouped = sorted(
        found.groupby(["rank", "severity", "finding"]),
        key=lambda item: (item[0][0], -item[1]["layer_uid"].nunique(), item[0][2]),
    )
    for (_, severity, finding), group in grouped:
        models = int(group["model_id"].nunique())
        layers = int(group["layer_uid"].nunique())
        interval = wilson(models, n_models)
        rows.append(
            (
                Cell(words(str(finding)), f"#found?q=finding%3D{finding}", quiet=True),
                Cell(html=severity_mark(str(severity))),
                Cell(count(layers), number=True),
                Cell(share(layers / n_layers), number=True),
                Cell(count(models), number=True),
                Cell(f"{share(interval[0])} to {share(interval[1])}" if interval else NONE,
                     number=True),
                Cell(_RULES.get(str(finding), "")),
            )
        )  # fmt: skip
    return Table(
        "finding-shares",
        "How often is each finding?",
        ("Finding", "Kind", "Layers", "of all layers", "Models", "of all models, 95 % interval",
         "Rule"),
        tuple(rows),
        f"Raw weights; {plural(n_layers, 'layer')} of {plural(n_models, 'trained model')}. "
        "A defect is wrong by itself; unusual layers deserve a look; a note is for the record. "
        "The test for random layers finds 99 of 100 layers that are noise, given filters enough.",
    )  # fmt: skip


def _rules() -> dict[str, str]:
    from filterdb.analysis.findings import KINDS

    return {name: kind.text for name, kind in KINDS.items()}


_RULES = _rules()


def severity_mark(severity: str) -> str:
    """Return the word, shape and colour of a severity as markup.

    Parameters
    ----------
    severity
        defect, unusual or note.

    Returns
    -------
    str
        Trusted markup.
    """
    from markupsafe import escape

    colour, shape = SEVERITIES.get(severity, ("currentColor", "●"))
    return (
        f'<span class="sev"><span aria-hidden="true" style="color:{colour}">{shape}</span> '
        f"{escape(severity)}</span>"
    )


def _percentile(corpus: Corpus, row: dict[str, Any]) -> float | None:
    """Return where the layer's statistic lies among comparable layers, if it is a metric's."""
    metric = {"sparse": "sparsity", "low_diversity": "entropy_norm", "random": "entropy_norm"}.get(
        row["finding"]
    )
    population = corpus.populations.get(row["population"])
    if metric is None or population is None or row["statistic"] is None:
        return None
    return population.percentile(metric, float(row["statistic"]))


def _grid(corpus: Corpus, pictures: list[str | None]) -> Grid:
    frame = corpus.findings.head(_GRID_ROWS)
    found = records(frame)
    populations = [corpus.populations.get(r["population"]) for r in found]
    columns = (
        GridColumn("picture", "Filters", "picture", pictures[: len(frame)], "",
                   "16 filters by norm; the worst 200 have one", 4.5),
        GridColumn("says", "What", "text", [finding_sentence(r) for r in found],
                   "detail", "", 24, link="at"),
        GridColumn("finding", "Finding", "words", frame["finding"].tolist(), "finding",
                   "its name", 8),
        GridColumn("severity", "Kind", "words", frame["severity"].tolist(), "severity",
                   "defect, unusual or note", 6),
        GridColumn("model", "Model", "words", frame["model_id"].tolist(), "model_id",
                   "", 10, link="page"),
        GridColumn("layer", "Layer", "text", frame["name"].tolist(), "name", "", 10, link="at"),
        GridColumn("value", "Value", "float", _plain_numbers(frame["statistic"]),
                   "cast(statistic as float)", "the statistic", 5.5),
        GridColumn("threshold", "Threshold", "float", _plain_numbers(frame["threshold"]),
                   "cast(threshold as float)", "", 5.5),
        GridColumn("p", "p", "float", _plain_numbers(frame["p_value"]),
                   "cast(p_value as float)", "adjusted over the layers of the model (Holm)", 5),
        GridColumn("percentile", "Percentile", "integer", [_percentile(corpus, r) for r in found],
                   "", "among comparable layers, rounded down", 5.5),
        GridColumn("population", "Population, n", "integer",
                   [p.n_layers if p else None for p in populations], "",
                   "trained layers of the same role, kernel and half-decade of filters", 6),
        GridColumn("n", "Filters", "integer", frame["n_filters"].tolist(), "n_filters", "", 5),
        GridColumn("page", "", "words", [corpus.links.model(m) for m in frame["model_id"]], "",
                   hidden=True),
        GridColumn("at", "", "text", [corpus.links.layer(u) for u in frame["layer_uid"]], "",
                   hidden=True),
    )  # fmt: skip
    source = (
        "(select findings.*, layers.model_id, layers.name, layers.n_filters from findings join "
        "layers using (layer_uid) where findings.weights = 'raw')"
    )
    note = (
        f"{plural(len(corpus.findings), 'finding')} of raw weights, defects first, then by "
        "distance from the threshold."
        + (f" The first {_GRID_ROWS:,} are here, all in data/findings.csv."
           if len(corpus.findings) > _GRID_ROWS else "")
    )  # fmt: skip
    return Grid("found", "Findings", columns, len(frame), source, note,
                "finding=sparse severity=unusual")  # fmt: skip


def _plain_numbers(values: pd.Series) -> list[float | None]:
    return [None if v is None or math.isnan(v) else float(v) for v in values.astype(float)]


def _plain(corpus: Corpus, pictures: list[str | None]) -> Table | None:
    frame = corpus.findings.head(PLAIN_ROWS)
    if frame.empty:
        return None
    rows = []
    for record, picture in zip(records(frame), pictures, strict=False):
        image = f'<img class="pix" width="40" alt="" src="{picture}">' if picture else ""
        rows.append(
            (
                Cell(html=image, reason="no stored filters"),
                Cell(finding_sentence(record), corpus.links.layer(record["layer_uid"])),
                Cell(
                    f"{SEVERITIES.get(record['severity'], ('', ''))[1]}\u00a0{record['severity']}"
                ),
                Cell(f"{short(record['statistic'])} ({short(record['threshold'])})", number=True),
            )
        )
    note = (
        f"The worst {len(frame)} of {plural(len(corpus.findings), 'finding')}; "
        "all are in data/findings.csv."
    )
    return Table("found-plain", "Findings", ("Filters", "What", "Kind", "Value (threshold)"),
                 tuple(rows), note, plain=True)  # fmt: skip
