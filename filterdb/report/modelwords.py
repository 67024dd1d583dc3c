"""Three sentences on one model, set against the others."""

from __future__ import annotations

from typing import Any

from filterdb.report.corpus import MIN_MODELS, Corpus
from filterdb.report.model import Sentence
from filterdb.report.numbers import count, plural, share, short, words
from filterdb.report.sections.common import clean


def model_sentences(corpus: Corpus, model: dict[str, Any]) -> tuple[Sentence, ...]:
    """Return the sentences at the head of a model's page.

    Parameters
    ----------
    corpus
        The store.
    model
        Row of `models`.

    Returns
    -------
    tuple of Sentence
        Size; quality against other models; findings.
    """
    made = [_size(corpus, model), _quality(corpus, model), _findings(corpus, model)]
    return tuple(s for s in made if s is not None)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _some(n: int) -> str:
    return count(n) if n else "none"


def _size(corpus: Corpus, model: dict[str, Any]) -> Sentence:
    larger = int((corpus.models["n_filters"] > model["n_filters"]).sum())
    text = (
        f"{plural(model['n_conv_layers'], 'convolution layer')} with "
        f"{plural(model['n_filters'], 'filter')}, 1×1 included, "
        f"{count(model['n_filters_3x3'])} of them 3×3; "
        f"{count(larger)} of {plural(len(corpus.models), 'model')} have more filters."
    )
    sql = (
        "select n_conv_layers as layers, n_filters as filters, n_filters_3x3 as filters_3x3, "
        "(select count(*) from models b where b.n_filters > models.n_filters) as larger, "
        "(select count(*) from models) as models from models "
        f"where model_id = {_quoted(model['model_id'])}"
    )
    values = {
        "layers": int(model["n_conv_layers"]),
        "filters": int(model["n_filters"]),
        "filters_3x3": int(model["n_filters_3x3"]),
        "larger": larger,
        "models": len(corpus.models),
    }
    slug = f"size-{model['model_id']}"
    return Sentence(slug, text, values, sql, len(corpus.models), "models", "#p-main")


def _quality(corpus: Corpus, model: dict[str, Any]) -> Sentence | None:
    if "quality" in corpus.missing:
        return None
    medians = corpus.model_medians
    if model["model_id"] not in medians.index:
        return None
    mine = medians.loc[model["model_id"]]
    sparsity, entropy = clean(mine["sparsity"]), clean(mine["entropy_norm"])
    if sparsity is None or entropy is None:
        return None
    others = medians[medians["trained"]].dropna(subset=["sparsity", "entropy_norm"])
    n = len(others)
    less_sparse = int((others["sparsity"] < sparsity).sum())
    less_diverse = int((others["entropy_norm"] < entropy).sum())
    compared = (
        f"sparser than {_some(less_sparse)} and more diverse than {_some(less_diverse)} of "
        f"{count(n)} trained models"
        if n >= MIN_MODELS
        else f"too few models to compare ({count(n)})"
    )
    text = (
        f"Over its layers larger than 1×1, the median share of nearly empty filters is "
        f"{share(sparsity)} and the median entropy {short(entropy, 2)} of the possible: {compared}."
    )
    sql = (
        "with m as (select model_id, any_value(init_of) as init_of, median(sparsity) as s, "
        "median(entropy_norm) as h from layer_view where kernel <> '1x1' group by model_id), "
        f"me as (select * from m where model_id = {_quoted(model['model_id'])}) "
        "select me.s as sparsity, me.h as entropy, "
        "(select count(*) from m where init_of is null and s < me.s and h is not null) "
        "as less_sparse, (select count(*) from m where init_of is null and h < me.h "
        "and s is not null) as less_diverse, "
        "(select count(*) from m where init_of is null and s is not null and h is not null) "
        "as models from me"
    )
    values = {
        "sparsity": float(sparsity),
        "entropy": float(entropy),
        "less_sparse": less_sparse,
        "less_diverse": less_diverse,
        "models": n,
    }
    return Sentence(f"quality-{model['model_id']}", text, values, sql, n, "models", "#p-table")


def _findings(corpus: Corpus, model: dict[str, Any]) -> Sentence | None:
    if "findings" in corpus.missing:
        return None
    mine = corpus.findings[corpus.findings["model_id"] == model["model_id"]]
    serious = mine[mine["severity"].isin(["defect", "unusual"])]
    layers = int(serious["layer_uid"].nunique())
    total = int(model["n_conv_layers"])
    kinds = serious.groupby("finding")["layer_uid"].nunique()
    listed = ", ".join(
        f"{words(str(k))} {count(kinds[k])}"
        for k in sorted(kinds.index, key=lambda k: (-kinds[k], k))
    )
    text = (
        f"{count(layers)} of {plural(total, 'layer')} have a defect or are unusual: {listed}."
        if layers
        else f"None of {plural(total, 'layer')} has a defect or is unusual."
    )
    sql = (
        "select count(distinct layer_uid) filter (severity in ('defect', 'unusual')) as layers, "
        "count(distinct layer_uid) filter (severity = 'note') as noted "
        "from findings join layers using (layer_uid) where findings.weights = 'raw' and "
        f"model_id = {_quoted(model['model_id'])}"
    )
    noted = int(mine[mine["severity"] == "note"]["layer_uid"].nunique())
    values = {"layers": layers, "noted": noted}
    return Sentence(f"findings-{model['model_id']}", text, values, sql, total, "layers", "#p-table")
