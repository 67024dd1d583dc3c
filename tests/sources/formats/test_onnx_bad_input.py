"""Damaged and hostile ONNX files: only SourceError comes out, and memory stays bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from filterdb.errors import (
    FetchError,
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
)
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.onnx import READER


def value(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 8, 8])


def small_model() -> bytes:
    """A file with most of what the parser looks at, in about 700 bytes."""
    rng = np.random.default_rng(1)
    branch = helper.make_graph(
        [helper.make_node("Conv", ["h", "w2"], ["out"], strides=[2, 2])], "b", [], [value("out")]
    )
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0, 2, 3]),
        helper.make_node("Conv", ["x", "t"], ["h"], name="c", pads=[1, 1, 1, 1]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    stored = [
        numpy_helper.from_array(rng.integers(-9, 9, (2, 1, 3, 3)).astype(np.int8), "q"),
        numpy_helper.from_array(np.array([0.5, 0.25], np.float32), "s"),
        helper.make_tensor("w2", TensorProto.FLOAT, [1, 1, 1, 2], [0.5, 2.0]),
        helper.make_tensor("i", TensorProto.INT64, [2], [3, -3]),
        helper.make_tensor("h16", TensorProto.FLOAT16, [2], [1.5, 2.5]),
    ]
    graph = helper.make_graph(nodes, "g", [value("x"), value("c")], [value("y")], stored)
    data: bytes = helper.make_model(graph, producer_name="tests").SerializeToString()
    return data


SMALL = small_model()


def read_everything(path: Path) -> None:
    """Open a file and read all its tensors; anything but a SourceError is a failure."""
    try:
        raw = READER.read(ModelFile(path, name="m.onnx"))
        READER.companions(ModelFile(path))
    except SourceError:
        return
    for found in raw.tensors:
        try:
            array = found.load()
        except SourceError:
            continue
        assert array.shape == found.shape
    names = {t.name for t in raw.tensors}
    for node in raw.nodes:
        assert set(node.weights.values()) <= names


def test_the_small_model_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(SMALL)
    onnx.load_from_string(SMALL)
    raw = READER.read(ModelFile(path))
    assert [n.op for n in raw.nodes].count("conv") == 3
    assert {t.name for t in raw.tensors} == {"q", "s", "w2", "i", "h16"}


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for size in range(len(SMALL)):
        path.write_bytes(SMALL[:size])
        read_everything(path)
        if size < len(SMALL) - 40:
            with pytest.raises(MalformedFileError):
                READER.read(ModelFile(path))


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=4))
def test_changed_bytes(tmp_path_factory: pytest.TempPathFactory, changes: Any) -> None:
    data = bytearray(SMALL)
    for position, byte in changes:
        data[position] = byte
    path = tmp_path_factory.getbasetemp() / "changed.onnx"
    path.write_bytes(data)
    read_everything(path)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.integers(0, len(SMALL)))
def test_inserted_bytes(tmp_path_factory: pytest.TempPathFactory, more: bytes, at: int) -> None:
    path = tmp_path_factory.getbasetemp() / "inserted.onnx"
    path.write_bytes(SMALL[:at] + more + SMALL[at:])
    read_everything(path)


def field(number: int, payload: bytes | int) -> bytes:
    def varint(n: int) -> bytes:
        out = bytearray()
        while n >= 0x80:
            out.append(n & 0x7F | 0x80)
            n >>= 7
        return bytes(out + bytes([n]))

    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def tensor(dims: list[int], *, data: bytes = b"", data_type: int = 1) -> bytes:
    shape = b"".join(field(1, d) for d in dims)
    return shape + field(2, data_type) + field(8, b"t") + (field(9, data) if data else b"")


@pytest.mark.parametrize(
    ("stored", "error"),
    [
        (tensor([1 << 40, 1 << 40]), MalformedFileError),
        (tensor([0, 1 << 62, 1 << 62]), MalformedFileError),
        (tensor([(1 << 64) - 3]), MalformedFileError),
        (tensor([1] * 100, data=bytes(4)), MalformedFileError),
        (tensor([1 << 30]), MalformedFileError),
        (tensor([3], data=bytes(16)), MalformedFileError),
        (tensor([3], data=bytes(8)), MalformedFileError),
        (tensor([3], data=bytes(12)) + field(4, bytes(12)), MalformedFileError),
        (tensor([3], data_type=1) + field(7, bytes(3)), MalformedFileError),
        (tensor([3], data_type=7) + field(7, b"\x80\x80\x80"), None),
        (tensor([1], data_type=7) + field(7, b"\xff" * 11), MalformedFileError),
    ],
)
def test_absurd_tensors(tmp_path: Path, stored: bytes, error: type[SourceError] | None) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(field(1, 8) + field(7, field(5, stored)))
    if error is not None:
        with pytest.raises(error, match=r"m\.onnx"):
            READER.read(ModelFile(path))
        return
    raw = READER.read(ModelFile(path))
    with pytest.raises(MalformedFileError):
        raw.tensors[0].load()


def test_graphs_nested_without_end(tmp_path: Path) -> None:
    data = b""
    for _ in range(200):
        data = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, data)))
    path = tmp_path / "m.onnx"
    path.write_bytes(field(1, 8) + field(7, data))
    with pytest.raises(UnsafeCheckpointError, match="nests"):
        READER.read(ModelFile(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no graph"),
        (b"\0" * 64, "field number 0"),
        (b"\x0b" * 64, "wire type 3"),
        (field(1, 8), "no graph"),
        (field(7, b"") * 2, "second graph"),
        (b"PK\3\4" + bytes(60), "damaged"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(MalformedFileError, match=message):
        READER.read(ModelFile(path))


def test_a_value_computed_twice(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])] * 2
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")])
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(MalformedFileError, match="'y' twice"):
        READER.read(ModelFile(path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"gone\.onnx"):
        READER.read(ModelFile(tmp_path / "gone.onnx"))


def test_sniffing(tmp_path: Path) -> None:
    file = ModelFile(tmp_path / "m")
    assert READER.sniff(SMALL[:4096], file)
    # TensorFlow's SavedModel begins with a version and a long message as well.
    assert not READER.sniff(b"\x08\x01\x12" + b"\xd0\x0f" + bytes(2000), file)
    for foreign in (b"", b"\x80\x02}q", b"PK\3\4" + bytes(100), b"{}", SMALL[20:], b"\0" * 100):
        assert not READER.sniff(foreign, file)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_sniffing_never_raises(head: bytes) -> None:
    assert READER.sniff(head, ModelFile(Path("m"))) in (True, False)
