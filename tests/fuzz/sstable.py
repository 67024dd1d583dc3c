"""The sorted tables TensorFlow keeps its checkpoint index in, taken apart and written again."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tests.fuzz.grammars import varint, write_varint

if TYPE_CHECKING:
    from tests.fuzz.mutation import Mutator

_FOOTER = bytes.fromhex("57fb808b247547db")
_Entry = tuple[bytes, bytes]


def looks_like_sstable(data: bytes) -> bool:
    return len(data) >= 48 and data.endswith(_FOOTER)


def change_sstable(data: bytes, m: Mutator) -> bytes:
    if m.rng.random() < 0.3:
        return _change_blocks(data, m)
    entries = read_table(data)
    place = m.rng.randrange(len(entries))
    key, value = entries[place]
    match m.rng.randrange(8):
        case 0:
            del entries[place]
        case 1:
            entries.insert(m.rng.randrange(len(entries) + 1), (key, value))
        case 2:
            entries[place] = (m.plain(key), value)
        case 3:
            entries[place] = (key, m.rng.choice(entries)[1])
        case _:
            entries[place] = (key, m.value(value))
    return write_table(entries)


def _change_blocks(data: bytes, m: Mutator) -> bytes:
    """Change the bytes of one block, whose checksum is made right again."""
    offset, size = m.rng.choice(_handles(data))
    body = data[offset : offset + size]
    changed = m.plain(body)[:size].ljust(size, b"\0")
    return data[:offset] + changed + _trailer(changed) + data[offset + size + 5 :]


def _handles(data: bytes) -> list[tuple[int, int]]:
    footer = data[-48:]
    handles, at = [], 0
    for _ in range(2):
        offset, at = varint(footer, at)
        size, at = varint(footer, at)
        handles.append((offset, size))
    index = handles[1]
    for _, value in _entries(data[index[0] : index[0] + index[1]]):
        offset, at = varint(value, 0)
        handles.append((offset, varint(value, at)[0]))
    return handles


def read_table(data: bytes) -> list[_Entry]:
    found: list[_Entry] = []
    for offset, size in _handles(data)[2:]:
        found += _entries(data[offset : offset + size])
    return found


def _entries(block: bytes) -> list[_Entry]:
    stop = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    entries, at, key = [], 0, b""
    while at < stop:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        length, at = varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        entries.append((key, block[at : at + length]))
        at += length
    return entries


def write_table(entries: list[_Entry]) -> bytes:
    out = b""
    handles = []
    for block in (_block(entries), _block([])):
        handles.append(write_varint(len(out)) + write_varint(len(block)))
        out += block + _trailer(block)
    last = entries[-1][0] if entries else b""
    index = _block([(last + b"\xff", handles[0])])
    footer = handles[1] + write_varint(len(out)) + write_varint(len(index))
    out += index + _trailer(index)
    return out + footer.ljust(40, b"\0") + _FOOTER


def _block(entries: list[_Entry]) -> bytes:
    out, starts = b"", []
    for key, value in entries:
        starts.append(len(out))
        out += write_varint(0) + write_varint(len(key)) + write_varint(len(value)) + key + value
    starts = starts or [0]
    return out + b"".join(n.to_bytes(4, "little") for n in (*starts, len(starts)))


def _trailer(block: bytes) -> bytes:
    """Type "plain" and the masked CRC-32C over block and type."""
    crc = crc32c(block + b"\0")
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFF_FFFF
    return b"\0" + masked.to_bytes(4, "little")


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return tuple(table)


def crc32c(data: bytes) -> int:
    table, crc = _crc_table(), 0xFFFF_FFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFF_FFFF
