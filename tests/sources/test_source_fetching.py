"""From URI to files: local files, archives inside archives, companions, many at once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save

from filterdb.catalog import Entry, parse_uri, take_census
from filterdb.errors import (
    FilterDBError,
    HashMismatchError,
    MissingCompanionError,
    SourceError,
    UnknownNameError,
    UnsafeCheckpointError,
    UsageError,
)
from filterdb.sources import (
    Cache,
    Fetched,
    fetch,
    fetch_entry,
    fetch_many,
    look_up,
    open_raw,
    parse_location,
    read_layers,
)

if TYPE_CHECKING:
    from tests.sources.loopback import Site

WEIGHTS = save({"stem.weight": np.arange(4 * 3 * 9, dtype=np.float32).reshape(4, 3, 3, 3)})
PARAM = b"7767517\n2 2\nInput data 0 1 data\n"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_local_file_is_read_where_it_lies(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(WEIGHTS)
    told: list[tuple[str, int, int | None]] = []
    fetched = fetch(path, cache=cache, progress=lambda *event: told.append(event))
    assert fetched.file.path == path
    assert fetched.member_sha256 == fetched.archive_sha256 == sha(WEIGHTS)
    assert (fetched.bytes, fetched.objects) == (len(WEIGHTS), ())
    assert told == [("m.safetensors", len(WEIGHTS), len(WEIGHTS))]
    assert not cache.root.exists()
    assert [t.name for t in open_raw(fetched).tensors] == ["stem.weight"]
    relative = fetch("file:m.safetensors", base=tmp_path, cache=cache)
    assert relative.file.path == path


def test_layers_come_from_a_bare_path(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b%!.safetensors").write_bytes(WEIGHTS)
    monkeypatch.chdir(tmp_path)
    (layer,) = read_layers("a b%!.safetensors", cache=cache)
    assert (layer.name, layer.kernel, layer.out_channels) == ("stem", (3, 3), 4)


def test_a_wrong_local_file_is_told_from_a_missing_one(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"abc")
    with pytest.raises(HashMismatchError, match=f"expected {'0' * 64}, got {sha(b'abc')}"):
        fetch(path, cache=cache, archive_sha256="0" * 64)
    with pytest.raises(SourceError, match=r"modle.pt' is not there \(nearest: model.pt\)"):
        fetch(tmp_path / "modle.pt", cache=cache)
    with pytest.raises(SourceError, match="is a folder"):
        fetch(tmp_path, cache=cache)
    with pytest.raises(SourceError, match=r"no folder .*none' either"):
        fetch(tmp_path / "none" / "x.pt", cache=cache)


def test_nested_containers_are_entered(tmp_path: Path, cache: Cache) -> None:
    inner = zipped({"deep/m.safetensors": WEIGHTS})
    outer = zipped({"data/in%ner!.zip": inner})
    (tmp_path / "outer.whl").write_bytes(outer)
    uri = "file:outer.whl!/data/in%25ner%21.zip!/deep/m.safetensors"
    fetched = fetch(uri, base=tmp_path, cache=cache)
    assert fetched.file.path.read_bytes() == WEIGHTS
    assert fetched.file.name == "m.safetensors"
    assert fetched.uri == uri
    assert (fetched.archive_sha256, fetched.member_sha256) == (sha(outer), sha(WEIGHTS))
    bare = fetch(f"{tmp_path}/outer.whl!/data/in%ner!.zip!/deep/m.safetensors", cache=cache)
    assert bare.file.path == fetched.file.path


def test_a_member_that_is_no_container_is_said(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "o.zip").write_bytes(zipped({"m.safetensors": WEIGHTS}))
    with pytest.raises(SourceError, match=r"o.zip!/m.safetensors is no container"):
        fetch("file:o.zip!/m.safetensors!/x", base=tmp_path, cache=cache)
    with pytest.raises(SourceError, match=r"nearest: m.safetensors"):
        fetch("file:o.zip!/n.safetensors", base=tmp_path, cache=cache)


def test_companions_are_hashed_with_the_file(tmp_path: Path, cache: Cache) -> None:
    archive = zipped({"d/m.param": PARAM, "d/m.bin": b"\0" * 40, "d/s/x.bin": b"1"})
    (tmp_path / "a.zip").write_bytes(archive)
    fetched = fetch(
        "file:a.zip!/d/m.param",
        base=tmp_path,
        cache=cache,
        companions=("m.bin", "s/x.bin"),
        format="ncnn",
    )
    lines = sorted(
        [f"m.param {sha(PARAM)}\n", f"m.bin {sha(bytes(40))}\n", f"s/x.bin {sha(b'1')}\n"]
    )
    assert fetched.member_sha256 == sha("".join(lines).encode())
    assert fetched.bytes == len(PARAM) + 41
    assert fetched.file.companions["s/x.bin"].read_bytes() == b"1"
    assert len(fetched.objects) == 3


def test_a_reader_names_the_companions_nobody_listed(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "m.param").write_bytes(PARAM)
    (tmp_path / "m.bin").write_bytes(b"\0" * 8)
    fetched = fetch(tmp_path / "m.param", cache=cache)
    assert fetched.file.companions == {"m.bin": tmp_path / "m.bin"}


def test_a_missing_companion_is_its_own_error(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "m.param").write_bytes(PARAM)
    with pytest.raises(MissingCompanionError, match=r"m.param needs 'm.bin'"):
        fetch(tmp_path / "m.param", cache=cache)
    (tmp_path / "a.zip").write_bytes(zipped({"m.param": PARAM}))
    with pytest.raises(MissingCompanionError, match=r"m.param needs 'm.bin': .* has no member"):
        fetch("file:a.zip!/m.param", base=tmp_path, cache=cache, companions=("m.bin",))


def test_a_file_may_not_ask_for_files_outside_its_folder(tmp_path: Path, cache: Cache) -> None:
    manifest = [{"paths": ["../../../etc/passwd"], "weights": []}]
    model = {"format": "layers-model", "modelTopology": {}, "weightsManifest": manifest}
    (tmp_path / "model.json").write_text(json.dumps(model))
    with pytest.raises(UnsafeCheckpointError, match="passwd"):
        fetch(tmp_path / "model.json", cache=cache)


def test_an_archive_is_not_asked_for_once_its_members_are_out(site: Site, cache: Cache) -> None:
    archive = zipped({"m.safetensors": WEIGHTS, "n.safetensors": WEIGHTS + b""})
    url = site.add("/a.zip", archive)
    first = fetch(f"{url}!/m.safetensors", cache=cache, archive_sha256=sha(archive))
    cache.release(*first.objects)
    assert cache.info().n_in_use == 0
    asked = len(site.requests)
    assert asked > 0
    # Another process; the archive itself is gone from the cache, its member is not.
    (next(iter(cache.root.glob(f"objects/*/{sha(archive)}")))).unlink()
    again = Cache(cache.root)
    second = fetch(f"{url}!/m.safetensors", cache=again, archive_sha256=sha(archive))
    assert second == first
    assert len(site.requests) == asked


def test_what_is_fetched_stays_in_use_until_released(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", limit=10)
    (tmp_path / "a.zip").write_bytes(zipped({"m.safetensors": WEIGHTS, "n": b"n" * 100}))
    held = fetch("file:a.zip!/m.safetensors", base=tmp_path, cache=cache)
    fetch("file:a.zip!/n", base=tmp_path, cache=cache, format="torch")
    assert held.file.path.read_bytes() == WEIGHTS
    cache.release(*held.objects)
    other = fetch("file:a.zip!/n", base=tmp_path, cache=cache, format="torch")
    assert other.file.path.exists()
    with pytest.raises(SourceError):
        fetch("file:a.zip!/m.safetensors", base=tmp_path, cache=cache, companions=("no",))
    cache.release(*other.objects, *other.objects)
    assert cache.info().n_in_use == 0


def test_what_is_fetched_travels_to_workers(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "m.param").write_bytes(PARAM)
    (tmp_path / "m.bin").write_bytes(b"\0" * 8)
    fetched = fetch(tmp_path / "m.param", cache=cache)
    assert pickle.loads(pickle.dumps(fetched)) == fetched


def test_unknown_formats_name_the_nearest(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "m").write_bytes(b"?")
    assert fetch(tmp_path / "m", cache=cache).bytes == 1
    with pytest.raises(UnknownNameError, match=r"nearest: .*torch"):
        fetch(tmp_path / "m", cache=cache, format="torhc")


def test_paths_uris_and_what_looks_like_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_location("pypi:a==1!/b") == parse_uri("pypi:a==1!/b")
    assert str(parse_location("dir/a#b.pt")) == "file:dir/a%23b.pt"
    Path("file:odd.pt").write_bytes(b"")
    assert parse_location("file:odd.pt").body == "file:odd.pt"
    assert parse_location("no.zip!/m.pt").members == ("m.pt",)


def entries(tmp_path: Path) -> list[Entry]:
    archive = zipped({f"m{i}.safetensors": WEIGHTS + bytes(0) for i in range(3)})
    (tmp_path / "a.zip").write_bytes(archive)
    (tmp_path / "b.safetensors").write_bytes(WEIGHTS)
    known = {"archive_sha256": sha(archive), "base": str(tmp_path)}
    return [
        *(Entry(id=f"m{i}", uri=f"file:a.zip!/m{i}.safetensors", **known) for i in range(3)),
        Entry(id="b", uri="file:b.safetensors", base=str(tmp_path)),
        Entry(id="gone", uri="file:gone.pt", base=str(tmp_path)),
        Entry(id="lost", uri="file:a.zip!/lost.pt", **known),
        Entry(id="odd", uri="init:timm/resnet81", base=str(tmp_path), format="torhc"),
    ]


@pytest.mark.parametrize("workers", [1, 4])
def test_many_come_with_their_outcomes(tmp_path: Path, cache: Cache, workers: int) -> None:
    chosen = entries(tmp_path)[:-1]
    outcomes = {entry.id: out for entry, out in fetch_many(chosen, cache, workers=workers)}
    assert set(outcomes) == {entry.id for entry in chosen}
    assert {name for name, out in outcomes.items() if isinstance(out, Exception)} == {
        "gone",
        "lost",
    }
    assert isinstance(outcomes["gone"], SourceError)
    assert "nearest" in str(outcomes["lost"])
    for name in ("m0", "m1", "m2", "b"):
        fetched = outcomes[name]
        assert isinstance(fetched, Fetched)
        assert fetched.file.path.read_bytes() == WEIGHTS


def test_each_archive_is_fetched_once(site: Site, cache: Cache) -> None:
    archive = zipped({f"m{i}.safetensors": WEIGHTS for i in range(6)})
    url = site.add("/a.zip", archive)
    chosen = [Entry(id=f"m{i}", uri=f"{url}!/m{i}.safetensors") for i in range(6)]
    told: list[tuple[str, int, int | None]] = []
    outcomes = [
        out for _, out in fetch_many(chosen, cache, progress=lambda *event: told.append(event))
    ]
    assert all(isinstance(out, Fetched) for out in outcomes)
    assert len(site.gets("/a.zip")) == 1
    assert told[-1] == ("a.zip", len(archive), len(archive))


def test_a_broken_cache_is_raised_not_yielded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache")
    with pytest.raises(FilterDBError, match="FILTERDB_CACHE"):
        list(fetch_many(entries(tmp_path)[:3], cache))


def test_leaving_early_stops_the_rest(site: Site, cache: Cache) -> None:
    urls = [site.add(f"/{i}.pt", bytes([i])) for i in range(30)]
    chosen = [Entry(id=f"m{i}", uri=url, format="torch") for i, url in enumerate(urls)]
    for _ in fetch_many(chosen, cache, workers=1):
        break
    assert len(site.requests) < 30


def test_what_would_be_fetched_is_looked_up_first(site: Site, cache: Cache) -> None:
    archive = zipped({"m.safetensors": WEIGHTS})
    url = site.add("/a.zip", archive)
    known = Entry(id="a", uri=f"{url}!/m.safetensors", archive_sha256=sha(archive), bytes=7)
    unknown = Entry(id="b", uri=site.url + "/none.pt", bytes=5)
    chosen = [known, unknown]
    silent = take_census(chosen, look_up(chosen, cache))
    assert (silent.bytes_to_fetch, silent.n_archives_of_unknown_size) == (12, 2)
    assert site.requests == []
    asked = take_census(chosen, look_up(chosen, cache, ask=True))
    assert (asked.bytes_to_fetch, asked.n_archives_of_unknown_size) == (len(archive) + 5, 1)
    fetch_entry(known, cache)
    after = take_census(chosen, look_up(chosen, cache))
    assert (after.n_archives_cached, after.bytes_cached) == (1, len(archive))


def test_a_random_twin_is_made_not_fetched(cache: Cache) -> None:
    twin = Entry(id="twin", uri="init:timm/resnet10t?seed=0", bytes=9)
    counted = take_census([twin], look_up([twin], cache, ask=True))
    assert (counted.n_archives_cached, counted.n_archives_to_fetch) == (1, 0)


def test_packages_need_a_member(cache: Cache) -> None:
    with pytest.raises(UsageError, match="NAME==VERSION"):
        fetch("pypi:numpy", cache=cache)
    with pytest.raises(UnknownNameError):
        fetch("pipy:numpy==1", cache=cache)
    assert not os.path.lexists(cache.root)
