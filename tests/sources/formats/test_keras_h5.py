"""Keras HDF5 files made here: structure, order, roles, nested and shared layers."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.sources.formats import detect, read_model
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.keras_h5 import read
from tests.sources.formats.keras_files import (
    conv,
    functional,
    kernel,
    layer,
    norm,
    sequential,
    write_keras,
)

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.layers.raw import Node, RawModel


def nodes_of(raw: RawModel) -> dict[str, Node]:
    return {node.name: node for node in raw.nodes}


def small_model(path: Path) -> ModelFile:
    config = functional(
        "model",
        [
            layer("InputLayer", "input"),
            layer("Conv2D", "zeta", "input", strides=[2, 2], padding="same", activation="linear"),
            layer("BatchNormalization", "bn", "zeta", epsilon=0.01),
            layer(
                "Conv2D", "alpha", "bn", padding="valid", dilation_rate=[2, 2], activation="relu"
            ),
            layer("BatchNormalization", "late", "alpha"),
            layer("Dense", "dense", "late"),
        ],
        ["input"],
        ["dense"],
    )
    groups = {
        "input": {},
        "zeta": conv("zeta", 3, 3, 2, 4, bias=True),
        "bn": norm("bn", 4),
        "alpha": conv("alpha", 5, 5, 4, 6),
        "late": norm("late", 6),
        "dense": {"dense/kernel:0": kernel(6, 3)},
    }
    optimizer = {"Adam/zeta/kernel/m:0": kernel(3, 3, 2, 4)}
    return write_keras(path, groups, config=config, optimizer=optimizer)


def test_model_has_graph_order_and_values(tmp_path: Path) -> None:
    file = small_model(tmp_path / "m.h5")
    assert detect(file) == "keras_h5"
    raw = read_model(file)
    assert raw.has_edges
    assert raw.notes == ("keras 2.9.0",)
    assert [t.name for t in raw.tensors][:3] == ["zeta/kernel:0", "zeta/bias:0", "bn/gamma:0"]
    assert raw.tensors[-1].skip == ("optimizer_state", "optimizer_weights/Adam/zeta/kernel/m:0")
    found = find_layers(raw)
    assert [la.name for la in found.layers] == ["zeta", "alpha"]
    first, second = found.layers
    assert (first.stride, first.dilation, first.padding) == ((2, 2), (1, 1), None)
    assert (second.stride, second.dilation, second.padding) == ((1, 1), (2, 2), (0, 0))
    assert np.array_equal(first.weights(), kernel(3, 3, 2, 4).transpose(3, 2, 0, 1))
    assert first.batch_norm_status == "separate"
    assert first.read_batch_norm is not None
    assert first.read_batch_norm().epsilon == 0.01
    # The activation inside `alpha` lies between it and the BatchNorm.
    assert second.batch_norm_status == "none"
    assert (first.conv_depth, second.conv_depth) == (0, 1)


def test_tensors_cross_processes(tmp_path: Path) -> None:
    raw = read(small_model(tmp_path / "m.h5"))
    again = pickle.loads(pickle.dumps(raw.tensors))
    assert all(np.array_equal(a.load(), b.load()) for a, b in zip(raw.tensors, again, strict=True))


def test_sobel_stands_upright(tmp_path: Path) -> None:
    sobel = np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]], np.float32)  # horizontal edges
    weights = np.zeros((3, 3, 1, 2), np.float32)
    weights[:, :, 0, 1] = sobel
    groups = {"c": {"c/kernel:0": weights}}
    for config in (None, sequential("s", [layer("Conv2D", "c")])):
        path = tmp_path / f"{config is None}.h5"
        (found,) = find_layers(read(write_keras(path, groups, config=config))).layers
        assert np.array_equal(found.weights()[1, 0], sobel)


def test_theano_kernels_are_turned(tmp_path: Path) -> None:
    values = kernel(3, 3, 2, 4)
    file = write_keras(tmp_path / "t.h5", {"c": {"c/kernel:0": values}}, backend="theano")
    (found,) = find_layers(read(file)).layers
    assert np.array_equal(found.weights(), values[::-1, ::-1].transpose(3, 2, 0, 1))


def test_kinds_of_convolution(tmp_path: Path) -> None:
    kinds: list[tuple[str, str, dict[str, Any], dict[str, Any], Any]] = [
        ("Conv1D", "a", {"a/kernel:0": kernel(5, 2, 4)}, {}, (4, 2, 5)),
        ("Conv2D", "b", {"b/kernel:0": kernel(3, 3, 2, 6)}, {"groups": 2}, (6, 2, 3, 3)),
        ("Conv3D", "c", {"c/kernel:0": kernel(2, 3, 4, 5, 6)}, {}, (6, 5, 2, 3, 4)),
        ("DepthwiseConv2D", "d", {"d/depthwise_kernel:0": kernel(3, 3, 5, 2)}, {}, (10, 1, 3, 3)),
        ("Conv2DTranspose", "e", {"e/kernel:0": kernel(2, 2, 6, 3)}, {}, (6, 3, 2, 2)),
        ("QConv2D", "f", {"f/kernel:0": kernel(3, 3, 2, 4)}, {}, (4, 2, 3, 3)),
        ("Convolution1D", "g", {"g_W:0": kernel(3, 1, 2, 4)}, {}, (4, 2, 3, 1)),
    ]  # fmt: skip
    groups = {name: weights for _, name, weights, _, _ in kinds}
    config = sequential("s", [layer(k, n, **c) for k, n, _, c, _ in kinds])
    found = find_layers(read(write_keras(tmp_path / "k.h5", groups, config=config))).layers
    assert [(la.name, la.weights().shape) for la in found] == [(n, s) for _, n, _, _, s in kinds]
    assert [la.groups for la in found] == [1, 2, 1, 5, 1, 1, 1]
    assert [la.op for la in found].index("conv_transpose") == 4
    grouped = groups["b"]["b/kernel:0"]
    assert np.array_equal(found[1].weights(), grouped.transpose(3, 2, 0, 1))
    depthwise = groups["d"]["d/depthwise_kernel:0"]
    assert np.array_equal(found[3].weights()[2 * 3 + 1, 0], depthwise[:, :, 3, 1])


def test_separable_is_two_convolutions(tmp_path: Path) -> None:
    weights = {
        "s/depthwise_kernel:0": kernel(3, 3, 4, 1),
        "s/pointwise_kernel:0": kernel(1, 1, 4, 7),
        "s/bias:0": kernel(7),
    }
    config = sequential("m", [layer("SeparableConv2D", "s"), layer("BatchNormalization", "n")])
    file = write_keras(tmp_path / "s.h5", {"s": weights, "n": norm("n", 7)}, config=config)
    depthwise, pointwise = find_layers(read(file)).layers
    assert (depthwise.name, depthwise.groups) == ("s.depthwise", 4)
    assert (pointwise.name, pointwise.batch_norm_status) == ("s.pointwise", "separate")
    assert depthwise.batch_norm_status == "none"


def test_shared_layer_called_twice(tmp_path: Path) -> None:
    # The second call reads what a layer listed later computes from the first.
    layers = [
        layer("InputLayer", "x"),
        layer("Conv2D", "shared", calls=[["x"], ["between"]]),
        layer("ReLU", "between", "shared"),
    ]
    config = functional("m", layers, ["x"], ["shared"])
    config["config"]["output_layers"] = [["shared", 1, 0]]
    file = write_keras(tmp_path / "s.h5", {"shared": conv("shared", 3, 3, 4, 4)}, config=config)
    raw = read(file)
    first, second = find_layers(raw).layers
    assert (first.use, second.use) == (0, 1)
    assert (first.conv_depth, second.conv_depth) == (0, 1)
    assert second.name == "call1/shared"
    assert second.shared_with == "shared/kernel:0"


def test_nested_models_with_equal_names(tmp_path: Path) -> None:
    def inner(name: str) -> Any:
        return functional(
            name,
            [layer("InputLayer", "in"), layer("Conv2D", "conv", "in")],
            ["in"],
            ["conv"],
        )

    left, right = inner("left"), inner("right")
    left["inbound_nodes"] = [[["x", 0, 0, {}]], [["right", 0, 0, {}]]]
    right["inbound_nodes"] = [[["left", 0, 0, {}]]]
    config = functional("m", [layer("InputLayer", "x"), left, right], ["x"], ["left"])
    groups = {"left": conv("conv", 3, 3, 2, 2, seed=1), "right": conv("conv", 3, 3, 2, 2, seed=2)}
    raw = read(write_keras(tmp_path / "n.h5", groups, config=config))
    nodes = nodes_of(raw)
    values = {t.name: t.load() for t in raw.tensors}
    for name, seed in (("left/conv", 1), ("right/conv", 2), ("call1/left/conv", 1)):
        stored = values[nodes[name].weights["weight"]]
        assert np.array_equal(stored, kernel(3, 3, 2, 2, seed=seed))
    assert [la.conv_depth for la in find_layers(raw).layers] == [0, 1, 2]


def test_nested_scope_with_a_number(tmp_path: Path) -> None:
    inner = sequential("inner", [layer("Conv2D", "conv"), layer("Conv2D", "conv_1")])
    groups = {"inner": {**conv("conv_2", 3, 3, 1, 2, seed=1), **conv("conv_1", 3, 3, 2, 2, seed=2)}}
    raw = read(write_keras(tmp_path / "n.h5", groups, config=sequential("m", [inner])))
    nodes = nodes_of(raw)
    assert nodes["inner/conv"].weights == {"weight": "conv_2/kernel:0"}
    assert nodes["inner/conv_1"].weights == {"weight": "conv_1/kernel:0"}


def test_time_distributed(tmp_path: Path) -> None:
    one = layer("TimeDistributed", "td", layer={"class_name": "Conv2D", "config": {"name": "c"}})
    body = sequential("body", [layer("Conv2D", "d")])
    many = layer("TimeDistributed", "tm", layer=body)
    groups = {"td": conv("td", 3, 3, 1, 2), "tm": conv("d", 3, 3, 2, 4)}
    raw = read(write_keras(tmp_path / "t.h5", groups, config=sequential("m", [one, many])))
    assert [la.name for la in find_layers(raw).layers] == ["td", "tm/d"]


def test_keras_3_configuration(tmp_path: Path) -> None:
    def tensor(name: str) -> Any:
        history = {"shape": [1], "dtype": "float32", "keras_history": [name, 0, 0]}
        return {"class_name": "__keras_tensor__", "config": history}

    conv2d = layer("Conv2D", "c")
    conv2d["inbound_nodes"] = [{"args": [tensor("x")], "kwargs": {}}]
    add = layer("Add", "add")
    add["inbound_nodes"] = [{"args": [[tensor("c"), tensor("x")]], "kwargs": {"y": tensor("c")}}]
    config = functional("m", [layer("InputLayer", "x"), conv2d, add], ["x"], ["add"])
    config["config"]["input_layers"] = ["x", 0, 0]
    raw = read(write_keras(tmp_path / "3.h5", {"c": conv("m/c", 3, 3, 2, 2)}, config=config))
    nodes = nodes_of(raw)
    assert nodes["c"].inputs == nodes["x"].outputs
    assert set(nodes["add"].inputs) == {"c", "x"}


def test_numbered_weights_of_keras_3(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as root:  # order of creation is order of layers
        root["layers/depthwise_conv2d/vars/0"] = kernel(3, 3, 4, 1)
        root["layers/conv2d/vars/0"] = kernel(3, 3, 4, 8)
        root["layers/conv2d/vars/1"] = kernel(8)
        for i, values in enumerate(norm("n", 8).values()):
            root[f"layers/batch_normalization/vars/{i}"] = values
        root["layers/conv2d_transpose/vars/0"] = kernel(2, 2, 3, 8)
        root["layers/block/first/vars/0"] = kernel(3, 3, 3, 5)
        root["layers/block/attention/vars/0"] = kernel(4, 2, 3)
        root["layers/dense/vars/0"] = kernel(5, 2)
        root["optimizer/vars/1"] = kernel(3, 3, 4, 8)
    raw = read(ModelFile(path, name=path.name))
    found = find_layers(raw)
    assert [(la.name, la.op, la.weights().shape) for la in found.layers] == [
        ("layers/depthwise_conv2d", "conv", (4, 1, 3, 3)),
        ("layers/conv2d", "conv", (8, 4, 3, 3)),
        ("layers/conv2d_transpose", "conv_transpose", (3, 8, 2, 2)),
        ("layers/block/first", "conv", (5, 3, 3, 3)),
    ]
    assert found.layers[1].batch_norm_status == "separate"
    reasons = {s.tensor: s.reason for s in found.skipped}
    assert reasons["optimizer/vars/1"] == "optimizer_state"
    assert reasons["layers/dense/vars/0"] == "fully_connected"


def test_lists_cut_into_parts(tmp_path: Path) -> None:
    file = write_keras(tmp_path / "p.h5", {n: conv(n, 3, 3, 1, 1) for n in ("z", "y", "x", "w")})
    with h5py.File(file.path, "r+") as root:
        del root.attrs["layer_names"]
        root.attrs["layer_names0"] = [b"z", b"y"]
        root.attrs["layer_names1"] = [b"x", b"w"]
    assert [t.name[0] for t in read(file).tensors] == ["z", "y", "x", "w"]


@pytest.mark.parametrize("storage", ["contiguous", "chunked", "gzip", "compact", "big-endian"])
def test_storage_forms(tmp_path: Path, storage: str) -> None:
    values = kernel(3, 3, 4, 5)
    with h5py.File(tmp_path / "m.h5", "w") as root:
        if storage == "compact":
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple(values.shape)
            item = h5py.h5d.create(root.id, b"k", h5py.h5t.NATIVE_FLOAT, space, plist)
            item.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
        else:
            options: dict[str, Any] = {
                "chunked": {"chunks": (1, 3, 2, 5)},
                "gzip": {"compression": "gzip", "shuffle": True, "fletcher32": True},
                "big-endian": {"dtype": ">f4"},
            }.get(storage, {})
            root.create_dataset("k", data=values, **options)
    (tensor,) = read(ModelFile(tmp_path / "m.h5")).tensors
    loaded = tensor.load()
    assert loaded.dtype == np.float32
    assert loaded.dtype.isnative
    assert np.array_equal(loaded, values)


def test_types_kept_and_types_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as root:
        root["half"] = kernel(2, 2).astype(np.float16)
        root["double"] = kernel(2, 2).astype(np.float64)
        brain = root.create_dataset("brain", data=np.array([0x3F80, 0xC000], "<u2").view("V2"))
        brain.attrs["dtype"] = "bfloat16"
        root["text"] = ["a", "b"]
        root["pairs"] = np.zeros(2, [("a", "f4"), ("b", "i4")])
        root["nothing"] = h5py.Empty("f4")
    tensors = {t.name: t for t in read(ModelFile(tmp_path / "m.h5")).tensors}
    assert {n: t.dtype for n, t in tensors.items() if t.skip is None} == {
        "half": "float16", "double": "float64", "brain": "bfloat16",
    }  # fmt: skip
    assert tensors["half"].load().dtype == np.float16
    assert tensors["brain"].load().tolist() == [1.0, -2.0]
    skipped = {n: t.skip[0] for n, t in tensors.items() if t.skip}
    assert skipped == dict.fromkeys(("text", "pairs", "nothing"), "unsupported_dtype")


def test_one_array_under_two_names(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as root:
        root["a/a/kernel:0"] = kernel(3, 3, 2, 2)
        root["b/b/kernel:0"] = root["a/a/kernel:0"]
    first, second = read(ModelFile(tmp_path / "m.h5")).tensors
    assert first.storage == second.storage
    assert find_layers(read(ModelFile(tmp_path / "m.h5"))).layers[1].shared_with == first.name


def test_configuration_never_runs(tmp_path: Path) -> None:
    # A Lambda layer carries marshalled code; it is a word like any other here.
    code = ["4wEAAAAAAAAA", None, None]
    config = sequential("s", [layer("Lambda", "l", function=code), layer("Conv2D", "c")])
    file = write_keras(tmp_path / "l.h5", {"c": conv("c", 3, 3, 1, 1)}, config=config)
    assert [n.op for n in read(file).nodes][:2] == ["other", "conv"]
    assert json.dumps(config)


def test_weight_normalised_kernels_are_those_applied(tmp_path: Path) -> None:
    direction = kernel(3, 3, 2, 4)
    length = np.array([1, 2, 3, 4], np.float32)
    inner = {"class_name": "Conv2D", "config": {"name": "c", "padding": "same"}}
    wrapper = layer("Addons>WeightNormalization", "wn", layer=inner)
    plain = {"plain/kernel:0": direction}
    for scope in ("wn", "wn/c"):
        groups = {"wn": {"wn/g:0": length, f"{scope}/kernel:0": direction}, "plain": plain}
        config = sequential("s", [wrapper, layer("Conv2D", "plain")])
        file = write_keras(tmp_path / "w.h5", groups, config=config)
        first, second = find_layers(read(file)).layers
        norms = np.sqrt(np.square(first.weights()).sum(axis=(1, 2, 3)))
        assert np.allclose(norms, length)
        assert np.allclose(first.weights()[1] / 2, second.weights()[1] / norm_of(second)[1])


def norm_of(found: Any) -> Any:
    return np.sqrt(np.square(found.weights()).sum(axis=(1, 2, 3)))
