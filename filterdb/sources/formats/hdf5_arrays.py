"""Arrays of an HDF5 file, listed without trusting it.

What leads out of the file is refused (external links, external raw storage, virtual data sets), a
declared size must fit the file's, and groups that contain themselves are walked once. Values that
lie in one piece, as Keras writes them, are read at their offset without libhdf5.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import FetchError, MalformedFileError, SourceError, UnsafeCheckpointError
from filterdb.layers.raw import Tensor
from filterdb.sources.formats.base import EXPANSION_SLACK, MAX_EXPANSION, MAX_TENSORS, ModelFile
from filterdb.sources.formats.file_view import check_shape, read_array

if TYPE_CHECKING:
    import h5py

    from filterdb.types import AnyArray, Shape, SkipReason

MAGIC = b"\x89HDF\r\n\x1a\n"
#: Deepest nesting of HDF5 groups taken seriously.
MAX_GROUP_DEPTH = 64
#: What a damaged HDF5 file makes h5py raise.
H5_ERRORS = (
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
        Size of its values.
    where
        How to load it.
    skip
        Why it cannot be loaded, if so.
    """

    path: str
    shape: Shape
    dtype: str
    position: int
    n_bytes: int
    where: _Place
    skip: tuple[SkipReason, str] | None = None

    def tensor(
        self,
        name: str,
        *,
        skip: tuple[SkipReason, str] | None = None,
        flipped: bool = False,
    ) -> Tensor:
        """Return it as a tensor.

        Parameters
        ----------
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
            self.shape,
            self.dtype,
            partial(_load, self.where, self.shape, flipped=flipped),
            storage=("hdf5", self.position),
            skip=skip or self.skip,
        )


@dataclass(frozen=True)
class _Place:
    """Where values lie: at `offset` in one piece, or wherever libhdf5 finds them (None)."""

    file: Path
    path: str
    offset: int | None
    stored: str
    bfloat16: bool


def check_readable(file: ModelFile) -> None:
    """Tell a file that cannot be opened from one that is no HDF5; libhdf5 does not.

    Parameters
    ----------
    file
        The file.

    Raises
    ------
    FetchError
        If the operating system does not let us read the file.
    MalformedFileError
        If it does not begin as HDF5.
    """
    try:
        with file.path.open("rb") as handle:
            head = handle.read(len(MAGIC))
    except OSError as error:
        raise FetchError(f"cannot open {file.path.name}: {error.strerror or error}") from error
    if head != MAGIC:
        raise MalformedFileError(
            f"{file.name or file.path.name} is no HDF5: it begins with {head!r}"
        )


def lies_in_one_piece(tensor: Tensor) -> bool:
    """Whether a tensor of this module is read without libhdf5.

    Parameters
    ----------
    tensor
        Made by :meth:`StoredArray.tensor`.

    Returns
    -------
    bool
        False where libhdf5 has to put it together.
    """
    place = tensor.load.args[0] if isinstance(tensor.load, partial) else None
    return isinstance(place, _Place) and place.offset is not None


def open_file(file: ModelFile) -> h5py.File:
    """Open an HDF5 file for reading.

    Parameters
    ----------
    file
        The file.

    Returns
    -------
    h5py.File
        To be used in a ``with`` block.

    Raises
    ------
    MalformedFileError
        If libhdf5 cannot open it.
    """
    import h5py

    try:
        return h5py.File(file.path, "r", locking="best-effort")
    except H5_ERRORS as error:
        raise MalformedFileError(
            f"{file.name or file.path.name} is no readable HDF5: {error}"
        ) from error


def list_arrays(root: h5py.File, file: ModelFile) -> list[StoredArray]:
    """List the data sets of a file in the order they were created.

    Parameters
    ----------
    root
        The open file.
    file
        Where it lies.

    Returns
    -------
    list of StoredArray
        Everything that holds values.

    Raises
    ------
    UnsafeCheckpointError
        Something lies in another file, or the sizes declared cannot be true.
    """
    size = file.path.stat().st_size
    limit = MAX_EXPANSION * size + EXPANSION_SLACK
    found: list[StoredArray] = []
    total = 0
    for path, item in _datasets(root, "", 0, set()):
        array = _describe(root, file, path, item)
        found.append(array)
        total += array.n_bytes
        if total > limit:
            raise UnsafeCheckpointError(
                f"{path} brings the data sets to {total:,} bytes, more than the {limit:,} allowed "
                f"for a file of {size:,} bytes"
            )
        if len(found) > MAX_TENSORS:
            raise UnsafeCheckpointError(f"{file.name}: more than {MAX_TENSORS:,} data sets")
    return sorted(found, key=lambda a: (a.position, a.path))


def _datasets(
    group: h5py.Group, prefix: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, h5py.Dataset]]:
    import h5py

    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        return  # a group that is linked twice, or contains itself
    seen.add(address)
    if depth > MAX_GROUP_DEPTH:
        raise UnsafeCheckpointError(f"HDF5 groups nested deeper than {MAX_GROUP_DEPTH} at {prefix}")
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
            yield from _datasets(item, f"{path}/", depth + 1, seen)
        elif isinstance(item, h5py.Dataset):
            yield path, item


def _describe(root: h5py.File, file: ModelFile, path: str, item: h5py.Dataset) -> StoredArray:
    import h5py

    if item.is_virtual or item.external:
        raise UnsafeCheckpointError(f"{path} keeps its values in another file")
    size = file.path.stat().st_size
    dtype = item.dtype
    shape = tuple(int(n) for n in item.shape or ())
    elements = check_shape(shape, what=path) if item.shape is not None else 0
    n_bytes = elements * max(1, dtype.itemsize)
    bfloat16 = dtype.itemsize == 2 and _says_bfloat16(item)
    skip = _objection(item, bfloat16)
    offset = item.id.get_offset()
    # A type libhdf5 would convert (another exponent, another precision) is left to libhdf5.
    plain = h5py.h5t.py_create(dtype).equal(item.id.get_type())
    if not plain or root.userblock_size or not elements or skip:
        offset = None
    if offset is not None and offset + n_bytes > size:
        raise MalformedFileError(
            f"{path}: {n_bytes:,} bytes at byte {offset:,}, the file ends at {size:,}"
        )
    chunk = int(np.prod(item.chunks, dtype=object)) * dtype.itemsize if item.chunks else 0
    return StoredArray(
        path=path,
        shape=shape,
        dtype="bfloat16" if bfloat16 else dtype.name if dtype.kind != "V" else "void",
        position=int(h5py.h5o.get_info(item.id).addr),
        n_bytes=max(n_bytes, chunk),
        where=_Place(file.path, path, offset, "<u2" if bfloat16 else dtype.str, bfloat16),
        skip=skip,
    )


def _says_bfloat16(item: h5py.Dataset) -> bool:
    # Keras 3 stores bfloat16 as two opaque bytes and says so in an attribute.
    said = item.attrs.get("dtype")
    return str(said.decode("ascii", "replace") if isinstance(said, bytes) else said) == "bfloat16"


def _objection(item: h5py.Dataset, bfloat16: bool) -> tuple[SkipReason, str] | None:
    if item.shape is None:
        return "unsupported_dtype", "an empty data space"
    if not bfloat16 and item.dtype.name not in _DTYPES:
        return "unsupported_dtype", f"HDF5 type {item.dtype}"
    properties = item.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    unknown = [int(f[0]) for f in filters if f[0] not in _FILTERS]
    if unknown:
        return "unsupported_dtype", f"compressed by HDF5 filter {unknown[0]}"
    return None


def _load(place: _Place, shape: Shape, *, flipped: bool) -> AnyArray:
    array = _values(place, shape)
    if place.bfloat16:
        array = (array.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if flipped:
        array = array[tuple(slice(None, None, -1) for _ in shape[:-2])]
    native = array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array, dtype=native).reshape(shape)


def _values(place: _Place, shape: Shape) -> AnyArray:
    if place.offset is not None:
        count = int(np.prod(shape, dtype=np.int64))
        return read_array(place.file, place.offset, count, place.stored).reshape(shape)
    import h5py

    try:
        with h5py.File(place.file, "r", locking="best-effort") as root:
            item = root[place.path]
            _check_chunks(item)
            values: Any = item[()]
    except SourceError:
        raise
    except H5_ERRORS as error:
        raise MalformedFileError(f"{place.file.name}: cannot read {place.path}: {error}") from error
    return np.asarray(values)


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
