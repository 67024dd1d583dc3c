from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from tests.fuzz.structures import zipped
from tests.sources.formats.keras_files import functional, layer

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    config = functional(
        "m", [layer("InputLayer", "x"), layer("Conv2D", "conv2d", "x")], ["x"], ["conv2d"]
    )
    path = folder / "w.h5"
    with h5py.File(path, "w") as file:
        variables = file.create_group("layers/conv2d/vars")
        variables["0"] = np.ones((3, 3, 1, 2), np.float32)
        variables["1"] = np.zeros(2, np.float32)
    weights = path.read_bytes()
    texts = [("metadata.json", json.dumps({"keras_version": "3.5.0"}).encode(), 0)]
    texts.append(("config.json", json.dumps(config).encode(), 8))
    listed = json.dumps({"weight_map": {"/layers/conv2d/vars": "model.weights_00.h5"}}).encode()
    return [
        {"model.keras": zipped([*texts, ("model.weights.h5", weights, 0)])},
        {"model.keras": zipped([*texts, ("model.weights.h5", weights, 8)])},
        {"model.keras": zipped([("model.weights.json", listed, 0), *texts[1:],
                                ("model.weights_00.h5", weights, 8)])},
    ]  # fmt: skip
