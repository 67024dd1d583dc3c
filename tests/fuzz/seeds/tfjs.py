from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.seeds import files_of
from tests.sources.formats.keras_files import functional, kernel, layer, plain, write_tfjs
from tests.sources.formats.test_tfjs import conv_attributes, node

if TYPE_CHECKING:
    from filterdb.sources.formats.base import ModelFile
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    layers = functional(
        "m", [layer("InputLayer", "x"), layer("Conv2D", "first", "x")], ["x"], ["first"]
    )
    kept = [plain("first/kernel", kernel(3, 3, 1, 2)), plain("first/bias", kernel(2))]
    packed: dict[str, Any] = {"name": "w0", "shape": [3, 3, 1, 2], "dtype": "float32"}
    packed["quantization"] = {"dtype": "uint8", "scale": 0.1, "min": -1.0}
    graph = {
        "node": [
            node("x", "Placeholder"),
            node("w0", "Const"),
            node("c", "Conv2D", "x", "w0", **conv_attributes(2, "VALID")),
            node("y", "Identity", "c"),
        ]
    }
    cases = [(kept, {"keras_version": "2", "model_config": layers}, (40,)), (kept, None, ())]
    cases.append(([(packed, bytes(range(18)))], graph, (7,)))
    return [_written(folder / str(n), *case) for n, case in enumerate(cases)]


def _written(folder: Path, weights: Any, topology: Any, cuts: Any) -> Files:
    folder.mkdir()
    file: ModelFile = write_tfjs(folder, weights, topology, cuts=cuts)
    return files_of(file.path, *file.companions.values())
