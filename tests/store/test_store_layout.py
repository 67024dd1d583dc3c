"""Names, hashes and durable writes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given

from filterdb.errors import PipelineError, StoreError
from filterdb.store.layout import (
    dataset_name,
    file_sha256,
    is_stored,
    parse_dataset,
    tensor_sha256,
    write_bytes_durably,
)
from filterdb.testing import convolution_weights

if TYPE_CHECKING:
    from filterdb.types import AnyArray


@given(convolution_weights())
def test_data_set_names_round_trip(weights: AnyArray) -> None:
    kernel = weights.shape[2:]
    name = dataset_name(kernel, weights.dtype.name)
    assert parse_dataset(name) == (kernel, weights.dtype)
    assert is_stored(kernel) == (np.prod(kernel) > 1)


@pytest.mark.parametrize("name", ["", "2d/3x3", "1d/3x3/float32", "2d/axb/float32", "2d/3x3/nope"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match="rank/kernel/dtype"):
        parse_dataset(name)


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
    monkeypatch.setattr("filterdb.store.layout.BLOCK_BYTES", 100)
    assert tensor_sha256(weights) == whole


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write_bytes_durably(path, b"old")
    (tmp_path / ".table.tmp").symlink_to("/dev/full")
    with pytest.raises(PipelineError, match=r"no space left on device\): needs 3 bytes") as caught:
        write_bytes_durably(path, b"new")
    assert caught.value.tip is not None
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["table"]
    assert file_sha256(path) == hashlib.sha256(b"old").hexdigest()
