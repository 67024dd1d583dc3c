"""Protocol buffers from lists of fields: (number, integer | float | text | bytes | list)."""

from __future__ import annotations

import struct
from typing import Any

from tests.fuzz.grammars import write_varint


def message(fields: list[tuple[int, Any]]) -> bytes:
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += write_varint(number << 3) + write_varint(value)
        elif isinstance(value, float):
            out += write_varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            data = message(value) if isinstance(value, list) else value
            data = data.encode() if isinstance(data, str) else data
            out += write_varint(number << 3 | 2) + write_varint(len(data)) + data
    return bytes(out)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)
