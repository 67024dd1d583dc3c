"""What a report is made of, before it becomes HTML, Markdown and data files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: A number or word of a record; null always comes with a reason beside it.
Value: TypeAlias = float | int | str | None


@dataclass(frozen=True)
class Sentence:
    """One statement, its numbers, and the query that gives them.

    Parameters
    ----------
    slug
        Unique in the report.
    text
        The sentence for people.
    values
        Its numbers, unrounded, by the column names of the query's answer.
    sql
        A query whose only row holds `values`; run it by ``filterdb query STORE "…"``.
    n
        How many things the sentence rests on.
    n_unit
        What they are: "models", "layers".
    link
        Where in the report it can be followed up: "#drift".
    link_text
        What the link says: "figure 8".
    """

    slug: str
    text: str
    values: Mapping[str, Value]
    sql: str
    n: int
    n_unit: str
    link: str
    link_text: str = "more"


@dataclass(frozen=True)
class Figure:
    """One figure, or the reason why there is none.

    Parameters
    ----------
    number
        Number as printed.
    question
        Its title, a question.
    caption
        How to read it, n, interval.
    html
        Trusted markup: the SVG or the pictures. Empty where `missing` says why.
    columns
        Names of the data's columns, in order.
    rows
        The data behind it.
    spec
        Vega-Lite specification, where it is a chart.
    missing
        Why it could not be drawn and what to do; empty where it was.
    part
        What sets it apart from others of the same number ("task"), or empty.
    """

    number: int
    question: str
    caption: str
    html: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    spec: dict[str, Any] | None = None
    missing: str = ""
    part: str = ""

    @property
    def slug(self) -> str:
        """Its id in the page."""
        return f"fig-{self.number}-{self.part}" if self.part else f"fig-{self.number}"

    @property
    def file_stem(self) -> str:
        """Name of its data files."""
        return self.slug.replace("fig-", "fig", 1)

    @property
    def label(self) -> str:
        """Its name in running text ("figure 8, task")."""
        return f"{self.number}, {self.part.replace('_', ' ')}" if self.part else f"{self.number}"


@dataclass(frozen=True)
class Cell:
    """One cell of a table drawn as plain HTML.

    Parameters
    ----------
    text
        What stands in it.
    link
        Address in the report, or empty.
    html
        Trusted markup instead of `text` (a small picture).
    number
        Whether it is right-aligned.
    reason
        Why it is empty, read out on focus.
    quiet
        The link is left out of the tab order, since the keyboard has another way there.
    """

    text: str = ""
    link: str = ""
    html: str = ""
    number: bool = False
    reason: str = ""
    quiet: bool = False


@dataclass(frozen=True)
class Table:
    """A table small enough for plain HTML.

    Parameters
    ----------
    slug
        Unique in the report.
    title
        What it lists.
    heads
        Column heads with units.
    rows
        Cells, as many a row as heads.
    note
        What was left out, or how to read it.
    plain
        Shown only in print and without JavaScript, since a grid stands in its place.
    """

    slug: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    plain: bool = False


ColumnKind = Literal["words", "text", "integer", "decimal", "float", "spark", "picture"]


@dataclass(frozen=True)
class GridColumn:
    """One column of a virtual grid.

    Parameters
    ----------
    name
        Word used in the filter box and, for most, in SQL.
    label
        Head, with the unit.
    kind
        words: few different strings · text: many · integer · decimal: four places ·
        float: single precision · spark: ten numbers a row · picture: a small image a row.
    values
        One a row; None where there is none.
    sql
        SQL expression that gives the value; empty where there is none.
    text
        What it means.
    width
        In rem.
    many
        The word holds several, separated by a space; equality asks for any of them.
    link
        Grid column whose row value is the address of the cell; empty without link.
    hidden
        Kept for links and queries, not shown.
    """

    name: str
    label: str
    kind: ColumnKind
    values: Any
    sql: str = ""
    text: str = ""
    width: float = 6.0
    many: bool = False
    link: str = ""
    hidden: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of any length: sorted, filtered and drawn by the page's script.

    Parameters
    ----------
    slug
        Unique in the report.
    title
        What it lists.
    columns
        In order.
    n_rows
        Rows.
    source
        SQL after ``from``: the tables the rows come from.
    note
        How to read it.
    example
        A filter to start from.
    """

    slug: str
    title: str
    columns: tuple[GridColumn, ...]
    n_rows: int
    source: str
    note: str = ""
    example: str = ""


@dataclass(frozen=True)
class Paragraph:
    """Plain words.

    Parameters
    ----------
    text
        One paragraph, no markup.
    """

    text: str


@dataclass(frozen=True)
class Definitions:
    """Terms and what they mean, for Methods and Provenance.

    Parameters
    ----------
    slug
        Unique in the report.
    items
        (term, meaning) in order.
    """

    slug: str
    items: tuple[tuple[str, str], ...]


Block: TypeAlias = Figure | Table | Grid | Paragraph | Definitions | Sentence


@dataclass(frozen=True)
class Section:
    """One heading and what stands under it.

    Parameters
    ----------
    slug
        Its id.
    title
        As printed and in the navigation.
    blocks
        In reading order.
    """

    slug: str
    title: str
    blocks: tuple[Block, ...]

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """The statements among its blocks."""
        return tuple(b for b in self.blocks if isinstance(b, Sentence))


@dataclass(frozen=True)
class Report:
    """Everything the pages say.

    Parameters
    ----------
    title
        Of the page.
    lead
        One line under it.
    summary
        At most seven sentences.
    sections
        In reading order.
    """

    title: str
    lead: str
    summary: tuple[Sentence, ...]
    sections: tuple[Section, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures in order."""
        return tuple(b for s in self.sections for b in s.blocks if isinstance(b, Figure))

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """Summary first, then those of the sections; each slug once."""
        seen: dict[str, Sentence] = {s.slug: s for s in self.summary}
        for section in self.sections:
            for sentence in section.sentences:
                seen.setdefault(sentence.slug, sentence)
        return tuple(seen.values())


ModelPages = Literal["all", "findings", "none"]


@dataclass(frozen=True)
class ReportOptions:
    """How to build it.

    Parameters
    ----------
    model_pages
        "all", only those of models with a finding that is a defect or unusual, or "none".
    command
        The command that makes the report again, for Provenance.
    store_name
        What the store is called in queries shown to the reader.
    """

    model_pages: ModelPages = "all"
    command: str = "filterdb report STORE --out DIR"
    store_name: str = "STORE"


@dataclass(frozen=True)
class ReportSummary:
    """What was written.

    Parameters
    ----------
    path
        index.html.
    n_models
        Models in the report.
    n_pages
        Model pages written.
    n_files
        Files in the folder.
    n_bytes
        Their size together.
    index_bytes
        Size of index.html.
    missing
        What the report could not show, one sentence each.
    up_to_date
        Nothing was written, since the same report was there.
    """

    path: Path
    n_models: int
    n_pages: int
    n_files: int
    n_bytes: int
    index_bytes: int
    missing: tuple[str, ...] = field(default=())
    up_to_date: bool = False

    @property
    def index(self) -> Path:
        """The page to open."""
        return self.path
