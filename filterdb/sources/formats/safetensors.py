"""safetensors: a length, a JSON header, and arrays behind one another.

The header is parsed here, with every offset checked, rather than by the safetensors package: so
files are listed without loading it, and types it knows no numpy equivalent of can still be read.
"""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.layers.raw import Node, RawModel, Tensor
from filterdb.sources.formats.base import MAX_TENSORS, FormatReader, ModelFile
from filterdb.sources.formats.file_view import check_shape, map_file
from filterdb.sources.formats.stored_array import FileBytes, StoredArray, c_strides
from filterdb.sources.formats.torch_modules import module_node

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from filterdb.types import Shape

#: The format's own bound.
MAX_HEADER_BYTES = 100_000_000
#: Keys and list items a header may have: parsed, each takes up to 250 and up to 40 bytes.
_MAX_KEYS, _MAX_ITEMS = 1_000_000, 4_000_000
#: Metadata key under which filterdb's own files keep the module tree (``init:`` models).
MODULES_KEY = "filterdb.modules"

#: Type name → numpy's, bits.
_TYPES = {
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16),
    "BF16": ("bfloat16", 16), "I64": ("int64", 64), "I32": ("int32", 32), "I16": ("int16", 16),
    "I8": ("int8", 8), "U64": ("uint64", 64), "U32": ("uint32", 32), "U16": ("uint16", 16),
    "U8": ("uint8", 8), "BOOL": ("bool", 8),
}  # fmt: skip
#: Types that are named and skipped.
_OTHER_TYPES = {
    "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8), "F6_E2M3": ("float6_e2m3", 6), "F6_E3M2": ("float6_e3m2", 6),
    "F4": ("float4_e2m1", 4), "C64": ("complex64", 64),
}  # fmt: skip
_ROLES = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _sniff(head: bytes, _file: ModelFile) -> bool:
    if len(head) < 10 or head[8:9] != b"{":
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return 2 <= int(length) <= MAX_HEADER_BYTES


def _read(file: ModelFile) -> RawModel:
    label = file.name or file.path.name
    header, start, size = _header(file.path, label)
    # MLX writes null where there is nothing to say.
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise MalformedFileError(f"{label}: __metadata__ is not a table of strings")
    if len(header) > MAX_TENSORS:
        raise UnsafeCheckpointError(f"{label}: {len(header):,} tensors")
    entries = [(name, *_entry(label, name, entry)) for name, entry in header.items()]
    _check_cover(label, entries, size - start)
    tensors = tuple(
        _tensor(file.path, name, dtype, shape, (start + begin, start + end))
        for name, dtype, shape, begin, end in entries
    )
    nodes = _nodes(label, metadata.get(MODULES_KEY), {t.name: t.shape for t in tensors})
    return RawModel(
        format="safetensors",
        tensors=tensors,
        nodes=nodes,
        # Files of other frameworks (MLX) keep kernels as (out, height, width, in).
        default_layout="OIHW" if metadata.get("format") == "pt" else None,
        notes=tuple(f"{key}: {metadata[key][:80]}" for key in ("format",) if key in metadata),
    )


def _header(path: Path, label: str) -> tuple[dict[str, Any], int, int]:
    """Return the parsed header, the offset of the first array, and the file's size."""
    with map_file(path) as data:
        size = len(data)
        if size < 8:
            raise MalformedFileError(f"{label}: {size} bytes; expected a header's length in 8")
        (length,) = struct.unpack("<Q", data[:8])
        if length > MAX_HEADER_BYTES:
            raise MalformedFileError(
                f"{label}: a header of {length:,} bytes; the format allows {MAX_HEADER_BYTES:,}"
            )
        if 8 + length > size:
            raise MalformedFileError(
                f"{label}: the header should end at byte {8 + length}, the file at {size}"
            )
        raw = bytes(data[8 : 8 + length])
    if raw.count(b"[") + raw.count(b"{") > _MAX_KEYS:
        raise UnsafeCheckpointError(f"{label}: the header nests more than any real one")
    if raw.count(b":") > _MAX_KEYS or raw.count(b",") > _MAX_ITEMS:
        raise UnsafeCheckpointError(f"{label}: the header lists more than any real one")
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
        if b"\\ud" in raw.lower():  # half a character in a name, perhaps: no text
            json.dumps(header, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise MalformedFileError(f"{label}: the header is not proper JSON: {error}") from error
    if not isinstance(header, dict):
        raise MalformedFileError(f"{label}: the header is a {type(header).__name__}, no table")
    return header, 8 + int(length), size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice in one table")
    return table


def _entry(label: str, name: str, entry: Any) -> tuple[str, Shape, int, int]:
    where = f"{label}: tensor {name[:200]!r}"
    if not isinstance(entry, dict):
        raise MalformedFileError(f"{where} is described by a {type(entry).__name__}")
    dtype = entry.get("dtype")
    shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _TYPES | _OTHER_TYPES:
        shown = dtype[:40] if isinstance(dtype, str) else type(dtype).__name__
        raise MalformedFileError(f"{where} has the unknown type {shown!r}")
    if shape is None or offsets is None or len(offsets) != 2:
        raise MalformedFileError(f"{where} lacks a shape or two offsets")
    count = check_shape(shape, what=where)
    bits = (_TYPES.get(dtype) or _OTHER_TYPES[dtype])[1]
    begin, end = offsets
    if end - begin != math.ceil(count * bits / 8):
        raise MalformedFileError(
            f"{where} of type {dtype} and shape {shape} takes "
            f"{math.ceil(count * bits / 8)} bytes, its offsets {begin} to {end} hold {end - begin}"
        )
    return dtype, shape, begin, end


def _counts(value: Any) -> tuple[int, ...] | None:
    good = isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in value)
    return tuple(value) if good else None


def _check_cover(
    label: str, entries: list[tuple[str, str, Shape, int, int]], data_bytes: int
) -> None:
    """Arrays must lie end to end and fill the file, as the format demands."""
    position = 0
    for name, _, _, begin, end in sorted(entries, key=lambda entry: (entry[3], entry[4])):
        if begin != position:
            raise MalformedFileError(
                f"{label}: tensor {name[:200]!r} begins at byte {begin} of the data, the one "
                f"before it ends at {position}: they overlap or leave a gap"
            )
        position = end
    if position != data_bytes:
        raise MalformedFileError(
            f"{label}: the tensors take {position} bytes, {data_bytes} follow the header"
        )


def _tensor(path: Path, name: str, dtype: str, shape: Shape, place: tuple[int, int]) -> Tensor:
    known = _TYPES.get(dtype)
    label = (known or _OTHER_TYPES[dtype])[0]
    source = FileBytes(path, place[0], place[1] - place[0])
    return Tensor(
        name=name,
        shape=shape,
        dtype=label,
        load=StoredArray(source, 0, shape, c_strides(shape), label),
        storage=(*place, shape, label),
        skip=None if known else ("unsupported_dtype", dtype),
    )


def _nodes(label: str, text: str | None, shapes: Mapping[str, Shape]) -> tuple[Node, ...]:
    """Read filterdb's own list of modules, in order of registration."""
    if text is None:
        return ()
    try:
        modules = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedFileError(f"{label}: {MODULES_KEY} is not proper JSON: {error}") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise MalformedFileError(f"{label}: {MODULES_KEY} is not a list of modules")
    return tuple(_node(label, module, shapes) for module in modules)


def _node(label: str, module: dict[str, Any], shapes: Mapping[str, Shape]) -> Node:
    name, kind = module.get("name"), module.get("type")
    if not isinstance(name, str) or not isinstance(kind, str):
        raise MalformedFileError(f"{label}: a module of {MODULES_KEY} lacks its name or type")
    tensors: dict[str, tuple[str, Shape]] = {}
    for role, leaf in _ROLES.items():
        tensor = module.get(role)
        if tensor is None:
            continue
        if not isinstance(tensor, str) or tensor not in shapes:
            shown = tensor[:200] if isinstance(tensor, str) else type(tensor).__name__
            raise MalformedFileError(
                f"{label}: module {name[:200]!r} names the tensor {shown!r} as its "
                f"{role}; there is no such tensor"
            )
        tensors[leaf] = (tensor, shapes[tensor])
    return module_node(name, kind, module, tensors)


READER = FormatReader(
    name="safetensors",
    title="safetensors",
    suffixes=(".safetensors",),
    sniff=_sniff,
    read=_read,
)
