"""The closed lists of words, and the package's lazy face."""

from __future__ import annotations

import subprocess
import sys

import pytest

from filterdb.catalog.vocabulary import explain_unknown, load_vocabulary, parse_vocabulary
from filterdb.errors import CatalogError


def test_words_are_slugs_with_definitions() -> None:
    words = load_vocabulary()
    for column in ("task", "visual_category"):
        table = words.words(column)
        assert "unknown" in table
        assert all(word.isidentifier() and word == word.lower() for word in table)
        assert all(definition.endswith(".") for definition in table.values())


def test_maps_lead_to_words_there_are() -> None:
    words = load_vocabulary()
    assert set(words.maps) == {"task_from", "visual_category_from"}
    for name, sources in words.maps.items():
        known = words.words(name.removesuffix("_from"))
        for source in sources.values():
            assert isinstance(source, dict)
            assert set(source.values()) <= set(known)


def test_unknown_words_name_the_nearest() -> None:
    words = load_vocabulary()
    assert explain_unknown("task", "ocr", words) is None
    assert explain_unknown("task", "unknown", parse_vocabulary("")) is None
    assert "nearest: ocr" in (explain_unknown("task", "orc", words) or "")
    assert "vocabulary.toml" in (explain_unknown("task", "qqqqqqqq", words) or "")


@pytest.mark.parametrize("text", ["[task", "[task]\nocr = 3\n"])
def test_a_damaged_vocabulary_is_refused(text: str) -> None:
    with pytest.raises(CatalogError, match="vocabulary"):
        parse_vocabulary(text)


def test_the_catalogue_needs_nothing_heavy() -> None:
    code = (
        "import sys; from filterdb.catalog import load_catalogue; load_catalogue('demo');"
        "print(*sorted(m.split('.')[0] for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "duckdb", "requests", "fsspec", "torch", "timm", "pyarrow", "pandas"}
    assert not heavy & set(done.stdout.split())
