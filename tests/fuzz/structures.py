"""Containers taken apart and put together again: zip, tar, gzip, safetensors, npy, HDF5."""

from __future__ import annotations

import ast
import bz2
import gzip
import io
import json
import lzma
import os
import signal
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

from tests.fuzz.grammars import (
    change_json,
    change_pickle,
    change_protobuf,
    change_text,
    looks_like_pickle,
    looks_like_protobuf,
    looks_like_text,
)
from tests.fuzz.mutation import Mutator
from tests.fuzz.sstable import change_sstable, looks_like_sstable

Structure = Callable[[bytes, Mutator], bytes]


def structure_of(data: bytes) -> Structure | None:
    """Tell which structure bytes have, most certain first."""
    for begins, structure in _MAGIC:
        if data.startswith(begins):
            return structure
    if data[257:262] == b"ustar":
        return change_tar
    if len(data) > 9 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data):
        return change_safetensors
    if looks_like_sstable(data):
        return change_sstable
    if data.lstrip()[:1] in (b"{", b"[") and data.rstrip()[-1:] in (b"}", b"]"):
        return change_json
    if looks_like_pickle(data):
        return change_pickle
    if looks_like_text(data):
        return change_text
    if looks_like_protobuf(data):
        return change_protobuf
    return None


# Zip --------------------------------------------------------------------------------------------

_Member = tuple[str, bytes, int]


def change_zip(data: bytes, m: Mutator) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(i.filename, archive.read(i), i.compress_type) for i in archive.infolist()[:64]]
    if m.rng.random() < 0.08:
        members = _other_members(members, m)
    elif members:
        # Small members are the interesting ones; large ones hold numbers.
        weights = [1 + 1000 / (10 + len(content)) for _, content, _ in members]
        place = m.rng.choices(range(len(members)), weights)[0]
        name, content, kind = members[place]
        members[place] = (name, m.value(content), kind)
    return zipped(members)


def _other_members(members: list[_Member], m: Mutator) -> list[_Member]:
    rng = m.rng
    place = rng.randrange(len(members))
    name, content, kind = members[place]
    match rng.randrange(6):
        case 0:
            return members[:place] + members[place + 1 :]
        case 1:
            return [*members, members[place]]
        case 2:
            return [*members, (m.plain(name.encode()).decode("latin-1"), content, kind)]
        case 3:
            members[place] = (name, content, zipfile.ZIP_DEFLATED - kind)
        case 4:
            members[place] = (f"../{name}", content, kind)
        case _:
            other = rng.choice(members)
            members[place] = (name, other[1], kind)
    return members


def zipped(members: list[_Member]) -> bytes:
    """Write a zip file by hand: names and their repetition are nobody's business here."""
    out, table = io.BytesIO(), []
    for name, content, kind in members:
        method = kind if kind in (0, 8) else 0
        packed = _deflated(content) if method else content
        word = name.encode("utf-8", "replace")[:1000]
        from zlib import crc32

        fields = (20, 0x800, method, 0, 0x21, crc32(content), len(packed), len(content), len(word))
        table.append(
            struct.pack("<4sHHHHHHLLLHHHHHLL", b"PK\1\2", 20, *fields, 0, 0, 0, 0, 0, out.tell())
            + word
        )
        out.write(struct.pack("<4sHHHHHLLLHH", b"PK\3\4", *fields, 0) + word + packed)
    start, directory = out.tell(), b"".join(table)
    n = len(table)
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, n, n, len(directory), start, 0)
    return out.getvalue() + directory + end


def _deflated(content: bytes) -> bytes:
    import zlib

    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


# Tar and gzip -----------------------------------------------------------------------------------


def change_tar(data: bytes, m: Mutator) -> bytes:
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for info in archive:
            source = archive.extractfile(info) if info.isreg() else None
            members.append((info, source.read() if source else b""))
    place = m.rng.randrange(len(members))
    info, content = members[place]
    match m.rng.randrange(8):
        case 0:
            members.append(members[place])
        case 1:
            del members[place]
        case 2:
            info.name = m.plain(info.name.encode()).decode("latin-1")
        case 3:
            info.type = m.rng.choice((b"0", b"1", b"2", b"3", b"5", b"L", b"K", b"x", b"g", b"S"))
        case _:
            members[place] = (info, m.value(content))
    out = io.BytesIO()
    form = m.rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def change_gzip(data: bytes, m: Mutator) -> bytes:
    return gzip.compress(m.value(gzip.decompress(data)), 1, mtime=0)


def change_bzip2(data: bytes, m: Mutator) -> bytes:
    return bz2.compress(m.value(bz2.decompress(data)), 1)


def change_xz(data: bytes, m: Mutator) -> bytes:
    return lzma.compress(m.value(lzma.decompress(data)), preset=0)


# Header and numbers -----------------------------------------------------------------------------


def change_safetensors(data: bytes, m: Mutator) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header, numbers = data[8 : 8 + length], data[8 + length :]
    if m.rng.random() < 0.9:
        header = m.value(header)
    else:
        numbers = m.plain(numbers)
    return struct.pack("<Q", len(header)) + header + numbers


def change_npy(data: bytes, m: Mutator) -> bytes:
    length = int.from_bytes(data[8:10], "little")
    header, numbers = data[10 : 10 + length], data[10 + length :]
    if m.rng.random() < 0.5:
        fields = ast.literal_eval(header.decode("latin-1"))
        text = change_json(json.dumps(fields).encode(), m).decode()
        for word, python in (("true", "True"), ("false", "False"), ("null", "None")):
            text = text.replace(word, python)
        header = text.replace("[", "(").replace("]", ",)").encode()
    else:
        header = change_text(header, m)
    return data[:8] + struct.pack("<H", len(header) & 0xFFFF) + header[:65535] + numbers


# HDF5 -------------------------------------------------------------------------------------------


def change_hdf5(data: bytes, m: Mutator) -> bytes:
    """Change bytes of the file, or what its attributes say, or where its arrays lie."""
    if m.rng.random() < 0.4:
        return m.plain(data)
    return _in_child(lambda: _rewritten(data, m))


def _rewritten(data: bytes, m: Mutator) -> bytes:
    import h5py

    out = io.BytesIO(data)
    with h5py.File(out, "r+") as file:
        places: list[str] = []
        file.visit(places.append)
        owner = file[m.rng.choice(["/", *places])] if places else file["/"]
        if owner.attrs and m.rng.random() < 0.8:
            _change_attribute(owner.attrs, m)
        elif places:
            _change_place(file, m.rng.choice(places), m)
    return out.getvalue()


def _in_child(make: Callable[[], bytes]) -> bytes:
    """Do in a child of two seconds what damaged files may kill or keep busy for ever."""
    source, target = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.setitimer(signal.ITIMER_REAL, 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            with os.fdopen(target, "wb") as out:
                out.write(make())
        finally:
            os._exit(0)
    os.close(target)
    with os.fdopen(source, "rb") as written:
        made = written.read()
    os.waitpid(child, 0)
    if not made:
        raise ValueError("libhdf5 does not survive this file")
    return made


def _change_attribute(attributes: Any, m: Mutator) -> None:
    name = m.rng.choice(list(attributes))
    value = attributes[name]
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        attributes[name] = m.value(value).replace(b"\0", b"0") or b" "
        return
    match m.rng.randrange(4):
        case 0:
            del attributes[name]
        case 1:
            attributes[name] = value[::-1]
        case 2:
            attributes[name] = m.integer() % (1 << 32)
        case _:
            words = [bytes(w) for w in value.tolist()] if value.dtype.kind in "SO" else [b"w"]
            place = m.rng.randrange(len(words))
            words[place] = m.plain(words[place]).replace(b"\0", b"0") or b" "
            attributes[name] = words


def _change_place(file: Any, name: str, m: Mutator) -> None:
    import h5py

    match m.rng.randrange(7):
        case 0:
            del file[name]
        case 1:
            file[f"{name}x"] = file[name]
        case 2:
            del file[name]
            file[name] = h5py.SoftLink(m.rng.choice(("/", "/nothing", "/" + name)))
        case 3:
            del file[name]
            file[name] = h5py.ExternalLink(m.rng.choice(("model.h5", "/etc/passwd", "..")), "/")
        case 4:
            del file[name]
            shape = tuple(m.rng.choice((0, 1, 3, 1 << 20)) for _ in range(m.rng.randrange(5)))
            kind = m.rng.choice(("f4", "i1", "u2", "f2", "c8", "S3", ">f8"))
            chunks = tuple(min(n, 4) or 1 for n in shape) if shape and all(shape) else None
            file.create_dataset(name, shape, kind, chunks=chunks, compression=chunks and "gzip")
        case 5:
            del file[name]
            file.create_dataset(name, (3,), "f4", external=[("/etc/passwd", 0, 12)])
        case _:
            file.move(name, m.rng.choice(("a", "kernel:0", "model_weights/a", f"{name}/b")))


_MAGIC: tuple[tuple[bytes, Structure], ...] = (
    (b"PK\3\4", change_zip),
    (b"\x1f\x8b", change_gzip),
    (b"BZh", change_bzip2),
    (b"\xfd7zXZ", change_xz),
    (b"\x93NUMPY\x01", change_npy),
    (b"\x89HDF\r\n\x1a\n", change_hdf5),
)
