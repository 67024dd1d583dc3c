"""Writes a catalogue as people would: TOML with the keys of schema.md, in their order."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING

from filterdb.catalog.model import Entry
from filterdb.catalog.validate import KEYS

if TYPE_CHECKING:
    from filterdb.catalog.model import Catalogue

_DEFAULTS = {f.name: f.default for f in fields(Entry)}
#: Written even where nothing is known: they are what people fill in.
_ALWAYS = ("id", "uri", "format", "name", "task", "visual_category")


def to_toml(catalogue: Catalogue) -> str:
    """Write a catalogue as TOML.

    Parameters
    ----------
    catalogue
        Any; entries keep their order.

    Returns
    -------
    str
        What :func:`~filterdb.catalog.load.load_catalogue` reads back as the same entries. Keys at
        their defaults are left out, save those people are meant to fill in.
    """
    head = {
        "name": catalogue.name,
        "title": catalogue.title,
        "description": catalogue.description,
        "licence": catalogue.licence,
    }
    blocks = ["[catalogue]\n" + "".join(_line(k, v) for k, v in head.items() if v)]
    for entry in catalogue.entries:
        values = {key: getattr(entry, key) for key in KEYS}
        kept = {
            key: value
            for key, value in values.items()
            if value is not None and (key in _ALWAYS or value != _DEFAULTS[key])
        }
        blocks.append("[[model]]\n" + "".join(_line(k, v) for k, v in kept.items()))
    return "\n".join(blocks)


def _line(key: str, value: str | int | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"{key} = [{', '.join(_text(item) for item in value)}]\n"
    return f"{key} = {value if isinstance(value, int) else _text(value)}\n"


def _text(value: str) -> str:
    # JSON's escapes are TOML's, except that TOML wants DEL escaped too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
