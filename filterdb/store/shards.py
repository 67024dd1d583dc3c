"""Shards: where each layer's rows lie, and the HDF5 file with exactly those rows."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import StoreError
from filterdb.files import (
    disk_errors,
    file_sha256,
    make_folder,
    sync_file,
    sync_folder,
    write_bytes_durably,
)
from filterdb.store.layout import ALIGNMENT, BLOCK_BYTES, WIP_FOLDER, WIP_SHARDS, parse_dataset
from filterdb.store.schema import LAYERS
from filterdb.store.staging import Stage, next_extraction, raw_file, read_stage

if TYPE_CHECKING:
    import pyarrow as pa

    from filterdb.types import ModelId

SHARD_FORMAT = "filterdb-shard"
SHARD_VERSION = 1
_PLACED_BY = ("layer_uid", "dataset", "n_filters", "shared_with")


@dataclass(frozen=True)
class AssembledShard:
    """A finished shard waiting for its commit.

    Parameters
    ----------
    number
        Shard number.
    path
        The file under ``_wip``.
    rows
        Filters in it, all data sets together.
    bytes, sha256
        Of the file.
    """

    number: int
    path: Path
    rows: int
    bytes: int
    sha256: str


def assembled_path(store_path: Path, number: int) -> Path:
    """Return where shard `number` waits for its commit.

    Parameters
    ----------
    store_path
        The store's folder.
    number
        Shard number.

    Returns
    -------
    Path
        ``_wip/+shards/NNNNN.h5``.
    """
    return store_path / WIP_FOLDER / WIP_SHARDS / f"{number:05d}.h5"


def place_layers(tables: Sequence[pa.Table], number: int) -> list[pa.Table]:
    """Give every staged layer its rows in a shard.

    Parameters
    ----------
    tables
        Staged `layers` rows, one table per model, in the order of the shard.
    number
        Shard number.

    Returns
    -------
    list of pyarrow.Table
        The same rows with shard, dataset, start and stop. Layers follow one another without gaps
        in each data set; a shared layer has the rows of the layer it shares; a layer that is not
        stored keeps nulls.
    """
    import pyarrow as pa

    ends: dict[str, int] = {}
    placed = []
    for table in tables:
        columns = (table.column(c).to_pylist() for c in _PLACED_BY)
        places: dict[str, tuple[int | None, int | None, int | None]] = {}
        shared: dict[str, str] = {}
        for uid, dataset, n_filters, shared_with in zip(*columns, strict=True):
            places[uid] = (None, None, None)
            if dataset is not None and shared_with is not None:
                shared[uid] = shared_with
            elif dataset is not None:
                start = ends.get(dataset, 0)
                ends[dataset] = start + n_filters
                places[uid] = (number, start, start + n_filters)
        for uid, owner in shared.items():  # staging has checked that the owner is there
            places[uid] = places[owner]
        for i, name in enumerate(("shard", "start", "stop")):
            index = table.column_names.index(name)
            field = LAYERS.arrow.field(name)
            values = pa.array([place[i] for place in places.values()], field.type)
            table = table.set_column(index, field, values)
        placed.append(table)
    return placed


def assemble_shard(
    store_path: Path, number: int, model_ids: Sequence[ModelId]
) -> AssembledShard | None:
    """Write one shard from its staged models: the same stages give the same bytes.

    Parameters
    ----------
    store_path
        A store whose lock this job holds.
    number
        Shard number.
    model_ids
        The members in order, each of them staged. Failed ones contribute nothing.

    Returns
    -------
    AssembledShard or None
        None where no member has a filter to store. A shard already assembled from the same stages
        is returned at once.

    Raises
    ------
    StoreError
        A member is not staged.
    PipelineError
        The disk refused.
    """
    stages = []
    extraction = next_extraction(store_path)
    for model_id in model_ids:
        stage = read_stage(store_path, model_id, extraction=extraction)
        if stage is None:
            raise StoreError(f"shard {number}: model {model_id} is not staged")
        if stage.ok:
            stages.append(stage)
    counts = _count_rows(stages)
    if not counts:
        return None
    path = assembled_path(store_path, number)
    note = path.with_suffix(".json")
    inputs = [[s.model_id, s.digest] for s in stages]
    found = _already(path, note, inputs)
    if found is not None:
        return AssembledShard(number, path, sum(counts.values()), *found)
    make_folder(path.parent)
    note.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    temporary = path.with_suffix(".tmp")
    with disk_errors(path, needed=sum(s.n_bytes for s in stages)):
        try:
            offsets = make_structure(temporary, number, counts)
            _fill(temporary, offsets, stages)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    size, digest = path.stat().st_size, file_sha256(path)
    write_bytes_durably(
        note, json.dumps({"inputs": inputs, "bytes": size, "sha256": digest}).encode()
    )
    return AssembledShard(number, path, sum(counts.values()), size, digest)


def _already(path: Path, note: Path, inputs: list[list[str]]) -> tuple[int, str] | None:
    try:
        record = json.loads(note.read_bytes())
        if record["inputs"] == inputs and path.stat().st_size == record["bytes"]:
            return int(record["bytes"]), str(record["sha256"])
    except (FileNotFoundError, ValueError, KeyError):
        pass
    return None


def _count_rows(stages: Sequence[Stage]) -> dict[str, int]:
    """Rows per data set, data sets in order of name."""
    counts: dict[str, int] = {}
    for stage in stages:
        table = stage.table("layers")
        columns = (table.column(c).to_pylist() for c in ("dataset", "shared_with", "n_filters"))
        for dataset, shared_with, n_filters in zip(*columns, strict=True):
            if dataset is not None and shared_with is None:
                counts[dataset] = counts.get(dataset, 0) + n_filters
    return dict(sorted((k, n) for k, n in counts.items() if n))


def make_structure(path: Path, number: int, counts: dict[str, int]) -> dict[str, int]:
    """Make the HDF5 file of a shard, all its data sets allocated but not written.

    The filters are then written to their offsets as plain bytes: so a full disk is an ordinary
    error with an ordinary name, wherever it happens.

    Parameters
    ----------
    path
        The file to write.
    number
        Shard number, kept as an attribute.
    counts
        Rows per data set name.

    Returns
    -------
    dict
        Byte offset of each data set.

    Raises
    ------
    OSError
        The disk refused.
    """
    import h5py

    options = {"libver": "earliest", "alignment_threshold": 1, "alignment_interval": ALIGNMENT}
    try:
        with h5py.File(path, "w", **options) as file:
            file.attrs.create("format", np.bytes_(SHARD_FORMAT))
            file.attrs.create("version", SHARD_VERSION, dtype="<i4")
            file.attrs.create("shard", number, dtype="<i4")
            return {name: _allocate(file, name, rows) for name, rows in counts.items()}
    except RuntimeError as error:  # how h5py reports a failed flush
        raise OSError(errno.EIO, str(error)) from error


def _allocate(file: Any, name: str, rows: int) -> int:
    from h5py import h5d, h5p, h5s, h5t

    kernel, dtype = parse_dataset(name)
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_layout(h5d.CONTIGUOUS)
    creation.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # or the same filters would give other bytes tomorrow
    links = h5p.create(h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    dataset = h5d.create(
        file.id,
        name.encode(),
        h5t.py_create(dtype.newbyteorder("<")),
        h5s.create_simple((rows, math.prod(kernel))),
        dcpl=creation,
        lcpl=links,
    )
    return int(dataset.get_offset())


def _fill(path: Path, offsets: dict[str, int], stages: Sequence[Stage]) -> None:
    """Copy the staged filters to where they belong."""
    with path.open("r+b") as shard:
        for name, offset in offsets.items():
            shard.seek(offset)
            for stage in stages:
                raw = stage.path / raw_file(name)
                if raw.exists():
                    with raw.open("rb") as source:
                        shutil.copyfileobj(source, shard, BLOCK_BYTES)
        sync_file(shard)
