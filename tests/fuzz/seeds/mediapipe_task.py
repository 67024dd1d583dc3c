from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.fuzz.seeds.tflite import seeds as tflite_seeds
from tests.fuzz.structures import zipped

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    models = [files["model.tflite"] for files in tflite_seeds(folder)]
    inner = zipped([("landmarks.tflite", models[2], 0)])
    members = [("detector.tflite", models[0], 0), ("words.txt", b"a\nb\n", 0)]
    number = np.uint32(0).tobytes()
    return [
        {"model.task": zipped(members)},
        {"model.task": zipped([("hand.task", inner, 0), ("meta.bin", number, 0)])},
        {"model.task": bytes(4) + zipped([("detector.tflite", models[3], 0)])},
    ]
