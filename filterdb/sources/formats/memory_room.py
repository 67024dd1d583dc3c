"""A budget of memory for what is made of a file's small parts.

A tensor record takes a kilobyte or two, and a file can describe one in ten bytes: without a bound
on their number, reading a small file would take gigabytes.
"""

from __future__ import annotations

from filterdb.errors import UnsafeCheckpointError


class Room:
    """Memory a reader may take for records of one file.

    Parameters
    ----------
    size
        Bytes of the file; as many may be taken …
    flat
        … plus this many.
    where
        The file's name, for the message.
    """

    __slots__ = ("_left", "_size", "_where")

    def __init__(self, size: int, *, flat: int, where: str) -> None:
        self._left = size + flat
        self._size = size
        self._where = where

    def take(self, n_bytes: int) -> None:
        """Count memory about to be taken.

        Parameters
        ----------
        n_bytes
            Bytes, roughly.

        Raises
        ------
        UnsafeCheckpointError
            If there is no room left.
        """
        self._left -= n_bytes
        if self._left < 0:
            raise UnsafeCheckpointError(
                f"{self._where}, a file of {self._size:,} bytes, describes more tensors, "
                "operations and lists than any network of that size does"
            )
