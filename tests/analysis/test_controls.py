"""Random initialisations are controls: they change no number but in a grouping that names them."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from filterdb.analysis import grouping, pca, quality, shift_groups
from filterdb.analysis.config import CONTROLS_BY, DEFAULT_BY, AnalysisConfig
from filterdb.testing.models import make_entries
from filterdb.testing.stores import extract_entries
from tests.analysis.scans import shifted

TWINS = CONTROLS_BY
ENTRIES = make_entries(9)
#: Of a group, with filters of its own, and in the middle of the others.
TWIN = replace(ENTRIES[4], id="twin", uri="init:timm/resnet10t?seed=0")


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    return extract_entries(tmp_path_factory.mktemp("without") / "store", ENTRIES)


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    entries = (*ENTRIES[:3], TWIN, *ENTRIES[3:])
    return extract_entries(tmp_path_factory.mktemp("beside") / "store", entries)


def analysed(store, **options):
    config = AnalysisConfig(
        **{"by": ("task", "depth_decile"), "draws": 5, "permutations": 20} | options
    )
    results, bases = pca.analyse(store, config)
    more, histograms = shifted(store, config)
    tables = {
        "results": pa.concat_tables([results, more]),
        "bases": bases,
        "histograms": histograms,
    }
    return {name: table.drop_columns(["fingerprint"]) for name, table in tables.items()}


@pytest.mark.parametrize("compat", [None, "cnn-filter-db"])
def test_a_twin_changes_no_number(without, beside, compat, monkeypatch):
    monkeypatch.setattr(shift_groups, "MIN_FILTERS", 100)
    one, other = (analysed(store, compat=compat) for store in (without, beside))
    assert other["results"].num_rows > 100
    for name, table in one.items():
        assert table.equals(other[name]), name


def test_a_grouping_that_asks_for_twins_has_them(beside):
    both = analysed(beside, by=("task", TWINS))
    alone = analysed(beside, by=("task",))
    own = [table.filter(pa.compute.not_equal(table["axis"], TWINS)) for table in both.values()]
    for table, expected in zip(own, alone.values(), strict=True):
        assert table.equals(expected)
    rows = [r for r in both["results"].to_pylist() if r["axis"] == TWINS]
    (pair,) = (
        r for r in rows if (r["metric"], r["group_a"], r["group_b"]) == ("drift", "false", "true")
    )
    assert (pair["n_models"], pair["n_models_b"]) == (9, 1)
    assert pair["value"] > 0
    assert {r["group"] for r in both["bases"].to_pylist() if r["axis"] == TWINS} == {
        "false",
        "true",
    }
    of_twin = [
        r for r in both["histograms"].to_pylist() if (r["axis"], r["group"]) == (TWINS, "true")
    ]
    assert [sum(r["mass"]) for r in of_twin] == pytest.approx([1.0] * 9)


def test_twins_have_quality_like_all(beside):
    table, _ = quality.quality_tables(beside.layers.arrow, beside.layer_states.arrow)
    assert {"twin", "model-004"} <= {uid.split("/")[0] for uid in table["layer_uid"].to_pylist()}


def test_labels_leave_twins_out_unless_they_are_named(beside):
    def of_twin(by):
        labels = grouping.labels(beside, by)
        owners = beside.layers["model_id"].to_pylist()
        return {label for label, owner in zip(labels, owners, strict=True) if owner == "twin"}

    assert of_twin("task") == {None}
    assert of_twin("case when task = 'seed' then 1 else 0 end -- init_of") == {None}
    assert of_twin("init_of") == {"timm/resnet10t"}
    assert of_twin("coalesce(SEED, -1)") == {"0"}


def test_where_nobody_chose_a_grouping_twins_are_compared_with_trained_models(without, beside):
    assert grouping.default_by(without) == DEFAULT_BY
    assert grouping.default_by(beside) == (*DEFAULT_BY, TWINS)


def test_where_there_is_nothing_else_twins_count(tmp_path):
    store = extract_entries(tmp_path / "store", [TWIN])
    assert grouping.trained(store).all()
    assert grouping.default_by(store) == DEFAULT_BY
    tables = analysed(store, by=("task",))
    assert {r["n_models"] for r in tables["bases"].to_pylist()} == {1}
    assert tables["histograms"].num_rows == 18
