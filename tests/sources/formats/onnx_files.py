"""Models the tests of the ONNX reader are run on, made by the onnx package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.onnx import READER

if TYPE_CHECKING:
    from filterdb.layers.raw import Node, RawModel, Tensor

RNG = np.random.default_rng(20)


def save(path: Path, model: onnx.ModelProto) -> ModelFile:
    target = path / "model.onnx"
    target.write_bytes(model.SerializeToString())
    return ModelFile(target)


def model_of(
    nodes: list[Any],
    initializers: list[Any] = (),  # type: ignore[assignment]
    *,
    inputs: tuple[str, ...] = ("x",),
    outputs: tuple[str, ...] = ("y",),
    opset: int = 21,
    **more: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        initializer=list(initializers),
    )
    return helper.make_model(
        graph, producer_name="tests", opset_imports=[helper.make_opsetid("", opset)], **more
    )


def array(values: Any, name: str) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def read(path: Path, model: onnx.ModelProto) -> RawModel:
    raw = READER.read(save(path, model))
    assert len({t.name for t in raw.tensors}) == len(raw.tensors)
    return raw


def tensor(raw: RawModel, name: str) -> Tensor:
    return next(t for t in raw.tensors if t.name == name)


def convolutions(raw: RawModel) -> list[Node]:
    return [n for n in raw.nodes if n.op in ("conv", "conv_transpose")]


def weight(raw: RawModel, node: Node) -> Tensor:
    return tensor(raw, node.weights["weight"])


def conv(w: str = "w", x: str = "x", y: str = "y", **attributes: Any) -> Any:
    return helper.make_node("Conv", [x, w], [y], name=f"conv_{y}", **attributes)
