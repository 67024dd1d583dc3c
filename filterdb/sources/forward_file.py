"""Compressed archives read forward only, within bounds on memory and size."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from typing import IO, Any

from filterdb.errors import UnsafeCheckpointError

#: A table of contents or header read in one piece is not larger.
MAX_HEADER = 64 * 1024**2
#: The headers of one tar member, its long names and extended records included.
MAX_MEMBER_HEADERS = 1024**2
#: The strongest setting of xz needs 65 MB.
_XZ_MEMORY = 128 * 1024**2
_BLOCK = 1 << 20


def compression_of(head: bytes) -> str | None:
    """Tell a compression from a file's first bytes.

    Parameters
    ----------
    head
        At least six bytes.

    Returns
    -------
    str or None
        "gzip", "bzip2" or "xz".
    """
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if head[:3] == b"BZh":
        return "bzip2"
    return "xz" if head[:6] == b"\xfd7zXZ\x00" else None


def decompress(file: IO[bytes], compression: str | None) -> IO[bytes]:
    """Read a file through its compression.

    Parameters
    ----------
    file
        At its beginning.
    compression
        As :func:`compression_of` tells it.

    Returns
    -------
    file
        The plain bytes, to be read forward.
    """
    if compression == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=file, mode="rb"))
    if compression == "bzip2":
        return bz2.BZ2File(file)
    if compression == "xz":
        return io.BufferedReader(_Xz(file))
    return file


class _Xz(io.RawIOBase):
    """An xz stream read with a bound on the memory its header may ask for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._decompressor.eof:
            more = self._file.read(_BLOCK) if self._decompressor.needs_input else b""
            if self._decompressor.needs_input and not more:
                raise EOFError("the xz stream ends before its end mark")
            block = self._decompressor.decompress(more, len(buffer))
            if block:
                buffer[: len(block)] = block
                return len(block)
        return 0


class ForwardFile:
    """A file that is only read forward, within the bounds on what an archive may inflate to.

    Parameters
    ----------
    file
        Plain bytes.
    bound
        Bytes that may be read in all.
    what
        The archive's name in messages.

    Attributes
    ----------
    ended
        More was asked for than there was: the end mark of the archive is missing.
    """

    def __init__(self, file: IO[bytes], *, bound: int, what: str) -> None:
        self._file = file
        self._position = 0
        self._bound = bound
        self._what = what
        self._headers_left: int | None = MAX_MEMBER_HEADERS
        self.ended = False

    def expect_header(self) -> None:
        """Count what is read from now on as the headers of one member, which are kept."""
        self._headers_left = MAX_MEMBER_HEADERS

    def expect_content(self) -> None:
        """Count nothing: what is read from now on is passed on."""
        self._headers_left = None

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read bytes; tarfile reads what a header claims in one piece, we copy in small ones.

        Parameters
        ----------
        size
            How many; reading "all" is refused like any other absurd number.

        Returns
        -------
        bytes
            Fewer at the end.

        Raises
        ------
        UnsafeCheckpointError
            Where a bound is broken.
        """
        if not 0 <= size <= MAX_HEADER:
            raise UnsafeCheckpointError(
                f"{self._what}: a tar header claims {size:,} bytes, {MAX_HEADER:,} is the most"
            )
        if self._headers_left is not None:
            self._headers_left -= size
            if self._headers_left < 0:
                raise UnsafeCheckpointError(
                    f"{self._what}: a tar member has more than {MAX_MEMBER_HEADERS:,} bytes of "
                    "headers"
                )
        return self._take(size)

    def _take(self, size: int) -> bytes:
        block = self._file.read(size)
        self.ended = self.ended or len(block) < size
        self._position += len(block)
        if self._position > self._bound:
            raise UnsafeCheckpointError(
                f"{self._what}: inflates to more than the {self._bound:,} bytes allowed",
                tip="no weights compress like that: this is a decompression bomb",
            )
        return block

    def seek(self, target: int, whence: int = 0) -> int:
        """Go forward.

        Parameters
        ----------
        target
            Byte to go to, not before the present one.
        whence
            0: from the beginning.

        Returns
        -------
        int
            Where it is; before `target` where the file ends.
        """
        if whence != 0 or target < self._position:
            raise tarfile.ReadError("members overlap")
        while self._position < target:
            if not self._take(min(_BLOCK, target - self._position)):
                break
        return self._position

    def close(self) -> None:
        """Close the file."""
        self._file.close()
