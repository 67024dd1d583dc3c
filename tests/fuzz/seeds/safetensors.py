from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    entries = {
        "conv.weight": {"dtype": "F32", "shape": [2, 1, 3, 3], "data_offsets": [0, 72]},
        "conv.bias": {"dtype": "BF16", "shape": [2], "data_offsets": [72, 76]},
        "bn.num_batches_tracked": {"dtype": "I64", "shape": [], "data_offsets": [76, 84]},
    }
    modules = [
        {"name": "conv", "type": "Conv2d", "stride": [1, 1], "padding": [1, 1],
         "dilation": [1, 1], "groups": 1, "transposed": False, "weight": "conv.weight",
         "bias": "conv.bias"},
    ]  # fmt: skip
    twin = {"__metadata__": {"filterdb.modules": json.dumps(modules)}, **entries}
    return [_file(entries), _file(twin), _file({})]


def _file(header: object) -> Files:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = bytes(range(84)) if b"conv" in text else b""
    return {"model.safetensors": struct.pack("<Q", len(text)) + text + numbers}
