"""Source URIs: the one-line names of model files, whatever holds them.

``SCHEME:BODY["?"KEY=VALUE]["!/"MEMBER]*``; a repeated ``!/`` enters a nested container. Only the
four characters ``% ! # ?`` are percent-encoded (``%25 %21 %23 %3F``): every other character,
spaces and brackets among them, stands for itself. Web addresses keep their own spelling.

This lives beside the catalogue, not in :mod:`filterdb.sources`, because catalogues are checked
before anything is fetched, and a catalogue never imports what fetches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import urlsplit, urlunsplit

from filterdb.errors import UnknownNameError, UsageError

#: Schemes filterdb itself knows; any other remote protocol of fsspec is taken too.
OWN_SCHEMES = ("pypi", "npm", "hf", "timm", "init", "file")
_WEB_SCHEMES = ("http", "https")
_COMMON_REMOTE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "ftp", "sftp", "memory")
#: fsspec protocols that wrap others, run code or name this machine by another word: not sources.
_REFUSED = {
    *("asynclocal", "asyncwrapper", "blockcache", "cached", "dask", "data", "dir", "dirfs"),
    *("filecache", "generic", "git", "jlab", "jupyter", "libarchive", "local", "reference"),
    *("simplecache", "tar", "zip"),
}
_QUERY_KEYS = {"pypi": ("sha256", "file"), "init": ("seed",)}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)
_ESCAPE = re.compile(r"%(..)?", re.DOTALL)
_ESCAPED = {"%": "%25", "!": "%21", "#": "%23", "?": "%3F"}
_PLAIN = {"25": "%", "21": "!", "23": "#", "3F": "?"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PYPI = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_NPM_NAME = re.compile(r"(?:@[A-Za-z0-9~_][A-Za-z0-9~._-]*/)?[A-Za-z0-9~_][A-Za-z0-9~._-]*")
_NPM_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z.+-]*")
_HUB = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_TIMM = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)?")


@dataclass(frozen=True)
class SourceUri:
    """A parsed source URI; its parts are decoded.

    Parameters
    ----------
    scheme
        "pypi", "npm", "hf", "timm", "init", "file", "https", "s3", ….
    body
        What the scheme names. For web addresses the whole address as written, without its scheme.
    query
        ``KEY=VALUE`` pairs of the body (pypi: sha256, file; init: seed).
    members
        Path inside the container, then inside that member, and so on. For ``hf:`` the first is
        the file of the repository.
    """

    scheme: str
    body: str
    query: tuple[tuple[str, str], ...] = ()
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        return format_uri(self)

    @property
    def parameters(self) -> dict[str, str]:
        """The query as a dictionary."""
        return dict(self.query)

    @property
    def archive(self) -> SourceUri:
        """What is fetched as one piece: the URI without the members inside a container."""
        keep = 1 if self.scheme == "hf" else 0
        return replace(self, members=self.members[:keep])

    @property
    def nested(self) -> tuple[str, ...]:
        """The members to take out of the fetched piece, outermost first."""
        return self.members[1:] if self.scheme == "hf" else self.members

    @property
    def file_name(self) -> str:
        """The model file's own name, as far as the URI says."""
        last = self.members[-1] if self.members else self._body_path()
        return last.rstrip("/").rsplit("/", 1)[-1]

    def sibling(self, name: str) -> SourceUri:
        """Return the URI of `name`, relative to the folder the file lies in.

        Parameters
        ----------
        name
            A relative path that stays inside the folder.

        Returns
        -------
        SourceUri
            Same container (or folder, or web path), other file.

        Raises
        ------
        UsageError
            Where `name` leaves the folder, or there is no folder (a package without member).
        """
        check_member(name)
        if self.members:
            folder = self.members[-1].rpartition("/")[0]
            path = f"{folder}/{name}" if folder else name
            return replace(self, members=(*self.members[:-1], path))
        if self.scheme in ("pypi", "npm", "hf", "timm", "init"):
            raise UsageError(f"{self} has no folder {name!r} could lie in")
        if self.scheme in _WEB_SCHEMES:
            parts = urlsplit(f"{self.scheme}:{self.body}")
            folder = parts.path.rpartition("/")[0]
            moved = urlunsplit(parts._replace(path=f"{folder}/{name}"))
            return replace(self, body=moved.partition(":")[2])
        folder, slash, _ = self.body.rpartition("/")
        return replace(self, body=f"{folder}{slash}{name}")

    def _body_path(self) -> str:
        if self.scheme in _WEB_SCHEMES:
            return urlsplit(f"{self.scheme}:{self.body}").path
        return self.body


def parse_uri(text: str) -> SourceUri:
    """Read a source URI.

    Parameters
    ----------
    text
        As in a catalogue.

    Returns
    -------
    SourceUri
        Its decoded parts.

    Raises
    ------
    UsageError
        Where the text is no source URI; the message says what is wrong and what would be right.
    UnknownNameError
        Where the scheme is unknown.
    """
    match = _SCHEME.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a source URI",
            tip="it starts with a scheme: pypi:NAME==VERSION!/member, file:path, hf:owner/name@…",
        )
    scheme, rest = match[1].lower(), match[2]
    check_scheme(scheme)
    body, *members = rest.split("!/")
    query: tuple[tuple[str, str], ...] = ()
    if scheme not in _WEB_SCHEMES:
        body, mark, tail = body.partition("?")
        if mark:
            query = _parse_query(tail, scheme=scheme, text=text)
        body = _decode(body, text=text)
        if scheme == "file" and body.startswith("///"):
            body = body[2:]
    return SourceUri(scheme, body, query, tuple(_decode(m, text=text) for m in members))


def format_uri(uri: SourceUri) -> str:
    """Write a source URI; the inverse of :func:`parse_uri`.

    Parameters
    ----------
    uri
        Decoded parts.

    Returns
    -------
    str
        The canonical spelling.
    """
    body = uri.body if uri.scheme in _WEB_SCHEMES else _encode(uri.body)
    query = "&".join(f"{key}={_encode(value)}" for key, value in uri.query)
    members = "".join(f"!/{_encode(member)}" for member in uri.members)
    return f"{uri.scheme}:{body}{'?' if query else ''}{query}{members}"


def has_scheme(text: str) -> bool:
    """Tell a source URI from a bare path, by its beginning alone.

    Parameters
    ----------
    text
        What somebody typed.

    Returns
    -------
    bool
        True where it starts with what may be a scheme, known or not.
    """
    return _SCHEME.fullmatch(text) is not None


def check_scheme(scheme: str) -> None:
    """Make sure that a scheme can be fetched.

    Parameters
    ----------
    scheme
        Lower case.

    Raises
    ------
    UnknownNameError
        Naming the nearest.
    """
    if scheme in OWN_SCHEMES or scheme in _WEB_SCHEMES or scheme in _COMMON_REMOTE:
        return
    from fsspec.registry import known_implementations

    remote = set(known_implementations) - _REFUSED
    if scheme not in remote:
        raise UnknownNameError("scheme", scheme, {*OWN_SCHEMES, *_WEB_SCHEMES, *remote})


def check_member(name: str) -> None:
    """Make sure that a member's name stays inside its container.

    Parameters
    ----------
    name
        Path relative to the container's root, parts joined by ``/``.

    Raises
    ------
    UsageError
        For an empty, absolute or climbing name, or one no container can hold.
    """
    parts = name.split("/")
    if not name or "\0" in name or "\\" in name or any(p in ("", ".", "..") for p in parts):
        raise UsageError(
            f"member {name!r} is not a plain relative path",
            tip="no leading /, no empty, '.' or '..' parts, no backslash",
        )


def _encode(text: str) -> str:
    return "".join(_ESCAPED.get(c, c) for c in text)


def _decode(part: str, *, text: str) -> str:
    bare = next((c for c in part if c in "!#?"), None)
    if bare is not None:
        raise UsageError(
            f"{text!r} holds a bare {bare!r}", tip=f"write {_ESCAPED[bare]} for the character"
        )

    def plain(match: re.Match[str]) -> str:
        character = _PLAIN.get((match[1] or "").upper())
        if character is None:
            raise UsageError(
                f"{text!r} holds {match[0]!r}",
                tip="only % ! # ? are percent-encoded (%25 %21 %23 %3F); write the rest as it is",
            )
        return character

    return _ESCAPE.sub(plain, part)


def _parse_query(tail: str, *, scheme: str, text: str) -> tuple[tuple[str, str], ...]:
    known = _QUERY_KEYS.get(scheme, ())
    if not known:
        raise UsageError(f"{text!r} holds a bare '?'", tip="write %3F for the character in a path")
    pairs = []
    for item in tail.split("&"):
        key, equals, value = item.partition("=")
        if not equals or not value:
            raise UsageError(f"{text!r}: {item!r} is not KEY=VALUE")
        if key not in known:
            raise UnknownNameError("parameter", key, known, where=f"{scheme}: URIs")
        pairs.append((key, _decode(value, text=text)))
    if len({key for key, _ in pairs}) < len(pairs):
        raise UsageError(f"{text!r} names a parameter twice")
    return tuple(pairs)


def _check(uri: SourceUri) -> None:
    for member in uri.members:
        check_member(member)
    for key, value in uri.query:
        if key not in _QUERY_KEYS.get(uri.scheme, ()) or not value or "&" in value:
            raise UsageError(f"{uri.scheme}: URIs take no parameter {key}={value!r}")
    checks = {
        "pypi": _check_pypi,
        "npm": _check_npm,
        "hf": _check_hub,
        "timm": _check_timm,
        "init": _check_init,
    }
    check = checks.get(uri.scheme, _check_path)
    check(uri)


def _check_pypi(uri: SourceUri) -> None:
    if not _PYPI.fullmatch(uri.body):
        raise UsageError(
            f"{uri.body!r} is not NAME==VERSION",
            tip="as in pypi:facenet-pytorch==2.6.0!/path/in/archive",
        )
    digest = uri.parameters.get("sha256")
    if digest is not None and not _SHA256.fullmatch(digest):
        raise UsageError(f"sha256={digest!r} is not 64 lower-case hexadecimal digits")
    if "/" in uri.parameters.get("file", ""):
        raise UsageError(f"file={uri.parameters['file']!r} is not a file's bare name")


def _check_npm(uri: SourceUri) -> None:
    name, at, version = uri.body.rpartition("@")
    if not at or not _NPM_NAME.fullmatch(name) or not _NPM_VERSION.fullmatch(version):
        raise UsageError(
            f"{uri.body!r} is not [@scope/]NAME@VERSION",
            tip="the version is exact, as in npm:@mediapipe/hands@0.4.1675469240!/package/…",
        )


def _check_hub(uri: SourceUri) -> None:
    name, at, revision = uri.body.partition("@")
    if not _HUB.fullmatch(name) or (at and not _REVISION.fullmatch(revision)):
        raise UsageError(
            f"{uri.body!r} is not owner/name@REVISION",
            tip="as in hf:timm/resnet18.a1_in1k@main!/model.safetensors",
        )
    if not uri.members:
        raise UsageError(f"hf:{uri.body} names no file", tip="add !/model.safetensors")


def _check_timm(uri: SourceUri) -> None:
    if not _TIMM.fullmatch(uri.body) or uri.members:
        raise UsageError(f"{uri.body!r} is not arch.tag", tip="as in timm:resnet18.a1_in1k")


def _check_init(uri: SourceUri) -> None:
    library, slash, arch = uri.body.partition("/")
    if library != "timm" or not slash or not _TIMM.fullmatch(arch) or uri.members:
        raise UsageError(f"{uri.body!r} is not timm/arch", tip="as in init:timm/resnet18?seed=0")
    seed = uri.parameters.get("seed", "0")
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", seed) or int(seed) >= 2**63:
        raise UsageError(f"seed={seed!r} is not an integer from 0 to 2^63 - 1")


def _check_path(uri: SourceUri) -> None:
    if not uri.body.strip("/") or "\0" in uri.body:
        raise UsageError(f"{uri.scheme}: is followed by no path")
    if "!/" in uri.body and uri.scheme in _WEB_SCHEMES:
        raise UsageError(f"{uri.body!r} holds '!/', which parts members", tip="write %21/")
    if "::" in uri.body and uri.scheme != "file":
        raise UsageError(
            f"{uri.body!r} chains file systems with '::'", tip="enter containers with !/member"
        )
