"""Stores made of models that exist nowhere, through the real writer."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.store.collect import collect_tables
from filterdb.store.reader import Store, open_store
from filterdb.store.shards import assemble_shard
from filterdb.store.staging import stage_model
from filterdb.store.writer import commit, create, locked, next_plan, pending
from filterdb.testing.models import TEST_SHARD_BYTES, failed_model, make_entries, make_model

if TYPE_CHECKING:
    from filterdb.catalog.model import Entry
    from filterdb.types import ModelId


def extract_entries(
    path: str | os.PathLike[str],
    entries: Sequence[Entry],
    *,
    seed: int = 0,
    fail: Sequence[ModelId] = (),
    retry: bool = False,
    shard_bytes: int = TEST_SHARD_BYTES,
) -> Store:
    """Do what an extraction does, with models made by :func:`make_model`.

    Parameters
    ----------
    path
        The store's folder; made, or appended to.
    entries
        Catalogue entries.
    seed
        Of the weights.
    fail
        Ids of models that fail.
    retry
        Try again what failed before.
    shard_bytes
        Size of a new store's shards.

    Returns
    -------
    Store
        Opened.
    """
    with locked(path) as folder:
        create(folder, shard_bytes=shard_bytes)
        plan = next_plan(folder, entries, retry=retry)
        todo = pending(folder, plan, [e.id for e in entries], retry=retry)
        by_id = {e.id: e for e in entries}
        for model_id in todo:
            entry = by_id[model_id]
            failed = model_id in fail
            stage_model(
                folder, model_id, failed_model(entry) if failed else make_model(entry, seed=seed)
            )
        waiting = set(todo)
        shards = []
        for number in range(len(plan.shards)):
            members = [m for m in plan.members(number) if m in waiting]
            shards.append(assemble_shard(folder, number, members) if members else None)
        commit(
            folder,
            tables=collect_tables(folder, plan),
            shards=[s for s in shards if s is not None],
            plan=plan,
        )
    return open_store(path)


def make_store(
    tmp_path: str | os.PathLike[str],
    *,
    n_models: int = 3,
    seed: int = 0,
    n_failures: int = 0,
    name: str = "store",
) -> Store:
    """Make a small valid store through the real writer.

    Parameters
    ----------
    tmp_path
        Folder to make it in.
    n_models
        Models in its catalogue, the failing ones among them.
    seed
        Of everything random in it.
    n_failures
        How many of the models, the last ones, fail.
    name
        Name of the store's folder.

    Returns
    -------
    Store
        Opened; nothing is analysed in it yet.
    """
    entries = make_entries(n_models, seed=seed)
    fail = [e.id for e in entries[n_models - n_failures :]]
    return extract_entries(Path(tmp_path) / name, entries, seed=seed, fail=fail)


@contextlib.contextmanager
def temporary_store(*, n_models: int = 3, seed: int = 0, n_failures: int = 0) -> Iterator[Store]:
    """Make a store in a temporary folder that goes away again.

    Parameters
    ----------
    n_models, seed, n_failures
        See :func:`make_store`.

    Yields
    ------
    Store
        Opened.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield make_store(folder, n_models=n_models, seed=seed, n_failures=n_failures)
