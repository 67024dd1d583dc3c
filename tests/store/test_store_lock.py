"""One writer at a time, and no writing where it is not wanted or not possible."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from filterdb.errors import PipelineError, StoreError, StoreExistsError
from filterdb.store import open_store
from filterdb.store.verify import verify
from filterdb.store.writer import create, locked
from filterdb.testing import extract_entries, make_entries, make_store

HOLD = """
import sys, time
from filterdb.store.writer import create, locked
with locked(sys.argv[1]) as path:
    create(path)
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_job_is_told_who_holds_the_store(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(StoreExistsError, match=rf"process {holder.pid} on \S+"),
            locked(tmp_path / "s"),
        ):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    with locked(tmp_path / "s"):  # a dead job holds nothing
        pass


def test_one_process_cannot_write_twice_either(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "s"),
        pytest.raises(StoreExistsError, match=f"process {os.getpid()}"),
        locked(tmp_path / "s"),
    ):
        pass


def test_readers_take_no_lock(tmp_path: Path) -> None:
    make_store(tmp_path, n_models=1)
    with locked(tmp_path / "store"):
        assert open_store(tmp_path / "store").models.num_rows == 1


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(StoreExistsError, match=r"holds no store \(found thesis.tex\)"),
        locked(tmp_path),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(PipelineError, match="cannot write") as caught, locked(path):
            pass
        assert "choose another folder" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PipelineError, match="permission denied"), locked(tmp_path / "s"):
        pass


LIMITED = """
import resource, sys
from filterdb.errors import PipelineError
from filterdb.testing import extract_entries, make_entries
import filterdb.testing.stores
models = {e.id: filterdb.testing.make_model(e) for e in make_entries(4)}
filterdb.testing.stores.make_model = lambda entry, seed: models[entry.id]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    extract_entries(sys.argv[1], make_entries(4))
except PipelineError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [3_000, 10_000, 40_000])
def test_a_limit_on_file_sizes_is_a_clear_error_and_loses_nothing(
    tmp_path: Path, limit: int
) -> None:
    path = tmp_path / "s"
    before = extract_entries(path, make_entries(2))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write {path}"), done.stdout + done.stderr
    assert verify(path) == []
    assert open_store(path).generation == before.generation
    assert extract_entries(path, make_entries(4)).models.num_rows == 4


@pytest.mark.parametrize(
    "name",
    ["tables/00002/.layers.parquet.tmp", "tables/00002/.plan.json.tmp", ".manifest.parquet.tmp"],
)
def test_a_full_disk_at_the_commit_loses_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    entries = make_entries(3)
    before = extract_entries(path, entries[:2])
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        whole = self == path / name and "w" in mode
        return opened(Path("/dev/full") if whole else self, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(PipelineError, match=r"no space left on device.*needs [\d,]+ bytes"):
            extract_entries(path, entries)
    assert verify(path) == []
    assert open_store(path).generation == before.generation
    assert extract_entries(path, entries).generation == 2
    assert verify(path) == []


def test_a_full_disk_while_a_model_is_staged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        whole = self.suffix == ".raw" and "w" in mode
        return opened(Path("/dev/full") if whole else self, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(PipelineError, match="no space left on device") as caught:
            extract_entries(path, make_entries(1))
    assert not isinstance(caught.value, StoreError)
    assert extract_entries(path, make_entries(1)).models.num_rows == 1


def test_create_is_done_once(tmp_path: Path) -> None:
    create(tmp_path / "s", shard_bytes=123)
    settings = (tmp_path / "s" / "store.json").read_bytes()
    create(tmp_path / "s", shard_bytes=456)
    assert (tmp_path / "s" / "store.json").read_bytes() == settings
