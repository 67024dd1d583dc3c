"""The few operators of TorchScript that are computed: on numbers, lists and None."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from filterdb.sources.formats.torchscript_values import (
    UNKNOWN,
    Callee,
    Flow,
    Instance,
    Packed,
    Parameter,
    Unknown,
    Value,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Larger numbers and longer lists are left unknown.
_MAX_NUMBER = 1 << 40
_MAX_LIST = 10_000
_Number = (bool, int, float)


def truth(value: Value) -> bool | None:
    """Return whether a condition holds, None where that is unknown."""
    if value is None or type(value) in (bool, int, float, str):
        return bool(value)
    return None


def compute(name: str, arguments: Sequence[Value]) -> Value:
    """Compute an operator on what is known.

    Parameters
    ----------
    name
        Without its library.
    arguments
        Values.

    Returns
    -------
    object
        UNKNOWN where the operator is not among those computed, or an argument is not known.
    """
    function = BUILTINS.get(name)
    if function is None:
        return UNKNOWN
    try:
        result = function(list(arguments))
    except (ArithmeticError, IndexError, TypeError, ValueError):
        return UNKNOWN
    too_large = type(result) in _Number and not abs(result) <= _MAX_NUMBER
    return UNKNOWN if too_large else result


def _numbers(function: Callable[..., Any], count: int) -> Callable[[list[Value]], Value]:
    def computed(arguments: list[Value]) -> Value:
        if len(arguments) != count or not all(type(a) in _Number for a in arguments):
            return UNKNOWN
        return function(*arguments)

    return computed


def _equal(arguments: list[Value]) -> Value:
    a, b = arguments
    plain = (*_Number, str, type(None))
    if type(a) in plain and type(b) in plain:
        return a == b
    return UNKNOWN


def _not_equal(arguments: list[Value]) -> Value:
    same = _equal(arguments)
    return same if isinstance(same, Unknown) else not same


def _is(arguments: list[Value]) -> Value:
    a, b = arguments
    known = (Flow, Parameter, Instance, Packed, Callee, list, tuple, dict, str, *_Number)
    if b is None and (a is None or isinstance(a, known)):
        return a is None
    return UNKNOWN


def _is_not(arguments: list[Value]) -> Value:
    same = _is(arguments)
    return same if isinstance(same, Unknown) else not same


def _not(arguments: list[Value]) -> Value:
    known = truth(arguments[0])
    return UNKNOWN if known is None else not known


def _length(arguments: list[Value]) -> Value:
    value = arguments[0]
    return len(value) if isinstance(value, list | tuple | dict | str) else UNKNOWN


def _append(arguments: list[Value]) -> Value:
    values, item = arguments
    if not isinstance(values, list) or len(values) >= _MAX_LIST:
        return UNKNOWN
    values.append(item)
    return values


def _extend(arguments: list[Value]) -> Value:
    values, more = arguments
    if not isinstance(values, list) or not isinstance(more, list | tuple):
        return UNKNOWN
    if len(values) + len(more) > _MAX_LIST:
        return UNKNOWN
    values.extend(more)
    return values


def _set_item(arguments: list[Value]) -> Value:
    owner, key, value = arguments
    if isinstance(owner, dict) and len(owner) < _MAX_LIST:
        owner[key if type(key) in (str, int) else f"\0{len(owner)}"] = value
    elif isinstance(owner, list) and type(key) is int and -len(owner) <= key < len(owner):
        owner[key] = value
    elif isinstance(owner, list):
        return _append([owner, value])
    return None


def _values(arguments: list[Value]) -> Value:
    return list(arguments[0].values()) if isinstance(arguments[0], dict) else UNKNOWN


def _items(arguments: list[Value]) -> Value:
    return list(arguments[0].items()) if isinstance(arguments[0], dict) else UNKNOWN


def _keys(arguments: list[Value]) -> Value:
    return list(arguments[0]) if isinstance(arguments[0], dict) else UNKNOWN


def _list(arguments: list[Value]) -> Value:
    return list(arguments[0]) if isinstance(arguments[0], list | tuple) else UNKNOWN


def _add(arguments: list[Value]) -> Value:
    a, b = arguments
    if isinstance(a, list) and isinstance(b, list) and len(a) + len(b) <= _MAX_LIST:
        return [*a, *b]
    return _numbers(lambda x, y: x + y, 2)(arguments)


def _truth(arguments: list[Value]) -> Value:
    known = truth(arguments[0])
    return UNKNOWN if known is None else known


BUILTINS: Mapping[str, Callable[[list[Value]], Value]] = {
    "eq": _equal,
    "ne": _not_equal,
    "lt": _numbers(lambda a, b: a < b, 2),
    "gt": _numbers(lambda a, b: a > b, 2),
    "le": _numbers(lambda a, b: a <= b, 2),
    "ge": _numbers(lambda a, b: a >= b, 2),
    "add": _add,
    "sub": _numbers(lambda a, b: a - b, 2),
    "mul": _numbers(lambda a, b: a * b, 2),
    "div": _numbers(lambda a, b: a / b, 2),
    "floordiv": _numbers(lambda a, b: a // b, 2),
    "remainder": _numbers(lambda a, b: a % b, 2),
    "neg": _numbers(lambda a: -a, 1),
    "floor": _numbers(math.floor, 1),
    "ceil": _numbers(math.ceil, 1),
    "int": _numbers(int, 1),
    "float": _numbers(float, 1),
    "bool": _truth,
    "__is__": _is,
    "__isnot__": _is_not,
    "__not__": _not,
    "len": _length,
    "append": _append,
    "extend": _extend,
    "_set_item": _set_item,
    "values": _values,
    "items": _items,
    "keys": _keys,
    "list": _list,
    "copy": _list,
}
