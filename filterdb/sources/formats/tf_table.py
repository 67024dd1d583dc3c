"""TensorFlow's sorted string table: the container of checkpoints, as LevelDB writes it.

A file of blocks; each holds entries whose keys share a prefix with the key before, and may be
compressed with snappy. The last 48 bytes name the index block, which names the data blocks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, UnsafeCheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.sources.formats.file_view import ByteSource

#: The last eight bytes of a table.
MAGIC = bytes.fromhex("57fb808b247547db")
#: Bytes of the footer.
FOOTER = 48
_TRAILER = 5  # compression, checksum
#: Names of variables and their slices are far shorter.
_MAX_KEY = 1 << 14
#: All keys together; keys of shared prefixes take more memory than file.
_MAX_KEYS = 64 << 20
#: Decompressed bytes beyond the stored ones. Blocks are cut at 256 KiB, but never inside a value.
_MAX_GROWTH = 96 << 20
#: Three bytes of snappy make at most 64.
_SNAPPY_EXPANSION = 32


@dataclass(frozen=True)
class Handle:
    """A block's place: offset and stored bytes, without its trailer."""

    offset: int
    size: int


class Table:
    """Reads one table.

    Parameters
    ----------
    data
        The file's bytes.
    where
        Its name, for messages.

    Raises
    ------
    MalformedFileError
        If it has no footer.
    """

    def __init__(self, data: ByteSource, *, where: str) -> None:
        self._data = data
        self._where = where
        end = len(data)
        if end < FOOTER or data[end - len(MAGIC) : end] != MAGIC:
            raise MalformedFileError(
                f"{where}: expected a table of TensorFlow, whose last eight bytes are "
                f"{MAGIC.hex(' ')}; there are {bytes(data[max(0, end - 8) : end]).hex(' ')}"
            )
        self._limit = end - FOOTER
        footer = bytes(data[self._limit : end])
        _, position = self._handle(footer, 0)
        self._index, _ = self._handle(footer, position)

    def entries(self) -> Iterator[tuple[bytes, bytes, Handle]]:
        """Walk over all entries in order.

        Yields
        ------
        tuple of (bytes, bytes, Handle)
            Key, value, and the block they lie in.

        Raises
        ------
        MalformedFileError
            If a block leaves the file, overlaps another or is damaged.
        UnsafeCheckpointError
            If blocks or keys are absurdly large.
        """
        keys = 0
        last = 0
        for _, value in self._entries(self._index):
            handle, _ = self._handle(value, 0)
            # In order and without overlap, nothing is decompressed twice.
            if handle.offset < last:
                raise self._damaged("blocks overlap", handle.offset)
            last = handle.offset + handle.size
            for key, content in self._entries(handle):
                keys += len(key)
                if keys > _MAX_KEYS:
                    raise UnsafeCheckpointError(
                        f"{self._where} has more than {_MAX_KEYS:,} bytes of names"
                    )
                yield key, content, handle

    def find(self, handle: Handle, wanted: bytes) -> bytes:
        """Read one value again.

        Parameters
        ----------
        handle
            Its block, from :meth:`entries`.
        wanted
            Its key.

        Returns
        -------
        bytes
            The value.

        Raises
        ------
        MalformedFileError
            If the file has changed meanwhile.
        """
        for key, value in self._entries(handle):
            if key == wanted:
                return value
        raise self._damaged("an entry is gone", handle.offset)

    def _entries(self, handle: Handle) -> Iterator[tuple[bytes, bytes]]:
        block = self._block(handle)
        restarts = struct.unpack("<I", block[-4:])[0] if len(block) >= 4 else -1
        end = len(block) - 4 - 4 * restarts
        if restarts < 0 or end < 0:
            raise self._damaged("a block without its restart points", handle.offset)
        position, key = 0, b""
        while position < end:
            shared, position = self._number(block, position, end)
            fresh, position = self._number(block, position, end)
            length, position = self._number(block, position, end)
            if shared > len(key) or fresh > end - position or length > end - position - fresh:
                raise self._damaged("an entry leaves its block", handle.offset)
            if shared + fresh > _MAX_KEY:
                raise UnsafeCheckpointError(f"{self._where} has a name of {shared + fresh:,} bytes")
            key = key[:shared] + block[position : position + fresh]
            position += fresh
            yield key, block[position : position + length]
            position += length

    def _block(self, handle: Handle) -> bytes:
        end = handle.offset + handle.size
        if end + _TRAILER > self._limit + _TRAILER or end + 1 > len(self._data):
            raise self._damaged(f"a block of {handle.size:,} bytes leaves the file", handle.offset)
        stored = bytes(self._data[handle.offset : end])
        compression = self._data[end]
        if compression == 0:
            return stored
        if compression == 1:
            return decompress_snappy(stored, where=f"{self._where}, block at byte {handle.offset}")
        raise self._damaged(f"unknown compression {compression}", end)

    def _handle(self, data: bytes, position: int) -> tuple[Handle, int]:
        offset, position = self._number(data, position, len(data))
        size, position = self._number(data, position, len(data))
        return Handle(offset, size), position

    def _number(self, data: bytes, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                break
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise self._damaged("a number is cut off", position)

    def _damaged(self, problem: str, position: int) -> MalformedFileError:
        return MalformedFileError(f"{self._where} is damaged: {problem} at byte {position}")


def decompress_snappy(data: bytes, *, where: str) -> bytes:
    """Decompress snappy's raw format (google/snappy, format_description.txt).

    Parameters
    ----------
    data
        Compressed bytes: the length, then literals and copies of what came before.
    where
        For messages.

    Returns
    -------
    bytes
        What they hold.

    Raises
    ------
    MalformedFileError
        If they are damaged.
    UnsafeCheckpointError
        If they announce more than snappy can hold.
    """
    length, position = _length(data, where)
    if length > min(len(data) + _MAX_GROWTH, _SNAPPY_EXPANSION * len(data) + 64):
        raise UnsafeCheckpointError(
            f"{where}: {len(data):,} bytes of snappy announce {length:,} bytes"
        )
    plain = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        if tag & 3 == 0:
            count = tag >> 2
            if count >= 60:
                extra = count - 59
                count = int.from_bytes(data[position : position + extra], "little")
                position += extra
            count += 1
            plain += data[position : position + count]
            position += count
        else:
            width = (1, 2, 4)[(tag & 3) - 1]
            offset = int.from_bytes(data[position : position + width], "little")
            count = (tag >> 2) + 1
            if width == 1:
                count, offset = (tag >> 2 & 7) + 4, offset | tag >> 5 << 8
            position += width
            if not 0 < offset <= len(plain):
                raise MalformedFileError(f"{where}: snappy copies from before its beginning")
            first = len(plain) - offset
            source = plain[first : first + count]
            # A copy may reach into itself: it repeats what it has written.
            plain += (source * (count // len(source) + 1))[:count]
        if len(plain) > length or position > len(data):
            break
    if len(plain) != length or position != len(data):
        raise MalformedFileError(f"{where}: snappy holds other than the {length:,} bytes announced")
    return bytes(plain)


def _length(data: bytes, where: str) -> tuple[int, int]:
    value = 0
    for position, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, position + 1
    raise MalformedFileError(f"{where}: snappy without a length")
