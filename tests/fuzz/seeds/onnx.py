from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper

from tests.fuzz.seeds import files_of
from tests.sources.formats.onnx_files import array, conv, model_of
from tests.sources.formats.test_onnx_external import external_model

if TYPE_CHECKING:
    from tests.fuzz.packing import Files


def seeds(folder: Path) -> list[Files]:
    w = array(np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3), "w")
    plain = model_of([conv(strides=[2, 2], pads=[1, 1, 1, 1], group=1)], [w])
    models = [plain, _quantised(), _branches(w), _function(w)]
    found = [{"model.onnx": model.SerializeToString()} for model in models]
    outside = external_model(folder).path
    return [*found, files_of(outside, outside.parent / "model.data")]


def _quantised() -> Any:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        helper.make_node("Constant", [], ["k"], value_floats=[1.0, 2.0]),
        conv(y="h"),
        helper.make_node("BatchNormalization", ["h", "k", "k", "k", "k"], ["y"], epsilon=0.1),
    ]
    kept = [array(np.ones((2, 1, 3, 3), np.int8), "q"), array(np.float32([0.5, 2]), "s")]
    kept += [array(np.int8([0, 1]), "z")]
    kept += [helper.make_tensor("h16", TensorProto.FLOAT16, [2], [15360, 0])]
    return model_of(nodes, kept)


def _branches(w: Any) -> Any:
    out = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    branches = {
        f"{side}_branch": helper.make_graph([conv("w", y="out")], side, [], out)
        for side in ("then", "else")
    }
    return model_of([helper.make_node("If", ["c"], ["y"], **branches)], [w], inputs=("x", "c"))


def _function(w: Any) -> Any:
    inner = helper.make_node("Conv", ["a", "k"], ["b"], name="inner")
    function = helper.make_function(
        "local", "Block", ["a", "k"], ["b"], [inner], [helper.make_opsetid("", 21)]
    )
    call = helper.make_node("Block", ["x", "w"], ["y"], domain="local", name="one")
    return model_of([call], [w], functions=[function])
