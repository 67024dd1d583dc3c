from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.sources.formats.tflite_builder import ModelBuilder, i8, i32, u8
from tests.sources.formats.tflite_files import FLOAT, HALF, INT8, INT32, STRIDED, one_operator

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    plain = one_operator(3, (2, 3, 3, 6), options=STRIDED)
    transposed = one_operator(67, (2, 2, 3, 6), options={1: i32(2)}, places=(3, 1, 0, 2))
    models = [plain, transposed, _quantised(), _sparse()]
    return [{"model.tflite": model.bytes()} for model in models]


def _quantised() -> ModelBuilder:
    model = ModelBuilder()
    model.tensor("x", (1, 8, 8, 2))
    model.tensor("w", (2, 3, 3, 2), INT8, bytes(36), scale=[0.5, 0.25], zero_point=[0, 1])
    model.tensor("b", (2,), INT32, np.zeros(2, np.int32), scale=[0.5])
    model.tensor("h", (1, 8, 8, 2))
    model.tensor("d", (1, 3, 3, 2), HALF, np.ones((1, 3, 3, 2), np.float16))
    model.tensor("d_float", (1, 3, 3, 2))
    model.tensor("y", (1, 8, 8, 2))
    model.operator(3, [0, 1, 2], [3], STRIDED)
    model.operator(6, [4], [5])
    model.operator(4, [3, 5], [6], {3: i32(1)})
    return model


def _sparse() -> ModelBuilder:
    model = ModelBuilder()
    levels = [{0: i8(0), 1: i32(2)}, {0: i8(1), 2: u8(3), 4: u8(3)}]
    levels[1] |= {3: {0: np.array([0, 1, 2], np.uint8)}, 5: {0: np.array([1, 0], np.uint8)}}
    table = {0: np.array([0, 1], "<i4"), 1: np.zeros(0, "<i4"), 2: levels}
    model.tensor("w", (2, 2), FLOAT, np.ones(2, np.float32), sparsity=table)
    return model
