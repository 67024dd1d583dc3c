"""MediaPipe task bundles: a zip file of TFLite models, stored so that they are read in place.

MediaPipe's own loader takes uncompressed members only, so that it can map them; so does this
reader. Bundles inside bundles (a gesture recogniser holds a hand landmarker) are entered too.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from filterdb.errors import (
    FetchError,
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.layers.raw import RawModel
from filterdb.sources.container_kinds import zip_begins
from filterdb.sources.containers import check_directory
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.flatbuffer import FlatBuffer
from filterdb.sources.formats.flatbuffer_bytes import room_for
from filterdb.sources.formats.tflite import read_part

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from filterdb.layers.raw import Node, Tensor
    from filterdb.sources.formats.file_view import ByteSource

#: Bundles in bundles, at most; real ones have two levels.
_MAX_DEPTH = 4
#: Members of all bundles together; real ones have below ten.
_MAX_MEMBERS = 1000
_SNIFFED_MEMBERS = 64
_LOCAL = struct.Struct("<4s22xHH")
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, EOFError, LookupError, NotImplementedError, OSError),
    *(OverflowError, RuntimeError, ValueError, struct.error),
)


@dataclass(frozen=True)
class _Part:
    """A member, or the file itself: its name, and its bytes in the file."""

    name: str
    start: int
    size: int


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: IO[bytes], part: _Part) -> None:
        self._file, self._part, self._position = file, part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, target: int, whence: int = 0) -> int:
        target += {0: 0, 1: self._position, 2: self._part.size}[whence]
        if target < 0:
            raise ValueError("a place before the file")
        self._position = target
        return target

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._part.size - self._position)
        self._file.seek(self._part.start + self._position)
        block = self._file.read(left if size < 0 else min(size, left))
        self._position += len(block)
        return block


def sniff(head: bytes, file: ModelFile) -> bool:
    """Tell whether a file is a bundle of TFLite models.

    Parameters
    ----------
    head
        The first bytes.
    file
        The file.

    Returns
    -------
    bool
        True for a zip file that holds a TFLite model or another bundle, uncompressed, among its
        first members.
    """
    if not zip_begins(head):
        return False
    try:
        with file.path.open("rb") as handle:
            whole = _Part("", 0, handle.seek(0, 2))
            infos = _directory(handle, whole, file.name or file.path.name)[:_SNIFFED_MEMBERS]
            for info in infos:
                if info.compress_type == zipfile.ZIP_STORED:
                    handle.seek(info.header_offset)
                    _, name, extra = _LOCAL.unpack(handle.read(_LOCAL.size))
                    handle.seek(name + extra, 1)
                    start = handle.read(8)
                    if start[4:] == b"TFL3" or info.filename.endswith(".task"):
                        return True
                elif info.filename.endswith(".tflite") and file.suffix == ".task":
                    return True
    except (SourceError, *_BROKEN):
        pass
    return False


def read(file: ModelFile) -> RawModel:
    """List the tensors and operators of all models of a bundle.

    Parameters
    ----------
    file
        The bundle.

    Returns
    -------
    RawModel
        Every name is preceded by its member's: ``hand_detector.tflite/conv2d/Kernel``.

    Raises
    ------
    SourceError
        If the zip file or a model in it is damaged, or a model is compressed.
    """
    where = file.name or file.path.name
    inside = ModelFile(file.path, {}, where)
    tensors: list[Tensor] = []
    nodes: list[Node] = []
    notes: list[str] = []
    with map_file(file.path) as data:
        parts = list(_models(file.path, data, where))
        room = room_for(len(data), where)
        for part in parts:
            label = f"{where}!/{part.name}"
            buffer = FlatBuffer(data, where=label, start=part.start, size=part.size, room=room)
            model = read_part(inside, buffer)
            tensors += [replace(t, name=f"{part.name}/{t.name}") for t in model.tensors]
            nodes += [_renamed(node, part.name) for node in model.nodes]
            notes += [f"{part.name}: {note}" for note in model.notes]
    if not parts:
        raise UnsupportedFormatError(
            f"{where} bundles no TFLite model", tip="name the file in it with !/member"
        )
    return RawModel(
        format="mediapipe_task",
        tensors=tuple(tensors),
        nodes=tuple(nodes),
        has_edges=True,
        folds_batch_norm=True,
        default_layout="OHWI",
        notes=tuple(notes),
    )


def _renamed(node: Node, member: str) -> Node:
    def full(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{member}/{name}" for name in names)

    return replace(
        node,
        name=f"{member}/{node.name}",
        inputs=full(node.inputs),
        outputs=full(node.outputs),
        weights={role: f"{member}/{name}" for role, name in node.weights.items()},
        dynamic_weight=None if node.dynamic_weight is None else f"{member}/{node.dynamic_weight}",
    )


def _models(path: Path, data: ByteSource, where: str) -> Iterator[_Part]:
    """Yield the TFLite models of a bundle and of those in it, in their order."""
    waiting, seen = [(_Part("", 0, len(data)), 0)], 0
    while waiting:
        part, depth = waiting.pop(0)
        begin = bytes(data[part.start : part.start + min(part.size, 80)])
        if begin[4:8] == b"TFL3":
            yield part
        elif zip_begins(begin):
            if depth == _MAX_DEPTH:
                raise UnsafeCheckpointError(f"{where} nests bundles deeper than {depth} levels")
            members = _members(path, data, part, f"{where}!/{part.name}" if part.name else where)
            seen += len(members)
            if seen > _MAX_MEMBERS:
                raise UnsafeCheckpointError(f"{where} bundles more than {_MAX_MEMBERS} files")
            waiting[:0] = [(member, depth + 1) for member in members]


def _members(path: Path, data: ByteSource, part: _Part, where: str) -> list[_Part]:
    try:
        with path.open("rb") as handle:
            infos = _directory(handle, part, where)
    except OSError as error:
        raise FetchError(f"cannot read {where}: {error.strerror or error}") from error
    found, end = [], part.start
    for info in sorted(infos, key=lambda info: info.header_offset):
        header = part.start + info.header_offset
        local = bytes(data[header : header + _LOCAL.size]) if info.header_offset >= 0 else b""
        mark, name, extra = _LOCAL.unpack(local) if len(local) == _LOCAL.size else (b"", 0, 0)
        start = header + _LOCAL.size + int(name) + int(extra)
        stop = start + info.compress_size
        if mark != b"PK\3\4" or header < end or stop > part.start + part.size:
            raise MalformedFileError(
                f"{where}: member {info.filename!r} overlaps another or reaches beyond the file"
            )
        end = stop
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
            prefix = f"{part.name}/" if part.name else ""
            found.append(_Part(f"{prefix}{info.filename}", start, info.compress_size))
        elif info.filename.lower().endswith((".tflite", ".task")):
            raise UnsupportedFormatError(
                f"{where}: member {info.filename!r} is compressed or encrypted; MediaPipe takes "
                "only what is stored plainly",
                tip=f"enter it by name: !/{info.filename}",
            )
    if len({member.name for member in found}) < len(found):
        raise MalformedFileError(f"{where}: two members have the same name")
    return found


def _directory(handle: IO[bytes], part: _Part, where: str) -> list[zipfile.ZipInfo]:
    """Read the table of contents of a zip file that may lie inside another."""
    window = _Window(handle, part)
    check_directory(window, part.size, where)  # type: ignore[arg-type]
    try:
        window.seek(0)
        with zipfile.ZipFile(window) as archive:
            return [info for info in archive.infolist() if not info.is_dir()]
    except _BROKEN as error:
        raise MalformedFileError(f"{where}: not a readable zip file: {error}") from error


READER = FormatReader(
    name="mediapipe_task",
    title="MediaPipe task bundle",
    suffixes=(".task", ".binarypb"),
    sniff=sniff,
    read=read,
)
