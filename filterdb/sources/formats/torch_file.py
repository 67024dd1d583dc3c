"""PyTorch checkpoints (zip since 1.6, the older pickle container) and TorchScript archives.

Nothing is executed and torch is not imported: the pickles are interpreted by
:mod:`filterdb.sources.formats.pickle_reader`, storages are mapped from the file when a tensor is
loaded. State dicts, dictionaries around them and pickled modules are read alike.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, UnsupportedFormatError
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.pickle_reader import Unpickled, read_pickle
from filterdb.sources.formats.stored_array import FileBytes, StoredBytes
from filterdb.sources.formats.torch_export import find_root, read_exported
from filterdb.sources.formats.torch_groups import collect
from filterdb.sources.formats.torch_model import notes_of, raw_model
from filterdb.sources.formats.torch_tensors import StorageRef, TensorTable, storage_ref
from filterdb.sources.formats.torch_walk import Walker
from filterdb.sources.formats.torchscript import Pickled, scripted
from filterdb.sources.formats.zip_entries import ZipEntries, open_zip

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from filterdb.layers.raw import RawModel
    from filterdb.sources.formats.file_view import ByteSource

_LEGACY_PROTOCOL = 1001
#: The magic number as pickle protocols 0 and 1, and 2 and later, write it.
_MAGIC_TEXT = b"L119547037146038801333356L\n."
_MAGIC_BYTES = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_TAR_MEMBERS = (b"sys_info", b"pickle", b"storages", b"tensors")
_TAIL_BYTES = 64 * 1024
#: A TorchScript's directory lists hundreds of files of code.
_MAX_DIRECTORY = 4 * 1024 * 1024


def _sniff(head: bytes, file: ModelFile) -> bool:
    if _is_legacy(head):
        return True
    if head[257:262] == b"ustar" and head[:100].rstrip(b"\0").strip(b"./") in _TAR_MEMBERS:
        return True
    if not head.startswith(b"PK\3\4"):
        return False
    # torch.save writes NAME/data.pkl first; in TorchScript it may come last.
    if b"/data.pkl" in head:
        return True
    tail = _tail(file)
    return b"/data.pkl" in tail or (b"archive_format" in tail and b"models/" in tail)


def _is_legacy(head: bytes) -> bool:
    return head.startswith(_MAGIC_TEXT) or (head[:1] == b"\x80" and _MAGIC_BYTES in head[:32])


def _tail(file: ModelFile) -> bytes:
    try:
        with file.path.open("rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(max(size - _TAIL_BYTES, 0))
            tail = handle.read(_TAIL_BYTES)
            end = tail.rfind(b"PK\5\6")
            length = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
            if len(tail) < length <= _MAX_DIRECTORY:
                handle.seek(max(size - length - _TAIL_BYTES, 0))
                tail = handle.read(length + _TAIL_BYTES)
            return tail
    except OSError:
        return b""


def _read(file: ModelFile) -> RawModel:
    label = file.name or file.path.name
    with map_file(file.path) as data:
        head, size = bytes(data[:4096]), len(data)
        if head.startswith(b"PK"):
            return _read_zip(file.path, label, size)
        if head[257:262] == b"ustar":
            raise UnsupportedFormatError(
                f"{label}: a tar file as torch 0.1 wrote it",
                tip="load it with an old torch and save it again",
            )
        if not _is_legacy(head):
            raise MalformedFileError(
                f"{label}: neither of torch's containers; expected a zip file or torch's magic "
                f"number, got {head[:8].hex(' ') or 'an empty file'}"
            )
        return _read_legacy(file.path, label, data)


# -- zip -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ZipStorages:
    entries: ZipEntries
    folder: str
    big_endian: bool

    def find(self, key: str, nbytes: int) -> StoredBytes:
        name = f"{self.folder}{key}"
        member = self.entries.members.get(name)
        if member is None:
            raise MalformedFileError(f"{self.entries.label}: storage {name!r} is not in the file")
        if member.size < nbytes:
            raise MalformedFileError(
                f"{self.entries.label}: storage {name!r} has {member.size} bytes, the pickle "
                f"expects {nbytes}"
            )
        return member


def _read_zip(path: Path, label: str, size: int) -> RawModel:
    entries = open_zip(path, label)
    roots = sorted(
        (name.removesuffix("data.pkl") for name in entries.members if _is_data(name)), key=len
    )
    exported = None if roots else find_root(entries)
    if exported is not None:
        return read_exported(entries, exported)
    if not roots:
        raise UnsupportedFormatError(
            f"{label}: a zip file without torch's data.pkl",
            tip="early TorchScript and programs exported before torch 2.8 are not read",
        )
    root = roots[0]
    order = entries.read(f"{root}byteorder") if f"{root}byteorder" in entries.members else b""
    if order not in (b"", b"little", b"big"):
        raise MalformedFileError(f"{label}: byte order {order[:20]!r}, expected little or big")
    data, notes = _pickled(entries, root, "data", size, big_endian=order == b"big")
    if f"{root}constants.pkl" not in entries.members:
        return raw_model(data.part, notes)
    constants, _ = _pickled(entries, root, "constants", size, big_endian=order == b"big")
    found = scripted(entries, root, data, constants)
    return raw_model(found.part, found.notes, has_edges=found.has_edges)


def _is_data(name: str) -> bool:
    return name == "data.pkl" or name.endswith("/data.pkl")


def _pickled(
    entries: ZipEntries, root: str, name: str, size: int, *, big_endian: bool
) -> tuple[Pickled, tuple[str, ...]]:
    where = f"{entries.label}: {name}.pkl"
    pickle = read_pickle(entries.read(f"{root}{name}.pkl"), where=where)
    storages = _ZipStorages(entries, f"{root}{name}/", big_endian)
    table = TensorTable(entries.label, storages)
    part = collect(Walker(table, where, pickle.n_opcodes, size), pickle.value)
    return Pickled(pickle.value, table, part), notes_of(pickle, "zip")


# -- the older container ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _LegacyStorages:
    label: str
    stored: Mapping[str, StoredBytes]
    big_endian: bool = False

    def find(self, key: str, nbytes: int) -> StoredBytes:
        found = self.stored.get(key)
        if found is None:
            raise MalformedFileError(f"{self.label}: storage {key[:40]!r} is not in the file")
        if found.size < nbytes:
            raise MalformedFileError(
                f"{self.label}: storage {key[:40]!r} has {found.size} bytes, the pickle expects "
                f"{nbytes}"
            )
        return found


def _read_legacy(path: Path, label: str, data: ByteSource) -> RawModel:
    magic = read_pickle(data, where=f"{label}: magic number")
    protocol = read_pickle(data, magic.end, where=f"{label}: protocol")
    if protocol.value != _LEGACY_PROTOCOL:
        raise UnsupportedFormatError(f"{label}: version of torch's container is not 1001")
    system = read_pickle(data, protocol.end, where=f"{label}: system")
    content = read_pickle(data, system.end, where=f"{label}: pickle")
    keys = read_pickle(data, content.end, where=f"{label}: storage keys")
    stored = _legacy_storages(path, label, data, content, keys)
    table = TensorTable(label, _LegacyStorages(label, stored))
    walker = Walker(table, label, content.n_opcodes, len(data))
    return raw_model(collect(walker, content.value), notes_of(content, "legacy container"))


def _legacy_storages(
    path: Path, label: str, data: ByteSource, content: Unpickled, keys: Unpickled
) -> dict[str, StoredBytes]:
    """Find the storages, which lie one behind the other: element count (8 bytes), elements."""
    refs: dict[str, StorageRef] = {}
    for reference in content.persistent:
        ref = storage_ref(reference.value, label)
        if ref is not None:
            refs.setdefault(ref.key, ref)
    if not isinstance(keys.value, list):
        raise MalformedFileError(f"{label}: the list of storage keys is no list")
    stored: dict[str, StoredBytes] = {}
    position = keys.end
    for key in keys.value:
        ref = refs.get(str(key)) if type(key) in (str, int) else None
        if ref is None or ref.key in stored:
            raise MalformedFileError(
                f"{label}: storage {str(key)[:40]!r} is listed, but not used, or listed twice"
            )
        if position + 8 > len(data):
            raise MalformedFileError(f"{label} ends before storage {ref.key[:40]!r}")
        (count,) = struct.unpack("<q", data[position : position + 8])
        size = count * ref.itemsize
        if count != ref.numel or position + 8 + size > len(data):
            raise MalformedFileError(
                f"{label}: storage {ref.key[:40]!r} at byte {position} announces {count} elements "
                f"of {ref.itemsize} bytes; the pickle expects {ref.numel}, and "
                f"{len(data) - position - 8} bytes follow"
            )
        stored[ref.key] = FileBytes(path, position + 8, size)
        position += 8 + size
    return stored


READER = FormatReader(
    name="torch",
    title="PyTorch checkpoint",
    suffixes=(".pt", ".pth", ".ckpt", ".tar", ".bin", ".jit", ".pts", ".pt2", ".t7", ".pkl"),
    sniff=_sniff,
    read=_read,
)
