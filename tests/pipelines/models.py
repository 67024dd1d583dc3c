"""Tiny real checkpoints, written with the formats' own libraries, and a catalogue of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_models(folder: Path, *, n_models: int = 5, seed: int = 0) -> Path:
    """Write checkpoints and their catalogue; return the catalogue's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tables = ['[catalogue]\nname = "tiny"\ntitle = "Tiny"\ndescription = "Made by a test"\n']
    tasks = ("ocr", "segmentation", "denoising")
    for index in range(n_models):
        width = 4 + 2 * index
        tensors = {
            "conv1.weight": rng.normal(size=(width, 3, 3, 3)).astype(np.float32),
            "bn1.weight": rng.uniform(0.5, 1.5, width).astype(np.float32),
            "bn1.bias": rng.normal(size=width).astype(np.float32),
            "bn1.running_mean": rng.normal(size=width).astype(np.float32),
            "bn1.running_var": rng.uniform(0.5, 1.5, width).astype(np.float32),
            "conv2.weight": rng.normal(size=(2 * width, width, 3, 3)).astype(np.float32),
            "up.weight": rng.normal(size=(width, 2 * width, 5, 5)).astype(np.float16),
            "fc.weight": rng.normal(size=(10, width)).astype(np.float32),
            "fc.bias": np.zeros(10, dtype=np.float32),
        }
        path = folder / f"net-{index}.safetensors"
        save_file(tensors, str(path), metadata={"format": "pt"})
        tables.append(
            f'[[model]]\nid = "net-{index}"\nuri = "file:{path.name}"\nformat = "safetensors"\n'
            f'name = "Net {index}"\narchitecture = "tiny"\nfamily = "tiny"\n'
            f'task = "{tasks[index % 3]}"\nvisual_category = "natural"\nbytes = 20000000\n'
            'licence_package = "Apache-2.0"\nlicence_weights = "Apache-2.0"\n'
            'label_source = "made by the test"\n'
        )
    (folder / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    tables.append(
        '[[model]]\nid = "broken"\nuri = "file:broken.safetensors"\nformat = "safetensors"\n'
        'name = "Broken"\ntask = "ocr"\nvisual_category = "natural"\nlabel_source = "made"\n'
    )
    catalogue = folder / "tiny.toml"
    catalogue.write_text("\n".join(tables), encoding="utf-8")
    return catalogue
