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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from filterdb.errors import LayerError, StoreError
from filterdb.store.layout import (
    WIP_FOLDER,
    WIP_TEMPORARY,
    dataset_name,
    disk_errors,
    file_sha256,
    fsync_folder,
    is_stored,
    make_folder,
    tensor_sha256,
    write_bytes_durably,
)
from filterdb.store.manifest import current_manifest
from filterdb.store.parquet import read_table, rows_to_table, write_table
from filterdb.store.schema import FAILURES, LAYER_STATES, LAYERS, MODELS, SKIPPED

if TYPE_CHECKING:
    import pyarrow as pa

    from filterdb.types import AnyArray, ModelId

DONE_FILE = "done.json"
#: Element types a shard may hold.
STORED_DTYPES = ("float16", "float32", "float64")
#: Columns of `layers` that staging and commit fill in.
FILLED_COLUMNS = (
    "stored_dtype",
    "shard",
    "dataset",
    "start",
    "stop",
    "tensor_sha256",
    "duplicate_of",
)


@dataclass(frozen=True, kw_only=True)
class StagedLayer:
    """One layer on its way into the store.

    Parameters
    ----------
    row
        Columns of `layers` but those of :data:`FILLED_COLUMNS`, which the store fills in.
    weights
        (out_channels, in_channels / groups, *kernel), canonical, float16, float32 or float64.
        Always given, to be hashed; written only if the kernel is not 1x1 and ``shared_with`` of
        the row is null.
    states
        Rows of `layer_states`.
    """

    row: Mapping[str, object]
    weights: AnyArray
    states: Sequence[Mapping[str, object]] = ()


@dataclass(frozen=True, kw_only=True)
class StagedModel:
    """One model on its way into the store: either read, or failed.

    Parameters
    ----------
    model
        The row of `models`; None for a failure.
    layers
        In file order. May be a generator: each is written and let go before the next is asked for.
    skipped
        Rows of `skipped`.
    failure
        The row of `failures`; None for a model that was read. ``attempts`` counts this run as 1;
        earlier ones are added at the commit.
    key
        Any word that changes when the model would have to be staged again (a hash of its
        catalogue entry).
    """

    model: Mapping[str, object] | None = None
    layers: Iterable[StagedLayer] = ()
    skipped: Sequence[Mapping[str, object]] = ()
    failure: Mapping[str, object] | None = None
    key: str = ""


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
    StoreError
        A row breaks the schema.
    LayerError
        Weights do not fit their row.
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
        _write_stage(work, record, target=current_manifest(store_path).extractions + 1)
        with disk_errors(final):
            fsync_folder(work)
            if final.exists():
                shutil.rmtree(final)
            work.rename(final)
            fsync_folder(final.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    stage = read_stage(store_path, model_id)
    if stage is None:
        raise StoreError(f"the stage of {model_id} vanished from {final} while it was written")
    return stage


def read_stage(store_path: Path, model_id: ModelId, *, key: str | None = None) -> Stage | None:
    """Return the stage of a model for the commit that comes next.

    Parameters
    ----------
    store_path
        The store's folder.
    model_id
        The model.
    key
        Where given, a stage with another key does not count.

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
    if done["extraction"] != current_manifest(store_path).extractions + 1:
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


def raw_file(dataset: str) -> str:
    """Return the name of the staged file that holds filters for one data set.

    Parameters
    ----------
    dataset
        "2d/3x3/float32".

    Returns
    -------
    str
        "2d-3x3-float32.raw": rows in layer order, little-endian.
    """
    return dataset.replace("/", "-") + ".raw"


@dataclass
class _RawFiles:
    """The open files of one stage, one per data set."""

    folder: Path
    files: dict[str, BinaryIO] = field(default_factory=dict)
    hashes: dict[str, hashlib._Hash] = field(default_factory=dict)

    def append(self, dataset: str, values: AnyArray) -> None:
        name = raw_file(dataset)
        with disk_errors(self.folder / name, needed=values.nbytes):
            if name not in self.files:
                self.files[name] = (self.folder / name).open("wb")
                self.hashes[name] = hashlib.sha256()
            little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
            content = little.data.cast("B")
            self.files[name].write(content)
            self.hashes[name].update(content)

    def close(self) -> dict[str, tuple[int, str]]:
        """Make the files durable; return size and hash of each."""
        listing = {}
        for name, file in self.files.items():
            with disk_errors(self.folder / name):
                file.flush()
                os.fsync(file.fileno())
                listing[name] = (file.tell(), self.hashes[name].hexdigest())
        self.abandon()
        return listing

    def abandon(self) -> None:
        for file in self.files.values():
            with disk_errors(self.folder):
                file.close()


def _write_stage(work: Path, record: StagedModel, *, target: int) -> None:
    raw = _RawFiles(work)
    layers: list[Mapping[str, object]] = []
    states: list[Mapping[str, object]] = []
    try:
        for layer in record.layers:
            layers.append(_write_layer(raw, layer))
            states.extend(layer.states)
        listing = raw.close()
    finally:
        raw.abandon()
    if record.model is None or record.failure is not None:
        tables = [(FAILURES, [record.failure or {}])]
    else:
        tables = [(MODELS, [record.model]), (LAYERS, layers), (LAYER_STATES, states)]
        tables.append((SKIPPED, list(record.skipped)))
    for schema, rows in tables:
        path = work / f"{schema.name}.parquet"
        write_table(path, rows_to_table(schema, rows))
        listing[path.name] = (path.stat().st_size, file_sha256(path))
    done = {
        "ok": record.failure is None,
        "key": record.key,
        "extraction": target,
        "files": dict(sorted(listing.items())),
    }
    write_bytes_durably(work / DONE_FILE, json.dumps(done, indent=1).encode())


def _write_layer(raw: _RawFiles, layer: StagedLayer) -> dict[str, object]:
    row, weights = layer.row, layer.weights
    uid = row.get("layer_uid")
    dtype = weights.dtype.name
    expected = (row.get("out_channels"), weights.shape[1] if weights.ndim > 1 else None)
    if weights.ndim < 3 or weights.shape[:2] != expected or dtype not in STORED_DTYPES:
        raise LayerError(
            f"layer {uid}: expected weights of (out_channels={row.get('out_channels')}, "
            f"in_channels / groups, kernel) as {', '.join(STORED_DTYPES)}; "
            f"got {weights.shape} {dtype}"
        )
    kernel = weights.shape[2:]
    filters = weights.reshape(weights.shape[0] * weights.shape[1], -1)
    if row.get("n_filters") != filters.shape[0]:
        raise LayerError(
            f"layer {uid}: the row says {row.get('n_filters')} filters, "
            f"the weights {weights.shape} hold {filters.shape[0]}"
        )
    filled: dict[str, object] = {**row, "tensor_sha256": tensor_sha256(weights)}
    if is_stored(kernel):
        dataset = dataset_name(kernel, dtype)
        filled.update(stored_dtype=dtype, dataset=dataset)
        if row.get("shared_with") is None:
            raw.append(dataset, filters)
    return filled
