"""Models staged alone under ``_wip``, and the shards made of them.

A contiguous data set cannot grow, so a model's filters wait in plain files until every model of
its shard is there. A stage is one folder, put in place by one rename; ``done.json`` inside names
its files and their hashes. Readers of the store never look here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.errors import LayerError, StoreError
from filterdb.files import disk_errors, file_sha256, make_folder, sync_folder, write_bytes_durably
from filterdb.store.layout import WIP_FOLDER, WIP_TEMPORARY
from filterdb.store.manifest import current_manifest
from filterdb.store.parquet import read_table, rows_to_table, write_table
from filterdb.store.schema import FAILURES, LAYER_STATES, LAYERS, MODELS, SKIPPED, TableSchema
from filterdb.store.staged import (
    RawFiles,
    StagedLayer,
    StagedModel,
    check_layers,
    raw_file,
    readable,
    write_layer,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from filterdb.types import ModelId

__all__ = [
    "DONE_FILE",
    "Stage",
    "StagedLayer",
    "StagedModel",
    "next_extraction",
    "raw_file",
    "read_stage",
    "stage_model",
    "stage_path",
]

DONE_FILE = "done.json"


@dataclass(frozen=True)
class Stage:
    """What was staged of one model, without its filters.

    Parameters
    ----------
    model_id
        The model.
    path
        Its folder under ``_wip``.
    key
        As given to :func:`stage_model`.
    ok
        False where the model failed.
    digest
        Hash over all files of the stage.
    n_bytes
        Size of its filters.
    """

    model_id: ModelId
    path: Path
    key: str
    ok: bool
    digest: str
    n_bytes: int

    def table(self, name: str) -> pa.Table:
        """Read one staged table: models, layers, layer_states, skipped or failures.

        Parameters
        ----------
        name
            Table name.

        Returns
        -------
        pyarrow.Table
            Rows of this model.
        """
        return read_table(self.path / f"{name}.parquet")


def stage_path(store_path: Path, model_id: ModelId) -> Path:
    """Return the folder a model is staged in.

    Parameters
    ----------
    store_path
        The store's folder.
    model_id
        The model.

    Returns
    -------
    Path
        ``_wip/<model_id>``.

    Raises
    ------
    StoreError
        The id is not a slug and could name another folder.
    """
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    if not model_id or model_id.startswith(".") or not set(model_id) <= allowed:
        raise StoreError(f"model id {model_id!r} is not a slug of a-z, 0-9, '.', '_' and '-'")
    return store_path / WIP_FOLDER / model_id


def stage_model(store_path: Path, model_id: ModelId, record: StagedModel) -> Stage:
    """Write a model's stage; it is there whole or not at all.

    Parameters
    ----------
    store_path
        A store whose lock this job holds.
    model_id
        The model.
    record
        What was read of it, or how it failed. Errors raised by its layers pass through, and
        leave nothing behind.

    Returns
    -------
    Stage
        What now lies under ``_wip``.

    Raises
    ------
    LayerError
        A row breaks the schema, or weights do not fit their row.
    StoreError
        The record is neither a model nor a failure, or both; the id is no slug.
    PipelineError
        The disk refused.
    """
    if (record.model is None) == (record.failure is None):
        raise StoreError(f"stage of {model_id}: either a model or a failure, not both or neither")
    final = stage_path(store_path, model_id)
    work = final.with_name(f"{WIP_TEMPORARY}{model_id}-{os.getpid()}")
    if work.exists():
        shutil.rmtree(work)
    make_folder(work)
    try:
        _write_stage(work, record, target=next_extraction(store_path))
        with disk_errors(final):
            sync_folder(work)
            if final.exists():
                shutil.rmtree(final)
            work.rename(final)
            sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    stage = read_stage(store_path, model_id)
    if stage is None:
        raise StoreError(f"the stage of {model_id} vanished from {final} while it was written")
    return stage


def next_extraction(store_path: Path) -> int:
    """Return the number of the extraction whose commit comes next; stages are made for one.

    Parameters
    ----------
    store_path
        The store's folder.

    Returns
    -------
    int
        From 1.
    """
    return current_manifest(store_path).extractions + 1


def read_stage(
    store_path: Path,
    model_id: ModelId,
    *,
    key: str | None = None,
    extraction: int | None = None,
) -> Stage | None:
    """Return the stage of a model for the commit that comes next.

    Parameters
    ----------
    store_path
        The store's folder.
    model_id
        The model.
    key
        Where given, a stage with another key does not count.
    extraction
        As :func:`next_extraction` returns it, to ask only once for many models.

    Returns
    -------
    Stage or None
        None where the model is not staged, was staged for a commit that has happened since, or
        under another key.
    """
    path = stage_path(store_path, model_id)
    try:
        content = (path / DONE_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    done = json.loads(content)
    if done["extraction"] != (extraction or next_extraction(store_path)):
        return None
    if key is not None and done["key"] != key:
        return None
    return Stage(
        model_id,
        path,
        done["key"],
        done["ok"],
        hashlib.sha256(content).hexdigest(),
        sum(size for name, (size, _) in done["files"].items() if name.endswith(".raw")),
    )


def _write_stage(work: Path, record: StagedModel, *, target: int) -> None:
    raw = RawFiles(work)
    layers: list[Mapping[str, object]] = []
    states: list[Mapping[str, object]] = []
    try:
        for layer in record.layers:
            layers.append(write_layer(raw, layer))
            states.extend(layer.states)
        listing = raw.close()
    finally:
        raw.abandon()
    check_layers(layers)
    tables: list[tuple[TableSchema, Sequence[Mapping[str, object]]]]
    if record.model is None or record.failure is not None:
        tables = [(FAILURES, [readable(record.failure or {})])]
    else:
        tables = [(MODELS, [record.model]), (LAYERS, layers), (LAYER_STATES, states)]
        tables.append((SKIPPED, record.skipped))
    for schema, rows in tables:
        path = work / f"{schema.name}.parquet"
        try:
            table = rows_to_table(schema, rows)
        except StoreError as error:  # the model's fault, so it becomes the model's failure
            raise LayerError(error.message) from error
        write_table(path, table)
        listing[path.name] = (path.stat().st_size, file_sha256(path))
    done = {
        "ok": record.failure is None,
        "key": record.key,
        "extraction": target,
        "files": dict(sorted(listing.items())),
    }
    write_bytes_durably(work / DONE_FILE, json.dumps(done, indent=1).encode())
