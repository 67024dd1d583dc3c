"""``catalog scan``: a catalogue from a folder of anyone's own checkpoints."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from filterdb.catalog.model import Catalogue, Entry
from filterdb.catalog.uri import SourceUri, check_member
from filterdb.catalog.write import to_toml
from filterdb.errors import CatalogError, SourceError, UsageError
from filterdb.files import file_sha256
from filterdb.sources.fetching import MOST_ROUNDS
from filterdb.sources.formats.base import FormatReader, ModelFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.types import ProgressHook


@dataclass(frozen=True)
class Unread:
    """A file that did not become an entry.

    Parameters
    ----------
    path
        Relative to the folder.
    reason
        Why not.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What a folder holds.

    Parameters
    ----------
    catalogue
        One entry a model file, labels unknown.
    unread
        Every other file, save those that belong to a model.
    """

    catalogue: Catalogue
    unread: tuple[Unread, ...]


@dataclass(frozen=True)
class _Found:
    path: Path
    format: str
    companions: tuple[str, ...]


def scan_folder(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    name: str | None = None,
    progress: ProgressHook | None = None,
) -> Scan:
    """List the model files below a folder.

    Parameters
    ----------
    folder
        Walked in order of names; hidden folders and links to folders are left out.
    base
        Folder the catalogue will lie in; the scanned one by default.
    name
        The catalogue's name; the folder's own by default.
    progress
        Told of files looked at.

    Returns
    -------
    Scan
        Its catalogue is written by :func:`filterdb.catalog.write.to_toml`.

    Raises
    ------
    UsageError
        Where there is no such folder.
    CatalogError
        Where it holds no model file at all.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder", tip="scan takes the folder of the checkpoints")
    found, unread = _look(root, progress)
    owned = {item.path.parent / part for item in found for part in item.companions}
    models = _unowned(found)
    if not models:
        raise CatalogError(
            f"{root} holds no model file: {len(unread)} files were looked at",
            tip=unread[0].reason if unread else "the folder is empty",
        )
    home = root if base is None else Path(base)
    entries, seen = [], set[str]()
    for item in models:
        slug = _slug(item.path.relative_to(root).with_suffix("").as_posix(), seen)
        entries.append(_entry(item, slug, home))
    title = name or root.absolute().name
    catalogue = Catalogue(
        name=_slug(title, set()),
        title=title,
        description=f"{len(entries)} model files found by filterdb catalog scan.",
        entries=tuple(entries),
        path="",
        sha256="",
    )
    written = hashlib.sha256(to_toml(catalogue).encode()).hexdigest()
    catalogue = Catalogue(**{**vars(catalogue), "sha256": written})
    rest = tuple(item for item in unread if root / item.path not in owned)
    return Scan(catalogue, rest)


def _unowned(found: list[_Found]) -> list[_Found]:
    """Leave out what belongs to another file."""
    owners: dict[Path, list[_Found]] = {}
    for item in found:
        for part in item.companions:
            owners.setdefault(item.path.parent / part, []).append(item)

    def belongs(item: _Found, owner: _Found) -> bool:
        if owner.path in {item.path.parent / part for part in item.companions}:
            # Darknet's two halves name each other: the first stays.
            return owner.path < item.path
        # One configuration may go with several files of weights, and with its own.
        return owner.format != item.format or not item.companions

    return [
        item
        for item in found
        if not any(belongs(item, owner) for owner in owners.get(item.path, []))
    ]


def _walk(root: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(root):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        for name in sorted(names):
            yield Path(place) / name


def _look(root: Path, progress: ProgressHook | None) -> tuple[list[_Found], list[Unread]]:
    from filterdb.sources.formats import FORMATS, detect

    found: list[_Found] = []
    unread: list[Unread] = []
    for number, path in enumerate(_walk(root), start=1):
        if progress is not None:
            progress("scan", number, None)
        relative = path.relative_to(root).as_posix()
        try:
            relative.encode()
        except UnicodeEncodeError:
            shown = relative.encode(errors="surrogateescape").decode(errors="replace")
            unread.append(Unread(shown, "its name is not UTF-8"))
            continue
        if not path.is_file():
            unread.append(Unread(relative, "it is no regular file"))
            continue
        file = ModelFile(path, {}, path.name)
        try:
            format_name = detect(file)
            companions = _companions(file, FORMATS[format_name])
        except SourceError as error:
            unread.append(Unread(relative, str(error)))
            continue
        found.append(_Found(path, format_name, companions))
    return found, unread


def _companions(file: ModelFile, reader: FormatReader) -> tuple[str, ...]:
    names: tuple[str, ...] = ()
    for _ in range(MOST_ROUNDS):
        again = reader.companions(file)
        if set(again) <= set(names):
            break
        names = again
        _check_companions(file.path, names)
        file = ModelFile(file.path, {part: file.path.parent / part for part in names}, file.name)
    return names


def _check_companions(path: Path, companions: tuple[str, ...]) -> None:
    for part in companions:
        try:
            check_member(part)
        except UsageError as error:
            raise SourceError(f"{path.name} asks for {part!r} outside its folder") from error
        if not (path.parent / part).is_file():
            raise SourceError(f"{path.name} needs {part!r}, which is not there")


def _entry(item: _Found, slug: str, home: Path) -> Entry:
    parts = [item.path, *(item.path.parent / part for part in item.companions)]
    relative = os.path.relpath(item.path.absolute(), home.absolute())
    return Entry(
        id=slug,
        uri=str(SourceUri("file", PurePosixPath(relative).as_posix())),
        format=item.format,
        archive_sha256=file_sha256(item.path),
        bytes=sum(part.stat().st_size for part in parts),
        name=item.path.stem,
        companions=item.companions,
        base=str(home),
    )


def _slug(text: str, seen: set[str]) -> str:
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.") or "model"
    slug, number = plain, 1
    while slug in seen:
        number += 1
        slug = f"{plain}-{number}"
    seen.add(slug)
    return slug
