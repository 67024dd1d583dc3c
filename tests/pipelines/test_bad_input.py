"""Bad files, catalogues and questions, through the command line: one clear answer each."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import filterdb
from filterdb.testing import make_store
from tests.pipelines import bad_files
from tests.pipelines.command_line import Line, apart, catalogue_text, tree, write_catalogue


@pytest.fixture
def line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Line:
    monkeypatch.setenv("FILTERDB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Line(tmp_path, capsys)


def extracted(line: Line, *models: dict[str, Any], code: int = 3) -> dict[str, dict[str, Any]]:
    """Extract `models`; return the failures by id."""
    catalogue = write_catalogue(line.folder, *models)
    told = line("extract", catalogue, "--store", "store", "--workers", 0, code=code)
    rows = filterdb.open("store").failures.to_pylist()
    for row in rows:
        assert f"{row['model_id']}: {row['stage']}: " in told.err or len(rows) > 10
        assert "\n" not in row["message"]
        assert str(line.folder) not in row["message"], "paths of this machine end in no table"
    return {row["model_id"]: row for row in rows}


def spoilt(folder: Path, write: Callable[[Path], Path], heavy: str, share: float) -> str:
    """Write a good file, cut the one that holds its weights, and return the model's URI."""
    folder.mkdir()
    path = write(folder)
    content = (folder / heavy).read_bytes()
    (folder / heavy).write_bytes(content[: int(len(content) * share)])
    return f"file:{folder.name}/{path.name}"


def check_truncated(line: Line, writers: dict[str, tuple[Callable[[Path], Path], str]]) -> None:
    models = [{"id": "good", "uri": "file:net.safetensors"}]
    bad_files.safetensors(line.folder)
    for name, (write, heavy) in writers.items():
        for share in (0.6, 0.9):
            slug = f"{name.replace(' ', '-')}-{int(100 * share)}"
            uri = spoilt(line.folder / slug, write, heavy, share)
            models.append({"id": slug, "uri": uri, "format": name.split()[0]})
    failures = extracted(line, *models)
    assert set(failures) == {m["id"] for m in models} - {"good"}
    for model_id, row in failures.items():
        assert row["error"] == "MalformedFileError", row
        assert (row["stage"], row["retryable"]) == ("open", False), row
        assert row["message"].startswith(("net.", "model.json")), row
        assert any(ch.isdigit() for ch in row["message"]) or "cut short" in row["message"], model_id
        assert "fetch" in row["message"] or "(" in row["message"], "it says what to do"


def test_truncated_files(line: Line) -> None:
    writers = {k: v for k, v in bad_files.WRITERS.items() if k != "keras_h5"}
    check_truncated(line, writers)


@pytest.mark.slow  # HDF5 files are first opened in a child process
def test_truncated_hdf5(line: Line) -> None:
    check_truncated(line, {"keras_h5": bad_files.WRITERS["keras_h5"]})


@pytest.mark.torch
def test_truncated_torch_files(line: Line) -> None:
    check_truncated(line, bad_files.TORCH_WRITERS)


def test_empty_and_foreign_files(line: Line) -> None:
    bad_files.safetensors(line.folder)
    contents = {
        "empty.pt": b"",
        "text.pt": b"this is no model\n" * 20,
        "random.bin": random.Random(0).randbytes(5000),
        "page.onnx": b"<!DOCTYPE html><html><body>Please log in</body></html>",
        "pointer.pt": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }
    for name, content in contents.items():
        (line.folder / name).write_bytes(content)
    models = [{"id": name, "uri": f"file:{name}"} for name in contents]
    models += [
        {"id": "absent", "uri": "file:net.safetensor"},
        {"id": "folder", "uri": "file:folder"},
        {"id": "other", "uri": "file:net.safetensors", "format": "onnx"},
        {"id": "scheme", "uri": "http://127.0.0.1:9/net.safetensors"},
    ]
    (line.folder / "folder").mkdir()
    found = {k: (r["stage"], r["error"], r["message"]) for k, r in extracted(line, *models).items()}
    expected = {
        "empty.pt": ("open", "MalformedFileError", "an empty file"),
        "text.pt": ("open", "UnsupportedFormatError", "plain text"),
        "random.bin": ("open", "UnsupportedFormatError", "begins with"),
        "page.onnx": ("open", "UnsupportedFormatError", "web page"),
        "pointer.pt": ("open", "UnsupportedFormatError", "Git LFS pointer"),
        "absent": ("fetch", "SourceError", "nearest: net.safetensors"),
        "folder": ("fetch", "SourceError", "is a folder"),
        "other": ("open", "MalformedFileError", "its bytes look like safetensors"),
        "scheme": ("fetch", "FetchError", "127.0.0.1"),
    }
    assert set(found) == set(expected)
    for name, (stage, error, words) in expected.items():
        assert found[name][:2] == (stage, error), found[name]
        assert words in found[name][2]


def test_hostile_archives(line: Line) -> None:
    good = bad_files.safetensors(line.folder).read_bytes()
    bomb = bytes(1100 * 1024 * 1024)
    archive = bad_files.zip_bytes(
        {"../out.safetensors": good, "ok.safetensors": good, "bomb.safetensors": bomb}
    )
    del bomb
    (line.folder / "net.whl").write_bytes(archive)
    with tarfile.open(line.folder / "net.tar.gz", "w:gz") as tar:
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../../x")):
            info = tarfile.TarInfo(f"link{kind.decode()}.safetensors")
            info.type, info.linkname = kind, target
            tar.addfile(info)
        device = tarfile.TarInfo("device.safetensors")
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 5
        tar.addfile(device)
        outside = tarfile.TarInfo("../out.safetensors")
        outside.size = len(good)
        tar.addfile(outside, io.BytesIO(good))
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2_000_000, 3, 3, 3)}
    np.lib.format.write_array_header_1_0(buffer, header)
    values = buffer.getvalue() + bytes(2_000_000 * 27 * 4)
    (line.folder / "bomb.npz").write_bytes(bad_files.zip_bytes({"w.npy": values}))
    models = [
        {"id": "ok", "uri": "file:net.whl!/ok.safetensors"},
        {"id": "bomb", "uri": "file:net.whl!/bomb.safetensors"},
        {"id": "npz-bomb", "uri": "file:bomb.npz"},
        {"id": "absent", "uri": "file:net.whl!/okk.safetensors"},
        {"id": "wrong-hash", "uri": "file:net.whl!/ok.safetensors", "archive_sha256": "0" * 64},
        *(
            {"id": name, "uri": f"file:net.tar.gz!/{name}.safetensors"}
            for name in ("link1", "link2", "device")
        ),
    ]
    failures = extracted(line, *models)
    found = {k: (row["stage"], row["error"]) for k, row in failures.items()}
    assert found == {
        "bomb": ("fetch", "UnsafeCheckpointError"),
        "npz-bomb": ("open", "UnsafeCheckpointError"),
        "absent": ("fetch", "SourceError"),
        "wrong-hash": ("hash", "HashMismatchError"),
        **dict.fromkeys(("link1", "link2", "device"), ("fetch", "UnsafeCheckpointError")),
    }
    assert "bomb" in failures["bomb"]["message"]
    assert "nearest: ok.safetensors" in failures["absent"]["message"]
    assert "0" * 64 in failures["wrong-hash"]["message"]
    assert not list(line.folder.parent.glob("out.safetensors"))
    for uri in ("file:net.whl!/../out.safetensors", "file:net.tar.gz!//etc/passwd"):
        bad = write_catalogue(line.folder, {"id": "a", "uri": uri}, name="out.toml")
        assert "plain relative path" in line("extract", bad, "--store", "s", code=2).error
        assert "plain relative path" in line("inspect", uri, code=2).error
    told = line("inspect", "net.whl", code=1)
    assert "!/ok.safetensors" in told.err, "it says which members there are"


def test_pickles_that_call_the_shell(line: Line) -> None:
    marker = line.folder / "marker"
    attack = pickle.dumps({"w": bad_files.Attack(marker)}, protocol=2)
    (line.folder / "plain.pt").write_bytes(attack)
    members = {"archive/data.pkl": attack, "archive/version": b"3\n"}
    (line.folder / "zip.pt").write_bytes(bad_files.zip_bytes(members, method=0))
    (line.folder / "legacy.pt").write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
        + pickle.dumps(1001, protocol=2)
        + pickle.dumps({"little_endian": True}, protocol=2)
        + attack
        + pickle.dumps([], protocol=2)
    )
    names = ("plain", "zip", "legacy")
    models = [{"id": n, "uri": f"file:{n}.pt", "format": "torch"} for n in names]
    failures = extracted(line, *models)
    assert set(failures) == set(names)
    for name in ("zip", "legacy"):
        assert failures[name]["error"] == "UnsafeCheckpointError"
        assert "system" in failures[name]["message"]
        assert line("inspect", f"{name}.pt", "--json", code=1).json["error"]["message"]
    assert not marker.exists()
    # The attack is a real one.
    pickle.loads(attack)
    assert marker.exists()


def test_missing_companions(line: Line) -> None:
    for name, lost in (("ncnn", "net.bin"), ("tfjs", "group1-shard2of2.bin")):
        (line.folder / name).mkdir()
        bad_files.WRITERS[name][0](line.folder / name)
        (line.folder / name / lost).unlink()
    models = [
        {"id": "ncnn", "uri": "file:ncnn/net.param"},
        {"id": "tfjs", "uri": "file:tfjs/model.json"},
    ]
    failures = extracted(line, *models)
    for name, lost in (("ncnn", "net.bin"), ("tfjs", "group1-shard2of2.bin")):
        assert failures[name]["error"] == "MissingCompanionError"
        assert lost in failures[name]["message"]
        assert not failures[name]["retryable"]


def test_weights_without_variance(line: Line) -> None:
    """Layers that are constant, zero, empty, tiny or huge: no warning, no NaN, no traceback."""
    shape = (8, 3, 3, 3)
    values = {"zero": 0.0, "one": 1.0, "huge": 1e38, "tiny": 1e-45, "nan": np.nan}
    models = [
        bad_files.safetensors(line.folder, name, w=np.full(shape, value, np.float32))
        for name, value in values.items()
    ]
    empty = np.zeros((0, 3, 3, 3), np.float32)
    models.append(bad_files.safetensors(line.folder, "empty", **{"conv.weight": empty}))
    models.append(bad_files.safetensors(line.folder, "fine"))
    uris = [{"id": p.stem, "uri": f"file:{p.name}"} for p in models]
    extracted(line, *uris, code=0)
    line("analyze", "store", "--workers", 0)
    sql = "select count(*) as n from results where isnan(value) or isnan(low) or isnan(high)"
    assert line("query", "store", sql, "--format", "json").json == [{"n": 0}]
    line("report", "store", "--out", "report")
    for path in models:
        assert line("inspect", path.name, "--against", "store", "--json").json["schema"] == 1
        line("compare", path.name, "fine.safetensors", "--json")


def test_odd_models_flow_through_to_the_report(line: Line) -> None:
    """A NaN, no convolution at all, endless names and markup in names."""
    weights = bad_files.weights(8, 3, 3, 3)
    weights[0, 0, 1, 1], weights[3, 2, 0, 0] = np.nan, np.inf
    long = "layer." * 50 + "weight"
    script = '<script>alert(1)</script>/../x "ü\x1b[31m'
    bad_files.safetensors(line.folder, "nan", **{"conv.weight": weights})
    bad_files.safetensors(line.folder, "none", **{"fc.weight": bad_files.weights(8, 4)})
    bad_files.safetensors(line.folder, "long", **{long: bad_files.weights(6, 3, 3, 3)})
    odd = {f"{script}.weight": bad_files.weights(6, 3, 5, 5)}
    bad_files.safetensors(line.folder, "odd", **odd)
    extracted(
        line,
        {"id": "nan", "uri": "file:nan.safetensors"},
        {"id": "none", "uri": "file:none.safetensors"},
        {"id": "long", "uri": "file:long.safetensors"},
        {"id": "odd", "uri": "file:odd.safetensors", "name": script, "architecture": script},
        code=0,
    )
    store = filterdb.open("store")
    status = store.sql("select model_id, status from models where n_conv_layers = 0").to_pylist()
    assert status == [{"model_id": "none", "status": "no_convolutions"}]
    (state,) = store.sql(
        "select n_nonfinite, null_reason, mean from layer_states where layer_uid like 'nan/%'"
    ).to_pylist()
    assert state["n_nonfinite"] == 2
    assert state["null_reason"].startswith("non-finite: 2 of 24")
    assert state["mean"] is None
    line("analyze", "store", "--by", "task", "--by", "architecture", "--workers", 0)
    sql = "select layer_uid from findings where finding = 'non_finite'"
    assert line("query", "store", sql, "--format", "json").json == [
        {"layer_uid": "nan/conv.weight"}
    ]
    line("report", "store", "--out", "report")
    pages = list((line.folder / "report").rglob("*.html"))
    assert len(pages) >= 5
    for page in pages:
        assert "<script>alert" not in page.read_text(encoding="utf-8")
        assert page.is_relative_to(line.folder / "report")
        assert set(page.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert "&lt;script&gt;alert(1)" in "".join(p.read_text(encoding="utf-8") for p in pages)
    told = line("inspect", "nan.safetensors", "--fail-on", "non_finite", "--json", code=4)
    (layer,) = told.json["layers"]
    assert layer["findings"][0]["name"] == "non_finite"
    assert all(m["value"] is None and m["reason"] for m in layer["metrics"].values())
    shown = line("inspect", "odd.safetensors").out
    assert "\x1b" not in shown, "names in a file do not steer the terminal"
    assert "\x1b" not in line("query", "store", "select name from layers").out
    assert line("inspect", "none.safetensors", "--json").json["layers"] == []
    assert "no convolutions" in line("inspect", "none.safetensors").out


GOOD = catalogue_text([{"id": "a", "uri": "file:a.pt"}, {"id": "b", "uri": "file:b.pt"}])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace("task =", "taks =", 1), ":7: model 'a': unknown key 'taks' (nearest: task)"),
        (GOOD.replace("[catalogue]", "[catalog]"), "unknown table 'catalog' (nearest: catalogue)"),
        (GOOD.replace('id = "b"', 'id = "a"'), "id 'a' is that of entry 1 already"),
        (GOOD.replace('task = "ocr"', "task = 3", 1), "task must be a text, got 3 (int)"),
        (GOOD + 'bytes = "many"\n', "bytes must be a whole number of bytes, got 'many'"),
        (GOOD + 'training_dataset = "coco"\n', "training_dataset must be a list of texts"),
        (GOOD + 'archive_sha256 = "abc"\n', "64 lower-case hexadecimal digits"),
        (GOOD.replace('"ocr"', '"orc"', 1), "'orc' is not in the vocabulary (nearest: ocr"),
        (GOOD.replace('id = "a"', 'id = "../a"'), "is not a slug"),
        (GOOD.replace('uri = "file:a.pt"\n', ""), "has no uri"),
        (GOOD.replace("file:a.pt", "gopher:a.pt"), "no scheme 'gopher'"),
        (GOOD + 'companions = ["../../etc/passwd"]\n', "plain relative path"),
        ("", "holds no model"),
        ('{"json": 1}', "not TOML"),
        ("\ufeff" + GOOD.replace("\n", "\r\n"), ""),
    ],
)
def test_catalogues_that_cannot_be_read(text: str, words: str, line: Line) -> None:
    path = line.folder / "c.toml"
    path.write_text(text, encoding="utf-8", newline="")
    if not words:  # a byte order mark and Windows line ends are no fault
        assert line("catalog", "check", path, "--json").json["n_models"] == 2
        return
    before = tree(line.folder)
    for command in (["catalog", "check", path], ["extract", path, "--store", "store"]):
        told = line(*command, code=2)
        assert told.error.startswith(f"error: {path}")
        assert words in told.err
    assert line("catalog", "list", path, "--json", code=2).json["error"]["type"] == "CatalogError"
    assert tree(line.folder) == before


def test_catalogues_that_are_no_text(line: Line) -> None:
    (line.folder / "c.toml").write_bytes(GOOD.encode("utf-16"))
    assert "UTF-8" in line("catalog", "check", "c.toml", code=2).error
    assert "is a folder" in line("catalog", "check", line.folder, code=2).error
    assert "no catalogue" in line("catalog", "check", "absent.toml", code=2).error


def committed(store: Path) -> dict[str, tuple[int, int]]:
    """What lies in a store, without the lock's note and the log."""
    return {k: v for k, v in tree(store).items() if k != ".lock" and not k.startswith("log/")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store"), n_models=3, seed=1).path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["query", "STORE", "select nam from models"], "nearest: name"),
        (["query", "STORE", "select * from modles"], "nearest: models"),
        (["query", "STORE", "select * from models where taks = 'ocr'"], "nearest: task"),
        (["query", "STORE", "drop table models"], "never by SQL"),
        (["query", "STORE", "select 1; select 2"], "one SELECT"),
        (["query", "STORE", ""], "one SELECT"),
        (["query", "STORE", "select * from read_csv('/etc/passwd')"], "nothing else"),
        (["query", "STORE", "select b.range from range(3) a"], '"b"'),
        (["analyze", "STORE", "--by", "taks"], "nearest: task"),
        (["analyze", "STORE", "--by", ""], "empty grouping"),
        (["analyze", "STORE", "--by", "n_filters >"], "the grouping 'n_filters >' cannot be"),
        (["analyze", "STORE", "--by", "1; drop table x"], "the grouping '1; drop table x' cannot"),
        (["analyze", "STORE", "--by", "read_text('/etc/passwd')"], "nothing else"),
        (["analyze", "STORE", "--workers", "-1"], "expected 0 or more"),
        (["analyze", "STORE", "--workers", "two"], "--workers"),
        (["extract", "demo", "--store", "x", "--select", "taks = 'ocr'"], "nearest: task"),
        (["extract", "demo", "--store", "x", "--select", "task ="], "after WHERE"),
        (["extract", "demo", "--store", "x", "--select", "1=1; drop table x"], "more than one"),
        (["extract", "demo"], "--store"),
        (["inspect", "net.safetensors", "--fail-on", "nonfinite"], "nearest: non_finite"),
        (["inspect", "net.safetensors", "--layer", "cnv"], "nearest: conv"),
        (["inspect", "pypi:foo"], "NAME==VERSION"),
        (["cache", "clear", "--cache", "."], "is no cache of filterdb"),
        (["cache", "info", "--cache", "net.safetensors"], "is a file"),
        (["report", "STORE", "--out", "."], "no report"),
        (["report", "STORE", "--out", "net.safetensors"], "is a file"),
    ],
)
def test_words_that_mean_nothing(words: list[str], expected: str, line: Line, store: Path) -> None:
    bad_files.safetensors(line.folder)
    before = tree(line.folder), committed(store)
    told = line(*[str(store) if word == "STORE" else word for word in words], code=2)
    assert expected in told.err
    assert (tree(line.folder), committed(store)) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["inspect", "net.safetensors", "--against", "STORE"], "run filterdb analyze"),
        (["inspect", "folder"], "is a folder"),
        (["inspect", "empty.pt"], "an empty file"),
        (["inspect", "/dev/zero"], "not a regular file"),
        (["compare", "net.safetensors", "absent"], "is not there"),
        (["report", "absent", "--out", "r"], "no store at absent"),
        (["report", "net.safetensors", "--out", "r"], "no store at net.safetensors"),
        (["verify", "folder"], "no store at folder"),
        (["demo", "--out", "net.safetensors"], "not a directory"),
        (["extract", "smoke", "--store", "net.safetensors"], "a file stands where"),
        (["extract", "smoke", "--store", "net.safetensors/s"], "a part of the path is a file"),
        (["extract", "smoke", "--store", "."], "holds no store"),
        (["extract", "smoke", "--store", "x" * 300], "shorter path"),
        (["query", "STORE", "select * from results"], "run filterdb analyze"),
    ],
)
def test_things_that_are_not_there(
    words: list[str], expected: str, line: Line, store: Path
) -> None:
    bad_files.safetensors(line.folder)
    (line.folder / "folder").mkdir()
    (line.folder / "empty.pt").touch()
    words = [str(store) if word == "STORE" else word for word in words]
    told = line(*words, code=1)
    assert expected in told.err
    if words[0] in ("inspect", "compare"):
        record = line(*words, "--json", code=1).json["error"]
        assert set(record) == {"type", "message", "tip"}


def test_a_report_without_an_analysis_says_what_is_missing(line: Line, store: Path) -> None:
    told = line("report", store, "--out", "report")
    assert f"filterdb analyze {store}" in told.err


def test_a_store_of_another_version(line: Line, store: Path) -> None:
    copy = shutil.copytree(store, line.folder / "copy")
    record = json.loads((copy / "store.json").read_text())
    (copy / "store.json").write_text(json.dumps({**record, "version": 99}))
    before = committed(copy)
    bad_files.safetensors(line.folder)
    for words in (
        ["query", copy, "select 1"],
        ["extract", "smoke", "--store", copy],
        ["extract", "smoke", "--store", copy, "--dry-run"],
        ["analyze", copy],
        ["report", copy, "--out", "r"],
        ["verify", copy],
        ["inspect", "net.safetensors", "--against", copy],
    ):
        told = line(*words, code=1)
        assert "version 99" in told.error
        assert "reads filterdb-store version 1" in told.error
        assert committed(copy) == before
    (copy / "store.json").write_text("{")
    assert "store.json is damaged" in line("query", copy, "select 1", code=1).error


@pytest.mark.parametrize("victim", ["manifest", "layers", "shard", "lost shard"])
def test_a_damaged_store(victim: str, line: Line, store: Path) -> None:
    copy = shutil.copytree(store, line.folder / "copy")
    pattern = {"manifest": "manifest.parquet", "layers": "tables/*/layers.parquet"}
    path = sorted(copy.glob(pattern.get(victim, "filters/*.h5")))[0]
    content = path.read_bytes()
    path.unlink()
    if not victim.startswith("lost"):
        path.write_bytes(content[: len(content) // 2])
    told = line("verify", copy, code=1)
    assert path.name in told.out
    told = line("analyze", copy, "--workers", 0, code=1)
    assert path.name in told.error
    path.write_bytes(content)
    line("analyze", copy, "--workers", 0)


def test_compare_a_file_with_itself(line: Line) -> None:
    bad_files.safetensors(line.folder)
    told = line("compare", "net.safetensors", "net.safetensors")
    assert "equal" in told.out
    line("compare", "net.safetensors", "net.safetensors", "--json")


def test_scan_of_a_messy_folder(line: Line) -> None:
    root = line.folder / "messy"
    for name in ("sub dir", ".hidden", "ü"):
        (root / name).mkdir(parents=True)
        bad_files.safetensors(root / name)
    bad_files.onnx(root)
    (root / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    (root / "notes.txt").write_text("hello")
    (root / "empty.pt").touch()
    (root / "gone.pt").symlink_to("nowhere")
    (root / "loop").symlink_to(".")
    os.mkfifo(root / "pipe.pt")
    (root / "\x1b[31mred.bin").write_text("red")
    before = tree(line.folder)
    told = line("catalog", "scan", root)
    assert told.out.count("[[model]]") == 3
    assert "notes.txt: no reader knows this file" in told.err
    for name in ("empty.pt", "gone.pt", "pipe.pt", "cut.npz"):
        assert f"left out: {name}: " in told.err or name in told.out, name
    assert ".hidden" not in told.out
    assert tree(line.folder) == before
    (line.folder / "mine.toml").write_text(told.out, encoding="utf-8")
    assert line("catalog", "check", "mine.toml", "--json").json["n_models"] == 3
    line("extract", "mine.toml", "--store", "store", "--workers", 0, code=0)
    (line.folder / "nothing").mkdir()
    assert "holds no model file" in line("catalog", "scan", "nothing", code=2).error
    assert "is not a folder" in line("catalog", "scan", "mine.toml", code=2).error


def test_a_cache_that_is_not_there(line: Line) -> None:
    assert line("cache", "clear", "--json").json["n_removed"] == 0
    assert line("cache", "info", "--json").json["n_objects"] == 0
    assert not (line.folder / "cache").exists()


@pytest.mark.parametrize(
    "words",
    [("--workers", 0), ("--workers", 10**30), ("--scheduler", "sync", "--workers", 5)],
)
def test_any_number_of_workers(words: tuple[object, ...], line: Line) -> None:
    bad_files.safetensors(line.folder)
    model = {"id": "a", "uri": "file:net.safetensors"}
    catalogue = write_catalogue(line.folder, model)
    line("extract", catalogue, "--store", "store", *words)
    assert "up to date" in line("extract", catalogue, "--store", "store", *words).err
    assert line("extract", catalogue, "--store", "other", "--dry-run").err.endswith("written\n")
    names = {p.split("/")[0] for p in tree(line.folder)}
    assert names <= {"store", "cache", "bad.toml", "net.safetensors"}


def test_a_scheduler_that_does_not_answer(line: Line) -> None:
    bad_files.safetensors(line.folder)
    catalogue = write_catalogue(line.folder, {"id": "a", "uri": "file:net.safetensors"})
    words = ["extract", catalogue, "--store", "store", "--scheduler"]
    assert "no dask scheduler answers at foo://bar" in line(*words, "foo://bar", code=1).error
    line(*words, "sync")


def test_exit_codes_of_a_process(line: Line) -> None:
    bad_files.safetensors(line.folder)
    models = [{"id": "a", "uri": "file:net.safetensors"}, {"id": "b", "uri": "file:absent.pt"}]
    catalogue = write_catalogue(line.folder, *models)
    apart("--version", cwd=line.folder)
    apart("inspect", "absent.pt", code=1, cwd=line.folder)
    apart("inspekt", code=2, cwd=line.folder)
    apart("extract", catalogue, "--store", "store", "--workers", 1, code=3, cwd=line.folder)
    fatal = "degenerate_published"
    apart("inspect", "net.safetensors", "--fail-on", fatal, code=4, cwd=line.folder)
