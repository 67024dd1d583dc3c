"""Damaged and hostile HDF5 files: an error of ours, no crash, no other file opened, no memory.

libhdf5 is C and has died of damaged files before, so the long loops run in a child process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from filterdb.errors import FetchError, MalformedFileError, SourceError, UnsafeCheckpointError
from filterdb.sources.formats import hdf5_guard
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.keras_graph import keras_nodes
from filterdb.sources.formats.keras_h5 import read
from tests.sources.formats.keras_files import (
    conv,
    functional,
    kernel,
    layer,
    norm,
    sequential,
    write_keras,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Damages copies of a file and reads them; prints how many were read and how many refused.
_FUZZ = """
import pathlib, random, sys
from filterdb.errors import SourceError
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.keras_h5 import read
source, work, mode, seed, n = sys.argv[1:]
data = pathlib.Path(source).read_bytes()
draw = random.Random(int(seed))
ok = refused = 0
for i in range(int(n)):
    if mode == "cut":
        damaged = data[: len(data) * i // int(n)]
    else:
        damaged = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 8))):
            damaged[draw.randrange(len(damaged) if i % 2 else 4096)] = draw.randrange(256)
    path = pathlib.Path(work, "damaged.h5")
    path.write_bytes(damaged)
    try:
        for tensor in read(ModelFile(path)).tensors:
            if tensor.skip is None:
                tensor.load()
        ok += 1
    except SourceError:
        refused += 1
print("done", ok, refused)
"""


def small_file(path: Path) -> ModelFile:
    config = sequential("s", [layer("Conv2D", "c"), layer("BatchNormalization", "n")])
    groups = {"c": conv("c", 3, 3, 2, 4, bias=True), "n": norm("n", 4)}
    return write_keras(path, groups, config=config)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "n"), [("cut", 12), ("flip", 12)])
def test_damage_is_an_error_of_ours(tmp_path: Path, mode: str, n: int) -> None:
    file = small_file(tmp_path / "m.h5")
    with h5py.File(file.path, "r+") as root:
        root.create_dataset("zipped", data=kernel(8, 8), compression="gzip", chunks=(4, 8))
    child = subprocess.run(
        [sys.executable, "-c", _FUZZ, str(file.path), str(tmp_path), mode, "1", str(n)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    last = child.stdout.splitlines()[-1].split()
    assert child.returncode == 0, (child.returncode, last, child.stderr[-2000:])
    read_ok, refused = int(last[1]), int(last[2])
    assert read_ok + refused == n
    assert refused > 0
    if mode == "cut":
        assert read_ok == 0


#: The helper process with another way to do its tasks.
_OTHERWISE = """
import json, os, signal, sys
sys.path[:] = json.loads(sys.argv[1])
from filterdb.sources.formats import hdf5_arrays, hdf5_guard
{}
hdf5_guard.serve()
"""


@pytest.fixture
def otherwise(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def set_code(code: str) -> None:
        monkeypatch.setattr(hdf5_guard, "_CHILD", _OTHERWISE.format(code))
        hdf5_guard._helper.cache_clear()

    yield set_code
    hdf5_guard._helper.cache_clear()


def test_what_kills_libhdf5_is_an_error(
    tmp_path: Path, otherwise: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = small_file(tmp_path / "m.h5")
    otherwise("hdf5_arrays.perform = lambda task: os.kill(os.getpid(), signal.SIGSEGV)")
    for _ in range(2):
        with pytest.raises(MalformedFileError, match="crashes on it"):
            read(file)
    monkeypatch.setattr(hdf5_guard, "CPU_SECONDS", 1)
    otherwise("hdf5_guard.CPU_SECONDS = 1\ndef perform(task):\n while True: pass\n"
              "hdf5_arrays.perform = perform")  # fmt: skip
    with pytest.raises(MalformedFileError, match="does not finish"):
        read(file)


def test_memory_of_the_child_is_bounded(tmp_path: Path, otherwise: Callable[[str], None]) -> None:
    otherwise("hdf5_arrays.perform = lambda task: [bytes(1 << 30)]")
    with pytest.raises(MalformedFileError, match="crashes on it"):
        read(small_file(tmp_path / "m.h5"))


def test_helper_that_is_gone_is_started_again(tmp_path: Path) -> None:
    file = small_file(tmp_path / "m.h5")
    read(file)
    process = hdf5_guard._helper(os.getpid())._process
    assert process is not None
    process.kill()
    process.wait()
    assert len(read(file).tensors) == 6


_ABANDON = """
import os, pathlib, sys
from filterdb.sources.formats import hdf5_guard
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.keras_h5 import read
assert len(read(ModelFile(pathlib.Path(sys.argv[1]))).tensors) == 6
assert "h5py" not in sys.modules
print(hdf5_guard._helper(os.getpid())._process.pid, flush=True)
os._exit(0)
"""


def test_helper_is_gone_with_its_parent_and_imports_nothing_from_the_folder(tmp_path: Path) -> None:
    file = small_file(tmp_path / "m.h5")
    for name in ("json", "h5py", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the folder')")
    command = [sys.executable, "-P", "-c", _ABANDON, str(file.path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    for _ in range(200):
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the helper process outlives its parent")


def test_helper_that_does_not_start(tmp_path: Path, otherwise: Callable[[str], None]) -> None:
    otherwise("sys.exit(3)")
    with pytest.raises(FetchError, match="does not run"):
        read(small_file(tmp_path / "m.h5"))


def test_external_link(tmp_path: Path) -> None:
    small_file(tmp_path / "other.h5")
    for place in ("k", "model_weights"):
        path = tmp_path / f"{place}.h5"
        with h5py.File(path, "w") as root:
            root[place] = h5py.ExternalLink("other.h5", "model_weights")
        with pytest.raises(UnsafeCheckpointError, match="another file"):
            read(ModelFile(path))


def test_external_storage_and_virtual_data(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(kernel(4).tobytes())
    with h5py.File(tmp_path / "e.h5", "w") as root:
        root.create_dataset("k", (4,), "f4", external=[(str(secret), 0, 16)])
    with h5py.File(tmp_path / "v.h5", "w") as root:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("e.h5", "k", (4,))
        root.create_virtual_dataset("k", layout)
    for name in ("e.h5", "v.h5"):
        with pytest.raises(UnsafeCheckpointError, match="another file"):
            read(ModelFile(tmp_path / name))


def test_absurd_sizes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "one.h5", "w") as root:
        root.create_dataset("k", (1 << 20, 1 << 20), "f4", chunks=(64, 64))
    with h5py.File(tmp_path / "many.h5", "w") as root:
        for i in range(40):
            root.create_dataset(f"k{i}", (1 << 20,), "f4", chunks=(64,))
    with h5py.File(tmp_path / "chunk.h5", "w") as root:
        root.create_dataset("k", (4,), "f4", chunks=(1 << 28,), maxshape=(None,))
    for name in ("one", "many", "chunk"):
        with pytest.raises(UnsafeCheckpointError):
            read(ModelFile(tmp_path / f"{name}.h5"))


def test_chunk_that_bursts(tmp_path: Path) -> None:
    path = tmp_path / "b.h5"
    with h5py.File(path, "w") as root:
        item = root.create_dataset("k", (16,), "f4", chunks=(16,), compression="gzip")
        item.id.write_direct_chunk((0,), zlib.compress(bytes(1 << 24)))
    (tensor,) = read(ModelFile(path)).tensors
    with pytest.raises(UnsafeCheckpointError, match="compressed chunk"):
        tensor.load()


def test_groups_inside_themselves(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as root:
        for i in range(20):
            root[f"again{i}"] = root["/"]
        root["loop"] = h5py.SoftLink("/loop")
        root["nowhere"] = h5py.SoftLink("/none")
        root["k"] = kernel(3)
    assert [t.name for t in read(ModelFile(tmp_path / "m.h5")).tensors] == ["k"]


def test_deep_groups(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as root:
        root["a/" * 100 + "k"] = kernel(3)
    with pytest.raises(UnsafeCheckpointError, match="nested deeper"):
        read(ModelFile(tmp_path / "m.h5"))


def test_foreign_compression(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as root:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((4,))
        plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(
            root.id, b"k", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((4,)), plist
        )  # fmt: skip
    (tensor,) = read(ModelFile(path)).tensors
    assert tensor.skip == ("unsupported_dtype", "compressed by HDF5 filter 32015")


@pytest.mark.parametrize(
    "text",
    [b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(4096), b"not hdf5 at all" * 100],
)
def test_no_hdf5(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "m.h5").write_bytes(text)
    with pytest.raises(MalformedFileError):
        read(ModelFile(tmp_path / "m.h5"))


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        read(ModelFile(tmp_path / "none.h5"))


def _nested(depth: int) -> Any:
    config: Any = sequential("s", [layer("Conv2D", "c")])
    for _ in range(depth):
        config = sequential("s", [config])
    return config


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"class_name": "Model", "config": 3},
        {"class_name": "Sequential", "config": {"layers": 3}},
        functional("m", [layer("Conv2D", "a", "b"), layer("Conv2D", "b", "a")], ["a"], ["b"]),
        functional("m", [layer("Conv2D", "a", "a")], ["a"], ["a"]),
        _nested(40),
    ],
)
def test_configurations_that_are_no_network(tmp_path: Path, config: Any) -> None:
    with pytest.raises(MalformedFileError):
        keras_nodes(config, [])
    with pytest.raises(MalformedFileError):
        read(write_keras(tmp_path / "m.h5", {"c": conv("c", 3, 3, 1, 1)}, config=config))


@pytest.mark.parametrize("text", [b"{", b"[]", b"3", b"[" * 30_000, b"\xff"])
def test_configurations_that_are_no_json(tmp_path: Path, text: bytes) -> None:
    file = small_file(tmp_path / "m.h5")
    with h5py.File(file.path, "r+") as root:
        root.attrs["model_config"] = text
    with pytest.raises(MalformedFileError):
        read(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [("strides", "x"), ("strides", [1, 2, 3]), ("strides", [0, 1]), ("strides", [10**30, 1]),
     ("strides", [True, True]), ("groups", -1), ("groups", "2"), ("padding", 7),
     ("dilation_rate", {}), ("name", 5), ("name", "\ud800"), ("activation", {"class_name": 1})],
)  # fmt: skip
def test_nonsense_in_a_layer(key: str, value: Any) -> None:
    config = sequential("s", [{"class_name": "Conv2D", "config": {key: value}}])
    first = keras_nodes(json.loads(json.dumps(config)), [])[0]
    assert first.conv is not None
    assert first.conv.stride in (None, (1, 1))
    assert first.name.encode()


def test_epsilon_that_is_no_number() -> None:
    for stated in (float("nan"), float("inf"), -1, "x", None):
        config = sequential("s", [layer("BatchNormalization", "n", epsilon=stated)])
        assert keras_nodes(config, [])[0].epsilon is None


def test_layers_without_names_stay_apart() -> None:
    config = sequential("s", [{"class_name": "Conv2D", "config": {}}] * 3)
    names = [n.name for n in keras_nodes(config, []) if n.op == "conv"]
    assert len(set(names)) == 3
    assert np.unique([n for node in keras_nodes(config, []) for n in node.outputs]).size == 6
