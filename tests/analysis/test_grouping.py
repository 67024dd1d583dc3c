"""Groupings: columns, expressions, and what is wrong with others."""

from __future__ import annotations

import pytest

from filterdb.analysis import grouping
from filterdb.errors import AnalysisError, UnknownNameError, UsageError
from filterdb.testing import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("grouping"), n_models=4)


def test_a_column_of_models_and_one_of_layers(store):
    task = {r["model_id"]: r["task"] for r in store.models.to_pylist()}
    layers = store.layers.to_pylist()
    assert grouping.labels(store, "task") == [task[r["model_id"]] for r in layers]
    assert grouping.labels(store, "depth_decile") == [str(r["depth_decile"]) for r in layers]


def test_an_expression(store):
    found = grouping.labels(store, "case when n_filters > 100 then 'wide' end -- a comment")
    expected = ["wide" if r["n_filters"] > 100 else None for r in store.layers.to_pylist()]
    assert found == expected


def test_lists_are_joined_and_empty_ones_are_no_group(store):
    assert set(grouping.labels(store, "training_dataset")) == {"coco, imagenet", "imagenet"}
    assert set(grouping.labels(store, "pretraining_dataset")) == {None}


def test_an_unknown_column_names_the_nearest(store):
    with pytest.raises(UnknownNameError) as error:
        grouping.labels(store, "visual_categry")
    assert "visual_category" in str(error.value)


@pytest.mark.parametrize("by", ["task from", "task); drop table layers; --", "", "count(*)"])
def test_what_is_not_an_expression_is_refused(store, by):
    with pytest.raises((UsageError, UnknownNameError)):
        grouping.labels(store, by)


def test_too_many_groups(store, monkeypatch):
    monkeypatch.setattr(grouping, "MAX_GROUPS", 3)
    with pytest.raises(AnalysisError, match="4 groups, expected at most 3"):
        grouping.labels(store, "model_id")


def test_numbers_sort_by_size():
    assert grouping.groups_of(["10", "9", None, "b", "a", "9"]) == ["9", "10", "a", "b"]
