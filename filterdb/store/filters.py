"""Filters of a store: memory-mapped views, one layer at a time, or one dask array."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import CorruptShardError
from filterdb.store.layout import parse_dataset, shard_name
from filterdb.store.parquet import VERIFY_TIP

if TYPE_CHECKING:
    import pyarrow as pa

    from filterdb.store.manifest import Manifest
    from filterdb.types import AnyArray, ModelId

#: Layers are put together into dask chunks of up to this many bytes; a larger layer is one chunk.
CHUNK_BYTES = 64 * 1024 * 1024
#: Rows of the layer table turned into dictionaries at once.
ROWS_AT_ONCE = 256
RANGE_COLUMNS = ("shard", "dataset", "start", "stop")


@dataclass(frozen=True)
class Block:
    """The filters of one layer.

    Parameters
    ----------
    values
        (n_filters, k²), read-only view of the file.
    layer
        The row of `layers`, and the columns of its model (those that clash prefixed ``model_``).
    """

    values: AnyArray
    layer: dict[str, Any]

    def __repr__(self) -> str:
        n, k2 = self.values.shape
        return f"<filterdb.Block {self.layer['layer_uid']}  ({n:,}, {k2}) {self.values.dtype}>"


@dataclass(frozen=True)
class FilterRange:
    """Rows of one data set of one shard; all a task needs beside the path.

    Parameters
    ----------
    shard
        Shard number.
    dataset
        "2d/3x3/float32".
    start, stop
        Half-open range of rows.
    """

    shard: int
    dataset: str
    start: int
    stop: int


def map_dataset(shard_path: Path, dataset: str, n_bytes: int | None = None) -> AnyArray:
    """Map one data set of a shard.

    Parameters
    ----------
    shard_path
        The HDF5 file.
    dataset
        Name of the data set.
    n_bytes
        Size the manifest states; None to skip this check.

    Returns
    -------
    ndarray
        (n, k²), read-only. A view of the file where the data set is contiguous, as filterdb
        writes it; else a copy.

    Raises
    ------
    CorruptShardError
        The file is missing, has another size, or lacks the data set.
    """
    import h5py

    try:
        size = shard_path.stat().st_size
        if n_bytes is not None and size != n_bytes:
            raise CorruptShardError(
                f"{shard_path} is not the file that was committed: expected {n_bytes:,} bytes, "
                f"got {size:,}",
                tip=VERIFY_TIP,
            )
        with h5py.File(shard_path, "r") as file:
            stored = file[dataset]
            offset = stored.id.get_offset()
            if offset is None or not stored.size:
                values: AnyArray = np.empty(stored.shape, stored.dtype)
                if stored.size:
                    stored.read_direct(values)
                values.flags.writeable = False
                return values
            shape, dtype = stored.shape, stored.dtype
        return np.asarray(np.memmap(shard_path, dtype, "r", offset=offset, shape=shape))
    except FileNotFoundError as error:
        raise CorruptShardError(f"{shard_path} is missing", tip=VERIFY_TIP) from error
    except (OSError, KeyError, AttributeError, ValueError) as error:
        if isinstance(error, CorruptShardError):
            raise
        raise CorruptShardError(
            f"{shard_path}: data set {dataset} cannot be read ({error})", tip=VERIFY_TIP
        ) from error


class ShardReader:
    """Maps data sets once and hands out views of them.

    Parameters
    ----------
    store_path
        The store's folder.
    manifest
        Its manifest.
    """

    def __init__(self, store_path: Path, manifest: Manifest) -> None:
        self._store_path = store_path
        self._manifest = manifest
        self._maps: dict[tuple[int, str], AnyArray] = {}

    def rows(self, where: FilterRange) -> AnyArray:
        """Return the rows of a range.

        Parameters
        ----------
        where
            Shard, data set, start and stop.

        Returns
        -------
        ndarray
            (stop - start, k²), read-only.

        Raises
        ------
        CorruptShardError
            The shard is not as the manifest and the layer table say.
        """
        key = (where.shard, where.dataset)
        if key not in self._maps:
            row = self._manifest.shards.get(where.shard)
            if row is None:
                raise CorruptShardError(
                    f"{self._store_path}: the manifest names no shard {where.shard}", tip=VERIFY_TIP
                )
            path = self._store_path / shard_name(where.shard)
            self._maps[key] = map_dataset(path, where.dataset, row.bytes)
        values = self._maps[key]
        if not 0 <= where.start <= where.stop <= values.shape[0]:
            raise CorruptShardError(
                f"{shard_name(where.shard)}, {where.dataset}: rows {where.start} to {where.stop} "
                f"asked for, there are {values.shape[0]}",
                tip=VERIFY_TIP,
            )
        return values[where.start : where.stop]


def range_of(row: Mapping[str, Any]) -> FilterRange:
    """Return where a layer's filters lie.

    Parameters
    ----------
    row
        A row of `layers` that is stored.

    Returns
    -------
    FilterRange
        Shard, data set and rows.
    """
    return FilterRange(row["shard"], row["dataset"], row["start"], row["stop"])


class Filters:
    """Filters of one kernel: iterate over layers, or open as a dask array.

    Parameters
    ----------
    store_path, manifest
        The store.
    kernel
        "3x3".
    layers
        Rows of `layers` that are stored and not shared, in plan order.
    models
        Columns of each model, as they stand in a block's row.
    dtype
        Element type values are converted to; None leaves them as stored, views of the file.
    """

    def __init__(
        self,
        store_path: Path,
        manifest: Manifest,
        *,
        kernel: str,
        layers: pa.Table,
        models: Mapping[ModelId, Mapping[str, Any]],
        dtype: np.dtype[Any] | None,
    ) -> None:
        self.kernel = kernel
        self._store_path = store_path
        self._manifest = manifest
        self._layers = layers
        self._models = models
        self._dtype = dtype

    @cached_property
    def ranges(self) -> list[FilterRange]:
        """Where each layer's filters lie."""
        columns = (self._layers.column(c).to_pylist() for c in RANGE_COLUMNS)
        return [FilterRange(*values) for values in zip(*columns, strict=True)]

    @property
    def n_filters(self) -> int:
        """Filters in all layers together."""
        return sum(r.stop - r.start for r in self.ranges)

    @property
    def n_coefficients(self) -> int:
        """k², the length of one filter."""
        return int(np.prod([int(k) for k in self.kernel.split("x")]))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of the dask array: the smallest that holds every layer's values exactly."""
        if self._dtype is not None:
            return self._dtype
        stored = {parse_dataset(name)[1] for name in {r.dataset for r in self.ranges}}
        return np.result_type(*stored) if stored else np.dtype(np.float32)

    def __len__(self) -> int:
        return int(self._layers.num_rows)

    def __iter__(self) -> Iterator[Block]:
        reader = ShardReader(self._store_path, self._manifest)
        for row, where in zip(self._rows(), self.ranges, strict=True):
            values = reader.rows(where)
            if self._dtype is not None and values.dtype != self._dtype:
                values = values.astype(self._dtype)
                values.flags.writeable = False
            yield Block(values, row)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Make a block's row only when it is its turn: the first block should not wait for all."""
        for start in range(0, len(self), ROWS_AT_ONCE):
            for row in self._layers.slice(start, ROWS_AT_ONCE).to_pylist():
                yield {**row, **self._models[row["model_id"]]}

    def __repr__(self) -> str:
        return (
            f"<filterdb.Filters {self.kernel}  {len(self):,} layers · "
            f"{self.n_filters:,} filters · {self.dtype}>"
        )

    def groups(self, chunk_bytes: int = CHUNK_BYTES) -> list[list[FilterRange]]:
        """Return the layers of each dask chunk: consecutive ones, up to 64 MB together.

        Parameters
        ----------
        chunk_bytes
            Size a chunk is filled up to.

        Returns
        -------
        list of list of FilterRange
            In order; no layer is split.
        """
        groups: list[list[FilterRange]] = []
        size = 0
        row_bytes = self.n_coefficients * self.dtype.itemsize
        for where in self.ranges:
            n_bytes = (where.stop - where.start) * row_bytes
            if not groups or size + n_bytes > chunk_bytes:
                groups.append([])
                size = 0
            groups[-1].append(where)
            size += n_bytes
        return groups

    def to_dask(self, *, dtype: object = None, chunk_bytes: int = CHUNK_BYTES) -> Any:
        """Return all filters as one dask array whose chunk borders are layer borders.

        Tasks carry the store's path and integers, never arrays.

        Parameters
        ----------
        dtype
            Element type; None is :attr:`dtype`.
        chunk_bytes
            Consecutive layers share a chunk up to this size.

        Returns
        -------
        dask.array.Array
            (n_filters, k²), layers in plan order.
        """
        import dask.array as da

        wanted = self.dtype if dtype is None else np.dtype(dtype)  # type: ignore[call-overload]
        groups = self.groups(chunk_bytes)
        chunks = tuple(sum(r.stop - r.start for r in group) for group in groups) or (0,)
        path = str(self._store_path.resolve())
        tasks = [_merged(group) for group in groups] or [()]
        token = hashlib.sha256(repr((path, self._digests(), tasks, wanted.str)).encode())
        name = f"filters-{self.kernel}-{token.hexdigest()[:32]}"
        graph = {
            (name, i, 0): (read_ranges, path, ranges, self.n_coefficients, wanted.str)
            for i, ranges in enumerate(tasks)
        }
        return da.Array(graph, name, (chunks, (self.n_coefficients,)), dtype=wanted)

    def _digests(self) -> list[str]:
        shards = sorted({r.shard for r in self.ranges})
        return [self._manifest.shards[s].sha256 for s in shards if s in self._manifest.shards]


#: One range as plain values: shard, data set, start, stop.
PlainRange = tuple[int, str, int, int]


def _merged(ranges: Sequence[FilterRange]) -> tuple[PlainRange, ...]:
    """Join ranges that follow one another in the same data set."""
    merged: list[PlainRange] = []
    for r in ranges:
        if merged and merged[-1][:2] == (r.shard, r.dataset) and merged[-1][3] == r.start:
            merged[-1] = (*merged[-1][:3], r.stop)
        else:
            merged.append((r.shard, r.dataset, r.start, r.stop))
    return tuple(merged)


def read_ranges(
    store_path: str, ranges: Sequence[PlainRange], n_coefficients: int, dtype: str
) -> AnyArray:
    """Read one chunk; the function dask runs, where the array is used.

    Parameters
    ----------
    store_path
        The store's folder.
    ranges
        What the chunk is made of.
    n_coefficients
        k².
    dtype
        Element type of the result.

    Returns
    -------
    ndarray
        (n, k²); a read-only view where it is one range in its stored element type.
    """
    maps: dict[tuple[int, str], AnyArray] = {}
    parts: list[AnyArray] = []
    for shard, dataset, start, stop in ranges:
        if (shard, dataset) not in maps:
            maps[shard, dataset] = map_dataset(Path(store_path) / shard_name(shard), dataset)
        parts.append(maps[shard, dataset][start:stop])
    if len(parts) == 1:
        return parts[0].astype(dtype, copy=False)
    result = np.empty((sum(len(p) for p in parts), n_coefficients), dtype)
    np.concatenate(parts, out=result, casting="unsafe") if parts else None
    return result
