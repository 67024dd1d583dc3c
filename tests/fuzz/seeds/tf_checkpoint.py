from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.seeds._proto import floats, message
from tests.fuzz.sstable import crc32c, write_table

if TYPE_CHECKING:
    from tests.fuzz.packing import Files

KERNEL = floats(*range(9))


def seeds(folder: Path) -> list[Files]:
    plain = [entry(b"b/kernel", KERNEL, [3, 3, 1, 1], 0), entry(b"b/bias", floats(1), [1], 36)]
    objects = message([(1, [(1, [(1, 1), (2, "layer")])]), (1, [(2, [(1, "VARIABLE_VALUE"),
                      (2, "layer/kernel"), (3, "b/kernel")])])])  # fmt: skip
    text = bytes([len(objects)]) + struct.pack("<I", masked(objects)) + objects
    graph = message([(1, 7), (2, []), (5, len(text)), (4, 40), (6, 0)])
    tracked = [(b"_CHECKPOINTABLE_OBJECT_GRAPH", graph), *plain]
    return [
        bundle([*plain], KERNEL + floats(1)),
        bundle(tracked, KERNEL + floats(1) + text),
        {"model.ckpt": _version_1()},
    ]


def entry(key: bytes, data: bytes, shape: list[int], offset: int) -> tuple[bytes, bytes]:
    extents: list[tuple[int, Any]] = [(2, [(1, n)]) for n in shape]
    fields = [(1, 1), (2, extents), (4, offset), (5, len(data))]
    # The checksum is a fixed32, as a float's bits are.
    return key, message(fields) + b"\x35" + struct.pack("<I", masked(data))


def bundle(entries: list[tuple[bytes, bytes]], data: bytes) -> Files:
    header = message([(1, 1), (3, [(1, 1)])])
    table = write_table([(b"", header), *sorted(entries)])
    return {"model.ckpt.index": table, "model.ckpt.data-00000-of-00001": data}


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFF_FFFF


def _version_1() -> bytes:
    """One table that holds the values, too."""
    shape = [(2, [(1, n)]) for n in (3, 3, 1, 1)]
    whole: list[tuple[int, Any]] = [(1, []) for _ in range(4)]
    listed = message([(1, [(1, [(1, "k"), (2, shape), (3, 1), (4, whole)]), (2, [(1, 0)])])])
    value = message([(2, [(1, "k"), (2, whole), (3, [(1, 1), (5, KERNEL)])])])
    # Ordered code: 0, the name, the rank, then begin and length of each axis.
    key = b"\x00" + b"k\x00\x01" + b"\x01\x04" + b"\x80\x7f" * 4
    return write_table([(b"", listed), (key, value)])
