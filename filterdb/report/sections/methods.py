"""Methods and provenance: what the words mean, and how to make the report again."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from filterdb._version import __version__
from filterdb.report import published
from filterdb.report.corpus import MIN_LAYERS, MIN_MODELS, Corpus, records
from filterdb.report.model import Cell, Definitions, Paragraph, Section, Table
from filterdb.report.numbers import count, megabytes, plural
from filterdb.report.sections.common import Part, clean

#: Libraries whose version can change a number or a byte.
_LIBRARIES = ("numpy", "scipy", "numba", "h5py", "pyarrow", "duckdb", "dask", "torch", "altair",
              "vl-convert-python", "pillow")  # fmt: skip

_TERMS: tuple[tuple[str, str], ...] = (
    ("Filter", "one kh × kw slice of a convolution’s weights; a layer of M outputs and C inputs in "
     "g groups has M·C/g of them. 1×1 kernels have no shape: their layers are counted, their "
     "filters are not stored. Weights shared by several uses are stored and counted once."),
    ("Sparsity S", "share of a layer’s filters with every |w| below 1 % of the layer’s largest "
     "(strictly). As CNN Filter DB defines it."),
    ("Variance entropy H", "−Σ p log₁₀ p with p the shares of variance of the centred n × k² "
     "matrix of a layer’s raw filters; shown as H / log₁₀ k², 0 to 1. As CNN Filter DB, "
     "normalised by us to compare kernel sizes."),
    ("Random", "H is compared with its distribution under independent Gaussian filters of the same "
     "number and size (ours, known in closed form for many filters and sampled for few), adjusted "
     "over the layers of a model by Holm’s method. A layer is called random only if p, effect size "
     "and number of filters all say so. The published threshold T_H is kept as the note "
     "“degenerate published”."),
    ("Orthogonality O", "1 − Σ|ŴŴᵀ − I| / (M(M−1)), rows of the M × (C/g·k²) matrix at unit "
     "length, by group; 1 for orthogonal outputs."),
    ("Filter shape", "each filter divided by its own largest |w|, then centred principal "
     "components without whitening; the entry of largest magnitude of each component is "
     "positive. EVR is the share of variance a component explains."),
    ("Drift D", "Σᵢ EVRᵢ [KL(Pᵢ‖Qᵢ) + KL(Qᵢ‖Pᵢ)] in nats over 70 bins of the coefficients on one "
     "common basis, both directions summed, as CNN Filter DB. Beside it in the data: "
     "Jensen–Shannon (base 2), Gaussian Fréchet, 1-Wasserstein."),
    ("Weighting", "each model weighs the same: filters of one model are not independent. The "
     "effective n of a group is its number of models."),
    ("Intervals and tests", "over models: bias-corrected bootstrap intervals of 95 %, p-values by "
     "permuting models (three against three at least), q-values by Benjamini–Hochberg within a "
     "grouping. Beside every D stands the mean under permutation, what chance gives."),
    ("Percentiles", "rounded down; among trained layers of the same role, kernel and half-decade "
     f"of filters, and only where {MIN_LAYERS} such layers of {MIN_MODELS} models exist."),
    ("Words", "defect: not finite, all zero, constant. Unusual: beyond a stated threshold. Note: "
     "for the record. There is no overall score."),
    ("Published numbers shown", f"{published.SOURCE}; data CC BY-SA 4.0, v1.0.0, 647 models, "
     "weighted by filter. EVR of the full file as read by a third party; drift between tasks "
     "digitised from its figure (±0.01). They differ from ours in models, weighting and the "
     "removal of sparse filters: a reference, not a target."),
)  # fmt: skip


def build_methods(corpus: Corpus) -> Part:
    """Build the section on definitions.

    Parameters
    ----------
    corpus
        The store.

    Returns
    -------
    Part
        Always there.
    """
    treatment = ", ".join(f"{k}: {v}" for k, v in corpus.treatment.items())
    items = (*_TERMS, ("Treatment shown", f"{treatment}."))
    return Part(Section("methods", "Methods", (Definitions("terms", items),)))


def build_provenance(corpus: Corpus) -> Part:
    """Build the section on where everything comes from.

    Parameters
    ----------
    corpus
        The store.

    Returns
    -------
    Part
        Always there.
    """
    store, models = corpus.store, corpus.models
    catalogues = models["catalogue"].value_counts().sort_index()
    items = (
        ("Store", f"{corpus.options.store_name}, generation {store.generation}, "
         f"{megabytes(store.n_bytes)}; fingerprint {store.fingerprint}"),
        ("Plan", f"sha256 {store.plan.sha256}"),
        ("Catalogues", "; ".join(f"{name}: {plural(int(n), 'model')}"
                                 for name, n in catalogues.items()) or "none"),
        ("Analyses", _analyses(corpus)),
        ("Software", f"filterdb {__version__}; Python {platform.python_version()}; "
         + ", ".join(f"{name} {version}" for name, version in _versions())),
        ("Machine", f"{platform.system()} {platform.machine()}"),
        ("Parameters and seeds", _parameters(corpus)),
        ("Make it again", _commands(corpus)),
        ("Check the store", f"filterdb verify {corpus.options.store_name}"),
        ("Cite", f"filterdb {__version__}, store {store.fingerprint[:16]}; and for the metrics "
         f"{published.SOURCE}."),
        ("Typeface", "Filterdb Sans, a subset of Open Sans under the SIL Open Font License 1.1; "
         "colour map vik of the Scientific colour maps, MIT."),
    )  # fmt: skip
    blocks = (
        Definitions("provenance-items", items),
        _licences(corpus),
        Paragraph("Columns of every table are described in data/columns.md; report.json holds "
                  "each sentence with its query."),
    )  # fmt: skip
    return Part(Section("provenance", "Provenance", blocks))


def _analyses(corpus: Corpus) -> str:
    frames = [f for f in (corpus.results, corpus.bases) if len(f)]
    seen: dict[tuple[Any, ...], None] = {}
    for frame in frames:
        for row in frame[["analysis", "version", "fingerprint"]].drop_duplicates().itertuples():
            seen.setdefault((row.analysis, row.version, row.fingerprint))
    found = [f"{name} version {version}, {mark}" for name, version, mark in seen]
    quality = [] if "quality" in corpus.missing else ["quality"]
    return "; ".join([*quality, *found]) or "none yet: run filterdb analyze"


def _parameters(corpus: Corpus) -> str:
    """Say the parameters, where the fingerprints show that they are the defaults."""
    from filterdb.analysis.config import AnalysisConfig

    config = AnalysisConfig(**corpus.treatment)  # type: ignore[arg-type]
    known = {
        config.fingerprint(name, version, corpus.store.fingerprint)
        for name in ("pca", "shift")
        for version in corpus.results["version"].unique()
    }
    if corpus.results.empty:
        return "not analysed"
    if not set(corpus.results["fingerprint"]) <= known:
        return "not the defaults; they are in the store’s run log"
    return (
        f"defaults: {config.draws} permutations and {config.draws} bootstrap draws, seed "
        f"{config.seed}, {config.bins} bins; pictures: filters at even ranks of their norm"
    )


def _commands(corpus: Corpus) -> str:
    name = corpus.options.store_name
    if list(corpus.models["catalogue"].unique()) == ["demo"]:
        return f"filterdb demo\nor, from the store: {corpus.options.command}"
    catalogues = " ".join(sorted(set(corpus.models["catalogue"]))) or "CATALOG"
    return (
        f"filterdb extract {catalogues} --store {name}\nfilterdb analyze {name}\n"
        f"{corpus.options.command}"
    )


def _versions() -> list[tuple[str, str]]:
    out = []
    for name in _LIBRARIES:
        try:
            out.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return out


def _licences(corpus: Corpus) -> Table:
    by = corpus.models.groupby(["licence_weights", "licence_package"]).size().reset_index(name="n")
    by = by.sort_values(["n", "licence_weights", "licence_package"], ascending=[False, True, True])
    rows = tuple(
        (
            Cell(str(clean(r["licence_weights"]))),
            Cell(str(clean(r["licence_package"]))),
            Cell(count(r["n"]), number=True),
        )
        for r in records(by.head(40))
    )
    return Table("licences", "Licences of the models",
                 ("Weights", "Package", "Models"), rows,
                 "NOASSERTION: nobody says. The report shows statistics and pictures of a few "
                 "filters, never whole weights.")  # fmt: skip
