"""A TensorFlow checkpoint ("tensor bundle"): an index, and shards that hold the values.

The index is a table (:mod:`filterdb.sources.formats.tf_table`): the entry without a name tells the
number of shards and the byte order, every other one a variable's type, shape and place. A
partitioned variable has one entry that lists its slices and one for each slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import (
    MalformedFileError,
    MissingCompanionError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.formats.file_view import check_shape, read_array
from filterdb.sources.formats.protobuf_wire import BYTES, VARINT, WireReader
from filterdb.sources.formats.stored_array import FileBytes, StoredArray, c_strides
from filterdb.sources.formats.tf_object_graph import (
    OBJECT_GRAPH_KEY,
    ObjectGraph,
    read_object_graph,
)
from filterdb.sources.formats.tf_slices import Slice, encode_slice, read_slice
from filterdb.sources.formats.tf_table import Table
from filterdb.sources.formats.tf_types import item_size, read_shape, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from filterdb.sources.formats.file_view import ByteSource
    from filterdb.types import AnyArray, Shape

#: No real checkpoint has as many; each costs a kilobyte of memory.
MAX_VARIABLES = 150_000
_MAX_SHARDS = 100_000
_MAX_GRAPH = 64 << 20


@dataclass(frozen=True)
class Header:
    """Number of data files and byte order."""

    shards: int
    big_endian: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the index."""

    dtype: str
    shape: Shape
    shard: int
    offset: int
    size: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of a checkpoint.

    Parameters
    ----------
    key
        Its name in the index.
    dtype, shape
        Of the whole variable.
    load
        Reads it.
    storage
        Where it lies.
    """

    key: str
    dtype: str
    shape: Shape
    load: Callable[[], AnyArray]
    storage: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Sliced:
    """Puts a partitioned variable together."""

    shape: Shape
    dtype: str
    parts: tuple[tuple[Slice, Callable[[], AnyArray]], ...]

    def __call__(self) -> AnyArray:
        whole = zeros(self.shape, self.dtype)
        for where, load in self.parts:
            place = tuple(
                slice(None) if length < 0 else slice(begin, begin + length)
                for begin, length in where
            )
            whole[place] = load()
        return whole


def zeros(shape: Shape, dtype: str) -> AnyArray:
    """Make the array that slices are put into.

    Parameters
    ----------
    shape
        Its extents.
    dtype
        As the checkpoint has it.

    Returns
    -------
    ndarray
        float32 for bfloat16.

    Raises
    ------
    UnsupportedFormatError
        If the type is none of numbers.
    """
    if item_size(dtype) is None:
        raise UnsupportedFormatError(f"values of the checkpoint type {dtype!r} are not read")
    return np.zeros(shape, "float32" if dtype == "bfloat16" else dtype)


def is_bundle(first: bytes) -> bool:
    """Tell the index of a bundle from a checkpoint of version 1.

    Parameters
    ----------
    first
        Value of the entry without a name.

    Returns
    -------
    bool
        True where it begins with a number of shards.
    """
    return not first or first[0] & 7 == VARINT


def read_header(data: ByteSource, *, where: str) -> Header:
    """Read a bundle's header.

    Parameters
    ----------
    data
        Bytes of the index.
    where
        Its name, for messages.

    Returns
    -------
    Header
        Shards and byte order.

    Raises
    ------
    MalformedFileError
        If there is none.
    """
    for key, value, _ in Table(data, where=where).entries():
        if key:
            break
        if not is_bundle(value):
            return Header(0, big_endian=False)
        wire = WireReader(value, where=where)
        numbers = {n: v for n, k, v, _ in wire.fields(0, len(value)) if k == VARINT}
        shards = numbers.get(1, 0)
        if not 0 <= shards <= _MAX_SHARDS:
            raise UnsafeCheckpointError(f"{where} names {shards:,} data files")
        return Header(shards, numbers.get(2, 0) == 1)
    raise MalformedFileError(f"{where} is a table without the header of a checkpoint")


def shard_name(stem: str, number: int, shards: int) -> str:
    """Name a data file.

    Parameters
    ----------
    stem
        The checkpoint's name, without ``.index``.
    number, shards
        Which of how many.

    Returns
    -------
    str
        ``stem.data-00000-of-00001``.
    """
    return f"{stem}.data-{number:05d}-of-{shards:05d}"


class Bundle:
    """A checkpoint, opened.

    Parameters
    ----------
    data
        Bytes of the index.
    stem
        Its name without ``.index``, with the folder its companions have in front.
    companions
        Name → path.
    where
        For messages.

    Raises
    ------
    MalformedFileError
        If the index is damaged, or a data file shorter than it says.
    MissingCompanionError
        If a data file is not there.
    UnsafeCheckpointError
        If sizes are absurd.
    """

    def __init__(
        self, data: ByteSource, stem: str, companions: Mapping[str, Path], *, where: str
    ) -> None:
        self._where = where
        self._stem = stem
        self._companions = companions
        self.header = read_header(data, where=where)
        self._sizes: dict[int, int] = {}
        self._entries: dict[bytes, Entry] = {}
        self._slices: dict[bytes, Entry] = {}
        for key, value, _ in Table(data, where=where).entries():
            if not key:
                continue
            if len(self._entries) + len(self._slices) >= MAX_VARIABLES:
                raise UnsafeCheckpointError(f"{where}: more than {MAX_VARIABLES:,} variables")
            # Names of slices begin with a number in order-keeping code.
            table = self._slices if key[0] == 0 else self._entries
            table[key] = _entry(value, what=f"{where}: {_text(key)}")

    def object_graph(self) -> ObjectGraph | None:
        """Read the graph of objects.

        Returns
        -------
        ObjectGraph or None
            None in checkpoints saved by name.
        """
        entry = self._entries.get(OBJECT_GRAPH_KEY.encode())
        if entry is None or entry.dtype != "string":
            return None
        path = self._shard(entry, OBJECT_GRAPH_KEY)
        if entry.size > _MAX_GRAPH:
            raise UnsafeCheckpointError(f"{self._where}: an object graph of {entry.size:,} bytes")
        stored = read_array(path, entry.offset, entry.size, np.uint8).tobytes()
        length, position = WireReader(stored, where=self._where).varint(0, len(stored))
        position += 4  # checksum of the length
        if position + length > len(stored):
            raise MalformedFileError(f"{self._where}: the object graph is cut short")
        return read_object_graph(stored[position : position + length], where=self._where)

    def variables(self) -> Iterable[Variable]:
        """List all variables but texts, which hold no weights.

        Yields
        ------
        Variable
            In the order of the index.
        """
        for key, entry in self._entries.items():
            if entry.dtype == "string":
                continue
            name = _text(key)
            if entry.slices:
                yield self._sliced(key, entry)
            else:
                storage = ("bundle", entry.shard, entry.offset)
                yield Variable(name, entry.dtype, entry.shape, self._array(entry, name), storage)

    def _sliced(self, key: bytes, entry: Entry) -> Variable:
        name = _text(key)
        parts, held = [], 0
        for where in entry.slices:
            if len(where) != len(entry.shape):
                raise MalformedFileError(
                    f"{self._where}: a slice of {name} has {len(where)} axes, "
                    f"{name} has {len(entry.shape)}"
                )
            stored = self._slices.get(encode_slice(key, where))
            if stored is None:
                raise MalformedFileError(f"{self._where}: a slice of {name} is missing")
            extents = tuple(
                whole if length < 0 else length
                for (_, length), whole in zip(where, entry.shape, strict=True)
            )
            fits = all(
                begin >= 0 and begin + length <= whole
                for (begin, length), whole in zip(where, entry.shape, strict=True)
            )
            if extents != stored.shape or not fits or stored.dtype != entry.dtype:
                raise MalformedFileError(f"{self._where}: a slice of {name} does not fit it")
            parts.append((where, self._array(stored, name)))
            held += check_shape(extents, what=name)
        if held != check_shape(entry.shape, what=name):
            raise MalformedFileError(
                f"{self._where}: the slices of {name} hold {held:,} values, its shape is "
                f"{list(entry.shape)}"
            )
        load = _Sliced(entry.shape, entry.dtype, tuple(parts))
        return Variable(name, entry.dtype, entry.shape, load, ("sliced", name))

    def _array(self, entry: Entry, name: str) -> StoredArray:
        elements = check_shape(entry.shape, what=name)
        width = item_size(entry.dtype)
        path = self._shard(entry, name)
        source = FileBytes(path, entry.offset, entry.size)
        # A type nobody knows is listed and never loaded.
        dtype, width = (entry.dtype, width) if width is not None else ("uint8", 0)
        if width and entry.size != elements * width:
            raise MalformedFileError(
                f"{self._where}: {name} has {entry.size:,} bytes, its shape {list(entry.shape)} of "
                f"{entry.dtype} needs {elements * width:,}"
            )
        strides = c_strides(entry.shape)
        return StoredArray(source, 0, entry.shape, strides, dtype, self.header.big_endian)

    def _shard(self, entry: Entry, name: str) -> Path:
        number = entry.shard
        if number >= self.header.shards:
            raise MalformedFileError(
                f"{self._where}: {name} lies in data file {number} of {self.header.shards}"
            )
        file = shard_name(self._stem, number, self.header.shards)
        path = self._companions.get(file)
        missing = f"{self._where} needs {file}, which is missing"
        if path is None:
            raise MissingCompanionError(missing)
        if number not in self._sizes:
            try:
                self._sizes[number] = path.stat().st_size
            except OSError as error:
                raise MissingCompanionError(missing) from error
        if entry.offset + entry.size > self._sizes[number]:
            raise MalformedFileError(
                f"{file} ends early: {name} ends at byte {entry.offset + entry.size:,}, the file "
                f"at {self._sizes[number]:,}"
            )
        return path


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _entry(value: bytes, *, what: str) -> Entry:
    wire = WireReader(value, where=what)
    numbers: dict[int, int] = {}
    shape: Shape | None = ()
    slices: list[Slice] = []
    for number, kind, content, end in wire.fields(0, len(value)):
        if kind == VARINT:
            numbers[number] = content
        elif number == 2 and kind == BYTES:
            shape = read_shape(wire, content, end, what=what)
        elif number == 7 and kind == BYTES:
            slices.append(read_slice(wire, content, end))
    if shape is None:
        raise MalformedFileError(f"{what} has no shape")
    return Entry(
        type_name(numbers.get(1, 0)),
        shape,
        numbers.get(3, 0),
        numbers.get(4, 0),
        numbers.get(5, 0),
        tuple(slices),
    )
