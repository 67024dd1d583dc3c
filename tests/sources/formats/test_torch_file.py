"""The torch reader against torch.load: every kind of tensor."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.sources.formats.torch_files import assert_equal, read, save, state_dict

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_tensor_equals_torch(tmp_path: Path, legacy: bool) -> None:
    path = save(state_dict(), tmp_path / "model.pt", legacy=legacy)
    expected = torch.load(path, weights_only=True)
    model = read(path)
    assert_equal(model, expected)
    assert model.format == "torch"
    assert model.default_layout == "OIHW"
    assert not any(t.skip for t in model.tensors)
    by_name = {t.name: t for t in model.tensors}
    assert by_name["bfloat16"].dtype == "bfloat16"
    assert by_name["tied"].storage == by_name["tied_too"].storage
    assert by_name["row"].storage != by_name["whole"].storage


def test_newer_element_types(tmp_path: Path) -> None:
    value = {
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "uint32": torch.tensor([1, 2**32 - 1], dtype=torch.uint32),
        "uint64": torch.tensor([1, 2**63], dtype=torch.uint64),
    }
    path = save(value, tmp_path / "model.pt")
    assert_equal(read(path), torch.load(path, weights_only=True))


def test_types_without_a_numpy_equivalent_are_named_and_skipped(tmp_path: Path) -> None:
    value = {
        "complex": torch.zeros(2, dtype=torch.complex64),
        "float8": torch.zeros(3, dtype=torch.float8_e4m3fn),
        "meta": torch.empty(2, 3, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
        "good": torch.ones(1),
    }
    skips = {t.name: t.skip for t in read(save(value, tmp_path / "model.pt")).tensors}
    assert skips.pop("good") is None
    assert skips == {
        "complex": ("unsupported_dtype", "complex64"),
        "float8": ("unsupported_dtype", "float8_e4m3fn"),
        "meta": ("unsupported_dtype", "meta_tensor_no_storage"),
        "sparse": ("unsupported_dtype", "sparse_tensor"),
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors_are_multiplied_by_their_scales(tmp_path: Path, legacy: bool) -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    value = {
        "per_tensor": torch.quantize_per_tensor(weight, 0.03, 2, torch.qint8),
        "unsigned": torch.quantize_per_tensor(weight, 0.05, 128, torch.quint8),
        "per_channel": torch.quantize_per_channel(
            weight,
            torch.tensor([0.01, 0.02, 0.03, 0.04]),
            torch.tensor([0, 1, -2, 3]),
            0,
            torch.qint8,
        ),
        "axis_1": torch.quantize_per_channel(
            weight, torch.tensor([0.01, 0.02, 0.03]), torch.zeros(3), 1, torch.qint8
        ),
    }
    path = save(value, tmp_path / "model.pt", legacy=legacy)
    model = read(path)
    assert_equal(model, torch.load(path, weights_only=True))
    assert all(t.quantised for t in model.tensors)
    assert [t.dtype for t in model.tensors] == ["int8", "uint8", "int8", "int8"]


def test_big_endian_files(tmp_path: Path) -> None:
    little = save(state_dict(), tmp_path / "little.pt")
    big = tmp_path / "big.pt"
    sizes = {f"{t.storage[0]}": np.dtype(t.dtype.replace("bfloat16", "uint16")).itemsize
             for t in read(little).tensors if t.storage}  # fmt: skip
    with zipfile.ZipFile(little) as source, zipfile.ZipFile(big, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            folder, _, name = info.filename.rpartition("/")
            if folder.endswith("/data"):
                data = np.frombuffer(data, f"u{sizes[name]}").byteswap().tobytes()
            if name == "byteorder":
                data = b"big"
            target.writestr(info.filename, data)
    assert_equal(read(big), torch.load(big, weights_only=True))
    assert_equal(read(big), torch.load(little, weights_only=True))


def test_numpy_arrays_in_a_checkpoint(tmp_path: Path) -> None:
    value = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i2"),
        "empty": np.zeros((0, 2)),
    }
    model = read(save({**value, "objects": np.array([None])}, tmp_path / "model.pt"))
    assert [t.name for t in model.tensors] == list(value)
    for tensor in model.tensors:
        np.testing.assert_array_equal(tensor.load(), value[tensor.name])
        assert tensor.load().dtype.isnative
