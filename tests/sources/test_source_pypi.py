"""Packages: the right file of a release by its hash, over lines that fail."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from filterdb.catalog import load_catalogue, parse_uri
from filterdb.errors import (
    FetchError,
    HashMismatchError,
    SourceError,
    UnsupportedFormatError,
    UsageError,
)
from filterdb.sources import Cache, Fetched, fetch, fetch_many
from filterdb.sources.origins.pypi import index_url, pip_setting
from tests.sources.loopback import Answer

if TYPE_CHECKING:
    from tests.sources.loopback import Site

MODEL = bytes(range(256)) * 12_000
JSON = "application/vnd.pypi.simple.v1+json"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(note: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("net/weights.pt", MODEL)
        archive.writestr("net/__init__.py", note)
    return buffer.getvalue()


def sdist() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in (
            ("net-1.0/setup.py", b"raise SystemExit('ran')"),
            ("net-1.0/net/weights.pt", MODEL),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


WHEEL, OTHER, SDIST = wheel(), wheel(b"other"), sdist()
FILES = {
    "net-1.0-py3-none-any.whl": WHEEL,
    "net-1.0-cp39-cp39-manylinux1_x86_64.whl": OTHER,
    "net-1.0.tar.gz": SDIST,
    "net-2.0-py3-none-any.whl": WHEEL,
    "solo-1.0-py3-none-any.whl": WHEEL,
}


def publish(site: Site, project: str, *, sizes: bool = True, hashes: bool = True) -> None:
    """Put a project's page and files on an index."""
    listed = []
    for name, content in FILES.items():
        if not name.startswith(f"{project}-"):
            continue
        url = site.add(f"/files/{name}", content)
        record = {
            "filename": name,
            "url": url,
            "hashes": {"sha256": sha(content)} if hashes else {},
            "yanked": name.startswith("net-1.0-cp39"),
        }
        listed.append(record | ({"size": len(content)} if sizes else {}))
    page = {"meta": {"api-version": "1.1"}, "name": project, "versions": ["1.0"], "files": listed}
    body = json.dumps(page).encode()
    site.files[f"/simple/{project}/"] = Answer(body, headers={"Content-Type": JSON})


@pytest.fixture
def index(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """An index on loopback, configured as a user's own."""
    publish(site, "net")
    publish(site, "solo")
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple")
    return site


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("net-1.0-py3-none-any.whl", "net/weights.pt"),
        ("net-1.0-cp39-cp39-manylinux1_x86_64.whl", "net/weights.pt"),
        ("net-1.0.tar.gz", "net-1.0/net/weights.pt"),
    ],
)
def test_the_hash_chooses_the_file(index: Site, cache: Cache, name: str, member: str) -> None:
    digest = sha(FILES[name])
    by_catalogue = fetch(
        f"pypi:net==1.0!/{member}", cache=cache, archive_sha256=digest, format="torch"
    )
    assert by_catalogue.file.path.read_bytes() == MODEL
    assert (by_catalogue.archive_sha256, by_catalogue.bytes) == (digest, len(MODEL))
    assert len(index.gets(f"/files/{name}")) == 1
    asked = len(index.requests)
    by_uri = fetch(f"pypi:net==1.0?sha256={digest}!/{member}", cache=cache, format="torch")
    assert by_uri.member_sha256 == by_catalogue.member_sha256
    assert len(index.requests) == asked


def test_the_name_chooses_the_file(index: Site, cache: Cache) -> None:
    uri = "pypi:net==1.0?file=net-1.0.tar.gz!/net-1.0/net/weights.pt"
    assert fetch(uri, cache=cache, format="torch").archive_sha256 == sha(SDIST)
    with pytest.raises(SourceError, match=r"has no file 'net-1.0.zip'; it has net-1.0-py3"):
        fetch("pypi:net==1.0?file=net-1.0.zip!/x", cache=cache)


def test_several_files_and_no_hash_are_listed(index: Site, cache: Cache) -> None:
    with pytest.raises(SourceError, match=r"net 1\.0 has 3 files") as caught:
        fetch("pypi:net==1.0!/net/weights.pt", cache=cache)
    message = str(caught.value)
    for name in list(FILES)[:3]:
        assert f"{name} ({len(FILES[name]):,} bytes, sha256 {sha(FILES[name])})" in message
    assert "archive_sha256" in message


def test_a_single_file_needs_no_hash(index: Site, cache: Cache) -> None:
    for version in ("1.0", "1", "1.0.0"):
        fetched = fetch(f"pypi:solo=={version}!/net/weights.pt", cache=cache, format="torch")
        assert fetched.archive_sha256 == sha(WHEEL)


@pytest.mark.parametrize(
    ("uri", "kind", "message"),
    [
        ("pypi:nothing==1.0!/x", SourceError, "no project 'nothing'"),
        ("pypi:net==3.0!/x", SourceError, r"no file of net 3.0 \(versions there are: .*2.0"),
        (f"pypi:net==1.0?sha256={'0' * 64}!/x", HashMismatchError, "has the sha256 0000"),
        ("pypi:solo==1.0", UsageError, r"names no member \(add one: !/net/weights.pt"),
        ("pypi:solo==1.0!/net/wieghts.pt", SourceError, "nearest: net/weights.pt"),
    ],
)
def test_what_is_not_there_is_said(
    index: Site, cache: Cache, uri: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        fetch(uri, cache=cache)
    assert not isinstance(caught.value, FetchError)


def test_a_hash_of_another_version_is_told(index: Site, cache: Cache) -> None:
    FILES_ONLY_IN_ONE = sha(SDIST)
    with pytest.raises(HashMismatchError, match=r"that is net-1.0.tar.gz of version 1.0"):
        fetch(f"pypi:net==2.0?sha256={FILES_ONLY_IN_ONE}!/x", cache=cache)
    with pytest.raises(HashMismatchError, match="another sha256 than the catalogue"):
        fetch(f"pypi:net==1.0?sha256={sha(SDIST)}!/x", cache=cache, archive_sha256=sha(WHEEL))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_dropped_line_is_taken_up_again(index: Site, cache: Cache, ranges: bool) -> None:
    path = "/files/solo-1.0-py3-none-any.whl"
    index.ranges = ranges
    whole = index.files[path]
    cut = [Answer(whole.body, headers=whole.headers, drop=n) for n in (1_500_000, 70_000)]
    index.faults[path] = cut
    fetched = fetch("pypi:solo==1.0!/net/weights.pt", cache=cache, format="torch")
    assert fetched.file.path.read_bytes() == MODEL
    asked = index.gets(path)
    assert len(asked) == 3
    if ranges:
        assert asked[1]["range"].startswith("bytes=")
        assert int(asked[1]["range"][6:-1]) > 0
        assert asked[1]["if-range"] == whole.headers["ETag"]


def test_a_file_that_changed_meanwhile_starts_anew(index: Site, cache: Cache) -> None:
    path = "/files/solo-1.0-py3-none-any.whl"
    old = bytes(len(WHEEL))
    index.faults[path] = [Answer(old, headers={"ETag": '"old"'}, drop=1_500_000)]
    fetched = fetch("pypi:solo==1.0!/net/weights.pt", cache=cache, format="torch")
    assert fetched.archive_sha256 == sha(WHEEL)


def test_a_line_that_keeps_dropping_says_how_far_it_came(index: Site, cache: Cache) -> None:
    path = "/files/solo-1.0-py3-none-any.whl"
    whole = index.files[path]
    index.ranges = False
    index.faults[path] = [Answer(whole.body, headers=whole.headers, drop=1000)] * 20
    with pytest.raises(FetchError, match=rf"expected {len(WHEEL):,} bytes, got [1-9]"):
        fetch("pypi:solo==1.0!/net/weights.pt", cache=cache)
    assert len(index.gets(path)) == 4
    assert not list(cache.root.glob("objects/*/*"))


def test_a_server_that_stumbles_is_asked_again(index: Site, cache: Cache) -> None:
    busy = Answer(b"", 503, {"Retry-After": "0"})
    index.faults["/simple/solo/"] = [Answer(b"", 500), busy]
    index.faults["/files/solo-1.0-py3-none-any.whl"] = [Answer(b"", 500), busy, Answer(b"", 429)]
    fetched = fetch("pypi:solo==1.0!/net/weights.pt", cache=cache, format="torch")
    assert fetched.bytes == len(MODEL)


def test_a_server_that_stays_down_is_retryable(index: Site, cache: Cache) -> None:
    index.faults["/simple/solo/"] = [Answer(b"", 500)] * 9
    with pytest.raises(FetchError, match="index's page of solo"):
        fetch("pypi:solo==1.0!/net/weights.pt", cache=cache)
    index.faults["/simple/solo/"] = []
    index.faults["/files/solo-1.0-py3-none-any.whl"] = [Answer(b"", 502)] * 9
    with pytest.raises(FetchError, match="answers 502"):
        fetch("pypi:solo==1.0!/net/weights.pt", cache=cache)


def test_a_refusal_is_not_asked_again(index: Site, cache: Cache) -> None:
    path = "/files/solo-1.0-py3-none-any.whl"
    for status in (403, 404, 410):
        index.files[path] = Answer(b"", status)
        index.requests.clear()
        with pytest.raises(SourceError, match=f"answers {status}") as caught:
            fetch("pypi:solo==1.0!/net/weights.pt", cache=cache)
        assert not isinstance(caught.value, FetchError)
        assert len(index.gets(path)) == 1


def test_wrong_bytes_are_refused(index: Site, cache: Cache) -> None:
    path = "/files/solo-1.0-py3-none-any.whl"
    index.files[path] = Answer(bytes(len(WHEEL)))
    expected = sha(WHEEL)
    with pytest.raises(HashMismatchError, match=f"expected {expected}, got [0-9a-f]{{64}}"):
        fetch("pypi:solo==1.0!/net/weights.pt", cache=cache)
    index.files[path] = Answer(WHEEL + b"more")
    with pytest.raises(HashMismatchError, match=r"bytes were announced, the server sends"):
        fetch("pypi:solo==1.0!/net/weights.pt", cache=cache)
    assert not list(cache.root.glob("objects/*/*"))


def test_a_slow_line_and_a_redirect_get_there(index: Site, cache: Cache) -> None:
    path = "/files/solo-1.0-py3-none-any.whl"
    whole = index.files[path]
    index.files["/elsewhere/x"] = Answer(whole.body, headers=whole.headers, pause=0.1)
    index.files[path] = Answer(b"", 302, {"Location": "/elsewhere/x"})
    told: list[tuple[str, int, int | None]] = []
    fetched = fetch(
        "pypi:solo==1.0!/net/weights.pt",
        cache=cache,
        format="torch",
        progress=lambda *event: told.append(event),
    )
    assert fetched.bytes == len(MODEL)
    assert told[-1] == ("solo-1.0-py3-none-any.whl", len(WHEEL), len(WHEEL))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_an_index_without_sizes_or_hashes_serves_too(index: Site, cache: Cache) -> None:
    publish(index, "solo", sizes=False, hashes=False)
    fetched = fetch(
        "pypi:solo==1.0!/net/weights.pt", cache=cache, archive_sha256=sha(WHEEL), format="torch"
    )
    assert fetched.bytes == len(MODEL)
    with pytest.raises(HashMismatchError, match="expected 0000"):
        fetch("pypi:solo==1.0!/net/weights.pt", cache=cache, archive_sha256="0" * 64)


def test_a_page_that_is_no_index_is_said(index: Site, cache: Cache) -> None:
    index.files["/simple/solo/"] = Answer(b"{", headers={"Content-Type": JSON})
    with pytest.raises(UnsupportedFormatError, match="not what an index answers"):
        fetch("pypi:solo==1.0!/x", cache=cache)
    index.files["/simple/solo/"] = Answer(b"hi", headers={"Content-Type": "image/png"})
    with pytest.raises(UnsupportedFormatError, match="not what an index answers"):
        fetch("pypi:solo==1.0!/x", cache=cache)


def test_a_log_in_never_shows(index: Site, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = index.url.replace("http://", "http://me:geheim@")
    monkeypatch.setenv("PIP_INDEX_URL", f"{secret}/simple")
    fetch("pypi:solo==1.0!/net/weights.pt", cache=cache, format="torch")
    assert index.gets("/simple/solo/")[0]["authorization"].startswith("Basic ")
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:geheim@127.0.0.1:9/simple")
    for uri in ("pypi:net==1.0!/x", "pypi:none==1.0!/x"):
        with pytest.raises(FetchError) as caught:
            fetch(uri, cache=cache)
        assert "geheim" not in str(caught.value)


def test_setup_py_is_never_run(index: Site, cache: Cache, tmp_path: Path) -> None:
    fetched = fetch(
        "pypi:net==1.0!/net-1.0/setup.py", cache=cache, archive_sha256=sha(SDIST), format="torch"
    )
    assert fetched.file.path.read_bytes().startswith(b"raise SystemExit")
    assert fetched.file.path.stat().st_mode & 0o111 == 0


def test_the_user_s_index_is_honoured(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path / "xdg"), "VIRTUAL_ENV": "/x"}
    first = {
        "PIP_INDEX_URL": "http://a/",
        "UV_DEFAULT_INDEX": "http://b/",
        "UV_INDEX_URL": "http://c/",
    }
    for expected in ("http://a/", "http://b/", "http://c/"):
        assert index_url(home | first) == expected
        first.pop(next(iter(first)))
    config = tmp_path / ".config" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True)
    config.write_text("[global]\nindex-url = http://100%%/d\nextra-index-url = a\n  b\n")
    assert index_url(home) == "http://100%%/d"
    special = tmp_path / "special.conf"
    special.write_text("[global]\nindex-url = http://e/\n[install]\nindex-url = http://f/\n")
    assert index_url(home | {"PIP_CONFIG_FILE": str(special)}) == "http://f/"
    assert index_url(home | {"PIP_CONFIG_FILE": "/dev/null"}) is None
    assert pip_setting("cert", home | {"PIP_CONFIG_FILE": str(special)}) in (
        None,
        pip_setting("cert", {"HOME": str(tmp_path), "VIRTUAL_ENV": "/x"}),
    )
    special.write_text("not a config file")
    assert index_url(home | {"PIP_CONFIG_FILE": str(special)}) == "http://100%%/d"


@pytest.mark.packages
def test_real_packages_come_by_their_hashes(shared_cache: Path | None, tmp_path: Path) -> None:
    catalogue = load_catalogue("smoke")
    cache = Cache(shared_cache or tmp_path / "cache")
    outcomes = dict(fetch_many(catalogue.entries, cache))
    assert len(outcomes) == len(catalogue.entries)
    for entry, fetched in outcomes.items():
        assert isinstance(fetched, Fetched), fetched
        assert fetched.archive_sha256 == entry.archive_sha256
        assert fetched.bytes == entry.bytes
        assert fetched.uri == str(parse_uri(entry.uri))
        cache.release(*fetched.objects)


@pytest.mark.packages
def test_a_real_release_lists_its_files(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    member = "wsi_tissue_tiler/tissue_identifier.pth"
    with pytest.raises(SourceError, match=r"has 2 files: .*281,313 bytes, sha256 [0-9a-f]{64}"):
        fetch(f"pypi:wsi-tissue-tiler==0.1.0!/{member}", cache=cache)
    names = {
        "wsi_tissue_tiler-0.1.0-py3-none-any.whl": member,
        "wsi_tissue_tiler-0.1.0.tar.gz": f"wsi_tissue_tiler-0.1.0/{member}",
    }
    fetched = [
        fetch(f"pypi:wsi-tissue-tiler==0.1.0?file={name}!/{path}", cache=cache)
        for name, path in names.items()
    ]
    assert {item.bytes for item in fetched} == {297_679}
    assert len({item.member_sha256 for item in fetched}) == 1
    assert len({item.archive_sha256 for item in fetched}) == 2
