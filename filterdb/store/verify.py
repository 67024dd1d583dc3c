"""Check that every file of a store is the one that was committed, and that they fit together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import CorruptShardError, StoreError
from filterdb.files import file_sha256
from filterdb.layers.hashing import tensor_sha256
from filterdb.store.filters import map_dataset
from filterdb.store.layout import STORE_FILE, parse_dataset, shard_name
from filterdb.store.manifest import Manifest, ManifestRow, read_manifest, read_plan, read_settings
from filterdb.store.parquet import check_table, read_table
from filterdb.store.schema import LAYERS, TABLES

if TYPE_CHECKING:
    from filterdb.types import AnyArray, ProgressHook


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a store.

    Parameters
    ----------
    path
        The file, relative to the store.
    what
        What was compared.
    expected, got
        What the store says it should be, and what it is.
    """

    path: str
    what: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}: expected {self.expected}, got {self.got}"


def verify(path: str | os.PathLike[str], progress: ProgressHook | None = None) -> list[Problem]:
    """Check a store against its manifest and against itself.

    Parameters
    ----------
    path
        The store's folder.
    progress
        Called after each file.

    Returns
    -------
    list of Problem
        Empty where every file has its size and hash, every table its schema and rows, every layer
        its own rows in a shard, and those rows the hash the layer table states.

    Raises
    ------
    StoreNotFoundError, FormatVersionError, IncompleteStoreError
        There is no committed store to check.
    """
    folder = Path(path)
    read_settings(folder)
    try:
        manifest = read_manifest(folder)
    except CorruptShardError as error:
        return [Problem("manifest.parquet", "manifest", "a readable manifest", error.message)]
    problems = list(_settings_problems(folder, manifest))
    tables: dict[str, Any] = {}
    layers: dict[int, list[dict[str, Any]]] = {}
    ordered = sorted(manifest.rows, key=lambda row: row.kind, reverse=True)  # tables, then filters
    for done, row in enumerate(ordered):
        found = list(_file_problems(folder, row))
        if not found and row.kind == "table" and row.name != "plan":
            found = list(_table_problems(folder, row, tables))
            if row.name == "layers" and "layers" in tables:
                layers = _by_shard(tables["layers"])
        elif not found and row.kind == "filters":
            number = int(Path(row.path).stem)
            if "layers" in tables:  # a damaged layer table is not the shards' fault
                found = list(_shard_problems(folder, row, layers.get(number, [])))
        elif not found:
            found = list(_plan_problems(folder, manifest, row))
        problems.extend(found)
        if progress is not None:
            progress(row.path, done + 1, len(ordered))
    problems.extend(_reference_problems(manifest, tables, set(layers)))
    return problems


def _settings_problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    digest = file_sha256(folder / STORE_FILE)
    if digest != manifest.settings_sha256:
        yield Problem(STORE_FILE, "sha256", manifest.settings_sha256, digest)


def _file_problems(folder: Path, row: ManifestRow) -> Iterator[Problem]:
    path = folder / row.path
    try:
        size = path.stat().st_size
        if size != row.bytes:
            yield Problem(row.path, "bytes", f"{row.bytes:,}", f"{size:,}")
            return
        digest = file_sha256(path)
    except OSError as error:
        yield Problem(row.path, "file", "a readable file", (error.strerror or str(error)).lower())
        return
    if digest != row.sha256:
        yield Problem(row.path, "sha256", row.sha256, digest)


def _table_problems(folder: Path, row: ManifestRow, tables: dict[str, Any]) -> Iterator[Problem]:
    schema = TABLES.get(row.name)
    if schema is None:
        yield Problem(row.path, "table", f"one of {', '.join(TABLES)}", row.name)
        return
    try:
        table = check_table(schema, read_table(folder / row.path))
    except StoreError as error:
        yield Problem(row.path, "schema", f"the columns of {row.name}", error.message)
        return
    if table.num_rows != row.rows:
        yield Problem(row.path, "rows", f"{row.rows:,}", f"{table.num_rows:,}")
    keys = list(zip(*(table.column(k).to_pylist() for k in schema.key), strict=True))
    if len(set(keys)) != len(keys) and row.name in ("models", "layers", "layer_states"):
        repeated = next(k for k in keys if keys.count(k) > 1)
        yield Problem(row.path, "key", f"{', '.join(schema.key)} unique", f"{repeated} twice")
    tables[row.name] = table


def _plan_problems(folder: Path, manifest: Manifest, row: ManifestRow) -> Iterator[Problem]:
    try:
        plan = read_plan(folder, manifest)
    except StoreError as error:
        yield Problem(row.path, "plan", "a readable plan", error.message)
        return
    if plan is not None and len(plan.models) != row.rows:
        yield Problem(row.path, "models", f"{row.rows:,}", f"{len(plan.models):,}")


def _by_shard(layers: Any) -> dict[int, list[dict[str, Any]]]:
    columns = [c.name for c in LAYERS.columns]
    shards: dict[int, list[dict[str, Any]]] = {}
    for row in layers.select(columns).to_pylist():
        if row["shard"] is not None:
            shards.setdefault(row["shard"], []).append(row)
    return shards


def _shard_problems(
    folder: Path, row: ManifestRow, layers: list[dict[str, Any]]
) -> Iterator[Problem]:
    """Check the rows of layers in one shard: no gap, no overlap, their own bytes."""
    own: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        if layer["shared_with"] is None:
            own.setdefault(layer["dataset"], []).append(layer)
    total = 0
    for dataset, members in sorted(own.items()):
        try:
            values = map_dataset(folder / row.path, dataset)
        except CorruptShardError as error:
            yield Problem(row.path, dataset, "a readable data set", error.message)
            continue
        kernel, dtype = parse_dataset(dataset)
        width = (int(np.prod(kernel)), dtype)
        if (values.shape[1:], values.dtype) != ((width[0],), dtype):
            yield Problem(row.path, dataset, f"{width}", f"{values.shape[1:]} {values.dtype}")
            continue
        end = 0
        for layer in sorted(members, key=lambda r: int(r["start"])):
            where = f"rows of {layer['layer_uid']} in {dataset}"
            if layer["start"] != end or layer["stop"] - layer["start"] != layer["n_filters"]:
                got = f"{layer['start']} to {layer['stop']}"
                yield Problem(row.path, where, f"{end} to {end + layer['n_filters']}", got)
            end = layer["stop"]
            digest = _layer_sha256(values[layer["start"] : end], layer)
            if digest != layer["tensor_sha256"]:
                yield Problem(row.path, f"sha256 of {where}", layer["tensor_sha256"], digest)
        if end != values.shape[0]:
            yield Problem(row.path, f"rows in {dataset}", f"{end:,}", f"{values.shape[0]:,}")
        total += values.shape[0]
    if total != row.rows:
        yield Problem(row.path, "filters", f"{row.rows:,}", f"{total:,}")


def _layer_sha256(values: AnyArray, layer: Mapping[str, Any]) -> str:
    """Return tensor_sha256 of a layer as its shard has it."""
    kernel, _ = parse_dataset(layer["dataset"])
    shape = (layer["out_channels"], layer["in_channels"] // layer["groups"], *kernel)
    return tensor_sha256(values, shape=shape)


def _reference_problems(
    manifest: Manifest, tables: dict[str, Any], shards: set[int]
) -> Iterator[Problem]:
    """Check that tables name only models, layers and shards there are."""
    for number in sorted(shards - set(manifest.shards)):
        yield Problem(shard_name(number), "shard of layers", "a row in the manifest", "none")
    for name, column, home in (
        ("layers", "model_id", "models"),
        ("skipped", "model_id", "models"),
        ("layer_states", "layer_uid", "layers"),
        ("quality", "layer_uid", "layers"),
        ("findings", "layer_uid", "layers"),
    ):
        if name not in tables or home not in tables:
            continue
        known = set(tables[home].column(column).to_pylist())
        for value in sorted(set(tables[name].column(column).to_pylist()) - known)[:3]:
            path = manifest.tables[name].path
            yield Problem(path, f"{column} {value}", f"a row in {home}", "none")
