"""Tensors as torch's pickles describe them: a closed table of constructors, nothing called."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.file_view import check_shape
from filterdb.sources.formats.numpy_pickles import NUMPY_CONSTRUCTORS, numpy_array
from filterdb.sources.formats.pickle_values import Global, PersistentId, Record
from filterdb.sources.formats.stored_array import QuantisedArray, StoredArray, StoredBytes, span

if TYPE_CHECKING:
    from filterdb.types import AnyArray, Shape, SkipReason

#: Element types by torch's name: numpy's (or our) name of them and their size in bytes.
_TYPES: dict[str, tuple[str, int]] = {
    "float64": ("float64", 8), "double": ("float64", 8),
    "float32": ("float32", 4), "float": ("float32", 4),
    "float16": ("float16", 2), "half": ("float16", 2),
    "bfloat16": ("bfloat16", 2),
    "int64": ("int64", 8), "long": ("int64", 8),
    "int32": ("int32", 4), "int": ("int32", 4),
    "int16": ("int16", 2), "short": ("int16", 2),
    "int8": ("int8", 1), "uint8": ("uint8", 1), "bool": ("bool", 1),
    "uint16": ("uint16", 2), "uint32": ("uint32", 4), "uint64": ("uint64", 8),
    "complex32": ("complex32", 4), "chalf": ("complex32", 4),
    "complex64": ("complex64", 8), "cfloat": ("complex64", 8),
    "complex128": ("complex128", 16), "cdouble": ("complex128", 16),
    "float8_e4m3fn": ("float8_e4m3fn", 1), "float8_e5m2": ("float8_e5m2", 1),
    "float8_e4m3fnuz": ("float8_e4m3fnuz", 1), "float8_e5m2fnuz": ("float8_e5m2fnuz", 1),
    "float8_e8m0fnu": ("float8_e8m0fnu", 1), "float4_e2m1fn_x2": ("float4_e2m1fn_x2", 1),
    "qint8": ("int8", 1), "quint8": ("uint8", 1), "qint32": ("int32", 4),
    "quint4x2": ("quint4x2", 1), "quint2x4": ("quint2x4", 1),
}  # fmt: skip
#: Legacy storage classes.
_STORAGES: dict[str, str] = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}  # fmt: skip
_READABLE = frozenset(
    ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")
) | {"bool", "uint16", "uint32", "uint64"}
#: Wrappers around wrappers; torch makes two.
_MAX_WRAPPERS = 8


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor found in a pickle, not loaded.

    Parameters
    ----------
    shape, dtype, load, quantised, storage, skip
        As in :class:`filterdb.layers.raw.Tensor`.
    nbytes
        Bytes it takes once loaded.
    """

    shape: Shape
    dtype: str
    load: Callable[[], AnyArray]
    nbytes: int
    quantised: bool = False
    storage: tuple[Any, ...] | None = None
    skip: tuple[SkipReason, str] | None = None


class Storages(Protocol):
    """Where a container keeps the bytes of its storages."""

    @property
    def big_endian(self) -> bool:
        """Byte order of the elements."""

    def find(self, key: str, nbytes: int) -> StoredBytes:
        """Return the bytes of a storage of at least `nbytes` bytes."""


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage as a persistent id names it.

    Parameters
    ----------
    key
        Its name in the container.
    dtype, itemsize
        Element type in torch's words, and its size in bytes.
    numel
        Elements of the whole storage.
    start, stop
        The part of it meant (legacy files have views of storages), in elements.
    """

    key: str
    dtype: str
    itemsize: int
    numel: int
    start: int
    stop: int


def storage_ref(value: Any, where: str) -> StorageRef | None:
    """Read torch's ("storage", class, key, location, count[, view]) id.

    Parameters
    ----------
    value
        What the persistent id holds.
    where
        The file's name for messages.

    Returns
    -------
    StorageRef or None
        None where the id is of another kind.

    Raises
    ------
    MalformedFileError
        It begins like a storage and is none.
    """
    if not isinstance(value, tuple) or len(value) < 5 or value[0] != "storage":
        return None
    kind, key, count = value[1], value[2], value[4]
    name = kind.name if isinstance(kind, Global) else ""
    dtype = _STORAGES.get(name.rpartition(".")[2], "")
    if not dtype or type(key) not in (str, int) or not _is_count(count):
        raise MalformedFileError(
            f"{where}: a storage of class {name[:80]!r} with {str(count)[:40]!r} elements"
        )
    start, stop = 0, count
    view = value[5] if len(value) > 5 else None
    if view is not None:
        if not isinstance(view, tuple) or len(view) != 3 or not all(map(_is_count, view[1:])):
            raise MalformedFileError(f"{where}: storage {str(key)[:40]!r} has a view that is none")
        start, stop = view[1], view[1] + view[2]
    if stop > count:
        raise MalformedFileError(
            f"{where}: storage {str(key)[:40]!r} of {count} elements has a view up to {stop}"
        )
    return StorageRef(str(key), dtype, _TYPES[dtype][1], count, start, stop)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


class TensorTable:
    """Understands tensor records; each once, whatever refers to it.

    Parameters
    ----------
    where
        The file's name for messages.
    storages
        The container's storages.
    """

    def __init__(self, where: str, storages: Storages) -> None:
        self._where = where
        self._storages = storages
        self._known: dict[int, TensorSpec | None] = {}
        self._in_scale = False

    def find(self, value: Any) -> TensorSpec | None:
        """Return the tensor a record describes, None where it describes none.

        Parameters
        ----------
        value
            Any value of the unpickled graph (which must stay alive).

        Returns
        -------
        TensorSpec or None
            The tensor.

        Raises
        ------
        MalformedFileError
            The record claims to be a tensor and breaks the rules of one.
        """
        if type(value) is not Record:
            return None
        identity = id(value)
        if identity not in self._known:
            self._known[identity] = self._interpret(value)
        return self._known[identity]

    def knows(self, value: Any) -> bool:
        """Tell whether `value` has been asked about before."""
        return id(value) in self._known

    def _interpret(self, record: Record) -> TensorSpec | None:
        path, key = "", ("", "")
        for _ in range(_MAX_WRAPPERS):
            kind = record.kind
            if kind is None:
                return None
            path, key = kind.path, (kind.module, kind.name)
            inner = _unwrap(kind, record.args)
            if inner is None:
                break
            if type(inner) is not Record:
                return None
            record = inner
        else:
            self._fail("is wrapped in itself", path)
        if key in NUMPY_CONSTRUCTORS:
            return self._numpy(record)
        build = _BUILDERS.get(key)
        return None if build is None else build(self, record.args, path)

    def _fail(self, what: str, path: str) -> NoReturn:
        raise MalformedFileError(f"{self._where}: a tensor ({path}) {what}")

    def _numpy(self, record: Record) -> TensorSpec | None:
        array = numpy_array(record, self._where)
        if array is None:
            return None
        nbytes = array.source.size
        skip = unreadable(array.dtype)
        return TensorSpec(array.shape, array.dtype, array, nbytes, skip=skip)

    def _dense(self, args: tuple[Any, ...], path: str, dtype: str | None = None) -> TensorSpec:
        if len(args) < 4:
            self._fail(f"has {len(args)} arguments, 4 or more expected", path)
        reference = args[0]
        ref = (
            storage_ref(reference.value, self._where)
            if isinstance(reference, PersistentId)
            else None
        )
        if ref is None:
            self._fail("has no storage", path)
        shape, strides = self._sizes(args[2], path), self._sizes(args[3], path)
        if len(shape) != len(strides) or not _is_count(args[1]):
            self._fail(f"has shape {shape}, strides {strides}, offset {str(args[1])[:40]}", path)
        element, itemsize = _TYPES[dtype or ref.dtype]
        whole = (ref.stop - ref.start) * ref.itemsize
        first = ref.start * ref.itemsize + args[1] * itemsize
        if args[1] * itemsize + span(shape, strides) * itemsize > whole:
            self._fail(
                f"of shape {shape}, strides {strides} and offset {args[1]} reaches beyond its "
                f"storage of {whole} bytes",
                path,
            )
        source = self._storages.find(ref.key, ref.numel * ref.itemsize)
        array = StoredArray(source, first, shape, strides, element, self._storages.big_endian)
        count = check_shape(shape, what=f"{self._where}: a tensor")
        return TensorSpec(
            shape,
            element,
            array,
            count * (4 if element == "bfloat16" else itemsize),
            storage=(ref.key, first, shape, strides, element),
            skip=unreadable(element),
        )

    def _sizes(self, value: Any, path: str) -> tuple[int, ...]:
        if type(value) is Record and value.args and isinstance(value.args[0], list | tuple):
            value = value.args[0]  # torch.Size((…))
        if not isinstance(value, list | tuple) or not all(_is_count(size) for size in value):
            self._fail("has sizes or strides that are no counts", path)
        check_shape(tuple(value), what=f"{self._where}: a tensor")
        return tuple(value)

    def _typed(self, args: tuple[Any, ...], path: str) -> TensorSpec:
        dtype = args[6] if len(args) > 6 else None
        if not isinstance(dtype, Global) or dtype.name not in _TYPES:
            name = dtype.path if isinstance(dtype, Global) else type(dtype).__name__
            self._fail(f"has the unknown element type {name[:80]}", path)
        return self._dense(args, path, dtype.name)

    def _quantised(self, args: tuple[Any, ...], path: str) -> TensorSpec:
        integers = self._dense(args, path)
        params = args[4] if len(args) > 4 else None
        scheme = params[0] if isinstance(params, tuple) and len(params) >= 3 else None
        name = scheme.name if isinstance(scheme, Global) else ""
        scale, zero = (params[1], params[2]) if isinstance(params, tuple) and scheme else (0, 0)
        axis = 0
        if name.startswith("per_channel"):
            axis = params[3] if isinstance(params, tuple) and len(params) > 3 else -1
            scale, zero = self._array(scale, path), self._array(zero, path)
            if type(axis) is not int or not 0 <= axis < len(integers.shape):
                self._fail(f"is quantised along axis {str(axis)[:40]}", path)
            if not scale.shape == zero.shape == integers.shape[axis : axis + 1]:
                self._fail("is quantised by scales that do not fit it", path)
        elif type(scale) is not float or type(zero) is not int or not name:
            self._fail("is quantised without a scale and a zero point", path)
        if not isinstance(integers.load, StoredArray):
            self._fail("is quantised without integers", path)
        offset = float(zero) if type(zero) is int else zero
        load = QuantisedArray(integers.load, scale, offset, axis)
        count = math.prod(integers.shape)
        return TensorSpec(
            integers.shape,
            integers.dtype,
            load,
            4 * count,
            quantised=True,
            storage=integers.storage,
            skip=integers.skip,
        )

    def _array(self, value: Any, path: str) -> StoredArray:
        # Scales that have scales, and so on, would only be refused at the innermost.
        if self._in_scale:
            self._fail("is quantised by something that is itself quantised", path)
        self._in_scale = True
        spec = self.find(value)
        self._in_scale = False
        if spec is None or not isinstance(spec.load, StoredArray) or spec.skip:
            self._fail("is quantised by something that is no tensor", path)
        return spec.load

    def _foreign(self, args: tuple[Any, ...], path: str) -> TensorSpec:
        shape: Shape = ()
        for part in (*args, *(args[1] if len(args) > 1 and isinstance(args[1], tuple) else ())):
            if type(part) is Record and part.kind == Global("torch", "Size"):
                shape = self._sizes(part, path)
                break
        what = path.rpartition("_rebuild_")[2]
        return TensorSpec(shape, what, _no_values, 0, skip=("unsupported_dtype", what))


def _no_values() -> AnyArray:
    raise MalformedFileError("a tensor without dense values was to be loaded")


def unreadable(dtype: str) -> tuple[SkipReason, str] | None:
    """Return why numbers of a type are left out, None where they are read."""
    return None if dtype in _READABLE else ("unsupported_dtype", dtype)


def _unwrap(kind: Global, args: Any) -> Any:
    """Return the record a wrapper holds, None where `kind` is no wrapper."""
    key = (kind.module, kind.name)
    if key in _PARAMETERS:
        return args[0] if args else ()
    if key in _SUBCLASSES and len(args) > 2 and isinstance(args[2], tuple):
        return Record(args[0], args[2])
    return None


_PARAMETERS = frozenset(
    {
        ("torch._utils", "_rebuild_parameter"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch.nn.parameter", "Parameter"),
        ("torch.nn.parameter", "Buffer"),
        ("torch.nn", "Parameter"),
        ("torch.autograd.variable", "Variable"),
        ("torch.autograd", "Variable"),
    }
)
_SUBCLASSES = frozenset(
    {
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch._tensor", "_rebuild_from_type"),
        ("torch.tensor", "_rebuild_from_type"),
    }
)
_Builder = Callable[[TensorTable, tuple[Any, ...], str], TensorSpec]
_BUILDERS: dict[tuple[str, str], _Builder] = {
    ("torch._utils", "_rebuild_tensor"): TensorTable._dense,
    ("torch._utils", "_rebuild_tensor_v2"): TensorTable._dense,
    ("torch._utils", "_rebuild_tensor_v3"): TensorTable._typed,
    ("torch._utils", "_rebuild_qtensor"): TensorTable._quantised,
    ("torch._utils", "_rebuild_sparse_tensor"): TensorTable._foreign,
    ("torch._utils", "_rebuild_sparse_csr_tensor"): TensorTable._foreign,
    ("torch._utils", "_rebuild_nested_tensor"): TensorTable._foreign,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): TensorTable._foreign,
    ("torch._utils", "_rebuild_wrapper_subclass"): TensorTable._foreign,
}
