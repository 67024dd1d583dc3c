"""Weights of a TensorFlow.js manifest: where their bytes lie, and what they mean.

A quantised weight is stored as uint8 or uint16 and read as ``value · scale + min`` (computed in
double precision, then rounded to float32, as TensorFlow.js does), or stored as float16 and kept so.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import MalformedFileError
from filterdb.layers.raw import Tensor
from filterdb.sources.formats.file_view import check_shape, read_array
from filterdb.sources.formats.tf_operations import clean

if TYPE_CHECKING:
    from filterdb.types import AnyArray, Shape, SkipReason

#: Types whose size is known; TensorFlow.js itself writes the first five.
_STORED = {
    "float32": "<f4", "int32": "<i4", "bool": "u1", "complex64": "<c8", "float16": "<f2",
    "float64": "<f8", "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2",
    "uint32": "<u4", "int64": "<i8", "uint64": "<u8",
}  # fmt: skip
_READ = frozenset(_STORED) - {"complex64"}
_LONGEST_TEXT = 1 << 24
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Shard:
    """A file of a group.

    Parameters
    ----------
    path
        The file.
    size
        Bytes of weights in it.
    encoded_at
        Where they lie as base64, in a script or JSON; None where they are the file.
    """

    path: Path
    size: int
    encoded_at: int | None = None

    def read(self, start: int, count: int) -> AnyArray:
        """Read some of its bytes."""
        if self.encoded_at is None:
            return read_array(self.path, start, count, np.uint8)
        first = start // 3
        length = min(-(-(start + count) // 3) - first, -(-self.size // 3) - first) * 4
        left = -(-self.size * 4 // 3) - 4 * first  # without what fills up
        place = self.encoded_at + 4 * first
        text = read_array(self.path, place, min(length, left), np.uint8).tobytes()
        try:
            plain = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
        except binascii.Error as error:
            raise MalformedFileError(f"{self.path.name}: broken base64: {error}") from error
        skipped = start - 3 * first
        return np.frombuffer(plain, np.uint8)[skipped : skipped + count]


@dataclass(frozen=True)
class _Quantisation:
    """``value · scale + minimum`` of the stored integers."""

    scale: float
    minimum: float


def group_tensors(
    specs: Sequence[Mapping[str, Any]], shards: Sequence[Shard], *, number: int
) -> list[Tensor]:
    """Place the weights of one group of a manifest.

    Parameters
    ----------
    specs
        Name, shape, type and quantisation of each weight, in order.
    shards
        The group's files, in order.
    number
        Rank of the group in the manifest.

    Returns
    -------
    list of Tensor
        One a spec.

    Raises
    ------
    MalformedFileError
        If a spec is malformed or the shards hold fewer bytes than the weights.
    """
    files = tuple(shards)
    available = sum(s.size for s in files)
    start: int | None = 0
    found: list[Tensor] = []
    for spec in specs:
        name, shape = _name(spec), _shape(spec)
        dtype, quantised, skip = _type(spec, name)
        if start is None:
            skip = ("unsupported_dtype", "lies behind a weight of unknown size")
        elements = check_shape(shape, what=name)
        length = _length(dtype, elements, files, start)
        load = partial(_load, files, start or 0, _STORED.get(dtype, "u1"), shape, quantised)
        found.append(
            Tensor(
                name,
                shape,
                dtype,
                load,
                quantised=quantised is not None and skip is None,
                storage=None if start is None else ("tfjs", number, start),
                skip=skip,
            )
        )
        if start is not None and length is not None and start + length > available:
            raise MalformedFileError(
                f"{name} ends at byte {start + length:,}, its shards hold {available:,}"
            )
        start = None if start is None or length is None else start + length
    return found


def small_integers(tensor: Tensor) -> tuple[int, ...] | None:
    """Load a constant of a few integers.

    Parameters
    ----------
    tensor
        Any tensor.

    Returns
    -------
    tuple of int or None
        Its elements; None where it is larger or no integers.
    """
    if tensor.dtype != "int32" or tensor.skip or not 0 < int(np.prod(tensor.shape)) <= 8:
        return None
    return tuple(int(v) for v in tensor.load().reshape(-1))


def _name(spec: Mapping[str, Any]) -> str:
    name = spec.get("name")
    if not isinstance(name, str) or not name:
        raise MalformedFileError("a weight of the manifest has no name")
    return clean(name)


def _shape(spec: Mapping[str, Any]) -> Shape:
    shape = spec.get("shape")
    if not isinstance(shape, list) or not all(
        isinstance(n, int) and not isinstance(n, bool) for n in shape
    ):
        raise MalformedFileError(f"{_name(spec)} has no shape of integers")
    return tuple(shape)


def _type(
    spec: Mapping[str, Any], name: str
) -> tuple[str, _Quantisation | None, tuple[SkipReason, str] | None]:
    """Return the stored type, the quantisation, and why the weight cannot be read."""
    dtype = str(spec.get("dtype"))[:32]
    quantisation = spec.get("quantization")
    if not isinstance(quantisation, Mapping):
        return dtype, None, None if dtype in _READ else ("unsupported_dtype", f"type {dtype!r}")
    stored = str(quantisation.get("dtype"))[:32]
    if stored == "float16":
        return stored, None, None
    if stored not in ("uint8", "uint16"):
        return stored, None, ("unsupported_dtype", f"quantised as {stored!r}")
    scale, minimum = _finite(quantisation.get("scale")), _finite(quantisation.get("min"))
    if scale is None or minimum is None:
        return stored, None, ("missing_scale", f"{name} has no scale and min")
    return stored, _Quantisation(scale, minimum), None


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return None
    return None if value != value else float(value)


def _length(dtype: str, elements: int, shards: tuple[Shard, ...], start: int | None) -> int | None:
    """Bytes a weight takes, None where that cannot be known."""
    if dtype in _STORED:
        return elements * np.dtype(_STORED[dtype]).itemsize
    if dtype != "string" or start is None:
        return None
    position = start
    available = sum(s.size for s in shards)
    if elements * 4 > available:
        raise MalformedFileError(f"{elements:,} texts in {available:,} bytes")
    block, first = b"", start
    for _ in range(elements):  # each has its length in front
        if position + 4 > first + len(block):
            first, count = position, max(4, min(_BLOCK, available - position))
            block = _bytes(shards, position, count).tobytes()
        length = int.from_bytes(block[position - first : position - first + 4], "little")
        position += 4 + length
        if length > _LONGEST_TEXT or position > available:
            raise MalformedFileError(f"a text of {length:,} bytes in a shard")
    return position - start


def _bytes(shards: tuple[Shard, ...], start: int, count: int) -> AnyArray:
    """Read bytes of the shards' concatenation."""
    pieces: list[AnyArray] = []
    wanted = count
    for shard in shards:
        if start < shard.size and wanted:
            here = min(wanted, shard.size - start)
            pieces.append(shard.read(start, here))
            wanted -= here
            start = 0
        else:
            start -= min(start, shard.size)
    if wanted:
        raise MalformedFileError(f"the shards end {wanted:,} bytes early")
    return pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.zeros(0, np.uint8)])


def _load(
    shards: tuple[Shard, ...],
    start: int,
    stored: str,
    shape: Shape,
    quantisation: _Quantisation | None,
) -> AnyArray:
    dtype = np.dtype(stored)
    count = int(np.prod(shape, dtype=np.int64))
    values = _bytes(shards, start, count * dtype.itemsize).view(dtype)
    if quantisation is not None:
        wide = values.astype(np.float64) * quantisation.scale + quantisation.minimum
        with np.errstate(over="ignore"):
            return np.asarray(wide.astype(np.float32)).reshape(shape)
    return values.astype(dtype.newbyteorder("="), copy=False).reshape(shape)
