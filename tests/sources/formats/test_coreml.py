"""Core ML models built from the public schema."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filterdb.errors import (
    MalformedFileError,
    MissingCompanionError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import FORMATS, ModelFile, detect, read_model
from tests.sources.formats.inference_files import (
    blob_file,
    check_damage,
    coreml_layer,
    coreml_model,
    message,
    mil_blob,
    mil_operation,
    mil_program,
    mil_value,
    packed_varints,
)

FLOAT32, FLOAT16, INT32, UINT8, UINT4 = 11, 10, 23, 31, 35
NAME = "@model_path/weights/weight.bin"


def ramp(*shape: int) -> Any:
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


def conv(
    name: str, source: str, result: str, weights: Any, shape: tuple[int, ...], **more: Any
) -> Any:
    out, into, *kernel = shape
    fields = [(1, out), (2, into), (20, packed_varints(*kernel)), (90, weights)]
    fields += [(10, more["groups"])] if "groups" in more else []
    fields += [(30, packed_varints(*more["stride"]))] if "stride" in more else []
    fields += [(60, 1)] if more.get("transposed") else []
    edges = [[(1, a), (2, b)] for a, b in more.get("padding", ())]
    fields += [(50, [(1, [(10, e) for e in edges])])]
    return coreml_layer(name, source, result, 100, fields)


def floats(array: Any) -> Any:
    return [(1, array.astype("<f4").tobytes())]


def write(folder: Path, data: bytes, blobs: bytes | None = None) -> ModelFile:
    (folder / "m.mlmodel").write_bytes(data)
    if blobs is not None:
        (folder / "weights").mkdir(exist_ok=True)
        (folder / "weights" / "weight.bin").write_bytes(blobs)
    return ModelFile(folder / "m.mlmodel")


def layers_of(file: ModelFile) -> dict[str, Any]:
    return {la.name: la for la in find_layers(read_model(file)).layers}


def test_orientation_of_every_kind_of_network_layer(tmp_path: Path) -> None:
    plain, grouped, back = ramp(4, 3, 2, 3), ramp(4, 1, 3, 2), ramp(4, 3, 2, 3)
    volume = ramp(2, 3, 2, 3, 4)
    cube = [(1, 2), (2, 6), (10, 2), (20, 2), (21, 3), (22, 4), (32, 2), (60, floats(volume)),
            (70, 0), (80, 1), (81, 1)]  # fmt: skip
    model = [
        conv(
            "plain", "x", "1", floats(plain), plain.shape, stride=(1, 2), padding=[(1, 1), (0, 2)]
        ),
        conv("groups", "1", "2", floats(grouped), grouped.shape, groups=4),
        conv("back", "2", "3", floats(back), (6, 4, 2, 3), groups=2, transposed=True),
        coreml_layer("volume", "3", "4", 1471, cube),
    ]
    found = layers_of(write(tmp_path, coreml_model(500, model)))
    np.testing.assert_array_equal(found["plain"].weights(), plain)
    assert (found["plain"].stride, found["plain"].padding) == ((1, 2), (1, 0, 1, 2))
    np.testing.assert_array_equal(found["groups"].weights(), grouped)
    assert found["groups"].role == "depthwise"
    expected = back.reshape(2, 2, 3, 2, 3).swapaxes(1, 2).reshape(6, 2, 2, 3)
    np.testing.assert_array_equal(found["back"].weights(), expected)
    np.testing.assert_array_equal(found["volume"].weights(), volume)
    assert (found["volume"].groups, found["volume"].stride) == (2, (1, 2, 1))
    assert found["volume"].padding == (1, 0, 0)
    assert [la.conv_depth for la in found.values()] == [0, 1, 2, 3]


def test_quantised_weights_of_networks(tmp_path: Path) -> None:
    half = ramp(1, 1, 2, 2).astype("<f2")
    # Three bits each, highest first: 0 … 7 in three bytes.
    eight = bytes([0b00000101, 0b00111001, 0b01110111])
    scale, bias = np.array([0.5, 2], "<f4"), np.array([1, -1], "<f4")
    table = np.array([9, 8, 7, 6, 5, 4, 3, 2], "<f4")
    linear = [(30, eight), (40, [(1, 3), (101, [(1, scale.tobytes()), (2, bias.tobytes())])])]
    lookup = [(30, eight), (40, [(1, 3), (102, [(1, table.tobytes())])])]
    model = [
        conv("half", "x", "1", [(2, half.tobytes())], (1, 1, 2, 2)),
        conv("linear", "1", "2", linear, (2, 1, 2, 2)),
        conv("lookup", "2", "3", lookup, (2, 1, 2, 2)),
    ]
    found = layers_of(write(tmp_path, coreml_model(403, model)))
    assert [la.source_dtype for la in found.values()] == ["float16", "uint3", "uint3"]
    np.testing.assert_array_equal(found["half"].weights(), half)
    codes = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    expected = codes * scale.reshape(2, 1, 1, 1) + bias.reshape(2, 1, 1, 1)
    np.testing.assert_array_equal(found["linear"].weights(), expected)
    np.testing.assert_array_equal(found["lookup"].weights(), 9 - codes)


def test_pipelines_are_joined_by_their_features(tmp_path: Path) -> None:
    def part(source: str, result: str) -> bytes:
        kernel = floats(ramp(3, 3, 3, 3))
        model = [conv("conv", source, "hidden", kernel, (3, 3, 3, 3)),
                 coreml_layer("relu", "hidden", result, 130, [(10, b"")])]  # fmt: skip
        described = [(1, [(1, source)]), (10, [(1, result)])]
        return message([(1, 4), (2, described), (500, model)])

    parts = [(1, part("x", "middle")), (1, part("middle", "y"))]
    for kind, pipeline in ((202, parts), (200, [(1, parts)])):
        found = layers_of(write(tmp_path, coreml_model(kind, pipeline)))
        assert {name: la.conv_depth for name, la in found.items()} == {"0/conv": 0, "1/conv": 1}


def mil_conv(weight: str | Any = "w", **more: Any) -> Any:
    return mil_operation("conv", "y", {"x": "x", "weight": weight, **more})


def mil_const(name: str, value: Any) -> Any:
    return mil_operation("const", name, {}, {"val": value})


def test_orientation_of_programs_and_their_weight_file(tmp_path: Path) -> None:
    kernel, back = ramp(4, 3, 2, 3), ramp(4, 3, 3)
    blobs, (first, second) = blob_file((2, kernel.tobytes()), (1, back.astype("<f2").tobytes()))
    operations = [
        mil_const("w", mil_blob(FLOAT32, kernel.shape, NAME, first)),
        mil_const("v", mil_blob(FLOAT16, back.shape, NAME, second)),
        mil_const("s", mil_value(INT32, (2,), 2, packed_varints(1, 2))),
        mil_const("p", mil_value(INT32, (4,), 2, packed_varints(1, 2, 0, 0))),
        mil_const("t", mil_value(2, (), 4, b"custom")),
        mil_const("g", mil_value(INT32, (), 2, packed_varints(2))),
        mil_conv(strides="s", pad="p", pad_type="t"),
        mil_operation("conv_transpose", "z", {"x": "y", "weight": "v", "groups": "g"}),
    ]
    file = write(tmp_path, coreml_model(502, mil_program(operations), 8), blobs)
    assert detect(file) == "coreml"
    assert FORMATS["coreml"].companions(file) == ("weights/weight.bin",)
    found = layers_of(file)
    np.testing.assert_array_equal(found["y"].weights(), kernel)
    assert (found["y"].stride, found["y"].padding) == ((1, 2), (1, 0, 2, 0))
    expected = back.reshape(2, 2, 3, 3).swapaxes(1, 2).reshape(6, 2, 3)
    np.testing.assert_array_equal(found["z"].weights(), expected)
    assert (found["z"].conv_depth, found["z"].source_dtype) == (1, "float16")


def test_programs_decompress_their_weights(tmp_path: Path) -> None:
    codes = np.arange(8, dtype=np.uint8)
    scale = np.array([0.5, 2], np.float32)
    affine = {
        "quantized_data": mil_value(UINT8, (2, 1, 2, 2), 7, codes.tobytes()),
        "zero_point": mil_value(UINT8, (), 7, b"\x03"),
        "scale": mil_value(FLOAT32, (2,), 1, scale.tobytes()),
        "axis": mil_value(INT32, (), 2, packed_varints(0)),
    }
    nibbles = bytes([0x10, 0x32, 0x54, 0x76])
    blocks = {
        "data": mil_value(UINT4, (2, 4), 7, nibbles),
        "scale": mil_value(FLOAT32, (2, 2), 1, np.array([1, 2, 3, 4], "<f4").tobytes()),
    }
    palette = {
        "indices": mil_value(UINT8, (1,), 7, bytes([0b11100100])),
        "lut": mil_value(FLOAT32, (4,), 1, np.array([5, 6, 7, 8], "<f4").tobytes()),
        "shape": mil_value(33, (3,), 2, packed_varints(1, 1, 4)),
    }
    sparse = {
        "nonzero_data": mil_value(FLOAT32, (2,), 1, np.array([5, 6], "<f4").tobytes()),
        "mask": mil_value(37, (1, 1, 4), 7, bytes([0b00001010])),
    }
    operations = [
        mil_operation("constexpr_affine_dequantize", "a", {}, affine),
        mil_operation("constexpr_blockwise_shift_scale", "b", blocks),
        mil_operation("reshape", "b2", {"x": "b"}, shape=(2, 1, 4)),
        mil_operation("constexpr_lut_to_dense", "c", {}, palette),
        mil_operation("constexpr_sparse_to_dense", "d", sparse),
        *(mil_operation("conv", f"y {n}", {"x": "x", "weight": n}) for n in ("a", "b2", "c", "d")),
    ]
    found = layers_of(write(tmp_path, coreml_model(502, mil_program(operations), 8)))
    expected = (codes.astype(np.float32).reshape(2, 1, 2, 2) - 3) * scale.reshape(2, 1, 1, 1)
    np.testing.assert_array_equal(found["y a"].weights(), expected)
    spread = np.array([1, 1, 2, 2, 3, 3, 4, 4], np.float32)
    np.testing.assert_array_equal(found["y b2"].weights().reshape(-1), codes * spread)
    np.testing.assert_array_equal(found["y c"].weights().reshape(-1), [5, 6, 7, 8])
    np.testing.assert_array_equal(found["y d"].weights().reshape(-1), [0, 5, 0, 6])


def test_the_weight_file_must_be_there_and_inside(tmp_path: Path) -> None:
    kernel = ramp(4, 3, 2, 3)
    blobs, (offset,) = blob_file((2, kernel.tobytes()))

    def program(name: str, place: int = offset) -> bytes:
        value = mil_blob(FLOAT32, kernel.shape, name, place)
        return coreml_model(502, mil_program([mil_const("w", value), mil_conv()]), 8)

    for name in ("@model_path/../secret", "/etc/passwd", "@model_path//etc/passwd"):
        with pytest.raises(UnsafeCheckpointError, match="not inside"):
            read_model(write(tmp_path, program(name)))
    with pytest.raises(MissingCompanionError, match=r"weight\.bin"):
        read_model(write(tmp_path, program(NAME)))
    for place in (0, 65, 10**9):
        with pytest.raises(MalformedFileError):
            read_model(write(tmp_path, program(NAME, place), blobs))
    with pytest.raises(MalformedFileError):
        read_model(write(tmp_path, program(NAME), blobs[:-40]))
    huge = blobs[:72] + struct.pack("<QQ", 1 << 62, 1 << 62) + blobs[88:]
    with pytest.raises(MalformedFileError):
        read_model(write(tmp_path, program(NAME), huge))


def test_weights_that_do_not_fill_their_kernel_are_refused(tmp_path: Path) -> None:
    model = [conv("conv", "x", "y", floats(ramp(5)), (2, 1, 2, 2))]
    with pytest.raises(MalformedFileError, match="needs 32 bytes, got 20"):
        read_model(write(tmp_path, coreml_model(500, model)))
    model = [conv("conv", "x", "y", floats(ramp(5)), (1 << 40, 1 << 40, 2, 2))]
    with pytest.raises(MalformedFileError, match="absurd"):
        read_model(write(tmp_path, coreml_model(500, model)))


def test_deep_nesting_and_many_small_parts_are_refused(tmp_path: Path) -> None:
    model = coreml_model(500, [])
    for _ in range(40):
        model = message([(1, 4), (2, b""), (202, [(1, model)])])
    with pytest.raises(UnsafeCheckpointError, match="nests"):
        read_model(write(tmp_path, model), "coreml")
    network: Any = [(1, [(1, "leaf")])]
    for _ in range(40):
        network = [(1, [(1, "branch"), (605, [(1, network)])])]
    with pytest.raises(UnsafeCheckpointError, match="nests"):
        read_model(write(tmp_path, coreml_model(500, network)))
    for many in (
        coreml_model(500, [(1, b"")] * 200_000),
        coreml_model(502, mil_program([(3, b"")] * 200_000), 8),
    ):
        with pytest.raises(UnsafeCheckpointError, match="describes more"):
            read_model(write(tmp_path, many))


def test_other_files_are_not_taken_for_models(tmp_path: Path) -> None:
    for data in (b"\x08\x07\x12\x07pytorch" + bytes(30), b"\x08\x04\x12\x02\x0a\x00"):
        with pytest.raises(UnsupportedFormatError):
            detect(write(tmp_path, data))


def test_damage_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    kernel = ramp(2, 1, 2, 2)
    scales = [(1, 8), (101, [(1, np.array([0.5], "<f4").tobytes())])]
    raw = [(30, bytes(range(8))), (40, scales)]
    network = [conv("conv", "x", "y", floats(kernel), kernel.shape),
               conv("bits", "y", "z", raw, kernel.shape)]  # fmt: skip
    data = coreml_model(500, network)
    assert check_damage(tmp_path, "m.mlmodel", {}, data) > 50
    lut = {
        "indices": mil_value(UINT8, (1,), 7, b"\xe4"),
        "lut": mil_value(FLOAT32, (4,), 1, ramp(4).tobytes()),
        "shape": mil_value(33, (4,), 2, packed_varints(1, 1, 2, 2)),
    }
    program = mil_program([mil_operation("constexpr_lut_to_dense", "w", {}, lut), mil_conv()])
    assert check_damage(tmp_path, "m.mlmodel", {}, coreml_model(502, program, 8)) > 50
