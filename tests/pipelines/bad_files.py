"""One small good file of every format, each written by the format's own library, to be spoilt."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def weights(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def safetensors(folder: Path, name: str = "net", **tensors: Array) -> Path:
    from safetensors.numpy import save_file

    path = folder / f"{name}.safetensors"
    save_file(tensors or {"conv.weight": weights(8, 3, 3, 3)}, str(path), metadata={"format": "pt"})
    return path


def npz(folder: Path) -> Path:
    path = folder / "net.npz"
    np.savez(path, **{"conv.weight": weights(8, 3, 3, 3), "conv.bias": weights(8)})
    return path


def onnx(folder: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 8, 8]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])],
        "net",
        values[:1],
        values[1:],
        [numpy_helper.from_array(weights(8, 3, 3, 3), "w")],
    )
    path = folder / "net.onnx"
    save(helper.make_model(graph), str(path))
    return path


def tflite(folder: Path) -> Path:
    from tests.sources.formats.tflite_builder import ModelBuilder

    model = ModelBuilder()
    model.tensor("x", (1, 8, 8, 6))
    model.tensor("w", (4, 3, 3, 6), 0, weights(4, 3, 3, 6))
    model.tensor("b", (4,), 0, weights(4))
    model.tensor("y", (1, 8, 8, 4))
    model.operator(3, [0, 1, 2], [3], None, None)
    path = folder / "net.tflite"
    path.write_bytes(model.bytes())
    return path


def keras_h5(folder: Path) -> Path:
    from tests.sources.formats.keras_files import conv, layer, sequential, write_keras

    path = folder / "net.h5"
    config = sequential("net", [layer("InputLayer", "x"), layer("Conv2D", "conv")])
    write_keras(path, {"conv": conv("conv", 3, 3, 3, 8)}, config=config)
    return path


def ncnn(folder: Path) -> Path:
    lines = [
        "7767517",
        "2 2",
        "Input x 0 1 x 0=8 1=8 2=3",
        "Convolution conv 1 1 x y 0=8 1=3 4=1 5=0 6=216",
    ]
    (folder / "net.param").write_text("\n".join(lines) + "\n")
    (folder / "net.bin").write_bytes(struct.pack("<I", 0) + weights(8, 3, 3, 3).tobytes())
    return folder / "net.param"


def tfjs(folder: Path) -> Path:
    from tests.sources.formats.keras_files import layer, plain, sequential, write_tfjs

    topology = {"model_config": sequential("net", [layer("Conv2D", "conv")])}
    model = [plain("conv/kernel", weights(3, 3, 3, 8))]
    return write_tfjs(folder, model, topology, cuts=[400]).path


def torch_zip(folder: Path) -> Path:
    import torch

    path = folder / "net.pt"
    torch.save({"conv.weight": torch.from_numpy(weights(8, 3, 3, 3))}, path)
    return path


def torch_legacy(folder: Path) -> Path:
    import torch

    path = folder / "net.pth"
    tensors = {"conv.weight": torch.from_numpy(weights(8, 3, 3, 3))}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path


#: Format → writer of a good file, and the file that holds its weights.
WRITERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "safetensors": (safetensors, "net.safetensors"),
    "npz": (npz, "net.npz"),
    "onnx": (onnx, "net.onnx"),
    "tflite": (tflite, "net.tflite"),
    "keras_h5": (keras_h5, "net.h5"),
    "ncnn": (ncnn, "net.bin"),
    "tfjs": (tfjs, "group1-shard2of2.bin"),
}
TORCH_WRITERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "torch zip": (torch_zip, "net.pt"),
    "torch legacy": (torch_legacy, "net.pth"),
}


class Attack:
    """Pickles as a call of os.system."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def zip_bytes(members: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive in memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()
