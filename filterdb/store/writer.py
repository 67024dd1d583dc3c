"""Creating a store, and the one way anything gets into it: an atomic commit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.errors import StoreError
from filterdb.files import disk_errors, file_sha256, make_folder, sync_folder, write_bytes_durably
from filterdb.store.layout import (
    EXTRACTED_TABLES,
    FILTERS_FOLDER,
    STORE_FILE,
    TABLES_FOLDER,
    WIP_FOLDER,
    WIP_SHARDS,
    plan_name,
    shard_name,
    table_name,
)
from filterdb.store.lock import locked
from filterdb.store.manifest import (
    Manifest,
    ManifestRow,
    current_manifest,
    read_plan,
    read_settings,
    write_manifest,
)
from filterdb.store.parquet import check_table, read_table, table_bytes
from filterdb.store.plan import SHARD_BYTES, Plan, extend, make_plan
from filterdb.store.schema import FORMAT_NAME, FORMAT_VERSION, TABLES
from filterdb.store.staging import DONE_FILE

if TYPE_CHECKING:
    import pyarrow as pa

    from filterdb.catalog.model import Entry
    from filterdb.store.shards import AssembledShard
    from filterdb.types import ModelId

__all__ = ["clean", "commit", "create", "locked", "next_plan", "pending"]


def create(path: str | os.PathLike[str], *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Make a folder a store, once; an existing store is only checked.

    Parameters
    ----------
    path
        A folder whose lock this job holds (see :func:`locked`).
    shard_bytes
        Size shards are filled up to; never changes afterwards.

    Returns
    -------
    Path
        The store's folder.

    Raises
    ------
    FormatVersionError
        The folder holds a store of another version.
    PipelineError
        The disk refused.
    """
    folder = Path(path)
    make_folder(folder)
    if (folder / STORE_FILE).exists():
        read_settings(folder)
    else:
        settings = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "shard_bytes": shard_bytes}
        write_bytes_durably(folder / STORE_FILE, json.dumps(settings).encode() + b"\n")
    for name in (TABLES_FOLDER, FILTERS_FOLDER, WIP_FOLDER):
        make_folder(folder / name)
    clean(folder)
    return folder


def next_plan(path: str | os.PathLike[str], entries: Iterable[Entry], *, retry: bool) -> Plan:
    """Return the plan the next extraction of these entries works to.

    Parameters
    ----------
    path
        A store.
    entries
        Catalogue entries, in order.
    retry
        Also try again the models that failed for good.

    Returns
    -------
    Plan
        The committed plan with what is new appended; see :func:`filterdb.store.plan.extend`.
        Use :func:`pending` for the models it leaves to do.
    """
    folder = Path(path)
    manifest = current_manifest(folder)
    plan = read_plan(folder, manifest)
    if plan is None:
        return make_plan(entries, shard_bytes=_shard_bytes(folder))
    done, again = _history(folder, manifest, retry=retry)
    closed = {plan.shard_of[m] for m in done if m in plan.shard_of}
    return extend(plan, entries, retry=again, closed=closed)


def pending(
    path: str | os.PathLike[str], plan: Plan, models: Collection[ModelId], *, retry: bool
) -> tuple[ModelId, ...]:
    """Return the models an extraction has to stage, in plan order.

    Parameters
    ----------
    path
        A store.
    plan
        As :func:`next_plan` returned it.
    models
        Ids of the catalogue's selected entries.
    retry
        As given to :func:`next_plan`.

    Returns
    -------
    tuple of str
        Those in neither `models` nor, unless they are to be tried again, `failures`. Some may be
        staged already: :func:`filterdb.store.staging.read_stage` tells.
    """
    folder = Path(path)
    manifest = current_manifest(folder)
    done, again = _history(folder, manifest, retry=retry)
    failed = _column(folder, manifest, "failures", "model_id")
    finished = set(done) | (set(failed) - set(again))
    wanted = set(models)
    return tuple(m for m in plan.models if m in wanted and m not in finished)


def _shard_bytes(folder: Path) -> int:
    value = read_settings(folder).get("shard_bytes", SHARD_BYTES)
    if not isinstance(value, int) or value <= 0:
        raise StoreError(f"{folder / STORE_FILE}: shard_bytes should be a number, is {value!r}")
    return value


def _history(
    folder: Path, manifest: Manifest, *, retry: bool
) -> tuple[list[ModelId], list[ModelId]]:
    """Models that are in the store, and failed ones to be tried again."""
    done = _column(folder, manifest, "models", "model_id")
    failed = _column(folder, manifest, "failures", "model_id")
    retryable = _column(folder, manifest, "failures", "retryable")
    return done, [m for m, again in zip(failed, retryable, strict=True) if again or retry]


def _column(folder: Path, manifest: Manifest, table: str, column: str) -> list[ModelId]:
    row = manifest.tables.get(table)
    if row is None:
        return []
    values: list[ModelId] = read_table(folder / row.path, [column]).column(0).to_pylist()
    return values


def commit(
    path: str | os.PathLike[str],
    *,
    tables: Mapping[str, pa.Table],
    shards: Sequence[AssembledShard] = (),
    plan: Plan | None = None,
) -> Manifest:
    """Make new tables and shards part of the store, all or none.

    Until the manifest is renamed, the last step, readers see the store as it was; a process that
    dies anywhere leaves the old store or the new one. Tables that did not change keep their files.
    New filters make what was derived from the old ones stale, so quality, findings, results, bases
    and histograms are dropped unless they are among `tables`.

    Parameters
    ----------
    path
        A store whose lock this job holds.
    tables
        Whole tables by name, replacing those in force.
    shards
        As :func:`filterdb.store.shards.assemble_shard` returned them.
    plan
        The plan, from an extraction; None from an analysis.

    Returns
    -------
    Manifest
        Now in force; the old one where nothing changed.

    Raises
    ------
    StoreError
        A table breaks its schema, or a shard is in the store already.
    PipelineError
        The disk refused; the old store is in force.
    """
    folder = Path(path)
    old = current_manifest(folder)
    generation = old.generation + 1
    rows = {r.path: r for r in old.rows}
    fresh = _fresh_files(old, tables, plan, generation)
    if not fresh and not shards:
        clean(folder, committed=plan is not None)
        return old
    _collect_garbage(folder, old)
    target = folder / TABLES_FOLDER / f"{generation:05d}"
    make_folder(target)
    with disk_errors(target):
        sync_folder(target.parent)
    for row, content in fresh:
        write_bytes_durably(folder / row.path, content)
    replaced = {row.name for row, _ in fresh} | _stale(old, fresh, tables)
    kept = [r for r in rows.values() if r.kind == "filters" or r.name not in replaced]
    moved = [_move_shard(folder, old, shard, generation) for shard in shards]
    manifest = Manifest(
        tuple(kept) + tuple(row for row, _ in fresh) + tuple(moved),
        generation,
        old.extractions + (plan is not None),
        old.plan_sha256 if plan is None else plan.sha256,
        file_sha256(folder / STORE_FILE),
    )
    manifest = replace(manifest, rows=tuple(sorted(manifest.rows, key=lambda r: r.path)))
    write_manifest(folder, manifest)
    clean(folder, committed=plan is not None)
    return manifest


def _fresh_files(
    old: Manifest, tables: Mapping[str, pa.Table], plan: Plan | None, generation: int
) -> list[tuple[ManifestRow, bytes | memoryview]]:
    """Files whose content is not what the old manifest holds under their name."""
    files: list[tuple[str, str, int, bytes | memoryview]] = []
    for name, table in tables.items():
        if name not in TABLES:
            raise StoreError(f"a store has no table {name!r}; there are {', '.join(TABLES)}")
        checked = check_table(TABLES[name], table)
        path = table_name(generation, name)
        files.append((name, path, checked.num_rows, table_bytes(checked)))
    if plan is not None:
        files.append(("plan", plan_name(generation), len(plan.models), plan.to_json().encode()))
    fresh: list[tuple[ManifestRow, bytes | memoryview]] = []
    for name, path, n_rows, content in files:
        digest = hashlib.sha256(content).hexdigest()
        if name in old.tables and old.tables[name].sha256 == digest:
            continue
        row = ManifestRow(path, "table", n_rows, len(content), digest, generation)
        fresh.append((row, content))
    return fresh


def _stale(
    old: Manifest,
    fresh: Sequence[tuple[ManifestRow, bytes | memoryview]],
    tables: Mapping[str, pa.Table],
) -> set[str]:
    """Name the derived tables that no longer follow from what they were derived from."""
    changed = {row.name for row, _ in fresh}
    if not changed & {"models", "layers", "layer_states"}:
        return set()
    return {n for n in old.tables if n not in (*EXTRACTED_TABLES, "plan") and n not in tables}


def _move_shard(folder: Path, old: Manifest, shard: AssembledShard, generation: int) -> ManifestRow:
    if shard.number in old.shards:
        raise StoreError(f"shard {shard.number} of {folder} is closed; a shard is written once")
    final = folder / shard_name(shard.number)
    with disk_errors(final, needed=shard.bytes):
        shard.path.replace(final)
        sync_folder(final.parent)
        size = final.stat().st_size
    if size != shard.bytes:
        raise StoreError(f"{final}: expected {shard.bytes:,} bytes, got {size:,}")
    name = shard_name(shard.number)
    return ManifestRow(name, "filters", shard.rows, size, shard.sha256, generation)


def _collect_garbage(folder: Path, manifest: Manifest) -> None:
    """Remove files no manifest names: left by a job that died, or by older generations.

    Files of the manifest in force stay until the commit after the one that replaces them, for
    readers that opened the store before.
    """
    named = {row.path for row in manifest.rows}
    with disk_errors(folder):
        for top in (TABLES_FOLDER, FILTERS_FOLDER):
            for file in sorted((folder / top).rglob("*"), reverse=True):
                if file.is_dir():
                    with contextlib.suppress(OSError):
                        file.rmdir()
                elif file.relative_to(folder).as_posix() not in named:
                    file.unlink()


def clean(path: str | os.PathLike[str], *, committed: bool = False) -> None:
    """Remove from ``_wip`` what no coming commit can use.

    Parameters
    ----------
    path
        A store whose lock this job holds.
    committed
        True to remove every stage, also those for the commit to come.
    """
    folder = Path(path)
    target = current_manifest(folder).extractions + 1
    wip = folder / WIP_FOLDER
    with disk_errors(wip):
        items = sorted(wip.iterdir()) if wip.is_dir() else []
        usable = {i for i in items if not committed and _is_stage_for(i, target)}
        if usable:
            usable.add(wip / WIP_SHARDS)
        for item in items:
            if item not in usable:
                shutil.rmtree(item) if item.is_dir() else item.unlink()


def _is_stage_for(item: Path, target: int) -> bool:
    if item.name.startswith("+"):
        return False
    try:
        return bool(json.loads((item / DONE_FILE).read_bytes())["extraction"] == target)
    except (OSError, ValueError, KeyError):
        return False
