"""The TFLite reader: layouts, quantisation, other operators."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filterdb.errors import MalformedFileError, UnsupportedFormatError
from tests.sources.formats.tflite_builder import ModelBuilder, i32, u64
from tests.sources.formats.tflite_files import (
    FLOAT,
    HALF,
    INT4,
    INT8,
    INT16,
    INT32,
    RNG,
    STRIDED,
    STRING,
    UINT8,
    one_operator,
    only_node,
    read,
    tensor,
)


def test_convolution(tmp_path: Path) -> None:
    raw = read(tmp_path, one_operator(3, (4, 3, 5, 6), options=STRIDED).bytes())
    node = only_node(raw)
    assert (node.name, node.op, node.source_op) == ("y", "conv", "CONV_2D")
    assert node.conv is not None
    assert (node.conv.layout, node.conv.groups) == ("OHWI", 1)
    assert (node.conv.stride, node.conv.dilation) == ((3, 2), (5, 4))
    assert node.conv.padding == (0, 0)
    assert dict(node.weights) == {"weight": "w", "bias": "b"}
    assert (node.inputs, node.outputs) == (("x",), ("y",))
    assert raw.folds_batch_norm
    assert raw.has_edges
    assert raw.notes == ("TFLite schema 3 (tests)",)
    assert [t.name for t in raw.tensors] == ["w", "b", "shape"]
    assert tensor(raw, "w").load().shape == (4, 3, 5, 6)


@pytest.mark.parametrize(
    ("code", "weight", "x", "options", "places", "layout", "groups", "stride", "op"),
    [
        (3, (4, 3, 3, 2), (1, 8, 8, 6), {}, (0, 1, 2), "OHWI", 3, (1, 1), "conv"),
        (3, (4, 3, 3, 6), (1, 8, 8, 6), None, (0, 1), "OHWI", 1, (1, 1), "conv"),
        (3, (4, 3, 3, 6), (0,), {}, (0, 1), "OHWI", None, (1, 1), "conv"),
        (4, (1, 3, 3, 6), (1, 8, 8, 6), {3: i32(1)}, (0, 1, 2), "1HWO", 6, (1, 1), "conv"),
        (4, (1, 3, 3, 12), (1, 8, 8, 6), {1: i32(2), 2: i32(2), 3: i32(2)}, (0, 1, 2),
         "1HWO", 6, (2, 2), "conv"),
        (4, (1, 3, 3, 12), (0,), {3: i32(2)}, (0, 1, 2), "1HWO", 6, (1, 1), "conv"),
        (67, (4, 2, 3, 6), (1, 4, 4, 6), {1: i32(2), 2: i32(1)}, (3, 1, 0, 2),
         "OHWI", 1, (1, 2), "conv_transpose"),
        (132, (2, 3, 4, 6, 5), (1, 4, 8, 8, 6), {1: i32(1), 2: i32(2), 3: i32(3)}, (0, 1, 2),
         "DHWIO", 1, (1, 3, 2), "conv"),
        (141, (2, 3, 4, 5, 6), (1, 4, 8, 8, 6), {}, (3, 1, 0), "DHWOI", 1, (1, 1, 1),
         "conv_transpose"),
    ],
)  # fmt: skip
def test_layouts_groups_and_strides(
    tmp_path: Path, code: int, weight: Any, x: Any, options: Any, places: Any, layout: str,
    groups: int | None, stride: Any, op: str,
) -> None:  # fmt: skip
    model = one_operator(code, weight, x=x, options=options, places=places)
    node = only_node(read(tmp_path, model.bytes()))
    assert node.conv is not None
    assert (node.op, node.conv.layout, node.conv.groups) == (op, layout, groups)
    assert node.conv.stride == stride
    assert node.conv.padding is None  # the schema's default is SAME
    assert node.weights["weight"] == "w"
    assert "shape" not in node.weights.values()
    assert node.inputs == ("x",)


@pytest.mark.parametrize(
    ("options", "stride", "padding"),
    [
        (struct.pack("<3i", 2, 2, 3), (3, 2), (0, 0)),
        (struct.pack("<3i", 1, 1, 2), (2, 1), None),
        (b"", None, None),
        (struct.pack("<3i", 1, -1, 2), None, None),
    ],
)
def test_mediapipe_transposed_convolution(
    tmp_path: Path, options: bytes, stride: Any, padding: Any
) -> None:
    custom = ("Convolution2DTransposeBias", options)
    node = only_node(read(tmp_path, one_operator(32, (4, 2, 2, 6), custom=custom).bytes()))
    assert node.conv is not None
    assert (node.op, node.conv.layout, node.conv.stride) == ("conv_transpose", "OHWI", stride)
    assert node.conv.padding == padding
    assert node.source_op == "custom:Convolution2DTransposeBias"


def test_dynamic_weight(tmp_path: Path) -> None:
    model = ModelBuilder()
    for name in ("x", "w", "y"):
        model.tensor(name, (1, 3, 3, 2))
    model.operator(3, [0, 1, -1], [2], {})
    node = only_node(read(tmp_path, model.bytes()))
    assert node.dynamic_weight == "w"
    assert dict(node.weights) == {}
    assert node.inputs == ("x", "w")


@pytest.mark.parametrize(
    ("kind", "dtype"), [(INT8, np.int8), (UINT8, np.uint8), (INT16, np.int16), (INT32, np.int32)]
)
@pytest.mark.parametrize("axis", [None, 0, 3])
def test_quantised_weights(tmp_path: Path, kind: int, dtype: Any, axis: int | None) -> None:
    w = RNG.integers(0, 120, (4, 3, 3, 5)).astype(dtype)
    n = 1 if axis is None else w.shape[axis]
    scale, zero = RNG.uniform(0.01, 0.1, n), RNG.integers(0, 9, n)
    model = ModelBuilder()
    model.tensor("w", w.shape, kind, w, scale=scale, zero_point=zero, axis=axis or 0)
    loaded = tensor(read(tmp_path, model.bytes()), "w")
    shape = [-1 if i == axis else 1 for i in range(4)]
    expected = (w.astype(np.float64) - zero.reshape(shape)) * np.float32(scale).reshape(shape)
    assert (loaded.quantised, loaded.dtype) == (True, np.dtype(dtype).name)
    assert loaded.load().dtype == np.float32
    np.testing.assert_allclose(loaded.load(), expected, rtol=2e-7)


def test_four_bit_weights(tmp_path: Path) -> None:
    model = ModelBuilder()
    packed = bytes([0x21, 0xF8, 0x07])  # 1, 2, -8, -1, 7
    model.tensor("w", (5, 1, 1, 1), INT4, packed, scale=[0.5])
    loaded = tensor(read(tmp_path, model.bytes()), "w")
    assert loaded.dtype == "int4"
    assert loaded.load().ravel().tolist() == [0.5, 1.0, -4.0, -0.5, 3.5]


def test_half_precision_behind_dequantize(tmp_path: Path) -> None:
    w = RNG.standard_normal((4, 3, 3, 6)).astype(np.float16)
    model = ModelBuilder()
    model.tensor("x", (1, 8, 8, 6))
    model.tensor("w", w.shape, HALF, w)
    model.tensor("w_dequantize", w.shape)
    model.tensor("y", (1, 8, 8, 4))
    model.operator(6, [1], [2])
    model.operator(3, [0, 2], [3], {})
    raw = read(tmp_path, model.bytes())
    node = only_node(raw)
    assert node.weights["weight"] == "w"
    assert node.inputs == ("x",)
    loaded = tensor(raw, "w")
    assert (loaded.dtype, loaded.quantised, loaded.load().dtype) == ("float16", False, np.float16)
    assert loaded.load().tobytes() == w.tobytes()


def test_integers_without_a_scale(tmp_path: Path) -> None:
    model = ModelBuilder()
    model.tensor("x", (1, 8, 8, 6))
    model.tensor("w", (4, 3, 3, 6), INT8, bytes(216))
    model.tensor("y", (1, 8, 8, 4))
    model.operator(3, [0, 1], [2], {})
    loaded = tensor(read(tmp_path, model.bytes()), "w")
    assert loaded.skip == ("missing_scale", "int8 weights without a scale")
    assert not loaded.quantised


def test_what_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    model = ModelBuilder()
    model.tensor("words", (2,), STRING, b"....")
    model.tensor("blocks", (4,), INT8, bytes(4), details=2)
    model.tensor("elsewhere", (4,), external=1)
    raw = read(tmp_path, model.bytes())
    reasons = {t.name: t.skip[0] for t in raw.tensors if t.skip}
    assert reasons == {
        "words": "unsupported_dtype",
        "blocks": "unsupported_dtype",
        "elsewhere": "missing_companion",
    }
    for found in raw.tensors:
        with pytest.raises(UnsupportedFormatError, match=found.name):
            found.load()


def test_buffers_behind_the_flatbuffer(tmp_path: Path) -> None:
    w = RNG.standard_normal((2, 3)).astype(np.float32)
    model = ModelBuilder()
    model.buffers.append({1: u64(4096), 2: u64(w.nbytes)})
    model.tensor("w", w.shape, FLOAT, buffer=1)
    data = model.bytes().ljust(4096, b"\0") + w.tobytes()
    np.testing.assert_array_equal(tensor(read(tmp_path, data), "w").load(), w)
    with pytest.raises(MalformedFileError, match="leaves the file"):
        read(tmp_path, data[:-1])


def test_repeated_and_missing_names(tmp_path: Path) -> None:
    model = ModelBuilder()
    for name in ("w", "w", "", "w#1"):
        model.tensor(name, (1,), FLOAT, np.zeros(1, np.float32))
    names = [t.name for t in read(tmp_path, model.bytes()).tensors]
    assert names[:3] == ["w", "w#1", "tensor_2"]
    assert len(set(names)) == 4


def test_tied_buffers_and_trailing_metadata(tmp_path: Path) -> None:
    model = ModelBuilder()
    model.tensor("a", (1,), FLOAT, np.zeros(1, np.float32))
    model.tensor("b", (1,), FLOAT, buffer=1)
    raw = read(tmp_path, model.bytes() + b"PK\3\4 a packed label file")
    assert tensor(raw, "a").storage == tensor(raw, "b").storage


@pytest.mark.parametrize(
    ("code", "shape", "op", "weights"),
    [
        (9, (4, 6), "linear", {"weight": "c"}),
        (18, (1, 1, 6), "multiply", {"constant": "c"}),
        (0, (6,), "add", {"constant": "c"}),
        (0, (8, 8, 6), "other", {}),
        (0, (), "other", {}),
        (54, (1, 1, 6), "norm", {"gamma": "c"}),
        (7, (9, 6), "embedding", {"weight": "c"}),
        (39, (4,), "other", {}),
    ],
)
def test_other_operators(
    tmp_path: Path, code: int, shape: tuple[int, ...], op: str, weights: dict[str, str]
) -> None:
    model = ModelBuilder()
    model.tensor("x", (1, 8, 8, 6))
    model.tensor("c", shape, FLOAT, np.zeros(shape, np.float32))
    model.tensor("y", (1, 8, 8, 6))
    model.operator(code, [0, 1], [2])
    (node,) = read(tmp_path, model.bytes()).nodes
    assert (node.op, dict(node.weights)) == (op, weights)
