"""The long tables: models, layers, findings, skipped tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.report.corpus import METRICS, Corpus, records
from filterdb.report.model import Grid, GridColumn
from filterdb.report.numbers import plural
from filterdb.report.tables import SPARK_POINTS, spark_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

_SHORT = {"Orthogonality": "Orthog."}
#: Columns seen without scrolling sideways.
_MODELS_FIRST = ("name", "task", "visual_category", "layers", "filters", "sparsity_median",
                 "entropy_norm_median", "orthogonality_median", "sparsity_depth",
                 "entropy_norm_depth", "finding")  # fmt: skip
_LAYERS_FIRST = ("model", "layer", "role", "kernel", "n", "depth", "sparsity", "entropy", "p",
                 "orthogonality", "finding", "percentile", "task")  # fmt: skip


def _some(values: Iterable[Any]) -> list[Any]:
    """Return values with None for what is missing."""
    return [None if v is None or (isinstance(v, float) and np.isnan(v)) else v for v in values]


def _first(columns: list[GridColumn], names: tuple[str, ...]) -> tuple[GridColumn, ...]:
    """Put the columns people look for to the left; the others keep their order."""
    by_name = {c.name: c for c in columns}
    chosen = [by_name[n] for n in names if n in by_name]
    return (*chosen, *(c for c in columns if c.name not in names))


def models_grid(corpus: Corpus) -> Grid:
    """Return the table of models.

    Parameters
    ----------
    corpus
        The store.

    Returns
    -------
    Grid
        One row a model.
    """
    models = corpus.models
    ids = models["model_id"].tolist()
    layers = corpus.layers
    medians = layers.groupby("model_id")[list(METRICS)].median()
    found = corpus.findings.groupby("model_id")["finding"].agg(lambda f: " ".join(sorted(set(f))))
    columns = [
        GridColumn("name", "Model", "text", models["name"].tolist(), "models.name",
                   "name of the model; leads to its page", 11, link="page"),
        GridColumn("task", "Task", "words", models["task"].tolist(), "models.task",
                   "closed vocabulary", 7.5),
        GridColumn("visual_category", "Visual category", "words",
                   models["visual_category"].tolist(), "models.visual_category",
                   "closed vocabulary", 6.5),
        GridColumn("dataset", "Training data", "words",
                   [" ".join(d) or None for d in models["training_dataset"]],
                   "models.training_dataset", "data sets it was trained on", 8, many=True),
        GridColumn("architecture", "Architecture", "words", models["architecture"].tolist(),
                   "models.architecture", "", 9),
        GridColumn("format", "Format", "words", models["format"].tolist(), "models.format",
                   "reader that read it", 6),
        GridColumn("licence", "Licence", "words", models["licence_weights"].tolist(),
                   "models.licence_weights", "of the weights; NOASSERTION where nobody says", 8),
        GridColumn("bytes", "Size, bytes", "integer", models["bytes"].tolist(), "models.bytes",
                   "file and companions", 7),
        GridColumn("layers", "Layers", "integer", models["n_conv_layers"].tolist(),
                   "models.n_conv_layers", "convolutions, every use counted", 4),
        GridColumn("filters", "Filters", "integer", models["n_filters"].tolist(),
                   "models.n_filters", "kernel slices, shared weights once", 5.2),
        *(
            GridColumn(f"{name}_median", f"{_SHORT.get(label, label)}, median", "decimal",
                       _some(medians[name].reindex(ids)), _median_sql(name),
                       f"median {label.lower()} of its layers, raw weights, four decimals", 5)
            for name, label in METRICS.items()
        ),
        *(
            GridColumn(f"{name}_depth", f"{METRICS[name]} by depth", "spark",
                       _sparks(layers, ids, name), "",
                       "median in ten depth bins, input to output; scale 0 to 1", 6.6)
            for name in ("sparsity", "entropy_norm")
        ),
        GridColumn("finding", "Findings", "words", _some(found.reindex(ids)),
                   "(select list(distinct finding order by finding) from findings join layers "
                   "using (layer_uid) where layers.model_id = models.model_id and "
                   "findings.weights = 'raw')" if "findings" not in corpus.missing else "",
                   "findings of any of its layers", 10, many=True),
        GridColumn("duplicate_of", "Same weights as", "words", _duplicates(corpus, ids), "",
                   "model whose first equal tensor it repeats", 9),
        GridColumn("page", "", "text", [corpus.links.model(m) for m in ids], "", hidden=True),
    ]  # fmt: skip
    if "quality" in corpus.missing:
        columns = [c for c in columns if not c.name.startswith(tuple(METRICS))]
    return Grid("models", "Models", _first(columns, _MODELS_FIRST), len(ids), "models",
                "Click or press Enter on a head to sort; the box filters. Filters counts 1×1 "
                "kernels too.",
                "task=ocr layers>20 resnet")  # fmt: skip


def _median_sql(metric: str) -> str:
    return (
        f"round((select median({metric}) from quality join layers using (layer_uid) where "
        "layers.model_id = models.model_id and quality.weights = 'raw' and "
        "quality.sparse = 'kept'), 4)"
    )


def _sparks(layers: pd.DataFrame, ids: list[str], metric: str) -> list[bytes]:
    bins = layers.dropna(subset=["depth_decile", metric])
    table = bins.groupby(["model_id", "depth_decile"])[metric].median().reset_index()
    by_model: dict[str, list[float | None]] = {m: [None] * SPARK_POINTS for m in ids}
    for row in records(table):
        by_model[row["model_id"]][int(row["depth_decile"])] = float(row[metric])
    return [spark_bytes(by_model[m], 0.0, 1.0) for m in ids]


def _duplicates(corpus: Corpus, ids: list[str]) -> list[str | None]:
    """Name the model most of whose tensors are repeated, where at least half of them are."""
    own = corpus.layers[corpus.layers["shared_with"].isna()]
    totals = own.groupby("model_id").size().to_dict()
    repeats = own.dropna(subset=["duplicate_of"])
    model_of = corpus.links.model_of
    out: dict[str, str] = {}
    for model_id, rows in repeats.groupby("model_id"):
        if 2 * len(rows) < totals[model_id]:
            continue
        others = rows["duplicate_of"].map(lambda uid: model_of.get(str(uid), "")).value_counts()
        best = sorted(others.index, key=lambda m: (-int(others[m]), str(m)))[0]
        out[str(model_id)] = str(best)
    return [out.get(m) for m in ids]


def layers_grid(corpus: Corpus) -> Grid:
    """Return the table of layers.

    Parameters
    ----------
    corpus
        The store.

    Returns
    -------
    Grid
        One row a use of a convolution.
    """
    rows = corpus.layers
    per_group = (rows["in_channels"] // rows["groups"]).tolist()
    columns = [
        GridColumn("model", "Model", "words", rows["model_id"].tolist(), "model_id",
                   "model; leads to its page", 8.5, link="page"),
        GridColumn("layer", "Layer", "text", rows["name"].tolist(), "name",
                   "name in the file; leads to its section", 11, link="at"),
        GridColumn("task", "Task", "words", rows["task"].tolist(), "task", "of the model", 8),
        GridColumn("role", "Role", "words", rows["role"].tolist(), "role",
                   "part it plays in the network", 5.5),
        GridColumn("kernel", "Kernel", "words", rows["kernel"].tolist(), "kernel", "extent", 4.5),
        GridColumn("stride", "Stride", "words", _axes(rows["stride"]),
                   "array_to_string(stride, 'x')", "per axis", 4.5),
        GridColumn("groups", "Groups", "integer", rows["groups"].tolist(), '"groups"',
                   "channel groups", 5),
        GridColumn("bn", "Batch norm", "words", rows["bn"].tolist(), "bn",
                   "BatchNorm behind it", 6),
        GridColumn("out", "Out", "integer", rows["out_channels"].tolist(), "out_channels",
                   "output channels", 4.5),
        GridColumn("in", "In / group", "integer", per_group, "in_channels // \"groups\"",
                   "input channels of one group", 5),
        GridColumn("n", "Filters", "integer", rows["n_filters"].tolist(), "n_filters",
                   "kernel slices", 5.2),
        GridColumn("depth", "Depth", "decimal", _some(rows["conv_depth_norm"]),
                   "round(conv_depth_norm, 4)", "0 input, 1 output", 4.6),
        GridColumn("sparsity", "Sparsity", "decimal", _some(rows["sparsity"]),
                   "round(sparsity, 4)", "share of filters with all |w| < 1 % of the largest", 5.2),
        GridColumn("entropy", "Entropy, 0–1", "decimal", _some(rows["entropy_norm"]),
                   "round(entropy_norm, 4)", "variance entropy H / log10 k²", 5.2),
        GridColumn("p", "p (noise)", "float", _some(rows["p_random"]),
                   "cast(p_random as float)", "p-value of H under Gaussian noise", 4.6),
        GridColumn("orthogonality", "Orthog.", "decimal", _some(rows["orthogonality"]),
                   "round(orthogonality, 4)", "O, 1 for orthogonal filters", 5.2),
        GridColumn("percentile", "Sparsity percentile", "integer", _percentiles(corpus), "",
                   "share of comparable layers with lower sparsity, per cent, rounded down; empty "
                   "where fewer than 200 layers of 20 models compare", 6.5),
        GridColumn("finding", "Findings", "words", _finding_words(rows["findings"]),
                   "findings", "named findings, raw weights", 11, many=True),
        GridColumn("page", "", "words", [corpus.links.model(m) for m in rows["model_id"]], "",
                   hidden=True),
        GridColumn("at", "", "text", [corpus.links.layer(u) for u in rows["layer_uid"]], "",
                   hidden=True),
    ]  # fmt: skip
    if "quality" in corpus.missing:
        gone = {"sparsity", "entropy", "p", "orthogonality", "percentile", "finding"}
        columns = [c for c in columns if c.name not in gone]
    return Grid("layers", "All layers", _first(columns, _LAYERS_FIRST), len(rows), "layer_view",
                f"{plural(len(rows), 'layer')}; metrics of raw weights, sparse filters kept.",
                "task=face_detection sparsity>0.5 finding=sparse")  # fmt: skip


def _axes(values: Iterable[Any]) -> list[str | None]:
    return [None if v is None else "x".join(str(int(a)) for a in v) for v in values]


def _finding_words(values: Iterable[Any]) -> list[str | None]:
    lists = ([] if v is None or isinstance(v, float) else list(v) for v in values)
    return [" ".join(names) or None for names in lists]


def _percentiles(corpus: Corpus) -> list[float | None]:
    rows = corpus.layers
    values = rows["sparsity"].to_numpy(float)
    out: list[float | None] = [None] * len(rows)
    for key, index in rows.groupby("population").indices.items():
        population = corpus.populations.get(str(key))
        if population is None or not population.is_enough:
            continue
        for i in index:
            out[i] = population.percentile("sparsity", float(values[i]))
    return out


def skipped_grid(corpus: Corpus) -> Grid:
    """Return the table of what was left out, one row a model and reason.

    Parameters
    ----------
    corpus
        The store.

    Returns
    -------
    Grid
        With the number of tensors and the first of them.
    """
    grouped = (
        corpus.skipped.sort_values(["model_id", "reason", "tensor"])
        .groupby(["model_id", "reason"], sort=True)
        .agg(tensors=("tensor", "size"), first=("tensor", "first"), detail=("detail", "first"))
        .reset_index()
    )
    columns = (
        GridColumn("model", "Model", "words", grouped["model_id"].tolist(), "model_id",
                   "model; leads to its page", 12, link="page"),
        GridColumn("reason", "Reason", "words", grouped["reason"].tolist(), "reason",
                   "why it was left out", 9),
        GridColumn("tensors", "Tensors", "integer", grouped["tensors"].tolist(), "tensors",
                   "how many", 5),
        GridColumn("first", "First of them", "text", grouped["first"].tolist(), "first",
                   "name in the file", 14),
        GridColumn("detail", "What was seen", "text", grouped["detail"].tolist(), "detail",
                   "", 16),
        GridColumn("page", "", "words", [corpus.links.model(m) for m in grouped["model_id"]], "",
                   hidden=True),
    )  # fmt: skip
    source = (
        "(select model_id, reason, count(*) as tensors, min(tensor) as first, "
        "arg_min(detail, tensor) as detail from skipped group by all)"
    )
    return Grid("skipped", "Tensors left out", columns, len(grouped), source,
                "One row a model and reason; every tensor is in data/skipped.csv.",
                "reason=fully_connected tensors>5")  # fmt: skip
