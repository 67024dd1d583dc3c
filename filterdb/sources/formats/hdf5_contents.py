"""What an HDF5 file holds, as another process found it, turned into tensors.

Values that lie in one piece, as Keras writes them, are read at their offset without libhdf5; all
others are put together by libhdf5 in its own process (:mod:`filterdb.sources.formats.hdf5_guard`).
The file may lie inside a zip archive, stored or deflated: nothing is extracted.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import FetchError, MalformedFileError
from filterdb.layers.raw import Tensor
from filterdb.sources.formats.file_view import check_shape, read_array
from filterdb.sources.formats.hdf5_guard import ask

if TYPE_CHECKING:
    from filterdb.sources.formats.base import ModelFile
    from filterdb.types import AnyArray, Shape, SkipReason

MAGIC = b"\x89HDF\r\n\x1a\n"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Hdf5Source:
    """Where an HDF5 file lies.

    Parameters
    ----------
    path
        The file, or the archive around it.
    offset
        Byte offset of its first byte in `path`.
    size
        Its bytes, once inflated.
    packed
        How many deflated bytes it takes in the archive; None where it is stored as it is.
    label
        Its name for messages.
    """

    path: Path
    offset: int
    size: int
    packed: int | None
    label: str

    def task(self, do: str, **more: Any) -> dict[str, Any]:
        """Return a task about this file for the process that runs libhdf5."""
        place = {"path": str(self.path), "offset": self.offset, "size": self.size}
        return {"do": do, **place, "packed": self.packed, "label": self.label, **more}

    def read(self, start: int, count: int) -> bytes:
        """Return `count` bytes from `start` on."""
        if self.packed is None:
            return read_array(self.path, self.offset + start, count, np.uint8).tobytes()
        return b"".join(_inflated(self, start, count))


@dataclass(frozen=True)
class StoredArray:
    """One data set of an HDF5 file.

    Parameters
    ----------
    path
        Its path in the file.
    shape, dtype
        As a tensor states them.
    position
        Address of its header: data sets are written one after the other, so this sorts them by
        creation where the file says nothing better (HDF5 lists names by the alphabet).
    n_bytes
        Size of its values, at least that of one chunk.
    offset
        Where its values lie in one piece; None where libhdf5 has to put them together.
    stored
        Numpy's name of the stored type, with byte order.
    skip
        Why it cannot be loaded, if so.
    """

    path: str
    shape: Shape
    dtype: str
    position: int
    n_bytes: int
    offset: int | None
    stored: str
    skip: tuple[SkipReason, str] | None = None


@dataclass(frozen=True)
class Contents:
    """Everything an HDF5 file says.

    Parameters
    ----------
    source
        The file.
    arrays
        Its data sets in the order they were created.
    attributes
        Path of a group (the root is "") → name → text or list of texts, for the attributes Keras
        writes.
    """

    source: Hdf5Source
    arrays: tuple[StoredArray, ...]
    attributes: Mapping[str, Mapping[str, str | list[str]]]

    def text(self, name: str, *groups: str) -> str:
        """Return an attribute of the first group that has it, or ""."""
        for group in groups:
            value = self.attributes.get(group, {}).get(name)
            if value is not None:
                return value if isinstance(value, str) else "".join(value[:1])
        return ""

    def texts(self, name: str, group: str) -> list[str]:
        """Return a list; one too long for an attribute is cut into ``name0``, ``name1``, …."""
        here = self.attributes.get(group, {})
        found: list[str] = []
        part = 0
        key = name if name in here else f"{name}0"
        while key in here:
            value = here[key]
            found += [value] if isinstance(value, str) else value
            if key == name:
                break
            part += 1
            key = f"{name}{part}"
        return found

    def tensor(
        self,
        array: StoredArray,
        name: str,
        *,
        skip: tuple[SkipReason, str] | None = None,
        flipped: bool = False,
    ) -> Tensor:
        """Return a data set as a tensor.

        Parameters
        ----------
        array
            One of `arrays`.
        name
            Name to give it.
        skip
            A reason to leave it out.
        flipped
            Reverse all axes but the last two when loading.

        Returns
        -------
        Tensor
            Not loaded.
        """
        return Tensor(
            name,
            array.shape,
            array.dtype,
            partial(_load, self.source, array, flipped=flipped),
            storage=("hdf5", self.source.label, array.position),
            skip=skip or array.skip,
        )


def whole_file(file: ModelFile) -> Hdf5Source:
    """Take a file that is HDF5 itself, telling one that cannot be opened from one that is not.

    Parameters
    ----------
    file
        The file.

    Returns
    -------
    Hdf5Source
        All of it.

    Raises
    ------
    FetchError
        If the operating system does not let us read the file.
    MalformedFileError
        If it does not begin as HDF5.
    """
    label = file.name or file.path.name
    try:
        with file.path.open("rb") as handle:
            head = handle.read(len(MAGIC))
            size = handle.seek(0, 2)
    except OSError as error:
        raise FetchError(f"cannot open {label}: {error.strerror or error}") from error
    if head != MAGIC:
        raise MalformedFileError(f"{label} is no HDF5: it begins with {head!r}")
    return Hdf5Source(file.path, 0, size, None, label)


def read_contents(source: Hdf5Source) -> Contents:
    """List what a file holds, in the process that runs libhdf5.

    Parameters
    ----------
    source
        The file.

    Returns
    -------
    Contents
        Its data sets and attributes; no values.

    Raises
    ------
    SourceError
        Damaged, unsafe, or libhdf5 does not survive it.
    """
    listed = json.loads(ask(source.task("list"), label=source.label))
    arrays = tuple(_array(source, fields) for fields in listed["arrays"])
    return Contents(source, arrays, listed["attributes"])


def _array(source: Hdf5Source, fields: Mapping[str, Any]) -> StoredArray:
    skip = fields.pop("skip")  # type: ignore[attr-defined]
    array = StoredArray(
        **{**fields, "shape": tuple(fields["shape"])}, skip=tuple(skip) if skip else None
    )
    n_bytes = check_shape(array.shape, what=array.path) * np.dtype(array.stored).itemsize
    if array.offset is not None and not 0 <= array.offset <= source.size - n_bytes:
        raise MalformedFileError(
            f"{source.label}: {array.path}: {n_bytes:,} bytes at byte {array.offset:,}, the file "
            f"ends at {source.size:,}"
        )
    return array


def _load(source: Hdf5Source, array: StoredArray, *, flipped: bool) -> AnyArray:
    stored = np.dtype(array.stored)
    if array.offset is not None:
        data = source.read(array.offset, int(np.prod(array.shape)) * stored.itemsize)
    else:
        task = source.task("load", item=array.path, stored=array.stored, bytes=array.n_bytes)
        data = ask(task, label=source.label)
    values = np.frombuffer(data, stored)
    if values.size != int(np.prod(array.shape)):
        raise MalformedFileError(f"{source.label}: {array.path} does not hold what it announces")
    values = values.reshape(array.shape)
    if array.dtype == "bfloat16":
        values = (values.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if flipped:
        values = values[tuple(slice(None, None, -1) for _ in array.shape[:-2])]
    native = values.dtype.newbyteorder("=")
    return np.array(values, dtype=native, order="C").reshape(array.shape)


def _inflated(source: Hdf5Source, start: int, count: int) -> list[bytes]:
    """Inflate up to the end of a run of bytes and keep the run."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    kept: list[bytes] = []
    done, left = 0, source.packed or 0
    try:
        with source.path.open("rb") as handle:
            handle.seek(source.offset)
            pending = b""
            while done < start + count and not inflater.eof:
                if not pending:
                    pending = handle.read(min(_BLOCK, left))
                    left -= len(pending)
                plain = inflater.decompress(pending, _BLOCK)
                if not plain and not pending:
                    break  # cut short
                pending = inflater.unconsumed_tail
                kept.append(plain[max(0, start - done) : max(0, start + count - done)])
                done += len(plain)
    except OSError as error:
        raise FetchError(f"cannot read {source.label}: {error.strerror or error}") from error
    except zlib.error as error:
        raise MalformedFileError(f"{source.label}: cannot inflate: {error}") from error
    if done < start + count:
        raise MalformedFileError(
            f"{source.label} ends early: expected {count} bytes at byte {start}, it inflates to "
            f"{done}"
        )
    return kept
