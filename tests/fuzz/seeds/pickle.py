from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    kernel = np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3)
    arrays = {"conv.weight": kernel, "conv.bias": np.ones(2, ">f8"), "f": kernel.T}
    nested = {"model": arrays, "StructuredToParameterName@@": {"a": "b"}, "n": [np.int8(1), 2.5]}
    found: list[Files] = [
        {"model.pkl": pickle.dumps(nested if protocol == 4 else arrays, protocol)}
        for protocol in (0, 2, 4, 5)
    ]
    for number, array in enumerate((kernel, np.array(arrays, dtype=object))):
        path = folder / f"{number}.npy"
        np.save(path, array, allow_pickle=True)
        found.append({"model.npy": path.read_bytes()})
    return found
