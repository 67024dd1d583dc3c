"""The ONNX reader against the onnx package: where weights come from, attributes, edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.sources.formats.onnx_files import (
    RNG,
    array,
    conv,
    convolutions,
    model_of,
    read,
    tensor,
    weight,
)


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
