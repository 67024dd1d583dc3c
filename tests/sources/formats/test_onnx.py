"""The ONNX reader against the onnx package: encodings, weight resolution, attributes, edges."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from filterdb.errors import (
    MalformedFileError,
    MissingCompanionError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.onnx import READER

if TYPE_CHECKING:
    from filterdb.layers.raw import Node, RawModel, Tensor

RNG = np.random.default_rng(20)


def save(path: Path, model: onnx.ModelProto) -> ModelFile:
    target = path / "model.onnx"
    target.write_bytes(model.SerializeToString())
    return ModelFile(target)


def model_of(
    nodes: list[Any],
    initializers: list[Any] = (),  # type: ignore[assignment]
    *,
    inputs: tuple[str, ...] = ("x",),
    outputs: tuple[str, ...] = ("y",),
    opset: int = 21,
    **more: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        initializer=list(initializers),
    )
    return helper.make_model(
        graph, producer_name="tests", opset_imports=[helper.make_opsetid("", opset)], **more
    )


def array(values: Any, name: str) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def read(path: Path, model: onnx.ModelProto) -> RawModel:
    raw = READER.read(save(path, model))
    assert len({t.name for t in raw.tensors}) == len(raw.tensors)
    return raw


def tensor(raw: RawModel, name: str) -> Tensor:
    return next(t for t in raw.tensors if t.name == name)


def convolutions(raw: RawModel) -> list[Node]:
    return [n for n in raw.nodes if n.op in ("conv", "conv_transpose")]


def weight(raw: RawModel, node: Node) -> Tensor:
    return tensor(raw, node.weights["weight"])


def conv(w: str = "w", x: str = "x", y: str = "y", **attributes: Any) -> Any:
    return helper.make_node("Conv", [x, w], [y], name=f"conv_{y}", **attributes)


# --- encodings -----------------------------------------------------------------------------------

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


def test_strings_and_sparse_tensors_are_listed_with_a_reason(tmp_path: Path) -> None:
    words = helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"])
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [3.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [4])
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], [words])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 3]))
    raw = read(tmp_path, model)
    assert tensor(raw, "words").skip == ("unsupported_dtype", "string")
    assert tensor(raw, "sparse").skip == ("unsupported_dtype", "sparse tensor")
    assert tensor(raw, "sparse").shape == (3, 3)
    for found in raw.tensors:
        with pytest.raises(UnsupportedFormatError, match=found.name):
            found.load()


# --- where weights come from ---------------------------------------------------------------------


def test_plain_convolution(tmp_path: Path) -> None:
    w, b = RNG.standard_normal((6, 2, 3, 5)).astype(np.float32), np.zeros(6, np.float32)
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], name="stem", group=2,
        strides=[2, 1], dilations=[1, 3], pads=[1, 2, 1, 2],
    )  # fmt: skip
    raw = read(tmp_path, model_of([node], [array(w, "w"), array(b, "b")]))
    (found,) = raw.nodes
    assert (found.name, found.op, found.source_op) == ("stem", "conv", "Conv")
    assert dict(found.weights) == {"weight": "w", "bias": "b"}
    assert found.conv is not None
    assert found.conv.layout == "OIHW"
    assert (found.conv.groups, found.conv.stride, found.conv.dilation) == (2, (2, 1), (1, 3))
    assert found.conv.padding == (1, 2)
    assert (found.inputs, found.outputs) == (("x",), ("y",))
    assert raw.has_edges
    assert not raw.folds_batch_norm
    assert "producer tests" in raw.notes[0]
    assert "ai.onnx 21" in raw.notes[0]
    np.testing.assert_array_equal(tensor(raw, "w").load(), w)
    assert tensor(raw, "w").dtype == "float32"


@pytest.mark.parametrize(
    ("attributes", "padding"),
    [
        ({}, (0, 0)),
        ({"pads": [1, 1, 1, 1]}, (1, 1)),
        ({"pads": [0, 1, 2, 1]}, (0, 1, 2, 1)),
        ({"auto_pad": "SAME_UPPER"}, None),
        ({"auto_pad": "SAME_LOWER"}, None),
        ({"auto_pad": "VALID"}, (0, 0)),
        ({"auto_pad": "NOTSET", "pads": [3, 3, 3, 3]}, (3, 3)),
    ],
)
def test_padding(tmp_path: Path, attributes: dict[str, Any], padding: Any) -> None:
    w = np.zeros((1, 1, 3, 3), np.float32)
    (found,) = read(tmp_path, model_of([conv(**attributes)], [array(w, "w")])).nodes
    assert found.conv is not None
    assert found.conv.padding == padding
    assert found.conv.stride == found.conv.dilation == (1, 1)


@pytest.mark.parametrize(("rank", "letters"), [(1, "W"), (2, "HW"), (3, "DHW")])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_ranks_and_transposed_layouts(tmp_path: Path, kind: str, rank: int, letters: str) -> None:
    w = np.zeros((4, 2, *(3,) * rank), np.float32)
    node = helper.make_node(kind, ["x", "w"], ["y"])
    (found,) = read(tmp_path, model_of([node], [array(w, "w")])).nodes
    assert found.conv is not None
    transposed = kind == "ConvTranspose"
    assert found.op == ("conv_transpose" if transposed else "conv")
    assert found.conv.layout == ("IO" if transposed else "OI") + letters
    assert found.conv.stride == (1,) * rank


@pytest.mark.parametrize(
    "attribute",
    [
        {"value": array(np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3), "")},
        {"value_floats": [float(i) for i in range(9)]},
    ],
    ids=["value", "value_floats"],
)
def test_constant_nodes(tmp_path: Path, attribute: dict[str, Any]) -> None:
    nodes = [helper.make_node("Constant", [], ["w0"], **attribute)]
    name = "w0"
    if "value_floats" in attribute:
        nodes.append(helper.make_node("Reshape", ["w0", "shape"], ["w"]))
        name = "w"
    nodes.append(conv(name))
    raw = read(tmp_path, model_of(nodes, [array(np.array([1, 1, 3, 3]), "shape")]))
    (found,) = convolutions(raw)
    # However it is reshaped, the stored tensor keeps its name.
    assert found.weights["weight"] == "w0"
    loaded = weight(raw, found)
    assert loaded.shape == (1, 1, 3, 3)
    assert loaded.load().ravel().tolist() == list(range(9))
    assert [n.source_op for n in raw.nodes] == ["Conv"]


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"value_float": 1.5}, 1.5),
        ({"value_int": -3}, -3),
        ({"value_ints": [1, -2, 3]}, [1, -2, 3]),
        ({"value_floats": [0.5]}, [0.5]),
    ],
)
def test_constant_numbers(tmp_path: Path, attribute: dict[str, Any], expected: Any) -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], **attribute),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    assert tensor(read(tmp_path, model_of(nodes)), "c").load().tolist() == expected


def test_identity_and_cast_keep_the_stored_type(tmp_path: Path) -> None:
    w = RNG.standard_normal((2, 1, 3, 3)).astype(np.float16)
    nodes = [
        helper.make_node("Identity", ["w"], ["w1"]),
        helper.make_node("Cast", ["w1"], ["w2"], to=TensorProto.FLOAT),
        conv("w2"),
    ]
    raw = read(tmp_path, model_of(nodes, [array(w, "w")]))
    (found,) = convolutions(raw)
    assert weight(raw, found).name == "w"
    assert weight(raw, found).dtype == "float16"
    np.testing.assert_array_equal(weight(raw, found).load(), w)


def test_transposed_constant_becomes_a_layout(tmp_path: Path) -> None:
    w = RNG.standard_normal((3, 5, 2, 4)).astype(np.float32)  # HWIO
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[3, 2, 0, 1]),
        helper.make_node("Identity", ["t"], ["u"]),
        conv("u"),
    ]
    raw = read(tmp_path, model_of(nodes, [array(w, "w")]))
    (found,) = convolutions(raw)
    assert found.conv is not None
    assert found.conv.layout == "HWIO"
    assert weight(raw, found).shape == (3, 5, 2, 4)
    twice = [
        helper.make_node("Transpose", ["w"], ["a"], perm=[2, 3, 0, 1]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[1, 0, 2, 3]),
        conv("b"),
    ]
    (found,) = convolutions(read(tmp_path, model_of(twice, [array(w, "w")])))
    assert found.conv is not None
    assert found.conv.layout == "HWIO"


def evaluate(model: onnx.ModelProto, wanted: str) -> np.ndarray[Any, Any]:
    """What the onnx package's reference evaluator computes for a value that is constant."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.append(helper.make_tensor_value_info(wanted, TensorProto.FLOAT, None))
    keep, needed = [], {wanted}
    for node in reversed(probe.graph.node):
        if needed & set(node.output):
            keep.append(node)
            needed |= set(node.input)
    del probe.graph.node[:]
    probe.graph.node.extend(reversed(keep))
    del probe.graph.input[:]
    (result,) = ReferenceEvaluator(probe).run(None, {})
    return np.asarray(result)


@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_dequantised_weights(tmp_path: Path, kind: Any, axis: int | None, zero_point: bool) -> None:
    w = RNG.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (4, 3, 3, 3)).astype(kind)
    n = 1 if axis is None else w.shape[axis]
    scale = RNG.uniform(0.01, 0.2, n).astype(np.float32)
    zero = RNG.integers(1, 90, n).astype(kind)
    if axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    inputs = ["w", "s", "z"] if zero_point else ["w", "s"]
    attributes = {} if axis is None else {"axis": axis}
    nodes = [helper.make_node("DequantizeLinear", inputs, ["d"], **attributes), conv("d")]
    model = model_of(nodes, [array(w, "w"), array(scale, "s"), array(zero, "z")])
    raw = read(tmp_path, model)
    (found,) = convolutions(raw)
    loaded = weight(raw, found)
    assert (loaded.name, loaded.dtype, loaded.quantised) == ("w", np.dtype(kind).name, True)
    assert loaded.load().dtype == np.float32
    np.testing.assert_array_equal(loaded.load(), evaluate(model, "d"))
    skipped = tensor(raw, "s").skip
    assert skipped is not None
    assert skipped[0] == "buffer"


def test_blocked_quantisation(tmp_path: Path) -> None:
    w = RNG.integers(-8, 8, (2, 5, 1, 1)).astype(ml_dtypes.int4)
    scale = RNG.uniform(0.1, 1, (2, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=1, block_size=2),
        conv("d"),
    ]
    model = model_of(nodes, [numpy_helper.from_array(w, "w"), array(scale, "s")])
    raw = read(tmp_path, model)
    expected = w.astype(np.float32) * np.repeat(scale, 2, axis=1)[:, :5]
    loaded = weight(raw, convolutions(raw)[0])
    assert (loaded.dtype, loaded.quantised) == ("int4", True)
    np.testing.assert_array_equal(loaded.load(), expected)


def test_dequantise_then_transpose_then_reshape(tmp_path: Path) -> None:
    w = RNG.integers(-128, 128, (9, 2, 4)).astype(np.int8)
    scale = RNG.uniform(0.01, 0.2, 4).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=2),
        helper.make_node("Transpose", ["d"], ["t"], perm=[2, 1, 0]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        conv("r"),
    ]
    shape = array(np.array([0, 2, 3, -1]), "shape")
    model = model_of(nodes, [array(w, "w"), array(scale, "s"), shape])
    raw = read(tmp_path, model)
    loaded = weight(raw, convolutions(raw)[0])
    assert loaded.shape == (4, 2, 3, 3)
    np.testing.assert_array_equal(loaded.load(), evaluate(model, "r"))


def test_fake_quantised_floats_stay_floats(tmp_path: Path) -> None:
    w = RNG.standard_normal((2, 1, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        conv("d"),
    ]
    parameters = [array(np.float32(0.1), "s"), array(np.int8(0), "z")]
    raw = read(tmp_path, model_of(nodes, [array(w, "w"), *parameters]))
    loaded = weight(raw, convolutions(raw)[0])
    assert not loaded.quantised
    np.testing.assert_array_equal(loaded.load(), w)


def test_constant_arithmetic(tmp_path: Path) -> None:
    w = RNG.integers(-128, 128, (4, 1, 3, 3)).astype(np.int8)
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["f", "z"], ["c"]),
        helper.make_node("Mul", ["s", "c"], ["d"]),
        conv("d"),
    ]
    scale = array(RNG.uniform(0.1, 1, (4, 1, 1, 1)).astype(np.float32), "s")
    model = model_of(nodes, [array(w, "w"), array(np.float32(3), "z"), scale])
    raw = read(tmp_path, model)
    loaded = weight(raw, convolutions(raw)[0])
    assert (loaded.name, loaded.quantised) == ("w", True)
    np.testing.assert_allclose(loaded.load(), evaluate(model, "d"), rtol=1e-6)


def test_qlinear_convolution(tmp_path: Path) -> None:
    w = RNG.integers(-128, 128, (3, 2, 3, 3)).astype(np.int8)
    scale = RNG.uniform(0.01, 0.1, 3).astype(np.float32)
    zero = np.array([1, -2, 0], np.int8)
    bias = RNG.integers(-1000, 1000, 3).astype(np.int32)
    one = {"xs": np.float32(0.5), "xz": np.uint8(3), "ys": np.float32(2), "yz": np.uint8(0)}
    inputs = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    stored = [array(w, "w"), array(scale, "ws"), array(zero, "wz"), array(bias, "b")]
    stored += [array(v, n) for n, v in one.items()]
    model = model_of([helper.make_node("QLinearConv", inputs, ["y"], pads=[1] * 4)], stored)
    raw = read(tmp_path, model)
    (found,) = convolutions(raw)
    shape = (3, 1, 1, 1)
    expected = (w.astype(np.float32) - zero.reshape(shape)) * scale.reshape(shape)
    np.testing.assert_array_equal(weight(raw, found).load(), expected)
    np.testing.assert_allclose(tensor(raw, "b").load(), bias * scale * 0.5, rtol=1e-6)
    assert found.inputs == ("x",)
    assert {t.name for t in raw.tensors if t.skip} == {"ws", "wz", "xs", "xz", "ys", "yz"}
    assert weight(raw, found).dtype == "int8"


def dynamic_quantised(scales: list[Any], factors: list[Any]) -> onnx.ModelProto:
    w = RNG.integers(0, 256, (3, 2, 3, 3)).astype(np.uint8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "xs", "xz"]),
        helper.make_node("ConvInteger", ["q", "w", "xz", "wz"], ["i"], name="conv"),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        *scales,
        helper.make_node("Mul", ["f", "product"], ["y"]),
    ]
    return model_of(nodes, [array(w, "w"), array(np.uint8(128), "wz"), *factors])


@pytest.mark.parametrize("reshaped", [True, False])
def test_dynamically_quantised_convolution(tmp_path: Path, reshaped: bool) -> None:
    scale = np.array([0.1, 0.2, 0.4] if reshaped else [0.1], np.float32)
    nodes = [helper.make_node("Mul", ["xs", "ws"], ["product"])]
    stored = [array(scale, "ws")]
    if reshaped:
        nodes = [
            helper.make_node("Mul", ["xs", "ws"], ["p"]),
            helper.make_node("Reshape", ["p", "shape"], ["product"]),
        ]
        stored.append(array(np.array([1, -1, 1, 1]), "shape"))
    model = dynamic_quantised(nodes, stored)
    raw = read(tmp_path, model)
    (found,) = convolutions(raw)
    loaded = weight(raw, found)
    w = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float32)
    np.testing.assert_array_equal(loaded.load(), (w - 128) * scale.reshape(-1, 1, 1, 1))
    assert (loaded.quantised, loaded.skip) == (True, None)


def test_missing_scale_is_said(tmp_path: Path) -> None:
    scales = [helper.make_node("Mul", ["xs", "other"], ["product"])]
    raw = read(tmp_path, dynamic_quantised(scales, []))
    (found,) = convolutions(raw)
    loaded = weight(raw, found)
    assert loaded.skip is not None
    assert loaded.skip[0] == "missing_scale"
    assert not loaded.quantised
    # Two constant factors: either could be the weight's.
    scales = [helper.make_node("Mul", ["ws", "vs"], ["product"])]
    factors = [array(np.float32([0.1]), "ws"), array(np.float32([0.1]), "vs")]
    loaded = tensor(read(tmp_path, dynamic_quantised(scales, factors)), "w")
    assert loaded.skip is None or loaded.skip[0] == "missing_scale"


def test_weight_computed_while_running(tmp_path: Path) -> None:
    nodes = [helper.make_node("Softmax", ["x2"], ["w"]), conv("w", kernel_shape=[3, 3])]
    raw = read(tmp_path, model_of(nodes, inputs=("x", "x2")))
    (found,) = convolutions(raw)
    assert found.dynamic_weight == "w"
    assert "weight" not in found.weights
    assert found.inputs == ("x", "w")
    assert found.conv is not None
    assert found.conv.stride == (1, 1)
    assert any("weight the graph computes" in note for note in raw.notes)


def test_one_tensor_seen_in_two_ways_is_listed_twice(tmp_path: Path) -> None:
    w = RNG.standard_normal((2, 1, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["w", "shape"], ["r"]),
        conv("r", y="a"),
        conv("w", x="a"),
    ]
    raw = read(tmp_path, model_of(nodes, [array(w, "w"), array(np.array([1, 2, 3, 3]), "shape")]))
    first, second = convolutions(raw)
    assert second.weights["weight"] == "w"
    assert weight(raw, first).shape == (1, 2, 3, 3)
    assert weight(raw, second).shape == (2, 1, 3, 3)
    assert weight(raw, first).storage == weight(raw, second).storage


# --- subgraphs and functions ---------------------------------------------------------------------


def test_if_branches_take_outer_weights(tmp_path: Path) -> None:
    def branch(name: str, scale: float) -> Any:
        own = array(np.full((1, 1, 1, 1), scale, np.float32), "own")
        nodes = [conv("w", y="h"), conv("own", x="h", y="out")]
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [out], initializer=[own])

    node = helper.make_node(
        "If", ["c"], ["y"], name="if", then_branch=branch("t", 2), else_branch=branch("e", 3)
    )
    w = array(np.ones((1, 1, 3, 3), np.float32), "w")
    raw = read(tmp_path, model_of([node], [w], inputs=("x", "c")))
    found = convolutions(raw)
    assert [n.weights["weight"] for n in found] == [
        "w", "if/else_branch/own", "w", "if/then_branch/own",
    ]  # fmt: skip
    assert [n.name for n in found[:2]] == ["if/else_branch/conv_h", "if/else_branch/conv_out"]
    assert [float(weight(raw, n).load().ravel()[0]) for n in found] == [1, 3, 1, 2]
    # The path through a branch is a path of the whole graph.
    last = raw.nodes[-1]
    assert last.inputs == ("c", "if/else_branch/out", "if/then_branch/out")
    assert last.outputs == ("y",)
    assert found[0].inputs == ("x",)


def test_loop_bodies_see_their_inputs(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("i", "c", "h")]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("c2", "h2")]
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), conv("w", x="h", y="h2")],
        "body", values, results,
    )  # fmt: skip
    node = helper.make_node("Loop", ["n", "c", "x"], ["y"], name="loop", body=body)
    w = array(np.ones((1, 1, 3, 3), np.float32), "w")
    raw = read(tmp_path, model_of([node], [w], inputs=("x", "n", "c")))
    (found,) = convolutions(raw)
    assert found.inputs == ("loop/body/h",)
    enter = next(n for n in raw.nodes if "loop/body/h" in n.outputs)
    assert enter.op == "identity"
    assert "x" in enter.inputs
    assert "loop/body/h2" in raw.nodes[-1].inputs


def test_local_functions_are_expanded(tmp_path: Path) -> None:
    inner = helper.make_node("Conv", ["a", "k"], ["b"], name="inner")
    attribute = inner.attribute.add()
    attribute.name, attribute.ref_attr_name, attribute.type = "strides", "step", 7
    function = helper.make_function(
        "local", "Block", ["a", "k"], ["b"], [inner], [helper.make_opsetid("", 21)], ["step"]
    )
    calls = [
        helper.make_node("Block", ["x", "w"], ["h"], domain="local", name="one", step=[2, 2]),
        helper.make_node("Block", ["h", "w"], ["y"], domain="local", name="two", step=[1, 1]),
    ]
    w = array(np.ones((1, 1, 3, 3), np.float32), "w")
    raw = read(tmp_path, model_of(calls, [w], functions=[function]))
    first, second = convolutions(raw)
    assert (first.name, second.name) == ("one/inner", "two/inner")
    assert first.weights["weight"] == second.weights["weight"] == "w"
    assert first.conv is not None
    assert second.conv is not None
    assert (first.conv.stride, second.conv.stride) == ((2, 2), (1, 1))
    assert second.inputs == ("h",)
    assert any("Block (2x)" in note for note in raw.notes)


def test_functions_that_call_each_other_for_ever(tmp_path: Path) -> None:
    node = helper.make_node("Block", ["a"], ["b"], domain="local")
    function = helper.make_function(
        "local", "Block", ["a"], ["b"], [node], [helper.make_opsetid("", 21)]
    )
    call = helper.make_node("Block", ["x"], ["y"], domain="local")
    with pytest.raises(UnsafeCheckpointError, match="deeper"):
        read(tmp_path, model_of([call], functions=[function]))


def test_functions_that_double_for_ever(tmp_path: Path) -> None:
    functions = []
    for level in range(14):
        body = [
            helper.make_node(f"F{level + 1}", ["a"], [f"b{i}"], domain="local") for i in range(60)
        ]
        body.append(helper.make_node("Identity", ["b0"], ["b"]))
        functions.append(
            helper.make_function(
                "local", f"F{level}", ["a"], ["b"], body, [helper.make_opsetid("", 21)]
            )
        )
    call = helper.make_node("F0", ["x"], ["y"], domain="local")
    import filterdb.sources.formats.onnx_flatten as flatten

    limit = flatten.MAX_OPERATIONS
    flatten.MAX_OPERATIONS = 2000
    try:
        with pytest.raises(UnsafeCheckpointError, match="more than 2000 operations"):
            read(tmp_path, model_of([call], functions=functions))
    finally:
        flatten.MAX_OPERATIONS = limit


# --- other operations ----------------------------------------------------------------------------


def test_batch_norm_and_decomposed_batch_norm(tmp_path: Path) -> None:
    w = np.ones((4, 1, 3, 3), np.float32)
    vectors = [array(np.full(4, i, np.float32), n) for i, n in enumerate("gbmv")]
    constants = [array(np.ones((1, 4, 1, 1), np.float32), n) for n in ("mul", "add")]
    nodes = [
        conv(y="a"),
        helper.make_node("BatchNormalization", ["a", *"gbmv"], ["n"], epsilon=1e-3),
        helper.make_node("Mul", ["n", "mul"], ["p"]),
        helper.make_node("Add", ["add", "p"], ["q"]),
        helper.make_node("Mul", ["q", "half"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    stored = [array(w, "w"), *vectors, *constants, array(np.float32(0.5), "half")]
    raw = read(tmp_path, model_of(nodes, stored))
    norm = raw.nodes[1]
    assert [n.op for n in raw.nodes] == ["conv", "batch_norm", "multiply", "add", "other", "other"]
    assert dict(norm.weights) == {"gamma": "g", "beta": "b", "mean": "m", "var": "v"}
    assert norm.epsilon == pytest.approx(1e-3)
    assert raw.nodes[2].weights["constant"] == "mul"
    assert raw.nodes[3].weights["constant"] == "add"
    assert raw.nodes[3].inputs == ("p",)
    default = helper.make_node("BatchNormalization", ["x", *"gbmv"], ["y"])
    assert read(tmp_path, model_of([default], vectors)).nodes[0].epsilon == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("kind", "inputs", "op", "weights"),
    [
        ("Gemm", ["x", "m", "v"], "linear", {"weight": "m", "bias": "v"}),
        ("MatMul", ["x", "m"], "linear", {"weight": "m"}),
        ("MatMul", ["x", "x2"], "other", {}),
        ("Gather", ["m", "x"], "embedding", {"weight": "m"}),
        ("LayerNormalization", ["x", "v", "v2"], "norm", {"gamma": "v", "beta": "v2"}),
        ("InstanceNormalization", ["x", "v", "v2"], "norm", {"gamma": "v", "beta": "v2"}),
        ("PRelu", ["x", "v"], "norm", {"gamma": "v"}),
        ("Dropout", ["x"], "identity", {}),
        ("Sigmoid", ["x"], "other", {}),
        ("Mul", ["x", "m"], "other", {}),
        ("LSTM", ["x", "r", "r2"], "linear", {"weight": "r", "recurrent": "r2"}),
    ],
)
def test_operators(
    tmp_path: Path, kind: str, inputs: list[str], op: str, weights: dict[str, str]
) -> None:
    shapes = {"m": (3, 4), "v": (4,), "v2": (4,), "r": (1, 8, 3), "r2": (1, 8, 2)}
    stored = [array(np.ones(s, np.float32), n) for n, s in shapes.items() if n in inputs]
    node = helper.make_node(kind, inputs, ["y"])
    (found,) = read(tmp_path, model_of([node], stored, inputs=("x", "x2"))).nodes
    assert (found.op, dict(found.weights)) == (op, weights)


def test_operators_of_other_domains_are_not_taken_by_name(tmp_path: Path) -> None:
    w = np.ones((8, 8, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], domain="com.microsoft.nchwc")
    (found,) = read(tmp_path, model_of([node], [array(w, "w")])).nodes
    assert (found.op, dict(found.weights)) == ("other", {})


def test_listing_leaves_the_values_in_the_file(tmp_path: Path) -> None:
    w = np.zeros((1024, 1024, 3, 3), np.float32)
    file = save(tmp_path, model_of([conv()], [array(w, "w")]))
    tracemalloc.start()
    raw = READER.read(file)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20 < w.nbytes
    assert tensor(raw, "w").load().shape == w.shape


def test_initializers_that_are_inputs_too(tmp_path: Path) -> None:
    w = np.ones((1, 1, 3, 3), np.float32)
    raw = read(tmp_path, model_of([conv()], [array(w, "w")], inputs=("x", "w")))
    assert raw.nodes[0].inputs == ("x",)
    assert raw.nodes[0].weights["weight"] == "w"


def test_unsorted_graphs_are_sorted_and_cycles_refused(tmp_path: Path) -> None:
    w = array(np.ones((1, 1, 3, 3), np.float32), "w")
    nodes = [conv(x="a", y="y"), conv(x="x", y="a")]
    raw = read(tmp_path, model_of(nodes, [w]))
    assert [n.outputs for n in raw.nodes] == [("a",), ("y",)]
    nodes = [conv(x="b", y="a"), conv(x="a", y="b")]
    with pytest.raises(MalformedFileError, match="cycle"):
        read(tmp_path, model_of(nodes, [w]))
    with pytest.raises(MalformedFileError, match="cycle"):
        read(tmp_path, model_of([conv(x="y", y="y")], [w]))


def test_long_chains_need_no_recursion(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(3000)]
    raw = read(tmp_path, model_of(list(reversed(nodes)), inputs=("v0",), outputs=("v3000",)))
    assert [n.outputs[0] for n in raw.nodes] == [f"v{i + 1}" for i in range(3000)]


def test_constants_cannot_double_for_ever(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", [f"v{i}", f"v{i}"], [f"v{i + 1}"]) for i in range(64)]
    stored = [array(np.ones((1, 1, 3, 3), np.float32), "v0")]
    raw = read(tmp_path, model_of([*nodes, conv("v64")], stored))
    (found,) = convolutions(raw)
    assert found.dynamic_weight == "v64"
    # Broadcasting grows tensors; nothing larger than the file allows is computed.
    big = [
        array(np.ones((4096, 1, 1, 1), np.float32), "a"),
        array(np.ones((1, 4096, 1, 1), np.float32), "b"),
        array(np.ones((1, 1, 4096, 1), np.float32), "c"),
    ]
    nodes = [
        helper.make_node("Mul", ["a", "b"], ["ab"]),
        helper.make_node("Mul", ["ab", "c"], ["abc"]),
        conv("abc"),
    ]
    raw = read(tmp_path, model_of(nodes, big))
    loaded = weight(raw, convolutions(raw)[0])
    assert math.prod(loaded.shape) == 4096**3
    with pytest.raises(UnsafeCheckpointError, match="bytes in memory"):
        loaded.load()


# --- external data -------------------------------------------------------------------------------


def external_model(path: Path, location: str = "model.data", **entries: str) -> ModelFile:
    w = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    proto = array(w, "w")
    proto.ClearField("raw_data")
    proto.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "16", "length": "36", **entries}.items():
        proto.external_data.add(key=key, value=value)
    folder = path / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "model.data").write_bytes(bytes(16) + w.tobytes())
    (path / "outside.data").write_bytes(bytes(16) + w.tobytes())
    return save(folder, model_of([conv()], [proto]))


def test_external_data_beside_the_file(tmp_path: Path) -> None:
    file = external_model(tmp_path)
    assert READER.companions(file) == ("model.data",)
    loaded = tensor(READER.read(file), "w")
    assert loaded.load().ravel().tolist() == list(range(9))
    assert loaded.storage == ("external", "model.data", 16, 36, "float32")


def test_external_data_as_companion(tmp_path: Path) -> None:
    file = external_model(tmp_path)
    (file.path.parent / "model.data").rename(tmp_path / "0123abcd")
    with pytest.raises(MissingCompanionError, match=r"model\.data"):
        READER.read(file)
    given = ModelFile(file.path, {"model.data": tmp_path / "0123abcd"}, "model.onnx")
    assert tensor(READER.read(given), "w").load().ravel().tolist() == list(range(9))


@pytest.mark.parametrize(
    "location",
    ["../outside.data", "a/../../outside.data", "/etc/passwd", "..\\outside.data", "C:x", "",
     "link.data"],
)  # fmt: skip
def test_external_data_never_leaves_the_folder(tmp_path: Path, location: str) -> None:
    file = external_model(tmp_path, location)
    (file.path.parent / "link.data").symlink_to(tmp_path / "outside.data")
    with pytest.raises(UnsafeCheckpointError, match="folder"):
        READER.read(file)


@pytest.mark.parametrize(
    "entries",
    [{"offset": "20"}, {"length": "40"}, {"offset": "-4"}, {"offset": "9" * 30}, {"length": "x"}],
)
def test_external_data_must_fit(tmp_path: Path, entries: dict[str, str]) -> None:
    with pytest.raises(MalformedFileError, match="'w'"):
        READER.read(external_model(tmp_path, **entries))


def test_external_file_cut_short_after_listing(tmp_path: Path) -> None:
    file = external_model(tmp_path)
    loaded = tensor(READER.read(file), "w")
    (file.path.parent / "model.data").write_bytes(bytes(20))
    with pytest.raises(MalformedFileError, match="ends early"):
        loaded.load()
