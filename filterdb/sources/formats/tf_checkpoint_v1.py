"""Checkpoints of version 1: one table that holds the values, too.

The entry without a name lists the variables (``SavedTensorSliceMeta``); each slice of one is an
entry of its own with the values as a ``TensorProto`` (``saved_tensor_slice.proto``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.file_view import check_shape, map_file
from filterdb.sources.formats.protobuf_wire import BYTES, VARINT, WireReader
from filterdb.sources.formats.tf_bundle import MAX_VARIABLES, Variable, zeros
from filterdb.sources.formats.tf_slices import Slice, encode_slice, read_slice
from filterdb.sources.formats.tf_table import Handle, Table
from filterdb.sources.formats.tf_types import (
    Constant,
    constant_array,
    read_constant,
    read_shape,
    type_name,
)

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.sources.formats.file_view import ByteSource
    from filterdb.types import AnyArray, Shape


@dataclass(frozen=True, slots=True)
class _Stored:
    """Loads a variable from the blocks its slices lie in."""

    path: Path
    dtype: str
    shape: Shape
    parts: tuple[tuple[Slice, bytes, Handle], ...]

    def __call__(self) -> AnyArray:
        whole = zeros(self.shape, self.dtype)
        with map_file(self.path) as data:
            table = Table(data, where=self.path.name)
            for where, key, handle in self.parts:
                place = tuple(
                    slice(None) if length < 0 else slice(begin, begin + length)
                    for begin, length in where
                )
                extents = whole[place].shape
                value = table.find(handle, key)
                whole[place] = _values(value, self.dtype, extents, self.path.name)
        return whole


def read_version_1(data: ByteSource, path: Path, *, where: str) -> list[Variable]:
    """List the variables of a checkpoint of version 1.

    Parameters
    ----------
    data
        Its bytes.
    path
        Where it lies, for loading.
    where
        For messages.

    Returns
    -------
    list of Variable
        As its list has them; texts are left out.

    Raises
    ------
    MalformedFileError
        If it is damaged.
    UnsafeCheckpointError
        If it has more variables than any network.
    """
    listed: list[tuple[str, str, Shape, tuple[Slice, ...]]] = []
    handles: dict[bytes, Handle] = {}
    largest = 0
    for key, value, handle in Table(data, where=where).entries():
        if not key:
            listed = _listed(WireReader(value, where=where))
        handles[key] = handle
        largest += len(value)
        if len(handles) > MAX_VARIABLES:
            raise UnsafeCheckpointError(f"{where}: more than {MAX_VARIABLES:,} variables")
    variables = []
    for name, dtype, shape, slices in listed:
        if dtype == "string":
            continue
        elements = check_shape(shape, what=name)
        # A value takes a byte at least, wherever it is not the same as those before.
        if elements > largest:
            raise MalformedFileError(
                f"{where}: {name} has {elements:,} values, the file {largest:,} bytes of them"
            )
        parts = tuple((s, k, handles[k]) for s in slices if (k := _key(name, s)) in handles)
        if len(parts) < len(slices) or not parts or any(len(s) != len(shape) for s in slices):
            raise MalformedFileError(f"{where}: a slice of {name} is missing")
        load = _Stored(path, dtype, shape, parts)
        variables.append(Variable(name, dtype, shape, load, ("version 1", name)))
    return variables


def _key(name: str, where: Slice) -> bytes:
    return encode_slice(name.encode(), where)


def _listed(wire: WireReader) -> list[tuple[str, str, Shape, tuple[Slice, ...]]]:
    found = []
    for number, kind, value, end in wire.fields(0, len(wire.data)):
        if number != 1 or kind != BYTES:
            continue
        for field, inner, start, stop in wire.fields(value, end):
            if field == 1 and inner == BYTES:
                found.append(_variable(wire, start, stop))
                if len(found) > MAX_VARIABLES:
                    raise UnsafeCheckpointError(f"more than {MAX_VARIABLES:,} variables")
    return found


def _variable(wire: WireReader, start: int, stop: int) -> tuple[str, str, Shape, tuple[Slice, ...]]:
    name, dtype = "", "type 0"
    shape: Shape = ()
    slices: list[Slice] = []
    for number, kind, value, end in wire.fields(start, stop):
        if number == 1 and kind == BYTES:
            name = wire.text(value, end)
        elif number == 2 and kind == BYTES:
            shape = read_shape(wire, value, end, what=name) or ()
        elif number == 3 and kind == VARINT:
            dtype = type_name(value)
        elif number == 4 and kind == BYTES:
            slices.append(read_slice(wire, value, end))
    return name, dtype, shape, tuple(slices)


def _values(stored: bytes, dtype: str, shape: Shape, where: str) -> AnyArray:
    wire = WireReader(stored, where=where)
    for number, kind, value, end in wire.fields(0, len(stored)):
        if number != 2 or kind != BYTES:
            continue
        for field, inner, start, stop in wire.fields(value, end):
            if field == 3 and inner == BYTES:
                found = read_constant(wire, start, stop, what=where, dtype=dtype)
                elements = check_shape(shape, what=where)
                constant = Constant(dtype, shape, found.pieces, elements)
                pieces = [
                    (k, a.to_bytes(8, "little") if k == VARINT else stored[a:b])
                    for k, a, b in found.pieces
                ]
                return constant_array(constant, pieces, what=where)
    raise MalformedFileError(f"{where}: a slice without values")
