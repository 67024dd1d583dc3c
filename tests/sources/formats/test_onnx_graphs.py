"""The ONNX reader: subgraphs, functions, other operations, order."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.onnx import READER
from tests.sources.formats.onnx_files import (
    array,
    conv,
    convolutions,
    model_of,
    read,
    save,
    tensor,
    weight,
)


def test_if_branches_take_outer_weights(tmp_path: Path) -> None:
    def branch(name: str, scale: float) -> Any:
        own = array(np.full((1, 1, 1, 1), scale, np.float32), "own")
        nodes = [conv("w", y="h"), conv("own", x="h", y="out")]
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [out], initializer=[own])

    node = helper.make_node(
        "If", ["c"], ["y"], name="if", then_branch=branch("t", 2), else_branch=branch("e", 3)
    )
    w = array(np.ones((1, 1, 3, 3), np.float32), "w")
    raw = read(tmp_path, model_of([node], [w], inputs=("x", "c")))
    found = convolutions(raw)
    assert [n.weights["weight"] for n in found] == [
        "w", "if/else_branch/own", "w", "if/then_branch/own",
    ]  # fmt: skip
    assert [n.name for n in found[:2]] == ["if/else_branch/conv_h", "if/else_branch/conv_out"]
    assert [float(weight(raw, n).load().ravel()[0]) for n in found] == [1, 3, 1, 2]
    # The path through a branch is a path of the whole graph.
    last = raw.nodes[-1]
    assert last.inputs == ("c", "if/else_branch/out", "if/then_branch/out")
    assert last.outputs == ("y",)
    assert found[0].inputs == ("x",)


def test_loop_bodies_see_their_inputs(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("i", "c", "h")]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("c2", "h2")]
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), conv("w", x="h", y="h2")],
        "body", values, results,
    )  # fmt: skip
    node = helper.make_node("Loop", ["n", "c", "x"], ["y"], name="loop", body=body)
    w = array(np.ones((1, 1, 3, 3), np.float32), "w")
    raw = read(tmp_path, model_of([node], [w], inputs=("x", "n", "c")))
    (found,) = convolutions(raw)
    assert found.inputs == ("loop/body/h",)
    enter = next(n for n in raw.nodes if "loop/body/h" in n.outputs)
    assert enter.op == "identity"
    assert "x" in enter.inputs
    assert "loop/body/h2" in raw.nodes[-1].inputs


def test_local_functions_are_expanded(tmp_path: Path) -> None:
    inner = helper.make_node("Conv", ["a", "k"], ["b"], name="inner")
    attribute = inner.attribute.add()
    attribute.name, attribute.ref_attr_name, attribute.type = "strides", "step", 7
    function = helper.make_function(
        "local", "Block", ["a", "k"], ["b"], [inner], [helper.make_opsetid("", 21)], ["step"]
    )
    calls = [
        helper.make_node("Block", ["x", "w"], ["h"], domain="local", name="one", step=[2, 2]),
        helper.make_node("Block", ["h", "w"], ["y"], domain="local", name="two", step=[1, 1]),
    ]
    w = array(np.ones((1, 1, 3, 3), np.float32), "w")
    raw = read(tmp_path, model_of(calls, [w], functions=[function]))
    first, second = convolutions(raw)
    assert (first.name, second.name) == ("one/inner", "two/inner")
    assert first.weights["weight"] == second.weights["weight"] == "w"
    assert first.conv is not None
    assert second.conv is not None
    assert (first.conv.stride, second.conv.stride) == ((2, 2), (1, 1))
    assert second.inputs == ("h",)
    assert any("Block (2x)" in note for note in raw.notes)


def test_functions_that_call_each_other_for_ever(tmp_path: Path) -> None:
    node = helper.make_node("Block", ["a"], ["b"], domain="local")
    function = helper.make_function(
        "local", "Block", ["a"], ["b"], [node], [helper.make_opsetid("", 21)]
    )
    call = helper.make_node("Block", ["x"], ["y"], domain="local")
    with pytest.raises(UnsafeCheckpointError, match="deeper"):
        read(tmp_path, model_of([call], functions=[function]))


def test_functions_that_double_for_ever(tmp_path: Path) -> None:
    functions = []
    for level in range(14):
        body = [
            helper.make_node(f"F{level + 1}", ["a"], [f"b{i}"], domain="local") for i in range(60)
        ]
        body.append(helper.make_node("Identity", ["b0"], ["b"]))
        functions.append(
            helper.make_function(
                "local", f"F{level}", ["a"], ["b"], body, [helper.make_opsetid("", 21)]
            )
        )
    call = helper.make_node("F0", ["x"], ["y"], domain="local")
    with pytest.raises(UnsafeCheckpointError, match="describes more"):
        read(tmp_path, model_of([call], functions=functions))


def test_memory_for_many_small_things_has_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import filterdb.sources.formats.onnx_proto as proto

    nodes = [helper.make_node("Relu", ["x"], [f"y{i}"]) for i in range(500)]
    scalars = [array(np.float32(i), f"w{i}") for i in range(500)]
    lists = [helper.make_node("Reshape", ["x"], ["z"], shape=list(range(20_000)))]
    models = [model_of(nodes), model_of([], scalars), model_of(lists)]
    for model in models:
        read(tmp_path, model)
    monkeypatch.setattr(proto, "_ROOM", 100_000)
    for model in models:
        with pytest.raises(UnsafeCheckpointError, match="describes more tensors"):
            read(tmp_path, model)


def test_batch_norm_and_decomposed_batch_norm(tmp_path: Path) -> None:
    w = np.ones((4, 1, 3, 3), np.float32)
    vectors = [array(np.full(4, i, np.float32), n) for i, n in enumerate("gbmv")]
    constants = [array(np.ones((1, 4, 1, 1), np.float32), n) for n in ("mul", "add")]
    nodes = [
        conv(y="a"),
        helper.make_node("BatchNormalization", ["a", *"gbmv"], ["n"], epsilon=1e-3),
        helper.make_node("Mul", ["n", "mul"], ["p"]),
        helper.make_node("Add", ["add", "p"], ["q"]),
        helper.make_node("Mul", ["q", "half"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    stored = [array(w, "w"), *vectors, *constants, array(np.float32(0.5), "half")]
    raw = read(tmp_path, model_of(nodes, stored))
    norm = raw.nodes[1]
    assert [n.op for n in raw.nodes] == ["conv", "batch_norm", "multiply", "add", "other", "other"]
    assert dict(norm.weights) == {"gamma": "g", "beta": "b", "mean": "m", "var": "v"}
    assert norm.epsilon == pytest.approx(1e-3)
    assert raw.nodes[2].weights["constant"] == "mul"
    assert raw.nodes[3].weights["constant"] == "add"
    assert raw.nodes[3].inputs == ("p",)
    default = helper.make_node("BatchNormalization", ["x", *"gbmv"], ["y"])
    assert read(tmp_path, model_of([default], vectors)).nodes[0].epsilon == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("kind", "inputs", "op", "weights"),
    [
        ("Gemm", ["x", "m", "v"], "linear", {"weight": "m", "bias": "v"}),
        ("MatMul", ["x", "m"], "linear", {"weight": "m"}),
        ("MatMul", ["x", "x2"], "other", {}),
        ("Gather", ["m", "x"], "embedding", {"weight": "m"}),
        ("LayerNormalization", ["x", "v", "v2"], "norm", {"gamma": "v", "beta": "v2"}),
        ("InstanceNormalization", ["x", "v", "v2"], "norm", {"gamma": "v", "beta": "v2"}),
        ("PRelu", ["x", "v"], "norm", {"gamma": "v"}),
        ("Dropout", ["x"], "identity", {}),
        ("Sigmoid", ["x"], "other", {}),
        ("Mul", ["x", "m"], "other", {}),
        ("LSTM", ["x", "r", "r2"], "linear", {"weight": "r", "recurrent": "r2"}),
    ],
)
def test_operators(
    tmp_path: Path, kind: str, inputs: list[str], op: str, weights: dict[str, str]
) -> None:
    shapes = {"m": (3, 4), "v": (4,), "v2": (4,), "r": (1, 8, 3), "r2": (1, 8, 2)}
    stored = [array(np.ones(s, np.float32), n) for n, s in shapes.items() if n in inputs]
    node = helper.make_node(kind, inputs, ["y"])
    (found,) = read(tmp_path, model_of([node], stored, inputs=("x", "x2"))).nodes
    assert (found.op, dict(found.weights)) == (op, weights)


def test_operators_of_other_domains_are_not_taken_by_name(tmp_path: Path) -> None:
    w = np.ones((8, 8, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], domain="com.microsoft.nchwc")
    (found,) = read(tmp_path, model_of([node], [array(w, "w")])).nodes
    assert (found.op, dict(found.weights)) == ("other", {})


def test_listing_leaves_the_values_in_the_file(tmp_path: Path) -> None:
    w = np.zeros((1024, 1024, 3, 3), np.float32)
    file = save(tmp_path, model_of([conv()], [array(w, "w")]))
    tracemalloc.start()
    raw = READER.read(file)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20 < w.nbytes
    assert tensor(raw, "w").load().shape == w.shape


def test_initializers_that_are_inputs_too(tmp_path: Path) -> None:
    w = np.ones((1, 1, 3, 3), np.float32)
    raw = read(tmp_path, model_of([conv()], [array(w, "w")], inputs=("x", "w")))
    assert raw.nodes[0].inputs == ("x",)
    assert raw.nodes[0].weights["weight"] == "w"


def test_unsorted_graphs_are_sorted_and_cycles_refused(tmp_path: Path) -> None:
    w = array(np.ones((1, 1, 3, 3), np.float32), "w")
    nodes = [conv(x="a", y="y"), conv(x="x", y="a")]
    raw = read(tmp_path, model_of(nodes, [w]))
    assert [n.outputs for n in raw.nodes] == [("a",), ("y",)]
    nodes = [conv(x="b", y="a"), conv(x="a", y="b")]
    with pytest.raises(MalformedFileError, match="cycle"):
        read(tmp_path, model_of(nodes, [w]))
    with pytest.raises(MalformedFileError, match="cycle"):
        read(tmp_path, model_of([conv(x="y", y="y")], [w]))


def test_long_chains_need_no_recursion(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(3000)]
    raw = read(tmp_path, model_of(list(reversed(nodes)), inputs=("v0",), outputs=("v3000",)))
    assert [n.outputs[0] for n in raw.nodes] == [f"v{i + 1}" for i in range(3000)]


def test_constants_cannot_double_for_ever(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", [f"v{i}", f"v{i}"], [f"v{i + 1}"]) for i in range(64)]
    stored = [array(np.ones((1, 1, 3, 3), np.float32), "v0")]
    raw = read(tmp_path, model_of([*nodes, conv("v64")], stored))
    (found,) = convolutions(raw)
    assert found.dynamic_weight == "v64"
    # Broadcasting grows tensors; nothing larger than the file allows is computed.
    big = [
        array(np.ones((4096, 1, 1, 1), np.float32), "a"),
        array(np.ones((1, 4096, 1, 1), np.float32), "b"),
        array(np.ones((1, 1, 4096, 1), np.float32), "c"),
    ]
    nodes = [
        helper.make_node("Mul", ["a", "b"], ["ab"]),
        helper.make_node("Mul", ["ab", "c"], ["abc"]),
        conv("abc"),
    ]
    raw = read(tmp_path, model_of(nodes, big))
    loaded = weight(raw, convolutions(raw)[0])
    assert math.prod(loaded.shape) == 4096**3
    with pytest.raises(UnsafeCheckpointError, match="bytes in memory"):
        loaded.load()
