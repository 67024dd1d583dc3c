"""Models the tests of the TFLite reader are run on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.tflite import READER
from tests.sources.formats.tflite_builder import ModelBuilder, i8, i32

if TYPE_CHECKING:
    from filterdb.layers.raw import Node, RawModel, Tensor

RNG = np.random.default_rng(30)

FLOAT, HALF, INT32, UINT8, STRING, INT16, INT8, INT4 = 0, 1, 2, 3, 5, 7, 9, 17


def read(path: Path, data: bytes) -> RawModel:
    target = path / "m.tflite"
    target.write_bytes(data)
    raw = READER.read(ModelFile(target))
    assert len({t.name for t in raw.tensors}) == len(raw.tensors)
    return raw


def tensor(raw: RawModel, name: str) -> Tensor:
    return next(t for t in raw.tensors if t.name == name)


def one_operator(
    code: int,
    weight: tuple[int, ...],
    *,
    x: tuple[int, ...] = (1, 8, 8, 6),
    options: dict[int, Any] | None = None,
    places: tuple[int, ...] = (0, 1, 2),
    custom: tuple[str, bytes] | None = None,
) -> ModelBuilder:
    """One operator on input, weight and bias, in the order of `places` (3: output shape)."""
    model = ModelBuilder()
    values = RNG.standard_normal(weight).astype(np.float32)
    model.tensor("x", x)
    model.tensor("w", weight, FLOAT, values)
    model.tensor("b", (weight[0],), FLOAT, np.ones(weight[0], np.float32))
    model.tensor("shape", (4,), INT32, np.array([1, 8, 8, 4], np.int32))
    model.tensor("y", (1, 8, 8, 4))
    model.operator(code, list(places), [4], options, custom)
    return model


def only_node(raw: RawModel) -> Node:
    (node,) = raw.nodes
    assert node.conv is not None
    return node


STRIDED = {0: i8(1), 1: i32(2), 2: i32(3), 4: i32(4), 5: i32(5)}
