"""Where files come from: one explicit table, scheme → module, imported at first use.

Each module exports ``ORIGIN``, a function from a :class:`Request` to a
:class:`~filterdb.sources.stored.Stored` file, and may export ``MEASURE``, which tells the size
before anything is fetched. Other packages add schemes by an entry point of group
``filterdb.sources``, named as the scheme, that gives such a module's ORIGIN.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from filterdb.errors import HashMismatchError
from filterdb.sources.stored import Stored

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from filterdb.catalog.uri import SourceUri
    from filterdb.sources.cache import Cache
    from filterdb.types import ProgressHook

#: Scheme → module below this package. Any scheme not listed is fsspec's.
MODULES = {
    "file": "local",
    "pypi": "pypi",
    "npm": "npm",
    "hf": "hub",
    "timm": "timm_tag",
    "init": "random_init",
}


@dataclass(frozen=True)
class Request:
    """One piece to be fetched: an archive, or a file that stands alone.

    Parameters
    ----------
    uri
        What to fetch, without members inside a container.
    cache
        Where it goes, and may be already.
    base
        Folder ``file:`` paths are relative to.
    sha256
        The hash it must have, if known.
    progress
        Told of bytes.
    """

    uri: SourceUri
    cache: Cache
    base: Path
    sha256: str | None = None
    progress: ProgressHook | None = None

    def tell(self, what: str, done: int, total: int | None) -> None:
        """Report progress, if somebody listens.

        Parameters
        ----------
        what
            The file.
        done, total
            Bytes so far, and in all if known.
        """
        if self.progress is not None:
            self.progress(what, done, total)


Origin: TypeAlias = Callable[[Request], Stored]
Measure: TypeAlias = Callable[[Request], int | None]


def find_origin(scheme: str) -> Origin:
    """Return what fetches a scheme.

    Parameters
    ----------
    scheme
        Lower case.

    Returns
    -------
    Origin
        Of another package's entry point, where one claims the scheme and filterdb does not.
    """
    if scheme not in MODULES:
        from importlib.metadata import entry_points

        for point in entry_points(group="filterdb.sources", name=scheme):
            plugin: Origin = point.load()
            return plugin
    origin: Origin = _module(scheme).ORIGIN
    return origin


def find_measure(scheme: str) -> Measure | None:
    """Return what tells a piece's size without fetching it.

    Parameters
    ----------
    scheme
        Lower case.

    Returns
    -------
    Measure or None
        None where that cannot be asked.
    """
    measure: Measure | None = getattr(_module(scheme), "MEASURE", None)
    return measure


def _module(scheme: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{MODULES.get(scheme, 'web')}")


def agreed_sha256(request: Request) -> str | None:
    """Return the hash a request must have: the catalogue's, the URI's, or both alike.

    Parameters
    ----------
    request
        Its ``sha256`` and its URI's parameter of that name.

    Returns
    -------
    str or None
        None where neither names one.

    Raises
    ------
    HashMismatchError
        Where they differ.
    """
    written = request.uri.parameters.get("sha256")
    if written and request.sha256 and written != request.sha256:
        raise HashMismatchError(
            f"{request.uri} names another sha256 than the catalogue: "
            f"expected {request.sha256}, got {written}"
        )
    return request.sha256 or written
