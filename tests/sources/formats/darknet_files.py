"""Writes Darknet networks: a ``.cfg`` and the ``.weights`` that Darknet itself would save."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from filterdb.sources.formats import ModelFile

NET = "[net]\nwidth = 8\nheight=6\nchannels=3\n\n"


def header(version: tuple[int, int, int] = (0, 2, 5), seen: int = 1000) -> bytes:
    """The first bytes: images seen take 64 bits from version 0.2 on."""
    major, minor, _revision = version
    is_long = major * 10 + minor >= 2 and max(major, minor) <= 1000
    return struct.pack("<3i", *version) + struct.pack("<q" if is_long else "<i", seen)


def numbers(*arrays: np.ndarray) -> bytes:
    """Arrays as Darknet writes them, one behind the other."""
    return b"".join(np.ascontiguousarray(a, "<f4").tobytes() for a in arrays)


def write(folder: Path, cfg: str, weights: bytes, stem: str = "net") -> ModelFile:
    """Write both files; the configuration is returned."""
    (folder / f"{stem}.cfg").write_text(cfg)
    (folder / f"{stem}.weights").write_bytes(weights)
    return ModelFile(folder / f"{stem}.cfg")
