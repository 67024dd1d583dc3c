"""The torch reader runs nothing, and files that mean harm are source errors."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filterdb.errors import (
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.formats import ModelFile, read_model, stored_array
from filterdb.sources.formats.stored_array import FileBytes
from tests.sources.formats.torch_files import (
    Block,
    _Odd,
    assert_equal,
    names,
    read,
    save,
    small,
    state_dict,
)

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


# -- nothing is executed, torch is not needed ------------------------------------------------------


class _Attack:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_os_system_is_refused_and_never_called(tmp_path: Path, legacy: bool) -> None:
    marker = tmp_path / "marker"
    path = save({**small(1), "x": _Attack(f"touch {marker}")}, tmp_path / "bad.pt", legacy=legacy)
    with pytest.raises(UnsafeCheckpointError, match=r"(posix|nt)\.system"):
        read(path)
    assert not marker.exists()


def test_unknown_classes_are_placeholders_and_listed(tmp_path: Path) -> None:
    model = read(save({"model": small(1), "extra": _Odd()}, tmp_path / "model.pt"))
    assert names(model) == list(small(1))
    assert any("_Odd" in note for note in model.notes)


def test_reading_does_not_import_torch(tmp_path: Path) -> None:
    path = save(Block(), tmp_path / "model.pt")
    code = (
        "import sys, pathlib; from filterdb.sources.formats import ModelFile, read_model\n"
        f"m = read_model(ModelFile(pathlib.Path({str(path)!r})))\n"
        "[t.load() for t in m.tensors]\n"
        "print(len(m.tensors), sorted({'torch', 'pickle', 'onnx', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, imported = done.stdout.split(maxsplit=1)
    assert int(count) > 10
    assert "torch" not in imported


def test_loaders_survive_pickling_and_the_file_stays_closed(tmp_path: Path) -> None:
    path = save(small(1), tmp_path / "model.pt")
    tensor = pickle.loads(pickle.dumps(read(path).tensors[0]))
    np.testing.assert_array_equal(tensor.load(), small(1)["conv.weight"].numpy())


def test_listing_reads_no_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save({"a": torch.zeros(4_000_000), "b": torch.ones(3)}, tmp_path / "big.pt")
    viewed: list[int] = []
    view = FileBytes.view

    def counted(self: FileBytes, start: int, count: int) -> np.ndarray:
        viewed.append(count)
        return view(self, start, count)

    monkeypatch.setattr(FileBytes, "view", counted)
    model = read(path)
    assert 0 < sum(viewed) < 10_000
    assert model.tensors[1].load().tolist() == [1, 1, 1]
    assert viewed[-1] == 12


# -- harm ------------------------------------------------------------------------------------------


def rezip(source: Path, target: Path, change: Any) -> Path:
    """Copy a torch zip, passing every member (name, bytes) through `change`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return target


def craft(path: Path, content: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """Write a torch zip by hand."""
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("a/data.pkl", content)
        for key, data in (storages or {}).items():
            target.writestr(f"a/data/{key}", data)
    return path


def tensor_pickle(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...], numel: int = 4, times: int = 1
) -> bytes:
    """Return the pickle of a list of float32 tensors over storage "0"."""
    one = io.BytesIO()

    class Pickler(pickle._Pickler):  # the Python one lets globals be written that do not exist
        def persistent_id(self, obj: Any) -> Any:
            if obj == "STORAGE":
                return ("storage", torch.FloatStorage, "0", "cpu", numel)
            return None

    class Rebuild:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, ("STORAGE", offset, size, stride, False, None)

    Pickler(one, protocol=2).dump([Rebuild() for _ in range(times)])
    return one.getvalue()


def test_storages_may_be_views_of_enough_bytes_only(tmp_path: Path) -> None:
    data = {"0": np.arange(4, dtype="<f4").tobytes()}
    good = craft(tmp_path / "a.pt", tensor_pickle(1, (3,), (1,)), data)
    np.testing.assert_array_equal(read(good).tensors[0].load(), [1, 2, 3])
    for bad in (
        tensor_pickle(2, (3,), (1,)),
        tensor_pickle(0, (2, 3), (2, 1)),
        tensor_pickle(0, (1 << 40,), (1,)),
        tensor_pickle(-1, (1,), (1,)),
        tensor_pickle(0, (-1,), (1,)),
        tensor_pickle(0, (2,), (-1,)),
        tensor_pickle(0, (2,), (1, 1)),
        tensor_pickle(0, (1,) * 40, (1,) * 40),
        tensor_pickle(0, (4,), (1,), numel=1 << 47),
        tensor_pickle(0, (8,), (1,), numel=8),
    ):
        with pytest.raises(MalformedFileError):
            read(craft(tmp_path / "bad.pt", bad, data))
    with pytest.raises(MalformedFileError, match="not in the file"):
        read(craft(tmp_path / "bad.pt", tensor_pickle(0, (3,), (1,)), {"1": b"\0" * 16}))


def test_expanded_tensors_cannot_outgrow_the_file(tmp_path: Path) -> None:
    data = {"0": b"\0" * 16}
    with pytest.raises(UnsafeCheckpointError, match="many times"):
        read(craft(tmp_path / "bad.pt", tensor_pickle(0, (1 << 30,), (0,)), data))
    many = craft(tmp_path / "many.pt", tensor_pickle(0, (1 << 20,), (0,), times=200), data)
    with pytest.raises(UnsafeCheckpointError, match="many times"):
        read(many)


def test_lists_of_lists_of_one_tensor_are_bounded(tmp_path: Path) -> None:
    tensor = tensor_pickle(0, (1,), (1,))[:-1]
    laughs = tensor + b"".join(
        b"q%c0(%s" % (200 + i, b"h%c" % (200 + i) * 10) + b"l" for i in range(9)
    )
    with pytest.raises(UnsafeCheckpointError, match=r"unfold|many times|tensors"):
        read(craft(tmp_path / "bad.pt", laughs + b".", {"0": b"\0" * 16}))
    empty = b"]" + b"".join(b"q%c0(%sl" % (100 + i, b"h%c" % (100 + i) * 10) for i in range(12))
    with pytest.raises(UnsafeCheckpointError, match="unfold"):
        read(craft(tmp_path / "bad.pt", empty + b"."))


def test_deep_and_cyclic_graphs(tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpointError, match="levels deep"):
        read(craft(tmp_path / "bad.pt", b"N" + b"\x85" * 100_000 + b"."))
    loop = b"}q\x00X\x01\x00\x00\x00ah\x00s."
    assert read(craft(tmp_path / "loop.pt", loop)).tensors == ()


def test_modules_that_contain_themselves(tmp_path: Path) -> None:
    class Loop(torch.nn.Module):
        pass

    globals()["Loop"] = Loop
    Loop.__qualname__ = "Loop"
    outer = Loop()
    outer.weight = torch.nn.Parameter(torch.ones(1))
    outer._modules["inner"] = outer
    outer.parent = [outer]
    assert names(read(save(outer, tmp_path / "model.pt"))) == ["weight"]


def test_zip_bombs_and_overlaps(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a/data.pkl", b"}.")
        target.writestr("a/data/0", b"\0" * 100_000_000)
    with pytest.raises(UnsafeCheckpointError, match="inflate"):
        read(path)
    good = craft(tmp_path / "a.pt", tensor_pickle(0, (3,), (1,)), {"0": b"\0" * 16})
    raw = good.read_bytes()
    directory = raw.index(b"PK\1\2")
    second = raw.index(b"PK\1\2", directory + 1)
    # The second member claims the first one's place.
    forged = bytearray(raw)
    forged[second + 42 : second + 46] = raw[directory + 42 : directory + 46]
    (tmp_path / "overlap.pt").write_bytes(forged)
    with pytest.raises(MalformedFileError, match=r"overlap|name"):
        read(tmp_path / "overlap.pt")


def test_deflated_members_are_read(tmp_path: Path) -> None:
    source = save(state_dict(), tmp_path / "model.pt")
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    assert_equal(read(packed), torch.load(source, weights_only=True))


def test_other_containers_are_named(tmp_path: Path) -> None:
    tar = tmp_path / "old.pt"
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    with pytest.raises(UnsupportedFormatError, match=r"torch 0\.1"):
        read(tar)
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsupportedFormatError, match="a pickle without arrays"):
        read(plain)
    with pytest.raises(MalformedFileError, match="neither"):
        read_model(ModelFile(plain), "torch")


def _read_all(path: Path) -> None:
    """Read and load everything; only SourceError may come out."""
    with contextlib.suppress(SourceError):
        for tensor in read_model(ModelFile(path), "torch").tensors:
            if not tensor.skip:
                assert tensor.load().shape == tensor.shape


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_cut_short_at_any_byte(tmp_path: Path, legacy: bool) -> None:
    raw = save({"w": torch.ones(1)}, tmp_path / "model.pt", legacy=legacy).read_bytes()
    cut = tmp_path / "cut.pt"
    for length in range(len(raw)):
        cut.write_bytes(raw[:length])
        with pytest.raises(SourceError):
            read_model(ModelFile(cut), "torch")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_files_give_values_or_source_errors(
    tmp_path: Path, legacy: bool, data: st.DataObject
) -> None:
    source = tmp_path / "source.pt"
    if not source.exists():
        save({"model": small(1), "ema": torch.nn.Conv2d(1, 2, 3)}, source, legacy=legacy)
    raw = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    mutant = tmp_path / "mutant.pt"
    mutant.write_bytes(raw)
    _read_all(mutant)


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_pickles_in_sound_zips(tmp_path: Path, data: st.DataObject) -> None:
    source = tmp_path / "source.pt"
    if not source.exists():
        save({"model": small(1), "ema": torch.nn.Conv2d(1, 2, 3)}, source)

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        raw = bytearray(content)
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        return bytes(raw)

    _read_all(rezip(source, tmp_path / "mutant.pt", change))


def test_legacy_storage_counts_are_checked(tmp_path: Path) -> None:
    raw = save({"a": torch.arange(4.0)}, tmp_path / "m.pt", legacy=True).read_bytes()
    place = raw.index(struct.pack("<q", 4), len(raw) - 30)
    bad = tmp_path / "bad.pt"
    for count in (5, -1, 1 << 62):
        bad.write_bytes(raw[:place] + struct.pack("<q", count) + raw[place + 8 :])
        with pytest.raises(MalformedFileError, match="elements"):
            read(bad)


def test_a_deflated_storage_is_inflated_once_for_all_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = torch.arange(900.0)
    parts = {f"{i}.weight": flat[9 * i : 9 * i + 9].view(1, 1, 3, 3) for i in range(100)}
    stored = save(parts, tmp_path / "stored.pt")
    path = tmp_path / "deflated.pt"
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    model = read(path)
    inflated = []
    plain = stored_array._inflate
    monkeypatch.setattr(stored_array, "_inflate", lambda m: inflated.append(m) or plain(m))
    stored_array._inflate_once.cache_clear()
    for tensor in model.tensors:
        np.testing.assert_array_equal(tensor.load(), parts[tensor.name].numpy())
    assert len(inflated) == 1
    # Nothing that was kept outlives the file it came from.
    path.write_bytes(stored.read_bytes())
    with pytest.raises(SourceError):
        model.tensors[0].load()
