"""Tensor archives of Intel Open Image Denoise (``.tza``): named arrays and where they lie.

Header: magic 0x41D7 and version (major, minor) in four bytes, then the offset of the table as
uint64, little-endian throughout. Table: uint32 count; per tensor uint16 length and name, uint8
rank, uint32 extents, one
letter per axis, one letter for the type (``f`` float32, ``h`` float16), uint64 offset.
"""

from __future__ import annotations

import struct

import numpy as np

from filterdb.errors import MalformedFileError, UnsupportedFormatError
from filterdb.layers.raw import ConvAttributes, Node, RawModel, Tensor
from filterdb.sources.formats.base import MAX_RANK, MAX_TENSORS, FormatReader, ModelFile
from filterdb.sources.formats.file_view import ByteSource, check_shape, map_file
from filterdb.sources.formats.stored_array import FileBytes, StoredArray, c_strides

_MAGIC = b"\xd7\x41"
_MAJOR = 2
_HEADER = struct.Struct("<2sBBQ")
_TYPES = {"f": "float32", "h": "float16"}
_AXES = frozenset("oidhw")


def sniff(head: bytes, _file: ModelFile) -> bool:
    """Tell whether a file is a tensor archive.

    Parameters
    ----------
    head
        The first bytes.

    Returns
    -------
    bool
        True where it begins with the magic number and a version in use.
    """
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        return False
    _magic, major, minor, offset = _HEADER.unpack_from(head)
    return bool(0 < major < 16 and minor < 64 and offset >= _HEADER.size)


def read(file: ModelFile) -> RawModel:
    """List the tensors of an archive.

    Parameters
    ----------
    file
        The ``.tza``.

    Returns
    -------
    RawModel
        Kernels in the layout the archive states; it holds no graph.

    Raises
    ------
    SourceError
        If the file is damaged or of another version.
    """
    where = file.name or file.path.name
    with map_file(file.path) as data:
        if len(data) < _HEADER.size or data[:2] != _MAGIC:
            raise UnsupportedFormatError(
                f"{where} is no tensor archive: expected it to begin with "
                f"{_MAGIC.hex(' ')}, got {bytes(data[:2]).hex(' ')}"
            )
        _magic, major, minor, offset = _HEADER.unpack_from(data)
        if major != _MAJOR:
            raise UnsupportedFormatError(
                f"{where} is a tensor archive of version {major}.{minor}, expected {_MAJOR}.x",
                tip="convert it with the scripts of Open Image Denoise 1.2 or later",
            )
        table = _Table(data, offset, where)
        tensors, nodes = _tensors(table, file)
    return RawModel(
        format="tza",
        tensors=tuple(tensors),
        nodes=tuple(nodes),
        default_layout="OIHW",
        notes=(f"tensor archive version {major}.{minor}",),
    )


class _Table:
    """Reads the table; every step is checked against the end of the file.

    Parameters
    ----------
    data
        The file.
    position
        Where the table begins.
    where
        The file's name, for messages.
    """

    def __init__(self, data: ByteSource, position: int, where: str) -> None:
        self.data, self.position, self.where = data, position, where

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        end = self.position + count
        if end > len(self.data):
            raise MalformedFileError(
                f"{self.where} ends within its table: expected {count} bytes at byte "
                f"{self.position}, the file has {len(self.data)}"
            )
        raw = bytes(self.data[self.position : end])
        self.position = end
        return raw

    def number(self, code: str) -> int:
        """Return the next number, `code` as in struct."""
        return int(struct.unpack("<" + code, self.take(struct.calcsize(code)))[0])


def _tensors(table: _Table, file: ModelFile) -> tuple[list[Tensor], list[Node]]:
    where = table.where
    count = table.number("I")
    # The shortest entry: an empty name, no axes.
    if count > min(MAX_TENSORS, len(table.data) // 12):
        raise MalformedFileError(f"{where} announces {count} tensors")
    tensors: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for _ in range(count):
        name = table.take(table.number("H")).decode("utf-8", "backslashreplace")
        rank = table.number("B")
        if rank > MAX_RANK:
            raise MalformedFileError(f"{where}, tensor {name!r} has {rank} axes")
        shape = struct.unpack(f"<{rank}I", table.take(4 * rank))
        layout = table.take(rank).decode("latin-1")
        code = table.take(1).decode("latin-1")
        offset = table.number("Q")
        what = f"{where}, tensor {name!r}"
        if name in tensors:
            raise MalformedFileError(f"{what} is there twice")
        if code not in _TYPES:
            raise UnsupportedFormatError(
                f"{what} is of type {code!r}, expected 'f' (float32) or 'h' (float16)"
            )
        size = check_shape(shape, what=what) * np.dtype(_TYPES[code]).itemsize
        if offset > len(table.data) or size > len(table.data) - offset:
            raise MalformedFileError(
                f"{what} takes {size} bytes at byte {offset}, the file has {len(table.data)}"
            )
        source = FileBytes(file.path, offset, size)
        load = StoredArray(source, 0, shape, c_strides(shape), _TYPES[code])
        storage = ("tza", offset, size) if size else None
        tensors[name] = Tensor(name, shape, _TYPES[code], load, storage=storage)
        if rank > 2 and set(layout) <= _AXES and len(set(layout)) == rank:
            nodes.append(_kernel(name, layout))
    for place, node in enumerate(nodes):
        bias = f"{node.name}.bias"
        if bias in tensors:
            nodes[place] = Node(
                node.name, "conv", weights={**node.weights, "bias": bias}, conv=node.conv
            )
    return list(tensors.values()), nodes


def _kernel(name: str, layout: str) -> Node:
    # The library's networks hold plain convolutions; archives name nothing but the axes.
    attributes = ConvAttributes(layout=layout.upper(), groups=1)
    return Node(name.removesuffix(".weight"), "conv", weights={"weight": name}, conv=attributes)


READER = FormatReader(
    name="tza",
    title="Tensor archive (Open Image Denoise)",
    suffixes=(".tza",),
    sniff=sniff,
    read=read,
)
