from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.sources.formats.test_ncnn import F16, I8, INPUT, flagged, floats, text

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    line = "Convolution c 1 1 data out 0=2 1=3 11=1 2=2 3=1 4=1 5=1 6=6"
    plain = (text(INPUT, line), flagged(np.arange(6, dtype="<f4")) + floats(1, 2))
    half = (text(INPUT, "Convolution c 1 1 data out 0=3 1=1 6=3"), flagged(bytes(6), F16))
    small = (text(INPUT, "Convolution c 1 1 data out 0=3 1=1 6=3 8=2"),
             flagged(bytes(3), I8) + floats(2, 4, 8, 100))  # fmt: skip
    mixed = text(
        INPUT,
        "BatchNorm bn 1 1 data a 0=2 1=1e-3",
        "Split split 1 2 a b1 b2",
        "MemoryData mem 0 1 m 0=1 1=1 2=2",
        "BinaryOp mul 2 1 b1 m d 0=2",
        "ConvolutionDepthWise dw 1 1 b2 e 0=2 1=3 6=18 7=2",
        'InnerProduct fc 1 1 d f 0=3 1=0 2=12 -23310=1,2.0e-01 30="name"',
        blobs=12,
    )
    weights = floats(*range(8), 3, 4) + flagged(np.zeros(18, "<f4")) + flagged(bytes(48))
    cases = [plain, half, small, (mixed, weights)]
    return [{"m.param": param.encode(), "m.bin": data} for param, data in cases]
