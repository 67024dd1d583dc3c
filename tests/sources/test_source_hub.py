"""The model hub's protocol, spoken by a server on loopback to the hub's real client."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
import pytest
from safetensors.numpy import save

from filterdb.errors import FetchError, HashMismatchError, SourceError, UnknownNameError
from filterdb.sources import Cache, fetch
from tests.sources.loopback import Answer, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sources.loopback import Site

WEIGHTS = save({"conv1.weight": np.arange(4 * 27, dtype=np.float32).reshape(4, 3, 3, 3)})
COMMIT, OLD = "a" * 40, "b" * 40
MODEL = "hf:timm/resnet18.a1_in1k@main!/model.safetensors"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub:
    """Repositories at commits: small files answer at once, large ones by a redirect."""

    def __init__(self, site: Site, store: Site) -> None:
        self.site, self.store = site, store
        self.files: dict[str, dict[str, bytes]] = {}
        self.revisions: dict[str, dict[str, str]] = {}
        self.large = re.compile(r".*\.(safetensors|bin)")
        self.token: str | None = None
        site.routes.append(self.answer)

    def publish(self, repository: str, files: dict[str, bytes], commit: str = COMMIT) -> None:
        self.files[f"{repository}@{commit}"] = files
        self.revisions.setdefault(repository, {})["main"] = commit
        self.revisions[repository][commit] = commit

    def answer(self, method: str, target: str) -> Answer | None:
        path = unquote(target.partition("?")[0])
        listing = re.fullmatch(r"/api/models/(.+?)(?:/tree/[^/]+|/revision/[^/]+)?", path)
        if listing:
            return self.list(listing[1], tree="/tree/" in path)
        found = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        if not found:
            return None
        repository, revision, name = found.groups()
        wanted = self.site.requests[-1][2].get("authorization")
        if repository not in self.revisions:
            return _refusal(401, "RepoNotFound")
        if self.token and wanted != f"Bearer {self.token}":
            return _refusal(403, "GatedRepo")
        commit = self.revisions[repository].get(revision)
        if commit is None:
            return _refusal(404, "RevisionNotFound")
        content = self.files[f"{repository}@{commit}"].get(name)
        if content is None:
            return _refusal(404, "EntryNotFound", {"X-Repo-Commit": commit})
        return self.file(content, name, commit)

    def file(self, content: bytes, name: str, commit: str) -> Answer:
        head = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not self.large.fullmatch(name):
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return Answer(content, headers={**head, "ETag": f'"{blob}"'})
        digest = sha(content)
        if f"/lfs/{digest}" not in self.store.files:
            self.store.add(f"/lfs/{digest}", content)
        head |= {
            "Location": f"{self.store.url}/lfs/{digest}?signature=x",
            "X-Linked-ETag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
        }
        return Answer(b"", 302, head)

    def list(self, repository: str, *, tree: bool) -> Answer:
        commit = self.revisions[repository]["main"]
        names = self.files[f"{repository}@{commit}"]
        if tree:
            body: object = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in names.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in names]
            body = {"id": repository, "sha": commit, "siblings": siblings}
        return Answer(json.dumps(body).encode(), headers={"Content-Type": "application/json"})


def _refusal(status: int, code: str, headers: dict[str, str] | None = None) -> Answer:
    return Answer(b"", status, {"X-Error-Code": code, **(headers or {})})


@pytest.fixture
def hub(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    files = {"model.safetensors": WEIGHTS, "config.json": b"{}", "sub/w.safetensors": WEIGHTS}
    # Large files lie on another host, as the real hub's do.
    with serve() as store:
        made = Hub(site, store)
        made.publish("timm/resnet18.a1_in1k", files)
        yield made


@pytest.mark.parametrize("name", ["model.safetensors", "sub/w.safetensors"])
def test_a_branch_becomes_its_commit(hub: Hub, cache: Cache, name: str) -> None:
    fetched = fetch(f"hf:timm/resnet18.a1_in1k@main!/{name}", cache=cache)
    assert fetched.uri == f"hf:timm/resnet18.a1_in1k@{COMMIT}!/{name}"
    assert fetched.file.path.read_bytes() == WEIGHTS
    assert fetched.member_sha256 == fetched.archive_sha256 == sha(WEIGHTS)
    assert fetched.file.name == name.rsplit("/", 1)[-1]


def test_no_revision_is_main_and_small_files_come_too(hub: Hub, cache: Cache) -> None:
    fetched = fetch("hf:timm/resnet18.a1_in1k!/config.json", cache=cache, format="tflite")
    assert fetched.uri == f"hf:timm/resnet18.a1_in1k@{COMMIT}!/config.json"
    assert fetched.bytes == 2


def test_a_commit_or_a_hash_that_is_cached_asks_nothing(hub: Hub, cache: Cache) -> None:
    first = fetch(MODEL, cache=cache)
    asked = len(hub.site.requests)
    assert fetch(first.uri, cache=cache) == first
    assert len(hub.site.requests) == asked
    by_hash = fetch(MODEL, cache=cache, archive_sha256=sha(WEIGHTS))
    assert (by_hash.file.path, by_hash.file.name) == (first.file.path, "model.safetensors")
    assert len(hub.site.requests) == asked


def test_a_branch_that_moved_is_noticed(hub: Hub, cache: Cache) -> None:
    hub.publish("timm/resnet18.a1_in1k", {"model.safetensors": WEIGHTS[:-4] + b"\0\0\0\1"}, OLD)
    moved = fetch(MODEL, cache=cache)
    assert f"@{OLD}!" in moved.uri
    hub.revisions["timm/resnet18.a1_in1k"]["main"] = COMMIT
    again = fetch(MODEL, cache=cache)
    assert f"@{COMMIT}!" in again.uri
    assert again.member_sha256 != moved.member_sha256
    with pytest.raises(HashMismatchError):
        fetch(MODEL, cache=Cache(cache.root.parent / "new"), archive_sha256=moved.member_sha256)


def test_a_timm_tag_is_its_repository(hub: Hub, cache: Cache) -> None:
    fetched = fetch("timm:resnet18.a1_in1k", cache=cache)
    assert fetched.uri == f"hf:timm/resnet18.a1_in1k@{COMMIT}!/model.safetensors"
    assert (fetched.file.name, fetched.init_of) == ("model.safetensors", None)


@pytest.mark.torch
@pytest.mark.slow
def test_timm_is_asked_where_the_tag_alone_does_not_do(hub: Hub, cache: Cache) -> None:
    without_tag = fetch("timm:resnet18", cache=cache)
    assert without_tag.uri == f"hf:timm/resnet18.a1_in1k@{COMMIT}!/model.safetensors"
    with pytest.raises(UnknownNameError, match="no architecture 'resnet81' in timm"):
        fetch("timm:resnet81.a1_in1k", cache=cache)
    with pytest.raises(UnknownNameError, match=r"nearest: resnet18\.a1_in1k"):
        fetch("timm:resnet18.a1_in2k", cache=cache)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf:nobody/none@main!/x", "no such repository"),
        ("hf:timm/resnet18.a1_in1k@v9!/model.safetensors", "no such revision"),
        (
            "hf:timm/resnet18.a1_in1k@main!/modle.safetensors",
            r"no such file \(nearest: model.safetensors",
        ),
    ],
)
def test_what_is_not_there_is_said(hub: Hub, cache: Cache, uri: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        fetch(uri, cache=cache)
    assert not isinstance(caught.value, FetchError)


def test_a_gated_repository_needs_a_token(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    with pytest.raises(SourceError, match="is gated"):
        fetch(MODEL, cache=cache)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch(MODEL, cache=cache).bytes == len(WEIGHTS)
    # The log-in is the hub's, not the other host's.
    assert not any("authorization" in headers for _, _, headers in hub.store.requests)


def test_wrong_bytes_are_refused_by_the_hub_s_own_hash(hub: Hub, cache: Cache) -> None:
    hub.store.add(f"/lfs/{sha(WEIGHTS)}", bytes(len(WEIGHTS)))
    with pytest.raises(HashMismatchError, match=f"expected {sha(WEIGHTS)}"):
        fetch(MODEL, cache=cache)


def test_a_hub_that_stumbles_is_asked_again_and_one_that_is_down_is_retryable(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/lfs/{sha(WEIGHTS)}"
    whole = Answer(WEIGHTS, headers={"ETag": '"x"'})
    hub.store.faults[path] = [Answer(b"", 503), Answer(WEIGHTS, headers=whole.headers, drop=100)]
    assert fetch(MODEL, cache=cache).bytes == len(WEIGHTS)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="the hub cannot be asked"):
        fetch(MODEL, cache=cache)


def test_companions_lie_in_the_same_repository(hub: Hub, cache: Cache) -> None:
    files = {"d/m.param": b"7767517\n2 2\n", "d/m.bin": bytes(8)}
    hub.publish("me/net", files)
    fetched = fetch("hf:me/net@main!/d/m.param", cache=cache, companions=("m.bin",))
    assert fetched.file.companions["m.bin"].read_bytes() == bytes(8)
    assert fetched.bytes == 20
