"""Reads catalogues, TOML or CSV, by name or by path."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filterdb
from filterdb.catalog.model import Catalogue
from filterdb.catalog.validate import (
    INTEGER_KEYS,
    LIST_KEYS,
    Problem,
    is_slug,
    make_entries,
)
from filterdb.catalog.vocabulary import Vocabulary, load_vocabulary
from filterdb.errors import CatalogError, UnknownNameError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEAD_KEYS = ("name", "title", "description", "licence")
_MODEL_LINE = re.compile(r"[ \t]*\[\[[ \t]*model[ \t]*\]\][ \t]*(#.*)?")
#: Problems shown at once; more are counted.
_SHOWN = 12


def catalogue_folders() -> tuple[Path, ...]:
    """Return where named catalogues lie: in the wheel, or beside the package in a checkout.

    Returns
    -------
    tuple of Path
        Folders that exist.
    """
    package = Path(filterdb.__file__).parent
    # "catalogs" beside site-packages/filterdb would be somebody else's: only a checkout has
    # pyproject.toml there.
    checkout = package.parent
    candidates = [package / "_catalogs"]
    if (checkout / "pyproject.toml").is_file():
        candidates.append(checkout / "catalogs")
    return tuple(folder for folder in candidates if folder.is_dir())


def catalogue_names() -> dict[str, Path]:
    """List the catalogues that can be asked for by name.

    Returns
    -------
    dict of str to Path
        Name → file, sorted by name.
    """
    found: dict[str, Path] = {}
    for folder in catalogue_folders():
        for path in sorted(folder.iterdir()):
            if path.suffix in (".toml", ".csv"):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def find_catalogue(name: str | Path) -> Path:
    """Find a catalogue's file.

    Parameters
    ----------
    name
        A name ("demo") or a path.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UnknownNameError
        Where neither exists.
    CatalogError
        Where the path is a folder.
    """
    text = str(name)
    path = Path(text).expanduser()
    names = catalogue_names()
    # A name wins over a stray file without suffix; whoever means a file writes its suffix.
    if text in names and not path.suffix:
        return names[text]
    if path.is_file():
        return path
    if path.is_dir():
        raise CatalogError(
            f"{text} is a folder, not a catalogue", tip=f"make one: filterdb catalog scan {text}"
        )
    raise UnknownNameError("catalogue", text, names)


def load_catalogue(name: str | Path, *, vocabulary: Vocabulary | None = None) -> Catalogue:
    """Read a catalogue and check it.

    Parameters
    ----------
    name
        Its name ("demo") or the path of a TOML or CSV file.
    vocabulary
        Words allowed for task and visual category; filterdb's own by default.

    Returns
    -------
    Catalogue
        Frozen records in file order.

    Raises
    ------
    UnknownNameError
        Where there is no such catalogue.
    CatalogError
        Where anything in it is wrong; the message lists what, and where.
    """
    path = find_catalogue(name)
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path} cannot be read as UTF-8 text: {error}") from error
    words = load_vocabulary() if vocabulary is None else vocabulary
    read = _read_csv if path.suffix.lower() == ".csv" else _read_toml
    return read(text, path=path, sha256=hashlib.sha256(content).hexdigest(), vocabulary=words)


def _read_toml(text: str, *, path: Path, sha256: str, vocabulary: Vocabulary) -> Catalogue:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{path}: not TOML: {error}") from error
    head, tables, problems = _split(document, path)
    name = head.get("name") or path.stem
    entries, more = make_entries(
        tables, catalogue=name, base=str(path.parent), vocabulary=vocabulary
    )
    _raise_problems([*problems, *more], path=path, where=_TomlLines(text, len(tables)).place)
    return Catalogue(
        name=name,
        title=head.get("title", name),
        description=head.get("description", ""),
        entries=_not_empty(entries, path),
        path=str(path),
        sha256=sha256,
        licence=head.get("licence", ""),
    )


def _split(
    document: dict[str, Any], path: Path
) -> tuple[dict[str, str], list[dict[str, Any]], list[Problem]]:
    problems = []
    for key in document:
        if key not in ("catalogue", "model"):
            close = nearest(key, ("catalogue", "model")) or ["catalogue", "model"]
            problems.append(Problem(f"unknown table {key!r} (nearest: {', '.join(close)})"))
    head = document.get("catalogue", {})
    tables = document.get("model", [])
    if not isinstance(head, dict):
        raise CatalogError(f"{path}: catalogue is not a table")
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise CatalogError(f"{path}: models are written as [[model]] tables")
    for key, value in head.items():
        if key not in _HEAD_KEYS:
            close = nearest(key, _HEAD_KEYS) or list(_HEAD_KEYS)
            message = f"[catalogue]: unknown key {key!r} (nearest: {', '.join(close)})"
            problems.append(Problem(message, None, key))
        elif not isinstance(value, str):
            problems.append(Problem(f"[catalogue]: {key} must be a text, got {value!r}", None, key))
    if isinstance(head.get("name"), str) and not is_slug(head["name"]):
        problems.append(Problem(f"[catalogue]: name {head['name']!r} is not a slug", None, "name"))
    return {k: v for k, v in head.items() if isinstance(v, str)}, tables, problems


def _read_csv(text: str, *, path: Path, sha256: str, vocabulary: Vocabulary) -> Catalogue:
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower())
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    tables: list[dict[str, Any]] = []
    lines: list[int] = []
    try:
        header = next(reader, [])
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise CatalogError(
                    f"{path}:{reader.line_num}: {len(row)} fields, the header has {len(header)}"
                )
            tables.append(_from_csv(dict(zip(header, row, strict=True))))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise CatalogError(f"{path}:{reader.line_num}: not CSV: {error}") from error
    if len(set(header)) < len(header):
        raise CatalogError(f"{path}:1: a column stands twice in the header")
    entries, problems = make_entries(
        tables, catalogue=name, base=str(path.parent), vocabulary=vocabulary
    )
    _raise_problems(
        problems,
        path=path,
        where=lambda problem: None if problem.entry is None else lines[problem.entry],
    )
    return Catalogue(
        name=name,
        title=path.stem,
        description="",
        entries=_not_empty(entries, path),
        path=str(path),
        sha256=sha256,
    )


def _from_csv(row: dict[str, str]) -> dict[str, Any]:
    """Give CSV's texts their types; an empty field is a key left out."""
    table: dict[str, Any] = {}
    for key, value in row.items():
        if value == "":
            # Unknown columns must not hide behind being empty.
            if key not in LIST_KEYS:
                table[key] = None
        elif key in LIST_KEYS:
            table[key] = [item.strip() for item in value.split(";") if item.strip()]
        elif key in INTEGER_KEYS and value.isascii() and value.isdigit():
            table[key] = int(value)
        else:
            table[key] = value
    return table


class _TomlLines:
    """Finds the line of an entry's key again; tomllib does not keep it."""

    def __init__(self, text: str, n_entries: int) -> None:
        self.lines = text.splitlines()
        starts = [i for i, line in enumerate(self.lines) if _MODEL_LINE.fullmatch(line)]
        # A multi-line text may hold a line that looks like a header: then say no line at all.
        self.starts = starts if len(starts) == n_entries else None

    def place(self, problem: Problem) -> int | None:
        if self.starts is None or problem.entry is None:
            return None
        start = self.starts[problem.entry]
        following = [s for s in self.starts if s > start]
        end = following[0] if following else len(self.lines)
        if problem.key is not None:
            key = re.compile(rf"""[ \t]*["']?{re.escape(problem.key)}["']?[ \t]*=""")
            for number in range(start + 1, end):
                if key.match(self.lines[number]):
                    return number + 1
        return start + 1


def _raise_problems(problems: Sequence[Problem], *, path: Path, where: Any) -> None:
    if not problems:
        return
    lines = []
    for problem in problems[:_SHOWN]:
        line = where(problem)
        place = f"{path}:{line}" if line else str(path)
        if problem.entry is None:
            who = ""
        elif problem.entry_id:
            who = f"model {problem.entry_id!r}: "
        else:
            who = f"model {problem.entry + 1}: "
        lines.append(f"{place}: {who}{problem.message}")
    if len(problems) > _SHOWN:
        lines.append(f"and {len(problems) - _SHOWN} more problems")
    raise CatalogError("\n".join(lines))


def _not_empty(entries: tuple[Any, ...], path: Path) -> tuple[Any, ...]:
    if not entries:
        raise CatalogError(f"{path} holds no model", tip="write at least one [[model]] table")
    return entries
