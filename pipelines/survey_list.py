"""The lists a survey reads and writes: CSV, one row a file, the written one readable again."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from filterdb.catalog.model import Entry
from filterdb.catalog.uri import SourceUri, format_uri
from filterdb.errors import UsageError

if TYPE_CHECKING:
    from filterdb.catalog.model import LayoutName
    from filterdb.work.survey import Sighting

#: Columns of the list that is written; the first six are all a list needs, and of them only `uri`.
COLUMNS = (
    *("uri", "archive_sha256", "layout", "listed_format", "listed_layers", "listed_3x3"),
    *("format", "read", "layers", "filters_3x3", "kernels", "kernel_filters_3x3"),
    *("depth_source", "agrees", "other_rules", "reason", "explanation"),
)
_LAYOUTS = ("auto", "OIHW", "HWIO", "OHWI")
#: Registry → what stands between name and version in its URIs.
_SEPARATOR = {"pypi": "==", "npm": "@"}


@dataclass(frozen=True)
class ListedFile:
    """One row of a list.

    Parameters
    ----------
    uri
        Source URI; for a registry without a scheme of ours, the words that name the file.
    archive_sha256
        Hash of its archive, if listed.
    layout
        Axis order where the file cannot tell.
    format
        What the list calls its format.
    n_layers, n_filters_3x3
        What the list says is in it; None where it says nothing.
    obstacle
        Why it is not tried; empty where it is.
    explanation
        What is known of a difference between list and file.
    """

    uri: str
    archive_sha256: str | None = None
    layout: str = "auto"
    format: str = ""
    n_layers: int | None = None
    n_filters_3x3: int | None = None
    obstacle: str = ""
    explanation: str = ""

    def entry(self, number: int, base: str) -> Entry:
        """Return it as what a catalogue would call it."""
        return Entry(
            id=f"row-{number}",
            uri=self.uri,
            archive_sha256=self.archive_sha256,
            layout=cast("LayoutName", self.layout),
            base=base,
        )


@dataclass(frozen=True)
class Row:
    """A listed file and what was seen in it."""

    listed: ListedFile
    seen: Sighting

    @property
    def is_read(self) -> bool:
        """Whether every kernel in it was loaded."""
        return self.seen.is_read

    @property
    def is_compared(self) -> bool:
        """Whether the list says what to expect."""
        return self.is_read and self.listed.n_layers is not None

    @property
    def agrees(self) -> bool:
        """Whether layers and 3×3 filters are as listed."""
        counted = (self.seen.n_layers, self.seen.n_filters_3x3)
        return self.is_compared and counted == (self.listed.n_layers, self.listed.n_filters_3x3)

    @property
    def other_rules(self) -> str:
        """The rules of counting by which the counts are as listed; empty where none are known."""
        if self.agrees or not self.is_compared:
            return ""
        listed = (self.listed.n_layers, self.listed.n_filters_3x3)
        return next((w for w, *counts in self.seen.otherwise if tuple(counts) == listed), "")

    @property
    def explanation(self) -> str:
        """What is known of a difference: told, or seen in the counts."""
        if self.agrees or not self.is_compared:
            return ""
        return self.listed.explanation or self.other_rules

    def cells(self) -> list[str]:
        """Return it in the order of :data:`COLUMNS`."""
        listed, seen, read = self.listed, self.seen, self.is_read
        numbers = (seen.n_layers, seen.n_filters_3x3, seen.n_kernels, seen.n_kernel_filters_3x3)
        return [
            *(listed.uri, listed.archive_sha256 or "", listed.layout, listed.format),
            *(_cell(listed.n_layers), _cell(listed.n_filters_3x3)),
            *(seen.format, "yes" if read else "no"),
            *(_cell(number if read else None) for number in numbers),
            seen.depth_source,
            ("yes" if self.agrees else "no") if self.is_compared else "",
            self.other_rules,
            "" if read else f"{seen.error}: {seen.message}",
            self.explanation,
        ]


def _cell(number: int | None) -> str:
    return "" if number is None else str(number)


def read_list(path: Path, notes: Path | None = None) -> list[ListedFile]:
    """Read a list of files.

    Parameters
    ----------
    path
        CSV with a column ``uri``, or with ``registry``, ``package``, ``version`` and
        ``path_in_archive`` (containers inside the archive after ``#/``). Optional:
        ``archive_sha256``, ``layout``, ``listed_layers`` or ``n_conv_layers``, ``listed_3x3`` or
        ``n_3x3_filters``, ``listed_format`` or ``format``, ``explanation``.
    notes
        CSV with the columns ``uri``, ``layout``, ``explanation``: what is known besides.

    Returns
    -------
    list of ListedFile
        In the list's order.

    Raises
    ------
    UsageError
        It cannot be read, names no files, or a count is no number.
    """
    known = {row["uri"]: row for row in _rows(notes)} if notes is not None else {}
    files = [_listed(row, f"{path}, row {n}") for n, row in enumerate(_rows(path), start=1)]
    for uri in known:
        if all(file.uri != uri for file in files):
            raise UsageError(f"{notes} speaks of {uri}, which {path} does not list")
    if not files:
        raise UsageError(f"{path} lists no files", tip="it needs a header with a column uri")
    return [_with_notes(file, known.get(file.uri, {})) for file in files]


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(lines)]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV text: {error}") from error


def _with_notes(file: ListedFile, note: Mapping[str, str]) -> ListedFile:
    layout = note.get("layout") or file.layout
    if layout not in _LAYOUTS:
        raise UsageError(f"{file.uri}: layout {layout!r}, expected one of {', '.join(_LAYOUTS)}")
    return replace(file, layout=layout, explanation=note.get("explanation") or file.explanation)


def _listed(row: Mapping[str, str], where: str) -> ListedFile:
    uri, obstacle = _uri(row, where)
    # The list written here carries the reader's name too, as `format`.
    listed_format = row.get("listed_format", row.get("format", ""))
    return ListedFile(
        uri=uri,
        archive_sha256=row.get("archive_sha256") or None,
        layout=row.get("layout") or "auto",
        format=listed_format,
        n_layers=_number(row, ("listed_layers", "n_conv_layers"), where),
        n_filters_3x3=_number(row, ("listed_3x3", "n_3x3_filters"), where),
        obstacle=obstacle,
        explanation=row.get("explanation", ""),
    )


def _uri(row: Mapping[str, str], where: str) -> tuple[str, str]:
    uri = row.get("uri")
    if uri is None:
        missing = [k for k in ("registry", "package", "version", "path_in_archive") if k not in row]
        if missing:
            raise UsageError(f"{where}: neither a uri nor {', '.join(missing)}")
        registry, package = row["registry"], row["package"]
        if registry in _SEPARATOR:
            body = f"{package}{_SEPARATOR[registry]}{row['version']}"
            # "./weights/model.pt" is how `tar c .` writes it, and whoever lists such an archive.
            path = row["path_in_archive"].removeprefix("./")
            members = tuple(path.split("#/"))
            return format_uri(SourceUri(registry, body, (), members)), ""
        uri = f"{registry}:{package}={row['version']}!/{row['path_in_archive']}"
    if not uri:
        raise UsageError(f"{where}: its uri is empty")
    if uri.startswith("debian:"):
        return uri, "no origin fetches from this registry"
    return uri, ""


def _number(row: Mapping[str, str], names: Sequence[str], where: str) -> int | None:
    text = next((row[name] for name in names if row.get(name)), "")
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{where}: {names[0]} is {text!r}, expected a whole number") from None


def to_csv(rows: Sequence[Row]) -> str:
    """Return the surveyed list as CSV.

    Parameters
    ----------
    rows
        In the list's order.

    Returns
    -------
    str
        With a header; :func:`read_list` reads it again.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    return text.getvalue()
