"""Torch7: objects read as data, flattened kernels unfolded, containers turned into a graph."""

from __future__ import annotations

import contextlib
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
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import ModelFile, detect, read_model
from tests.peers import peer_arrays
from tests.sources.formats.torch7_files import Function, Module, View, convolution, serialise

if TYPE_CHECKING:
    from filterdb.layers.raw import RawModel


def known(*shape: int, dtype: str = "float32") -> np.ndarray:
    """1, 2, 3, …: no kernel equals itself turned or mirrored."""
    return np.arange(1, np.prod(shape) + 1).reshape(shape).astype(dtype)


def write(folder: Path, value: Any, *, long_size: int = 8) -> ModelFile:
    path = folder / "net.t7"
    raw = value if isinstance(value, bytes) else serialise(value, long_size=long_size)
    path.write_bytes(raw)
    return ModelFile(path)


def read(folder: Path, value: Any, **options: Any) -> RawModel:
    file = write(folder, value, **options)
    assert detect(file) == "torch7"
    return read_model(file)


def sequential(*modules: Module, kind: str = "nn.Sequential") -> Module:
    return Module(kind, {"modules": list(modules)})


def norm(channels: int, **fields: Any) -> Module:
    parts = {name: known(channels) for name in ("weight", "bias", "running_mean", "running_var")}
    return Module("nn.SpatialBatchNormalization", {"eps": 1e-3, **parts, **fields})


@pytest.mark.parametrize("long_size", [8, 4])
def test_orientation_of_flattened_and_plain_kernels(tmp_path: Path, long_size: int) -> None:
    plain, flat = known(4, 3, 3, 2), known(5, 4, 2, 3)
    model = sequential(
        convolution(plain, dW=2, padH=1),
        Module("nn.ReLU"),
        convolution(flat, flat=True),
        convolution(known(4, 2, 3, 3), kind="cudnn.SpatialConvolution", groups=2),
        convolution(known(2, 4, 1, 1), kind="nn.SpatialDilatedConvolution", dilationW=2),
    )
    raw = read(tmp_path, model, long_size=long_size)
    layers = find_layers(raw).layers
    np.testing.assert_array_equal(layers[0].weights(), plain)
    np.testing.assert_array_equal(layers[1].weights(), flat)
    assert (layers[0].stride, layers[0].padding) == ((1, 2), (1, 0))
    assert (layers[2].groups, layers[3].dilation) == (2, (1, 2))
    assert [la.conv_depth for la in layers] == [0, 1, 2, 3]
    assert [la.name for la in layers] == ["1", "3", "4", "5"]


def test_orientation_of_one_three_transposed_and_depthwise_kernels(tmp_path: Path) -> None:
    one, three = known(4, 3, 5), known(2, 3, 3, 2, 1)
    up, deep = known(3, 4, 2, 3), known(2, 3, 3, 2)
    sizes = {"nInputPlane": 3, "kW": 1, "kH": 2, "kT": 3}
    model = sequential(
        # Frames come one after the other: (out, width · in), the input channel fastest.
        Module(
            "nn.TemporalConvolution",
            {"inputFrameSize": 3, "outputFrameSize": 4, "kW": 5, "dW": 2,
             "weight": one.transpose(0, 2, 1).reshape(4, 15), "bias": known(4)},
        ),
        Module("nn.VolumetricConvolution", {**sizes, "nOutputPlane": 2, "dT": 2, "weight": three}),
        Module(
            "nn.SpatialFullConvolution",
            {"nInputPlane": 3, "nOutputPlane": 4, "kH": 2, "kW": 3, "dW": 2, "dH": 2, "weight": up},
        ),
        Module(
            "nn.SpatialDepthWiseConvolution",
            {"nInputPlane": 3, "nOutputPlane": 2, "kH": 3, "kW": 2, "weight": deep},
        ),
    )  # fmt: skip
    layers = find_layers(read(tmp_path, model)).layers
    np.testing.assert_array_equal(layers[0].weights(), one)
    np.testing.assert_array_equal(layers[1].weights(), three)
    np.testing.assert_array_equal(layers[2].weights(), up.swapaxes(0, 1))
    np.testing.assert_array_equal(layers[3].weights(), deep.swapaxes(0, 1).reshape(6, 1, 3, 2))
    assert (layers[0].stride, layers[1].stride) == ((2,), (2, 1, 1))
    assert layers[2].op == "conv_transpose"
    assert (layers[3].groups, layers[3].role) == (3, "depthwise")


def test_containers_become_a_graph(tmp_path: Path) -> None:
    branches = Module(
        "nn.Concat",
        {"dimension": 2.0, "modules": [convolution(known(2, 4, 1, 1)),
                                       sequential(convolution(known(2, 4, 3, 3)), norm(2))]},
    )  # fmt: skip
    residual = sequential(
        Module("nn.ConcatTable", {"modules": [convolution(known(4, 4, 3, 3)),
                                              Module("nn.Identity")]}),
        Module("nn.CAddTable"),
    )  # fmt: skip
    model = sequential(
        convolution(known(4, 3, 3, 3)), branches, residual, convolution(known(1, 4, 1, 1))
    )
    raw = read(tmp_path, {"model": model, "epoch": 7, "train": False})
    assert raw.has_edges
    layers = {la.name: la for la in find_layers(raw).layers}
    assert {name: la.conv_depth for name, la in layers.items()} == {
        "model.1": 0, "model.2.1": 1, "model.2.2.1": 1, "model.3.1.1": 2, "model.4": 3,
    }  # fmt: skip
    assert layers["model.2.2.1"].batch_norm_status == "separate"
    assert layers["model.2.1"].batch_norm_status == "none"


def test_graphs_of_nngraph(tmp_path: Path) -> None:
    """Nodes name their inputs by the data of other nodes; both branches read the first."""
    entry: dict[str, Any] = {"mapindex": {}}
    first = {"module": convolution(known(4, 3, 3, 3)), "mapindex": [entry]}
    left = {"module": convolution(known(4, 4, 3, 3)), "mapindex": [first]}
    right = {"module": convolution(known(4, 4, 1, 1)), "mapindex": [first]}
    joined = {"module": Module("nn.CAddTable"), "mapindex": [left, right]}
    last = {"module": convolution(known(2, 4, 1, 1)), "mapindex": [joined]}
    nodes = [Module("nngraph.Node", {"data": d}) for d in (entry, first, left, right, joined, last)]
    raw = read(tmp_path, Module("nn.gModule", {"forwardnodes": nodes, "modules": []}))
    assert [la.conv_depth for la in find_layers(raw).layers] == [0, 1, 1, 2]
    assert raw.has_edges


def test_parameters_in_one_storage_and_modules_used_twice(tmp_path: Path) -> None:
    flat = known(300)
    first = View(flat, (4, 3, 3, 3), (27, 9, 3, 1))
    second = View(flat, (4, 4, 3, 3), (36, 9, 3, 1), start=108)
    tied = View(flat, (4, 4, 3, 3), (36, 9, 3, 1), start=108)
    modules = []
    for view in (first, second, tied):
        module = convolution(known(*view.shape))
        module.fields["weight"] = view
        modules.append(module)
    raw = read(tmp_path, sequential(*modules, modules[1]))
    layers = find_layers(raw).layers
    np.testing.assert_array_equal(layers[1].weights().reshape(-1), flat[108:252])
    assert layers[2].shared_with == "2.weight"
    assert (layers[3].tensor, layers[3].use) == ("2.weight", 1)


def test_steps_along_axes_of_one_element_mean_nothing(tmp_path: Path) -> None:
    raw = read(tmp_path, {"weight": View(known(6), (1, 6), (1 << 62, 1))})
    np.testing.assert_array_equal(raw.tensors[0].load(), known(1, 6))


def test_old_norms_keep_one_over_the_deviation(tmp_path: Path) -> None:
    variance = known(4) * 2
    old = norm(4, running_var=None, running_std=1 / np.sqrt(variance + 1e-3))
    raw = read(tmp_path, sequential(convolution(known(4, 3, 3, 3)), old))
    (layer,) = find_layers(raw).layers
    assert layer.read_batch_norm is not None
    np.testing.assert_allclose(layer.read_batch_norm().var, variance, rtol=1e-5)


def test_functions_are_stepped_over(tmp_path: Path) -> None:
    """Byte code is never run, whatever kind of function it is; what follows is found."""
    code = b"\x1bLuaR\0\1\4os.execute('touch pwned')"
    model = sequential(convolution(known(2, 3, 3, 3)))
    value = {f"f{kind}": Function(code, kind, upvalues={"a": [1, 2]}) for kind in (6, 7, 8)}
    raw = read(tmp_path, {**value, "again": value["f8"], "net": model})
    assert len(find_layers(raw).layers) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["net.t7"]


def test_tables_of_tensors_and_state_of_training(tmp_path: Path) -> None:
    weight = known(4, 3, 3, 3, dtype="float64")
    tables = {"conv1": {"weight": weight, "bias": known(4)}, "optimState": {"m": known(108)}}
    raw = read(tmp_path, tables)
    assert (raw.nodes, raw.has_edges) == ((), False)
    (layer,) = find_layers(raw).layers
    np.testing.assert_array_equal(layer.weights(), weight)
    assert {t.name: t.skip for t in raw.tensors}["optimState.m"] == (
        "optimizer_state",
        "optimState.m",
    )


def test_modules_of_unknown_classes(tmp_path: Path) -> None:
    own = Module("my.Block", {"left": convolution(known(2, 3, 3, 3)), "size": 3})
    raw = read(tmp_path, sequential(own, Module("nn.Tanh")))
    assert not raw.has_edges
    assert [la.name for la in find_layers(raw).layers] == ["1.left"]


def cyclic() -> Module:
    root = sequential(Module("nn.ReLU"))
    root.fields["modules"].append(root)
    return root


def doubling() -> Module:
    inner = sequential(Module("nn.ReLU"))
    for _ in range(60):
        inner = sequential(inner, inner)
    return inner


def deep() -> bytes:
    frames = b"".join(
        b"\3\0\0\0" + i.to_bytes(4, "little") + b"\1\0\0\0\2\0\0\0\1\0\0\0a"
        for i in range(1, 20_000)
    )
    return frames + b"\0\0\0\0"


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (cyclic(), MalformedFileError, "contains itself"),
        (doubling(), UnsafeCheckpointError, "nest deeper"),
        (deep(), UnsafeCheckpointError, "nest deeper"),
        (View(known(4), (4, 4), (4, 1)), MalformedFileError, "reaches over 16 values"),
        (View(known(4), (2, 2), (-1, 1)), MalformedFileError, "strides"),
        (View(known(4), (2, -2), (1, 1)), MalformedFileError, "negative"),
        (View(known(4), (1 << 20, 1 << 16), (0, 0)), UnsafeCheckpointError, "bytes in memory"),
        (b"\3\0\0\0\1\0\0\0\xff\xff\xff\x7f\1\0\0\0", MalformedFileError, "entries"),
        (b"\4\0\0\0\1\0\0\0\xff\xff\xff\x7fV 1", MalformedFileError, "ends early"),
        (b"\x09\0\0\0", MalformedFileError, "unknown type 9"),
        (b"4\n1\n3\nV 1\n13\nnn.Sequential\n", UnsupportedFormatError, "text form"),
    ],
)
def test_files_that_lie(tmp_path: Path, value: Any, error: type[SourceError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        read_model(write(tmp_path, value), "torch7")
    assert "net.t7" in str(caught.value)


def whole() -> Module:
    return sequential(convolution(known(2, 3, 2, 2), flat=True), norm(2), Module("nn.Tanh"))


def everything(file: ModelFile) -> None:
    for tensor in read_model(file, "torch7").tensors:
        assert tensor.load().shape == tensor.shape


def test_cut_short_at_any_byte(tmp_path: Path) -> None:
    raw = serialise(whole())
    everything(write(tmp_path, raw))
    for length in range(1, len(raw), 3):
        with pytest.raises(SourceError):
            everything(write(tmp_path, raw[:length]))


@given(data=st.data())
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_files_give_values_or_source_errors(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(serialise(whole()))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SourceError):
        everything(write(tmp_path, bytes(raw)))


_TORCHFILE = """
import sys, numpy as np, torchfile
path, out = sys.argv[1:]
found = {}
def walk(value, name):
    if isinstance(value, np.ndarray):
        found[name] = value
    elif isinstance(value, torchfile.TorchObject):
        walk(value._obj, name)
    elif isinstance(value, list):
        for i, item in enumerate(value, start=1):
            walk(item, f"{name}.{i}")
    elif isinstance(value, dict):
        for key, item in value.items():
            walk(item, f"{name}.{key.decode() if isinstance(key, bytes) else key}")
walk(torchfile.load(path), "")
np.savez(out, **found)
"""


@pytest.mark.peers
def test_tensor_by_tensor_against_torchfile(tmp_path: Path) -> None:
    """What torchfile reads of the same file, tensors by their place in it."""
    rng = np.random.default_rng(5)
    shapes = [(8, 3, 5, 3), (4, 8, 1, 1)]
    kernels = [rng.standard_normal(s).astype(t) for s in shapes for t in ("float32", "float64")]
    flat = rng.standard_normal(200).astype("float32")
    model = sequential(
        *(convolution(k, flat=bool(i % 2)) for i, k in enumerate(kernels)),
        norm(4),
        Module("nn.Linear", {"weight": View(flat, (5, 7), (1, 20), start=3), "bias": known(5)}),
    )
    file = write(tmp_path, {"net": model, "step": Function(b"code"), "rate": 0.5})
    theirs = peer_arrays("opencv", _TORCHFILE, file.path, out=tmp_path)
    raw = read_model(file)
    for tensor in raw.tensors:
        root, _, rest = tensor.name.partition(".")
        mine, other = tensor.load(), theirs[f".{root}.modules.{rest}"]
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine.reshape(-1), other.reshape(-1), err_msg=tensor.name)
    assert len(raw.tensors) == len(theirs) == 18
