"""The plan: a partition fixed by the catalogue, and never disturbed afterwards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filterdb.catalog.model import Entry
from filterdb.errors import StoreError
from filterdb.store.plan import DEFAULT_MODEL_BYTES, Plan, extend, make_plan
from filterdb.testing import entry_lists

SHARD = 2_000_000


def size(entry: Entry) -> int:
    return DEFAULT_MODEL_BYTES if entry.bytes is None else entry.bytes


@given(entry_lists())
def test_a_plan_is_a_partition_in_catalogue_order(entries: tuple[Entry, ...]) -> None:
    plan = make_plan(entries, shard_bytes=SHARD)
    assert [m for shard in plan.shards for m in shard] == [e.id for e in entries]
    assert list(plan.models) == [e.id for e in entries]
    assert all(plan.shards)
    by_id = {e.id: size(e) for e in entries}
    for shard, following in zip(plan.shards, plan.shards[1:], strict=False):
        assert len(shard) == 1 or sum(by_id[m] for m in shard) <= SHARD
        assert sum(by_id[m] for m in shard) + by_id[following[0]] > SHARD


@given(entry_lists(), entry_lists(prefix="n"), st.data())
def test_extend_never_moves_a_model(
    old: tuple[Entry, ...], new: tuple[Entry, ...], data: st.DataObject
) -> None:
    plan = make_plan(old, shard_bytes=SHARD)
    mixed = data.draw(st.permutations([*old, *new]))
    longer = extend(plan, mixed)
    assert longer.shards[: len(plan.shards)] == plan.shards
    assert {m: longer.shard_of[m] for m in plan.shard_of} == plan.shard_of
    assert set(longer.models) == {e.id for e in mixed}
    assert extend(longer, mixed) is longer


@given(entry_lists(), st.data())
def test_a_retry_goes_to_a_new_shard_only_when_its_own_is_closed(
    entries: tuple[Entry, ...], data: st.DataObject
) -> None:
    plan = make_plan(entries, shard_bytes=SHARD)
    numbers = st.sets(st.integers(0, max(0, len(plan.shards) - 1)))
    retry = data.draw(st.sets(st.sampled_from([e.id for e in entries]))) if entries else set()
    closed = data.draw(numbers)
    longer = extend(plan, entries, retry=retry, closed=closed)
    assert longer.shards[: len(plan.shards)] == plan.shards
    assert sorted(longer.models) == sorted(plan.models)
    for model_id in plan.models:
        moved = longer.shard_of[model_id] != plan.shard_of[model_id]
        assert moved == (model_id in retry and plan.shard_of[model_id] in closed)
        assert model_id in longer.members(longer.shard_of[model_id])
        assert not moved or model_id not in longer.members(plan.shard_of[model_id])


@given(entry_lists())
def test_json_round_trip(entries: tuple[Entry, ...]) -> None:
    plan = make_plan(entries, shard_bytes=SHARD)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.sha256 == plan.sha256


def test_only_ids_and_sizes_matter() -> None:
    first = [Entry(id=f"m{i}", uri=f"file:{i}", bytes=10) for i in range(5)]
    second = [Entry(id=e.id, uri="pypi:x==1", bytes=10, task="ocr", base="/x") for e in first]
    assert make_plan(first) == make_plan(second)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "filterdb-plan", "version": 2, "shards": []}']
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(StoreError, match=r"not a filterdb-plan of version 1"):
        Plan.from_json(text)
