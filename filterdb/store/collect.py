"""The tables an extraction commits: what is in force, and what was staged, in plan order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from filterdb.store.layout import EXTRACTED_TABLES
from filterdb.store.manifest import Manifest, current_manifest
from filterdb.store.parquet import read_table, rows_to_table, stack
from filterdb.store.schema import FAILURES, TABLES
from filterdb.store.shards import place_layers
from filterdb.store.staging import Stage, read_stage

if TYPE_CHECKING:
    import pyarrow as pa

    from filterdb.store.plan import Plan
    from filterdb.types import ModelId


def collect_tables(store_path: Path, plan: Plan) -> dict[str, pa.Table]:
    """Put together the extracted tables for the next commit.

    Parameters
    ----------
    store_path
        A store whose lock this job holds.
    plan
        The plan being extracted. Models of it that are neither committed nor staged are left out.

    Returns
    -------
    dict
        models, layers, layer_states, skipped and failures, rows in plan order; ``duplicate_of``
        is computed over all of them.
    """
    manifest = current_manifest(store_path)
    committed = {name: _committed(store_path, manifest, name) for name in EXTRACTED_TABLES}
    in_store = set(committed["models"].column("model_id").to_pylist())
    found = {
        model_id: read_stage(store_path, model_id, extraction=manifest.extractions + 1)
        for model_id in plan.models
        if model_id not in in_store
    }
    stages = {model_id: stage for model_id, stage in found.items() if stage is not None}
    pieces: dict[str, list[pa.Table]] = {name: [committed[name]] for name in EXTRACTED_TABLES}
    for stage in stages.values():
        for name in ("models", "layer_states", "skipped") if stage.ok else ():
            pieces[name].append(stage.table(name))
    pieces["layers"].extend(_placed(plan, stages))
    pieces["failures"] = [_failures(committed["failures"], stages, in_store)]
    tables = {name: stack(TABLES[name], pieces[name]) for name in EXTRACTED_TABLES}
    order = {model_id: rank for rank, model_id in enumerate(plan.models)}
    for name in ("models", "layers", "skipped", "failures"):
        tables[name] = _sorted_by(tables[name], "model_id", order)
    tables["layers"] = mark_duplicates(tables["layers"])
    uids = tables["layers"].column("layer_uid").to_pylist()
    ranks = {uid: rank for rank, uid in enumerate(uids)}
    tables["layer_states"] = _sorted_by(tables["layer_states"], "layer_uid", ranks)
    return tables


def _committed(store_path: Path, manifest: Manifest, name: str) -> pa.Table:
    row = manifest.tables.get(name)
    if row is None:
        return TABLES[name].arrow.empty_table()
    return read_table(store_path / row.path)


def _placed(plan: Plan, stages: dict[ModelId, Stage]) -> list[pa.Table]:
    placed: list[pa.Table] = []
    for number in range(len(plan.shards)):
        members = [stages[m] for m in plan.members(number) if m in stages and stages[m].ok]
        placed.extend(place_layers([s.table("layers") for s in members], number))
    return placed


def _failures(
    committed: pa.Table, stages: dict[ModelId, Stage], in_store: set[ModelId]
) -> pa.Table:
    """Failures in force, those tried again replaced by what came of it."""
    rows = {row["model_id"]: row for row in committed.to_pylist()}
    for model_id, stage in stages.items():
        before = rows.pop(model_id, None)
        if not stage.ok:
            row = stage.table("failures").to_pylist()[0]
            row["attempts"] += before["attempts"] if before else 0
            rows[model_id] = row
    left = [row for model_id, row in rows.items() if model_id not in in_store]
    return rows_to_table(FAILURES, left)


def _sorted_by(table: pa.Table, column: str, ranks: dict[str, int]) -> pa.Table:
    """Sort rows by the rank of a column's value; equal ranks keep their order, unknown go last."""
    last = len(ranks)
    order = np.array([ranks.get(v, last) for v in table.column(column).to_pylist()], dtype=np.int64)
    if np.all(order[:-1] <= order[1:]):
        return table
    return table.take(np.argsort(order, kind="stable"))


def mark_duplicates(layers: pa.Table) -> pa.Table:
    """Fill ``duplicate_of``.

    Parameters
    ----------
    layers
        All rows of `layers` in plan order.

    Returns
    -------
    pyarrow.Table
        A layer whose weights an earlier model holds too names the first layer that held them.
    """
    import pyarrow as pa

    first: dict[str, tuple[str, str]] = {}
    marks: list[str | None] = []
    columns = (layers.column(c).to_pylist() for c in ("tensor_sha256", "model_id", "layer_uid"))
    for digest, model_id, uid in zip(*columns, strict=True):
        owner, original = first.setdefault(digest, (model_id, uid))
        marks.append(None if owner == model_id else original)
    index = layers.schema.get_field_index("duplicate_of")
    return layers.set_column(index, layers.schema.field(index), pa.array(marks, pa.string()))
