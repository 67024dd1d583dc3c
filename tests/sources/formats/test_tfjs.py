"""TensorFlow.js models made here: manifests, quantisation, layers models and graph models."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.errors import (
    MalformedFileError,
    MissingCompanionError,
    UnsafeCheckpointError,
)
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import detect, read_model
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.tf_operations import operation_from_json
from filterdb.sources.formats.tfjs import companions, read
from tests.sources.formats.keras_files import (
    functional,
    kernel,
    layer,
    plain,
    sequential,
    write_tfjs,
)

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.layers.raw import Node, RawModel

Weight = tuple[dict[str, Any], bytes]


def word(text: str) -> dict[str, str]:
    return {"s": base64.b64encode(text.encode()).decode()}


def ints(*values: int) -> dict[str, Any]:
    return {"list": {"i": [str(v) for v in values]}}


def conv_attributes(stride: int = 1, padding: str = "SAME", **more: Any) -> dict[str, Any]:
    return {
        "strides": ints(1, stride, stride, 1), "dilations": ints(1, 1, 1, 1),
        "padding": word(padding), "data_format": word("NHWC"), **more,
    }  # fmt: skip


def node(name: str, op: str, *inputs: str, **attributes: Any) -> dict[str, Any]:
    return {"name": name, "op": op, "input": list(inputs), "attr": attributes}


def graph_model(tmp_path: Path, nodes: list[Any], **arrays: Any) -> RawModel:
    weights = [plain(name, values) for name, values in arrays.items()]
    consts = [node(name, "Const") for name in arrays]
    return read(write_tfjs(tmp_path, weights, {"node": [*nodes, *consts], "library": {}}))


def by_name(raw: RawModel) -> dict[str, Node]:
    return {n.name: n for n in raw.nodes}


def test_weights_lie_across_shards(tmp_path: Path) -> None:
    weights = [
        plain("conv/kernel", kernel(3, 3, 2, 4)),
        plain("flag", np.array([True, False, True])),
        plain("steps", np.array([[7, -8]], np.int32)),
        plain("conv/bias", kernel(4)),
    ]
    file = write_tfjs(tmp_path, weights, cuts=(5, 5, 290))
    assert companions(file) == tuple(file.companions)
    assert detect(file) == "tfjs"
    raw = read_model(file)
    assert [t.name for t in raw.tensors] == [s["name"] for s, _ in weights]
    for tensor, (_, data) in zip(raw.tensors, weights, strict=True):
        assert tensor.load().tobytes() == data
    (found,) = find_layers(raw).layers
    assert np.array_equal(found.weights(), kernel(3, 3, 2, 4).transpose(3, 2, 0, 1))


def test_groups_keep_their_own_shards(tmp_path: Path) -> None:
    first, second = plain("a/kernel", kernel(3, 3, 1, 1)), plain("b/kernel", kernel(3, 3, 1, 2))
    (tmp_path / "1.bin").write_bytes(first[1] + b"rest")
    (tmp_path / "2.bin").write_bytes(second[1])
    groups = [
        {"paths": [f"{i}.bin"], "weights": [w[0]]} for i, w in enumerate((first, second), start=1)
    ]
    (tmp_path / "m.json").write_text(json.dumps({"weightsManifest": groups}))
    paths = {f"{i}.bin": tmp_path / f"{i}.bin" for i in (1, 2)}
    raw = read(ModelFile(tmp_path / "m.json", paths, "m.json"))
    assert [t.load().tobytes() for t in raw.tensors] == [first[1], second[1]]


@pytest.mark.parametrize("stored", ["uint8", "uint16"])
def test_quantised_weights(tmp_path: Path, stored: str) -> None:
    whole = np.random.default_rng(0).integers(0, np.iinfo(stored).max, (3, 3, 2, 4)).astype(stored)
    scale, low = 0.0123456789, -1.3
    spec = {
        "name": "c/kernel", "shape": [3, 3, 2, 4], "dtype": "float32",
        "quantization": {"dtype": stored, "scale": scale, "min": low},
    }  # fmt: skip
    (tensor,) = read(write_tfjs(tmp_path, [(spec, whole.tobytes())])).tensors
    assert (tensor.dtype, tensor.quantised) == (stored, True)
    expected = (whole.astype(np.float64) * scale + low).astype(np.float32)
    assert np.array_equal(tensor.load(), expected)
    assert tensor.load().dtype == np.float32


def test_float16_stays(tmp_path: Path) -> None:
    half = kernel(3, 3, 2, 4).astype(np.float16)
    spec = {
        "name": "c/kernel", "shape": [3, 3, 2, 4], "dtype": "float32",
        "quantization": {"dtype": "float16", "original_dtype": "float32"},
    }  # fmt: skip
    raw = read(write_tfjs(tmp_path, [(spec, half.tobytes())]))
    assert raw.tensors[0].dtype == "float16"
    assert not raw.tensors[0].quantised
    assert np.array_equal(raw.tensors[0].load(), half)
    assert find_layers(raw).layers[0].weights().dtype == np.float16


def test_what_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    def spec(name: str, dtype: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "shape": [1], "dtype": dtype, **more}

    text = (3).to_bytes(4, "little") + b"abc"
    file = write_tfjs(
        tmp_path,
        [
            (spec("text", "string"), text),
            (spec("complex", "complex64"), bytes(8)),
            (spec("no scale", "float32", quantization={"dtype": "uint8"}), b"\1"),
            (spec("int4", "float32", quantization={"dtype": "int4"}), b""),
            plain("kernel", kernel(1)),
        ],
    )
    raw = read(file)
    reasons = [t.skip[0] if t.skip else None for t in raw.tensors]
    assert reasons == ["unsupported_dtype", "unsupported_dtype", "missing_scale",
                       "unsupported_dtype", "unsupported_dtype"]  # fmt: skip
    assert raw.tensors[-1].skip == ("unsupported_dtype", "lies behind a weight of unknown size")
    ahead = write_tfjs(tmp_path, [(spec("text", "string"), text), plain("kernel", kernel(1))])
    assert read(ahead).tensors[1].load() == kernel(1)
    texts = [b"", b"a" * (1 << 20), b"bc"] + 1000 * [b"def"]
    stored = b"".join(len(t).to_bytes(4, "little") + t for t in texts)
    many = spec("texts", "string") | {"shape": [len(texts)]}
    ahead = write_tfjs(tmp_path, [(many, stored), plain("kernel", kernel(1))])
    assert read(ahead).tensors[1].load() == kernel(1)


def test_layers_model(tmp_path: Path) -> None:
    config = functional(
        "m",
        [
            layer("InputLayer", "x"),
            layer("Conv2D", "first", "x", strides=[2, 2], activation="linear"),
            layer("BatchNormalization", "bn", "first", epsilon=0.5),
            layer("Conv2D", "second", "bn"),
        ],
        ["x"],
        ["second"],
    )
    weights = [plain("first/kernel", kernel(3, 3, 1, 4))]
    leaves = ("gamma", "beta", "moving_mean", "moving_variance")
    weights += [plain(f"bn/{leaf}", kernel(4)) for leaf in leaves]
    weights.append(plain("second/kernel", kernel(5, 5, 4, 2)))
    raw = read(write_tfjs(tmp_path, weights, {"keras_version": "2", "model_config": config}))
    first, second = find_layers(raw).layers
    assert (first.name, first.stride, first.batch_norm_status) == ("first", (2, 2), "separate")
    assert (second.conv_depth, second.depth_source) == (1, "graph")
    assert not raw.folds_batch_norm
    bare = sequential("s", [layer("Conv2D", "first")])  # as TensorFlow.js itself saves
    assert len(read(write_tfjs(tmp_path, weights[:1], bare)).nodes) == 2


def test_graph_model(tmp_path: Path) -> None:
    fused = {"fused_ops": {"list": {"s": [word("BiasAdd")["s"], word("Relu")["s"]]}}}
    raw = graph_model(
        tmp_path,
        [
            # Listed backwards: the reader puts operations in an order they can be computed in.
            node("out", "Identity", "deep"),
            node("deep", "DepthwiseConv2dNative", "bn", "w2", **conv_attributes(2, "VALID")),
            node("bn", "FusedBatchNormV3", "first", "g", "b", "m", "v", epsilon={"f": 0.25}),
            node("first", "Conv2D", "active", "w1_read", **conv_attributes()),
            node("w1_read", "Identity", "w1"),
            node("active", "_FusedConv2D", "x", "w0", "b0", **conv_attributes(), **fused),
            node("x", "Placeholder"),
        ],
        w0=kernel(3, 3, 3, 2), b0=kernel(2), w1=kernel(3, 3, 2, 4), g=kernel(4), b=kernel(4),
        m=kernel(4), v=kernel(4) ** 2, w2=kernel(3, 3, 4, 1),
    )  # fmt: skip
    assert [n.name for n in raw.nodes] == ["x", "active", "active/activation", "first", "bn",
                                           "deep", "out"]  # fmt: skip
    active, first, deep = find_layers(raw).layers
    assert active.batch_norm_status == "folded_in_file"
    assert (first.tensor, first.batch_norm_status) == ("w1", "separate")
    assert first.read_batch_norm is not None
    assert first.read_batch_norm().epsilon == 0.25
    assert (deep.groups, deep.stride, deep.padding) == (4, (2, 2), (0, 0))
    assert [la.conv_depth for la in (active, first, deep)] == [0, 1, 2]
    assert active.padding is None


def test_batch_norm_behind_a_fused_activation_is_not_the_convolutions(tmp_path: Path) -> None:
    relu = {"fused_ops": {"list": {"s": [word("Relu")["s"]]}}}
    for attributes, expected in ((relu, "none"), ({}, "separate")):
        raw = graph_model(
            tmp_path,
            [
                node("c", "_FusedConv2D", "x", "w", **conv_attributes(), **attributes),
                node("scale", "Mul", "c", "s"),
                node("shift", "AddV2", "scale", "t"),
            ],
            w=kernel(3, 3, 1, 4), s=kernel(4), t=kernel(4),
        )  # fmt: skip
        assert find_layers(raw).layers[0].batch_norm_status == expected


def test_fused_batch_norm_inside_a_convolution(tmp_path: Path) -> None:
    words = [word("FusedBatchNorm")["s"], word("Relu")["s"]]
    attributes = {**conv_attributes(), "fused_ops": {"list": {"s": words}}, "epsilon": {"f": 0.5}}
    raw = graph_model(
        tmp_path,
        [node("c", "_FusedConv2D", "x", "w", "g", "b", "m", "v", **attributes)],
        w=kernel(3, 3, 1, 4), g=kernel(4), b=kernel(4), m=kernel(4), v=kernel(4),
    )  # fmt: skip
    assert [n.op for n in raw.nodes] == ["conv", "batch_norm", "other"]
    (found,) = find_layers(raw).layers
    assert found.read_batch_norm is not None
    assert np.array_equal(found.read_batch_norm().mean, kernel(4).astype(np.float64))


def test_other_operations(tmp_path: Path) -> None:
    volume = {"strides": ints(1, 1, 2, 3, 1), "dilations": ints(1, 1, 1, 1, 1)}
    explicit = {"explicit_paddings": ints(0, 0, 1, 2, 3, 4, 0, 0)}
    raw = graph_model(
        tmp_path,
        [
            node("up", "Conv2DBackpropInput", "size", "w_up", "x", **conv_attributes(2)),
            node("volume", "Conv3D", "x", "w_volume", padding=word("VALID"), **volume),
            node("line_w", "ExpandDims", "w_line", "zero"),
            node("line", "Conv2D", "x", "line_w", **conv_attributes(3)),
            node("padded", "Conv2D", "x", "w", **conv_attributes(1, "EXPLICIT"), **explicit),
            node("spread", "SpaceToBatchND", "x", "block", "crops"),
            node("dilated", "Conv2D", "spread", "w", **conv_attributes(1, "VALID")),
            node("made", "Conv2D", "x", "computed", **conv_attributes()),
            node("dense", "MatMul", "x", "w_dense"),
        ],
        w_up=kernel(2, 2, 3, 5), w_volume=kernel(2, 3, 4, 5, 6), w_line=kernel(9, 2, 4),
        w=kernel(3, 3, 2, 2), size=np.zeros(4, np.int32), zero=np.zeros(1, np.int32),
        block=np.array([2, 3], np.int32), crops=np.zeros((2, 2), np.int32), w_dense=kernel(4, 3),
    )  # fmt: skip
    found = find_layers(raw)
    layers = {la.name: la for la in found.layers}
    assert (layers["up"].op, layers["up"].weights().shape) == ("conv_transpose", (3, 5, 2, 2))
    assert (layers["volume"].stride, layers["volume"].padding) == ((1, 2, 3), (0, 0, 0))
    assert (layers["line"].kernel, layers["line"].stride) == ((9,), (3,))
    assert layers["padded"].padding == (1, 3, 2, 4)
    assert layers["dilated"].dilation == (2, 3)
    assert (layers["dilated"].use, layers["padded"].use) == (1, 0)
    reasons = {s.tensor: s.reason for s in found.skipped}
    assert reasons["made"] == "dynamic_weight"
    assert reasons["w_dense"] == "fully_connected"
    assert by_name(raw)["up"].inputs == ("x",)


def test_loops_are_cut_open(tmp_path: Path) -> None:
    raw = graph_model(
        tmp_path,
        [
            node("merge", "Merge", "enter", "next"),
            node("conv", "Conv2D", "merge:0", "w", **conv_attributes()),
            node("switch", "Switch", "conv", "^control"),
            node("next", "NextIteration", "switch:1"),
            node("enter", "Enter", "x"),
        ],
        w=kernel(3, 3, 1, 1),
    )
    nodes = by_name(raw)
    assert nodes["merge"].inputs == ("enter",)
    assert nodes["switch"].outputs == ("switch", "switch:1")
    assert nodes["next"].inputs == ("switch:1",)
    assert find_layers(raw).layers[0].depth_source == "graph"


@pytest.mark.parametrize(
    ("value", "expected"),
    [({"s": "SAME"}, "SAME"), (word("SAME"), "SAME"), ({"s": [83, 65, 77, 69]}, "SAME"),
     (word("VALID"), "VALID"), ({"s": "VALID"}, "VALID"), ({"s": "?"}, "?"),
     ({"s": [999]}, ""), ({"s": 3}, ""), ({"i": "12"}, 12), ({"i": "x"}, None), ({"b": True}, True),
     ({"list": {"i": ["1", 2]}}, (1, 2)), ({"f": 0.5}, 0.5), ({"type": "DT_FLOAT"}, None)],
)  # fmt: skip
def test_attributes(value: Any, expected: Any) -> None:
    operation = operation_from_json({"name": "n", "op": "o", "attr": {"a": value}})
    assert operation.attributes["a"] == expected


def test_frozen_names_tell_where_no_graph_is(tmp_path: Path) -> None:
    weights = [
        plain("Net/Conv/Conv2D/merged_input", kernel(3, 3, 3, 8)),
        plain("Net/dw/depthwise/depthwise_weights", kernel(3, 3, 8, 1)),
        plain("Net/grid", kernel(3, 3, 8, 1)),
    ]
    found = find_layers(read(write_tfjs(tmp_path, weights)))
    assert [(la.kernel, la.groups) for la in found.layers] == [((3, 3), 1), ((3, 3), 8)]


@pytest.mark.parametrize("path", ["../w.bin", "/etc/passwd", "a/../../b", "C:/w", "..", "a\\b",
                                  "https://x.invalid/w", "", "~/w", "w\0"])  # fmt: skip
def test_shards_may_not_leave_the_folder(tmp_path: Path, path: str) -> None:
    main = tmp_path / "model.json"
    main.write_text(json.dumps({"weightsManifest": [{"paths": [path], "weights": []}]}))
    for call in (companions, read):
        with pytest.raises(UnsafeCheckpointError, match="own folder"):
            call(ModelFile(main, name="model.json"))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    file = write_tfjs(tmp_path, [plain("k", kernel(4))])
    with pytest.raises(MissingCompanionError, match=r"group1-shard1of1\.bin"):
        read(ModelFile(file.path, name="model.json"))
    (tmp_path / "group1-shard1of1.bin").unlink()
    with pytest.raises(MissingCompanionError, match=r"group1-shard1of1\.bin"):
        read(file)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"shape": [-1, 4]}, MalformedFileError),
        ({"shape": [1 << 40, 1 << 40]}, MalformedFileError),
        ({"shape": [0, 1 << 62]}, MalformedFileError),
        ({"shape": [1 << 20]}, MalformedFileError),
        ({"shape": ["3"]}, MalformedFileError),
        ({"shape": None}, MalformedFileError),
        ({"name": 3}, MalformedFileError),
        ({"shape": [1] * 40}, MalformedFileError),
        ({"dtype": "string", "shape": [1 << 30]}, MalformedFileError),
        ({"dtype": "string"}, MalformedFileError),
    ],
)
def test_manifests_that_lie(tmp_path: Path, spec: Any, error: type[Exception]) -> None:
    whole = {"name": "k", "shape": [1], "dtype": "float32", **spec}
    with pytest.raises(error):
        read(write_tfjs(tmp_path, [(whole, b"\xff\xff\xff\xff")]))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "3", "null", "{}", "[" * 100_000, '{"weightsManifest": 3}',
     '{"weightsManifest": [{}]}', '{"weightsManifest": [{"paths": []}]}',
     '{"weightsManifest": [{"paths": [], "weights": [3]}]}',
     '{"weightsManifest": [], "modelTopology": {"node": 3}}',
     '{"weightsManifest": [], "modelTopology": {"node": [3]}}',
     '{"weightsManifest": [], "modelTopology": {"node": [{"op": "Conv2D"}]}}',
     '{"weightsManifest": [], "modelTopology": {"node": [{"name": "a", "op": "X", "input": [1]}]}}',
     '{"weightsManifest": [], "modelTopology": {"model_config": "{"}}',
     '{"weightsManifest": [], "modelTopology": {"class_name": "Model", "config": 3}}',
     '{"weightsManifest": [], "modelTopology": {"node": '
     '[{"name": "a", "op": "X", "input": ["b"]}, {"name": "b", "op": "X", "input": ["a"]}]}}',
     "\xff\xfe"],
)  # fmt: skip
def test_malformed_json(tmp_path: Path, text: str) -> None:
    main = tmp_path / "model.json"
    main.write_bytes(text.encode("latin-1"))
    with pytest.raises(MalformedFileError):
        read(ModelFile(main, name="model.json"))


def test_weights_inside_the_json(tmp_path: Path) -> None:
    values = kernel(3, 3, 2, 4)
    spec = [{"name": "conv/kernel", "shape": [3, 3, 2, 4], "dtype": "float32"}]
    data = base64.b64encode(values.astype("<f4").tobytes()).decode()
    main = tmp_path / "model.json"
    main.write_text(json.dumps({"modelTopology": {}, "weightSpecs": spec, "weightData": data}))
    (tensor,) = read(ModelFile(main, name="model.json")).tensors
    assert np.array_equal(tensor.load(), values)
    main.write_text(json.dumps({"modelTopology": {}, "weightSpecs": spec, "weightData": "A"}))
    with pytest.raises(MalformedFileError, match="base64"):
        read(ModelFile(main, name="model.json"))


@pytest.mark.parametrize("length", [1, 2, 3, 70])
def test_models_turned_into_scripts(tmp_path: Path, length: int) -> None:
    first, second = kernel(1, 1, 1, length), kernel(3, 3, 2, 4) + 0.5
    data = first.astype("<f4").tobytes() + second.astype("<f4").tobytes()
    (tmp_path / "model.min.js").write_text(
        "!function(e){e.exports={modelTopology:{class_name:\"Model\",config:{name:'it\\'s',a:!0,"
        "b:!1,c:void 0,d:[.5,-1e-3,7],2:null,layers:[]}},weightsManifest:[{paths:"
        '["group1-shard1of1"],weights:[{name:"a/kernel",shape:[1,1,1,LENGTH],dtype:"float32"},'
        '{name:"b/kernel",shape:[3,3,2,4],dtype:"float32"}]}]}}()'.replace("LENGTH", str(length))
    )
    text = base64.b64encode(data).decode()
    (tmp_path / "group1-shard1of1.min.js").write_text(f'e.exports="{text}"')
    file = ModelFile(tmp_path / "model.min.js", name="model.min.js")
    assert companions(file) == ("group1-shard1of1.min.js",)
    assert detect(file) == "tfjs"
    parts = {n: tmp_path / n for n in companions(file)}
    a, b = read(ModelFile(file.path, parts, file.name)).tensors
    assert np.array_equal(a.load(), first)
    assert np.array_equal(b.load(), second)


@pytest.mark.parametrize(
    "text",
    ["modelTopology weightsManifest", "x={modelTopology:{",
     "x={modelTopology:alert(1),weightsManifest:3}",
     "x={modelTopology:`${1}`,weightsManifest:[]}", "x={modelTopology:1e999,weightsManifest:[]}"],
)  # fmt: skip
def test_scripts_that_are_no_models(tmp_path: Path, text: str) -> None:
    main = tmp_path / "model.js"
    main.write_text(text)
    with pytest.raises(MalformedFileError):
        read(ModelFile(main, name="model.js"))


def test_convolutions_inside_functions(tmp_path: Path) -> None:
    body = {
        "signature": {"name": "f", "inputArg": [{"name": "x"}], "outputArg": [{"name": "y"}]},
        "nodeDef": [
            node("w", "Const"),
            node("conv", "Conv2D", "x", "w:output:0", **conv_attributes(stride=2)),
        ],
        "ret": {"y": "conv:output:0"},
    }
    nodes = [
        node("image", "Placeholder"),
        node("call", "StatefulPartitionedCall", "image", f={"func": {"name": "f"}}),
        node("out", "Relu", "call:0"),
    ]
    values = kernel(3, 3, 2, 4)
    topology = {"node": nodes, "library": {"function": [body]}}
    raw = read(write_tfjs(tmp_path, [plain("w", values)], topology))
    (layer_found,) = find_layers(raw).layers
    assert (layer_found.tensor, layer_found.stride) == ("w", (2, 2))
    assert by_name(raw)["out"].inputs == ("conv",)


def test_two_weights_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(MalformedFileError, match="one name"):
        read(write_tfjs(tmp_path, [plain("k", kernel(4)), plain("k", kernel(4))]))
