"""Several files in one fuzzing input: the model first, its companions behind it."""

from __future__ import annotations

import struct
from pathlib import Path, PurePosixPath

#: Name relative to the model's folder → bytes; the model itself comes first.
Files = dict[str, bytes]

_MAGIC = b"FDB1"
_HEAD = struct.Struct("<BI")


def pack(files: Files) -> bytes:
    parts = [_MAGIC]
    for name, data in files.items():
        word = name.encode()[:255]
        parts += [_HEAD.pack(len(word), len(data)), word, data]
    return b"".join(parts)


def unpack(data: bytes, default: str) -> Files:
    """Take an input apart; bytes that are no pack are one file of the `default` name."""
    if not data.startswith(_MAGIC):
        return {default: data}
    files: Files = {}
    at = len(_MAGIC)
    while at + _HEAD.size <= len(data):
        length, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        name = data[at : at + length].decode("utf-8", "replace")
        files[name if is_inside(name) else f"file{len(files)}"] = data[at + length :][:size]
        at += length + size
    return files or {default: b""}


def is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    odd = "\0" in name or name.startswith("/") or name.endswith(("/", "."))
    return bool(parts) and not odd and ".." not in parts and len(name.encode()) < 200


def write(files: Files, folder: Path) -> Path:
    """Write the files and return the path of the first one."""
    for name, data in files.items():
        path = folder / name
        try:
            path.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except (IsADirectoryError, NotADirectoryError):  # "a" and "a/b" cannot both be files
            continue
    return folder / next(iter(files))
