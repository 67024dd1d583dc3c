from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tests.fuzz.packing import Files

_CFG = """[net]
width=8
height=8
channels=1

[convolutional]
batch_normalize=1
filters=2
size=3
stride=1
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
filters=1
size=1
groups=1
activation=linear

[route]
layers=-1,-3
"""
_DENSE = """[net]
height=4
width=4
channels=1
[connected]
output=2
activation=linear
"""


def seeds(folder: Path) -> list[Files]:
    weights = struct.pack("<3iq", 0, 2, 5, 1) + np.arange(4 * 2 + 18 + 1 + 2, dtype="<f4").tobytes()
    dense = struct.pack("<4i", 0, 1, 0, 1) + np.arange(2 + 32, dtype="<f4").tobytes()
    both = {"m.cfg": _CFG.encode(), "m.weights": weights}
    return [
        both,
        {name: both[name] for name in ("m.weights", "m.cfg")},
        {"m.cfg": _DENSE.encode(), "m.weights": dense},
    ]
