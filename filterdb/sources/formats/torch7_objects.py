"""Torch7's serialised Lua objects, binary form: read as data, functions stepped over.

A value is an int32 type and what belongs to it; tables, classes and functions carry an index and
are stored once (torch7 ``File.lua``, ``generic/Tensor.c``, ``generic/Storage.c``). Nothing here is
recursive: what is half read waits on a list of its own, so depth costs no stack.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.base import MAX_RANK

if TYPE_CHECKING:
    from filterdb.sources.formats.file_view import ByteSource
    from filterdb.types import Shape

_NIL, _NUMBER, _STRING, _TABLE, _TORCH, _BOOLEAN, _FUNCTION = range(7)
_LEGACY_RECURSIVE, _RECURSIVE = 7, 8
#: Real networks hold some ten thousand values beside their numbers.
_MAX_VALUES = 2_000_000
_MAX_TEXT = 1024
_ELEMENTS = {
    "Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64",
    "Float": "float32", "Double": "float64", "Half": "float16", "Cuda": "float32",
}  # fmt: skip
_ARRAY = re.compile(r"torch\.(Cuda)?(Byte|Char|Short|Int|Long|Float|Double|Half)?(Tensor|Storage)")


@dataclass(eq=False)
class LuaTable:
    """A table.

    Parameters
    ----------
    entries
        Key → value; whole numbers as int, objects as keys by their identity.
    """

    entries: dict[Any, Any] = field(default_factory=dict)

    def items(self) -> list[Any]:
        """Return the values under 1, 2, 3, … as Lua's ``ipairs`` would."""
        found, i = [], 1
        while i in self.entries:
            found.append(self.entries[i])
            i += 1
        return found


@dataclass(eq=False)
class TorchObject:
    """An object of any class but tensors and storages.

    Parameters
    ----------
    kind
        Its class, "nn.SpatialConvolution".
    fields
        Its table.
    """

    kind: str
    fields: LuaTable = field(default_factory=LuaTable)

    def get(self, key: str) -> Any:
        """Return a field; None where it is not there."""
        return self.fields.entries.get(key)


@dataclass(eq=False, frozen=True)
class TorchStorage:
    """Numbers in a row.

    Parameters
    ----------
    dtype
        Numpy's name.
    offset
        Byte offset in the file.
    count
        How many.
    """

    dtype: str
    offset: int
    count: int


@dataclass(eq=False)
class TorchTensor:
    """A view of a storage.

    Parameters
    ----------
    dtype
        Numpy's name.
    shape, strides
        In elements.
    start
        Its first element in the storage, from 0.
    storage
        None for an empty tensor.
    """

    dtype: str
    shape: Shape
    strides: tuple[int, ...]
    start: int
    storage: TorchStorage | None = None


#: What waits to be completed: (object, values still to come, key read last).
_Pending: TypeAlias = list[Any]
_NO_KEY = object()


class ObjectReader:
    """Reads one file.

    Parameters
    ----------
    data
        Its bytes.
    where
        Its name, for messages.
    long_size
        Bytes of a C long where it was written: 8, or 4 on Windows.
    """

    def __init__(self, data: ByteSource, where: str, *, long_size: int = 8) -> None:
        self.data, self.where = data, where
        self.position = 0
        self._long = "q" if long_size == 8 else "i"
        self._objects: dict[int, Any] = {}
        self._values = 0

    def read(self) -> Any:
        """Read the file's one object.

        Returns
        -------
        object
            LuaTable, TorchObject, TorchTensor or a plain value.

        Raises
        ------
        MalformedFileError
            If it is cut short or breaks the format.
        UnsafeCheckpointError
            If it holds absurdly many values.
        """
        root, waiting = self._value()
        stack: list[_Pending] = [] if waiting is None else [waiting]
        while stack:
            frame = stack[-1]
            if frame[1] == 0:
                stack.pop()
                continue
            frame[1] -= 1
            value, waiting = self._value()
            self._give(frame, value)
            if waiting is not None:
                stack.append(waiting)
        return root

    def _give(self, frame: _Pending, value: Any) -> None:
        owner = frame[0]
        if isinstance(owner, LuaTable):
            if frame[2] is _NO_KEY:
                frame[2] = value
                return
            key, frame[2] = frame[2], _NO_KEY
            if isinstance(key, float) and key.is_integer() and abs(key) < 1 << 53:
                key = int(key)
            owner.entries[key] = value
        elif isinstance(owner, TorchTensor):
            if value is not None and not isinstance(value, TorchStorage):
                raise self.malformed("a tensor without a storage")
            owner.storage = value
        elif isinstance(owner, TorchObject):
            # Classes that keep anything but a table are of no interest here.
            owner.fields = value if isinstance(value, LuaTable) else LuaTable({1: value})

    def malformed(self, problem: str) -> MalformedFileError:
        """Return the error to raise for broken bytes."""
        return MalformedFileError(f"{self.where} is damaged: {problem} before byte {self.position}")

    def _take(self, count: int) -> int:
        """Step over `count` bytes; return where they begin."""
        start = self.position
        if count < 0 or count > len(self.data) - start:
            raise MalformedFileError(
                f"{self.where} ends early: expected {count} bytes at byte {start}, the file has "
                f"{len(self.data)}"
            )
        self.position = start + count
        return start

    def _unpack(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self._take(struct.calcsize("<" + code)))[0]

    def _integer(self) -> int:
        return int(self._unpack("i"))

    def _longs(self, count: int) -> tuple[int, ...]:
        start = self._take(count * (8 if self._long == "q" else 4))
        return struct.unpack_from(f"<{count}{self._long}", self.data, start)

    def _text(self) -> str:
        size = self._integer()
        start = self._take(size)
        return bytes(self.data[start : start + min(size, _MAX_TEXT)]).decode("utf-8", "replace")

    def _value(self) -> tuple[Any, _Pending | None]:
        """Read one value; what it contains is still to come where a pending entry is returned."""
        self._values += 1
        if self._values > _MAX_VALUES:
            raise UnsafeCheckpointError(f"{self.where} holds more than {_MAX_VALUES} values")
        kind = self._integer()
        if kind == _NIL:
            return None, None
        if kind == _NUMBER:
            return self._unpack("d"), None
        if kind == _STRING:
            return self._text(), None
        if kind == _BOOLEAN:
            return self._integer() == 1, None
        if kind == _FUNCTION:
            return None, self._function()
        if kind not in (_TABLE, _TORCH, _RECURSIVE, _LEGACY_RECURSIVE):
            raise self.malformed(f"unknown type {kind}")
        index = self._integer()
        if index in self._objects:
            return self._objects[index], None
        if kind == _TABLE:
            return self._table(index)
        if kind == _TORCH:
            return self._torch(index)
        self._objects[index] = None
        return None, self._function()

    def _function(self) -> _Pending:
        # Byte code of a Lua machine: stepped over, and its upvalues read and dropped.
        self._take(self._integer())
        return [None, 1, _NO_KEY]

    def _table(self, index: int) -> tuple[Any, _Pending]:
        table = self._objects[index] = LuaTable()
        return table, [table, 2 * self._count(8), _NO_KEY]

    def _count(self, least: int) -> int:
        size = self._integer()
        if not 0 <= size <= (len(self.data) - self.position) // least:
            raise self.malformed(f"a table of {size} entries")
        return size

    def _torch(self, index: int) -> tuple[Any, _Pending | None]:
        name = self._text()
        if name.startswith("V "):
            name = self._text()
        match = _ARRAY.fullmatch(name)
        if match is None:
            found = self._objects[index] = TorchObject(name)
            if name in ("tds.Hash", "tds.Vec"):
                return found, self._tds(found, name)
            return found, [found, 1, _NO_KEY]
        dtype = _ELEMENTS[match[2] or ("Float" if match[1] else "Double")]
        if match[3] == "Storage":
            (count,) = self._longs(1)
            size = int(re.sub(r"\D", "", dtype)) // 8
            if not 0 <= count <= len(self.data):
                raise self.malformed(f"a storage of {count} values")
            storage = TorchStorage(dtype, self._take(count * size), count)
            self._objects[index] = storage
            return storage, None
        rank = self._integer()
        if not 0 <= rank <= MAX_RANK:
            raise self.malformed(f"a tensor of {rank} axes")
        shape, strides = self._longs(rank), self._longs(rank)
        (start,) = self._longs(1)
        tensor = self._objects[index] = TorchTensor(dtype, shape, strides, start - 1)
        return tensor, [tensor, 1, _NO_KEY]

    def _tds(self, owner: TorchObject, name: str) -> _Pending:
        # Containers of the tds package: a count, the allocator's options, then the values.
        count = self._count(4)
        _options, waiting = self._value()
        if waiting is not None and waiting[1]:
            raise self.malformed(f"{name} with options filterdb does not know")
        if name == "tds.Hash":
            return [owner.fields, 2 * count, _NO_KEY]
        return [None, count, _NO_KEY]
