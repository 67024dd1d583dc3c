"""safetensors: equal to its own package, strict about everything its header claims."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from filterdb.errors import (
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.formats import ModelFile, detect, read_model

if TYPE_CHECKING:
    from filterdb.layers.raw import RawModel


def read(path: Path) -> RawModel:
    return read_model(ModelFile(path))


def write(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kinds = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "uint16"]
    found = {kind: (rng.standard_normal((2, 3)) * 50).astype(kind) for kind in kinds}
    found["bool"] = np.array([True, False, True])
    found["scalar"] = np.array(2.5, np.float32)
    found["empty"] = np.zeros((0, 3), np.float32)
    return found


def test_every_type_equals_the_package(tmp_path: Path) -> None:
    expected = arrays()
    save_file(expected, tmp_path / "m.safetensors")
    model = read(tmp_path / "m.safetensors")
    assert {t.name for t in model.tensors} == set(expected)
    for tensor in model.tensors:
        loaded = tensor.load()
        assert loaded.dtype == expected[tensor.name].dtype
        assert tensor.dtype == str(loaded.dtype)
        assert loaded.shape == tensor.shape
        np.testing.assert_array_equal(loaded, expected[tensor.name])
    assert model.default_layout is None
    assert model.format == "safetensors"


def test_bfloat16_is_widened_without_loss(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((3, 4)).astype(ml_dtypes.bfloat16)
    header = {"w": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}}
    path = write(tmp_path / "m.safetensors", header, values.tobytes())
    (tensor,) = read(path).tensors
    assert tensor.dtype == "bfloat16"
    assert tensor.load().dtype == np.float32
    np.testing.assert_array_equal(tensor.load(), values.astype(np.float32))


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_types_of_eight_bits_are_skipped_by_name(tmp_path: Path, kind: str) -> None:
    header = {"w": {"dtype": kind, "shape": [4], "data_offsets": [0, 4]}}
    (tensor,) = read(write(tmp_path / "m.safetensors", header, b"abcd")).tensors
    assert tensor.skip == ("unsupported_dtype", kind)


def test_torch_files_say_their_layout(tmp_path: Path) -> None:
    save_file({"w": np.ones(1)}, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert read(tmp_path / "m.safetensors").default_layout == "OIHW"
    save_file({"w": np.ones(1)}, tmp_path / "m.safetensors", metadata={"format": "mlx"})
    model = read(tmp_path / "m.safetensors")
    assert model.default_layout is None
    assert model.notes == ("format: mlx",)


MODULES = [
    {
        "name": "stem", "type": "Conv2d", "weight": "stem.weight", "bias": None, "stride": [2, 2],
        "padding": [1, 1], "dilation": [1, 1], "groups": 1, "transposed": False,
    },
    {
        "name": "bn", "type": "BatchNorm2d", "gamma": "bn.weight", "beta": "bn.bias",
        "mean": "bn.running_mean", "var": "bn.running_var", "eps": 0.001,
    },
    {"name": "act", "type": "ReLU"},
    {"name": "up", "type": "ConvTranspose2d", "weight": "up.weight", "transposed": True},
]  # fmt: skip


def modules_file(path: Path, modules: Any) -> Path:
    tensors = {
        "stem.weight": np.ones((4, 3, 3, 3), np.float32),
        "up.weight": np.ones((4, 2, 2, 2), np.float32),
    } | {f"bn.{n}": np.ones(4) for n in ("weight", "bias", "running_mean", "running_var")}
    text = modules if isinstance(modules, str) else json.dumps(modules)
    save_file(tensors, path, metadata={"format": "pt", "filterdb.modules": text})
    return path


def test_module_metadata_becomes_nodes(tmp_path: Path) -> None:
    model = read(modules_file(tmp_path / "m.safetensors", MODULES))
    assert [(n.name, n.op) for n in model.nodes] == [
        ("stem", "conv"), ("bn", "batch_norm"), ("act", "other"), ("up", "conv_transpose"),
    ]  # fmt: skip
    stem, norm, _, up = model.nodes
    assert stem.conv is not None
    assert (stem.conv.layout, stem.conv.stride, stem.conv.groups) == ("OIHW", (2, 2), 1)
    assert stem.weights == {"weight": "stem.weight"}
    assert norm.epsilon == 0.001
    assert norm.weights["mean"] == "bn.running_mean"
    assert up.conv is not None
    assert up.conv.layout == "IOHW"
    assert not model.has_edges


@pytest.mark.parametrize(
    "modules",
    ["{", "{}", "[1]", [{"name": "a"}], [{"name": "a", "type": "Conv2d", "weight": "nowhere"}]],
)
def test_broken_module_metadata(tmp_path: Path, modules: Any) -> None:
    with pytest.raises(MalformedFileError, match="module"):
        read(modules_file(tmp_path / "m.safetensors", modules))


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, "overlap"),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, "gap"),
        ({"a": entry([4], 0, 16)}, "follow the header"),
        ({"a": entry([2], 0, 12)}, "takes 8 bytes"),
        ({"a": entry([-1], 0, 4)}, "shape"),
        ({"a": entry([1.5], 0, 4)}, "shape"),
        ({"a": entry([True], 0, 4)}, "shape"),
        ({"a": entry([1 << 61, 8], 0, 4)}, "absurd"),
        ({"a": entry([1] * 40, 0, 4)}, "absurd"),
        ({"a": entry([1], 8, 4)}, "hold -4"),
        ({"a": entry([1], 0, 4, "F33")}, "unknown type"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "offsets"),
        ({"a": [1]}, "described by a list"),
        ({"__metadata__": {"format": 1}}, "strings"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a"', "JSON"),
        (b"{" + b'"a":[' * 2000, "JSON"),
        (b"{\xff}", "JSON"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, match: str) -> None:
    path = write(tmp_path / "m.safetensors", header, b"\0" * 20)
    with pytest.raises(MalformedFileError, match=match) as caught:
        read(path)
    assert "m.safetensors" in str(caught.value)


def test_absurd_lengths_and_nesting(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(MalformedFileError, match="should end at byte"):
        read(write(path, {}, length=5000))
    with pytest.raises(MalformedFileError, match="allows"):
        read_model(ModelFile(write(path, {}, length=1 << 60)), "safetensors")
    with pytest.raises(UnsafeCheckpointError, match="nests"):
        read(write(path, b"{" + b"[" * 3_100_000))
    with pytest.raises(UnsupportedFormatError):
        detect(ModelFile(write(path, {}, length=1 << 60)))


def test_cut_short_at_any_byte(tmp_path: Path) -> None:
    save_file({"a": np.ones((2, 2)), "b": np.ones(3)}, tmp_path / "m.safetensors")
    raw = (tmp_path / "m.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(raw)):
        cut.write_bytes(raw[:length])
        with pytest.raises(SourceError):
            read(cut)


@given(data=st.data())
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_files_give_values_or_source_errors(tmp_path: Path, data: st.DataObject) -> None:
    source = tmp_path / "source.safetensors"
    if not source.exists():
        modules_file(source, MODULES)
    raw = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(len(raw) - 1, 1500)))] = data.draw(st.integers(0, 255))
    mutant = tmp_path / "mutant.safetensors"
    mutant.write_bytes(raw)
    with contextlib.suppress(SourceError):
        for tensor in read_model(ModelFile(mutant), "safetensors").tensors:
            if not tensor.skip:
                assert tensor.load().shape == tensor.shape
