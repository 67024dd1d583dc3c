"""The contract of a format reader, and the bounds all readers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filterdb.layers.raw import RawModel

#: Memory above that of the imports stays below twice the file plus 256 MiB, whatever a header says.
#: One array loaded may take this many times the file's own size (dequantised int8 is four times
#: its part of the file; sparse tensors, expanded views and inflated members are larger, too) …
MAX_EXPANSION = 2
#: … plus this many bytes for small files; the rest is for records of what the file holds.
EXPANSION_SLACK = 160 * 1024 * 1024
#: All arrays of a file together, of which one at a time is loaded, may have this many times its
#: size (storages may be viewed more than once, members inflate) …
MAX_SHARING = 16
#: … plus this many bytes for small files.
SHARING_SLACK = 64 * 1024 * 1024
#: No real network stores more tensors in one file.
MAX_TENSORS = 1_000_000
#: Rank of the largest tensor taken seriously.
MAX_RANK = 32


@dataclass(frozen=True)
class ModelFile:
    """A model's bytes on this machine.

    Parameters
    ----------
    path
        The file.
    companions
        Member name relative to the file's folder → path, for files that come in parts.
    name
        The file's own name (a cache may store it under its hash).
    """

    path: Path
    companions: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    name: str = ""

    @property
    def suffix(self) -> str:
        """Lower-case suffix of the file's own name, with its dot."""
        return Path(self.name or self.path.name).suffix.lower()


@dataclass(frozen=True)
class FormatReader:
    """One file format.

    Parameters
    ----------
    name
        As in the catalogue: "torch", "onnx", ….
    title
        For people.
    suffixes
        Lower-case, with their dots; a hint only.
    sniff
        True where (head, file) are of this format. `head` is the first 4 KiB. Must be cheap and
        never raise for foreign bytes.
    read
        Lists the tensors (and graph). Opens the file lazily: values are read by ``Tensor.load``.
        Raises only SourceError types, whatever the bytes are, and never executes anything.
    companions
        Names (relative to the file's folder) of the other files that belong to it, read from the
        file itself or its name; empty for single-file formats.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    sniff: Callable[[bytes, ModelFile], bool]
    read: Callable[[ModelFile], RawModel]
    companions: Callable[[ModelFile], tuple[str, ...]] = lambda _file: ()
