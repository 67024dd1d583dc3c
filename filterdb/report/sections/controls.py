"""Controls: random-initialised twins, and the same weights twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.report.model import Block, Cell, Paragraph, Section, Sentence, Table
from filterdb.report.numbers import count, plural, share, short
from filterdb.report.sections.common import Answer, Part, say

if TYPE_CHECKING:
    from filterdb.report.corpus import Corpus


def build(corpus: Corpus) -> Part:
    """Build the section.

    Parameters
    ----------
    corpus
        The store.

    Returns
    -------
    Part
        Says so where the corpus holds no control.
    """
    blocks: list[Block] = []
    missing: tuple[str, ...] = ()
    if not corpus.has_twins:
        text = (
            "The corpus holds no random-initialised twins, so nothing here shows what untrained "
            "networks would give. Catalogue entries with the address init:timm/ARCHITECTURE?seed=0 "
            "add them."
        )
        blocks.append(Paragraph(text))
        missing = (text,)
    elif "quality" not in corpus.missing:
        blocks.append(_twins(corpus))
    duplicate = _duplicates(corpus)
    if duplicate is not None:
        blocks.append(duplicate)
    same = _same_architecture(corpus)
    if same is not None:
        blocks.append(same)
    return Part(Section("controls", "Controls", tuple(blocks)), missing=missing)


def _twins(corpus: Corpus) -> Table:
    rows = []
    usable = corpus.layers[corpus.layers["kernel"] != "1x1"]
    for trained, name in ((True, "Trained"), (False, "Random-initialised")):
        some = usable[usable["trained"] == trained]
        medians = some[["sparsity", "entropy_norm", "orthogonality"]].median()
        found = some["findings"].map(lambda f: f is not None and "random" in list(f))
        rows.append(
            (
                Cell(name),
                Cell(count(some["model_id"].nunique()), number=True),
                Cell(count(len(some)), number=True),
                Cell(share(float(medians["sparsity"])), number=True),
                Cell(short(float(medians["entropy_norm"])), number=True),
                Cell(short(float(medians["orthogonality"])), number=True),
                Cell(share(float(found.mean())) if len(some) else "–", number=True),
            )
        )
    return Table(
        "twins", "Do trained and untrained layers differ?",
        ("Weights", "Models", "Layers", "Sparsity, median", "Entropy, median",
         "Orthogonality, median", "Layers found random"),
        tuple(rows), "Layers larger than 1×1, raw weights, sparse filters kept.",
    )  # fmt: skip


def _duplicates(corpus: Corpus) -> Sentence | None:
    sql = """
        select count(*) as layers, count(duplicate_of) as copies,
        count(distinct model_id) filter (duplicate_of is not null) as models from layers"""

    def write(a: Answer) -> str:
        if not a["copies"]:
            return (
                f"No two models share a weight tensor ({plural(a['layers'], 'layer')} compared "
                "by hash)."
            )
        return (
            f"{count(a['copies'])} of {plural(a['layers'], 'layer')}, in "
            f"{plural(a['models'], 'model')}, hold exactly the weights of a layer of an earlier "
            "model; each model still counts for what it is."
        )

    return say(corpus, "duplicates", sql, write, n="layers", n_unit="layers",
               link="#found?q=finding%3Dduplicated", link_text="those layers")  # fmt: skip


def _same_architecture(corpus: Corpus) -> Sentence | None:
    sql = """
        with same as (select architecture, count(*) as n from models
        where init_of is null and architecture <> 'unknown' and architecture <> ''
        group by architecture having count(*) > 1)
        select count(*) as architectures, coalesce(sum(n), 0) as models from same"""

    def write(a: Answer) -> str:
        if not a["architectures"]:
            return "No architecture is there twice, so seed-to-seed distance cannot be read here."
        return (
            f"{plural(a['architectures'], 'architecture')} are there more than once "
            f"({plural(a['models'], 'model')}); what lies between them is training data and seed, "
            "not layout."
        )

    return say(corpus, "same-architecture", sql, write, n="models", n_unit="models",
               link="#models", link_text="models")  # fmt: skip
