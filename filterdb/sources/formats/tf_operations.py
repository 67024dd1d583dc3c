"""One operation of a TensorFlow graph, with plain attributes, and its form in JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from filterdb.errors import MalformedFileError

#: An attribute's value: integers, words, a number, or None for what no reader needs.
Attribute: TypeAlias = tuple[int, ...] | tuple[str, ...] | str | int | float | bool | None


@dataclass(frozen=True)
class Operation:
    """One node of a GraphDef.

    Parameters
    ----------
    name, op
        As in the graph.
    inputs
        "name", "name:output"; control inputs left out.
    attributes
        Attribute name → plain value.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]

    def words(self, key: str) -> tuple[str, ...]:
        """Return a list of words, empty where it is none."""
        value = self.attributes.get(key)
        if not isinstance(value, tuple):
            return ()
        return tuple(v for v in value if isinstance(v, str))

    def integers(self, key: str) -> tuple[int, ...] | None:
        """Return a list of integers, None where it is none."""
        value = self.attributes.get(key)
        if not isinstance(value, tuple) or not value:
            return None
        whole = tuple(v for v in value if isinstance(v, int))
        return whole if len(whole) == len(value) else None


def operation_from_json(node: Mapping[str, Any]) -> Operation:
    """Read one node of a GraphDef written as JSON.

    Parameters
    ----------
    node
        With ``name``, ``op``, ``input`` and ``attr``.

    Returns
    -------
    Operation
        The same, plain.

    Raises
    ------
    MalformedFileError
        If name, operation or inputs are no text.
    """
    name, op, inputs = node.get("name"), node.get("op"), node.get("input") or []
    if not isinstance(name, str) or not isinstance(op, str) or not isinstance(inputs, list):
        raise MalformedFileError("a node of the graph has no name, operation or list of inputs")
    if not all(isinstance(i, str) for i in inputs):
        raise MalformedFileError(f"node {name!r}: an input is no name")
    attr = node.get("attr")
    attributes = attr.items() if isinstance(attr, Mapping) else ()
    return Operation(
        clean(name),
        op,
        tuple(clean(i) for i in inputs if not i.startswith("^")),
        {str(key): _attribute(value) for key, value in attributes},
    )


def clean(name: str) -> str:
    """Make a name from JSON fit for tables, which hold no lone surrogates.

    Parameters
    ----------
    name
        Any text.

    Returns
    -------
    str
        The same for every well-formed name.
    """
    return name.encode("utf-8", "replace").decode()


def _attribute(value: object) -> Attribute:
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("list"), Mapping):
        values = value["list"]
        if values.get("i"):
            whole = tuple(_integer(v) for v in _list(values["i"]))
            return tuple(v for v in whole if v is not None) if None not in whole else None
        called = [v for v in _list(values.get("func")) if isinstance(v, Mapping)]
        if called:
            return tuple(clean(str(v.get("name", ""))) for v in called)
        return tuple(_word(v) for v in _list(values.get("s")))
    for key, convert in (("s", _word), ("i", _integer), ("f", _number)):
        if key in value:
            return convert(value[key])
    if isinstance(value.get("func"), Mapping):
        return clean(str(value["func"].get("name", "")))
    flag = value.get("b")
    return flag if isinstance(flag, bool) else None


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _integer(value: object) -> int | None:
    # 64-bit integers are strings in JSON.
    if isinstance(value, bool) or not isinstance(value, int | str) or len(str(value)) > 20:
        return None
    try:
        return int(value)
    except ValueError:
        return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else None


_WORDS = frozenset({"SAME", "VALID", "EXPLICIT", "NHWC", "NCHW", "NDHWC", "NCDHW", "BiasAdd"})


def _word(value: object) -> str:
    """Read bytes: base64, a list of byte values, or (by other writers) the word itself."""
    if isinstance(value, list):
        try:
            return bytes(value).decode("utf-8", "replace")
        except (TypeError, ValueError):
            return ""
    if not isinstance(value, str):
        return ""
    if value in _WORDS:  # "SAME" is well-formed base64, too
        return value
    try:
        return base64.b64decode(value, validate=True).decode()
    except (binascii.Error, ValueError):
        return clean(value)
