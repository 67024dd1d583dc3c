"""Flatbuffers with every offset checked (FlatBuffers Documentation, "Internals").

Offsets may point anywhere, also at the same place again and again, so a small file can describe
an endless structure: every reader has a budget of elements, and one of memory for what is made of
them, both a few times the file's own size.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from filterdb.sources.formats.flatbuffer_bytes import (
    NUMBER_BYTES,
    SCALARS,
    TABLE_BYTES,
    CheckedBytes,
)

if TYPE_CHECKING:
    from filterdb.types import AnyArray


class FlatBuffer(CheckedBytes):
    """One buffer, see :class:`~filterdb.sources.formats.flatbuffer_bytes.CheckedBytes`."""

    def root(self) -> Table:
        """Return the root table.

        Returns
        -------
        Table
            The table the buffer begins with.
        """
        return Table(self, self.follow(0))


class Table:
    """One table of a buffer; fields by their number in the schema.

    Parameters
    ----------
    buffer
        The buffer.
    position
        Byte offset of the table.
    """

    __slots__ = ("_extent", "_n_bytes", "_vtable", "buffer", "position")

    def __init__(self, buffer: FlatBuffer, position: int) -> None:
        self.buffer = buffer
        self.position = position
        buffer.spend(1)
        buffer.take(TABLE_BYTES)
        self._vtable = position - int(buffer.scalar("i4", position))
        if self._vtable < 0:
            raise buffer.malformed("a table without a description", position)
        self._n_bytes = int(buffer.scalar("u2", self._vtable))
        self._extent = int(buffer.scalar("u2", self._vtable + 2))
        fits = self._vtable + self._n_bytes <= buffer.size
        if self._n_bytes < 4 or self._n_bytes % 2 or not fits:
            raise buffer.malformed("a table with a broken description", position)
        if self._extent < 4 or position + self._extent > buffer.size:
            raise buffer.malformed("a table that leaves the file", position)

    def _place(self, field: int, width: int) -> int | None:
        """Byte offset of a field, None where it is absent."""
        slot = 4 + 2 * field
        if slot + 2 > self._n_bytes:
            return None
        offset = int(self.buffer.scalar("u2", self._vtable + slot))
        if offset == 0:
            return None
        if offset < 4 or offset + width > self._extent:
            raise self.buffer.malformed(f"field {field} outside its table", self.position)
        return self.position + offset

    def integer(self, field: int, kind: str, default: int = 0) -> int:
        """Read an integer field.

        Parameters
        ----------
        field
            Its number.
        kind
            "i1" … "u8".
        default
            The schema's default.

        Returns
        -------
        int
            Its value.
        """
        place = self._place(field, SCALARS[kind].size)
        return default if place is None else int(self.buffer.scalar(kind, place))

    def table(self, field: int) -> Table | None:
        """Follow a table field.

        Parameters
        ----------
        field
            Its number.

        Returns
        -------
        Table or None
            None where it is absent.
        """
        place = self._place(field, 4)
        return None if place is None else Table(self.buffer, self.buffer.follow(place))

    def extent(self, field: int, itemsize: int) -> tuple[int, int] | None:
        """Locate a vector.

        Parameters
        ----------
        field
            Its number.
        itemsize
            Bytes per element.

        Returns
        -------
        tuple or None
            (byte offset of the first element, number of elements); None where it is absent.

        Raises
        ------
        MalformedFileError
            If it does not end within the file.
        """
        place = self._place(field, 4)
        if place is None:
            return None
        start = self.buffer.follow(place)
        count = int(self.buffer.scalar("u4", start))
        if count * itemsize > self.buffer.size - start - 4:
            raise self.buffer.malformed(
                f"a vector of {count} elements of {itemsize} bytes leaves the file", start
            )
        return start + 4, count

    def array(self, field: int, dtype: str) -> AnyArray:
        """Read a vector of numbers.

        Parameters
        ----------
        field
            Its number.
        dtype
            Little-endian numpy type.

        Returns
        -------
        ndarray
            (n,), native byte order; empty where the field is absent.
        """
        stored = np.dtype(dtype).newbyteorder("<")
        found = self.extent(field, stored.itemsize)
        if found is None:
            return np.zeros(0, np.dtype(dtype))
        start, count = found
        self.buffer.spend(count)
        self.buffer.take(count * stored.itemsize)
        raw = self.buffer.bytes(start, start + count * stored.itemsize)
        return np.frombuffer(raw, stored).astype(np.dtype(dtype))

    def integers(self, field: int) -> tuple[int, ...]:
        """Read a short vector of 32-bit integers.

        Parameters
        ----------
        field
            Its number.

        Returns
        -------
        tuple of int
            Empty where the field is absent.
        """
        found = self.extent(field, 4)
        if found is None:
            return ()
        start, count = found
        self.buffer.spend(count)
        self.buffer.take(count * NUMBER_BYTES)
        return struct.unpack(f"<{count}i", self.buffer.bytes(start, start + 4 * count))

    def numbers(self, field: int, kind: str) -> tuple[float | int, ...]:
        """Read a short vector of numbers.

        Parameters
        ----------
        field
            Its number.
        kind
            "i8" or "f4".

        Returns
        -------
        tuple
            Empty where the field is absent.
        """
        layout = SCALARS[kind]
        start, count = self.extent(field, layout.size) or (0, 0)
        self.buffer.spend(count)
        self.buffer.take(count * NUMBER_BYTES)
        raw = self.buffer.bytes(start, start + layout.size * count)
        return tuple(number for (number,) in layout.iter_unpack(raw))

    def real(self, field: int) -> float:
        """Read a float field.

        Parameters
        ----------
        field
            Its number.

        Returns
        -------
        float
            Its value, 0 where it is absent.
        """
        place = self._place(field, 4)
        return 0.0 if place is None else float(self.buffer.scalar("f4", place))

    def tables(self, field: int) -> list[Table]:
        """Read a vector of tables.

        Parameters
        ----------
        field
            Its number.

        Returns
        -------
        list of Table
            Empty where the field is absent.
        """
        start, count = self.extent(field, 4) or (0, 0)
        self.buffer.spend(count)
        return [Table(self.buffer, self.buffer.follow(start + 4 * i)) for i in range(count)]

    def texts(self, field: int) -> tuple[str, ...]:
        """Read a vector of strings.

        Parameters
        ----------
        field
            Its number.

        Returns
        -------
        tuple of str
            Empty where the field is absent.
        """
        start, count = self.extent(field, 4) or (0, 0)
        self.buffer.spend(count)
        self.buffer.take(count * 2 * NUMBER_BYTES)
        places = (self.buffer.follow(start + 4 * i) for i in range(count))
        return tuple(self._string(place, 4096) for place in places)

    def text(self, field: int, *, limit: int = 4096) -> str:
        """Read a string.

        Parameters
        ----------
        field
            Its number.
        limit
            Bytes kept at most.

        Returns
        -------
        str
            "" where it is absent; undecodable bytes as backslash escapes.
        """
        place = self._place(field, 4)
        return "" if place is None else self._string(self.buffer.follow(place), limit)

    def _string(self, place: int, limit: int) -> str:
        """Decode the string at a place."""
        count = int(self.buffer.scalar("u4", place))
        if count > self.buffer.size - place - 4:
            raise self.buffer.malformed(f"a text of {count} bytes leaves the file", place)
        count = min(count, limit)
        self.buffer.spend(count)
        self.buffer.take(4 * count)
        raw = self.buffer.bytes(place + 4, place + 4 + count)
        return raw.decode("utf-8", "backslashreplace")
