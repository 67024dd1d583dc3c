"""The hash by which equal layers are found."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given

from filterdb.layers.hashing import tensor_sha256
from filterdb.testing import convolution_weights

if TYPE_CHECKING:
    import pytest

    from filterdb.types import AnyArray


@given(convolution_weights())
def test_tensor_hash_is_header_and_bytes(weights: AnyArray) -> None:
    shape = ",".join(str(s) for s in weights.shape)
    expected = hashlib.sha256(f"{weights.dtype.name} {shape}\n".encode() + weights.tobytes())
    assert tensor_sha256(weights) == expected.hexdigest()
    assert tensor_sha256(weights.astype(weights.dtype.newbyteorder(">"))) == expected.hexdigest()


def test_tensor_hash_tells_shapes_apart() -> None:
    weights = np.zeros((4, 2, 3, 3), np.float32)
    assert tensor_sha256(weights) != tensor_sha256(weights.reshape(2, 4, 3, 3))


def test_blocks_do_not_change_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.arange(600, dtype=np.float64).reshape(10, 10, 6, 1)
    whole = tensor_sha256(weights)
    monkeypatch.setattr("filterdb.layers.hashing.BLOCK_BYTES", 100)
    assert tensor_sha256(weights) == whole


@given(convolution_weights())
def test_rows_of_a_shard_have_the_hash_of_their_layer(weights: AnyArray) -> None:
    rows = weights.reshape(weights.shape[0] * weights.shape[1], -1)
    assert tensor_sha256(rows, shape=weights.shape) == tensor_sha256(weights)
