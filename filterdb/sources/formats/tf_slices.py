"""Slices of partitioned variables in TensorFlow's checkpoints, and the names of their entries."""

from __future__ import annotations

from typing import TypeAlias

from filterdb.sources.formats.protobuf_wire import BYTES, VARINT, WireReader, signed

#: Begin and length along each axis; −1 is all of it.
Slice: TypeAlias = tuple[tuple[int, int], ...]


def read_slice(wire: WireReader, start: int, end: int) -> Slice:
    """Read a ``TensorSliceProto``.

    Parameters
    ----------
    wire
        The message's bytes.
    start, end
        Its range.

    Returns
    -------
    tuple of (int, int)
        Begin and length along each axis; length −1 is all of it.
    """
    extents = []
    for number, kind, value, stop in wire.fields(start, end):
        if number == 1 and kind == BYTES:
            begin, length = 0, -1
            for field, inner, content, _ in wire.fields(value, stop):
                if field == 1 and inner == VARINT:
                    begin = signed(content)
                elif field == 2 and inner == VARINT:
                    length = signed(content)
            extents.append((begin, length))
    return tuple(extents)


def encode_slice(key: bytes, where: Slice) -> bytes:
    """Name the entry of a slice (``EncodeTensorNameSlice``, in TensorFlow's ordered code).

    Parameters
    ----------
    key
        The variable's key.
    where
        The slice.

    Returns
    -------
    bytes
        The key of its entry.
    """
    escaped = (
        key.replace(b"\xff", b"\xff\x01").replace(b"\0", b"\0\xff").replace(b"\xff\x01", b"\xff\0")
    )
    code = b"\0" + escaped + b"\0\1" + _number(len(where))
    for begin, length in where:
        code += _signed(begin) + _signed(length)
    return code


def _number(value: int) -> bytes:
    body = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(body)]) + body


def _signed(value: int) -> bytes:
    magnitude = ~value if value < 0 else value
    if magnitude < 64:
        return bytes([(0x80 ^ value) & 0xFF])
    length = magnitude.bit_length() // 7 + 1
    code = bytearray(value.to_bytes(10, "big", signed=True)[-length:])
    mask = ((1 << length) - 1) << (16 - length)  # one leading bit for each byte
    code[0] ^= mask >> 8 & 0xFF
    code[1] ^= mask & 0xFF
    return bytes(code)
