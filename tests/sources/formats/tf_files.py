"""A writer of TensorFlow's tables, graphs and constants for tests: protobuf by hand."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.tf_table import MAGIC

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.types import AnyArray

NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "float16": 19}


def varint(value: int) -> bytes:
    code = bytearray()
    value &= (1 << 64) - 1
    while value >= 0x80:
        code.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*code, value])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def single(number: int, value: float) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<f", value)


def shape(extents: Sequence[int]) -> bytes:
    return b"".join(field(2, field(1, n)) for n in extents)


def block(entries: Sequence[tuple[bytes, bytes]], *, snappy: bool = False) -> bytes:
    """One block with its trailer; keys share what they can."""
    data, before = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(key), len(before)) and key[shared] == before[shared]:
            shared += 1
        data += varint(shared) + varint(len(key) - shared) + varint(len(value))
        data += key[shared:] + value
        before = key
    data += struct.pack("<II", 0, 1)
    return squeeze(data) + b"\1\0\0\0\0" if snappy else data + bytes(5)


def squeeze(data: bytes) -> bytes:
    """Snappy that copies runs of zeros and writes everything else out."""
    code, position = varint(len(data)), 0
    while position < len(data):
        run = 0
        while run < 64 and position + run < len(data) and data[position + run] == 0:
            run += 1
        if run > 4 and position and data[position - 1] == 0:
            code += bytes([(run - 1) << 2 | 2]) + struct.pack("<H", 1)
            position += run
            continue
        code += bytes([(1 - 1) << 2]) + data[position : position + 1]
        position += 1
    return code


def table(entries: Mapping[bytes, bytes], *, snappy: bool = False, split: int = 3) -> bytes:
    listed = sorted(entries.items())
    data, index = b"", []
    for i in range(0, len(listed), split):
        part = listed[i : i + split]
        code = block(part, snappy=snappy)
        index.append((part[-1][0], varint(len(data)) + varint(len(code) - 5)))
        data += code
    empty = block([])
    meta = varint(len(data)) + varint(len(empty) - 5)
    data += empty
    code = block(index)
    place = varint(len(data)) + varint(len(code) - 5)
    return data + code + (meta + place).ljust(40, b"\0") + MAGIC


def entry(array: AnyArray, offset: int, *, shard: int = 0, size: int | None = None) -> bytes:
    code = field(1, NUMBERS[array.dtype.name]) + field(2, shape(array.shape))
    return (
        code + field(3, shard) + field(4, offset) + field(5, array.nbytes if size is None else size)
    )


def checkpoint(
    folder: Path, variables: Mapping[str, AnyArray], *, stem: str = "model", **how: Any
) -> ModelFile:
    """Write a checkpoint of one data file."""
    entries = {b"": field(1, 1) + field(3, field(1, 1))}
    data = b""
    for name in sorted(variables):
        values = np.asarray(variables[name])
        entries[name.encode()] = entry(values, len(data))
        data += values.tobytes()
    (folder / f"{stem}.index").write_bytes(table(entries, **how))
    shard = f"{stem}.data-00000-of-00001"
    (folder / shard).write_bytes(data)
    return ModelFile(folder / f"{stem}.index", {shard: folder / shard}, f"{stem}.index")


def constant(values: AnyArray, content: bytes | None = None, *, dtype: int | None = None) -> bytes:
    """A TensorProto; `content` replaces the raw bytes by typed fields."""
    number = NUMBERS[values.dtype.name] if dtype is None else dtype
    body = field(4, values.tobytes()) if content is None else content
    return field(1, number) + field(2, shape(values.shape)) + body


def node(name: str, op: str, *inputs: str, **attributes: bytes) -> bytes:
    code = field(1, name) + field(2, op) + b"".join(field(3, i) for i in inputs)
    return code + b"".join(field(5, field(1, k) + field(2, v)) for k, v in attributes.items())


def const(name: str, values: AnyArray, content: bytes | None = None, **how: Any) -> bytes:
    return node(name, "Const", value=field(8, constant(values, content, **how)))


def ints(*values: int) -> bytes:
    return field(1, field(3, b"".join(map(varint, values))))


def conv(stride: int = 1, padding: str = "SAME", dilation: int = 1) -> dict[str, bytes]:
    return {
        "strides": ints(1, stride, stride, 1), "dilations": ints(1, dilation, dilation, 1),
        "padding": field(2, padding), "data_format": field(2, "NHWC"),
    }  # fmt: skip


def function(
    name: str, arguments: Sequence[str], results: Mapping[str, str], nodes: Sequence[bytes]
) -> bytes:
    signature = field(1, name) + b"".join(field(2, field(1, a)) for a in arguments)
    signature += b"".join(field(3, field(1, r)) for r in results)
    returned = b"".join(field(4, field(1, k) + field(2, v)) for k, v in results.items())
    return field(1, signature) + b"".join(field(3, n) for n in nodes) + returned


def graph(nodes: Sequence[bytes], functions: Sequence[bytes] = ()) -> bytes:
    code = b"".join(field(1, n) for n in nodes)
    return code + (field(2, b"".join(field(1, f) for f in functions)) if functions else b"")


def called(name: str) -> bytes:
    """The attribute that names a function."""
    return field(10, field(1, name))
