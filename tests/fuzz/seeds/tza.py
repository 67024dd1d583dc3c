from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    kernel = np.arange(18, dtype="<f4").tobytes()
    bias = np.arange(2, dtype="<f2").tobytes()
    body = kernel + bias + bytes(-len(kernel + bias) % 64)
    entries = [("c.weight", (2, 1, 3, 3), b"oihw", b"f", 16), ("c.bias", (2,), b"x", b"h", 88)]
    table = struct.pack("<I", len(entries))
    for name, shape, axes, kind, offset in entries:
        table += struct.pack("<H", len(name)) + name.encode() + bytes([len(shape)])
        table += struct.pack(f"<{len(shape)}I", *shape) + axes + kind + struct.pack("<Q", offset)
    head = b"\xd7\x41\x02\x00" + struct.pack("<Q", 16 + len(body)) + bytes(4)
    return [{"model.tza": head + body + table}]
