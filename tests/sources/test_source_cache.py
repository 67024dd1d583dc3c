"""The cache: atomic, shared by processes, bounded, and never a half file."""

from __future__ import annotations

import hashlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING

import pytest

from filterdb.errors import HashMismatchError, PipelineError, UsageError
from filterdb.files import file_sha256
from filterdb.sources.cache import Cache
from filterdb.sources.stored import Filled, Sink, Stored

if TYPE_CHECKING:
    from pathlib import Path


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Filler:
    """Fills a sink with some bytes and counts how often it is asked to."""

    def __init__(self, content: bytes, *, name: str = "m.pt", wait: float = 0.0) -> None:
        self.content, self.name, self.wait = content, name, wait
        self.calls = 0

    def __call__(self, sink: Sink) -> Filled:
        self.calls += 1
        time.sleep(self.wait)
        for start in range(0, len(self.content), 1000):
            sink.write(self.content[start : start + 1000])
        return Filled(self.name, "file:there")


def put(cache: Cache, key: str, content: bytes) -> Stored:
    stored = cache.get(key, Filler(content))
    cache.release(stored.sha256)
    return stored


def objects(cache: Cache) -> set[str]:
    return {path.name for path in cache.root.glob("objects/*/*")}


def test_a_file_is_filled_once_and_found_again(cache: Cache) -> None:
    fill = Filler(b"x" * 2500)
    first = cache.get("key", fill)
    second = cache.get("key", fill)
    assert first == second
    assert fill.calls == 1
    assert first.path.read_bytes() == fill.content
    assert (first.sha256, first.bytes, first.name) == (digest(fill.content), 2500, "m.pt")
    assert first.path.stat().st_mode & 0o222 == 0


def test_a_known_hash_is_found_under_any_name(cache: Cache) -> None:
    stored = put(cache, "key", b"abc")
    fill = Filler(b"other")
    assert cache.get("another key", fill, sha256=stored.sha256).path == stored.path
    assert fill.calls == 0
    assert cache.find("key", sha256=digest(b"other")) is None


def test_other_bytes_than_expected_are_not_kept(cache: Cache) -> None:
    with pytest.raises(HashMismatchError, match=f"expected {'0' * 64}, got {digest(b'abc')}"):
        cache.get("key", Filler(b"abc"), sha256="0" * 64)
    assert objects(cache) == set()
    assert list((cache.root / "tmp").iterdir()) == []
    assert cache.find("key") is None


def test_a_failing_fill_leaves_nothing(cache: Cache) -> None:
    def fill(sink: Sink) -> Filled:
        sink.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get("key", fill)
    assert objects(cache) == set()
    assert list((cache.root / "tmp").iterdir()) == []
    assert put(cache, "key", b"whole").bytes == 5


@pytest.mark.parametrize("damage", ["flip", "cut", "grow"])
def test_a_damaged_object_is_fetched_again(cache: Cache, damage: str) -> None:
    stored = put(cache, "key", b"abcdef")
    stored.path.chmod(0o644)
    stored.path.write_bytes({"flip": b"abcdeF", "cut": b"abc", "grow": b"abcdefg"}[damage])
    # Another process, which has verified nothing yet.
    other = Cache(cache.root, limit=None)
    assert other.find("key") is None
    fill = Filler(b"abcdef")
    assert other.get("key", fill).path.read_bytes() == b"abcdef"
    assert fill.calls == 1


def test_a_damage_later_in_the_same_process_is_seen_by_time_and_size(cache: Cache) -> None:
    stored = put(cache, "key", b"abcdef")
    stored.path.chmod(0o644)
    stored.path.write_bytes(b"abcdeF")
    os.utime(stored.path, ns=(1, 1))
    assert cache.find("key") is None


def test_a_damaged_index_entry_is_no_entry(cache: Cache) -> None:
    put(cache, "key", b"abc")
    (entry,) = cache.root.glob("index/*/*.json")
    for text in ("", "{", "[]", '{"key": "key"}', '{"key":"key","sha256":3,"bytes":1}'):
        entry.write_text(text)
        assert cache.find("key") is None
    assert put(cache, "key", b"abc").bytes == 3


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", limit=250)
    first, second = put(cache, "1", b"1" * 100), put(cache, "2", b"2" * 100)
    now = time.time_ns()
    os.utime(first.path, ns=(now - 2_000_000_000, first.path.stat().st_mtime_ns))
    os.utime(second.path, ns=(now - 1_000_000_000, second.path.stat().st_mtime_ns))
    found = cache.find("1")
    assert found is not None
    cache.release(found.sha256)
    third = put(cache, "3", b"3" * 100)
    assert objects(cache) == {first.sha256, third.sha256}
    assert cache.info().bytes == 200
    assert cache.find("2") is None
    assert cache.info().n_entries == 2


def test_what_is_in_use_is_never_dropped(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", limit=150)
    held = [cache.get(str(i), Filler(bytes([i]) * 100)) for i in range(4)]
    assert len(objects(cache)) == 4
    assert cache.info().n_in_use == 4
    assert cache.clear().n_kept == 4
    assert all(stored.path.read_bytes() for stored in held)
    cache.release(*(stored.sha256 for stored in held))
    cleared = cache.clear()
    assert (cleared.n_removed, cleared.bytes_removed, cleared.n_kept) == (4, 400, 0)
    assert cache.info().n_objects == cache.info().n_entries == 0


def test_twice_in_use_needs_two_releases(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", limit=None)
    stored = cache.get("1", Filler(b"a"))
    cache.get("1", Filler(b"a"))
    cache.release(stored.sha256)
    assert cache.info().n_in_use == 1
    cache.release(stored.sha256, stored.sha256)
    assert cache.info().n_in_use == 0


def test_another_process_marks_count_while_it_lives(cache: Cache) -> None:
    code = f"""
        import sys
        from filterdb.sources.cache import Cache
        from filterdb.sources.stored import Filled
        cache = Cache({str(cache.root)!r}, limit=None)
        cache.get("key", lambda sink: (sink.write(b"abc"), Filled("a"))[1])
        print("ready", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        assert cache.clear().n_kept == 1
        other.kill()
    assert cache.clear().n_removed == 1
    assert list((cache.root / "pins").iterdir()) == []


def test_threads_wait_for_one_another(cache: Cache) -> None:
    fill = Filler(b"x" * 100, wait=0.05)
    found: list[Stored] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.get("key", fill))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fill.calls == 1
    assert len({stored.path for stored in found}) == 1
    assert len(found) == 6


def test_two_processes_fill_once(cache: Cache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"""
        import os, time
        from filterdb.sources.cache import Cache
        from filterdb.sources.stored import Filled
        def fill(sink):
            with open({str(log)!r}, "a") as file:
                file.write("x")
            time.sleep(0.3)
            sink.write(b"abc")
            return Filled("a")
        print(Cache({str(cache.root)!r}, limit=None).get("key", fill).sha256)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate()[0].strip() for process in running}
    assert said == {digest(b"abc")}
    assert log.read_text() == "x"


def test_a_killed_process_leaves_no_half_object(cache: Cache) -> None:
    code = f"""
        import sys, time
        from filterdb.sources.cache import Cache
        from filterdb.sources.stored import Filled
        def fill(sink):
            sink.write(b"x" * 100_000)
            print("half", flush=True)
            time.sleep(60)
        Cache({str(cache.root)!r}, limit=None).get("key", fill)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(list((cache.root / "tmp").iterdir())) == 1
    assert objects(cache) == set()
    # The lock died with the process, and what it had begun is swept away.
    assert put(cache, "key", b"whole").path.read_bytes() == b"whole"
    assert list((cache.root / "tmp").iterdir()) == []
    assert objects(cache) == {digest(b"whole")}


def test_kills_at_any_moment_leave_whole_objects_only(cache: Cache) -> None:
    code = f"""
        import itertools
        from filterdb.sources.cache import Cache
        from filterdb.sources.stored import Filled
        cache = Cache({str(cache.root)!r}, limit=60_000)
        print("go", flush=True)
        for i in itertools.count():
            def fill(sink):
                for _ in range(20):
                    sink.write(i.to_bytes(4, "little") * 250)
                return Filled("a")
            cache.release(cache.get(f"key {{i % 50}} {{i}}", fill).sha256)
    """
    for delay in (0.0, 0.005, 0.02, 0.05, 0.08, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        for path in cache.root.glob("objects/*/*"):
            assert file_sha256(path) == path.name
        for path in cache.root.glob("index/*/*.json"):
            assert path.stat().st_size > 0
    assert cache.clear().n_kept == 0
    put(cache, "after", b"abc")
    assert list((cache.root / "tmp").iterdir()) == []


def test_a_full_disk_is_one_clear_error(cache: Cache) -> None:
    put(cache, "before", b"abc")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(PipelineError, match=r"cannot write the cache at .*\(file too large\)"):
            cache.get("key", Filler(b"x" * 50_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert objects(cache) == {digest(b"abc")}
    assert list((cache.root / "tmp").iterdir()) == []


def test_a_file_larger_than_the_disk_is_refused_at_once(cache: Cache) -> None:
    def fill(sink: Sink) -> Filled:
        sink.reserve(1 << 60)
        raise AssertionError("refused before")

    with pytest.raises(PipelineError, match=f"needs {1 << 60:,} bytes"):
        cache.get("key", fill)


def test_a_place_that_is_no_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache")
    with pytest.raises(PipelineError, match="FILTERDB_CACHE"):
        cache.get("key", Filler(b"abc"))


def test_where_it_lies_and_how_much_it_keeps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FILTERDB_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("FILTERDB_CACHE_LIMIT", "1000")
    assert (Cache().root, Cache().limit) == (tmp_path / "own", 1000)
    monkeypatch.setenv("FILTERDB_CACHE_LIMIT", "1 GB")
    with pytest.raises(UsageError, match="FILTERDB_CACHE_LIMIT"):
        Cache()
    monkeypatch.delenv("FILTERDB_CACHE_LIMIT")
    monkeypatch.delenv("FILTERDB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache().root == tmp_path / "xdg" / "filterdb"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Cache().root == tmp_path / "home" / ".cache" / "filterdb"


def test_looking_makes_no_folder(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "never")
    assert cache.find("key") is None
    assert cache.info().n_objects == 0
    assert cache.clear().n_removed == 0
    assert not cache.root.exists()


def test_it_travels_to_workers(cache: Cache) -> None:
    stored = put(cache, "key", b"abc")
    travelled = pickle.loads(pickle.dumps(cache))
    assert (travelled.root, travelled.limit) == (cache.root, cache.limit)
    assert travelled.find("key") == stored
