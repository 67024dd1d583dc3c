"""What is in the corpus, and what is not (figures 1 to 4, models, skipped, failures)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.report.charts import corpus as charts
from filterdb.report.charts.render import draw
from filterdb.report.corpus import records
from filterdb.report.model import Block, Cell, Figure, Section, Sentence, Table
from filterdb.report.numbers import count, plural, share, words
from filterdb.report.sections.common import Answer, Part, absent, say, table_rows
from filterdb.report.sections.grids import models_grid, skipped_grid

if TYPE_CHECKING:
    import pandas as pd

    from filterdb.report.corpus import Corpus

#: Rows and columns of figure 1 at most; the rest is in its data.
_MOST_LABELS = 26
#: Models printed and shown without JavaScript.
_PLAIN_ROWS = 50


def build(corpus: Corpus) -> Part:
    """Build the section.

    Parameters
    ----------
    corpus
        The store.

    Returns
    -------
    Part
        Always there.
    """
    blocks: list[Block | None] = [
        _size(corpus),
        _left_out(corpus),
        _owners_sentence(corpus),
        _what(corpus),
        _kernels(corpus),
        _reasons(corpus),
        _owners(corpus),
        models_grid(corpus),
        _models_plain(corpus),
        _failures(corpus),
        skipped_grid(corpus) if len(corpus.skipped) else None,
    ]
    kept = tuple(b for b in blocks if b is not None)
    headlines = tuple(b for b in kept[:2] if isinstance(b, Sentence))
    return Part(Section("corpus", "Corpus", kept), headlines)


def _size(corpus: Corpus) -> Sentence | None:
    sql = """
        select count(*) as models, count(distinct task) as tasks,
        count(distinct format) as formats, coalesce(sum(n_conv_layers), 0) as layers,
        coalesce(sum(n_filters_3x3), 0) as filters_3x3,
        (select coalesce(sum(n_filters), 0) from layers
         where shared_with is null and shard is not null) as filters from models"""

    def write(a: Answer) -> str:
        return (
            f"The store holds {plural(a['models'], 'model')} of {plural(a['tasks'], 'task')}, read "
            f"from {plural(a['formats'], 'file format')}: "
            f"{plural(a['layers'], 'convolution layer')} "
            f"and {plural(a['filters'], 'filter')} larger than 1×1, "
            f"{count(a['filters_3x3'])} of them 3×3."
        )

    return say(corpus, "corpus-size", sql, write, n="models", n_unit="models", link="#corpus",
               link_text="Corpus")  # fmt: skip


def _left_out(corpus: Corpus) -> Sentence | None:
    sql = """
        select (select count(*) from failures) as failed,
        (select count(*) from models) as models,
        (select count(*) from models where status = 'no_convolutions') as without,
        count(*) as tensors, count(distinct model_id) as affected,
        (select reason from skipped group by reason order by count(*) desc, reason limit 1)
        as reason,
        (select count(*) from skipped group by reason order by count(*) desc, reason limit 1)
        as most from skipped"""

    def write(a: Answer) -> str:
        total = a["failed"] + a["models"]
        failed = (
            f"{count(a['failed'])} of {plural(total, 'model')} could not be read"
            if a["failed"]
            else f"Every one of {plural(total, 'model')} could be read"
        )
        without = f", {count(a['without'])} hold no convolution" if a["without"] else ""
        if not a["tensors"]:
            return f"{failed}{without}; no tensor was left out."
        return (
            f"{failed}{without}; {plural(a['tensors'], 'tensor')} that are no convolution were "
            f"left out of {plural(a['affected'], 'model')}, "
            f"{count(a['most'])} of them for “{words(a['reason'])}”."
        )

    return say(corpus, "left-out", sql, write, n="models", n_unit="models", link="#fig-3",
               link_text="figure 3")  # fmt: skip


def _owners_sentence(corpus: Corpus) -> Sentence | None:
    sql = """
        with sizes as (select model_id, sum(n_filters) as filters from layers
        where shard is not null and shared_with is null group by model_id),
        ranked as (select filters, row_number() over (order by filters desc) as place from sizes)
        select count(*) as models, sum(filters) as filters,
        sum(case when place <= 10 then filters else 0 end) as largest from ranked"""

    def write(a: Answer) -> str:
        if a["models"] <= 10 or not a["filters"]:
            return ""
        part = float(a["largest"]) / float(a["filters"])
        return (
            f"The ten models with most filters hold {share(part)} of all filters "
            f"({count(a['models'])} models); groups therefore weigh each model equally unless "
            "said otherwise."
        )

    return say(corpus, "owners", sql, write, n="models", n_unit="models", link="#fig-4",
               link_text="figure 4")  # fmt: skip


def _order(labels: pd.Series) -> list[str]:
    """Labels by falling frequency, then name."""
    counts = labels.value_counts()
    return sorted(counts.index, key=lambda label: (-int(counts[label]), label))


def _what(corpus: Corpus) -> Figure:
    question = "What is in the corpus?"
    if corpus.models.empty:
        return absent(1, question, "The store holds no model. Run filterdb extract.")
    models = corpus.models
    tasks, categories = _order(models["task"]), _order(models["visual_category"])
    n_by = models.groupby(["task", "visual_category"]).size().to_dict()
    cells = [
        {
            "task": words(t),
            "category": words(c),
            "models": int(n_by.get((t, c), 0)),
            "speech": f"{words(t)}, {words(c)}: {plural(int(n_by.get((t, c), 0)), 'model')}",
        }
        for t in tasks
        for c in categories
    ]
    shown_tasks = [words(t) for t in tasks[:_MOST_LABELS]]
    shown = [words(c) for c in categories[:_MOST_LABELS]]
    drawn = [c for c in cells if c["task"] in shown_tasks and c["category"] in shown]
    drawing = draw(charts.matrix(drawn, shown_tasks, shown), slug="fig-1")
    cut = len(tasks) > _MOST_LABELS or len(categories) > _MOST_LABELS
    caption = (
        f"Rows: {plural(len(tasks), 'task')}; columns: "
        f"{plural(len(categories), 'visual category', 'visual categories')}. The number is the "
        "count of models and the dot's area grows with its root; an empty cell holds none. "
        f"n = {plural(len(models), 'model')}."
        + (
            f" The {_MOST_LABELS} most frequent labels are drawn, all are in the data."
            if cut
            else ""
        )
    )
    columns = ("task", "category", "models")
    return Figure(1, question, caption, drawing.svg, columns,
                  table_rows([c for c in cells if c["models"]], columns), drawing.spec)  # fmt: skip


def _own_layers(corpus: Corpus) -> pd.DataFrame:
    return corpus.layers[corpus.layers["shared_with"].isna()]


def _kernels(corpus: Corpus) -> Figure:
    question = "How many filters of which kernel?"
    own = _own_layers(corpus)
    if own.empty:
        return absent(2, question, "No model of the store holds a convolution.")
    grouped = own.groupby("kernel").agg(
        filters=("n_filters", "sum"), layers=("layer_uid", "size"), models=("model_id", "nunique")
    )
    rows: list[dict[str, Any]] = []
    pointwise: list[dict[str, Any]] = []
    data: list[dict[str, Any]] = []
    for kernel, row in grouped.sort_values(["filters", "layers"], ascending=False).iterrows():
        name = str(kernel).replace("x", "×")
        item: dict[str, Any] = {
            "kernel": name,
            "filters": int(row["filters"]),
            "layers": int(row["layers"]),
            "models": int(row["models"]),
        }
        shapeless = set(str(kernel).split("x")) == {"1"}
        text = f"{plural(item['layers'], 'layer')} of {plural(item['models'], 'model')}"
        item["label"] = text if shapeless else f"{count(item['filters'])} in {text}"
        item["speech"] = f"{name}: {item['label']}"
        (pointwise if shapeless else rows).append(item)
        data.append(item)
    drawing = draw(charts.kernels(rows[:24], pointwise), slug="fig-2")
    caption = (
        "Filters of each kernel size, shared weights counted once, on a log scale. A 1×1 kernel is "
        "one number and has no shape: its layers are counted, its filters are not stored. "
        f"n = {plural(len(own), 'layer')}."
        + (f" The 24 most frequent of {len(rows)} kernels are drawn." if len(rows) > 24 else "")
    )
    columns = ("kernel", "filters", "layers", "models")
    return Figure(2, question, caption, drawing.svg, columns, table_rows(data, columns),
                  drawing.spec)  # fmt: skip


def _reasons(corpus: Corpus) -> Figure:
    question = "What was left out, and why?"
    skipped = corpus.skipped
    if skipped.empty:
        return absent(3, question, "Nothing: every tensor of every model is a convolution's.")
    grouped = skipped.groupby("reason").agg(
        tensors=("tensor", "size"), models=("model_id", "nunique")
    )
    rows: list[dict[str, Any]] = []
    ordered = grouped.reset_index().sort_values(["tensors", "reason"], ascending=[False, True])
    for row in records(ordered):
        reason = words(str(row["reason"]))
        rows.append(
            {
                "reason": reason,
                "tensors": int(row["tensors"]),
                "models": int(row["models"]),
                "link": f"#skipped?q=reason%3D{row['reason']}",
                "speech": f"{reason}: {plural(row['tensors'], 'tensor')} of "
                f"{plural(row['models'], 'model')}; go to the rows",
            }
        )
    drawing = draw(charts.bars(rows), slug="fig-3")
    caption = (
        "Tensors of the model files that are no convolution weights, by reason, and the models "
        "they are in. A bar leads to its rows in the table below. "
        f"n = {plural(len(skipped), 'tensor')} of {plural(skipped['model_id'].nunique(), 'model')}."
    )
    columns = ("reason", "tensors", "models")
    return Figure(3, question, caption, drawing.svg, columns, table_rows(rows, columns),
                  drawing.spec)  # fmt: skip


def _owners(corpus: Corpus) -> Figure:
    question = "Who owns the corpus?"
    own = _own_layers(corpus)
    own = own[own["shard"].notna()]
    sizes = own.groupby("model_id")["n_filters"].sum()
    if len(sizes) < 3:
        return absent(4, question, f"A ranking needs three models with filters larger than 1×1; "
                      f"there are {len(sizes)}.")  # fmt: skip
    names = corpus.models.set_index("model_id")["name"].to_dict()
    ordered = sorted(sizes.items(), key=lambda item: (-int(item[1]), str(item[0])))
    rows: list[dict[str, Any]] = [
        {
            "rank": rank,
            "filters": int(filters),
            "model_id": str(model_id),
            "name": str(names[model_id]),
            "link": corpus.links.model(str(model_id)) or "#models",
            "speech": f"{names[model_id]}: {plural(filters, 'filter')}, rank {rank}",
        }
        for rank, (model_id, filters) in enumerate(ordered, 1)
    ]
    total = float(np.sum([r["filters"] for r in rows]))
    top = float(np.sum([r["filters"] for r in rows[:10]]))
    line = [{"rank": r["rank"], "filters": r["filters"]} for r in rows]
    drawing = draw(charts.owners(line, rows[:10]), slug="fig-4")
    named = min(10, len(rows))
    caption = (
        f"Each model's filters larger than 1×1, largest first, on log scales; the dots are the "
        f"{named} largest ({', '.join(r['name'] for r in rows[:3])} lead), which hold "
        f"{share(top / total)} of {count(total)} filters. Pooling "
        "filters would let them speak for their group, so each model weighs the same by default. "
        f"n = {plural(len(rows), 'model')}."
    )
    columns = ("rank", "model_id", "name", "filters")
    return Figure(4, question, caption, drawing.svg, columns, table_rows(rows, columns),
                  drawing.spec)  # fmt: skip


def _models_plain(corpus: Corpus) -> Table:
    heads = ("Model", "Task", "Data", "Format", "Layers", "Filters", "Licence of the weights")
    rows = tuple(
        (
            Cell(row["name"], corpus.links.model(row["model_id"])),
            Cell(words(row["task"])),
            Cell(words(row["visual_category"])),
            Cell(row["format"]),
            Cell(count(row["n_conv_layers"]), number=True),
            Cell(count(row["n_filters"]), number=True),
            Cell(row["licence_weights"]),
        )
        for row in records(corpus.models.head(_PLAIN_ROWS))
    )
    note = (
        ""
        if len(corpus.models) <= _PLAIN_ROWS
        else f"The first {_PLAIN_ROWS}; all are in data/models.csv."
    )
    return Table("models-plain", "Models", heads, rows, note, plain=True)


def _failures(corpus: Corpus) -> Table | None:
    if corpus.failures.empty:
        return None
    ordered = corpus.failures.sort_values("model_id").head(200)
    rows = tuple(
        (
            Cell(row["model_id"]),
            Cell(row["stage"]),
            Cell(row["error"]),
            Cell(row["message"]),
            Cell("yes" if row["retryable"] else "no"),
        )
        for row in records(ordered)
    )
    note = f"{plural(len(corpus.failures), 'model')}; all are in data/failures.csv."
    heads = ("Model", "Stage", "Error", "Message", "Tried again by itself")
    return Table("failures", "Models that could not be read", heads, rows, note)
