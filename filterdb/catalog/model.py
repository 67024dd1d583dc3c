"""A catalogue's records, frozen and already validated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from filterdb.types import ModelId

LayoutName = Literal["auto", "OIHW", "HWIO", "OHWI"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of a catalogue (schema.md, "Catalogue entry").

    Parameters
    ----------
    id
        Unique slug, ``[a-z0-9._-]+``.
    catalogue
        Name of the catalogue it stands in.
    uri
        Source URI as written; ``file:`` paths are relative to `base`.
    format
        Reader's name, or "auto" to tell from the bytes.
    archive_sha256, bytes
        Hash of the archive and size of the member with its companions, if known.
    name, architecture, family, task, visual_category
        Labels; the last two from the closed vocabulary.
    training_dataset, pretraining_dataset
        Data sets, possibly none.
    licence_package, licence_weights
        SPDX identifiers, or NOASSERTION.
    paper, note
        Free text.
    label_source
        What was read to set the labels.
    layout
        Axis order of 4-D kernels, where the file cannot tell.
    transposed
        Globs of tensor names that are transposed convolutions.
    companions
        Member names, relative to the member's folder, that belong to the model.
    base
        Folder the catalogue lies in; not part of any table.
    """

    id: ModelId
    uri: str
    catalogue: str = ""
    format: str = "auto"
    archive_sha256: str | None = None
    bytes: int | None = None
    name: str = ""
    architecture: str = "unknown"
    family: str = "unknown"
    task: str = "unknown"
    visual_category: str = "unknown"
    training_dataset: tuple[str, ...] = ()
    pretraining_dataset: tuple[str, ...] = ()
    licence_package: str = "NOASSERTION"
    licence_weights: str = "NOASSERTION"
    paper: str | None = None
    note: str | None = None
    label_source: str = ""
    layout: LayoutName = "auto"
    transposed: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()
    base: str = "."


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """A named, ordered list of entries.

    Parameters
    ----------
    name
        Slug of the catalogue.
    title, description
        For people.
    licence
        What is to be said of the models' licences, or of the list's.
    entries
        In file order; ids unique.
    path
        Where it was read from.
    sha256
        Hash of the file's bytes.
    """

    name: str
    title: str
    description: str
    entries: tuple[Entry, ...]
    path: str
    sha256: str
    licence: str = ""
