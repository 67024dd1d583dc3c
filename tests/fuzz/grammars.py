"""JSON, text, pickles and protocol buffers changed value by value, written well formed again."""

from __future__ import annotations

import itertools
import json
import pickletools
import re
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.mutation import Mutator

_TOKENS = re.compile(rb"[A-Za-z_][\w./:-]*|-?\d+(?:\.\d+)?|\s+|.", re.DOTALL)
_MAX_TOKENS = 20_000
_WORDS = ("", "conv", "../../secret", "/etc/passwd", "\ud800", "a" * 300, "0", "nan", "%s", "\0")


# JSON -------------------------------------------------------------------------------------------


def change_json(data: bytes, m: Mutator) -> bytes:
    root = json.loads(data)
    places = list(_places(root))
    if not places:
        return m.plain(data)
    holder, key = m.rng.choice(places)
    match m.rng.randrange(10):
        case 0:
            del holder[key]
        case 1:
            other, word = m.rng.choice(places)
            holder[key] = other[word]
            if holder[key] is holder or _holds(holder[key], holder):
                holder[key] = None
        case 2 if isinstance(holder, list):
            holder.insert(m.rng.randrange(len(holder) + 1), holder[key])
        case 2 if isinstance(key, str):
            holder[_another_value(key, m)] = holder.pop(key)
        case 3:
            deep: Any = holder[key]
            for _ in range(m.rng.choice((1, 2, 50, 2000))):
                deep = [deep] if m.rng.random() < 0.5 else {"config": deep}
            holder[key] = deep
        case _:
            holder[key] = _another_value(holder[key], m)
    return json.dumps(root).encode()


def _places(root: Any) -> Any:
    waiting = [root]
    while waiting:
        item = waiting.pop()
        keys = item if isinstance(item, dict) else range(len(item))
        for key in keys:
            yield item, key
            if isinstance(item[key], dict | list):
                waiting.append(item[key])


def _holds(item: Any, holder: Any) -> bool:
    waiting = [item]
    while waiting:
        item = waiting.pop()
        if item is holder:
            return True
        if isinstance(item, dict | list):
            waiting += item.values() if isinstance(item, dict) else item
    return False


def _another_value(value: Any, m: Mutator) -> Any:
    rng = m.rng
    if rng.random() < 0.2:
        return rng.choice((None, True, [], {}, "", 0, -1, 1e308, float("nan"), [[]], 1 << 70))
    if isinstance(value, bool) or value is None:
        return rng.choice((not value, 1, "false"))
    if isinstance(value, int):
        return m.integer(value)
    if isinstance(value, float):
        return rng.choice((0.0, -value, 1e-320, float("inf"), int(min(abs(value), 1e9))))
    if isinstance(value, str):
        if rng.random() < 0.3:
            return rng.choice(_WORDS)
        return change_text(value.encode("utf-8", "replace"), m).decode("utf-8", "replace")
    return [value] * rng.choice((0, 2, 3)) if rng.random() < 0.5 else type(value)()


# Text -------------------------------------------------------------------------------------------


def looks_like_text(data: bytes) -> bool:
    head = data[:512]
    return len(head) > 8 and all(32 <= b < 127 or b in b"\t\r\n" for b in head)


def change_text(data: bytes, m: Mutator) -> bytes:
    """Change one word, number or line."""
    rng = m.rng
    if rng.random() < 0.25 and data.count(b"\n") > 1:
        lines = data.split(b"\n")
        place = rng.randrange(len(lines))
        match rng.randrange(4):
            case 0:
                del lines[place]
            case 1:
                lines.insert(rng.randrange(len(lines)), lines[place])
            case 2:
                other = rng.randrange(len(lines))
                lines[place], lines[other] = lines[other], lines[place]
            case _:
                lines[place] = m.plain(lines[place])
        return b"\n".join(lines)
    tokens = _TOKENS.findall(data[: 1 << 16])
    if not 0 < len(tokens) < _MAX_TOKENS:
        return m.plain(data)
    place = rng.randrange(len(tokens))
    token = tokens[place]
    if token.lstrip(b"-").isdigit() and rng.random() < 0.8:
        tokens[place] = b"%d" % m.integer(int(token[:30]))
    elif rng.random() < 0.5:
        tokens[place] = rng.choice(tokens)
    elif rng.random() < 0.5:
        tokens[place] = m.plain(token)
    else:
        tokens[place] = token * rng.choice((0, 2, 40))
    return b"".join(tokens) + data[1 << 16 :]


# Pickles ----------------------------------------------------------------------------------------

_NAMES = (
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
)
_OPCODES = tuple(bytes([op.code.encode("latin-1")[0]]) for op in pickletools.opcodes if not op.arg)


def looks_like_pickle(data: bytes) -> bool:
    return data[:1] == b"\x80" and data[1:2] <= b"\x05" and len(data) > 3


def change_pickle(data: bytes, m: Mutator) -> bytes:
    """Change, repeat, drop or add single opcodes; frames are left out, they say only lengths."""
    rng = m.rng
    starts: list[int] = []
    stop = len(data)
    kept: list[bytes] = []
    for opcode, _, position in pickletools.genops(data):
        starts.append(position or 0)
        if opcode.name == "STOP":
            stop = (position or 0) + 1
            break
    bounds = [*starts, stop]
    kept = [data[a:b] for a, b in itertools.pairwise(bounds) if data[a : a + 1] != b"\x95"]
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        place = rng.randrange(len(kept))
        match rng.randrange(8):
            case 0:
                del kept[place]
            case 1:
                kept.insert(rng.randrange(len(kept)), kept[place])
            case 2:
                kept.insert(place, rng.choice((*_OPCODES, *_NAMES)))
            case 3:
                kept[place : place + 1] = kept[place : place + rng.choice((2, 5, 20))] * rng.choice(
                    (2, 3, 200)
                )
            case 4:
                other = rng.randrange(len(kept))
                kept[place], kept[other] = kept[other], kept[place]
            case _:
                kept[place] = _another_argument(kept[place], m)
        if not kept:
            break
    # What follows the first pickle (old torch files hold several) stays, or changes in turn.
    rest = data[stop:]
    if rest and rng.random() < 0.3:
        rest = m.value(rest)
    return b"".join(kept) + rest


def _another_argument(chunk: bytes, m: Mutator) -> bytes:
    """Change an opcode's argument and keep the length in front of it right."""
    code, body = chunk[:1], chunk[1:]
    widths = {
        b"X": 4,
        b"\x8c": 1,
        b"C": 1,
        b"B": 4,
        b"U": 1,
        b"T": 4,
        b"\x8a": 1,
        b"\x8d": 8,
        b"\x8e": 8,
    }
    if code in widths and m.rng.random() < 0.8:
        width = widths[code]
        text = (
            m.value(body[width:])
            if m.rng.random() < 0.7
            else m.rng.choice(_WORDS).encode("utf-8", "replace")
        )
        text = text[: (1 << (8 * width)) - 1]
        return code + len(text).to_bytes(width, "little") + text
    if code in (b"K", b"M", b"J") and m.rng.random() < 0.8:
        number = m.integer(int.from_bytes(body, "little"))
        if -(1 << 31) <= number < 1 << 31:
            return b"J" + struct.pack("<i", number)
        return b"\x8a\x09" + number.to_bytes(12, "little", signed=True)[:9]
    if code in (b"c", b"i") and m.rng.random() < 0.5:
        return m.rng.choice(_NAMES)
    return code + m.plain(body) if body else m.rng.choice(_OPCODES)


# Protocol buffers -------------------------------------------------------------------------------

#: (field number, wire type, value): an integer, or the bytes of a text or message.
_Field = tuple[int, int, int | bytes]


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number that does not end")


def write_varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def parse_protobuf(data: bytes) -> list[_Field]:
    fields: list[_Field] = []
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 20 or wire not in (0, 1, 2, 5):
            raise ValueError("no protocol buffer")
        value: int | bytes
        if wire == 0:
            value, at = varint(data, at)
        else:
            length = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                length, at = varint(data, at)
            if at + length > len(data):
                raise ValueError("cut off")
            value = data[at : at + length]
            at += length
        fields.append((number, wire, value))
    return fields


def write_protobuf(fields: list[_Field]) -> bytes:
    out = bytearray()
    for number, wire, value in fields:
        out += write_varint(number << 3 | wire)
        if isinstance(value, int):
            out += write_varint(value)
        elif wire == 2:
            out += write_varint(len(value)) + value
        else:
            out += value
    return bytes(out)


def looks_like_protobuf(data: bytes) -> bool:
    try:
        return len(data) > 1 and bool(parse_protobuf(data[:1])) if len(data) < 2 else _parses(data)
    except (ValueError, IndexError):
        return False


def _parses(data: bytes) -> bool:
    return len(data) < 1 << 16 and bool(parse_protobuf(data))


def change_protobuf(data: bytes, m: Mutator) -> bytes:
    rng = m.rng
    fields = parse_protobuf(data)
    place = rng.randrange(len(fields))
    number, wire, value = fields[place]
    match rng.randrange(14):
        case 0:
            del fields[place]
        case 1:
            times = rng.choice((1, 1, 2, 30))
            fields[place:place] = [fields[place]] * times
        case 2:
            fields[place] = (max(1, number + rng.choice((-1, 1, 5, 20))), wire, value)
        case 3:
            other = rng.randrange(len(fields))
            fields[place], fields[other] = fields[other], fields[place]
        case 4:
            fields[place] = (number, wire, rng.choice(fields)[2]) if wire == 2 else fields[place]
            if isinstance(fields[place][2], int):
                fields[place] = (number, 0, fields[place][2])
        case 5 if wire == 2 and isinstance(value, bytes):
            deep = data if rng.random() < 0.5 else value
            for _ in range(rng.choice((1, 3, 60, 300))):
                deep = write_protobuf([(number, 2, deep)])
            fields[place] = (number, 2, deep)
        case 6:
            fields[place] = (number, 0, rng.choice(fields)[0]) if wire == 0 else (number, 2, b"")
        case _:
            if isinstance(value, int):
                fields[place] = (number, 0, m.integer(value))
            elif wire == 2:
                fields[place] = (number, 2, m.value(value))
            else:
                fields[place] = (number, wire, m.rng.randbytes(len(value)))
    return write_protobuf(fields)
