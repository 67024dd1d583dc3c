"""What libhdf5 finds in a file, listed without trusting it.

This runs in the child processes of :mod:`filterdb.sources.formats.hdf5_guard` only. What leads out
of the file is refused (external links, external raw storage, virtual data sets), a declared size
must fit the file's, and groups that contain themselves are walked once.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import h5py
import numpy as np

from filterdb.errors import MalformedFileError, SourceError, UnsafeCheckpointError
from filterdb.sources.formats.base import MAX_SHARING, MAX_TENSORS, SHARING_SLACK
from filterdb.sources.formats.file_view import check_shape

if TYPE_CHECKING:
    from filterdb.types import SkipReason

#: Deepest nesting of HDF5 groups taken seriously.
MAX_GROUP_DEPTH = 64
#: Characters of all paths and attributes together, beyond the file's size.
_TEXT_SLACK = 32 << 20
#: What a damaged HDF5 file makes h5py raise.
_H5_ERRORS = (
    OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError, IndexError,
    OverflowError, MemoryError, NotImplementedError, RecursionError,
)  # fmt: skip
#: Filters that ship with h5py: deflate, shuffle, fletcher32, szip, nbit, scale-offset, lzf.
_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})
_DEFLATE = 1
_DTYPES = frozenset(
    {"float16", "float32", "float64", "bool"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
#: Attributes that Keras writes and that mean something.
_ATTRIBUTES = re.compile(
    r"^(model_config|keras_version|backend|name|(layer_names|weight_names)\d*)$"
)
_BLOCK = 1 << 20


def prepare() -> None:
    """Load what the first file would load, so that children inherit it."""
    with h5py.File(io.BytesIO(), "w") as root:
        root.create_dataset("k", data=np.zeros((2, 2), np.float32), chunks=(1, 2))
        root.attrs["name"] = "k"
        list_file(root, 4096)


def perform(task: Mapping[str, Any]) -> list[bytes]:
    """Do a task of :meth:`filterdb.sources.formats.hdf5_contents.Hdf5Source.task`.

    Parameters
    ----------
    task
        What to do, and where the file lies.

    Returns
    -------
    list of bytes
        The answer: JSON for "list", values for "load".

    Raises
    ------
    SourceError
        Damaged or unsafe.
    """
    label = str(task["label"])
    try:
        with _open(task) as handle, h5py.File(handle, "r") as root:
            if task["do"] == "list":
                listed = list_file(root, int(task["size"]))
                return [json.dumps(listed).encode()]
            return [_load(root[task["item"]], np.dtype(task["stored"]))]
    except SourceError:
        raise
    except _H5_ERRORS as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise MalformedFileError(f"{label} is no readable HDF5: {what}") from error


def list_file(root: h5py.File, size: int) -> dict[str, Any]:
    """List the data sets of a file in the order they were created, and Keras' attributes.

    Parameters
    ----------
    root
        The open file.
    size
        Its bytes.

    Returns
    -------
    dict
        ``arrays`` and ``attributes``, see :mod:`filterdb.sources.formats.hdf5_contents`.

    Raises
    ------
    UnsafeCheckpointError
        Something lies in another file, or the sizes declared cannot be true.
    """
    limit = MAX_SHARING * size + SHARING_SLACK
    arrays: list[dict[str, Any]] = []
    attributes: dict[str, dict[str, Any]] = {}
    total = characters = 0
    for path, item in _walk(root, "", 0, set()):
        characters += len(path)
        if isinstance(item, h5py.Group):
            found = _attributes(item)
            characters += sum(len(t) for v in found.values() for t in ([v], v)[isinstance(v, list)])
            if found:
                attributes[path] = found
        else:
            arrays.append(_describe(root, path, item))
            total += arrays[-1]["n_bytes"]
        if total > limit:
            raise UnsafeCheckpointError(
                f"{path} brings the data sets to {total:,} bytes, more than the {limit:,} allowed "
                f"for a file of {size:,} bytes"
            )
        if len(arrays) > MAX_TENSORS or characters > size + _TEXT_SLACK:
            raise UnsafeCheckpointError(
                f"{len(arrays):,} data sets whose names take {characters:,} characters in a file "
                f"of {size:,} bytes"
            )
    arrays.sort(key=lambda a: (a["position"], a["path"]))
    return {"arrays": arrays, "attributes": attributes}


def _open(task: Mapping[str, Any]) -> IO[bytes]:
    path, offset, size = Path(task["path"]), int(task["offset"]), int(task["size"])
    if task["packed"] is not None:
        return _inflated(path, offset, int(task["packed"]), size)
    handle = path.open("rb")
    if not offset:
        return handle
    return io.BufferedReader(_Window(handle, offset, size), 1 << 16)


class _Window(io.RawIOBase):
    """Part of a file, as a file."""

    def __init__(self, handle: IO[bytes], offset: int, size: int) -> None:
        self._handle, self._offset, self._size, self._at = handle, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + position)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), max(0, self._size - self._at))
        self._handle.seek(self._offset + self._at)
        data = self._handle.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _inflated(path: Path, offset: int, packed: int, size: int) -> IO[bytes]:
    """Inflate into a file without a name, which is gone when it is closed."""
    target: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    written = 0
    with path.open("rb") as source:
        source.seek(offset)
        while packed and written <= size:
            block = source.read(min(_BLOCK, packed))
            if not block:
                break
            packed -= len(block)
            while block and written <= size:
                plain = inflater.decompress(block, _BLOCK)
                written += target.write(plain)
                block = inflater.unconsumed_tail
        written += target.write(inflater.flush(_BLOCK)) if written <= size else 0
    if written != size:
        raise MalformedFileError(f"{path.name}: a member does not inflate to its {size:,} bytes")
    target.seek(0)
    return target


def _walk(
    group: h5py.Group, prefix: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        return  # a group that is linked twice, or contains itself
    seen.add(address)
    if depth > MAX_GROUP_DEPTH:
        raise UnsafeCheckpointError(f"HDF5 groups nested deeper than {MAX_GROUP_DEPTH} at {prefix}")
    yield prefix.removesuffix("/"), group
    for key in group:
        path = f"{prefix}{key}"
        path.encode()  # a name that is not text ends up in tables otherwise
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise UnsafeCheckpointError(f"{path} is a link into another file, {link.filename!r}")
        if isinstance(link, h5py.SoftLink):
            continue  # what it points to is listed under its own name
        item = group[key]
        if isinstance(item, h5py.Group):
            yield from _walk(item, f"{path}/", depth + 1, seen)
        elif isinstance(item, h5py.Dataset):
            yield path, item


def _attributes(group: h5py.Group) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in group.attrs:
        if _ATTRIBUTES.match(name):
            value = group.attrs[name]
            found[name] = _text(value) if np.ndim(value) == 0 else [_text(v) for v in value.flat]
    return found


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value).encode("utf-8", "replace").decode()


def _describe(root: h5py.File, path: str, item: h5py.Dataset) -> dict[str, Any]:
    if item.is_virtual or item.external:
        raise UnsafeCheckpointError(f"{path} keeps its values in another file")
    dtype = item.dtype
    shape = tuple(int(n) for n in item.shape or ())
    elements = check_shape(shape, what=path) if item.shape is not None else 0
    bfloat16 = dtype.itemsize == 2 and (_is_opaque(dtype) or _says_bfloat16(item))
    skip = _objection(item, bfloat16)
    offset = item.id.get_offset()
    # A type libhdf5 would convert (another exponent, another precision) is left to libhdf5.
    plain = h5py.h5t.py_create(dtype).equal(item.id.get_type())
    if not plain or root.userblock_size or not elements or skip:
        offset = None
    chunk = int(np.prod(item.chunks, dtype=object)) * dtype.itemsize if item.chunks else 0
    return {
        "path": path,
        "shape": shape,
        "dtype": "bfloat16" if bfloat16 else dtype.name if dtype.kind != "V" else "void",
        "position": int(h5py.h5o.get_info(item.id).addr),
        "n_bytes": max(elements * max(1, dtype.itemsize), chunk),
        "offset": offset,
        "stored": "<u2" if bfloat16 else dtype.str,
        "skip": skip,
    }


def _is_opaque(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "V" and dtype.fields is None and dtype.subdtype is None


def _says_bfloat16(item: h5py.Dataset) -> bool:
    # Keras 3 stores bfloat16, and nothing else, as two opaque bytes; archives say so, too.
    return "dtype" in item.attrs and _text(item.attrs["dtype"]) == "bfloat16"


def _objection(item: h5py.Dataset, bfloat16: bool) -> tuple[SkipReason, str] | None:
    if item.shape is None:
        return "unsupported_dtype", "an empty data space"
    if not bfloat16 and item.dtype.name not in _DTYPES:
        return "unsupported_dtype", f"HDF5 type {item.dtype}"[:200]
    properties = item.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    unknown = [int(f[0]) for f in filters if f[0] not in _FILTERS]
    if unknown:
        return "unsupported_dtype", f"compressed by HDF5 filter {unknown[0]}"
    return None


def _load(item: h5py.Dataset, stored: np.dtype[Any]) -> bytes:
    _check_chunks(item)
    values = np.ascontiguousarray(item[()])
    if values.dtype.itemsize != stored.itemsize:
        raise MalformedFileError(f"{item.name} is of another type than it was")
    return values.view(stored).tobytes()


def _check_chunks(item: h5py.Dataset) -> None:
    """Refuse compressed chunks that hold more than they declare.

    libhdf5 inflates a chunk to its end, so that a few bytes could fill the memory.
    """
    properties = item.id.get_create_plist()
    kinds = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if not item.chunks or _DEFLATE not in kinds:
        return
    declared = int(np.prod(item.chunks, dtype=object)) * item.dtype.itemsize
    for i in range(item.id.get_num_chunks()):
        offset = item.id.get_chunk_info(i).chunk_offset
        mask, data = item.id.read_direct_chunk(offset)
        if mask & (1 << kinds.index(_DEFLATE)):
            continue  # stored as it is
        try:
            inflated = zlib.decompressobj().decompress(data, declared + 64)
        except zlib.error as error:
            raise MalformedFileError(f"{item.name}: a chunk is no deflate stream") from error
        if len(inflated) > declared + 32:
            raise UnsafeCheckpointError(
                f"{item.name}: a compressed chunk holds more than its {declared:,} bytes"
            )
