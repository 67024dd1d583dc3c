"""Files the tests of the torch reader are run on."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.sources.formats import ModelFile, read_model

if TYPE_CHECKING:
    from filterdb.layers.raw import RawModel

torch = pytest.importorskip("torch")


def save(value: Any, path: Path, *, legacy: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def read(path: Path) -> RawModel:
    return read_model(ModelFile(path))


def as_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def assert_equal(model: RawModel, expected: dict[str, Any]) -> None:
    assert [t.name for t in model.tensors] == list(expected)
    for tensor in model.tensors:
        values = as_numpy(expected[tensor.name])
        loaded = tensor.load()
        assert loaded.shape == tensor.shape == values.shape
        assert loaded.dtype == values.dtype
        assert loaded.dtype.isnative
        assert loaded.flags.c_contiguous
        assert loaded.flags.aligned
        np.testing.assert_array_equal(loaded, values)


def state_dict(seed: int = 0) -> dict[str, Any]:
    """Every dtype, and every awkward way in which a tensor can lie in its storage."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(6, 5, 4, generator=g)
    shared = torch.randn(3, 3, generator=g)
    return OrderedDict(
        {
            "float32": torch.randn(4, 3, 3, 3, generator=g),
            "float64": torch.randn(2, 3, generator=g, dtype=torch.float64),
            "float16": torch.randn(5, generator=g).half(),
            "bfloat16": torch.randn(7, 3, generator=g).bfloat16(),
            "int64": torch.randint(-9, 9, (3,), generator=g),
            "int32": torch.tensor([[-(2**31), 2**31 - 1]], dtype=torch.int32),
            "int16": torch.tensor([-5, 6], dtype=torch.int16),
            "int8": torch.tensor([-128, 127], dtype=torch.int8),
            "uint8": torch.tensor([0, 255], dtype=torch.uint8),
            "bool": torch.tensor([True, False, True]),
            "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
            "scalar": torch.tensor(3.5),
            "empty": torch.empty(0, 3),
            "whole": base,
            "row": base[2],
            "column": base[:, 1],
            "transposed": base.permute(2, 0, 1),
            "strided": base[::2, 1::2, ::3],
            "expanded": base[:1].expand(5, 5, 4),
            "channels_last": torch.randn(2, 3, 4, 5, generator=g).to(
                memory_format=torch.channels_last
            ),
            "tied": shared,
            "tied_too": shared,
            "parameter": torch.nn.Parameter(torch.randn(2, 2, generator=g)),
            "frozen": torch.nn.Parameter(torch.randn(2, generator=g), requires_grad=False),
            "buffer.num_batches_tracked": torch.tensor(7),
        }
    )


class _Odd:
    """Stands for a class of a package that is not installed."""


def small(seed: int, prefix: str = "") -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}conv.weight": torch.randn(2, 2, 3, 3, generator=g),
        f"{prefix}conv.bias": torch.randn(2, generator=g),
    }


def names(model: RawModel, *, skipped: bool = False) -> list[str]:
    return [t.name for t in model.tensors if bool(t.skip) is skipped]


class Block(torch.nn.Module):
    """Modules in a list, tied weights, buffers of both sorts, and attributes beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2), dilation=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8, eps=1e-3)
        self.layers = torch.nn.ModuleList(
            [torch.nn.Conv1d(8, 8, 3, groups=4, padding="same"), torch.nn.GroupNorm(2, 8)]
        )
        self.up = torch.nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.volume = torch.nn.Conv3d(2, 2, 3, padding="valid")
        self.head = torch.nn.Linear(4, 2)
        self.table = torch.nn.Embedding(5, 3)
        self.again = self.stem
        self.drop = torch.nn.Dropout()
        self.nothing = None
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("fleeting", torch.arange(4.0), persistent=False)
        self.scale = torch.nn.Parameter(torch.ones(2))
        self.anchors = torch.arange(5.0)
        self.hidden = [torch.nn.Conv2d(1, 1, 3, bias=False), self.up]
