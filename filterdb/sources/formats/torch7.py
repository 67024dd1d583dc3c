"""Torch7 files (``.t7``): networks of the Lua framework, as modules, or tables of tensors."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import MalformedFileError, UnsafeCheckpointError, UnsupportedFormatError
from filterdb.layers.raw import RawModel, Tensor
from filterdb.sources.formats.base import MAX_TENSORS, FormatReader, ModelFile
from filterdb.sources.formats.file_view import check_expansion, check_shape, map_file
from filterdb.sources.formats.stored_array import FileBytes, StoredArray, span
from filterdb.sources.formats.torch7_graph import GraphBuilder, is_module
from filterdb.sources.formats.torch7_objects import (
    LuaTable,
    ObjectReader,
    TorchObject,
    TorchTensor,
)

if TYPE_CHECKING:
    from filterdb.types import AnyArray, SkipReason

_TABLE, _TORCH, _RECURSIVE = 3, 4, 8
_MAX_DEPTH = 200
_EPSILON = 1e-5
_STATE = ("grad", "optim", "adagrad", "momentum", "dfdx")
#: Fields of modules that learn nothing.
_SCRATCH = frozenset(
    {"output", "finput", "fgradInput", "buffer", "buffer1", "buffer2", "noise", "indices", "ones",
     "save_mean", "save_std", "saved_mean", "saved_std", "std", "centered", "normalized",
     "running_mean", "running_var", "running_std", "_input", "_output", "columns"}
)  # fmt: skip


def sniff(head: bytes, _file: ModelFile) -> bool:
    """Tell whether a file is a serialised object of torch7.

    Parameters
    ----------
    head
        The first bytes.

    Returns
    -------
    bool
        True where it begins with the first object of its kind, a class or a table; also for the
        text form, which `read` refuses with a word on what to do.
    """
    if _is_text(head):
        return True
    if len(head) < 16:
        return False
    kind, index, size, next_kind = struct.unpack_from("<4i", head)
    if index != 1:
        # Objects are counted from 1, and the file's own is the first.
        return False
    if kind == _TORCH:
        # Files older than versions begin with the class itself.
        named = 0 < size < 64 and head[12:16] in (b"torc", b"nn.S", b"nn.C", b"nn.P", b"nn.g")
        return named or (size == 3 and head[12:14] == b"V ")
    return bool(kind == _TABLE and 0 < size < 1 << 22 and 1 <= next_kind <= _RECURSIVE)


def _is_text(head: bytes) -> bool:
    return head.startswith((b"4\n1\n3\nV ", b"3\n1\n"))


def read(file: ModelFile) -> RawModel:
    """List the modules and tensors of a torch7 file.

    Parameters
    ----------
    file
        The ``.t7``.

    Returns
    -------
    RawModel
        Modules are named by their place as Lua counts, from 1: ``2.1.weight``.

    Raises
    ------
    SourceError
        If the file is damaged, or is of the text form.
    """
    where = file.name or file.path.name
    with map_file(file.path) as data:
        if _is_text(bytes(data[:16])):
            raise UnsupportedFormatError(
                f"{where} is a torch7 file in text form; expected the binary one",
                tip="write it again with torch.save(name, model)",
            )
        try:
            root = ObjectReader(data, where).read()
        except MalformedFileError as error:
            try:
                # On Windows a C long has four bytes; nothing in the file says so.
                root = ObjectReader(data, where, long_size=4).read()
            except MalformedFileError:
                raise error from None
        size = len(data)
    lister = _Lister(file, size, where)
    lister.walk(root)
    builder = lister.builder
    return RawModel(
        format="torch7",
        tensors=tuple(lister.tensors),
        nodes=tuple(builder.nodes),
        has_edges=bool(builder.nodes) and builder.has_edges,
        default_layout="OIHW",
        notes=(f"torch7 {getattr(root, 'kind', 'table')}",),
    )


class _Lister:
    """Lists tensors; modules go to the graph, everything else is walked by its keys.

    Parameters
    ----------
    file
        The file.
    size
        Its bytes.
    where
        Its name, for messages.
    """

    def __init__(self, file: ModelFile, size: int, where: str) -> None:
        self.path, self.size, self.where = file.path, size, where
        self.tensors: list[Tensor] = []
        self.builder = GraphBuilder(where, self.named)
        self._names: set[str] = set()
        self._listed: dict[tuple[int, str], str] = {}
        self._stored: set[int] = set()

    def walk(self, root: Any) -> None:
        """List everything.

        Parameters
        ----------
        root
            What the file holds.
        """
        waiting: list[tuple[str, Any, int]] = [("", root, 0)]
        seen: set[int] = set()
        while waiting:
            name, value, depth = waiting.pop()
            if isinstance(value, TorchTensor):
                if id(value) not in self._stored:
                    self.named(value, name or "tensor", None, name)
                continue
            if not isinstance(value, LuaTable | TorchObject) or id(value) in seen:
                continue
            seen.add(id(value))
            if depth > _MAX_DEPTH:
                raise UnsafeCheckpointError(f"{self.where}: tables nest deeper than {_MAX_DEPTH}")
            if (
                isinstance(value, TorchObject)
                and id(value) not in self.builder.met
                and is_module(value)
                and not _is_state(name)
            ):
                self.builder.emit(value, name, (f"{name}/in" if name else "input",))
            entries = value.entries if isinstance(value, LuaTable) else value.fields.entries
            # What a module keeps under "modules" is called by its number alone.
            inside = name
            for key, child in reversed(entries.items()):
                label = inside if key == "modules" else _joined(inside, key)
                waiting.append((label, child, depth + 1))

    def named(self, tensor: TorchTensor, name: str, module: TorchObject | None, key: str) -> str:
        """List a tensor once.

        Parameters
        ----------
        tensor
            As the module uses it.
        name
            Its name, if that is free.
        module
            Whose it is; None for tensors in tables.
        key
            The field it is kept in.

        Returns
        -------
        str
            The name it is listed under.
        """
        owner = module.get(key) if module is not None else tensor
        place = (id(owner), key if key == "running_std" else "")
        if place in self._listed:
            return self._listed[place]
        free, n = name, 2
        while free in self._names:
            free, n = f"{name}#{n}", n + 1
        self._names.add(free)
        self._listed[place] = free
        self._stored.add(id(owner))
        if len(self._names) > MAX_TENSORS:
            raise UnsafeCheckpointError(f"{self.where} holds more than a million tensors")
        load = self._values(tensor, free)
        if key == "running_std" and module is not None:
            epsilon = module.get("eps")
            load = _Variance(load, epsilon if isinstance(epsilon, float) else _EPSILON)
        is_empty = not tensor.shape or 0 in tensor.shape
        shape = (0,) if is_empty else tensor.shape
        storage = tensor.storage
        self.tensors.append(
            Tensor(
                free,
                shape,
                tensor.dtype,
                load,
                storage=(storage.offset, tensor.start, shape, tensor.strides)
                if storage is not None and not is_empty
                else None,
                skip=_skip(free, key if module is None else ""),
            )
        )
        return free

    def _values(self, tensor: TorchTensor, name: str) -> StoredArray | _Variance:
        what = f"{self.where}, tensor {name!r}"
        count = check_shape(tensor.shape, what=what)
        item = np.dtype(tensor.dtype).itemsize
        storage = tensor.storage
        if not count or not tensor.shape or storage is None:
            if count and tensor.shape:
                raise MalformedFileError(f"{what} of shape {list(tensor.shape)} has no storage")
            return StoredArray(FileBytes(self.path, 0, 0), 0, (0,), (1,), tensor.dtype)
        check_expansion(count * item, self.size, what=what)
        if min(tensor.strides) < 0 or tensor.start < 0:
            raise MalformedFileError(f"{what} has strides {list(tensor.strides)}")
        if storage.dtype != tensor.dtype:
            raise MalformedFileError(f"{what} of {tensor.dtype} lies in {storage.dtype} values")
        # An axis of one element is never stepped along, however long its step.
        steps = tuple(
            step if extent > 1 else 1
            for extent, step in zip(tensor.shape, tensor.strides, strict=True)
        )
        reach = tensor.start + span(tensor.shape, steps)
        if reach > storage.count:
            raise MalformedFileError(
                f"{what} reaches over {reach} values, its storage has {storage.count}"
            )
        source = FileBytes(self.path, storage.offset, storage.count * item)
        return StoredArray(source, tensor.start * item, tensor.shape, steps, tensor.dtype)


@dataclass(frozen=True, slots=True)
class _Variance:
    """A BatchNorm's variance, which files until 2015 keep as 1 / √(variance + ε)."""

    values: StoredArray | _Variance
    epsilon: float

    def __call__(self) -> AnyArray:
        """Load the variance."""
        inverse = self.values()
        with np.errstate(all="ignore"):
            return (inverse**-2.0 - self.epsilon).astype(inverse.dtype)


def _joined(name: str, key: Any) -> str:
    text = str(key) if isinstance(key, str | int | float | bool) else "?"
    return f"{name}.{text[:200]}" if name else text[:200]


def _is_state(name: str) -> bool:
    return any(part.lower().startswith(_STATE) for part in name.split("."))


def _skip(name: str, key: str) -> tuple[SkipReason, str] | None:
    if _is_state(name):
        return ("optimizer_state", name)
    leaf = name.rsplit(".", 1)[-1].split("#")[0]
    return ("buffer", leaf) if key and leaf in _SCRATCH else None


READER = FormatReader(
    name="torch7",
    title="Torch7",
    suffixes=(".t7", ".net", ".th", ".t7b"),
    sniff=sniff,
    read=read,
)
