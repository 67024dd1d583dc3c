"""Bytes of a flatbuffer, with a budget of elements and one of memory."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.memory_room import Room

if TYPE_CHECKING:
    from filterdb.sources.formats.file_view import ByteSource

#: Elements looked at, at most: this many per byte of the file …
_BUDGET_PER_BYTE = 4
#: … plus a flat allowance.
_BUDGET = 100_000
#: Bytes of memory that may be taken for records, beside as many as the file has.
_ROOM = 144 * 1024**2
#: What a table takes, with the record a reader makes of it; what a number of a list takes.
TABLE_BYTES, NUMBER_BYTES = 1500, 48

#: Scalars by numpy-like code.
SCALARS = {
    code: struct.Struct(f"<{c}")
    for code, c in zip(
        ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4"), "bBhHiIqQf", strict=True
    )
}


def room_for(size: int, where: str) -> Room:
    """Return the memory that records of one file may take.

    Parameters
    ----------
    size
        Bytes of the file.
    where
        Its name, for the message.

    Returns
    -------
    Room
        Its budget.
    """
    return Room(size, flat=_ROOM, where=where)


class CheckedBytes:
    """The bytes of one buffer; nothing outside them is ever read.

    Parameters
    ----------
    data
        The bytes.
    where
        The file's name, for messages.
    start, size
        Where in `data` the buffer lies, for one inside another file; positions count from there.
    room
        Memory for records, where several buffers of one file share it.
    """

    def __init__(
        self,
        data: ByteSource,
        *,
        where: str,
        start: int = 0,
        size: int | None = None,
        room: Room | None = None,
    ) -> None:
        self._data = data
        self.where = where
        self.start = start
        self.size = len(data) - start if size is None else size
        self._left = _BUDGET_PER_BYTE * self.size + _BUDGET
        #: Counts what is taken for records.
        self.take = (room or room_for(self.size, where)).take

    def bytes(self, start: int, end: int) -> bytes:
        """Copy bytes.

        Parameters
        ----------
        start, end
            Which, known to lie in the buffer.

        Returns
        -------
        bytes
            ``end - start`` of them.
        """
        return bytes(self._data[self.start + start : self.start + end])

    def malformed(self, problem: str, position: int) -> MalformedFileError:
        """Return the error to raise for broken bytes.

        Parameters
        ----------
        problem
            What was seen.
        position
            Byte offset.

        Returns
        -------
        MalformedFileError
            Naming file and offset.
        """
        return MalformedFileError(f"{self.where} is damaged: {problem} at byte {position}")

    def spend(self, count: int) -> None:
        """Count elements against the budget.

        Parameters
        ----------
        count
            Elements about to be read.

        Raises
        ------
        UnsafeCheckpointError
            If the file refers to the same bytes over and over.
        """
        self._left -= count
        if self._left < 0:
            raise UnsafeCheckpointError(
                f"{self.where} refers to its own bytes more often than any network does"
            )

    def scalar(self, kind: str, position: int) -> int | float:
        """Read one number.

        Parameters
        ----------
        kind
            "i1" … "u8" or "f4".
        position
            Byte offset.

        Returns
        -------
        int or float
            The number.

        Raises
        ------
        MalformedFileError
            If it lies outside the buffer.
        """
        layout = SCALARS[kind]
        if not 0 <= position <= self.size - layout.size:
            raise self.malformed("an offset leads out of the file", position)
        number: int | float = layout.unpack_from(self._data, self.start + position)[0]
        return number

    def follow(self, position: int) -> int:
        """Follow the relative offset stored at a position.

        Parameters
        ----------
        position
            Byte offset of the offset.

        Returns
        -------
        int
            Where it leads.
        """
        target = position + int(self.scalar("u4", position))
        if target > self.size - 4:
            raise self.malformed("an offset leads out of the file", position)
        return target
