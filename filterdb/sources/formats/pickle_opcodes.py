"""The opcodes of pickle protocols 0 to 5, none of which does anything but move inert values."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from filterdb.errors import UnsupportedFormatError
from filterdb.sources.formats.pickle_machine import MAX_NAME_BYTES, Machine, plain_text, small
from filterdb.sources.formats.pickle_values import Global, PersistentId, Record, Table

#: Below what Python turns into text without complaint, so that every message can be written.
MAX_INTEGER_BYTES = 1024
STOP = ord(".")

_U1, _U2, _U4, _U8 = (struct.Struct(f) for f in ("<B", "<H", "<I", "<Q"))
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\", b"'": b"'", b'"': b'"'}
_ESCAPES |= {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v", b"\n": b""}
_Handler: TypeAlias = Callable[[Machine], None]
#: Bytes of memory an opcode of one byte makes of nothing: a record, a table, a list, a memo entry.
_RECORD_BYTES, _TABLE_BYTES, _LIST_BYTES, _MEMO_BYTES = 256, 136, 80, 112
#: … and what every opcode may add to the stack, or to the numbers and short texts on it.
_SLOT_BYTES = 10
_VALUE_BYTES = {
    **dict.fromkeys("GFIJKML\x8a\x8b", 32),
    **dict.fromkeys("STUVXBC\x8c\x8d\x8e\x96", 40),
    **dict.fromkeys(")t\x85\x86\x87", 72),
    **dict.fromkeys("PQ", 64),
    "(": 96,
}


def _decimal(m: Machine, raw: bytes) -> int:
    try:
        if len(raw) > 400:
            raise ValueError
        return int(raw)
    except ValueError:
        m.malformed("has a number that is none")


def _op_int(m: Machine) -> None:
    raw = m.line()
    m.push({b"00": False, b"01": True}[raw] if raw in (b"00", b"01") else _decimal(m, raw))


def _op_long(m: Machine) -> None:
    m.push(_decimal(m, m.line().removesuffix(b"L")))


def _op_float(m: Machine) -> None:
    raw = m.line()
    try:
        m.push(float(raw[:400]))
    except ValueError:
        m.malformed("has a number that is none")


def _op_long_bytes(m: Machine, layout: struct.Struct) -> None:
    count = m.number(layout)
    if not 0 <= count <= MAX_INTEGER_BYTES:
        m.unsafe(f"has an integer of {count:,} bytes")
    m.push(int.from_bytes(m.take(count), "little", signed=True))


def _unescape(match: re.Match[bytes]) -> bytes:
    body = match.group(1)
    if body[:1] == b"x" and len(body) == 3:
        return bytes((int(body[1:], 16),))
    if body.isdigit() and body[:1] < b"8":
        return bytes((int(body, 8) & 255,))
    return _ESCAPES.get(body, b"\\" + body)


def _legacy_string(raw: bytes) -> str:
    # Python 2 strings: names in practice (UTF-8), else raw bytes, which latin-1 keeps one to one.
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _legacy_text(m: Machine, raw: bytes) -> str:
    text = _legacy_string(raw)
    m.spend(sys.getsizeof(text))
    return text


def _op_string(m: Machine) -> None:
    raw = m.line().strip()
    if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
        m.malformed("has a string without its quotes")
    m.push(_legacy_text(m, _ESCAPE.sub(_unescape, raw[1:-1])))


def _op_unicode(m: Machine) -> None:
    try:
        text = plain_text(m.line().decode("raw-unicode-escape"))
    except UnicodeDecodeError:
        m.malformed("has a string that cannot be decoded")
    m.spend(sys.getsizeof(text))
    m.push(text)


def _op_short_global(m: Machine) -> None:
    module, name = m.line(MAX_NAME_BYTES), m.line(MAX_NAME_BYTES)
    m.push(m.find(_legacy_string(module), _legacy_string(name)))


def _op_stack_global(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    m.push(m.find(module, name))


# -- opcodes: objects ------------------------------------------------------------------------------


def _op_reduce(m: Machine) -> None:
    args, maker = m.pop(), m.pop()
    m.spend(_RECORD_BYTES)
    m.push(m.call(maker, args))


def _op_new_object_keywords(m: Machine) -> None:
    keywords, args, maker = m.pop(), m.pop(), m.pop()
    made = m.call(maker, args)
    if isinstance(keywords, Table) and isinstance(made, Record):
        m.spend(16 * len(keywords.pairs))
        made.pairs.extend(keywords.pairs)
    m.push(made)


def _op_instance(m: Machine) -> None:
    module, name = m.line(MAX_NAME_BYTES), m.line(MAX_NAME_BYTES)
    args = tuple(m.pop_mark())
    m.push(m.call(m.find(_legacy_string(module), _legacy_string(name)), args))


def _op_object(m: Machine) -> None:
    items = m.pop_mark()
    if not items:
        m.malformed("makes an object of nothing")
    m.push(m.call(items[0], tuple(items[1:])))


def _op_build(m: Machine) -> None:
    state, target = m.pop(), m.top()
    if type(target) not in (Record, Table):
        # torch's legacy files build plain classes (ids, globals) never; others have no business.
        m.malformed(f"sets the state of a {type(target).__name__}")
    if target.state is not None:
        m.malformed("sets the state of one object twice")
    target.state = state


def _op_set(m: Machine) -> None:
    m.spend(_RECORD_BYTES)
    m.push(Record(Global("builtins", "set")))


def _op_frozen_set(m: Machine) -> None:
    m.spend(_RECORD_BYTES)
    made = Record(Global("builtins", "frozenset"))
    made.items = m.pop_mark()
    m.push(made)


def _op_table(m: Machine) -> None:
    m.spend(_TABLE_BYTES)
    m.push(Table())


def _op_list(m: Machine) -> None:
    m.spend(_LIST_BYTES)
    m.push([])


def _op_dict(m: Machine) -> None:
    m.spend(_TABLE_BYTES)
    table = Table()
    m.set_pairs(table, m.pop_mark())
    m.push(table)


def _op_append(m: Machine) -> None:
    item = m.pop()
    m.extend(m.top(), [item])


def _op_appends(m: Machine) -> None:
    items = m.pop_mark()
    m.extend(m.top(), items)


def _op_set_item(m: Machine) -> None:
    value, key = m.pop(), m.pop()
    m.set_pairs(m.top(), [key, value])


def _op_set_items(m: Machine) -> None:
    items = m.pop_mark()
    m.set_pairs(m.top(), items)


def _op_tuple(m: Machine) -> None:
    items = m.pop_mark()
    m.spend(8 * len(items))
    m.push(tuple(items))


def _op_tuple_of(m: Machine, count: int) -> None:
    items = tuple(m.pop() for _ in range(count))
    m.push(items[::-1])


def _op_pop(m: Machine) -> None:
    # As in Python's reader, POP takes away a mark where nothing lies above it.
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()


def _op_get(m: Machine, index: int) -> None:
    if index not in m.memo:
        m.malformed(f"recalls what it never stored (memo {small(index)})")
    m.push(m.memo[index])


def _op_put(m: Machine, index: int) -> None:
    if index < 0:
        m.malformed("stores under a negative memo number")
    m.spend(_MEMO_BYTES)
    m.memo[index] = m.top()


def _op_frame(m: Machine) -> None:
    count = m.number(_U8)
    if count > m.end - m.position:
        m.malformed(f"announces a frame of {count:,} bytes, {m.end - m.position:,} are there")


def _op_protocol(m: Machine) -> None:
    version = m.take(1)[0]
    if version > 5:
        raise UnsupportedFormatError(f"{m.where}: pickle protocol {version}; 0 to 5 are read")


def _op_out_of_band(m: Machine) -> None:
    raise UnsupportedFormatError(
        f"{m.where}: the pickle needs data kept outside of it (at byte {m.position})"
    )


def _push_persistent(m: Machine, value: Any) -> None:
    made = PersistentId(value)
    m.persistent.append(made)
    m.push(made)


def _constant(value: Any) -> _Handler:
    return lambda m: m.push(value)


HANDLERS: dict[int, _Handler] = {
    ord(code): handler
    for code, handler in {
        "(": Machine.mark,
        "0": _op_pop,
        "1": lambda m: (m.pop_mark(), None)[1],
        "2": lambda m: m.push(m.top()),
        "F": _op_float,
        "G": lambda m: m.push(_F8.unpack(m.take(8))[0]),
        "I": _op_int,
        "J": lambda m: m.push(m.number(_I4)),
        "K": lambda m: m.push(m.take(1)[0]),
        "M": lambda m: m.push(m.number(_U2)),
        "L": _op_long,
        "\x8a": lambda m: _op_long_bytes(m, _U1),
        "\x8b": lambda m: _op_long_bytes(m, _I4),
        "N": _constant(None),
        "\x88": _constant(True),
        "\x89": _constant(False),
        "P": lambda m: _push_persistent(m, _legacy_string(m.line())),
        "Q": lambda m: _push_persistent(m, m.pop()),
        "R": _op_reduce,
        "S": _op_string,
        "T": lambda m: m.push(_legacy_text(m, m.take(max(m.number(_I4), 0)))),
        "U": lambda m: m.push(_legacy_text(m, m.take(m.take(1)[0]))),
        "V": _op_unicode,
        "X": lambda m: m.push(m.text(m.number(_U4))),
        "\x8c": lambda m: m.push(m.text(m.take(1)[0])),
        "\x8d": lambda m: m.push(m.text(m.number(_U8))),
        "B": lambda m: m.push(m.content(m.number(_U4))),
        "C": lambda m: m.push(m.content(m.take(1)[0])),
        "\x8e": lambda m: m.push(m.content(m.number(_U8))),
        "\x96": lambda m: m.push(m.content(m.number(_U8))),
        "a": _op_append,
        "e": _op_appends,
        "b": _op_build,
        "c": _op_short_global,
        "\x93": _op_stack_global,
        "d": _op_dict,
        "}": _op_table,
        "g": lambda m: _op_get(m, _decimal(m, m.line())),
        "h": lambda m: _op_get(m, m.take(1)[0]),
        "j": lambda m: _op_get(m, m.number(_U4)),
        "p": lambda m: _op_put(m, _decimal(m, m.line())),
        "q": lambda m: _op_put(m, m.take(1)[0]),
        "r": lambda m: _op_put(m, m.number(_U4)),
        "\x94": lambda m: _op_put(m, len(m.memo)),
        "i": _op_instance,
        "o": _op_object,
        "\x81": _op_reduce,
        "\x92": _op_new_object_keywords,
        "l": lambda m: m.push(m.pop_mark()),
        "]": _op_list,
        ")": _constant(()),
        "t": _op_tuple,
        "\x85": lambda m: _op_tuple_of(m, 1),
        "\x86": lambda m: _op_tuple_of(m, 2),
        "\x87": lambda m: _op_tuple_of(m, 3),
        "s": _op_set_item,
        "u": _op_set_items,
        "\x8f": _op_set,
        "\x90": _op_appends,
        "\x91": _op_frozen_set,
        "\x80": _op_protocol,
        "\x95": _op_frame,
        "\x97": _op_out_of_band,
        "\x98": _op_out_of_band,
        "\x82": _op_out_of_band,
        "\x83": _op_out_of_band,
        "\x84": _op_out_of_band,
    }.items()
}

#: Opcode → bytes of memory its value takes, whatever the handler itself accounts for.
COSTS = tuple(_SLOT_BYTES + _VALUE_BYTES.get(chr(code), 0) for code in range(256))
