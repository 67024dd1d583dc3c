"""Frozen TensorFlow graphs and SavedModels made here, byte by byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filterdb.errors import MissingCompanionError, SourceError, UnsafeCheckpointError
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import detect, read_model
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.tf_frozen import companions, read
from filterdb.sources.formats.tf_quantised import Range, from_range
from filterdb.sources.formats.tf_saved_model import companions as saved_companions
from filterdb.sources.formats.tf_saved_model import read as read_saved
from tests.sources.formats.tf_files import (
    called,
    checkpoint,
    const,
    conv,
    field,
    function,
    graph,
    node,
    single,
)

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.layers.raw import RawModel


def numbers(*extents: int, dtype: Any = np.float32) -> Any:
    return np.arange(1, 1 + np.prod(extents, dtype=int)).reshape(extents).astype(dtype)


def frozen(folder: Path, nodes: list[bytes], functions: list[bytes] | None = None) -> ModelFile:
    path = folder / "frozen.pb"
    path.write_bytes(graph(nodes, functions or []))
    return ModelFile(path, name="frozen.pb")


IMAGE = node(
    "image", "Placeholder", shape=field(7, b"".join(field(2, field(1, n)) for n in (1, 8, 8, 4)))
)


def test_orientation_of_every_kind(tmp_path: Path) -> None:
    plain, deep, back = numbers(3, 2, 4, 6), numbers(3, 3, 6, 2), numbers(2, 3, 5, 12)
    file = frozen(tmp_path, [
        IMAGE, const("w", plain), node("c", "Conv2D", "image", "w", **conv(2, "VALID")),
        const("d", deep), node("dw", "DepthwiseConv2dNative", "c", "d", **conv()),
        const("size", np.array([1, 9, 9, 5], np.int32)), const("b", back),
        node("t", "Conv2DBackpropInput", "size", "b", "dw", **conv(2)),
    ])  # fmt: skip
    assert detect(file) == "tf_graph"
    assert companions(file) == ()
    first, second, third = find_layers(read(file)).layers
    assert np.array_equal(first.weights(), plain.transpose(3, 2, 0, 1))
    assert np.array_equal(second.weights()[:, 0], deep.reshape(3, 3, 12).transpose(2, 0, 1))
    assert np.array_equal(third.weights(), back.transpose(2, 3, 0, 1))
    assert [la.conv_depth for la in (first, second, third)] == [0, 1, 2]
    assert (first.stride, first.padding, second.groups, third.op) == (
        (2, 2), (0, 0), 6, "conv_transpose",
    )  # fmt: skip


def test_grouped_by_the_width_of_the_input(tmp_path: Path) -> None:
    file = frozen(tmp_path, [
        IMAGE, node("r", "Relu", "image"), const("w", numbers(3, 3, 2, 6)),
        node("c", "Conv2D", "r", "w", **conv()),
    ])  # fmt: skip
    (layer,) = find_layers(read(file)).layers
    assert (layer.groups, layer.in_channels) == (2, 4)


@pytest.mark.parametrize(
    ("values", "content", "dtype"),
    [(np.full((2, 3), 1.5, np.float32), single(5, 1.5), None),
     (np.array([1.5, 2.5, 2.5], np.float32), field(5, np.array([1.5, 2.5], "<f4").tobytes()), None),
     (np.zeros((2, 2), np.float32), b"", None),
     (np.array([1, -2, -2], np.int32), field(7, b"\1" + b"\xfe" + b"\xff" * 8 + b"\1"), None),
     (np.array([1.5, 1.5], np.float16), field(13, 0x3E00), None),
     (np.array([3, 9], np.int64), field(10, 3) + field(10, 9), None),
     (np.array([2.0, 2.0]), None, 2)],
)  # fmt: skip
def test_values_of_constants(
    tmp_path: Path, values: Any, content: bytes | None, dtype: Any
) -> None:
    other = const("b", numbers(2))
    file = frozen(tmp_path, [IMAGE, const("a", values, content, dtype=dtype), other])
    tensor, _ = read(file).tensors
    assert tensor.load().dtype == values.dtype
    assert np.array_equal(tensor.load(), values)


@pytest.mark.parametrize("mode", ["MIN_FIRST", "MIN_COMBINED", "SCALED"])
def test_dequantised_kernels(tmp_path: Path, mode: str) -> None:
    stored = numbers(3, 3, 2, 4, dtype=np.uint8)
    low, high = np.float32(-0.5), np.float32(1.5)
    file = frozen(tmp_path, [
        IMAGE, const("w_quantized_const", stored, dtype=12), const("low", low), const("high", high),
        node("w", "Dequantize", "w_quantized_const", "low", "high", mode=field(2, mode)),
        node("c", "Conv2D", "image", "w", **conv()),
    ])  # fmt: skip
    (layer,) = find_layers(read(file)).layers
    assert layer.quantised
    assert layer.source_dtype == "uint8"
    wanted = from_range(stored, Range(-0.5, 1.5, mode)).transpose(3, 2, 0, 1)
    assert np.array_equal(layer.weights(), wanted)
    if mode != "SCALED":
        step = 2 / 255
        assert np.abs(wanted - (stored * step - 0.5).transpose(3, 2, 0, 1)).max() <= step / 2


def test_functions_are_entered(tmp_path: Path) -> None:
    inner = function("inner", ["x", "k"], {"y": "conv:output:0"}, [
        node("conv", "Conv2D", "x", "k", **conv(2)),
    ])  # fmt: skip
    outer = function("outer", ["a", "b"], {"z": "call:output:0"}, [
        node("call", "PartitionedCall", "a", "b", f=called("inner")),
    ])  # fmt: skip
    raw = read(frozen(tmp_path, [
        IMAGE, const("w", numbers(3, 3, 4, 5)),
        node("first", "StatefulPartitionedCall", "image", "w", f=called("outer")),
        const("v", numbers(1, 1, 5, 5)),
        node("second", "StatefulPartitionedCall", "first:0", "v", f=called("outer")),
        node("out", "Relu", "second:0"),
    ], [inner, outer]))  # fmt: skip
    layers = find_layers(raw).layers
    assert [(la.tensor, la.conv_depth) for la in layers] == [("w", 0), ("v", 1)]
    assert next(n for n in raw.nodes if n.name == "out").inputs == (layers[1].name,)


def test_functions_without_end(tmp_path: Path) -> None:
    twice = [node(f"c{i}", "PartitionedCall", "x", f=called("f")) for i in range(2)]
    bomb = function("f", ["x"], {"y": "c0:output:0"}, twice)
    with pytest.raises(UnsafeCheckpointError):
        read(
            frozen(tmp_path, [IMAGE, node("a", "PartitionedCall", "image", f=called("f"))], [bomb])
        )
    doubling = [
        function(f"f{k}", ["x"], {"y": "c0:output:0"}, [
            node(f"c{i}", "PartitionedCall", "x", f=called(f"f{k + 1}")) for i in range(2)
        ]) for k in range(40)
    ]  # fmt: skip
    with pytest.raises(UnsafeCheckpointError):
        read(
            frozen(
                tmp_path, [IMAGE, node("a", "PartitionedCall", "image", f=called("f0"))], doubling
            )
        )


def test_a_small_file_makes_no_large_array(tmp_path: Path) -> None:
    huge = field(1, 1) + field(2, b"".join(field(2, field(1, 1 << 14)) for _ in range(2)))
    file = frozen(tmp_path, [IMAGE, node("a", "Const", value=field(8, huge + single(5, 1.0)))])
    with pytest.raises(UnsafeCheckpointError, match="memory"):
        read(file)


def saved_model(folder: Path, *, signed: bool = True) -> ModelFile:
    """One convolution in a function, its variable under another name in the checkpoint."""
    (folder / "variables").mkdir()
    inside = checkpoint(folder / "variables", {"layer/k": numbers(3, 2, 4, 5)}, stem="variables")
    names = node(
        "names", "Const", value=field(8, field(1, 7) + field(2, b"") + field(8, "layer/k"))
    )
    body = function("f", ["x", "h"], {"y": "conv:output:0"}, [
        node("read", "ReadVariableOp", "h"),
        node("conv", "Conv2D", "x", "read:value:0", **conv(2)),
    ])  # fmt: skip
    content = graph([
        IMAGE, node("conv/kernel", "VarHandleOp", shared_name=field(2, "conv/kernel")),
        node("layer/k", "NoOp"),
        node("call", "StatefulPartitionedCall", "image", "conv/kernel", f=called("f")),
        node("value", "ReadVariableOp", "conv/kernel"), node("file", "Placeholder"), names,
        node("slices", "Const"), node("save", "SaveV2", "file", "names", "slices", "value"),
    ], [body])  # fmt: skip
    output = field(1, "y") + field(2, field(1, "call:0"))
    signature = field(1, "serving_default") + field(2, field(2, output))
    meta = field(1, field(4, "serve") + field(5, "2.21")) + field(2, content)
    meta += field(5, signature) if signed else b""
    path = folder / "saved_model.pb"
    path.write_bytes(field(1, 1) + field(2, meta))
    index = "variables/variables.index"
    parts = {index: inside.path, **{f"variables/{n}": p for n, p in inside.companions.items()}}
    return ModelFile(path, parts, "saved_model.pb")


@pytest.mark.parametrize("signed", [True, False])
def test_saved_model(tmp_path: Path, signed: bool) -> None:
    file = saved_model(tmp_path, signed=signed)
    alone = ModelFile(file.path, name=file.name)
    assert detect(file) == "tf_saved_model"
    assert saved_companions(alone) == ("variables/variables.index",)
    assert set(saved_companions(file)) == set(file.companions)
    raw = read_model(file)
    (layer,) = find_layers(raw).layers
    assert (layer.tensor, layer.name, layer.stride, layer.depth_source) == (
        "layer/k", "conv", (2, 2), "graph",
    )  # fmt: skip
    assert np.array_equal(layer.weights(), numbers(3, 2, 4, 5).transpose(3, 2, 0, 1))
    with pytest.raises(MissingCompanionError, match="variables"):
        read_saved(alone)


def test_dilation_by_batches(tmp_path: Path) -> None:
    file = frozen(tmp_path, [
        IMAGE, const("block", np.array([2, 3], np.int32)),
        const("pads", np.zeros((2, 2), np.int32)),
        node("s", "SpaceToBatchND", "image", "block", "pads"), const("w", numbers(3, 3, 4, 5)),
        node("c", "Conv2D", "s", "w", **conv(padding="VALID")),
    ])  # fmt: skip
    (layer,) = find_layers(read(file)).layers
    assert layer.dilation == (2, 3)


def _outcome(read_file: Any, file: ModelFile) -> None:
    try:
        raw: RawModel = read_file(file)
        for tensor in raw.tensors:
            if tensor.skip is None:
                assert tensor.load().shape == tuple(tensor.shape)
    except SourceError:
        pass


def test_every_truncation(tmp_path: Path) -> None:
    file = saved_model(tmp_path)
    whole = file.path.read_bytes()
    for end in range(len(whole)):
        file.path.write_bytes(whole[:end])
        _outcome(read_saved, file)
    _outcome(read_model, file)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_damage_is_an_error_or_nothing(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damage", numbered=True)
    file = saved_model(folder)
    whole = bytearray(file.path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file.path.write_bytes(whole)
    _outcome(read_saved, file)
    file.path.write_bytes(whole[whole.index(b"image") - 4 :])
    _outcome(read, file)
