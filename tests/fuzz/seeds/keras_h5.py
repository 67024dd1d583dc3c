from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.seeds import files_of
from tests.sources.formats.keras_files import conv, functional, layer, norm, write_keras

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    config = functional(
        "model",
        [
            layer("InputLayer", "input"),
            layer("Conv2D", "zeta", "input", strides=[2, 2], padding="same"),
            layer("BatchNormalization", "bn", "zeta", epsilon=0.01),
        ],
        ["input"],
        ["bn"],
    )
    groups = {"input": {}, "zeta": conv("zeta", 3, 3, 1, 2, bias=True), "bn": norm("bn", 2)}
    full = write_keras(folder / "full.h5", groups, config=config)
    bare = write_keras(folder / "bare.h5", {"c": conv("c", 3, 3, 1, 1)})
    return [{"model.h5": files_of(file.path)[file.path.name]} for file in (bare, full)]
