"""Opening a store and asking it things. Readers take no lock and write nothing."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import (
    UnknownNameError,
)
from filterdb.store.filters import Filters, ShardReader, range_of
from filterdb.store.manifest import Manifest, read_manifest, read_plan, read_settings
from filterdb.store.parquet import rows_at
from filterdb.store.parts import Layer, Tables, describe_store, kernel_error, read_committed
from filterdb.store.plan import Plan
from filterdb.store.query import LAYER_VIEW, run_query, view_columns
from filterdb.store.schema import MANIFEST, TABLES
from filterdb.store.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

    from filterdb.types import AnyArray, ModelId


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path
        The store's folder.

    Returns
    -------
    Store
        As it was committed last; a later commit does not show in it.

    Raises
    ------
    StoreNotFoundError
        There is no store.
    FormatVersionError
        It was written by another version of the format.
    IncompleteStoreError
        Its extraction has not committed anything yet.
    CorruptShardError
        ``store.json`` or the manifest is damaged.
    """
    folder = Path(path)
    read_settings(folder)
    return Store(folder, read_manifest(folder))


class Store:
    """A store as it was committed last.

    Parameters
    ----------
    path
        The store's folder.
    manifest
        What it consists of.

    Examples
    --------
    >>> from filterdb.testing import temporary_store
    >>> with temporary_store(n_models=2, seed=0) as store:
    ...     store.sql("select count(*) as n from models").to_pylist()
    [{'n': 2}]
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        #: What was in force when the store was opened.
        self.committed = manifest
        self._loaded: dict[str, Table] = {}
        self.tables = Tables(self)

    @property
    def generation(self) -> int:
        """Number of the commit this is."""
        return self.committed.generation

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the committed filters and of the tables that describe them."""
        lines = sorted(
            f"{row.name} {row.sha256}"
            for row in self.committed.rows
            if row.kind == "filters" or row.name in ("models", "layers", "layer_states")
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def n_bytes(self) -> int:
        """Size of all files of the store, bytes."""
        return sum(row.bytes for row in self.committed.rows)

    @cached_property
    def plan(self) -> Plan:
        """Which model stands in which shard."""
        return read_plan(self.path, self.committed) or Plan()

    @property
    def models(self) -> Table:
        """One row a model that was read."""
        return self.table("models")

    @property
    def layers(self) -> Table:
        """One row a use of a convolution."""
        return self.table("layers")

    @property
    def layer_states(self) -> Table:
        """Mergeable sums, one row a layer and kind of weights."""
        return self.table("layer_states")

    @property
    def skipped(self) -> Table:
        """Tensors that were not taken, with the reason."""
        return self.table("skipped")

    @property
    def failures(self) -> Table:
        """Models that could not be read."""
        return self.table("failures")

    @property
    def quality(self) -> Table:
        """Layer quality, after ``filterdb analyze``."""
        return self.table("quality")

    @property
    def findings(self) -> Table:
        """Named findings, after ``filterdb analyze``."""
        return self.table("findings")

    @property
    def results(self) -> Table:
        """Numbers of the analyses, after ``filterdb analyze``."""
        return self.table("results")

    @property
    def bases(self) -> Table:
        """PCA bases, after ``filterdb analyze``."""
        return self.table("bases")

    @property
    def histograms(self) -> Table:
        """Coefficient histograms, after ``filterdb analyze``."""
        return self.table("histograms")

    @cached_property
    def manifest(self) -> Table:
        """Every file of the store."""
        from dataclasses import asdict

        from filterdb.store.parquet import rows_to_table

        return Table(
            rows_to_table(MANIFEST, [asdict(r) for r in self.committed.rows]), name="manifest"
        )

    def table(self, name: str) -> Table:
        """Return a table by name.

        Parameters
        ----------
        name
            One of schema.py's, or "manifest".

        Returns
        -------
        Table
            Read at the first call, then kept.

        Raises
        ------
        UnknownNameError
            There is no table of this name in the format.
        IncompleteStoreError
            This store has none yet.
        CorruptShardError
            Its file is missing or is not the one committed.
        """
        if name == "manifest":
            return self.manifest
        if name not in TABLES:
            raise UnknownNameError("table", name, [*TABLES, "manifest"], where="the store")
        if name not in self._loaded:
            self._loaded[name] = Table(read_committed(self, name), name=name)
        return self._loaded[name]

    # -------------------------------------------------------------- questions

    def sql(self, query: str) -> Table:
        """Answer a SELECT statement over the tables, by DuckDB.

        The query sees the tables of this store, ``manifest``, and ``layer_view`` (layers joined
        with their model and, where analysed, their quality for raw weights with sparse filters
        kept); no file, no setting and no variable of the machine.

        Parameters
        ----------
        query
            One SELECT.

        Returns
        -------
        Table
            The answer.

        Raises
        ------
        UnknownNameError
            A table or column that does not exist; the nearest are named.
        IncompleteStoreError
            A table this store does not have yet.
        UsageError
            Another mistake in the query.
        """
        return Table(run_query(query, self._loaders()), name="query")

    def _loaders(self) -> dict[str, Callable[[], pa.Table]]:
        return {name: partial(self._arrow, name) for name in [*TABLES, "manifest"]}

    def _arrow(self, name: str) -> pa.Table:
        return self.table(name).arrow

    def select_layers(self, where: str | None = None) -> Table:
        """Return the rows of ``layer_view`` that satisfy a condition.

        Parameters
        ----------
        where
            SQL condition over the view's columns, "task = 'ocr' and sparsity > 0.5"; None is all.

        Returns
        -------
        Table
            In plan order.

        Raises
        ------
        UnknownNameError
            A column that does not exist.
        UsageError
            Not a condition.
        """
        condition = f" WHERE (\n{where}\n)" if where is not None else ""
        found = self.sql(f"SELECT * FROM {LAYER_VIEW}{condition}").arrow
        ranks = {uid: rank for rank, uid in enumerate(self.layers["layer_uid"].to_pylist())}
        order = np.argsort([ranks[uid] for uid in found.column("layer_uid").to_pylist()])
        return Table(found.take(order), name=LAYER_VIEW)

    def filters(self, kernel: str, *, where: str | None = None, dtype: Any = None) -> Filters:
        """Return the filters of one kernel.

        Parameters
        ----------
        kernel
            "3x3", "7x7", "1x5", "3" or "3x3x3".
        where
            SQL condition over ``layer_view``, "task = 'ocr'"; None is all.
        dtype
            Element type values are converted to; None leaves them as stored.

        Returns
        -------
        Filters
            Iterate for :class:`Block`, one a layer, in plan order. Filters shared by several uses
            come once, with the row of the layer whose they are.

        Raises
        ------
        UnknownNameError
            The store holds no filters of this kernel; those it holds are named with their counts.
        UsageError
            1x1 kernels have no shape and are not stored.
        """
        known = self.kernels()
        if kernel not in known:
            raise kernel_error(self, kernel, known)
        wanted = None if dtype is None else np.dtype(dtype)
        return Filters(
            self.path,
            self.committed,
            kernel=kernel,
            layers=self._stored_layers(kernel, where),
            models=self._model_rows,
            dtype=wanted,
        )

    def kernels(self) -> dict[str, int]:
        """Return the kernels whose filters are stored, and how many there are of each.

        Returns
        -------
        dict
            Kernel to filters, most first.
        """
        return dict(self._kernel_counts.most_common())

    @cached_property
    def _kernel_counts(self) -> Counter[str]:
        columns = (
            self.layers[c].to_pylist() for c in ("kernel", "n_filters", "shard", "shared_with")
        )
        counts: Counter[str] = Counter()
        for kernel, n_filters, shard, shared_with in zip(*columns, strict=True):
            if shard is not None and shared_with is None:
                counts[kernel] += n_filters
        return counts

    @cached_property
    def _model_rows(self) -> dict[ModelId, dict[str, Any]]:
        names = {
            source.removeprefix("models."): name
            for name, source in view_columns().items()
            if source.startswith("models.")
        }
        return {
            row["model_id"]: {names[c]: v for c, v in row.items() if c in names}
            for row in self.models.to_pylist()
        }

    def _stored_layers(self, kernel: str, where: str | None) -> pa.Table:
        chosen = None
        if where is not None:
            answer = self.sql(f"SELECT layer_uid FROM {LAYER_VIEW} WHERE (\n{where}\n)")
            chosen = set(answer["layer_uid"].to_pylist())
        names = ("layer_uid", "kernel", "shard", "shared_with")
        columns = (self.layers[name].to_pylist() for name in names)
        positions = [
            position
            for position, (uid, of, shard, shared_with) in enumerate(zip(*columns, strict=True))
            if of == kernel
            and shard is not None
            and shared_with is None
            and (chosen is None or uid in chosen)
        ]
        return rows_at(self.layers.arrow, positions)

    def layer(self, model_id: str, name: str) -> Layer:
        """Return one layer.

        Parameters
        ----------
        model_id
            The model.
        name
            The layer's name, or its tensor's as in ``layer_uid``.

        Returns
        -------
        Layer
            Its row, states and filters.

        Raises
        ------
        UnknownNameError
            No such model, or no such layer in it; the nearest are named.
        """
        models = self.models["model_id"].to_pylist()
        if model_id not in models:
            raise UnknownNameError("model", model_id, models, where=str(self.path))
        owners = self.layers["model_id"].to_pylist()
        positions = [i for i, owner in enumerate(owners) if owner == model_id]
        rows = rows_at(self.layers.arrow, positions).to_pylist()
        for row in rows:
            if name in (row["name"], row["layer_uid"], row["layer_uid"][len(model_id) + 1 :]):
                return Layer(self, {**row, **self._model_rows[model_id]})
        raise UnknownNameError("layer", name, [r["name"] for r in rows], where=model_id)

    def rows_of(self, layer: dict[str, Any]) -> AnyArray:
        """Return the filters of a stored layer.

        Parameters
        ----------
        layer
            A row of `layers`.

        Returns
        -------
        ndarray
            (n_filters, k²), read-only view.
        """
        return ShardReader(self.path, self.committed).rows(range_of(layer))

    def __repr__(self) -> str:
        return describe_store(self)
