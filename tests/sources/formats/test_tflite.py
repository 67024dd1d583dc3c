"""The TFLite reader: layouts, quantisation, sparse tensors, and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filterdb.errors import (
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.tflite import READER
from filterdb.sources.formats.tflite_schema import Dimension, Sparsity
from filterdb.sources.formats.tflite_values import expand_sparse
from tests.sources.formats.tflite_builder import ModelBuilder, Shared, i8, i32, u8, u64

if TYPE_CHECKING:
    from filterdb.layers.raw import Node, RawModel, Tensor

RNG = np.random.default_rng(30)
FLOAT, HALF, INT32, UINT8, STRING, INT16, INT8, INT4 = 0, 1, 2, 3, 5, 7, 9, 17


def read(path: Path, data: bytes) -> RawModel:
    target = path / "m.tflite"
    target.write_bytes(data)
    raw = READER.read(ModelFile(target))
    assert len({t.name for t in raw.tensors}) == len(raw.tensors)
    return raw


def tensor(raw: RawModel, name: str) -> Tensor:
    return next(t for t in raw.tensors if t.name == name)


def one_operator(
    code: int,
    weight: tuple[int, ...],
    *,
    x: tuple[int, ...] = (1, 8, 8, 6),
    options: dict[int, Any] | None = None,
    places: tuple[int, ...] = (0, 1, 2),
    custom: tuple[str, bytes] | None = None,
) -> ModelBuilder:
    """One operator on input, weight and bias, in the order of `places` (3: output shape)."""
    model = ModelBuilder()
    values = RNG.standard_normal(weight).astype(np.float32)
    model.tensor("x", x)
    model.tensor("w", weight, FLOAT, values)
    model.tensor("b", (weight[0],), FLOAT, np.ones(weight[0], np.float32))
    model.tensor("shape", (4,), INT32, np.array([1, 8, 8, 4], np.int32))
    model.tensor("y", (1, 8, 8, 4))
    model.operator(code, list(places), [4], options, custom)
    return model


def only_node(raw: RawModel) -> Node:
    (node,) = raw.nodes
    assert node.conv is not None
    return node


STRIDED = {0: i8(1), 1: i32(2), 2: i32(3), 4: i32(4), 5: i32(5)}


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


# --- stored values -------------------------------------------------------------------------------


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


# --- sparse tensors ------------------------------------------------------------------------------


def encode_sparse(
    dense: Any, order: list[int], blocks: dict[int, int], compressed: set[int]
) -> tuple[Any, Sparsity]:
    """Write a dense array as TFLite's converter does: level by level, in `order`."""
    rank = dense.ndim
    block_map = tuple(blocks)
    extents = [dense.shape[a] // blocks.get(a, 1) for a in range(rank)]
    extents += [blocks[a] for a in block_map]

    def position(at: dict[int, int]) -> tuple[int, ...]:
        inner = {a: at[rank + i] for i, a in enumerate(block_map)}
        return tuple(at[a] * blocks.get(a, 1) + inner.get(a, 0) for a in range(rank))

    def empty(at: dict[int, int], level: int) -> bool:
        if level == len(order):
            return bool(dense[position(at)] == 0)
        return all(empty({**at, order[level]: i}, level + 1) for i in range(extents[order[level]]))

    nodes: list[dict[int, int]] = [{}]
    levels = []
    for level, axis in enumerate(order):
        following, segments, indices = [], [0], []
        for at in nodes:
            for i in range(extents[axis]):
                deeper = {**at, axis: i}
                if axis in compressed and empty(deeper, level + 1):
                    continue
                following.append(deeper)
                indices.append(i)
            segments.append(len(following))
        if axis in compressed:
            levels.append(Dimension(0, np.array(segments), np.array(indices, np.int64)))
        else:
            levels.append(Dimension(extents[axis]))
        nodes = following
    values = np.array([dense[position(at)] for at in nodes], dense.dtype)
    return values, Sparsity(tuple(order), block_map, tuple(levels))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sparse_tensors_expand_to_what_was_encoded(data: Any) -> None:
    shape = data.draw(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3))
    blocked = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, max_size=2))
    blocks = {
        a: data.draw(st.sampled_from([n for n in (1, 2, 4) if n <= shape[a]])) for a in blocked
    }
    order = data.draw(st.permutations(range(len(shape))))
    order += list(range(len(shape), len(shape) + len(blocks)))
    compressed = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    dense = np.array(
        data.draw(st.lists(st.sampled_from([0, 0, 1, -2]), min_size=64, max_size=64)), np.float32
    )[: int(np.prod(shape))].reshape(shape)
    values, sparsity = encode_sparse(dense, list(order), blocks, compressed)
    np.testing.assert_array_equal(expand_sparse(values, sparsity, tuple(shape), "t"), dense)


def test_sparse_weight_in_a_file(tmp_path: Path) -> None:
    dense = RNG.standard_normal((4, 1, 1, 8)).astype(np.float16)
    dense[:, :, :, :4] = 0
    dense[2] = 0
    values, found = encode_sparse(dense, [0, 1, 2, 3, 4], {3: 2}, {3})
    level = found.dimensions[3]
    assert level.segments is not None
    assert level.indices is not None
    dims: list[Any] = [{0: i8(0), 1: i32(d.size)} for d in found.dimensions]
    dims[3] = {
        0: i8(1), 2: u8(3), 3: {0: level.segments.astype(np.uint8)},
        4: u8(1), 5: {0: level.indices.astype("<i4")},
    }  # fmt: skip
    table = {0: np.array(found.order, "<i4"), 1: np.array([3], "<i4"), 2: dims}
    model = ModelBuilder()
    model.tensor("x", (1, 8, 8, 8))
    model.tensor("w", dense.shape, HALF, values, sparsity=table)
    model.tensor("w_dense", dense.shape, HALF)
    model.tensor("w_float", dense.shape)
    model.tensor("y", (1, 8, 8, 4))
    model.operator(124, [1], [2])
    model.operator(6, [2], [3])
    model.operator(3, [0, 3], [4], {})
    raw = read(tmp_path, model.bytes())
    assert only_node(raw).weights["weight"] == "w"
    assert values.size < dense.size
    np.testing.assert_array_equal(tensor(raw, "w").load(), dense)


@pytest.mark.parametrize(
    "levels",
    [
        [Dimension(1 << 40), Dimension(2)],
        [Dimension(-1), Dimension(2)],
        [Dimension(0, np.array([0, 9]), np.array([0])), Dimension(2)],
        [Dimension(0, np.array([0, -1]), np.array([0])), Dimension(2)],
        [Dimension(0, np.array([0]), np.array([0])), Dimension(2)],
        [Dimension(0, np.array([0, 1]), np.array([7])), Dimension(2)],
        [Dimension(0, np.array([0, 1]), np.array([-1])), Dimension(2)],
        [Dimension(2), Dimension(0, np.array([0, 1, 99]), np.arange(2))],
        [Dimension(2)],
        [Dimension(2), Dimension(2), Dimension(2)],
    ],
)
def test_inconsistent_sparse_tensors(levels: list[Dimension]) -> None:
    sparsity = Sparsity(tuple(range(len(levels))), (), tuple(levels))
    with pytest.raises(MalformedFileError, match="inconsistent"):
        expand_sparse(np.zeros(4, np.float32), sparsity, (2, 2), "t")


# --- damaged files -------------------------------------------------------------------------------


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
    with pytest.raises(UnsafeCheckpointError, match="more often"):
        read(tmp_path, data)
    assert len(read(tmp_path, model.bytes(copies=3)).nodes) == 300


def test_one_long_vector_for_many_tensors(tmp_path: Path) -> None:
    model = ModelBuilder()
    shape = Shared(np.zeros(10_000, "<i4"))
    for i in range(1000):
        model.tensor(str(i), (1,))
        model.tensors[-1][0] = shape
    with pytest.raises(UnsafeCheckpointError, match="more often"):
        read(tmp_path, model.bytes())


def test_sniffing(tmp_path: Path) -> None:
    file = ModelFile(tmp_path / "m")
    assert READER.sniff(SMALL[:4096], file)
    for foreign in (b"", b"TFL3", b"PK\3\4", b"\x08\x07\x12\x05tests"):
        assert not READER.sniff(foreign, file)
