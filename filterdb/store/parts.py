"""What a store hands out beside tables: one layer, its tables by name, and itself in two lines."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from filterdb.errors import (
    CorruptShardError,
    IncompleteStoreError,
    StoreError,
    UnknownNameError,
    UsageError,
)
from filterdb.store.filters import Block
from filterdb.store.layout import EXTRACTED_TABLES, is_stored
from filterdb.store.manifest import read_manifest
from filterdb.store.parquet import VERIFY_TIP, read_table, rows_at
from filterdb.store.schema import FORMAT_VERSION, TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from filterdb.store.reader import Store
    from filterdb.store.table import Table
    from filterdb.types import AnyArray


def describe_store(store: Store) -> str:
    """Say in two lines what a store holds.

    Parameters
    ----------
    store
        The store.

    Returns
    -------
    str
        Models, layers, filters, size; kernels and tasks.
    """
    layers = store.layers.select(["kernel", "shard", "n_filters"]).to_pylist()
    n_filters = sum(store.kernels().values())
    unstored = Counter(r["kernel"] for r in layers if r["shard"] is None)
    kernels = [f"{times(k)} {n:,}" for k, n in list(store.kernels().items())[:6]]
    kernels += [f"{times(k)} ({n:,} layers)" for k, n in unstored.most_common(2)]
    tasks = Counter(store.models["task"].to_pylist()).most_common()
    more = f", … {len(tasks)}" if len(tasks) > 3 else ""
    return (
        f"<filterdb.Store {store.path}  format {FORMAT_VERSION} · "
        f"{store.models.num_rows:,} models · {len(layers):,} layers · "
        f"{n_filters:,} filters larger than 1×1 · "
        f"{store.n_bytes / 1e6:,.0f} MB · generation {store.generation}>\n"
        f"  kernels  {' · '.join(kernels) or 'none'}      "
        f"tasks  {', '.join(f'{t} {n}' for t, n in tasks[:3])}{more}"
    )


def read_committed(store: Store, name: str) -> pa.Table:
    """Read a table's file, if it is the one that was committed.

    Parameters
    ----------
    store
        The store.
    name
        Name of the table.

    Returns
    -------
    pyarrow.Table
        With the declared schema.

    Raises
    ------
    IncompleteStoreError
        This store has no such table yet.
    CorruptShardError
        Its file is missing or has another size.
    StoreError
        Its file is gone, since the store was committed to twice after it was opened.
    """
    row = store.committed.tables.get(name)
    if row is None:
        command = "extract CATALOG --store" if name in EXTRACTED_TABLES else "analyze"
        raise IncompleteStoreError(
            f"{store.path} has no table {name!r} yet", tip=f"run filterdb {command} {store.path}"
        )
    path = store.path / row.path
    if not path.exists() and read_manifest(store.path).generation != store.generation:
        raise StoreError(
            f"{store.path} was committed to since it was opened, and this table is gone",
            tip="open the store again",
        )
    size = path.stat().st_size if path.exists() else None
    if size is not None and size != row.bytes:
        raise CorruptShardError(
            f"{path} is not the file that was committed: expected {row.bytes:,} bytes, "
            f"got {size:,}",
            tip=VERIFY_TIP,
        )
    # Parquet forgets the name of list items, so the declared schema is put on again.
    return read_table(path).cast(TABLES[name].arrow)


def kernel_error(store: Store, kernel: str, known: dict[str, int]) -> UsageError:
    """Say why there are no filters of a kernel.

    Parameters
    ----------
    store
        The store.
    kernel
        What was asked for.
    known
        Kernels that are stored, with their filters.

    Returns
    -------
    UsageError
        To be raised.
    """
    listed = ", ".join(f"{k} ({n:,})" for k, n in known.items()) or "none"
    if all(extent == "1" for extent in kernel.split("x")):
        return UsageError(
            f"{kernel} kernels have no shape, so their filters are not stored; their layers "
            "are rows of store.layers, with their statistics in store.layer_states",
            tip=f"kernels stored: {listed}",
        )
    error = UnknownNameError("kernel", kernel, known, where=str(store.path))
    error.tip = f"kernels stored: {listed}"
    return error


class Tables:
    """The tables of a store by name: ``store.tables["layers"]``.

    Parameters
    ----------
    store
        The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, name: str) -> Table:
        return self._store.table(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def names(self) -> list[str]:
        """Return the tables this store has.

        Returns
        -------
        list of str
            In the order of schema.py, the manifest last.
        """
        return [*(n for n in TABLES if n in self._store.committed.tables), "manifest"]


class Layer:
    """One layer of a store.

    Parameters
    ----------
    store
        The store.
    row
        Its row of `layers` with the columns of its model.
    """

    def __init__(self, store: Store, row: dict[str, Any]) -> None:
        self._store = store
        self.row = row

    @property
    def values(self) -> AnyArray:
        """Its filters, (n_filters, k²), a read-only view of the file.

        Raises
        ------
        UsageError
            1x1 kernels are not stored.
        """
        if self.row["shard"] is None:
            kernel = tuple(int(k) for k in self.row["kernel"].split("x"))
            reason = "it holds no filter" if is_stored(kernel) else "1x1 kernels have no shape"
            raise UsageError(f"the filters of {self.row['layer_uid']} are not stored: {reason}")
        return self._store.rows_of(self.row)

    @property
    def block(self) -> Block:
        """The same as :meth:`Store.filters` yields it."""
        return Block(self.values, dict(self.row))

    @property
    def states(self) -> list[dict[str, Any]]:
        """Its rows of `layer_states`."""
        table = self._store.layer_states
        uids = table["layer_uid"].to_pylist()
        positions = [i for i, uid in enumerate(uids) if uid == self.row["layer_uid"]]
        rows: list[dict[str, Any]] = rows_at(table.arrow, positions).to_pylist()
        return rows

    def __repr__(self) -> str:
        row = self.row
        inputs = row["in_channels"] // row["groups"]
        shape = times("x".join([str(row["out_channels"]), str(inputs), row["kernel"]]))
        raw = next((s for s in self.states if s["weights"] == "raw"), None)
        sparse = ""
        if raw and raw["n"] and raw["n_sparse_01"] is not None:
            share = 100 * raw["n_sparse_01"] / raw["n"]
            sparse = f"; {share:.3g} % nearly zero (|w| < 1 % of the layer's largest)"
        return (
            f"<filterdb.Layer {row['name']} of {row['model_id']}: {row['op']} {shape}, "
            f"{row['role']}, {row['n_filters']:,} filters{sparse}>"
        )


def times(kernel: str) -> str:
    """Write a kernel as people do.

    Parameters
    ----------
    kernel
        "3x3".

    Returns
    -------
    str
        "3×3".
    """
    return kernel.replace("x", "×")
