"""Small files made to take the machine's memory or stack: each is refused by one clear error."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import pickle_machine, read_model, torch_walk
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.file_view import dequantise
from filterdb.sources.formats.pickle_reader import read_pickle

_MEGABYTE = 1 << 20


HOSTILE = {
    "sets": b"\x8f" * 24_000,
    "tables": b"}" * 24_000,
    "frozen sets": b"(\x91" * 12_000,
    "lists": b"]" * 30_000,
    "nested tuples": b")" + b"\x85" * 30_000,
    "floats": (b"G" + struct.pack(">d", 1.5)) * 6_000,
    "texts": b"\x8c\x01a" * 24_000,
    "wide text": b"X" + struct.pack("<I", 40_004) + b"a" * 40_000 + "\U0001f600".encode(),
    "memo": b"N" + b"\x94" * 30_000,
    "names": b"".join(b"c%x\nb\n" % i for i in range(6_000)),
    "calls": b"ca\nb\n" + b")R" * 12_000,
    "persistent": b"NQ" * 30_000,
    "pairs": b"}" + b"NNs" * 18_000,
}


@pytest.mark.parametrize("opcodes", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_pickle_cannot_outgrow_its_bytes(opcodes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    # All numbers a fiftieth of the real ones: tracing a gigabyte takes minutes.
    monkeypatch.setattr(pickle_machine, "OBJECT_SLACK", pickle_machine.OBJECT_SLACK // 50)
    data = b"\x80\x04" + opcodes + b"."
    tracemalloc.start()
    try:
        with contextlib.suppress(UnsafeCheckpointError):
            read_pickle(data, where="hostile")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # What is made of the objects afterwards may take as much again.
    assert peak < len(data) + 128 * _MEGABYTE // 50


@pytest.mark.parametrize("kept", ["one tensor under many names", "one module in many places"])
def test_names_cannot_outgrow_the_file(
    tmp_path: Path, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_walk, "_MEMORY_SLACK", torch_walk._MEMORY_SLACK // 50)
    dense = b"ctorch._utils\n_rebuild_tensor_v2\n(" + _storage() + _SIZES + _HOOKS + b"tR"
    if kept == "one module in many places":
        dense = (
            b"cm\nM\n)R}(" + _text("_parameters") + b"}" + _text("w") + dense + b"s"
            + _text("_modules") + b"}ub"
        )  # fmt: skip
    many = b"".join(b"\x8c\x06%06xh\x00" % i for i in range(8_000))
    path = tmp_path / "names.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x04" + dense + b"q\x000}(" + many + b"u.")
        archive.writestr("m/data/0", bytes(36))
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeCheckpointError):
            read_model(ModelFile(path), "torch")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * path.stat().st_size + 256 * _MEGABYTE // 50


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _storage() -> bytes:
    kind = b"ctorch\nFloatStorage\n"
    return b"(" + _text("storage") + kind + _text("0") + _text("cpu") + b"K\x09tQ"


_SIZES = b"K\0(K\x01K\x01K\x03K\x03t(K\x09K\x09K\x03K\x01t"
_HOOKS = b"\x89ccollections\nOrderedDict\n)R"


def test_scales_that_have_scales_do_not_exhaust_the_stack(tmp_path: Path) -> None:
    dense = b"ctorch._utils\n_rebuild_tensor_v2\n(" + _storage() + _SIZES + _HOOKS + b"tR"
    start = b"ctorch._utils\n_rebuild_qtensor\n(" + _storage() + _SIZES
    start += b"(ctorch\nper_channel_affine\n"
    end = b"K\0K\0t" + _HOOKS + b"tR"
    pickled = b"\x80\x02}" + _text("conv.weight") + 1500 * start + dense + 1500 * end + b"s."
    path = tmp_path / "nested.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/data/0", bytes(36))
    with pytest.raises(MalformedFileError, match="itself quantised"):
        read_model(ModelFile(path), "torch")


@pytest.mark.parametrize("entry", ['"%x":0', '"a%x":[1000,1000,1000,1000,1000]'])
def test_a_safetensors_header_cannot_outgrow_its_bytes(tmp_path: Path, entry: str) -> None:
    header = ("{" + ",".join(entry % i for i in range(1_100_000)) + "}").encode()
    path = tmp_path / "large.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UnsafeCheckpointError, match="more than any real one"):
        read_model(ModelFile(path), "safetensors")


def test_many_tensors_in_safetensors_are_read(tmp_path: Path) -> None:
    names = [f"layer{i}" for i in range(20_000)]
    entry = {"dtype": "F32", "shape": [0, 3, 3, 3], "data_offsets": [0, 0]}
    header = json.dumps(dict.fromkeys(names, entry)).encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert len(read_model(ModelFile(path), "safetensors").tensors) == 20_000


def test_a_block_may_be_stated_longer_than_its_axis() -> None:
    values, scale = np.ones((64, 16), np.int8), np.arange(64, dtype=np.float32).reshape(64, 1)
    got = dequantise(values, scale, None, axis=1, block_size=1 << 40)
    np.testing.assert_array_equal(got, np.broadcast_to(scale, (64, 16)))


def test_half_characters_in_names_are_spelt_out(tmp_path: Path) -> None:
    name = b"X" + struct.pack("<I", 10) + b"\xed\xa0\x80.weight"
    dense = b"ctorch._utils\n_rebuild_tensor_v2\n(" + _storage() + _SIZES + _HOOKS + b"tR"
    path = tmp_path / "half.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}" + name + dense + b"s.")
        archive.writestr("m/data/0", bytes(36))
    assert [t.name for t in read_model(ModelFile(path)).tensors] == ["\\ud800.weight"]
    assert read_pickle(b"V\\ud800\n.", where="x").value == "\\ud800"


@pytest.mark.parametrize("half", ["\\ud800", "\\uDFFF"])
def test_half_characters_in_safetensors_are_refused(tmp_path: Path, half: str) -> None:
    header = b'{"%s":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' % half.encode()
    path = tmp_path / "half.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(MalformedFileError, match="not proper JSON"):
        read_model(ModelFile(path), "safetensors")


def test_names_without_an_end_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0, 3, 3, 3], "data_offsets": [0, 0]}
    path = tmp_path / "named.safetensors"
    for length, is_fine in ((8000, True), (1_000_000, False)):
        header = json.dumps({"a" * length: entry}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        if is_fine:
            assert find_layers(read_model(ModelFile(path), "safetensors")).layers == ()
        else:
            with pytest.raises(UnsafeCheckpointError, match="1,000,000 characters"):
                read_model(ModelFile(path), "safetensors")
