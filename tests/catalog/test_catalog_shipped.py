"""The catalogues in the repository: what their README says of them, and what they share."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from filterdb.catalog.load import load_catalogue

FOLDER = Path(__file__).parents[2] / "catalogs"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
DEMO = load_catalogue(FOLDER / "demo.toml").entries
COLUMNS = {
    "task": "task",
    "visual category": "visual_category",
    "format": "format",
    "licence of the weights": "licence_weights",
}


def counts_in_readme(head: str) -> dict[str, int]:
    counts = README.split("<!-- counts:demo -->")[1].split("<!-- /counts -->")[0]
    (table,) = re.findall(rf"\| {head} \| models \|\n\|---\|---\|\n((?:\|.*\n)+)", counts)
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    return {word: int(n) for word, n in cells}


@pytest.mark.parametrize("head", COLUMNS)
def test_counts_of_the_demo_are_those_of_its_readme(head):
    counted = Counter(getattr(entry, COLUMNS[head]) for entry in DEMO)
    assert counts_in_readme(head) == dict(counted)
    in_order = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    assert list(counts_in_readme(head).items()) == in_order


def test_controls_come_last_and_have_no_label_of_a_trained_model():
    controls = [entry for entry in DEMO if entry.uri.startswith("init:")]
    assert DEMO[-len(controls) :] == tuple(controls)
    assert f"{len(DEMO) - len(controls)} trained models and {len(controls)} controls" in README
    for entry in controls:
        assert (entry.task, entry.visual_category) == ("unknown", "unknown")
        assert entry.training_dataset == entry.pretraining_dataset == ()
        assert entry.note.startswith("Control: ")


def test_smoke_has_the_words_of_the_demo():
    known = {entry.id: entry for entry in DEMO}
    for entry in load_catalogue(FOLDER / "smoke.toml").entries:
        own, same = vars(entry) | {"catalogue": ""}, vars(known[entry.id]) | {"catalogue": ""}
        assert own == same
