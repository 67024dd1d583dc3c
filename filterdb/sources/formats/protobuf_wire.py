"""Protocol buffers as they lie in a file: tags, varints, lengths, all within bounds.

Reading the wire format directly gives byte offsets, so tensors are read when asked for instead of
parsing a whole file into memory (Protocol Buffers Documentation, "Encoding"). A message is a byte
range; nothing is copied before a caller asks for it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from filterdb.errors import MalformedFileError, UnsafeCheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.sources.formats.file_view import ByteSource
    from filterdb.types import AnyArray

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

#: (field number, wire type, value, end): a varint's value, else the byte range [value, end).
Field: TypeAlias = tuple[int, int, int, int]

#: Fields one file may make us look at; the largest real graphs have one or two million.
MAX_FIELDS = 8_000_000
_BLOCK = 1 << 20


class WireReader:
    """Walks messages of one buffer.

    Parameters
    ----------
    data
        The bytes.
    where
        The file's name, for messages.
    """

    def __init__(self, data: ByteSource, *, where: str) -> None:
        self.data = data
        self.where = where
        self._fields_left = MAX_FIELDS

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

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Iterate over the fields of one message.

        Parameters
        ----------
        start, end
            Byte range of the message.

        Yields
        ------
        tuple
            See :data:`Field`.

        Raises
        ------
        MalformedFileError
            If a field is cut off, leaves the message or has a wire type that does not exist.
        UnsafeCheckpointError
            If the file has more fields than any network.
        """
        data = self.data
        position = start
        while position < end:
            self._spend(1)
            begun = position
            tag, position = self.varint(position, end)
            number, wire = tag >> 3, tag & 7
            if number == 0:
                raise self.malformed("field number 0", begun)
            if wire == VARINT:
                value = data[position] if position < end else 0x80
                if value < 0x80:
                    position += 1
                else:
                    value, position = self.varint(position, end)
                yield number, wire, value, position
                continue
            if wire == BYTES:
                length, position = self.varint(position, end)
            elif wire == FIXED32:
                length = 4
            elif wire == FIXED64:
                length = 8
            else:
                raise self.malformed(f"unknown wire type {wire}", begun)
            if length > end - position:
                raise self.malformed(
                    f"field {number} of {length} bytes where {end - position} are left", begun
                )
            yield number, wire, position, position + length
            position += length

    def _spend(self, count: int) -> None:
        self._fields_left -= count
        if self._fields_left < 0:
            raise UnsafeCheckpointError(
                f"{self.where} holds more than {MAX_FIELDS} protocol buffer fields"
            )

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Read one varint.

        Parameters
        ----------
        position
            Its first byte.
        end
            End of the message.

        Returns
        -------
        tuple of int
            The unsigned value and the position behind it.

        Raises
        ------
        MalformedFileError
            If it is cut off or longer than ten bytes.
        """
        data, value = self.data, 0
        for shift in range(0, 70, 7):
            if position >= end:
                raise self.malformed("number cut off", position)
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position
        raise self.malformed("number longer than ten bytes", position)

    def text(self, start: int, end: int, *, limit: int = 1 << 16) -> str:
        """Decode a string field.

        Parameters
        ----------
        start, end
            Its byte range.
        limit
            Bytes kept at most.

        Returns
        -------
        str
            Undecodable bytes as backslash escapes.
        """
        return bytes(self.data[start : min(end, start + limit)]).decode("utf-8", "backslashreplace")

    def float32(self, start: int) -> float:
        """Read a fixed32 field as float.

        Parameters
        ----------
        start
            Its first byte.

        Returns
        -------
        float
            The value.
        """
        return float(struct.unpack("<f", self.data[start : start + 4])[0])

    def integers(self, wire: int, value: int, end: int) -> list[int]:
        """Read a repeated int64 field, packed or not.

        Parameters
        ----------
        wire, value, end
            The field as :meth:`fields` gave it.

        Returns
        -------
        list of int
            Signed values; one where it is not packed.
        """
        if wire == VARINT:
            return [signed(value)]
        self._spend(end - value)
        numbers, position = [], value
        while position < end:
            number, position = self.varint(position, end)
            numbers.append(signed(number))
        return numbers

    def floats(self, wire: int, value: int, end: int) -> list[float]:
        """Read a repeated float or double field, packed (float) or not.

        Parameters
        ----------
        wire, value, end
            The field as :meth:`fields` gave it; packed doubles are not told from packed floats, so
            only floats may be packed here.

        Returns
        -------
        list of float
            One where it is not packed.

        Raises
        ------
        MalformedFileError
            If packed bytes are no multiple of four.
        """
        if wire == FIXED64:
            return [float(struct.unpack("<d", self.data[value:end])[0])]
        if (end - value) % 4:
            raise self.malformed("packed floats of a broken length", value)
        self._spend((end - value) // 4)
        return list(struct.unpack(f"<{(end - value) // 4}f", self.data[value:end]))


def signed(value: int) -> int:
    """Read an unsigned 64-bit number as two's complement.

    Parameters
    ----------
    value
        0 … 2⁶⁴−1.

    Returns
    -------
    int
        −2⁶³ … 2⁶³−1.
    """
    return value - (1 << 64) if value >= 1 << 63 else value


def decode_varints(raw: AnyArray) -> AnyArray:
    """Decode a packed varint field at once.

    Parameters
    ----------
    raw
        (n_bytes,) uint8.

    Returns
    -------
    ndarray
        (n,) uint64.

    Raises
    ------
    MalformedFileError
        If the last number is cut off or one is longer than ten bytes.
    """
    pieces, start = [], 0
    while start < raw.size:
        block = raw[start : start + _BLOCK]
        ends = np.flatnonzero(block < 0x80)
        if not ends.size:
            raise MalformedFileError("packed numbers are damaged: one does not end")
        firsts = np.concatenate(([0], ends[:-1] + 1))
        lengths = ends - firsts + 1
        if lengths.max() > 10:
            raise MalformedFileError("packed numbers are damaged: one is longer than ten bytes")
        values = np.zeros(ends.size, np.uint64)
        for k in range(int(lengths.max())):
            has = np.flatnonzero(lengths > k)
            bits = (block[firsts[has] + k] & 0x7F).astype(np.uint64)
            values[has] |= bits << np.uint64(7 * k)
        pieces.append(values)
        start += int(ends[-1]) + 1
    return np.concatenate(pieces) if pieces else np.zeros(0, np.uint64)
