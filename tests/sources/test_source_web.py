"""Web addresses and buckets by fsspec, from servers on loopback."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import random
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import requests

from filterdb.errors import FetchError, HashMismatchError, SourceError, UnsafeCheckpointError
from filterdb.sources import Cache, fetch
from filterdb.sources.origins import download, web
from filterdb.sources.stored import Sink
from tests.sources.loopback import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.sources.loopback import Site

CONTENT = random.Random(3).randbytes(300_000)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def _sessions_are_closed() -> Iterator[None]:
    """Collect clients while the loop they belong to still runs."""
    yield
    gc.collect()


def test_a_web_file_comes_and_is_known_again(site: Site, cache: Cache) -> None:
    url = site.add("/d/a%20net.pt", CONTENT)
    told: list[tuple[str, int, int | None]] = []
    fetched = fetch(
        f"{url}?token=1", cache=cache, format="torch", progress=lambda *event: told.append(event)
    )
    assert fetched.file.path.read_bytes() == CONTENT
    assert fetched.archive_sha256 == fetched.member_sha256 == sha(CONTENT)
    assert fetched.uri == f"{url}?token=1"
    assert told[-1][1:] == (len(CONTENT), len(CONTENT))
    assert len(site.gets("/d/a%20net.pt")) == 1
    again = fetch(f"{url}?token=1", cache=cache, format="torch")
    assert again.file.path == fetched.file.path
    assert len(site.gets("/d/a%20net.pt")) == 1


def test_a_file_that_changed_is_fetched_again(site: Site, cache: Cache) -> None:
    url = site.add("/m.pt", CONTENT)
    fetch(url, cache=cache, format="torch")
    site.add("/m.pt", b"new")
    assert fetch(url, cache=cache, format="torch").file.path.read_bytes() == b"new"
    with pytest.raises(HashMismatchError, match=f"expected {'1' * 64}, got {sha(b'new')}"):
        fetch(url, cache=cache, archive_sha256="1" * 64, format="torch")


def test_a_known_hash_asks_nothing(site: Site, cache: Cache) -> None:
    url = site.add("/m.pt", CONTENT)
    fetch(url, cache=cache, archive_sha256=sha(CONTENT), format="torch")
    asked = len(site.requests)
    fetch(url, cache=cache, archive_sha256=sha(CONTENT), format="torch")
    assert len(site.requests) == asked


@pytest.mark.parametrize("ranges", [True, False])
def test_a_dropped_line_is_taken_up_again(site: Site, cache: Cache, ranges: bool) -> None:
    url = site.add("/m.pt", CONTENT)
    site.ranges = ranges
    whole = site.files["/m.pt"]
    site.faults["/m.pt"] = [Answer(CONTENT, headers=whole.headers, drop=150_000)]
    fetched = fetch(url, cache=cache, format="torch")
    assert fetched.member_sha256 == sha(CONTENT)


def test_a_line_that_keeps_dropping_says_how_far_it_came(site: Site, cache: Cache) -> None:
    url = site.add("/m.pt", CONTENT)
    site.ranges = False
    cut = Answer(CONTENT, headers=site.files["/m.pt"].headers, drop=1000)
    site.faults["/m.pt"] = [cut] * 20
    with pytest.raises(FetchError, match=r"m\.pt.* expected 300,000 bytes, got \d"):
        fetch(url, cache=cache)
    assert not list(cache.root.glob("objects/*/*"))


def test_starting_over_is_no_progress(site: Site, cache: Cache) -> None:
    url = site.add("/m.pt", CONTENT)
    site.ranges = False
    headers = site.files["/m.pt"].headers
    # The first part asked for tells that there are none; from then on every other try gets less.
    cuts = [150_000, *[150_000, 1] * 20]
    site.faults["/m.pt"] = [Answer(CONTENT, headers=headers, drop=n) for n in cuts]
    with pytest.raises(FetchError, match=r"m\.pt"):
        fetch(url, cache=cache)
    assert len(site.faults["/m.pt"]) > 20


def test_a_server_that_stumbles_is_asked_again(site: Site, cache: Cache) -> None:
    url = site.add("/m.pt", CONTENT)
    site.faults["/m.pt"] = [Answer(b"", 500), Answer(b"", 503)]
    assert fetch(url, cache=cache, format="torch").bytes == len(CONTENT)


def test_a_server_that_is_down_is_retryable(site: Site, cache: Cache) -> None:
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:9/m\.pt"):
        fetch("http://127.0.0.1:9/m.pt", cache=cache)
    site.files["/m.pt"] = Answer(b"", 502)
    with pytest.raises(FetchError, match="502"):
        fetch(site.url + "/m.pt", cache=cache)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(site: Site, cache: Cache, status: int) -> None:
    site.files["/m.pt"] = Answer(b"", status)
    with pytest.raises(SourceError, match=f"{status}|no such file") as caught:
        fetch(site.url + "/m.pt?key=secret", cache=cache)
    assert not isinstance(caught.value, FetchError)
    assert "secret" not in str(caught.value)


def test_a_redirect_is_followed(site: Site, cache: Cache) -> None:
    site.add("/there", CONTENT)
    site.files["/m.pt"] = Answer(b"", 302, {"Location": "/there"})
    assert fetch(site.url + "/m.pt", cache=cache, format="torch").bytes == len(CONTENT)


def test_transfer_is_not_compressed(site: Site, cache: Cache) -> None:
    fetch(site.add("/m.pt", CONTENT), cache=cache, format="torch")
    assert {headers["accept-encoding"] for headers in site.gets("/m.pt")} == {"identity"}


def test_what_announces_too_much_is_refused(
    site: Site, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MAX_BYTES", 1000)
    with pytest.raises(UnsafeCheckpointError, match="300,000 bytes, 1,000 is the most"):
        fetch(site.add("/m.pt", CONTENT), cache=cache)


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000])
def test_an_announced_length_that_is_no_number_counts_for_nothing(
    site: Site, tmp_path: Path, length: str
) -> None:
    url = site.add("/m.pt", CONTENT)
    headers = {"Content-Length": length, "Connection": "close"}
    site.faults["/m.pt"] = [Answer(CONTENT, headers=headers)]
    with (tmp_path / "m.pt").open("wb") as file, requests.Session() as session:
        sink = Sink(file)
        with contextlib.suppress(FetchError):
            download.download(session, download.Download(url, "m.pt"), sink)


def test_companions_lie_beside(site: Site, cache: Cache) -> None:
    url = site.add("/d/m.param", b"7767517\n2 2\n")
    site.add("/d/m.bin", bytes(8))
    fetched = fetch(url, cache=cache)
    assert fetched.file.companions["m.bin"].read_bytes() == bytes(8)


def test_other_file_systems_of_fsspec_serve_too(cache: Cache) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/folder/m.pt", CONTENT)
    assert fetch("memory://folder/m.pt", cache=cache, format="torch").bytes == len(CONTENT)
    memory.pipe("/folder/m.pt", b"changed")
    assert fetch("memory://folder/m.pt", cache=cache, format="torch").bytes == 7
    with pytest.raises(SourceError, match="no such file"):
        fetch("memory://folder/none.pt", cache=cache)
    with pytest.raises(SourceError, match="is a folder"):
        fetch("memory://folder", cache=cache)


def test_a_protocol_that_lacks_its_package_is_said(cache: Cache) -> None:
    pytest.importorskip("fsspec")
    try:
        import adlfs  # noqa: F401
    except ImportError:
        with pytest.raises(SourceError, match="install"):
            fetch("abfs://container/m.pt", cache=cache)
    else:
        pytest.skip("adlfs is installed")


class Bucket:
    """The reading half of the object store's protocol."""

    def __init__(self, site: Site) -> None:
        self.site = site
        site.routes.append(self.answer)

    def answer(self, method: str, target: str) -> Answer | None:
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        if bucket != "bucket":
            return self.error(404, "NoSuchBucket")
        if not key:
            return self.list(query.get("prefix", [""])[0])
        found = self.site.files.get(f"/bucket/{key}")
        if found is None:
            return self.error(404, "NoSuchKey")
        headers = self.site.requests[-1][2]
        answer = self.site.part(found, headers)
        said = {"Last-Modified": "Mon, 02 Jan 2023 03:04:05 GMT", "Accept-Ranges": "bytes"}
        return Answer(answer.body, answer.status, {**answer.headers, **said}, drop=answer.drop)

    def list(self, prefix: str) -> Answer:
        keys = [path.removeprefix("/bucket/") for path in self.site.files]
        rows = "".join(
            f"<Contents><Key>{key}</Key><Size>1</Size><ETag>x</ETag>"
            "<LastModified>2023-01-02T03:04:05.000Z</LastModified></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        count = rows.count("<Key>")
        body = (
            f"<ListBucketResult><Name>bucket</Name><KeyCount>{count}</KeyCount>"
            f"<IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        )
        return Answer(body.encode(), headers={"Content-Type": "application/xml"})

    def error(self, status: int, code: str) -> Answer:
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
        return Answer(body.encode(), status, {"Content-Type": "application/xml"})


@pytest.fixture
def bucket(site: Site, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return Bucket(site)


def test_a_bucket_s_file_comes_by_its_key(bucket: Bucket, site: Site, cache: Cache) -> None:
    site.add("/bucket/nets/a b#1.pt", CONTENT)
    fetched = fetch("s3://bucket/nets/a b%231.pt", cache=cache, format="torch")
    assert fetched.file.path.read_bytes() == CONTENT
    assert fetched.file.name == "a b#1.pt"
    authorised = [h for _, _, h in site.requests if "authorization" in h]
    assert len(authorised) == len(site.requests)


def test_a_public_bucket_needs_no_log_in(
    bucket: Bucket, site: Site, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    site.add("/bucket/m.pt", CONTENT)
    assert fetch("s3://bucket/m.pt", cache=cache, format="torch").bytes == len(CONTENT)


def test_what_a_bucket_lacks_is_said(bucket: Bucket, cache: Cache) -> None:
    for uri in ("s3://bucket/none.pt", "s3://nobucket/none.pt"):
        with pytest.raises(SourceError, match=r"none\.pt") as caught:
            fetch(uri, cache=cache)
        assert not isinstance(caught.value, FetchError)


def test_an_answer_that_is_not_the_part_asked_for_never_gets_into_the_file(
    tmp_path: Path, site: Site
) -> None:
    body = bytes(range(256)) * 400
    site.add("/m.bin", body)
    # The line breaks; then something in between answers with a page of its own.
    page = Answer(b"<html>please log in</html>")
    site.faults["/m.bin"] = [Answer(body, drop=5000), page]
    site.ranges = False
    fetched = fetch(f"{site.url}/m.bin", cache=Cache(tmp_path / "cache"))
    assert fetched.file.path.read_bytes() == body
