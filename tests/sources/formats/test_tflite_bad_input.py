"""The TFLite reader: damaged files and absurd ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from filterdb.errors import (
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.tflite import READER
from tests.sources.formats.tflite_builder import ModelBuilder, Shared
from tests.sources.formats.tflite_files import FLOAT, HALF, INT8, STRIDED, one_operator, read


def small_model() -> bytes:
    model = one_operator(3, (2, 1, 1, 2), x=(1, 2, 2, 2), options=STRIDED)
    model.tensor("q", (2, 2), INT8, bytes(4), scale=[0.5, 0.25], axis=0)
    model.tensor("h", (2,), HALF, np.ones(2, np.float16))
    model.tensor("f", (2,))
    model.operator(6, [6], [7])
    return model.bytes()


SMALL = small_model()


def read_everything(path: Path) -> None:
    """Open a file and read all its tensors; anything but a SourceError is a failure."""
    try:
        raw = READER.read(ModelFile(path))
    except SourceError:
        return
    for found in raw.tensors:
        try:
            values = found.load()
        except SourceError:
            continue
        assert values.shape == found.shape
        assert values.nbytes < 1 << 27
    names = {t.name for t in raw.tensors}
    for node in raw.nodes:
        assert set(node.weights.values()) <= names


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    for size in range(len(SMALL)):
        path.write_bytes(SMALL[:size])
        read_everything(path)
    path.write_bytes(SMALL[: len(SMALL) // 2])
    with pytest.raises(MalformedFileError, match=r"m\.tflite is damaged"):
        READER.read(ModelFile(path))


@example(changes=[(832, 88)])  # an operator that lost its inputs
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=4))
def test_changed_bytes(tmp_path_factory: pytest.TempPathFactory, changes: Any) -> None:
    data = bytearray(SMALL)
    for position, byte in changes:
        data[position] = byte
    path = tmp_path_factory.getbasetemp() / "changed.tflite"
    path.write_bytes(data)
    read_everything(path)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tflite"
    path.write_bytes(data)
    read_everything(path)


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ((1 << 30, 1 << 30), b"....", "absurd shape"),
        ((-3,), b"....", "negative"),
        ((3,), bytes(8), "needs 12 bytes, got 8"),
        ((3,), bytes(16), "needs 12 bytes, got 16"),
    ],
)
def test_absurd_tensors(tmp_path: Path, shape: Any, data: bytes, message: str) -> None:
    model = ModelBuilder()
    model.tensor("w", shape, FLOAT, data)
    with pytest.raises(MalformedFileError, match=message):
        read(tmp_path, model.bytes())


def test_scales_that_fit_no_axis(tmp_path: Path) -> None:
    model = ModelBuilder()
    model.tensor("w", (4, 3), INT8, bytes(12), scale=[1, 2, 3, 4], axis=1)
    with pytest.raises(MalformedFileError, match="4 scales along axis 1"):
        read(tmp_path, model.bytes())


def test_indices_must_exist(tmp_path: Path) -> None:
    model = ModelBuilder()
    model.tensor("x", (1,))
    model.operator(3, [0, 7], [0], {})
    with pytest.raises(MalformedFileError, match="tensor 7 of 1"):
        read(tmp_path, model.bytes())
    model = ModelBuilder()
    model.tensor("x", (1,), buffer=9)
    with pytest.raises(MalformedFileError, match="buffer 9 of 1"):
        read(tmp_path, model.bytes())


def test_other_schema_versions(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError, match="version 2"):
        read(tmp_path, ModelBuilder().bytes(version=2))


def test_a_small_file_cannot_describe_endless_tables(tmp_path: Path) -> None:
    model = ModelBuilder()
    model.tensor("x", (1,))
    for _ in range(100):
        model.operator(3, [0], [0])
    data = model.bytes(copies=20_000)
    assert len(data) < 100_000
    with pytest.raises(UnsafeCheckpointError, match="than any network"):
        read(tmp_path, data)
    assert len(read(tmp_path, model.bytes(copies=3)).nodes) == 300


def test_one_long_vector_for_many_tensors(tmp_path: Path) -> None:
    model = ModelBuilder()
    shape = Shared(np.zeros(10_000, "<i4"))
    for i in range(1000):
        model.tensor(str(i), (1,))
        model.tensors[-1][0] = shape
    with pytest.raises(UnsafeCheckpointError, match="than any network"):
        read(tmp_path, model.bytes())


def test_sniffing(tmp_path: Path) -> None:
    file = ModelFile(tmp_path / "m")
    assert READER.sniff(SMALL[:4096], file)
    for foreign in (b"", b"TFL3", b"PK\3\4", b"\x08\x07\x12\x05tests"):
        assert not READER.sniff(foreign, file)
