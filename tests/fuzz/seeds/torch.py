from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.fuzz.seeds import files_of
from tests.sources.formats.torch_files import Block, save, small, torch

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    dictionary = small(0) | {"half": torch.ones(2, 3).half().t(), "bf": torch.ones(1).bfloat16()}
    nested = {"epoch": 3, "model": small(1, "module."), "optimizer": {"state": {0: small(2)}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_channel(
            torch.randn(2, 1, 3, 3), torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.qint8
        )
    arrays = {"w": np.ones((2, 3), np.float32), "n": np.float64(2)}
    values: list[tuple[Any, bool]] = [
        (dictionary, False),
        (dictionary, True),
        (nested, False),
        ({"q": quantised, "p": torch.nn.Parameter(torch.ones(2))}, False),
        (arrays, False),
        (Block(), False),
    ]
    found = []
    for number, (value, legacy) in enumerate(values):
        path = save(value, folder / f"{number}.pt", legacy=legacy)
        found.append({"model.pt": _packed(path.read_bytes())})
    return [*found, *_scripted(folder)]


def _scripted(folder: Path) -> list[Files]:
    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 2, 3, stride=2)

        def forward(self, x: Any) -> Any:
            return self.conv(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Net(), torch.ones(1, 1, 8, 8)), str(folder / "s.pt"))
    return [{"model.pt": _packed(files_of(folder / "s.pt")["s.pt"])}]


def _packed(data: bytes) -> bytes:
    """Leave out the padding between members and what only debuggers read."""
    if not data.startswith(b"PK"):
        return data
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            if not info.filename.endswith("debug_pkl"):
                new.writestr(zipfile.ZipInfo(info.filename), old.read(info))
    return out.getvalue()
