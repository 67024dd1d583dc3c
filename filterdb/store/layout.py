"""Where the files of a store lie, and how a file is written so that a crash cannot spoil it."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from filterdb.errors import FilterDBError, PipelineError, StoreError
from filterdb.types import AnyArray, Shape, kernel_label

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
#: Bytes copied or hashed at once.
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


def tensor_sha256(weights: AnyArray) -> str:
    r"""Return the hash that identifies a layer's weights.

    Parameters
    ----------
    weights
        (out_channels, in_channels / groups, *kernel), canonical form, the source's float dtype.

    Returns
    -------
    str
        SHA-256 of the line ``"<dtype> <shape joined by ,>\\n"`` followed by the little-endian bytes
        in C order. The rows of a layer in its shard are those same bytes.
    """
    digest = hashlib.sha256(tensor_header(weights.dtype.name, weights.shape))
    little = weights.dtype.newbyteorder("<")
    rows = weights.reshape(weights.shape[0], -1) if weights.size else weights.reshape(0, 1)
    step = max(1, BLOCK_BYTES // max(1, rows.shape[1] * rows.itemsize))
    for start in range(0, rows.shape[0], step):
        digest.update(np.ascontiguousarray(rows[start : start + step], dtype=little).data.cast("B"))
    return digest.hexdigest()


def tensor_header(dtype: str, shape: Iterable[int]) -> bytes:
    r"""Return the line that stands before the bytes in :func:`tensor_sha256`.

    Parameters
    ----------
    dtype, shape
        Of the canonical weights.

    Returns
    -------
    bytes
        ``b"float32 64,3,7,7\\n"``.
    """
    return f"{dtype} {','.join(str(int(s)) for s in shape)}\n".encode()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    str
        Hexadecimal.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------ writing

_TIPS = {
    errno.ENOSPC: "free some space or choose another folder; what was committed is whole, "
    "and the same command goes on",
    errno.EDQUOT: "the quota of this user is used up; free some space, then run it again",
    errno.EFBIG: "a limit on file sizes is set (ulimit -f, or the file system's own)",
    errno.EACCES: "give this user the right to write there, or choose another folder",
    errno.EPERM: "give this user the right to write there, or choose another folder",
    errno.EROFS: "the file system is mounted read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
    errno.EEXIST: "a file stands where a folder is needed; choose another folder",
    errno.ENAMETOOLONG: "choose a shorter path",
}


@contextmanager
def disk_errors(path: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turn what the disk refuses into one clear error.

    Parameters
    ----------
    path
        What is being written.
    needed
        Bytes it takes, if known.

    Raises
    ------
    PipelineError
        Disk full, folder not writable, path through a file, and their like.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FilterDBError):
            raise  # a clear error already
        words = os.strerror(error.errno).lower() if error.errno else str(error)
        size = ""
        if needed is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            size = f": needs {needed:,} bytes, {free_bytes(path):,} are free"
        raise PipelineError(
            f"cannot write {path} ({words}){size}", tip=_TIPS.get(error.errno or 0)
        ) from error


def free_bytes(path: Path) -> int:
    """Return the bytes free on the file system of `path` or its nearest existing parent.

    Parameters
    ----------
    path
        May not exist yet.

    Returns
    -------
    int
        Bytes this user may still write.
    """
    for folder in (path, *path.parents):
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return 0


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable.

    Parameters
    ----------
    folder
        Existing folder.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, write: Callable[[BinaryIO], None], *, needed: int) -> None:
    """Write a file so that at any moment it is either absent (or the old one) or whole.

    Parameters
    ----------
    path
        Final name; its folder exists.
    write
        Called with the open temporary file beside it.
    needed
        Bytes it will take, for the message when the disk is full.

    Raises
    ------
    PipelineError
        The disk refused.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path, needed=needed):
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes_durably(path: Path, content: bytes | memoryview) -> None:
    """Write `content` by :func:`write_durably`.

    Parameters
    ----------
    path
        Final name; its folder exists.
    content
        All of the file.
    """

    def write(file: BinaryIO) -> None:
        file.write(content)

    write_durably(path, write, needed=len(content))


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Parameters
    ----------
    path
        The folder; may exist.

    Raises
    ------
    PipelineError
        The disk refused.
    """
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
