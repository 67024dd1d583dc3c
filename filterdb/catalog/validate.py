"""From a table someone wrote to a frozen record, or to a list of what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_args

from filterdb.catalog.model import Entry, LayoutName
from filterdb.catalog.uri import check_member, parse_uri
from filterdb.catalog.vocabulary import COLUMNS, Vocabulary, explain_unknown
from filterdb.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: Formats with a built-in reader; an entry point of group ``filterdb.formats`` adds more.
FORMATS = ("auto", "torch", "safetensors", "onnx", "tflite", "keras_h5", "npz", "ncnn", "tfjs")
#: Keys of an entry, in the order they are written.
KEYS = tuple(f.name for f in fields(Entry) if f.name not in ("catalogue", "base"))
LIST_KEYS = ("training_dataset", "pretraining_dataset", "transposed", "companions")
INTEGER_KEYS = ("bytes",)
#: Keys that may be left empty: nothing is known.
OPTIONAL_KEYS = ("archive_sha256", "bytes", "paper", "note")

_SLUG = re.compile(r"[a-z0-9._-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LICENCE = re.compile(r"[A-Za-z0-9.+() -]+")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a catalogue.

    Parameters
    ----------
    message
        What, expected and got.
    entry
        Position of the entry in the file, or None for the catalogue itself.
    key
        The key concerned, if there is one.
    entry_id
        The entry's id as written, if it has one.
    """

    message: str
    entry: int | None = None
    key: str | None = None
    entry_id: str | None = None


def is_slug(text: str) -> bool:
    """Tell whether a text may be an id.

    Parameters
    ----------
    text
        Any text.

    Returns
    -------
    bool
        True for ``[a-z0-9._-]+`` that is not a folder's own name.
    """
    # An id becomes a folder under _wip/: "." and ".." would leave it.
    return bool(_SLUG.fullmatch(text)) and text.strip(".") != ""


def make_entries(
    tables: Iterable[Mapping[str, Any]], *, catalogue: str, base: str, vocabulary: Vocabulary
) -> tuple[tuple[Entry, ...], tuple[Problem, ...]]:
    """Check entries and freeze them.

    Parameters
    ----------
    tables
        One mapping an entry, with the keys of schema.md.
    catalogue
        Name of the catalogue they stand in.
    base
        Folder ``file:`` paths are relative to.
    vocabulary
        Words allowed for task and visual category.

    Returns
    -------
    entries
        Those without problems, in order.
    problems
        Everything wrong, in order; empty where the catalogue is sound.
    """
    entries: list[Entry] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for number, table in enumerate(tables):
        found = list(_problems(number, table, vocabulary))
        identifier = table.get("id")
        if isinstance(identifier, str):
            first = seen.setdefault(identifier, number)
            if first != number:
                message = f"id {identifier!r} is that of entry {first + 1} already"
                found.append(Problem(message, number, "id", identifier))
        problems += found
        if not found:
            entries.append(_freeze(table, catalogue=catalogue, base=base))
    return tuple(entries), tuple(problems)


def _freeze(table: Mapping[str, Any], *, catalogue: str, base: str) -> Entry:
    values: dict[str, Any] = {}
    for key, value in table.items():
        if value is None or (key in OPTIONAL_KEYS and value == ""):
            continue
        values[key] = tuple(value) if key in LIST_KEYS else value
    values.setdefault("name", values["id"])
    return Entry(**values, catalogue=catalogue, base=base)


def _problems(number: int, table: Mapping[str, Any], vocabulary: Vocabulary) -> Iterator[Problem]:
    identifier = table.get("id") if isinstance(table.get("id"), str) else None

    def problem(key: str | None, message: str) -> Problem:
        return Problem(message, number, key, identifier)

    for key in ("id", "uri"):
        if not table.get(key):
            yield problem(None, f"has no {key}")
    for key, value in table.items():
        message = _check_key(key) or _check_type(key, value)
        if message is None and value not in (None, ""):
            message = _check_value(key, value, vocabulary)
        if message is not None:
            yield problem(key, message)


def _check_key(key: str) -> str | None:
    if key in KEYS:
        return None
    close = nearest(key, KEYS)
    hint = f"nearest: {', '.join(close)}" if close else f"there are: {', '.join(KEYS)}"
    return f"unknown key {key!r} ({hint})"


def _check_type(key: str, value: object) -> str | None:
    if value is None:
        return None
    got = f"got {value!r} ({type(value).__name__})"
    if key in LIST_KEYS:
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            return f"{key} must be a list of texts, {got}"
    elif key in INTEGER_KEYS:
        if value == "":
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            return f"{key} must be a whole number of bytes, {got}"
    elif not isinstance(value, str):
        return f"{key} must be a text, {got}"
    return None


def _check_value(key: str, value: Any, vocabulary: Vocabulary) -> str | None:
    if key == "id" and not is_slug(value):
        return f"id {value!r} is not a slug of a-z 0-9 . _ -"
    if key == "archive_sha256" and not _SHA256.fullmatch(value):
        return f"archive_sha256 {value!r} is not 64 lower-case hexadecimal digits"
    if key == "uri":
        return _refusal(parse_uri, value)
    if key == "companions":
        return next((m for v in value if (m := _refusal(check_member, v))), None)
    if key in COLUMNS:
        return explain_unknown(key, value, vocabulary)
    if key.startswith("licence_") and not _LICENCE.fullmatch(value):
        return f"{key} {value!r} is not an SPDX expression; NOASSERTION where nobody says"
    closed = {"layout": get_args(LayoutName), "format": FORMATS}.get(key)
    if closed is not None and value not in closed:
        if key == "format" and value in _format_plugins():
            return None
        close = nearest(value, closed) or list(closed)
        return f"unknown {key} {value!r} (nearest: {', '.join(close)})"
    return None


def _refusal(check: Any, value: str) -> str | None:
    try:
        check(value)
    except UsageError as error:
        return str(error)
    return None


def _format_plugins() -> set[str]:
    from importlib.metadata import entry_points

    return {point.name for point in entry_points(group="filterdb.formats")}
