"""The ONNX reader against the onnx package: how values are encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from filterdb.errors import MalformedFileError, UnsafeCheckpointError, UnsupportedFormatError
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.onnx import READER
from tests.sources.formats.onnx_files import (
    RNG,
    conv,
    convolutions,
    model_of,
    read,
    tensor,
    weight,
)

TYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.INT8: np.int8,
    TensorProto.UINT8: np.uint8,
    TensorProto.INT16: np.int16,
    TensorProto.UINT16: np.uint16,
    TensorProto.INT32: np.int32,
    TensorProto.UINT32: np.uint32,
    TensorProto.INT64: np.int64,
    TensorProto.UINT64: np.uint64,
    TensorProto.BOOL: np.bool_,
    TensorProto.INT4: ml_dtypes.int4,
    TensorProto.UINT4: ml_dtypes.uint4,
    TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    TensorProto.FLOAT8E5M2: ml_dtypes.float8_e5m2,
}


def some_values(kind: Any) -> np.ndarray[Any, Any]:
    if np.dtype(kind) == np.bool_:
        return np.array([[True, False, True], [False, False, True], [True, True, False]])
    limits = ml_dtypes.iinfo(kind) if np.dtype(kind).kind in "iu" or "int" in str(kind) else None
    if limits is not None:
        low, high = int(limits.min), int(limits.max)
        return np.array([low, high, 0, 1, high // 3, low // 3, 5, 3, 2], dtype=kind).reshape(3, 3)
    return RNG.standard_normal((3, 3)).astype(kind)


@pytest.mark.parametrize("raw_bytes", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("data_type", TYPES, ids=lambda t: TensorProto.DataType.Name(t))
def test_every_encoding_equals_numpy_helper(
    tmp_path: Path, data_type: int, raw_bytes: bool
) -> None:
    values = some_values(TYPES[data_type])
    if raw_bytes:
        proto = numpy_helper.from_array(values, "t")
    else:
        proto = helper.make_tensor("t", data_type, values.shape, values.flatten().tolist())
    raw = read(tmp_path, model_of([helper.make_node("Identity", ["x"], ["y"])], [proto]))
    found = tensor(raw, "t")
    got, expected = found.load(), numpy_helper.to_array(proto)
    assert found.shape == got.shape == expected.shape
    if expected.dtype.name.startswith(("bfloat", "float8", "int4", "uint4")):
        # numpy does not have the type: bfloat16 and float8 come as float32, int4 as int8.
        np.testing.assert_array_equal(got.astype(np.float64), expected.astype(np.float64))
    else:
        assert got.dtype == expected.dtype
        assert got.tobytes() == expected.tobytes()
    assert got.dtype.isnative
    assert got.flags.owndata or got.base is not None


def varint(number: int) -> bytes:
    out = bytearray()
    number &= (1 << 64) - 1
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes([number]))


def field(number: int, payload: bytes | int) -> bytes:
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


@pytest.mark.parametrize(
    ("data_type", "payload", "expected"),
    [
        (1, b"".join(b"\x25" + np.float32(v).tobytes() for v in (1.5, -2, 3)), [1.5, -2, 3]),
        (7, b"".join(field(7, v) for v in (1, -2, 3)), [1, -2, 3]),
        (3, b"".join(field(5, v) for v in (1, -2, 3)), [1, -2, 3]),
        (11, b"".join(b"\x51" + np.float64(v).tobytes() for v in (1.5, -2, 3)), [1.5, -2, 3]),
    ],
    ids=["float", "int64", "int8", "double"],
)
def test_unpacked_fields(
    tmp_path: Path, data_type: int, payload: bytes, expected: list[float]
) -> None:
    # protobuf writers pack these fields, but parsers must take one element a tag as well.
    stored = field(1, 3) + field(2, data_type) + payload + field(8, b"t")
    path = tmp_path / "m.onnx"
    path.write_bytes(field(1, 8) + field(7, field(5, stored)))
    assert onnx.load(path).graph.initializer[0].name == "t"
    assert tensor(READER.read(ModelFile(path)), "t").load().tolist() == expected


def test_dims_may_be_packed(tmp_path: Path) -> None:
    stored = field(1, varint(2) + varint(1)) + field(2, 1) + field(9, bytes(8)) + field(8, b"t")
    path = tmp_path / "m.onnx"
    path.write_bytes(field(1, 8) + field(7, field(5, stored)))
    assert tensor(READER.read(ModelFile(path)), "t").shape == (2, 1)


def test_strings_are_listed_with_a_reason(tmp_path: Path) -> None:
    words = helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"])
    raw = read(tmp_path, model_of([helper.make_node("Identity", ["x"], ["y"])], [words]))
    assert tensor(raw, "words").skip == ("unsupported_dtype", "string")
    with pytest.raises(UnsupportedFormatError, match="words"):
        tensor(raw, "words").load()


def sparse_model(indices: list[int], shape: list[int], dims: list[int]) -> onnx.ModelProto:
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [3.0, -1.5])
    places = helper.make_tensor("i", TensorProto.INT64, shape, indices)
    model = model_of([conv()])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, dims))
    return model


def test_sparse_weights_are_expanded(tmp_path: Path) -> None:
    dense = np.zeros((1, 1, 3, 2), np.float32)
    dense[0, 0, 0, 1], dense[0, 0, 2, 0] = 3, -1.5
    flat = sparse_model([1, 4], [2], [1, 1, 3, 2])
    placed = sparse_model([0, 0, 0, 1, 0, 0, 2, 0], [2, 4], [1, 1, 3, 2])
    constant = model_of([helper.make_node("Constant", [], ["w"], sparse_value=(
        flat.graph.sparse_initializer[0])), conv()])  # fmt: skip
    for model in (flat, placed, constant):
        raw = read(tmp_path, model)
        np.testing.assert_array_equal(weight(raw, convolutions(raw)[0]).load(), dense)


@pytest.mark.parametrize(
    ("indices", "shape"), [([1, 6], [2]), ([-1, 2], [2]), ([1], [1]), ([0] * 7 + [2], [2, 4])]
)
def test_sparse_weights_that_do_not_fit_are_refused(
    tmp_path: Path, indices: list[int], shape: list[int]
) -> None:
    raw = read(tmp_path, sparse_model(indices, shape, [1, 1, 3, 2]))
    with pytest.raises(MalformedFileError, match="do not fit"):
        tensor(raw, "w").load()


def test_a_sparse_tensor_may_not_expand_without_end(tmp_path: Path) -> None:
    raw = read(tmp_path, sparse_model([1, 4], [2], [1 << 20, 1 << 10]))
    with pytest.raises(UnsafeCheckpointError, match="would take"):
        tensor(raw, "w").load()


@pytest.mark.parametrize("kind", ["FLOAT4E2M1", "FLOAT8E8M0", "UINT2", "INT2"])
@pytest.mark.parametrize("raw_data", [True, False])
def test_the_smallest_types_equal_the_onnx_package(
    tmp_path: Path, kind: str, raw_data: bool
) -> None:
    number = getattr(TensorProto, kind)
    bits = {"FLOAT4E2M1": 4, "FLOAT8E8M0": 8}.get(kind, 2)
    count = 37
    packed = np.random.default_rng(2).integers(0, 255, -(-count * bits // 8)).astype(np.uint8)
    proto = TensorProto(name="w", data_type=number, dims=[count])
    if raw_data:
        proto.raw_data = packed.tobytes()
    else:
        proto.int32_data.extend(int(n) for n in packed)
    ours = tensor(read(tmp_path, model_of([], [proto])), "w").load()
    expected = onnx.numpy_helper.to_array(proto).astype(np.float32)
    np.testing.assert_array_equal(ours.astype(np.float32), expected)
