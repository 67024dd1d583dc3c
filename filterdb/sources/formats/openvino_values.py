"""Values of an OpenVINO ``.bin``: element types, packed ones among them, loaded on demand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.file_view import (
    check_expansion,
    check_shape,
    read_array,
    unpack_nibbles,
)
from filterdb.sources.formats.graph_constants import Constant, Load, Refusal, look_up

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.types import AnyArray, Shape, SkipReason

#: Element type → bits, for those numpy has no word for.
_PACKED = {"u1": 1, "u2": 2, "u3": 3, "u4": 4, "i4": 4, "u6": 6, "nf4": 4, "f4e2m1": 4}
_PLAIN = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8",
    "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8", "boolean": "bool",
    "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e8m0": "float8_e8m0fnu",
}  # fmt: skip
_WORDS = {
    "u1": "uint1", "u2": "uint2", "u3": "uint3", "u4": "uint4", "i4": "int4", "u6": "uint6",
    "nf4": "nf4", "f4e2m1": "float4_e2m1fn",
}  # fmt: skip
#: What versions before 10 call them.
_OLD = {
    "FP64": "f64", "FP32": "f32", "FP16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32",
    "I16": "i16", "I8": "i8", "U64": "u64", "U32": "u32", "U16": "u16", "U8": "u8",
    "BOOL": "boolean", "BIN": "u1", "Q78": "i16",
}  # fmt: skip
#: NormalFloat-4 (Dettmers et al. 2023, QLoRA), as published with it.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    offset: int
    element: str
    shape: Shape


def element_type(precision: str) -> str:
    """Return the modern name of an element type.

    Parameters
    ----------
    precision
        "f32", or what older versions call it ("FP32").

    Returns
    -------
    str
        "f32".
    """
    return _OLD.get(precision, precision)


def element_bits(element: str) -> int | None:
    """Return how many bits an element takes.

    Parameters
    ----------
    element
        Modern name of its type.

    Returns
    -------
    int or None
        None for types filterdb does not read.
    """
    if element in _PACKED:
        return _PACKED[element]
    if element not in _PLAIN:
        return None
    return 8 * np.dtype(_stored(element)).itemsize


def _stored(element: str) -> str:
    word = _PLAIN.get(element, "uint8")
    if word.startswith("float8") or word == "bool":
        return "<u1"
    return "<u2" if word == "bfloat16" else np.dtype(word).newbyteorder("<").str


def stored_constant(
    name: str, element: str, shape: Shape, *, path: Path, available: int, start: int, size: int
) -> Constant:
    """Check a range of the ``.bin`` and describe what lies there.

    Parameters
    ----------
    name
        Of the tensor.
    element, shape
        As the network states them.
    path, available
        The file and its size in bytes.
    start, size
        The range.

    Returns
    -------
    Constant
        Not loaded; with a reason where the type is one no reader knows.

    Raises
    ------
    MalformedFileError
        If range, shape and file do not fit together.
    """
    what = f"constant {name!r}"
    if start + size > available:
        raise MalformedFileError(
            f"{what} lies at bytes {start} to {start + size} of {path.name}, which has {available}"
        )
    count = check_shape(shape, what=what)
    bits = element_bits(element)
    skip: tuple[SkipReason, str] | None = None
    load: Load = partial(_load, _Place(path, start, element, shape))
    if bits is None:
        load = Refusal(f"{what} has elements of type {element!r}")
        skip = ("unsupported_dtype", f"elements of type {element!r}")
    else:
        needed = _n_bytes(count, bits)
        if needed > size:
            raise MalformedFileError(
                f"{what} of shape {list(shape)} and type {element} needs {needed} bytes, "
                f"its range holds {size}"
            )
        check_expansion(4 * count, available, what=what)
    return Constant(
        base=name,
        shape=shape,
        dtype=_WORDS.get(element) or _PLAIN.get(element, element),
        load=load,
        storage=("bin", start, size),
        skip=skip,
    )


def _n_bytes(count: int, bits: int) -> int:
    if bits in (3, 6):  # in groups of three bytes
        return -(-count * bits // 24) * 3
    return -(-count * bits // 8)


def _load(place: _Place) -> AnyArray:
    count = int(np.prod(place.shape, dtype=np.int64))
    element = place.element
    if element in _PACKED:
        raw = read_array(place.path, place.offset, _n_bytes(count, _PACKED[element]), np.uint8)
        return _unpack(raw, element, count).reshape(place.shape)
    values = read_array(place.path, place.offset, count, np.dtype(_stored(element)))
    word = _PLAIN[element]
    if word == "bfloat16":
        # bfloat16 is the upper half of a float32: shifting it there loses nothing.
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif word.startswith("float8"):
        values = _by_table(values, word, 8)
    elif word == "bool":
        values = values != 0
    return values.reshape(place.shape)


def _by_table(codes: AnyArray, word: str, bits: int) -> AnyArray:
    import ml_dtypes

    table = np.arange(1 << bits, dtype=np.uint8).view(getattr(ml_dtypes, word))
    return look_up(table.astype(np.float32), codes)


def _unpack(raw: AnyArray, element: str, count: int) -> AnyArray:
    """Unpack elements of less than a byte; the order of the bits differs by type."""
    if element in ("u4", "i4", "nf4", "f4e2m1"):
        codes = unpack_nibbles(raw, count, signed=element == "i4")
        if element == "nf4":
            return look_up(np.array(_NF4, np.float32), codes)
        return _by_table(codes, "float4_e2m1fn", 4) if element == "f4e2m1" else codes
    if element == "u1":
        return np.unpackbits(raw)[:count]
    if element == "u2":
        parts = [(raw >> shift) & 3 for shift in (0, 2, 4, 6)]
        return np.stack(parts, axis=-1).reshape(-1)[:count]
    # Three bytes: two of low parts, one of high bits, both from the highest bit down.
    triples = raw.reshape(-1, 3)
    low_bits, high_bits = (2, 1) if element == "u3" else (4, 2)
    low = _fields(triples[:, :2], low_bits)
    high = _fields(triples[:, 2:], high_bits)
    return np.asarray(low | (high << low_bits)).reshape(-1)[:count]


def _fields(columns: AnyArray, bits: int) -> AnyArray:
    shifts = range(8 - bits, -1, -bits)
    parts = [(columns >> shift) & ((1 << bits) - 1) for shift in shifts]
    return np.stack(parts, axis=-1).reshape(len(columns), -1)
