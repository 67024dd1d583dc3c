"""One HTTP download: streamed, bounded, hashed, taken up again where it broke off."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from filterdb.errors import FetchError, HashMismatchError, SourceError, UnsafeCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import requests

    from filterdb.sources.stored import Sink

#: Nothing larger is fetched, whoever announces it.
MAX_BYTES = 64 * 1024**3
_BLOCK = 1 << 20
#: Tries without a megabyte of progress between them.
ATTEMPTS = 4
#: Seconds before the second try; doubled before each further one.
BACKOFF = 0.5
_TIMEOUT = (15.0, 60.0)
#: Answers that may change when asked again.
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Download:
    """What to get and what is known about it.

    Parameters
    ----------
    url
        Where it lies.
    what
        Its name in messages and progress.
    size
        Bytes somebody announced, or None.
    headers
        Sent along.
    tell
        Called with (what, bytes so far, bytes in all or None).
    """

    url: str
    what: str
    size: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tell: Callable[[str, int, int | None], None] = lambda _what, _done, _total: None


def download(session: requests.Session, job: Download, sink: Sink) -> None:
    """Stream one file into a sink, trying again where that may help.

    Parameters
    ----------
    session
        Carries proxies, certificates and log-ins.
    job
        What to get.
    sink
        Where it goes; holds the whole file afterwards.

    Raises
    ------
    FetchError
        Where the network failed and failed again: worth another run later.
    SourceError
        Where the server refuses (not found, not allowed).
    HashMismatchError
        Where the server sends another number of bytes than announced.
    """
    import requests
    import urllib3

    transfer, failures = _Transfer(session, job, sink), 0
    while True:
        start = sink.bytes
        try:
            transfer.attempt()
            return
        except (requests.RequestException, urllib3.exceptions.HTTPError, _AgainError) as error:
            # Progress counts: a line that drops every now and then gets there in the end.
            failures = 1 if sink.bytes - start >= _BLOCK else failures + 1
            if failures >= ATTEMPTS:
                raise FetchError(_broke_off(job, sink, error)) from error
            wait_before_retry(failures, getattr(error, "after", None))


def wait_before_retry(failures: int, after: float | None = None) -> None:
    """Wait longer after each failure.

    Parameters
    ----------
    failures
        How many there were.
    after
        Seconds the server asked for, if it did.
    """
    time.sleep(min(after if after is not None else BACKOFF * 2.0 ** (failures - 1), 30.0))


def check_status(response: requests.Response, *, what: str) -> None:
    """Raise for an answer that is not the file.

    Parameters
    ----------
    response
        Headers have come.
    what
        Its name in messages.

    Raises
    ------
    SourceError
        Where asking again would change nothing.
    """
    status = response.status_code
    if status < 400:
        return
    text = f"{what}: {redact(response.url)} answers {status} {response.reason}"
    if status in RETRY_STATUS:
        raise _AgainError(text, after=_retry_after(response.headers.get("Retry-After", "")))
    if status in (401, 403, 407):
        raise SourceError(text, tip="the server wants a log-in, or refuses this one")
    raise SourceError(text, tip="it is not there (any more), or the name is wrong")


def redact(url: str) -> str:
    """Return an address without the log-in and the query it may carry.

    Parameters
    ----------
    url
        Any address.

    Returns
    -------
    str
        Fit for messages and tables.
    """
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


class _AgainError(Exception):
    """One attempt failed, the next may not."""

    def __init__(self, message: str, *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class _Transfer:
    """The attempts at one download, and what the server said of the file's version."""

    def __init__(self, session: requests.Session, job: Download, sink: Sink) -> None:
        self.session, self.job, self.sink = session, job, sink
        self.validator = ""

    def attempt(self) -> None:
        job, sink = self.job, self.sink
        # Compressed transfer would make lengths, ranges and hashes those of something else.
        headers = {"Accept-Encoding": "identity", **job.headers}
        if sink.bytes and self.validator:
            # If-Range: should the file have changed, the server sends the whole new one.
            headers |= {"Range": f"bytes={sink.bytes}-", "If-Range": self.validator}
        with self.session.get(job.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == 416:
                sink.restart()
                raise _AgainError("the server refuses to go on where it broke off")
            check_status(response, what=job.what)
            if response.status_code != 206 or _content_start(response) != sink.bytes:
                sink.restart()
                if response.status_code == 206:
                    raise _AgainError("the server sent another part than asked for")
            self.validator = _validator(response)
            self._receive(response, self._total(response))

    def _total(self, response: requests.Response) -> int | None:
        job, sink = self.job, self.sink
        length = response.headers.get("Content-Length", "")
        total = sink.bytes + int(length) if _is_number(length) else job.size
        if total is None:
            return None
        if job.size is not None and total != job.size:
            raise HashMismatchError(
                f"{job.what}: {job.size:,} bytes were announced, the server sends {total:,}"
            )
        if total > MAX_BYTES:
            raise UnsafeCheckpointError(
                f"{job.what}: {total:,} bytes announced, {MAX_BYTES:,} is the most ever fetched"
            )
        sink.reserve(total)
        return total

    def _receive(self, response: requests.Response, total: int | None) -> None:
        job, sink = self.job, self.sink
        bound = MAX_BYTES if total is None else total
        for block in response.raw.stream(_BLOCK, decode_content=False):
            if sink.bytes + len(block) > bound:
                raise UnsafeCheckpointError(
                    f"{job.what}: the server sends more than the {bound:,} bytes announced"
                )
            sink.write(block)
            job.tell(job.what, sink.bytes, total)
        if total is not None and sink.bytes != total:
            raise _AgainError("the server closed the line")


def _broke_off(job: Download, sink: Sink, error: Exception) -> str:
    if not sink.bytes:
        return f"{job.what}: cannot be fetched: {_plain(error, job)}"
    total = "an unknown number of" if job.size is None else f"{job.size:,}"
    return (
        f"{job.what}: broke off, expected {total} bytes, got {sink.bytes:,}: {_plain(error, job)}"
    )


def _plain(error: Exception, job: Download) -> str:
    # urllib3 puts the address, with a log-in it may carry, into its messages.
    text = str(error).replace(job.url, redact(job.url))
    host = urlsplit(job.url).netloc
    return text.replace(host, host.rpartition("@")[2]) or type(error).__name__


def _validator(response: requests.Response) -> str:
    tag = str(response.headers.get("ETag", ""))
    # A weak tag does not promise the same bytes.
    return "" if tag.startswith("W/") else tag


def _content_start(response: requests.Response) -> int:
    unit, _, spans = response.headers.get("Content-Range", "").partition(" ")
    start = spans.partition("-")[0]
    return int(start) if unit == "bytes" and _is_number(start) else -1


def _is_number(text: str) -> bool:
    # Other digits than these, or thousands of them, are no number to Python either.
    return text.isascii() and text.isdigit() and len(text) < 20


def _retry_after(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() else None
