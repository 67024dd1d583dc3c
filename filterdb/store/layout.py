"""Where the files of a store lie."""

from __future__ import annotations

import numpy as np

from filterdb.errors import StoreError
from filterdb.types import Shape, kernel_label

STORE_FILE = "store.json"
MANIFEST_FILE = "manifest.parquet"
LOCK_FILE = ".lock"
TABLES_FOLDER = "tables"
FILTERS_FOLDER = "filters"
WIP_FOLDER = "_wip"
PLAN_FILE = "plan.json"
#: Names under ``_wip`` that no model id can have ("+" is not allowed in a slug).
WIP_SHARDS = "+shards"
WIP_TEMPORARY = "+tmp-"

#: Written by `filterdb extract`; the others are derived from these by `filterdb analyze`.
EXTRACTED_TABLES = ("models", "layers", "layer_states", "skipped", "failures")

#: Data sets begin at multiples of this many bytes.
ALIGNMENT = 4096
#: Bytes copied at once.
BLOCK_BYTES = 8 * 1024 * 1024


def shard_name(number: int) -> str:
    """Return the path of shard `number` relative to the store.

    Parameters
    ----------
    number
        Shard number, from 0.

    Returns
    -------
    str
        "filters/00000.h5".
    """
    return f"{FILTERS_FOLDER}/{number:05d}.h5"


def table_name(generation: int, name: str) -> str:
    """Return the path of a table relative to the store.

    Parameters
    ----------
    generation
        The commit that writes it, from 1.
    name
        Name of the table.

    Returns
    -------
    str
        "tables/00001/layers.parquet".
    """
    return f"{TABLES_FOLDER}/{generation:05d}/{name}.parquet"


def plan_name(generation: int) -> str:
    """Return the path of the plan relative to the store.

    Parameters
    ----------
    generation
        The commit that writes it, from 1.

    Returns
    -------
    str
        "tables/00001/plan.json".
    """
    return f"{TABLES_FOLDER}/{generation:05d}/{PLAN_FILE}"


def dataset_name(kernel: Shape, dtype: str) -> str:
    """Return the name of the data set that holds filters of one kernel and element type.

    Parameters
    ----------
    kernel
        Spatial extent, slowest axis first.
    dtype
        Element type in numpy's words.

    Returns
    -------
    str
        "2d/3x3/float32".
    """
    return f"{len(kernel)}d/{kernel_label(kernel)}/{dtype}"


def parse_dataset(name: str) -> tuple[Shape, np.dtype[np.generic]]:
    """Return kernel and element type of a data set's name.

    Parameters
    ----------
    name
        As :func:`dataset_name` makes it.

    Returns
    -------
    tuple
        Kernel extent and numpy dtype.

    Raises
    ------
    StoreError
        The name has another form.
    """
    try:
        rank, kernel, dtype = name.split("/")
        extent = tuple(int(k) for k in kernel.split("x"))
        if rank == f"{len(extent)}d":
            return extent, np.dtype(dtype)
    except (ValueError, TypeError):
        pass
    raise StoreError(f"data set name {name!r} is not rank/kernel/dtype like 2d/3x3/float32")


def is_stored(kernel: Shape) -> bool:
    """Tell whether filters of this kernel stand in shards (1x1 kernels have no shape).

    Parameters
    ----------
    kernel
        Spatial extent.

    Returns
    -------
    bool
        True where any axis is longer than one.
    """
    return any(k > 1 for k in kernel)
