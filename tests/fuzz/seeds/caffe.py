from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.seeds._proto import floats, message

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    weight = [(7, [(1, bytes([2, 1, 3, 3]))]), (5, floats(*range(18)))]
    bias = [(7, [(1, bytes([2]))]), (5, floats(1, 2))]
    conv: list[tuple[int, Any]] = [
        (1, "c"), (2, "Convolution"), (3, "data"), (4, "c"), (7, weight), (7, bias),
        (106, [(1, 2), (4, 3), (3, 1), (6, 2), (5, 1)]),
    ]  # fmt: skip
    norm = [(1, "bn"), (2, "BatchNorm"), (3, "c"), (4, "c"), (7, bias), (7, bias),
            (7, [(7, [(1, bytes([1]))]), (5, floats(2))]), (139, [(3, 0.001)])]  # fmt: skip
    scale = [(1, "s"), (2, "Scale"), (3, "c"), (4, "c"), (7, bias), (7, bias), (142, [(4, 1)])]
    old = [(1, 2), (2, 1), (3, 3), (4, 3), (5, floats(*range(18)))]
    v1 = [(2, "data"), (3, "c"), (4, "c"), (5, 4), (6, old), (10, [(1, 2), (4, 3), (5, 1)])]
    v0 = [(1, [(1, "c"), (2, "conv"), (3, 2), (8, 3), (50, old)]), (2, "data"), (3, "c")]
    half = [(7, [(1, bytes([1, 1, 1, 2]))]), (10, 2), (12, struct.pack("<2e", 1, 2))]
    raw = [
        (1, "h"),
        (2, "Convolution"),
        (3, "data"),
        (4, "h"),
        (7, half),
        (106, [(11, 1), (12, 2)]),
    ]
    nets: list[list[tuple[int, Any]]] = [
        [(1, "net"), (100, conv), (100, norm), (100, scale)],
        [(1, "net"), (3, "data"), (4, 1), (2, v1)],
        [(1, "net"), (2, v0)],
        [(1, "net"), (100, raw)],
    ]
    return [{"model.caffemodel": message(net)} for net in nets]
