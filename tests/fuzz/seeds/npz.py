from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    arrays: dict[str, Any] = {
        "conv1/W": np.ones((2, 1, 3, 3), np.float32),
        "conv1/b": np.arange(2, dtype=">f8"),
        "turned": np.asfortranarray(np.ones((2, 3), np.float16)),
        "flag": np.array(True),
    }
    np.savez(folder / "plain.npz", **arrays)
    np.savez_compressed(folder / "deflated.npz", **arrays)
    return [{"model.npz": (folder / n).read_bytes()} for n in ("plain.npz", "deflated.npz")]
