"""Packages by the real npm client, from a registry on loopback."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
from typing import TYPE_CHECKING

import pytest

from filterdb.errors import FetchError, HashMismatchError, SourceError
from filterdb.sources import Cache, fetch
from tests.sources.loopback import Answer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sources.loopback import Site

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm client")
MODEL = bytes(range(256)) * 40


def tarball(folder: Path) -> bytes:
    """Pack a package whose every script would leave a mark."""
    mark = f"touch {folder}/ran"
    scripts = dict.fromkeys(["prepare", "prepack", "postpack", "preinstall", "install"], mark)
    package = {"name": "@me/net", "version": "1.0.0", "scripts": scripts}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in (
            ("package/package.json", json.dumps(package).encode()),
            ("package/m.tflite", MODEL),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def registry(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Site, bytes]:
    content = tarball(tmp_path)
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    url = site.add("/@me/net/-/net-1.0.0.tgz", content)
    version = {
        "name": "@me/net",
        "version": "1.0.0",
        "dist": {"tarball": url, "integrity": integrity},
    }
    page = {"name": "@me/net", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    site.files["/@me%2fnet"] = Answer(
        json.dumps(page).encode(), headers={"Content-Type": "application/json"}
    )
    monkeypatch.setenv("npm_config_registry", site.url)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    return site, content


@needs_npm
def test_a_tarball_comes_as_the_registry_has_it(
    registry: tuple[Site, bytes], cache: Cache, tmp_path: Path
) -> None:
    site, content = registry
    digest = hashlib.sha256(content).hexdigest()
    uri = "npm:@me/net@1.0.0!/package/m.tflite"
    fetched = fetch(uri, cache=cache, archive_sha256=digest, format="tflite")
    assert fetched.file.path.read_bytes() == MODEL
    assert (fetched.archive_sha256, fetched.uri) == (digest, uri)
    assert not (tmp_path / "ran").exists()
    asked = len(site.requests)
    assert fetch(uri, cache=cache, format="tflite") == fetched
    assert len(site.requests) == asked


@needs_npm
def test_what_the_registry_lacks_is_final_and_what_fails_is_not(
    registry: tuple[Site, bytes], cache: Cache
) -> None:
    site, _ = registry
    with pytest.raises(SourceError, match="ETARGET") as caught:
        fetch("npm:@me/net@2.0.0!/package/m.tflite", cache=cache)
    assert not isinstance(caught.value, FetchError)
    with pytest.raises(SourceError, match="E404") as caught:
        fetch("npm:nothing@2.0.0!/package/m.tflite", cache=cache)
    assert not isinstance(caught.value, FetchError)
    site.files["/@me/net/-/net-1.0.0.tgz"] = Answer(b"", 500)
    with pytest.raises(FetchError, match="E500"):
        fetch("npm:@me/net@1.0.0!/package/m.tflite", cache=cache)


@needs_npm
def test_wrong_bytes_are_refused(
    registry: tuple[Site, bytes], cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site, content = registry
    uri = "npm:@me/net@1.0.0!/package/m.tflite"
    with pytest.raises(HashMismatchError, match=f"expected {'0' * 64}"):
        fetch(uri, cache=cache, archive_sha256="0" * 64)
    site.files["/@me/net/-/net-1.0.0.tgz"] = Answer(content[:-1] + b"!")
    # npm keeps the right bytes by their hash and need not ask again.
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "another npm"))
    with pytest.raises(SourceError, match="EINTEGRITY"):
        fetch(uri, cache=Cache(cache.root.parent / "empty"))


def test_without_npm_there_is_one_clear_error(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match=r"npm:a@1.0.0 needs the npm client.*Node.js") as caught:
        fetch("npm:a@1.0.0!/package/x", cache=cache)
    assert not isinstance(caught.value, FetchError)


@needs_npm
@pytest.mark.packages
def test_a_real_package_has_the_catalogue_s_hash(tmp_path: Path) -> None:
    fetched = fetch(
        "npm:@shiguredo/virtual-background@2023.2.0!/package/dist/selfie_segmentation.tflite",
        cache=Cache(tmp_path / "cache"),
        archive_sha256="21e78608121fc63e16013d537d19ae4360bfdc9947dd706bed7c1e4213c140dc",
    )
    assert fetched.bytes == 249_024
