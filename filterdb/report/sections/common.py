"""What all sections use: sentences from queries, and words for what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from filterdb.report.model import Figure, Section, Sentence, Value

if TYPE_CHECKING:
    from filterdb.report.corpus import Corpus

#: Answers of a query by column.
Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """What a section builder returns.

    Parameters
    ----------
    section
        The section, or None to leave it out.
    headlines
        Sentences fit for the Summary, most telling first.
    missing
        What could not be shown, one sentence each.
    """

    section: Section | None
    headlines: tuple[Sentence, ...] = ()
    missing: tuple[str, ...] = field(default=())


def say(
    corpus: Corpus,
    slug: str,
    sql: str,
    write: Callable[[Answer], str],
    *,
    n: str,
    n_unit: str,
    link: str,
    link_text: str = "more",
) -> Sentence | None:
    """Make a sentence from the only row of a query.

    Parameters
    ----------
    corpus
        Where to ask.
    slug
        Its name.
    sql
        The query.
    write
        Turns the answer into words; an empty text means there is nothing to say.
    n
        Column of the answer that holds how many things it rests on.
    n_unit
        What they are.
    link, link_text
        Where to go on.

    Returns
    -------
    Sentence or None
        None where the query has no answer or nothing is to be said.
    """
    query = " ".join(sql.split())
    answer = corpus.ask(query)
    if not answer or answer.get(n) is None:
        return None
    text = write(answer)
    if not text:
        return None
    values: dict[str, Value] = {k: _plain(v) for k, v in answer.items()}
    return Sentence(slug, text, values, query, int(answer[n]), n_unit, link, link_text)


def _plain(value: Any) -> Value:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bool):
        return int(value)
    if value is None or isinstance(value, int | float | str):
        return value
    return float(value)


def not_analysed(corpus: Corpus, what: str) -> str:
    """Return the sentence that stands where an analysis is missing.

    Parameters
    ----------
    corpus
        The store.
    what
        What cannot be shown.

    Returns
    -------
    str
        With the command to run.
    """
    return (
        f"{what} cannot be shown: the store has not been analysed. "
        f"Run filterdb analyze {corpus.options.store_name} and build the report again."
    )


def absent(number: int, question: str, reason: str, *, part: str = "") -> Figure:
    """Return a figure that only says why it is not there.

    Parameters
    ----------
    number, question, part
        As of the figure.
    reason
        One sentence.

    Returns
    -------
    Figure
        Without picture and data.
    """
    return Figure(number, question, "", missing=reason, part=part)


def table_rows(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the data of a figure in column order.

    Parameters
    ----------
    rows
        One dictionary a row.
    columns
        Names.

    Returns
    -------
    tuple of tuple
        None where a value is not finite.
    """
    return tuple(tuple(clean(row.get(c)) for c in columns) for row in rows)


def clean(value: Any) -> Any:
    """Return a plain Python value; None for NaN and missing ones.

    Parameters
    ----------
    value
        Number, word or None, of numpy or not.

    Returns
    -------
    Any
        Plain.
    """
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
