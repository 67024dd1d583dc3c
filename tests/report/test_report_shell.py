"""Names chosen by a file reach commands in the report; pasting one must run nothing of them."""

from __future__ import annotations

import subprocess

import pytest

from filterdb.report.html import markdown
from filterdb.report.links import make_links
from filterdb.report.model import Report, Sentence
from filterdb.report.shell import shell_quoted

_NAMES = [
    "conv1",
    "it''s",
    "a$(echo hacked)b",
    "a`echo hacked`b",
    'a" ; echo "hacked',
    "a\\",
    "$HOME",
    "a!b",
    "two\nlines",
]


@pytest.mark.parametrize("name", _NAMES)
def test_a_shell_passes_the_query_on_as_it_is(name: str) -> None:
    sql = f"SELECT * FROM layers WHERE name = '{name}'"
    shown = subprocess.run(
        ["/bin/sh", "-c", f"printf %s {shell_quoted(sql)}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == sql


def test_plain_queries_stand_between_double_quotes() -> None:
    assert shell_quoted("SELECT 'a'") == "\"SELECT 'a'\""


def test_layers_with_one_long_beginning_get_short_anchors() -> None:
    rows = [(f"m::{i}", "m", "x" * 200 + str(i)) for i in range(3000)]
    links = make_links(["m"], rows, with_page=["m"])
    assert len(set(links.anchors.values())) == len(rows)
    assert max(map(len, links.anchors.values())) < 130


def test_the_report_prints_its_commands_that_way() -> None:
    sql = "SELECT 1 WHERE 'a$(echo hacked)' = name"
    sentence = Sentence("one", "Text.", {}, sql, 1, "layer", "#one")
    text = markdown(Report("T", "l", (sentence,), ()), store_name="STORE")
    assert "$(echo hacked)" not in text or shell_quoted(sql) in text
