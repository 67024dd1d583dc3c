"""What the world does to a job: full disks, broken lines, Ctrl-C, a second job, closed pipes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import filterdb
from filterdb.sources.origins import download
from filterdb.store.verify import verify
from tests.pipelines import bad_files
from tests.pipelines.command_line import (
    Line,
    Told,
    apart,
    checked,
    environment,
    starter,
    tree,
    write_catalogue,
)
from tests.pipelines.models import write_models
from tests.sources.loopback import Answer, Site, serve

#: A limit on the size of any one file: what a full disk does, without one.
LIMIT = (
    "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
)


@pytest.fixture
def line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Line:
    monkeypatch.setenv("FILTERDB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    return Line(tmp_path, capsys)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serve() as running:
        yield running


def many(folder: Path, n: int) -> Path:
    """A catalogue that takes a while: `n` models of three layers each."""
    models = []
    for index in range(n):
        tensors = {f"c{j}.weight": bad_files.weights(48, 48, 3, 3, seed=j) for j in range(3)}
        folder.mkdir(exist_ok=True)
        bad_files.safetensors(folder, f"n{index}", **tensors)
        models.append({"id": f"n{index}", "uri": f"file:n{index}.safetensors"})
    return write_catalogue(folder, *models)


def manifest(store: Path) -> dict[str, str]:
    return {row["path"]: row["sha256"] for row in filterdb.open(store).manifest.to_pylist()}


@pytest.mark.slow
def test_a_full_disk_stops_with_one_error_and_loses_nothing(line: Line) -> None:
    catalogue = write_models(line.folder / "models", n_models=3)
    extract = ("extract", catalogue, "--store", "store", "--workers", 0)
    for limit in (0, 200, 2_500, 9_000):
        told = apart(*extract, before=LIMIT.format(limit), code=1)
        assert told.error.startswith("error: cannot write ")
        assert "file too large" in told.error
        assert "tip: " in told.err
    line(*extract, code=3)
    before = manifest(Path("store"))
    for limit in (500, 3_000):
        told = apart("analyze", "store", "--workers", 0, before=LIMIT.format(limit), code=1)
        assert "cannot write store/tables" in told.error
        assert manifest(Path("store")) == before
        assert verify(Path("store")) == []
    line("analyze", "store", "--workers", 0)
    told = apart("report", "store", "--out", "report", before=LIMIT.format(5_000), code=1)
    assert told.error.startswith("error: cannot write the report")
    assert sorted(p.name for p in line.folder.iterdir()) == ["models", "store"]
    line("report", "store", "--out", "report")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_really_full(line: Line) -> None:
    disk = line.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        catalogue = many(line.folder / "models", 8)
        words = ("extract", catalogue, "--store", disk / "store", "--workers", 2)
        told = line(*words, code=1)
        assert "no space left on device" in told.error
        assert "are free" in told.error
        remount = ["mount", "-o", "remount,size=64m", str(disk)]
        subprocess.run(remount, check=True)
        assert "kept from the run before" in line(*words).err
        assert verify(disk / "store") == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for job in (("analyze", disk / "store"), (*words[:3], disk / "other")):
            told = line(*job, code=1)
            assert "read-only file system" in told.error
            assert "choose another folder" in told.err
        # Reading needs no right to write.
        line("query", disk / "store", "select count(*) from models")
        assert "is whole" in line("verify", disk / "store").err
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_may_not_be_written(line: Line) -> None:
    (line.folder / "locked").mkdir(mode=0o555)
    told = line("extract", "smoke", "--store", "locked/store", code=1)
    assert "permission denied" in told.error
    assert "right to write" in told.err


def test_a_network_that_fails_in_the_middle(line: Line, site: Site) -> None:
    body = bad_files.safetensors(line.folder, "net").read_bytes()
    site.ranges = False
    faults = {
        "drop": Answer(body, drop=300),
        "busy": Answer(b"later", 503),
        "page": Answer(b"<html>please log in</html>"),
        "gone": Answer(b"no", 404),
        "secret": Answer(b"no", 403),
    }
    models: list[dict[str, Any]] = []
    for name, fault in {"good": None, **faults}.items():
        uri = site.add(f"/{name}.safetensors", body)
        models.append({"id": name, "uri": uri, "format": "safetensors"})
        if fault is not None:
            site.faults[f"/{name}.safetensors"] = [fault] * 100
    catalogue = write_catalogue(line.folder, *models)
    words = ("extract", catalogue, "--store", "store", "--workers", 0)
    told = line(*words, code=3)
    assert "extracted 1 of 6 models" in told.err
    assert "the same command tries 3 of them again" in told.err
    rows = {r["model_id"]: r for r in filterdb.open("store").failures.to_pylist()}
    assert {k for k, r in rows.items() if r["retryable"]} == {"drop", "busy", "page"}
    for name, row in rows.items():
        assert row["stage"] == "fetch"
        assert row["error"] == ("FetchError" if row["retryable"] else "SourceError")
        assert row["message"].startswith(f"{site.url}/{name}.safetensors")
        assert "<" not in row["message"], "no object of a library shines through"
    assert "closed the connection" in rows["drop"]["message"]
    assert "503" in rows["busy"]["message"]
    assert f"expected {len(body)} bytes" in rows["page"]["message"]
    told = line(*words, code=3)
    assert "extracted 0 of 3 models" in told.err
    rows = {r["model_id"]: r for r in filterdb.open("store").failures.to_pylist()}
    assert {k: r["attempts"] for k, r in rows.items()} == {
        **dict.fromkeys(("drop", "busy", "page"), 2),
        **dict.fromkeys(("gone", "secret"), 1),
    }
    site.faults.clear()
    assert "extracted 3 of 3 models" in line(*words, code=0).err
    assert "2 failed before (--retry-failed tries again)" in line(*words, code=3).err
    assert "extracted 2 of 2 models" in line(*words, "--retry-failed", code=0).err
    store = filterdb.open("store")
    assert store.failures.num_rows == 0
    assert len({r["tensor_sha256"] for r in store.layers.to_pylist()}) == 1
    assert verify(Path("store")) == []


#: A job started in the background of a shell ignores SIGINT, and so do its children.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


def started(*words: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        starter(*words, before=HEARS_CTRL_C),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(),
        start_new_session=True,
    )


def wait_for_models(store: Path, n: int, process: subprocess.Popen[str]) -> None:
    """Wait until `n` models are staged."""
    until = time.monotonic() + 60
    while len(list(store.glob("_wip/[!+]*/done.json"))) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_interrupted_and_run_again(scheduler: str, line: Line) -> None:
    catalogue = many(line.folder / "models", 24)
    words = ("extract", catalogue, "--store", "store", "--workers", 2, "--scheduler", scheduler)
    process = started(*words, cwd=line.folder)
    wait_for_models(line.folder / "store", 3, process)
    # As Ctrl-C does: to every process of the job.
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    told = checked(Told(process.returncode, out, err), 130)
    assert told.err.endswith("stopped; the same command goes on where it left off\n")
    told = apart(*words, cwd=line.folder)
    assert " models kept from the run before" in told.err
    assert "extracted 24 of 24 models" in told.err
    assert verify(line.folder / "store") == []


def test_two_extractions_into_one_store(line: Line) -> None:
    catalogue = many(line.folder / "models", 12)
    words = ("extract", catalogue, "--store", "store", "--workers", 1)
    first = started(*words, cwd=line.folder)
    wait_for_models(line.folder / "store", 1, first)
    first.send_signal(signal.SIGSTOP)
    try:
        for second in (words, ("analyze", "store")):
            told = line(*second, code=1)
            if second is words:
                assert f"another job is writing into store: process {first.pid} on " in told.error
                assert "tip: wait until it has ended" in told.err
        assert "nothing is committed yet" in line("query", "store", "select 1", code=1).error
    finally:
        first.send_signal(signal.SIGCONT)
    out, err = first.communicate(timeout=60)
    checked(Told(first.returncode, out, err), 0)
    assert "up to date" in line(*words).err


def test_ctrl_c_in_a_long_question(line: Line) -> None:
    bad_files.safetensors(line.folder)
    model = {"id": "a", "uri": "file:net.safetensors"}
    line("extract", write_catalogue(line.folder, model), "--store", "store", "--workers", 0)
    ranges = "range(100000000) a, range(100000000) b"
    sql = f"select count(*) from {ranges} where a.range * b.range % 7 = 3"
    process = started("query", "store", sql, cwd=line.folder)
    time.sleep(4)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    checked(Told(process.returncode, out, err), 130)
    assert out == ""


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("query store 'select * from layers' >&-", 0),
        ("query store 'select * from layers' 2>&-", 0),
        ("query store 'selct' >&- 2>&-", 2),
        ("verify store <&- >&- 2>&-", 0),
        ("query store 'select l.* from layers l, range(100000)' --format json | head -c1", 0),
        ("query store 'select l.* from layers l, range(100000)' --format parquet | head -c1", 0),
        ("query store 'select * from layers' > /dev/full", 1),
        ("inspect net.safetensors --json > /dev/full", 1),
        ("query store 'selct' 2> /dev/full", 2),
        ("inspect absent --json 2> /dev/null | true", 1),
        ("catalog list demo | head -1", 0),
        ("extract bad.toml --store other --workers 0 2>&1 | true", 0),
    ],
)
def test_streams_that_are_closed_or_full(command: str, code: int, line: Line) -> None:
    bad_files.safetensors(line.folder)
    model = {"id": "a", "uri": "file:net.safetensors"}
    line("extract", write_catalogue(line.folder, model), "--store", "store", "--workers", 0)
    words = f"{sys.executable} -m pipelines.cli {command}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", words], capture_output=True, text=True, check=False, env=environment()
    )
    checked(Told(done.returncode, done.stdout, done.stderr), code)
    assert "Exception ignored" not in done.stderr
    if "/dev/full" in command and code == 1:
        assert done.stderr.startswith("error: cannot go on: No space left on device")


@pytest.mark.slow
def test_nothing_but_store_cache_and_report_is_written(line: Line) -> None:
    catalogue = write_models(line.folder / "models", n_models=2)
    (line.folder / "home").mkdir()
    env = {"HOME": str(line.folder / "home"), "TMPDIR": str(line.folder / "home")}
    before = tree(line.folder)
    runs = (
        (("extract", catalogue, "--store", "store", "--workers", 1), 3),
        (("analyze", "store", "--workers", 1), 0),
        (("report", "store", "--out", "report"), 0),
        (("inspect", line.folder / "models" / "net-0.safetensors", "--against", "store"), 0),
    )
    for words, code in runs:
        apart(*words, code=code, cwd=line.folder, env=env)
    new = set(tree(line.folder)) - set(before)
    assert {p.split("/")[0] for p in new} <= {"store", "report", "cache"}, new
    assert {k: v for k, v in tree(line.folder).items() if k in before} == before


@pytest.mark.slow
def test_a_worker_that_is_killed(line: Line) -> None:
    catalogue = many(line.folder / "models", 80)
    words = ("extract", catalogue, "--store", "store", "--scheduler", "processes", "--workers", 2)
    process = started(*words, cwd=line.folder)
    wait_for_models(line.folder / "store", 2, process)
    workers = [
        pid
        for task in Path(f"/proc/{process.pid}/task").iterdir()
        for pid in (task / "children").read_text().split()
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(int(workers[0]), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    told = checked(Told(process.returncode, out, err), 1)
    assert "a worker process died" in told.error
    told = line("extract", catalogue, "--store", "store", "--workers", 0)
    assert "kept from the run before" in told.err
    assert verify(Path("store")) == []


def test_the_run_log_is_json_whatever_happens(line: Line) -> None:
    catalogue = write_models(line.folder / "models", n_models=1)
    extract = ("extract", catalogue, "--store", "store", "--workers", 0)
    apart(*extract, before=LIMIT.format(2_500), code=1, cwd=line.folder)
    line(*extract, code=3)
    lines = (line.folder / "store" / "log" / "extract.jsonl").read_text().splitlines()
    assert [json.loads(x)["event"] for x in lines if "task" not in x] == ["start", "start", "end"]
    shutil.rmtree(line.folder / "store" / "log")
    (line.folder / "store" / "log").write_text("in the way")
    told = line("analyze", "store", "--workers", 0, code=1)
    assert "cannot write store/log" in told.error
