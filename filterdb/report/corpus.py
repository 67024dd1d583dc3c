"""What the report knows of a store: its tables as data frames, joined and ranked once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import IncompleteStoreError
from filterdb.report.links import make_links
from filterdb.store.schema import TABLES

if TYPE_CHECKING:
    import pandas as pd

    from filterdb.report.links import Links
    from filterdb.report.model import ReportOptions
    from filterdb.store import Store

#: A population smaller than this has no percentiles.
MIN_LAYERS, MIN_MODELS = 200, 20
#: Metrics that are ranked, with their labels.
METRICS: dict[str, str] = {
    "sparsity": "Sparsity",
    "entropy_norm": "Entropy",
    "orthogonality": "Orthogonality",
}
#: Marks of a population shown under a bullet.
MARKS = (0.01, 0.25, 0.5, 0.75, 0.99)
_DEFAULT_TREATMENT = {
    "weighting": "model", "weights": "raw", "scaling": "max_abs", "sparse": "kept",
}  # fmt: skip
#: Findings by severity, worst first.
SEVERITY_ORDER = {"defect": 0, "unusual": 1, "note": 2}


@dataclass(frozen=True)
class Population:
    """Comparable layers: same role, kernel and half-decade of filter number.

    Parameters
    ----------
    label
        For people.
    n_layers, n_models
        Size.
    sorted_values
        Per metric its finite values, ascending.
    """

    label: str
    n_layers: int
    n_models: int
    sorted_values: dict[str, Any]

    @property
    def is_enough(self) -> bool:
        """Whether percentiles within it mean anything."""
        return self.n_layers >= MIN_LAYERS and self.n_models >= MIN_MODELS

    @property
    def too_few(self) -> str:
        """The words that stand in place of a percentile."""
        models = "model" if self.n_models == 1 else "models"
        return f"too few comparable layers ({self.n_layers:,} of {self.n_models:,} {models})"

    def percentile(self, metric: str, value: float) -> float | None:
        """Return the share of the population strictly below a value, rounded down.

        Parameters
        ----------
        metric
            Column.
        value
            The layer's own value.

        Returns
        -------
        float or None
            0 to 100; None where the population is too small.
        """
        values = self.sorted_values[metric]
        if not self.is_enough or len(values) < MIN_LAYERS or not math.isfinite(value):
            return None
        return math.floor(100 * float(np.searchsorted(values, value, "left")) / len(values))

    def marks(self, metric: str) -> list[float] | None:
        """Return the values at `MARKS`.

        Parameters
        ----------
        metric
            Column.

        Returns
        -------
        list of float or None
            None where the population is too small.
        """
        values = self.sorted_values[metric]
        if not self.is_enough or len(values) < MIN_LAYERS:
            return None
        return [float(v) for v in np.quantile(values, MARKS)]


@dataclass(frozen=True)
class Corpus:
    """A store, read for the report.

    Parameters
    ----------
    store
        The open store, for queries and filters.
    options
        How to build.
    models, layers, findings, skipped, failures, results, bases
        Its tables; `layers` with the model's labels, the quality of raw weights with sparse
        filters kept, `trained` and `population`.
    populations
        By key.
    links
        Addresses of models and layers.
    treatment
        Weighting, weights, scaling and sparse of the analyses shown: the default's where the
        store holds it.
    missing
        Tables the store does not hold, with the reason.
    """

    store: Store
    options: ReportOptions
    models: pd.DataFrame
    layers: pd.DataFrame
    findings: pd.DataFrame
    skipped: pd.DataFrame
    failures: pd.DataFrame
    results: pd.DataFrame
    bases: pd.DataFrame
    populations: dict[str, Population]
    links: Links
    treatment: dict[str, str]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def treatment_sql(self) -> str:
        """The treatment as an SQL condition."""
        return " and ".join(f"{k} = '{v}'" for k, v in self.treatment.items())

    @property
    def trained_models(self) -> pd.DataFrame:
        """Models that are not random initialisations."""
        return self.models[self.models["init_of"].isna()]

    @property
    def trained_layers(self) -> pd.DataFrame:
        """Layers of those."""
        return self.layers[self.layers["trained"]]

    @property
    def has_twins(self) -> bool:
        """Whether the corpus holds random initialisations."""
        return bool(self.models["init_of"].notna().any())

    @cached_property
    def model_medians(self) -> pd.DataFrame:
        """Median quality of each model's layers larger than 1×1, and whether it is trained."""
        spatial = self.layers[self.layers["kernel"] != "1x1"]
        medians = spatial.groupby("model_id")[list(METRICS)].median()
        medians["trained"] = spatial.groupby("model_id")["trained"].first()
        return medians

    @cached_property
    def layer_rows(self) -> dict[str, dict[str, Any]]:
        """Rows of `layers` by uid, stored places as whole numbers."""
        return {row["layer_uid"]: row for row in records(self.layers)}

    def filters_of(self, row: dict[str, Any]) -> Any:
        """Return the filters of a stored layer.

        Parameters
        ----------
        row
            One of `layer_rows`.

        Returns
        -------
        ndarray
            (n_filters, k²), read-only view.
        """
        place = {k: int(row[k]) for k in ("shard", "start", "stop")}
        return self.store.rows_of({**row, **place})

    def ask(self, sql: str) -> dict[str, Any]:
        """Return the only row of a query.

        Parameters
        ----------
        sql
            As shown to the reader.

        Returns
        -------
        dict
            Values by column, None where null.
        """
        rows = self.store.sql(sql).to_pylist()
        return dict(rows[0]) if rows else {}


def load_corpus(store: Store, options: ReportOptions) -> Corpus:
    """Read a store's tables.

    Parameters
    ----------
    store
        Open store, analysed or not.
    options
        How to build.

    Returns
    -------
    Corpus
        Tables that are not there are empty, and named in `missing`.
    """
    missing: dict[str, str] = {}
    frames = {
        name: _frame(store, name, missing)
        for name in (
            "models",
            "layers",
            "quality",
            "findings",
            "skipped",
            "failures",
            "results",
            "bases",
        )
    }
    models = frames["models"].sort_values("model_id", ignore_index=True)
    layers = _join(frames["layers"], models, frames["quality"])
    findings = _rank_findings(frames["findings"], layers)
    treatment = _treatment(frames["bases"] if len(frames["bases"]) else frames["results"])
    links = make_links(
        models["model_id"],
        zip(layers["layer_uid"], layers["model_id"], layers["name"], strict=True),
        with_page=_models_with_page(models, findings, options),
    )
    return Corpus(
        store=store,
        options=options,
        models=models,
        layers=layers,
        findings=findings,
        skipped=frames["skipped"],
        failures=frames["failures"],
        results=_of_treatment(frames["results"], treatment),
        bases=_of_treatment(frames["bases"], treatment),
        treatment=treatment,
        populations=_populations(layers),
        links=links,
        missing=missing,
    )


def _treatment(frame: pd.DataFrame) -> dict[str, str]:
    """Choose one treatment; a store may hold the default's and a compatible mode's."""
    if frame.empty:
        return dict(_DEFAULT_TREATMENT)
    found = records(frame[list(_DEFAULT_TREATMENT)].drop_duplicates())
    found.sort(key=lambda t: tuple((t[k] != v, t[k]) for k, v in _DEFAULT_TREATMENT.items()))
    return {str(k): str(v) for k, v in found[0].items()}


def _of_treatment(frame: pd.DataFrame, treatment: dict[str, str]) -> pd.DataFrame:
    for column, value in treatment.items():
        frame = frame[frame[column] == value]
    return frame.reset_index(drop=True)


def _models_with_page(
    models: pd.DataFrame, findings: pd.DataFrame, options: ReportOptions
) -> list[str]:
    if options.model_pages == "none":
        return []
    if options.model_pages == "findings":
        worst = findings[findings["severity"].isin(["defect", "unusual"])]
        return sorted(set(worst["model_id"]))
    return list(models["model_id"])


def _frame(store: Store, name: str, missing: dict[str, str]) -> pd.DataFrame:
    try:
        frame: pd.DataFrame = store.tables[name].to_pandas()
    except IncompleteStoreError as error:
        missing[name] = str(error)
        frame = TABLES[name].arrow.empty_table().to_pandas()
    return frame


def _join(layers: pd.DataFrame, models: pd.DataFrame, quality: pd.DataFrame) -> pd.DataFrame:
    labels = models[
        ["model_id", "name", "task", "visual_category", "architecture", "format", "init_of"]
    ].rename(columns={"name": "model_name"})
    plain = quality[(quality["weights"] == "raw") & (quality["sparse"] == "kept")]
    plain = plain.drop(columns=["weights", "sparse"])
    frame = layers.merge(labels, on="model_id", how="left").merge(plain, on="layer_uid", how="left")
    frame["trained"] = frame["init_of"].isna()
    decade = np.floor(2 * np.log10(frame["n_filters"].clip(lower=1).astype(float))).astype(int)
    frame["population"] = frame["role"] + "|" + frame["kernel"] + "|" + decade.astype(str)
    return frame.sort_values(["model_id", "layer_index"], ignore_index=True)


def _populations(layers: pd.DataFrame) -> dict[str, Population]:
    out: dict[str, Population] = {}
    for key, rows in layers[layers["trained"]].groupby("population", sort=True):
        role, kernel, decade = str(key).split("|")
        low, high = 10 ** (int(decade) / 2), 10 ** ((int(decade) + 1) / 2)
        out[str(key)] = Population(
            label=f"{role} {kernel.replace('x', '×')} layers with {low:,.0f}–{high:,.0f} filters",
            n_layers=len(rows),
            n_models=int(rows["model_id"].nunique()),
            sorted_values={m: np.sort(rows[m].dropna().to_numpy(float)) for m in METRICS},
        )
    return out


def _rank_findings(findings: pd.DataFrame, layers: pd.DataFrame) -> pd.DataFrame:
    """Order findings of raw weights worst first: severity, distance beyond threshold, size."""
    columns = ["layer_uid", "model_id", "model_name", "name", "layer_index", "n_filters",
               "kernel", "role", "trained", "population"]  # fmt: skip
    raw = findings[findings["weights"] == "raw"]
    frame = raw.merge(layers[columns], on="layer_uid", how="left")
    frame["rank"] = frame["severity"].map(SEVERITY_ORDER).fillna(3).astype(int)
    statistic, threshold = frame["statistic"].astype(float), frame["threshold"].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = (statistic - threshold).abs() / threshold.abs().clip(lower=1e-9)
    frame["excess"] = excess.fillna(0.0)
    return frame.sort_values(
        ["rank", "excess", "n_filters", "layer_uid", "finding"],
        ascending=[True, False, False, True, True],
        ignore_index=True,
    )


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries.

    Parameters
    ----------
    frame
        Columns named by words.

    Returns
    -------
    list of dict
        In order.
    """
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def weighted_quantiles(values: Any, weights: Any, shares: tuple[float, ...]) -> list[float]:
    """Return quantiles where each value counts by its weight.

    Parameters
    ----------
    values, weights
        (n,) each, weights >= 0 and not all 0.
    shares
        0 to 1.

    Returns
    -------
    list of float
        The smallest value whose cumulated weight reaches each share (interpolated at middles).
    """
    order = np.argsort(values, kind="stable")
    sorted_values = np.asarray(values, float)[order]
    mass = np.asarray(weights, float)[order]
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    return [float(np.interp(share, middle, sorted_values)) for share in shares]
