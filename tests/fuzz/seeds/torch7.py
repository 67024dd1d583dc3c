from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.sources.formats.torch7_files import Function, Module, View, convolution, serialise

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    weight = np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3)
    network = Module("nn.Sequential", {"modules": [convolution(weight), Module("nn.ReLU")]})
    flat = convolution(weight, flat=True)
    shared = np.arange(12, dtype=np.float32)
    table = {"a": View(shared, (3, 2), (2, 1)), "b": View(shared, (2,), (5,), 1), "n": 3,
             "f": Function(b"LJ\1\2"), "words": ["x", True, None]}  # fmt: skip
    files = [serialise(network), serialise(flat, long_size=4), serialise(table)]
    return [{"model.t7": data} for data in files]
