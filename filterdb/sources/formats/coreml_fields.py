"""Messages of Core ML's protobuf, their fields by number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.sources.formats.protobuf_wire import BYTES, FIXED32, VARINT, signed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.sources.formats.protobuf_wire import Field, WireReader

_MAX_EXTENT = 1 << 31
_MAX_EXTENTS = 64


@dataclass(frozen=True)
class Fields:
    """One message of a file.

    Parameters
    ----------
    wire
        The file.
    start, end
        Its byte range. Nothing of it is kept: a message may hold millions of fields.
    """

    wire: WireReader
    start: int
    end: int

    def _all(self) -> Iterator[Field]:
        return self.wire.fields(self.start, self.end)

    def messages(self) -> Iterator[tuple[int, Fields]]:
        """Iterate over the fields that hold bytes, not looking into them."""
        for number, kind, value, end in self._all():
            if kind == BYTES:
                yield number, Fields(self.wire, value, end)

    def message(self, number: int) -> Fields | None:
        """Return the last message under a number, None where there is none."""
        found = None
        for n, kind, value, end in self._all():
            if n == number and kind == BYTES:
                found = (value, end)
        return None if found is None else Fields(self.wire, *found)

    def integer(self, number: int) -> int:
        """Return an integer, 0 where it is absent."""
        result = 0
        for n, kind, value, _ in self._all():
            if n == number and kind == VARINT:
                result = signed(value)
        return result

    def integers(self, number: int) -> tuple[int, ...]:
        """Return a short list of integers, empty where it is absent."""
        result: list[int] = []
        for n, kind, value, end in self._all():
            if n != number or kind not in (VARINT, BYTES):
                continue
            if (kind == BYTES and end - value > 10 * _MAX_EXTENTS) or len(result) > _MAX_EXTENTS:
                raise self.wire.malformed(f"field {number} lists too many extents", value)
            result += self.wire.integers(kind, value, end)
        return tuple(result)

    def real(self, number: int, default: float) -> float | None:
        """Return a float; None where it is no number a norm may add."""
        result = default
        for n, kind, value, _ in self._all():
            if n == number and kind == FIXED32:
                result = self.wire.float32(value)
        return result if math.isfinite(result) and result >= 0 else None

    def text(self, number: int) -> str:
        """Return a string, empty where it is absent."""
        found = ""
        for n, kind, value, end in self._all():
            if n == number and kind == BYTES:
                found = self.wire.text(value, end, limit=4096)
        return found

    def texts(self, number: int) -> tuple[str, ...]:
        """Return every string under a number."""
        return tuple(part.as_text() for n, part in self.messages() if n == number)

    def as_text(self) -> str:
        """Return the bytes as a string."""
        return self.wire.text(self.start, self.end, limit=4096)


def extents(values: tuple[int, ...], count: int | None, *, least: int) -> tuple[int, ...] | None:
    """Return strides, dilations or paddings that make sense.

    Parameters
    ----------
    values
        As the file has them.
    count
        How many there must be, None for any number.
    least
        Smallest that makes sense.

    Returns
    -------
    tuple of int or None
        None where one makes none.
    """
    if count is not None and len(values) != count:
        return None
    return values if all(least <= v < _MAX_EXTENT for v in values) else None
