"""The closed lists of tasks and visual categories, and the maps of other people's labels."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING

from filterdb.errors import CatalogError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Columns whose words come from the vocabulary.
COLUMNS = ("task", "visual_category")


@dataclass(frozen=True)
class Vocabulary:
    """Words there are, each with its definition.

    Parameters
    ----------
    task, visual_category
        Word → definition, in the file's order.
    maps
        Name of a source of labels → its words → ours.
    """

    task: Mapping[str, str]
    visual_category: Mapping[str, str]
    maps: Mapping[str, Mapping[str, object]]

    def words(self, column: str) -> Mapping[str, str]:
        """Return the words of one column.

        Parameters
        ----------
        column
            "task" or "visual_category".

        Returns
        -------
        mapping of str to str
            Word → definition.
        """
        return self.task if column == "task" else self.visual_category


@functools.cache
def load_vocabulary() -> Vocabulary:
    """Read the vocabulary that ships with filterdb.

    Returns
    -------
    Vocabulary
        The same object at every call.
    """
    text = files("filterdb.catalog").joinpath("vocabulary.toml").read_text(encoding="utf-8")
    return parse_vocabulary(text)


def parse_vocabulary(text: str) -> Vocabulary:
    """Read a vocabulary file.

    Parameters
    ----------
    text
        TOML: ``[task]`` and ``[visual_category]`` of ``word = "definition"``, other tables are
        maps of labels.

    Returns
    -------
    Vocabulary
        Its content, "unknown" included.

    Raises
    ------
    CatalogError
        For TOML that does not parse or a definition that is not a text.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"vocabulary: {error}") from error
    words: dict[str, Mapping[str, str]] = {}
    for column in COLUMNS:
        table = document.pop(column, {})
        for word, definition in table.items():
            if not isinstance(definition, str):
                raise CatalogError(f"vocabulary: {column}.{word} is not a text")
        words[column] = MappingProxyType(dict(table))
    maps = {k: MappingProxyType(v) for k, v in document.items() if isinstance(v, dict)}
    return Vocabulary(words["task"], words["visual_category"], MappingProxyType(maps))


def explain_unknown(column: str, word: str, vocabulary: Vocabulary) -> str | None:
    """Say why `word` is not of the vocabulary.

    Parameters
    ----------
    column
        "task" or "visual_category".
    word
        The word as written.
    vocabulary
        The words there are.

    Returns
    -------
    str or None
        A sentence naming the nearest words; None where the word is known.
    """
    known = vocabulary.words(column)
    if word in known or word == "unknown":
        return None
    close = nearest(word, known)
    hint = f"nearest: {', '.join(close)}" if close else "see filterdb/catalog/vocabulary.toml"
    return f"{column} = {word!r} is not in the vocabulary ({hint})"
