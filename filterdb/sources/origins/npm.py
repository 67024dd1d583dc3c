"""``npm:[@scope/]NAME@VERSION`` — a package's tarball, by the user's own npm client.

``npm pack`` downloads the tarball as the registry has it and checks its integrity; with
``--ignore-scripts`` nothing of it runs, and nothing is installed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filterdb.errors import FetchError, HashMismatchError, SourceError
from filterdb.sources.origins import agreed_sha256
from filterdb.sources.origins.download import MAX_BYTES
from filterdb.sources.stored import Filled, Sink, Stored

if TYPE_CHECKING:
    from filterdb.sources.origins import Request

_TIMEOUT = 1800
_BLOCK = 1 << 20
#: npm's error codes that asking again does not change.
_FINAL_CODES = frozenset(
    ("E400", "E401", "E403", "E404", "E405", "ETARGET", "EINVALIDPACKAGENAME", "ENOVERSIONS")
)


def obtain(request: Request) -> Stored:
    """Fetch a package's tarball.

    Parameters
    ----------
    request
        ``npm:[@scope/]NAME@VERSION``.

    Returns
    -------
    Stored
        The tarball; its members lie below ``package/``.

    Raises
    ------
    SourceError
        Where there is no npm client, or no such package or version.
    FetchError
        Where the network failed.
    HashMismatchError
        Where the tarball is not the one the registry or the catalogue names.
    """
    expected = agreed_sha256(request)

    def fill(sink: Sink) -> Filled:
        with tempfile.TemporaryDirectory(prefix="filterdb-npm-") as folder:
            path = _pack(request.uri.body, Path(folder))
            size = path.stat().st_size
            if size > MAX_BYTES:
                raise SourceError(f"{request.uri}: the tarball takes {size:,} bytes")
            sink.reserve(size)
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    sink.write(block)
                    request.tell(path.name, sink.bytes, size)
        return Filled(path.name, str(request.uri))

    return request.cache.get(str(request.uri), fill, sha256=expected)


def _pack(specification: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError(
            f"npm:{specification} needs the npm client, and there is none on the PATH",
            tip="install Node.js with npm, or leave npm: entries out by --select",
        )
    command = [npm, "pack", "--ignore-scripts", "--json", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(
            # An exact name and version, checked by the URI's grammar: no path, no address, no flag.
            [*command, "--", specification],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"npm:{specification}: npm did not end in {_TIMEOUT} seconds") from error
    except OSError as error:
        raise SourceError(f"{npm} cannot be started: {error.strerror or error}") from error
    report = _read_report(done.stdout)
    if done.returncode != 0 or report is None:
        raise _explain(specification, done.stdout, done.stderr)
    path = folder / Path(str(report.get("filename", ""))).name
    if not path.is_file():
        tarballs = list(folder.glob("*.tgz"))
        if len(tarballs) != 1:
            raise SourceError(f"npm:{specification}: npm pack left {len(tarballs)} tarballs")
        path = tarballs[0]
    _check_integrity(path, str(report.get("integrity", "")), specification)
    return path


def _read_report(output: bytes) -> dict[str, Any] | None:
    try:
        report = json.loads(output)
    except ValueError:
        return None
    # A list up to npm 11, a mapping from name to record after it.
    if isinstance(report, dict):
        report = [report] if "filename" in report else list(report.values())
    if isinstance(report, list) and len(report) == 1 and isinstance(report[0], dict):
        return report[0]
    return None


def _check_integrity(path: Path, integrity: str, specification: str) -> None:
    algorithm, _, expected = integrity.partition("-")
    if algorithm not in ("sha512", "sha384", "sha256"):
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).digest()
    got = base64.b64encode(digest).decode()
    if got != expected:
        raise HashMismatchError(
            f"npm:{specification}: {algorithm} of {path.name} is not the one npm reports: "
            f"expected {expected}, got {got}"
        )


def _explain(specification: str, output: bytes, errors: bytes) -> SourceError:
    code, summary = "", ""
    try:
        failure = json.loads(output)["error"]
        code, summary = str(failure.get("code", "")), str(failure.get("summary", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        for line in errors.decode(errors="replace").splitlines():
            words = line.split()
            if "code" in words[:3]:
                code = code or words[-1]
            elif words[:1] == ["npm"] and not summary:
                summary = " ".join(words[2:])
    lines = summary.strip().splitlines()
    message = f"npm:{specification}: npm pack failed: {code} {lines[0] if lines else ''}".rstrip()
    if code in _FINAL_CODES:
        return SourceError(message, tip="the registry has no such package or version")
    return FetchError(message)


ORIGIN = obtain
