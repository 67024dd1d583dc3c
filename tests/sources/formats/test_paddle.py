"""PaddlePaddle programs built from the public schema."""

from __future__ import annotations

import json
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
    check_damage,
    message,
    paddle_model,
    paddle_operator,
)

PLAIN = {"strides": [1, 2], "paddings": [1, 0], "dilations": [1, 1], "groups": 1}


def ramp(*shape: int) -> Any:
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


def conv(weight: str, source: str, result: str, kind: str = "conv2d", **more: Any) -> Any:
    inputs, outputs = {"Input": source, "Filter": weight}, {"Output": result}
    return paddle_operator(kind, inputs, outputs, **{**PLAIN, **more})


def write(folder: Path, program: bytes, data: bytes) -> Path:
    (folder / "m.pdmodel").write_bytes(program)
    (folder / "m.pdiparams").write_bytes(data)
    return folder / "m.pdmodel"


def model(folder: Path, parameters: dict[str, Any], *blocks: Any) -> ModelFile:
    return ModelFile(write(folder, *paddle_model(parameters, *blocks)))


def test_orientation_of_every_kind_of_convolution(tmp_path: Path) -> None:
    parameters: dict[str, Any] = {
        "b.w_0": ramp(2, 3, 2, 3), "a.w_0": ramp(4, 1, 3, 2), "t.w_0": ramp(4, 3, 2, 3),
        "v.w_0": ramp(2, 1, 2, 3, 4), "l.w_0": ramp(2, 3, 4),
    }  # fmt: skip
    three = {"strides": [1, 1, 1], "paddings": [0, 0, 0], "dilations": [1, 1, 1]}
    operators = [
        conv("b.w_0", "x", "1"),
        conv("a.w_0", "1", "2", "depthwise_conv2d", groups=4),
        conv("t.w_0", "2", "3", "conv2d_transpose", groups=2),
        conv("v.w_0", "3", "4", "conv3d", **three),
        paddle_operator("unsqueeze2", {"X": "l.w_0"}, {"Out": "l.high"}, axes=[-2]),
        conv("l.high", "4", "5", strides=[1, 3], paddings=[0, 2]),
    ]
    layers = {
        la.name: la for la in find_layers(read_model(model(tmp_path, parameters, operators))).layers
    }
    np.testing.assert_array_equal(layers["b"].weights(), parameters["b.w_0"])
    np.testing.assert_array_equal(layers["a"].weights(), parameters["a.w_0"])
    assert (layers["a"].groups, layers["a"].role) == (4, "depthwise")
    assert (layers["b"].stride, layers["b"].padding) == ((1, 2), (1, 0))
    # (inputs, outputs of a group, …): group by group, inputs and outputs change places.
    expected = parameters["t.w_0"].reshape(2, 2, 3, 2, 3).swapaxes(1, 2).reshape(6, 2, 2, 3)
    np.testing.assert_array_equal(layers["t"].weights(), expected)
    np.testing.assert_array_equal(layers["v"].weights(), parameters["v.w_0"])
    np.testing.assert_array_equal(layers["l"].weights(), parameters["l.w_0"])
    assert (layers["l"].kernel, layers["l"].stride, layers["l"].padding) == ((4,), (3,), (2,))
    depths = {name: la.conv_depth for name, la in layers.items()}
    assert depths == {"b": 0, "a": 1, "t": 2, "v": 3, "l": 4}


def test_batch_norm_and_scales_follow_the_graph(tmp_path: Path) -> None:
    vector = np.array([1, 2], np.float32)
    parameters: dict[str, Any] = {
        "w": (np.arange(18) - 9).astype(np.int8).reshape(2, 1, 3, 3),
        "scale": np.array([1.27, 2.54], np.float32), "g": vector, "o": vector,
        "m": vector, "s": vector,
    }  # fmt: skip
    norm = {"X": "c", "Scale": "g", "Bias": "o", "Mean": "m", "Variance": "s"}
    operators = [
        paddle_operator("dequantize_linear", {"X": "w", "Scale": "scale"}, {"Y": "f"},
                        quant_axis=0, bit_length=8),
        conv("f", "x", "c"),
        paddle_operator("batch_norm", norm, {"Y": "y"}, epsilon=0.25),
    ]  # fmt: skip
    (layer,) = find_layers(read_model(model(tmp_path, parameters, operators))).layers
    assert (layer.quantised, layer.source_dtype) == (True, "int8")
    expected = parameters["w"] * np.array([0.01, 0.02], np.float32).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(layer.weights(), expected, rtol=1e-6)
    assert layer.batch_norm_status == "separate"
    assert layer.read_batch_norm is not None
    np.testing.assert_allclose(layer.read_batch_norm().scale, vector / np.sqrt(vector + 0.25))


@pytest.mark.parametrize("whole", [np.int8, np.float32])
def test_kernels_left_as_integers_are_scaled_as_their_results_are(
    whole: Any, tmp_path: Path
) -> None:
    codes = (np.arange(18) - 9).astype(whole).reshape(2, 1, 3, 3)
    parameters: dict[str, Any] = {
        "w": codes, "v": codes, "scales": np.array([1.27, 2.54], np.float32),
        "act": np.array([3], np.float32),
    }  # fmt: skip
    channels = paddle_operator(
        "fake_channel_wise_dequantize_max_abs", {"X": "c", "Scales": "scales"}, {"Out": "d"},
        quant_bits=[8, 8], quant_axis=0,
    )  # fmt: skip
    # A scale of 0.254 for the weights: (127 / 0.254) · 127.
    tensor = paddle_operator(
        "fake_dequantize_max_abs", {"X": "e", "Scale": "act"}, {"Out": "f"}, max_range=63500.0
    )
    operators = [conv("w", "x", "c"), channels, conv("v", "d", "e"), tensor]
    found = find_layers(read_model(model(tmp_path, parameters, operators))).layers
    expected = codes * np.array([0.01, 0.02], np.float32).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(found[0].weights(), expected, rtol=1e-6)
    np.testing.assert_allclose(found[1].weights(), codes * np.float32(0.002), rtol=1e-6)
    assert all(la.quantised for la in found)


def test_blocks_run_once_and_loops_of_blocks_end(tmp_path: Path) -> None:
    inner = [conv("w", "x", "c"), paddle_operator("while", {}, {}, sub_block=1)]
    outer = [paddle_operator("while", {"X": "x"}, {"Out": "y"}, sub_block=1)]
    raw = read_model(model(tmp_path, {"w": ramp(1, 1, 3, 3)}, outer, inner))
    assert [n.source_op for n in raw.nodes] == ["while", "conv2d", "while"]


def test_older_files_keep_each_parameter_by_itself(tmp_path: Path) -> None:
    program, data = paddle_model({"w": ramp(1, 1, 3, 3)}, [conv("w", "x", "c")])
    (tmp_path / "__model__").write_bytes(program)
    (tmp_path / "w").write_bytes(data)
    file = ModelFile(tmp_path / "__model__")
    assert FORMATS["paddle"].companions(file) == ("w",)
    assert len(find_layers(read_model(file)).layers) == 1
    (tmp_path / "__params__").write_bytes(data)
    assert FORMATS["paddle"].companions(file) == ("__params__",)
    assert len(find_layers(read_model(file)).layers) == 1


def test_program_and_parameters_must_belong_together(tmp_path: Path) -> None:
    program, data = paddle_model({"w": ramp(1, 1, 3, 3)}, [conv("w", "x", "c")])
    file = ModelFile(write(tmp_path, program, data + b"\0"))
    assert detect(file) == "paddle"
    with pytest.raises(MalformedFileError, match="end at byte"):
        read_model(file)
    other, _ = paddle_model({"w": ramp(1, 1, 3, 2)}, [conv("w", "x", "c")])
    with pytest.raises(MalformedFileError, match="program states"):
        read_model(ModelFile(write(tmp_path, other, data)))
    with pytest.raises(MalformedFileError, match="holds 0 parameters"):
        read_model(ModelFile(write(tmp_path, program, b"")))
    (tmp_path / "m.pdiparams").unlink()
    with pytest.raises(MissingCompanionError, match="pdiparams"):
        read_model(file)


def test_a_parameter_named_like_a_place_elsewhere_is_refused(tmp_path: Path) -> None:
    name = "../secret"
    program, data = paddle_model({name: ramp(1, 1, 3, 3)}, [conv(name, "x", "c")])
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(data)
    (folder / "__model__").write_bytes(program)
    with pytest.raises(UnsafeCheckpointError, match="not inside"):
        read_model(ModelFile(folder / "__model__"))


def test_millions_of_empty_operators_are_refused(tmp_path: Path) -> None:
    block = message([(1, 0), (2, -1)]) + b"\x22\x00" * 400_000
    (tmp_path / "m.pdmodel").write_bytes(message([(1, block)]))
    with pytest.raises(UnsafeCheckpointError, match="describes more"):
        read_model(ModelFile(tmp_path / "m.pdmodel"))


def in_json(*operators: Any) -> dict[str, Any]:
    block = {"#": "block_0", "args": [], "ops": list(operators)}
    regions = [{"#": "region_0", "blocks": [block]}]
    return {"base_code": {"magic": "pir", "version": 1}, "program": {"regions": regions}}


def stored_json(number: int, name: str, shape: list[int]) -> dict[str, Any]:
    kind = {"#": "0.t_dtensor", "D": [{"#": "0.t_f32"}, shape, "NCHW", [], 0]}
    return {"#": "p", "A": [0, 1, 1, name], "O": {"%": number, "TT": kind}, "OA": [1, 0, 1]}


def operator_json(kind: str, inputs: list[int], output: int, **attributes: Any) -> dict[str, Any]:
    values = [{"N": n, "AT": {"#": "", "D": v}} for n, v in attributes.items()]
    numbered = [{"%": n} for n in inputs]
    return {"#": f"1.{kind}", "A": values, "I": numbered, "O": [{"%": output}]}


def test_programs_in_json(tmp_path: Path) -> None:
    kernel, vector = ramp(4, 1, 3, 2), np.array([1, 2, 3, 4], np.float32)
    strides = [{"#": "0.a_i32", "D": 2}, {"#": "0.a_i32", "D": 1}]
    names = ("g", "m", "o", "s")
    program = in_json(
        stored_json(1, "w", [4, 1, 3, 2]),
        *(stored_json(i, name, [4]) for i, name in enumerate(names, start=2)),
        operator_json("depthwise_conv2d", [9, 1], 10, strides=strides, groups=4),
        operator_json("batch_norm_", [10, 3, 5, 2, 4], 11, epsilon=0.25),
    )
    parameters = {"w": kernel, **dict.fromkeys(names, vector)}
    (tmp_path / "inference.json").write_text(json.dumps(program))
    (tmp_path / "inference.pdiparams").write_bytes(paddle_model(parameters, [])[1])
    file = ModelFile(tmp_path / "inference.json")
    assert detect(file) == "paddle"
    assert FORMATS["paddle"].companions(file) == ("inference.pdiparams",)
    (layer,) = find_layers(read_model(file)).layers
    np.testing.assert_array_equal(layer.weights(), kernel)
    assert (layer.groups, layer.stride, layer.batch_norm_status) == (4, (2, 1), "separate")
    assert layer.read_batch_norm is not None
    assert layer.read_batch_norm().epsilon == 0.25
    program["program"]["regions"][0]["blocks"][0]["ops"][0]["A"] = []
    (tmp_path / "inference.json").write_text(json.dumps(program))
    with pytest.raises(MalformedFileError, match="no PaddlePaddle program"):
        read_model(file)


def test_other_files_are_not_taken_for_programs(tmp_path: Path) -> None:
    path = tmp_path / "m.pdmodel"
    path.write_bytes(b"\n\x05hello" + bytes(64))
    with pytest.raises(UnsupportedFormatError):
        detect(ModelFile(path))


def test_damage_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    parameters = {"w": ramp(2, 1, 3, 3), "g": np.array([1, 2], np.float32)}
    program, data = paddle_model(parameters, [conv("w", "x", "c")])
    text = json.dumps(in_json(stored_json(1, "w", [2, 1, 3, 3]), operator_json("relu", [1], 2)))
    stored = {"m.pdiparams": paddle_model({"w": parameters["w"]}, [])[1]}
    assert check_damage(tmp_path, "m.json", stored, text.encode()) > 50
    assert check_damage(tmp_path, "m.pdmodel", {"m.pdiparams": data}, program) > 50
    write(tmp_path, program, data)
    for end in range(len(data)):
        (tmp_path / "m.pdiparams").write_bytes(data[:end])
        with pytest.raises(MalformedFileError):
            read_model(ModelFile(tmp_path / "m.pdmodel"))
