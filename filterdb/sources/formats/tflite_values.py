"""Values of TFLite tensors: quantised, half precision and sparse ones as numpy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import MalformedFileError, UnsupportedFormatError
from filterdb.sources.formats.file_view import (
    check_expansion,
    check_shape,
    dequantise,
    read_array,
    unpack_nibbles,
    unpack_pairs,
)
from filterdb.sources.formats.tflite_schema import TENSOR_TYPES, TensorRecord

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.sources.formats.tflite_schema import Sparsity
    from filterdb.types import AnyArray, Shape, SkipReason


def refusal(record: TensorRecord) -> tuple[SkipReason, str] | None:
    """Return why a tensor's values cannot be read, if so.

    Parameters
    ----------
    record
        A constant.

    Returns
    -------
    tuple or None
        Reason and detail.
    """
    if record.external is not None:
        if record.external.packing not in ("", "unpacked"):
            return "unsupported_dtype", f"packed externally as {record.external.packing}"
        return "missing_companion", f"its values lie in {record.external.file!r}"
    if TENSOR_TYPES.get(record.type_code, ("", None, 0))[1] is None:
        return "unsupported_dtype", record.dtype
    if record.details:
        return "unsupported_dtype", f"quantisation scheme {record.details} (blockwise or custom)"
    return None


def is_quantised(record: TensorRecord) -> bool:
    """Tell whether integers are to be multiplied by scales.

    Parameters
    ----------
    record
        A constant.

    Returns
    -------
    bool
        True for integers with a scale.
    """
    return record.scale.size > 0 and not record.real and record.dtype != "bool"


def check_values(record: TensorRecord, where: str) -> None:
    """Check that a tensor's bytes make its shape.

    Parameters
    ----------
    record
        A constant.
    where
        The file's name, for the message.

    Raises
    ------
    MalformedFileError
        If there are too few or too many bytes, or scales that fit no axis.
    """
    if refusal(record) is not None or record.data is None:
        return
    count = check_shape(record.shape, what=f"tensor {record.name!r} in {where}")
    bits = TENSOR_TYPES[record.type_code][2]
    got = record.data[1] - record.data[0]
    expected = -(-count * bits // 8)
    if got != expected and record.sparsity is None:
        raise MalformedFileError(
            f"tensor {record.name!r} in {where} of shape {list(record.shape)} and type "
            f"{record.dtype} needs {expected} bytes, got {got}"
        )
    n_scales = record.scale.size
    if not is_quantised(record) or n_scales == 1:
        return
    axis = record.axis
    if not 0 <= axis < len(record.shape) or record.shape[axis] != n_scales:
        raise MalformedFileError(
            f"tensor {record.name!r} in {where} of shape {list(record.shape)} has {n_scales} "
            f"scales along axis {axis}"
        )


def load_values(path: Path, record: TensorRecord, file_size: int) -> AnyArray:
    """Read a constant.

    Parameters
    ----------
    path
        The model file.
    record
        The constant.
    file_size
        Bytes of the file, which bounds what a sparse tensor may expand to.

    Returns
    -------
    ndarray
        Of the record's shape; float32 where it is quantised or bfloat16.

    Raises
    ------
    UnsupportedFormatError
        If filterdb does not read this type.
    MalformedFileError
        If bytes, shape and scales do not agree.
    """
    reason = refusal(record)
    if reason is not None or record.data is None:
        raise UnsupportedFormatError(
            f"tensor {record.name!r} cannot be read: {reason[1] if reason else 'no values'}"
        )
    name, stored, bits = TENSOR_TYPES[record.type_code]
    start, end = record.data
    count = int(np.prod(record.shape, dtype=np.int64))
    # Expanding a sparse tensor takes index arrays beside the values.
    width = 32 if record.sparsity is not None else max(4, bits // 8)
    check_expansion(count * width, file_size, what=f"tensor {record.name!r}")
    itemsize = np.dtype(stored).itemsize
    values = read_array(path, start, (end - start) // itemsize, stored)
    if bits == 4:
        n_values = values.size * 2 if record.sparsity else count
        values = unpack_nibbles(values, n_values, signed=name == "int4")
    elif bits == 2:
        n_values = values.size * 4 if record.sparsity else count
        values = unpack_pairs(values, n_values, signed=True)
    elif name.startswith("float8"):
        import ml_dtypes

        values = values.view(getattr(ml_dtypes, name)).astype(np.float32)
    elif name == "bfloat16":
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif name == "bool":
        values = values != 0
    if record.sparsity is not None:
        values = expand_sparse(values, record.sparsity, record.shape, record.name)
    values = values.reshape(record.shape)
    if is_quantised(record):
        return dequantise(values, record.scale, record.zero_point, axis=record.axis)
    return values


def expand_sparse(values: AnyArray, sparsity: Sparsity, shape: Shape, name: str) -> AnyArray:
    """Expand a sparse tensor.

    Parameters
    ----------
    values
        (n,) stored values, blocks one after the other.
    sparsity
        How they are laid out: the levels in traversal order, the first ``rank`` ids being the
        tensor's axes (in blocks) and the others the blocked axes.
    shape
        Dense shape.
    name
        For messages.

    Returns
    -------
    ndarray
        Of `shape`, zero where nothing is stored.

    Raises
    ------
    MalformedFileError
        If levels, indices and values do not fit together.
    """
    rank, n_levels = len(shape), len(sparsity.dimensions)
    broken = MalformedFileError(f"sparse tensor {name!r} of shape {list(shape)} is inconsistent")
    blocks = sparsity.block_map
    if (
        sorted(sparsity.order) != list(range(n_levels))
        or n_levels != rank + len(blocks)
        or any(not 0 <= axis < rank for axis in blocks)
        or len(set(blocks)) != len(blocks)
    ):
        raise broken
    size_of = dict(zip(sparsity.order, (d.size for d in sparsity.dimensions), strict=True))
    if any(size_of[rank + i] <= 0 for i in range(len(blocks))):
        raise broken
    dense = int(np.prod(shape, dtype=np.int64))
    # Level by level: `node` numbers the positions reached so far, `coordinates` says where.
    node = np.zeros(1, np.int64)
    coordinates: dict[int, AnyArray] = {}
    for axis, level in zip(sparsity.order, sparsity.dimensions, strict=True):
        if level.segments is None or level.indices is None:
            if level.size <= 0 or node.size * level.size > dense:
                raise broken
            parent = np.repeat(np.arange(node.size), level.size)
            place = np.tile(np.arange(level.size), node.size)
            following = node[parent] * level.size + place
        else:
            segments, indices = level.segments, level.indices
            if segments.size <= int(node.max(initial=-1)) + 1 or segments.min(initial=0) < 0:
                raise broken
            lengths = segments[node + 1] - segments[node]
            ends = segments[node + 1]
            if lengths.min(initial=0) < 0 or ends.max(initial=0) > indices.size:
                raise broken
            if int(lengths.sum()) > dense:
                raise broken
            parent = np.repeat(np.arange(node.size), lengths)
            first = np.cumsum(lengths) - lengths
            following = np.arange(parent.size) - first[parent] + segments[node][parent]
            place = indices[following]
        coordinates = {known: where[parent] for known, where in coordinates.items()}
        coordinates[axis] = place
        node = following
    if node.size > values.size:
        raise broken
    result = np.zeros(shape, values.dtype)
    where = []
    for axis in range(rank):
        at = coordinates[axis]
        if axis in blocks:
            block = rank + blocks.index(axis)
            at = at * size_of[block] + coordinates[block]
        if at.size and not 0 <= int(at.min()) <= int(at.max()) < shape[axis]:
            raise broken
        where.append(at)
    result[tuple(where)] = values[node]
    return result
