"""``https:``, ``s3:`` and every other remote file system fsspec knows.

Log-ins, endpoints and proxies are configured as fsspec and its back ends are: environment
variables and fsspec's configuration files.
"""

from __future__ import annotations

import importlib
import secrets
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from filterdb.errors import FetchError, FilterDBError, SourceError, UnsafeCheckpointError
from filterdb.sources.origins import download as transfer
from filterdb.sources.origins.download import MAX_BYTES, redact, wait_before_retry
from filterdb.sources.stored import Filled, Sink, Stored

if TYPE_CHECKING:
    from filterdb.sources.origins import Request

_BLOCK = 8 << 20
#: What file systems call the version of a file, best first.
_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5",
    "md5Hash",
    "content_md5",
    "mtime",
    "LastModified",
    "Last-Modified",
    "created",
)


@dataclass(frozen=True)
class _Remote:
    """A remote file and what its file system says of it."""

    system: Any
    path: str
    name: str
    size: int | None
    version: str


def obtain(request: Request) -> Stored:
    """Fetch a remote file.

    Parameters
    ----------
    request
        Any address fsspec opens.

    Returns
    -------
    Stored
        With a known hash that is cached, nothing is asked of the network; else the file is taken
        from the cache only where the remote one still has the version that was cached.

    Raises
    ------
    SourceError
        Where there is no such file, it is not for this user, or its protocol lacks a package.
    FetchError
        Where the network failed and failed again.
    HashMismatchError
        Where other bytes came.
    """
    uri = request.uri
    if request.sha256 is not None:
        known = request.cache.find(str(uri), sha256=request.sha256)
        if known is not None:
            return replace(known, uri=str(uri))
    remote = _look_up(request)

    def fill(sink: Sink) -> Filled:
        _download(remote, request, sink)
        return Filled(uri.file_name, str(uri))

    # Without a version there is no telling whether the file changed: it is fetched each time.
    version = remote.version or secrets.token_hex(8)
    key = str(uri) if request.sha256 is not None else f"{uri} {version} {remote.size}"
    return request.cache.get(key, fill, sha256=request.sha256)


def measure(request: Request) -> int | None:
    """Ask how large a remote file is.

    Parameters
    ----------
    request
        As for :func:`obtain`.

    Returns
    -------
    int or None
        Bytes; None where the file system does not say.
    """
    return _look_up(request).size


def _look_up(request: Request) -> _Remote:
    url = f"{request.uri.scheme}:{request.uri.body}"
    name = redact(url)
    system, path = _open_system(url, name)
    for attempt in range(1, transfer.ATTEMPTS + 1):
        try:
            info = system.info(path)
            break
        except _failures() as error:
            if _lacks_log_in(error):
                system = type(system)(anon=True, use_listings_cache=False)
                continue
            _raise_final(error, name, last=attempt == transfer.ATTEMPTS)
            wait_before_retry(attempt)
    else:
        raise SourceError(f"{name} wants a log-in, and there is none")
    if info.get("type") == "directory":
        raise SourceError(f"{name} is a folder, not a file")
    size = info.get("size")
    if size is not None and size > MAX_BYTES:
        raise UnsafeCheckpointError(f"{name}: {size:,} bytes, {MAX_BYTES:,} is the most")
    return _Remote(system, path, name, size, _version(info))


def _open_system(url: str, name: str) -> tuple[Any, str]:
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True}
    if url.startswith(("http:", "https:")):
        given = fsspec.config.conf.get(url.partition(":")[0], {}).get("headers", {})
        # Compressed transfer would make sizes and hashes those of something else.
        options["headers"] = {"Accept-Encoding": "identity", **given}
        options["client_kwargs"] = {"trust_env": True, "timeout": _web_timeout()}
    elif not url.startswith("memory:"):
        options["use_listings_cache"] = False
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise SourceError(
            f"{name} cannot be fetched: {error}", tip="install the package fsspec names"
        ) from error
    except ValueError as error:
        raise SourceError(f"{name} is no address fsspec takes: {error}") from error
    return system, path


def _web_timeout() -> Any:
    import aiohttp

    # aiohttp's own bound is five minutes for a whole file, however large.
    return aiohttp.ClientTimeout(total=None, sock_connect=15.0, sock_read=60.0)


def _download(remote: _Remote, request: Request, sink: Sink) -> None:
    """Read the file, going on where it broke off while that is possible."""
    if remote.size is not None:
        sink.reserve(remote.size)
    failures, farthest, ranges = 0, 0, remote.size is not None
    while True:
        try:
            if not (sink.bytes and ranges and _is_unchanged(remote)):
                sink.restart()
            _attempt(remote, request, sink)
            return
        except _failures() as error:
            ranges = ranges and not isinstance(error, _NoRangeError)
            # A line may drop before what it brought is handed on: only farther than ever counts.
            failures = 1 if sink.bytes > farthest else failures + 1
            farthest = max(farthest, sink.bytes)
            last = failures >= transfer.ATTEMPTS
            _raise_final(error, _progress(remote, farthest), last=last)
            wait_before_retry(failures)


def _attempt(remote: _Remote, request: Request, sink: Sink) -> None:
    # Web servers send a whole file in one answer; parts are asked for only to go on.
    whole = remote.system.protocol in (("http", "https"), "http") and not sink.bytes
    bound = MAX_BYTES if remote.size is None else remote.size
    options = {"block_size": 0} if whole else {"block_size": _BLOCK, "cache_type": "none"}
    try:
        with remote.system.open(remote.path, "rb", **options) as file:
            if sink.bytes:
                file.seek(sink.bytes)
            while block := file.read(_BLOCK):
                if sink.bytes + len(block) > bound:
                    raise UnsafeCheckpointError(
                        f"{remote.name} sends more than the {bound:,} bytes announced"
                    )
                if not whole and len(block) < min(_BLOCK, bound - sink.bytes):
                    # fsspec takes any answer that is short enough for the part it asked for.
                    raise _NoRangeError("the server sends something else than the part asked for")
                sink.write(block)
                request.tell(request.uri.file_name, sink.bytes, remote.size)
    except ValueError as error:
        # filterdb's own errors are ValueErrors too.
        if isinstance(error, FilterDBError) or not sink.bytes:
            raise
        raise _NoRangeError(f"the server sends whole files only: {error}") from error
    if remote.size is not None and sink.bytes != remote.size:
        raise _ShortError("the file ended early")


def _is_unchanged(remote: _Remote) -> bool:
    info = remote.system.info(remote.path)
    return bool(remote.version) and (_version(info), info.get("size")) == (
        remote.version,
        remote.size,
    )


def _version(info: dict[str, Any]) -> str:
    return next((f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key)), "")


class _NoRangeError(Exception):
    """The server cannot go on in the middle of a file."""


class _ShortError(Exception):
    """Fewer bytes came than were announced."""


def _failures() -> tuple[type[Exception], ...]:
    """List what fsspec's back ends raise, without importing those that are not in use."""
    kinds: list[type[Exception]] = [OSError, _ShortError, _NoRangeError]
    if "aiohttp" in sys.modules:
        import aiohttp

        kinds.append(aiohttp.ClientError)
    if "botocore" in sys.modules:
        exceptions = importlib.import_module("botocore.exceptions")
        kinds += [exceptions.BotoCoreError, exceptions.ClientError]
    return tuple(kinds)


def _lacks_log_in(error: Exception) -> bool:
    # Public buckets are read without one.
    return type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")


def _progress(remote: _Remote, n_bytes: int) -> str:
    if not n_bytes:
        return remote.name
    total = "an unknown number of" if remote.size is None else f"{remote.size:,}"
    return f"{remote.name} broke off, expected {total} bytes, got {n_bytes:,}"


def _raise_final(error: Exception, what: str, *, last: bool) -> None:
    # fsspec hides the real reason of "not found" behind it.
    reason = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    status = _status(reason)
    transient = status >= 500 or status in transfer.RETRY_STATUS
    if 400 <= status < 500 and not transient:
        raise SourceError(f"{what}: the server answers {status}") from error
    if isinstance(reason, FileNotFoundError):
        raise SourceError(f"{what}: there is no such file") from error
    if isinstance(reason, PermissionError):
        raise SourceError(
            f"{what}: access refused", tip="fsspec takes log-ins from the environment"
        ) from error
    if last:
        raise FetchError(f"{what}: {_plain(reason, status)}") from error


def _plain(reason: BaseException, status: int) -> str:
    """Say in one line what the network did."""
    if status >= 400:
        return f"the server answers {status} {getattr(reason, 'message', '')}".rstrip()
    kind = type(reason).__name__
    if kind in ("ClientPayloadError", "ServerDisconnectedError"):
        return "the server closed the connection in the middle"
    text = str(reason).strip() or kind
    # aiohttp speaks of TLS whether there is any or not.
    return text.splitlines()[0].replace(" ssl:default", "")


def _status(error: BaseException) -> int:
    """Return the HTTP status an error carries, in aiohttp's way or in botocore's."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return int(getattr(error, "status", 0))


ORIGIN = obtain
MEASURE = measure
