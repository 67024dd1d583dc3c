"""From a source URI to a model's files on this machine."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.catalog.uri import SourceUri, check_member, has_scheme, parse_uri
from filterdb.errors import (
    MalformedFileError,
    MissingCompanionError,
    SourceError,
    UnknownNameError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
    UsageError,
)
from filterdb.sources.cache import Cache
from filterdb.sources.entering import largest_members, members_tip, take_out
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.origins import Request, agreed_sha256, find_origin
from filterdb.sources.stored import Filled, Sink, Stored, member_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from filterdb.layers.model import ConvLayer
    from filterdb.layers.raw import RawModel
    from filterdb.types import ProgressHook


#: A file names its companions, these may name more; no format goes further.
MOST_ROUNDS = 3


@dataclass(frozen=True)
class Fetched:
    r"""A model's files on this machine, with what they are known by.

    Parameters
    ----------
    file
        The model file and its companions.
    uri
        As resolved: a hub revision has become its commit.
    archive_sha256
        Hash of the piece that was fetched (archive, or lone file); None for what filterdb made
        itself (``init:``).
    member_sha256
        The file's hash; with companions the hash over the sorted lines "name sha256\n" of file
        and companions, names relative to the file's folder.
    bytes
        Of file and companions together.
    init_of, seed
        Architecture and seed of randomly initialised weights.
    objects
        Hashes of the cached files, for :meth:`Cache.release`.
    """

    file: ModelFile
    uri: str
    archive_sha256: str | None
    member_sha256: str
    bytes: int
    init_of: str | None = None
    seed: int | None = None
    objects: tuple[str, ...] = ()


def fetch(
    uri: str | Path,
    *,
    cache: Cache,
    base: str | Path = ".",
    archive_sha256: str | None = None,
    companions: Sequence[str] = (),
    format: str = "auto",  # noqa: A002 - the catalogue's word
    progress: ProgressHook | None = None,
) -> Fetched:
    """Bring a model's files to this machine.

    Parameters
    ----------
    uri
        Source URI, or the path of a local file.
    cache
        Where fetched archives and their members are kept. A local file is read where it lies.
    base
        Folder ``file:`` paths are relative to.
    archive_sha256
        Hash the archive must have; where it is cached, nothing is asked of the network.
    companions
        Names of the files that belong to the model, relative to its folder; where none are given
        and the format comes in parts, its reader names them.
    format
        The reader's name, or "auto".
    progress
        Told of bytes.

    Returns
    -------
    Fetched
        Picklable; its cached files stay in use until ``cache.release(*fetched.objects)``.

    Raises
    ------
    SourceError
        Where the file cannot be had, in its subclasses: FetchError (try again later),
        HashMismatchError, MissingCompanionError, UnsafeCheckpointError, ….
    UsageError
        Where the URI is none.
    """
    parsed = parse_location(uri)
    run = _Run(cache, Path(base), archive_sha256, progress)
    try:
        fetched = _gather(parsed, run, tuple(companions), format)
    except BaseException:
        cache.release(*run.pinned)
        raise
    # An archive whose members are out is not in use any more.
    cache.release(*(Counter(run.pinned) - Counter(fetched.objects)).elements())
    return fetched


def _gather(uri: SourceUri, run: _Run, companions: tuple[str, ...], format_name: str) -> Fetched:
    main = run.obtain(uri)
    made = uri.scheme == "init"
    name = main.name if uri.scheme in ("timm", "init") else uri.file_name or main.name
    file = ModelFile(path=main.path, companions={}, name=name)
    parts = {part: run.companion(uri, part) for part in companions}
    for _ in range(0 if companions else MOST_ROUNDS):
        # A companion may name others: an index its data files, a manifest its shards.
        names = [part for part in _companions_of(file, format_name) if part not in parts]
        if not names:
            break
        parts |= {part: run.companion(uri, part) for part in names}
        file = replace(file, companions={part: stored.path for part, stored in parts.items()})
    own = [main, *parts.values()]
    return Fetched(
        file=replace(file, companions={part: stored.path for part, stored in parts.items()}),
        uri=main.uri,
        archive_sha256=None if made else run.archive_hash,
        member_sha256=member_sha256(name, main, parts),
        bytes=sum(stored.bytes for stored in own),
        init_of=uri.body if made else None,
        seed=int(uri.parameters.get("seed", "0")) if made else None,
        objects=tuple(stored.sha256 for stored in own if run.is_cached(stored)),
    )


def member_sha256(name: str, main: Stored, companions: Mapping[str, Stored]) -> str:
    r"""Hash a model that may come in parts.

    Parameters
    ----------
    name
        The file's own name.
    main
        The file.
    companions
        Name relative to the file's folder → file.

    Returns
    -------
    str
        Without companions the file's own hash; with them that of the sorted lines
        ``name sha256\n``.
    """
    if not companions:
        return main.sha256
    parts = {name: main.sha256, **{part: stored.sha256 for part, stored in companions.items()}}
    lines = "".join(f"{part} {digest}\n" for part, digest in sorted(parts.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def parse_location(text: str | Path) -> SourceUri:
    """Read a source URI or a bare path.

    Parameters
    ----------
    text
        What somebody typed.

    Returns
    -------
    SourceUri
        A path becomes a ``file:`` URI; ``archive.zip!/member`` enters the archive.

    Raises
    ------
    UsageError
        For what is neither a path that exists nor a source URI, though it begins like one.
    """
    if isinstance(text, Path) or not has_scheme(text) or Path(text).exists():
        path = str(text)
        if "!/" in path and not Path(path).exists():
            outer, *members = path.split("!/")
            return SourceUri("file", outer, (), tuple(members))
        return SourceUri("file", path)
    return parse_uri(text)


def open_raw(fetched: Fetched, format: str = "auto") -> RawModel:  # noqa: A002 - as above
    """Open what was fetched.

    Parameters
    ----------
    fetched
        A model's files.
    format
        The reader's name, or "auto" to tell from the bytes.

    Returns
    -------
    RawModel
        Its tensors, not yet loaded.

    Raises
    ------
    UnknownNameError
        There is no such format.
    SourceError
        The file cannot be read; where it is an archive, its largest members are named.
    """
    from filterdb.sources.formats import read_model

    try:
        return read_model(fetched.file, format)
    except UnsupportedFormatError as error:
        inside = members_tip(fetched.file.path, fetched.uri, fetched.file.name)
        if inside is None:
            raise
        raise UnsupportedFormatError(error.message, tip=inside) from error


def read_layers(
    uri: str | Path,
    *,
    layout: str = "auto",
    transposed: Sequence[str] = (),
    cache: Cache | None = None,
) -> tuple[ConvLayer, ...]:
    """Read the convolution layers of a model.

    Parameters
    ----------
    uri
        Path of a model file, or a source URI.
    layout
        Axis order of 4-D kernels where the file cannot tell: "auto", "OIHW", "HWIO", "OHWI".
    transposed
        Globs of tensor names that are transposed convolutions.
    cache
        Where fetched files are kept; the user's cache by default.

    Returns
    -------
    tuple of ConvLayer
        In file order.

    Raises
    ------
    UsageError
        The URI is none.
    SourceError
        The file cannot be had or cannot be read.
    LayerError
        There is no such layout.
    """
    from filterdb.layers.detect import find_layers

    fetched = fetch(uri, cache=Cache() if cache is None else cache)
    return find_layers(open_raw(fetched), layout=layout, transposed=transposed).layers


def _companions_of(file: ModelFile, format_name: str) -> tuple[str, ...]:
    from filterdb.sources.formats import FORMATS, detect

    if format_name == "auto":
        try:
            format_name = detect(file)
        except UnsupportedFormatError:
            # Whoever opens the file says so; having it is no error.
            return ()
    if format_name not in FORMATS:
        raise UnknownNameError("format", format_name, FORMATS)
    try:
        names = FORMATS[format_name].companions(file)
    except (MalformedFileError, UnsupportedFormatError):
        # A file that is not what it should be: whoever opens it says so.
        return ()
    for name in names:
        try:
            check_member(name)
        except UsageError as error:
            raise UnsafeCheckpointError(f"{file.name} asks for companion {name!r}") from error
    return names


class _Run:
    """One call of fetch: the archive is obtained at most once, and only if it is needed."""

    def __init__(
        self, cache: Cache, base: Path, sha256: str | None, progress: ProgressHook | None
    ) -> None:
        self.cache, self.base, self.progress = cache, base, progress
        self.archive_hash = sha256
        self.pinned: list[str] = []
        self._archive: Stored | None = None

    def obtain(self, uri: SourceUri) -> Stored:
        """Bring the file a URI names."""
        request = Request(uri.archive, self.cache, self.base, self.archive_hash, self.progress)
        if not uri.nested:
            if uri.scheme in ("pypi", "npm"):
                raise self._no_member(uri, self._whole(request))
            return self._whole(request)
        return self._member(uri, request)

    def companion(self, uri: SourceUri, name: str) -> Stored:
        """Bring a file that lies beside it."""
        sibling = uri.sibling(name)
        run = self if sibling.archive == uri.archive else self._beside()
        try:
            return run.obtain(sibling)
        except SourceError as error:
            if type(error) is not SourceError:
                raise
            raise MissingCompanionError(
                f"{uri.file_name} needs {name!r}: {error.message}", tip=error.tip
            ) from error

    def _beside(self) -> _Run:
        run = _Run(self.cache, self.base, None, self.progress)
        run.pinned = self.pinned
        return run

    def _whole(self, request: Request) -> Stored:
        if self._archive is None:
            self._archive = find_origin(request.uri.scheme)(request)
            self.archive_hash = self._archive.sha256
            self._pin(self._archive)
        return self._archive

    def _member(self, uri: SourceUri, request: Request) -> Stored:
        # A member is known by its archive's hash and its path: whoever has it needs no archive.
        digest = agreed_sha256(request) or self._whole(request).sha256
        self.archive_hash = digest
        key = member_key(digest, uri.nested)
        stored = self.cache.find(key)
        if stored is None:
            holder = self._holder(uri, request)

            def fill(sink: Sink) -> Filled:
                take_out(uri, holder.path, sink.write, bring=self.companion)
                return Filled(uri.file_name)

            stored = self.cache.get(key, fill)
        self._pin(stored)
        resolved = self._archive.uri if self._archive is not None else str(uri.archive)
        base = parse_uri(resolved) if resolved else uri.archive
        return replace(stored, uri=str(replace(base, members=(*base.members, *uri.nested))))

    def _holder(self, uri: SourceUri, request: Request) -> Stored:
        """Bring the container the last member lies in."""
        if len(uri.nested) == 1:
            return self._whole(request)
        return self._member(replace(uri, members=uri.members[:-1]), request)

    def is_cached(self, stored: Stored) -> bool:
        """Tell a file of the cache from one that is read where it lies."""
        return stored.path.is_relative_to(self.cache.root)

    def _pin(self, stored: Stored) -> None:
        if self.is_cached(stored):
            self.pinned.append(stored.sha256)

    def _no_member(self, uri: SourceUri, archive: Stored) -> UsageError:
        return UsageError(
            f"{uri} names no member",
            tip=f"add one: {largest_members(archive.path, str(uri))}",
        )
