"""TFLite as its interpreter takes it: orientation, subgraphs, values outside the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from filterdb.errors import MalformedFileError, MissingCompanionError, UnsafeCheckpointError
from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch, open_raw
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.tflite import READER
from tests.sources.formats.tflite_builder import ModelBuilder, i8, i32, serialise, u32, u64
from tests.sources.formats.tflite_files import FLOAT, INT32, read, tensor

Array = np.ndarray[Any, Any]
VALID = i8(1)


def subgraph(builder: ModelBuilder, inputs: list[int], outputs: list[int]) -> dict[int, Any]:
    return {0: builder.tensors, 1: np.array(inputs, "<i4"), 2: np.array(outputs, "<i4"),
            3: builder.operators, 4: "part"}  # fmt: skip


def model_of(parts: list[dict[int, Any]], builder: ModelBuilder) -> bytes:
    return serialise({0: u32(3), 1: builder.codes, 2: parts, 3: "tests", 4: builder.buffers})


def answer(data: bytes, x: Array) -> Array:
    runtime = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is absent")
    interpreter = runtime.Interpreter(
        model_content=data,
        experimental_op_resolver_type=runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def impulse(*shape: int) -> Array:
    x = np.zeros((1, *shape), np.float32)
    x[(0, *[n // 2 for n in shape[:-1]], 0)] = 1
    return x


def single(builder: ModelBuilder, x: int, y: int) -> bytes:
    return model_of([subgraph(builder, [x], [y])], builder)


@pytest.mark.parametrize("groups", [1, 2])
def test_orientation_of_conv_2d(tmp_path: Path, groups: int) -> None:
    """Every output channel's answer to an impulse in input channel 0 is our kernel, turned."""
    builder = ModelBuilder()
    kernel = np.arange(1, 49, dtype="<f4").reshape(4, 2, 3, 2)
    x = builder.tensor("x", (1, 5, 5, 2 * groups))
    w, b = (builder.tensor("w", kernel.shape, FLOAT, kernel),
            builder.tensor("b", (4,), FLOAT, np.zeros(4, "<f4")))  # fmt: skip
    y = builder.tensor("y", (1, 4, 3, 4))
    builder.operator(3, [x, w, b], [y], {0: VALID, 1: i32(1), 2: i32(1), 4: i32(1), 5: i32(1)})
    builder.operators[0][3] = i8(1)
    data = single(builder, x, y)
    (layer,) = find_layers(read(tmp_path, data)).layers
    found = layer.weights()
    assert (layer.groups, found.shape) == (groups, (4, 2, 2, 3))
    seen = answer(data, impulse(5, 5, 2 * groups))[0]
    for out in range(4):
        expected = found[out, 0] if out < 4 // groups else np.zeros((2, 3))
        np.testing.assert_array_equal(seen[1:3, 0:3, out][::-1, ::-1], expected)


def test_orientation_of_depthwise_conv_2d(tmp_path: Path) -> None:
    builder = ModelBuilder()
    kernel = np.arange(1, 25, dtype="<f4").reshape(1, 2, 3, 4)
    x = builder.tensor("x", (1, 5, 5, 2))
    w, b = (builder.tensor("w", kernel.shape, FLOAT, kernel),
            builder.tensor("b", (4,), FLOAT, np.zeros(4, "<f4")))  # fmt: skip
    y = builder.tensor("y", (1, 4, 3, 4))
    options = {0: VALID, 1: i32(1), 2: i32(1), 3: i32(2), 5: i32(1), 6: i32(1)}
    builder.operator(4, [x, w, b], [y], options)
    builder.operators[0][3] = i8(2)
    data = single(builder, x, y)
    (layer,) = find_layers(read(tmp_path, data)).layers
    found = layer.weights()
    assert (layer.groups, found.shape) == (2, (4, 1, 2, 3))
    seen = answer(data, impulse(5, 5, 2))[0]
    for out in range(4):
        expected = found[out, 0] if out < 2 else np.zeros((2, 3))
        np.testing.assert_array_equal(seen[1:3, 0:3, out][::-1, ::-1], expected)


def test_orientation_of_transpose_conv(tmp_path: Path) -> None:
    builder = ModelBuilder()
    kernel = np.arange(1, 37, dtype="<f4").reshape(3, 2, 3, 2)
    shape = builder.tensor("shape", (4,), INT32, np.array([1, 6, 7, 3], "<i4"))
    w, x = builder.tensor("w", kernel.shape, FLOAT, kernel), builder.tensor("x", (1, 5, 5, 2))
    y = builder.tensor("y", (1, 6, 7, 3))
    builder.operator(67, [shape, w, x], [y], {0: VALID, 1: i32(1), 2: i32(1)})
    builder.operators[0][3] = i8(49)
    data = single(builder, x, y)
    (layer,) = find_layers(read(tmp_path, data)).layers
    found = layer.weights()
    assert (layer.op, found.shape) == ("conv_transpose", (3, 2, 2, 3))
    seen = answer(data, impulse(5, 5, 2))[0]
    for out in range(3):
        np.testing.assert_array_equal(seen[2:4, 2:5, out], found[out, 0])


def test_orientation_of_conv_3d(tmp_path: Path) -> None:
    builder = ModelBuilder()
    kernel = np.arange(1, 97, dtype="<f4").reshape(2, 3, 4, 2, 2)
    x, w = builder.tensor("x", (1, 5, 5, 5, 2)), builder.tensor("w", kernel.shape, FLOAT, kernel)
    y = builder.tensor("y", (1, 4, 3, 2, 2))
    options = {0: VALID, 1: i32(1), 2: i32(1), 3: i32(1), 5: i32(1), 6: i32(1), 7: i32(1)}
    builder.operator(132, [x, w], [y], options)
    builder.operators[0][3] = i8(106)
    data = single(builder, x, y)
    (layer,) = find_layers(read(tmp_path, data)).layers
    found = layer.weights()
    assert found.shape == (2, 2, 2, 3, 4)
    x_values = impulse(5, 5, 5, 2)
    seen = answer(data, x_values)[0]
    # The impulse lies at (2, 2, 2); output (z, y, x) sees kernel position (2 − z, 2 − y, 2 − x).
    for out in range(2):
        for z in range(1, 3):
            for row in range(3):
                for column in range(2):
                    expected = found[out, 0, 2 - z, 2 - row, 2 - column]
                    assert seen[z, row, column, out] == expected


@pytest.mark.parametrize(("axes", "layout"), [((0, 1, 2, 3), "HWIO"), ((1, 2, 3, 0), "OHWI")])
def test_orientation_of_stablehlo_convolution(
    tmp_path: Path, axes: tuple[int, ...], layout: str
) -> None:
    """Spatial axes, then input and output features, wherever the options say they lie."""
    kernel = np.arange(48, dtype="<f4").reshape(2, 3, 2, 4)
    stored = np.moveaxis(kernel, (0, 1, 2, 3), axes)
    builder = ModelBuilder()
    x = builder.tensor("x", (1, 5, 5, 4))
    w = builder.tensor("w", stored.shape, FLOAT, np.ascontiguousarray(stored))
    y = builder.tensor("y", (1, 4, 3, 4))
    builder.operator(171, [x, w], [y])
    builder.operators[0].update({
        11: i8(4),
        12: {0: np.array([2, 1], "<i8"), 1: np.array([1, 0, 2, 2], "<i8"),
             10: np.array(axes[:2], "<i8"), 8: u64(axes[2]), 9: u64(axes[3]), 14: u64(2)},
    })  # fmt: skip
    raw = read(tmp_path, single(builder, x, y))
    (node,) = raw.nodes
    assert node.conv is not None
    assert (node.conv.layout, node.conv.groups, node.conv.stride) == (layout, 2, (2, 1))
    assert node.conv.padding == (1, 2, 0, 2)
    (layer,) = find_layers(raw).layers
    np.testing.assert_array_equal(layer.weights(), kernel.transpose(3, 2, 0, 1))


# Subgraphs ---------------------------------------------------------------------------------------


def convolution(builder: ModelBuilder, x: int, w: int, name: str) -> int:
    y = builder.tensor(name, (1, 5, 5, 2))
    builder.operator(3, [x, w], [y], {0: i8(0), 1: i32(1), 2: i32(1)})
    return y


def called(code: int, options: dict[int, Any], *, extra: bool = False) -> bytes:
    """x → conv → operator that runs a subgraph, to which it hands the weight → conv."""
    main = ModelBuilder()
    flag = [main.tensor("flag", (), 6)] if extra else []
    x = main.tensor("x", (1, 5, 5, 2))
    w = main.tensor("w", (2, 3, 3, 2), FLOAT, np.ones((2, 3, 3, 2), "<f4"))
    inner_w = main.tensor("inner", (2, 2, 3, 2), FLOAT, np.arange(24, dtype="<f4"))
    first = convolution(main, x, w, "first")
    y = main.tensor("y", (1, 5, 5, 2))
    main.operator(code, [*flag, first, inner_w], [y], options)
    body = ModelBuilder(codes=main.codes, buffers=main.buffers)
    a, k = body.tensor("a", (1, 5, 5, 2)), body.tensor("k", (2, 2, 3, 2))
    result = convolution(body, a, k, "second")
    last = convolution(main, y, w, "last")
    parts = [subgraph(main, [*flag, x], [last]), subgraph(body, [a, k], [result, k])]
    if extra:
        parts.append(parts[1])
    return model_of(parts, main)


@pytest.mark.parametrize(
    ("code", "options", "extra"),
    [
        (31, {0: u32(1)}, False),
        (118, {0: i32(1), 1: i32(2)}, True),
        (119, {0: i32(1), 1: i32(1)}, False),
    ],
    ids=["CALL", "IF", "WHILE"],
)
def test_subgraphs_lie_where_they_are_called(
    tmp_path: Path, code: int, options: dict[int, Any], extra: bool
) -> None:
    raw = read(tmp_path, called(code, options, extra=extra))
    layers = find_layers(raw).layers
    depth = {layer.name: layer.conv_depth for layer in layers}
    assert (depth["first"], depth["second"], depth["last"]) == (0, 1, 2)
    inner = next(layer for layer in layers if layer.name == "second")
    assert inner.kernel == (2, 3)
    np.testing.assert_array_equal(
        inner.weights(), np.arange(24, dtype="<f4").reshape(2, 2, 3, 2).transpose(0, 3, 1, 2)
    )


def test_a_weight_that_a_loop_changes_is_computed(tmp_path: Path) -> None:
    main = ModelBuilder()
    x = main.tensor("x", (1, 5, 5, 2))
    w = main.tensor("w", (2, 3, 3, 2), FLOAT, np.ones((2, 3, 3, 2), "<f4"))
    y = main.tensor("y", (1, 5, 5, 2))
    main.operator(119, [x, w], [y], {0: i32(1), 1: i32(1)})
    body = ModelBuilder(codes=main.codes, buffers=main.buffers)
    a, k = body.tensor("a", (1, 5, 5, 2)), body.tensor("k", (2, 3, 3, 2))
    changed = body.tensor("changed", (2, 3, 3, 2))
    body.operator(18, [k, k], [changed])
    result = convolution(body, a, k, "second")
    parts = [subgraph(main, [x], [y]), subgraph(body, [a, k], [result, changed])]
    raw = read(tmp_path, model_of(parts, main))
    (node,) = [node for node in raw.nodes if node.conv is not None]
    assert (node.dynamic_weight, dict(node.weights)) == ("k", {})


def test_subgraphs_that_call_each_other_end(tmp_path: Path) -> None:
    main = ModelBuilder()
    x, y = main.tensor("x", (1,)), main.tensor("y", (1,))
    main.operator(31, [x], [y], {0: u32(1)})
    body = ModelBuilder(codes=main.codes, buffers=main.buffers)
    a, b = body.tensor("a", (1,)), body.tensor("b", (1,))
    body.operator(31, [a], [b], {0: u32(0)})
    body.operator(31, [a], [b], {0: u32(99)})
    parts = [subgraph(main, [x], [y]), subgraph(body, [a], [b])]
    assert len(read(tmp_path, model_of(parts, main)).nodes) == 4


# Values outside the file -------------------------------------------------------------------------


def outside(folder: Path, values: bytes, name: str = "w.bin", **more: Any) -> ModelFile:
    builder = ModelBuilder()
    builder.tensor("w", (2, 3), FLOAT, external=7)
    entry = {0: u32(7), 1: u32(0), 2: u64(4), 3: u64(24), **more.get("entry", {})}
    data = serialise(
        {
            0: u32(3), 1: builder.codes, 2: [subgraph(builder, [], [])], 3: "tests",
            4: builder.buffers, 8: [{0: name}], 9: [entry],
        }
    )  # fmt: skip
    (folder / "m.tflite").write_bytes(data)
    (folder / "w.bin").write_bytes(values)
    return ModelFile(folder / "m.tflite", {"w.bin": folder / "w.bin"}, "m.tflite")


def test_external_buffers_are_companions(tmp_path: Path, cache: Cache) -> None:
    w = np.arange(6, dtype="<f4").reshape(2, 3)
    file = outside(tmp_path, b"skip" + w.tobytes())
    assert READER.companions(file) == ("w.bin",)
    np.testing.assert_array_equal(tensor(READER.read(file), "w").load(), w)
    raw = open_raw(fetch(file.path, cache=cache))
    np.testing.assert_array_equal(tensor(raw, "w").load(), w)
    file.companions["w.bin"].unlink()
    with pytest.raises(MissingCompanionError, match=r"w\.bin"):
        fetch(file.path, cache=cache)
    alone = READER.read(ModelFile(file.path))
    assert tensor(alone, "w").skip == ("missing_companion", "its values lie in 'w.bin'")


def test_external_buffers_stay_in_their_folder(tmp_path: Path, cache: Cache) -> None:
    file = outside(tmp_path, bytes(28), name="../../etc/passwd")
    with pytest.raises(UnsafeCheckpointError, match="asks for companion"):
        fetch(file.path, cache=cache)
    assert tensor(READER.read(file), "w").skip is not None


def test_external_buffers_must_fit(tmp_path: Path) -> None:
    with pytest.raises(MalformedFileError, match="which is 27 bytes long"):
        READER.read(outside(tmp_path, bytes(27)))
    with pytest.raises(MalformedFileError, match="needs 24 bytes, got 20"):
        READER.read(outside(tmp_path, bytes(28), entry={3: u64(20)}))
    with pytest.raises(MalformedFileError, match="external buffer group 3"):
        READER.read(outside(tmp_path, bytes(28), entry={1: u32(3)}))
    packed = READER.read(outside(tmp_path, bytes(28), entry={4: "zstd"}))
    assert tensor(packed, "w").skip == ("unsupported_dtype", "packed externally as zstd")


@pytest.mark.parametrize(
    ("kind", "dtype"), [(21, ml_dtypes.float8_e4m3fn), (22, ml_dtypes.float8_e5m2)]
)
def test_small_floats(tmp_path: Path, kind: int, dtype: Any) -> None:
    values = np.arange(0, 120, dtype=np.uint8)
    builder = ModelBuilder()
    builder.tensor("w", (120,), kind, values)
    found = tensor(read(tmp_path, builder.bytes()), "w").load()
    np.testing.assert_array_equal(found, values.view(dtype).astype(np.float32))


def test_two_bit_integers(tmp_path: Path) -> None:
    builder = ModelBuilder()
    packed = np.array([0b11100100, 0b00000001], np.uint8)
    builder.tensor("w", (1, 5), 19, packed, scale=[0.5])
    found = tensor(read(tmp_path, builder.bytes()), "w").load()
    np.testing.assert_array_equal(found, [[0, 0.5, -1, -0.5, 0.5]])
