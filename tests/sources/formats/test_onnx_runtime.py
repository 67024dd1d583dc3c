"""ONNX as its runtime takes it: orientation, scales, and the runtime's own .ort files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from filterdb.errors import MalformedFileError, SourceError, UnsafeCheckpointError
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import ModelFile, detect
from filterdb.sources.formats.onnx import READER
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

runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is absent")
Array = np.ndarray[Any, Any]


def session(model: bytes | str, target: Path | None = None, *, level: str = "DISABLE_ALL") -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, f"ORT_{level}")
    if target is not None:
        options.optimized_model_filepath = str(target)
        options.add_session_config_entry("session.save_model_format", "ORT")
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def made(nodes: list[Any], stored: list[Any], shape: tuple[int, ...], **more: Any) -> Any:
    """A model with a shape, as the runtime wants it."""
    model = model_of(nodes, stored, **more)
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
    )
    model.ir_version = 10
    return model


def impulse(channels: int, extents: tuple[int, ...]) -> Array:
    x = np.zeros((1, channels, *extents), np.float32)
    x[(0, 0, *[n // 2 for n in extents])] = 1
    return x


def answer(model: onnx.ModelProto, x: Array) -> Array:
    return np.asarray(session(model.SerializeToString()).run(None, {"x": x})[0])


@pytest.mark.parametrize("kernel", [(3,), (2, 3), (1, 5), (7, 1), (2, 3, 4)])
@pytest.mark.parametrize("transposed", [False, True])
def test_orientation_by_the_answer_to_an_impulse(
    tmp_path: Path, kernel: tuple[int, ...], transposed: bool
) -> None:
    w = np.arange(1, 1 + np.prod(kernel), dtype=np.float32).reshape(1, 1, *kernel)
    kind = "ConvTranspose" if transposed else "Conv"
    node = helper.make_node(kind, ["x", "w"], ["y"], name="c")
    extents = tuple(2 * n - 1 + (n % 2 == 0) for n in kernel)
    model = made([node], [array(w, "w")], (1, 1, *extents))
    (layer,) = find_layers(read(tmp_path, model)).layers
    found = layer.weights()
    assert found.shape[2:] == kernel
    y = answer(model, impulse(1, extents))[0, 0]
    place = tuple(n // 2 for n in extents)
    if transposed:
        window = tuple(slice(p, p + k) for p, k in zip(place, kernel, strict=True))
        np.testing.assert_array_equal(found[0, 0], y[window])
    else:
        window = tuple(slice(p - k + 1, p + 1) for p, k in zip(place, kernel, strict=True))
        turned = y[window][tuple(slice(None, None, -1) for _ in kernel)]
        np.testing.assert_array_equal(found[0, 0], turned)


@pytest.mark.parametrize(("groups", "outputs"), [(1, 6), (2, 6), (4, 4), (4, 8)])
@pytest.mark.parametrize("transposed", [False, True])
def test_orientation_of_groups(tmp_path: Path, groups: int, outputs: int, transposed: bool) -> None:
    """Every output channel's answer to an impulse in input channel 0 is our kernel."""
    inputs = 4
    shape = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    w = RNG.standard_normal((*shape, 2, 3)).astype(np.float32)
    kind = "ConvTranspose" if transposed else "Conv"
    node = helper.make_node(kind, ["x", "w"], ["y"], name="c", group=groups)
    model = made([node], [array(w, "w")], (1, inputs, 5, 5))
    (layer,) = find_layers(read(tmp_path, model)).layers
    assert (layer.groups, layer.out_channels) == (groups, outputs)
    found = layer.weights()
    assert found.shape == (outputs, inputs // groups, 2, 3)
    y = answer(model, impulse(inputs, (5, 5)))[0]
    for out in range(outputs):
        expected = found[out, 0] if out < outputs // groups else np.zeros((2, 3))
        seen = y[out, 2:4, 2:5] if transposed else y[out, 1:3, 0:3][::-1, ::-1]
        np.testing.assert_allclose(seen, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["FusedConv", "NhwcFusedConv"])
def test_operators_of_the_runtime_are_convolutions(tmp_path: Path, name: str) -> None:
    w = RNG.standard_normal((4, 3, 2, 5)).astype(np.float32)
    node = helper.make_node(name, ["x", "w", "b"], ["y"], name="c", domain="com.microsoft",
                            activation="Relu")  # fmt: skip
    raw = read(tmp_path, model_of([node], [array(w, "w"), array(np.zeros(4, np.float32), "b")]))
    (found,) = convolutions(raw)
    assert dict(found.weights) == {"weight": "w", "bias": "b"}
    assert found.conv is not None
    assert found.conv.layout == "OIHW"


def test_causal_and_dynamically_padded_convolutions(tmp_path: Path) -> None:
    w = RNG.standard_normal((6, 1, 4)).astype(np.float32)
    node = helper.make_node("CausalConvWithState", ["x", "w"], ["y", "s"], domain="com.microsoft")
    (found,) = convolutions(read(tmp_path, model_of([node], [array(w, "w")])))
    assert found.conv is not None
    assert (found.conv.layout, found.conv.groups) == ("OIW", 6)
    w = RNG.standard_normal((2, 3, 4, 4)).astype(np.float32)
    node = helper.make_node("ConvTransposeWithDynamicPads", ["x", "w", "p", "b"], ["y"],
                            domain="com.microsoft")  # fmt: skip
    stored = [array(w, "w"), array(np.zeros(3, np.float32), "b"), array([0, 0, 0, 0], "p")]
    (found,) = convolutions(read(tmp_path, model_of([node], stored)))
    assert (found.op, dict(found.weights)) == ("conv_transpose", {"weight": "w", "bias": "b"})


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolutions_of_mmcv(tmp_path: Path, modulated: bool) -> None:
    w = RNG.standard_normal((4, 3, 3, 1)).astype(np.float32)
    kind, inputs = "MMCVDeformConv2d", ["x", "o", "w"]
    if modulated:
        kind, inputs = "MMCVModulatedDeformConv2d", ["x", "o", "m", "w", "b"]
    node = helper.make_node(kind, inputs, ["y"], domain="mmdeploy", stride=[2, 1],
                            padding=[1, 0], dilation=[1, 1], groups=2)  # fmt: skip
    stored = [array(w, "w"), array(np.zeros(4, np.float32), "b")]
    (found,) = convolutions(read(tmp_path, model_of([node], stored)))
    assert dict(found.weights) == {"weight": "w", **({"bias": "b"} if modulated else {})}
    assert found.conv is not None
    assert (found.conv.layout, found.conv.groups) == ("OIHW", 2)
    assert (found.conv.stride, found.conv.padding) == ((2, 1), (1, 0))


def through(w: Array, scale: Array, zero: Array, axis: int) -> Array:
    """The runtime's own DequantizeLinear."""
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis)
    model = model_of([node], [array(scale, "s"), array(zero, "z")], inputs=("q",))
    kind = helper.np_dtype_to_tensor_dtype(w.dtype)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("q", kind, list(w.shape)))
    model.ir_version = 10
    return np.asarray(session(model.SerializeToString()).run(None, {"q": w})[0])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("transposed", [False, True])
def test_scales_are_those_the_runtime_applies(
    tmp_path: Path, dtype: Any, axis: int | None, transposed: bool
) -> None:
    low = np.iinfo(dtype).min
    w = RNG.integers(low, low + 256, (4, 3, 3, 2)).astype(dtype)
    n = 1 if axis is None else w.shape[axis]
    scale = RNG.random(n).astype(np.float32)
    zero = RNG.integers(low, low + 256, n).astype(dtype)
    if axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    expected = through(w, scale, zero, axis or 0)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"], axis=axis or 0),
        helper.make_node("ConvTranspose" if transposed else "Conv", ["x", "v"], ["y"]),
    ]
    raw = read(tmp_path, model_of(nodes, [array(w, "w"), array(scale, "s"), array(zero, "z")]))
    np.testing.assert_array_equal(weight(raw, convolutions(raw)[0]).load(), expected)


def test_integers_whose_bias_is_added_before_the_scale(tmp_path: Path) -> None:
    w = RNG.integers(0, 255, (4, 1, 3, 3)).astype(np.uint8)
    stored = [array(w, "w"), array(np.float32(0.25), "ws"), array(np.uint8(121), "wz"),
              array(np.zeros((1, 4, 1, 1), np.int32), "b")]  # fmt: skip
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("ConvInteger", ["q", "w", "z", "wz"], ["c"]),
        helper.make_node("Add", ["c", "b"], ["cb"]),
        helper.make_node("Cast", ["cb"], ["f"], to=1),
        helper.make_node("Mul", ["s", "ws"], ["sw"]),
        helper.make_node("Mul", ["f", "sw"], ["y"]),
    ]
    raw = read(tmp_path, model_of(nodes, stored))
    expected = through(w, np.array(0.25, np.float32), np.array(121, np.uint8), 0)
    np.testing.assert_array_equal(weight(raw, convolutions(raw)[0]).load(), expected)


def computed(name: str) -> tuple[list[Any], list[Any]]:
    """Nodes that make "k" of stored tensors, as exporters leave them in a file."""
    w = RNG.standard_normal((4, 3, 3, 2)).astype(np.float32)
    make = helper.make_node
    vectors = [array(RNG.random(4).astype(np.float32) + 0.5, n) for n in "gbmv"]
    if name == "weight norm":
        g = RNG.random((4, 1, 1, 1)).astype(np.float32)
        nodes = [make("ReduceL2", ["w", "axes"], ["n"]), make("Div", ["w", "n"], ["u"]),
                 make("Mul", ["u", "gain"], ["k"])]  # fmt: skip
        return nodes, [array(w, "w"), array(g, "gain"), array([1, 2, 3], "axes")]
    if name == "standardised":
        nodes = [
            make("ReduceMean", ["w", "axes"], ["mean"]), make("Sub", ["w", "mean"], ["c"]),
            make("Pow", ["c", "two"], ["sq"]), make("ReduceMean", ["sq", "axes"], ["var"]),
            make("Add", ["var", "eps"], ["ve"]), make("Sqrt", ["ve"], ["sd"]),
            make("Div", ["c", "sd"], ["k"]),
        ]  # fmt: skip
        stored = [array(w, "w"), array(np.float32(2), "two"), array(np.float32(1e-5), "eps")]
        return nodes, [*stored, array([1, 2, 3], "axes")]
    if name in ("batch norm", "batch norm in training"):
        training = int(name != "batch norm")
        outputs = ["h", "rm", "rv"] if training else ["h"]
        nodes = [
            make("Reshape", ["w", "flat"], ["f"]),
            make("BatchNormalization", ["f", "g", "b", "m", "v"], outputs, epsilon=1e-3,
                 training_mode=training),
            make("Reshape", ["h", "back"], ["k"]),
        ]  # fmt: skip
        return nodes, [array(w, "w"), array([1, 4, -1], "flat"), array([4, 3, 3, 2], "back"),
                       *vectors]  # fmt: skip
    if name == "joined and cut":
        nodes = [make("Concat", ["w", "w2"], ["j"], axis=0),
                 make("Slice", ["j", "from", "to", "on", "by"], ["k"])]  # fmt: skip
        stored = [array(w, "w"), array(-w, "w2")]
        numbers = {"from": [1, -2], "to": [7, 99], "on": [0, -1], "by": [2, 1]}
        return nodes, [*stored, *(array(n, k) for k, n in numbers.items())]
    if name == "shape computed":
        nodes = [make("Concat", ["four", "rest"], ["shape"], axis=0),
                 make("Reshape", ["w", "shape"], ["k"])]  # fmt: skip
        return nodes, [array(w.reshape(-1), "w"), array([4], "four"), array([3, 3, 2], "rest")]
    nodes = [make("Expand", ["w", "shape"], ["e"]), make("Neg", ["e"], ["k"])]
    return nodes, [array(w[:1], "w"), array([4, 3, 3, 2], "shape")]


@pytest.mark.parametrize(
    "name",
    ["weight norm", "standardised", "batch norm", "batch norm in training", "joined and cut",
     "shape computed", "expanded"],
)  # fmt: skip
def test_kernels_the_graph_computes_are_those_of_the_runtime(tmp_path: Path, name: str) -> None:
    nodes, stored = computed(name)
    kernel_only = model_of([*nodes, helper.make_node("Identity", ["k"], ["y"])], stored, inputs=())
    kernel_only.ir_version = 10
    (expected,) = session(kernel_only.SerializeToString()).run(None, {})
    raw = read(tmp_path, model_of([*nodes, conv("k")], stored))
    (node,) = convolutions(raw)
    assert node.dynamic_weight is None
    found = weight(raw, node).load()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["Expand", "Mul"])
def test_a_constant_may_not_grow_on_the_way(tmp_path: Path, kind: str) -> None:
    column = np.ones((1 << 14, 1), np.float32)
    other = array([1 << 14, 1 << 14], "o") if kind == "Expand" else array(column.T, "o")
    nodes = [
        helper.make_node(kind, ["w", "o"], ["e"]),
        helper.make_node("Slice", ["e", "a", "b"], ["s"]),
        helper.make_node("ReduceSum", ["s", "axes"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["k"]),
        conv("k"),
    ]
    stored = [array(column, "w"), other, array([0], "a"), array([9], "b"), array([1], "axes"),
              array([1, 1, 3, 3], "shape")]  # fmt: skip
    raw = read(tmp_path, model_of(nodes, stored))
    with pytest.raises(UnsafeCheckpointError, match="would take"):
        weight(raw, convolutions(raw)[0]).load()


def test_a_matrix_the_graph_reorders_is_listed_as_stored(tmp_path: Path) -> None:
    w = RNG.standard_normal((6, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Slice", ["w", "a", "b"], ["top"]),
        helper.make_node("Slice", ["w", "b", "c"], ["rest"]),
        helper.make_node("Concat", ["rest", "top"], ["turned"], axis=0),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    raw = read(tmp_path, model_of(nodes, [array(w, "w"), array([0], "a"), array([2], "b"),
                                          array([6], "c")]))  # fmt: skip
    np.testing.assert_array_equal(tensor(raw, "w").load(), w)
    assert [(node.op, dict(node.weights)) for node in raw.nodes] == [("linear", {"weight": "w"})]


def test_pieces_of_one_tensor_are_not_tied(tmp_path: Path) -> None:
    w = RNG.standard_normal((4, 2, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Slice", ["w", "a", "b"], ["k1"]),
        helper.make_node("Slice", ["w", "b", "c"], ["k2"]),
        helper.make_node("Slice", ["w", "a", "b"], ["k3"]),
        conv("k1", "x", "y1"), conv("k2", "y1", "y2"), conv("k3", "y2", "y"),
    ]  # fmt: skip
    stored = [array(w, "w"), array([0], "a"), array([2], "b"), array([4], "c")]
    layers = find_layers(read(tmp_path, model_of(nodes, stored))).layers
    np.testing.assert_array_equal(layers[0].weights(), w[:2])
    np.testing.assert_array_equal(layers[1].weights(), w[2:])
    assert [layer.shared_with is None for layer in layers] == [True, True, False]


# .ort --------------------------------------------------------------------------------------------


def network() -> onnx.ModelProto:
    first = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
    second = RNG.integers(-127, 127, (4, 1, 3, 2)).astype(np.int8)
    branch = RNG.standard_normal((2, 4, 1, 5)).astype(np.float32)
    body = helper.make_graph(
        [helper.make_node("Conv", ["b", "branch"], ["r"], name="inner")], "then", [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Conv", ["b", "branch"], ["t"], name="twin")], "else", [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], name="stem", pads=[1, 1, 1, 1],
                         strides=[2, 1]),
        helper.make_node("DequantizeLinear", ["second", "s", "z"], ["w2"], axis=0),
        helper.make_node("Conv", ["a", "w2"], ["b"], name="depthwise", group=4),
        helper.make_node("If", ["flag"], ["y"], name="if", then_branch=body, else_branch=other),
    ]  # fmt: skip
    stored = [
        array(first, "first"), array(second, "second"), array(branch, "branch"),
        array(RNG.random(4).astype(np.float32), "s"), array(np.zeros(4, np.int8), "z"),
    ]  # fmt: skip
    model = made(nodes, stored, (1, 3, 16, 16))
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    return model


def test_an_ort_file_holds_the_same_network(tmp_path: Path) -> None:
    model = network()
    session(model.SerializeToString(), tmp_path / "m.ort")
    file = ModelFile(tmp_path / "m.ort")
    assert detect(file) == "onnx"
    ours, theirs = find_layers(READER.read(file)), find_layers(read(tmp_path, model))
    assert len(ours.layers) == len(theirs.layers) == 4
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert one.weights().tobytes() == other.weights().tobytes()
        seen = [(a.op, a.stride, a.padding, a.groups, a.conv_depth) for a in (one, other)]
        assert seen[0] == seen[1]


def test_weights_in_blocks_have_a_reason(tmp_path: Path) -> None:
    w = RNG.standard_normal((16, 16, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], domain="com.microsoft.nchwc")
    raw = read(tmp_path, model_of([node], [array(w, "w")]))
    found = find_layers(raw)
    assert not found.layers
    assert [(s.tensor, s.reason) for s in found.skipped] == [("w", "unsupported_dtype")]


def test_a_damaged_ort_file_ends_in_one_error(tmp_path: Path) -> None:
    session(network().SerializeToString(), tmp_path / "m.ort")
    whole = (tmp_path / "m.ort").read_bytes()
    rng = np.random.default_rng(3)
    contents = [whole[:cut] for cut in range(8, len(whole), 41)]
    for place in rng.integers(8, len(whole), 400):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        contents.append(bytes(damaged))
    for content in contents:
        (tmp_path / "d.ort").write_bytes(content)
        with contextlib.suppress(SourceError):
            for tensor in READER.read(ModelFile(tmp_path / "d.ort")).tensors:
                with contextlib.suppress(SourceError):
                    tensor.load()
    (tmp_path / "e.ort").write_bytes(b"\x08\0\0\0ORTM" + bytes(8))
    with pytest.raises(MalformedFileError):
        READER.read(ModelFile(tmp_path / "e.ort"))
