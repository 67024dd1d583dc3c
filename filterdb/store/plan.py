"""Which model goes in which shard: decided from the catalogue alone, before anything is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from filterdb.errors import StoreError

if TYPE_CHECKING:
    from filterdb.catalog.model import Entry
    from filterdb.types import ModelId

PLAN_FORMAT = "filterdb-plan"
PLAN_VERSION = 1
#: Shards are filled up to this many bytes of model files.
SHARD_BYTES = 256 * 1024 * 1024
#: Taken for an entry whose size the catalogue does not state.
DEFAULT_MODEL_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Plan:
    """Models in order, grouped into shards.

    Parameters
    ----------
    shards
        Per shard, by number, the ids of its models. An id may stand in several shards: a model
        that failed when its shard was closed and was tried again later. Its last place counts.
    shard_bytes
        Size a shard is filled up to, in bytes of model files.
    """

    shards: tuple[tuple[ModelId, ...], ...] = ()
    shard_bytes: int = field(default=SHARD_BYTES)

    @cached_property
    def shard_of(self) -> dict[ModelId, int]:
        """Shard number of each model, keyed in plan order."""
        last = {m: number for number, models in enumerate(self.shards) for m in models}
        return {
            m: number
            for number, models in enumerate(self.shards)
            for m in models
            if last[m] == number
        }

    @property
    def models(self) -> tuple[ModelId, ...]:
        """Every model once, in plan order: by shard, then by place in the catalogue."""
        return tuple(self.shard_of)

    def members(self, number: int) -> tuple[ModelId, ...]:
        """Return the models whose filters stand in shard `number`.

        Parameters
        ----------
        number
            Shard number.

        Returns
        -------
        tuple of str
            In the order of their rows.
        """
        return tuple(m for m in self.shards[number] if self.shard_of[m] == number)

    @property
    def sha256(self) -> str:
        """Hash of :meth:`to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the plan as canonical JSON, the content of ``plan.json``.

        Returns
        -------
        str
            One shard a line.
        """
        lines = ",\n".join(f"  {json.dumps(list(models))}" for models in self.shards)
        body = f"[\n{lines}\n ]" if lines else "[]"
        return (
            f'{{"format": "{PLAN_FORMAT}", "version": {PLAN_VERSION}, '
            f'"shard_bytes": {self.shard_bytes},\n "shards": {body}}}\n'
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what :meth:`to_json` wrote.

        Parameters
        ----------
        text
            Content of ``plan.json``.

        Returns
        -------
        Plan
            The plan.

        Raises
        ------
        StoreError
            Not a plan, or of another version.
        """
        try:
            record = json.loads(text)
            if (record["format"], record["version"]) != (PLAN_FORMAT, PLAN_VERSION):
                raise ValueError(f"format {record['format']} version {record['version']}")
            shards = tuple(tuple(str(m) for m in models) for models in record["shards"])
            return cls(shards, int(record["shard_bytes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"plan.json is not a {PLAN_FORMAT} of version {PLAN_VERSION}: {error}"
            ) from error


def make_plan(entries: Iterable[Entry], *, shard_bytes: int = SHARD_BYTES) -> Plan:
    """Plan a new store.

    Parameters
    ----------
    entries
        Catalogue entries; their order is the order of the store.
    shard_bytes
        Size a shard is filled up to.

    Returns
    -------
    Plan
        Consecutive entries share a shard.
    """
    return extend(Plan(shard_bytes=shard_bytes), entries)


def extend(
    plan: Plan,
    entries: Iterable[Entry],
    *,
    retry: Collection[ModelId] = (),
    closed: Collection[int] = (),
) -> Plan:
    """Append what the plan does not hold yet; nothing in it moves.

    Parameters
    ----------
    plan
        The plan so far.
    entries
        Catalogue entries, old and new; old ones are left where they are.
    retry
        Models to be tried again. Those whose shard is closed get a place in a new shard.
    closed
        Numbers of the shards that can take no more filters.

    Returns
    -------
    Plan
        `plan` itself where there is nothing to append.
    """
    known = plan.shard_of
    again = set(retry)
    fresh: list[Entry] = []
    seen: set[ModelId] = set()
    for entry in entries:
        moved = entry.id in again and known.get(entry.id) in closed
        if entry.id not in seen and (moved or entry.id not in known):
            fresh.append(entry)
        seen.add(entry.id)
    if not fresh:
        return plan
    return replace(plan, shards=plan.shards + _partition(fresh, plan.shard_bytes))


def _partition(entries: Sequence[Entry], shard_bytes: int) -> tuple[tuple[ModelId, ...], ...]:
    shards: list[list[ModelId]] = []
    size = 0
    for entry in entries:
        bytes_ = DEFAULT_MODEL_BYTES if entry.bytes is None else entry.bytes
        if not shards or size + bytes_ > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry.id)
        size += bytes_
    return tuple(tuple(s) for s in shards)
