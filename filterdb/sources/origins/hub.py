"""``hf:owner/name@REVISION!/file`` — one file of a model hub's repository.

The hub's own client says which commit a revision is, how large the file is and, for large files,
its hash; the bytes come as every other download's. The hub's address, log-in and offline switch
are those of that client (``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from filterdb.errors import FetchError, SourceError, nearest
from filterdb.sources.origins import download as transfer
from filterdb.sources.stored import Filled, Sink, Stored

if TYPE_CHECKING:
    from filterdb.catalog.uri import SourceUri
    from filterdb.sources.origins import Request

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class NotOnHubError(SourceError):
    """The hub answers, and has no such repository, revision or file."""


@dataclass(frozen=True)
class HubFile:
    """What the hub says of a file.

    Parameters
    ----------
    uri
        Its URI with the commit in place of the revision.
    url
        Where to get it.
    size
        In bytes, if the hub says.
    sha256
        Its hash, which the hub knows for large files.
    """

    uri: SourceUri
    url: str
    size: int | None
    sha256: str | None


def obtain(request: Request) -> Stored:
    """Fetch one file of a repository.

    Parameters
    ----------
    request
        ``hf:owner/name[@REVISION]!/file``; "main" where no revision is given.

    Returns
    -------
    Stored
        Its `uri` names the commit. A commit or a hash that is cached asks nothing of the network.

    Raises
    ------
    SourceError
        Where there is no such repository, revision or file, or it is not for this user.
    FetchError
        Where the network failed.
    HashMismatchError
        Where other bytes came.
    """
    repository, _, revision = request.uri.body.partition("@")
    if request.sha256 is not None or _COMMIT.fullmatch(revision):
        known = request.cache.find(str(request.uri), sha256=request.sha256)
        if known is not None:
            return replace(known, name=request.uri.file_name, uri=known.uri or str(request.uri))
    found = look_up(request.uri, repository, revision or "main")

    def fill(sink: Sink) -> Filled:
        import requests
        from huggingface_hub.utils import build_hf_headers

        job = transfer.Download(
            found.url,
            request.uri.file_name,
            size=found.size,
            headers={str(k): str(v) for k, v in build_hf_headers().items()},
            tell=request.tell,
        )
        with requests.Session() as session:
            transfer.download(session, job, sink)
        sink.verify(request.sha256 or found.sha256, what=str(found.uri))
        return Filled(request.uri.file_name, str(found.uri))

    # A branch moves: only the commit (or the hash) may stand for the bytes.
    key = str(request.uri if request.sha256 is not None else found.uri)
    stored = request.cache.get(key, fill, sha256=request.sha256)
    return replace(stored, name=request.uri.file_name, uri=str(found.uri))


def measure(request: Request) -> int | None:
    """Ask the hub how large a file is.

    Parameters
    ----------
    request
        As for :func:`obtain`.

    Returns
    -------
    int or None
        Bytes; None where the hub does not say.
    """
    repository, _, revision = request.uri.body.partition("@")
    return look_up(request.uri, repository, revision or "main").size


def look_up(uri: SourceUri, repository: str, revision: str) -> HubFile:
    """Ask the hub what it has under a name.

    Parameters
    ----------
    uri
        For messages, and to put the commit in.
    repository
        "owner/name".
    revision
        Branch, tag or commit.

    Returns
    -------
    HubFile
        Where to get the file, and what it should be.

    Raises
    ------
    NotOnHubError
        Where it is not there; names the nearest files.
    SourceError
        Where it is not for this user.
    FetchError
        Where the hub cannot be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    endpoint = os.environ.get("HF_ENDPOINT") or None
    name = uri.members[0]

    def ask() -> Any:
        url = hf_hub_url(repository, name, revision=revision, endpoint=endpoint)
        return get_hf_file_metadata(url, endpoint=endpoint, timeout=15.0)

    found = _patiently(ask, uri, missing=lambda: _nearest_files(repository, revision, name))
    commit = found.commit_hash
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise FetchError(f"{uri}: the hub does not name the commit of {revision!r}, got {commit!r}")
    etag = found.etag or ""
    return HubFile(
        uri=replace(uri, body=f"{repository}@{commit}"),
        url=hf_hub_url(repository, name, revision=commit, endpoint=endpoint),
        size=found.size,
        sha256=etag if _SHA256.fullmatch(etag) else None,
    )


def _nearest_files(repository: str, revision: str, name: str) -> str | None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        names = api.list_repo_files(repository, revision=revision)
    except OSError:
        return None
    close = nearest(name, names) or sorted(names)[:8]
    return f"nearest: {', '.join(close)} ({len(names)} in all)"


def _patiently(ask: Any, uri: SourceUri, *, missing: Any) -> Any:
    from huggingface_hub import errors

    # The base of the client's own HTTP errors: httpx's or requests', by the client's version.
    http_error = errors.HfHubHTTPError.__bases__[0]
    for attempt in range(1, transfer.ATTEMPTS + 1):
        try:
            return ask()
        except errors.OfflineModeIsEnabled as error:
            raise FetchError(
                f"{uri} is not cached and HF_HUB_OFFLINE forbids to fetch it"
            ) from error
        except errors.GatedRepoError as error:
            raise SourceError(
                f"{uri} is gated", tip="accept its terms on the hub and set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise NotOnHubError(
                f"{uri}: no such repository, or it is private", tip="private ones need HF_TOKEN"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise NotOnHubError(f"{uri}: the repository has no such revision") from error
        except errors.EntryNotFoundError as error:
            raise NotOnHubError(f"{uri}: the repository has no such file", tip=missing()) from error
        except (http_error, OSError) as error:
            _raise_final(error, uri, last=attempt == transfer.ATTEMPTS)
            transfer.wait_before_retry(attempt)
    raise AssertionError("the last attempt returns or raises")


def _raise_final(error: Exception, uri: SourceUri, *, last: bool) -> None:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    if 400 <= status < 500 and status not in transfer.RETRY_STATUS:
        raise SourceError(f"{uri}: the hub answers {status}") from error
    if last:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FetchError(f"{uri}: the hub cannot be asked: {first}") from error


ORIGIN = obtain
MEASURE = measure
