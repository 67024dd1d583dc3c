"""Graphs: depth, BatchNorm, roles and shared weights along real edges."""

from __future__ import annotations

import numpy as np
import pytest

from filterdb.errors import LayerError
from filterdb.layers.depth import graph_of, ranked
from filterdb.layers.detect import find_layers, layer_uid
from filterdb.layers.raw import Node, RawModel, Tensor


def _bn(name: str, source: str, **options) -> Node:
    weights = {role: f"{name}.{role}" for role in ("gamma", "beta", "mean", "var")}
    return Node(name, "batch_norm", (source,), (name,), weights, **options)


def _vectors(name: str, channels: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    roles = ("gamma", "beta", "mean", "var")
    return {f"{name}.{r}": rng.uniform(0.5, 2, channels).astype(np.float32) for r in roles}


def test_depth_is_the_rank_of_the_longest_path(graph, conv) -> None:
    # a ─ b ─ c ─┐
    # └── d ─────┴ add ─ e;   d lies beside b.
    nodes = [
        conv("a", "x"),
        conv("b", "a"),
        conv("c", "b"),
        conv("d", "a"),
        Node("sum", "other", ("c", "d"), ("sum",)),
        conv("e", "sum"),
    ]
    raw = graph({f"{n}.w": (4, 4, 3, 3) for n in "abcde"}, nodes)
    rows = {r.name: r for r in find_layers(raw).layers}
    assert {n: r.conv_depth for n, r in rows.items()} == {"a": 0, "b": 1, "c": 2, "d": 1, "e": 3}
    assert rows["b"].conv_depth_norm == pytest.approx(1 / 3)
    assert {n: r.depth_decile for n, r in rows.items()} == {"a": 0, "b": 3, "c": 6, "d": 3, "e": 9}
    assert {r.depth_source for r in rows.values()} == {"graph"}


def test_casts_and_quantisations_add_no_depth(graph, conv) -> None:
    cast = Node("cast", "identity", ("a",), ("cast",))
    nodes = [conv("a", "x"), cast, conv("b", "cast"), conv("c", "a")]
    raw = graph({f"{n}.w": (4, 4, 3, 3) for n in "abc"}, nodes)
    assert [r.conv_depth for r in find_layers(raw).layers] == [0, 1, 1]


def test_one_level_has_depth_zero_and_tenths_do_not_round_down() -> None:
    (only,) = ranked([7], "graph")
    assert (only.level, only.share, only.decile) == (0, 0.0, 0)
    assert [d.decile for d in ranked(range(11), "graph")] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]


def test_a_cycle_falls_back_on_the_order_of_the_file(graph, conv) -> None:
    nodes = [conv("a", "b"), conv("b", "a")]
    found = find_layers(graph({"a.w": (4, 4, 3, 3), "b.w": (4, 4, 3, 3)}, nodes))
    assert [(r.conv_depth, r.depth_source) for r in found.layers] == [
        (0, "registration"),
        (1, "registration"),
    ]


def test_names_written_twice_mean_the_last_writer_before() -> None:
    # Caffe's in-place ReLU reads and writes the same blob.
    nodes = [
        Node("a", "conv", ("x",), ("t",)),
        Node("relu", "other", ("t",), ("t",)),
        Node("b", "conv", ("t",), ("u",)),
    ]
    assert graph_of(nodes).producers == ((), (0,), (1,))


def test_batch_norm_follows_only_where_it_alone_reads(graph, conv) -> None:
    nodes = [
        conv("a", "x"),
        Node("drop", "identity", ("a",), ("drop",)),
        _bn("a_bn", "drop", epsilon=0.001),
        conv("b", "a_bn"),
        _bn("b_bn", "b"),
        Node("also", "other", ("b",), ("also",)),
        conv("c", "b_bn"),
    ]
    arrays = {f"{n}.w": (4, 4, 3, 3) for n in "abc"} | _vectors("a_bn", 4) | _vectors("b_bn", 4)
    raw = graph(arrays, nodes)
    rows = {r.name: r for r in find_layers(raw).layers}
    assert {n: r.batch_norm_status for n, r in rows.items()} == {
        "a": "separate",
        "b": "none",
        "c": "none",
    }
    values = {t.name: t.load() for t in raw.tensors}
    norm = rows["a"].read_batch_norm()
    expected = values["a_bn.gamma"] / np.sqrt(values["a_bn.var"].astype(float) + 0.001)
    np.testing.assert_allclose(norm.scale, expected)
    assert norm.gamma.dtype == np.float64


def test_bias_added_before_batch_norm_moves_its_mean(graph, conv) -> None:
    add = Node("add", "add", ("a",), ("add",), {"constant": "bias"})
    arrays = {"a.w": (4, 4, 3, 3), "bias": np.arange(4, dtype=np.float32), **_vectors("bn", 4)}
    raw = graph(arrays, [conv("a", "x"), add, _bn("bn", "add")])
    norm = find_layers(raw).layers[0].read_batch_norm()
    np.testing.assert_allclose(norm.mean, _vectors("bn", 4)["bn.mean"] - np.arange(4))


@pytest.mark.parametrize(
    ("constant", "with_add", "status"),
    [((1, 4, 1, 1), True, "separate"), ((1, 4, 1, 1), False, "none"), ((1,), True, "none")],
)
def test_mul_and_add_per_channel_are_an_affine(graph, conv, constant, with_add, status) -> None:
    nodes = [conv("a", "x"), Node("mul", "multiply", ("a",), ("m",), {"constant": "g"})]
    if with_add:
        nodes.append(Node("add", "add", ("m",), ("n",), {"constant": "b"}))
    arrays = {"a.w": (4, 4, 3, 3), "g": np.full(constant, 3, np.float32), "b": constant}
    (layer,) = find_layers(graph(arrays, nodes)).layers
    assert layer.batch_norm_status == status
    if status == "separate":
        np.testing.assert_array_equal(layer.read_batch_norm().scale, [3, 3, 3, 3])


def test_folding_formats_say_so_where_there_is_a_bias(graph, conv) -> None:
    nodes = [conv("a", "x", bias="a.b"), conv("b", "a")]
    arrays = {"a.w": (4, 4, 3, 3), "a.b": (4,), "b.w": (4, 4, 3, 3)}
    found = find_layers(graph(arrays, nodes, folds_batch_norm=True))
    assert [r.batch_norm_status for r in found.layers] == ["folded_in_file", "none"]


def test_roles_by_edges(graph, conv) -> None:
    nodes = [
        conv("stem", "x", stride=(2, 2)),
        conv("dw", "stem", groups=8),
        conv("pw", "dw"),
        conv("down", "pw", stride=(2, 2)),
        conv("short", "pw", stride=(2, 2)),
        Node("both", "other", ("down", "short"), ("both",)),
        conv("plain", "both", stride=(1, 1)),
        conv("fc6", "plain", stride=(1, 1), padding=(0, 0)),
        conv("score", "fc6"),
        conv("box", "fc6"),
        conv("style", "vector"),
        Node("use", "other", ("style", "plain"), ("y",)),
        Node("fc", "linear", ("y",), ("z",), {"weight": "fc.w"}),
    ]
    shapes = {
        "stem.w": (8, 3, 3, 3),
        "dw.w": (8, 1, 3, 3),
        "pw.w": (8, 8, 1, 1),
        "down.w": (8, 8, 2, 2),
        "short.w": (8, 8, 1, 1),
        "plain.w": (8, 8, 3, 3),
        "fc6.w": (64, 8, 5, 5),
        "score.w": (2, 64, 1, 1),
        "box.w": (4, 64, 1, 1),
        "style.w": (8, 100, 1, 1),
        "fc.w": (8, 4),
    }
    assert {r.name: r.role for r in find_layers(graph(shapes, nodes)).layers} == {
        "stem": "stem",
        "dw": "depthwise",
        "pw": "pointwise",
        "down": "downsample",
        "short": "downsample",
        "plain": "spatial",
        "fc6": "fc_as_conv",
        "score": "head",
        "box": "head",
        "style": "pointwise",
    }


def test_patches_do_not_overlap(graph, conv) -> None:
    raw = graph({"a.w": (8, 3, 16, 16)}, [conv("a", "x", stride=(16, 16))])
    assert find_layers(raw).layers[0].role == "patch_embed"
    raw = graph({"a.w": (8, 3, 7, 7)}, [conv("a", "x", stride=(4, 4))])
    assert find_layers(raw).layers[0].role == "stem"


def test_weights_used_again_are_rows_that_point_back(graph, conv) -> None:
    nodes = [
        conv("a", "x", "w"),
        conv("b", "a", "w"),
        conv("c", "b", "w", op="conv_transpose"),
        conv("d", "c", "w"),
    ]
    found = find_layers(graph({"w": (4, 4, 3, 3)}, nodes))
    assert [(r.use, r.shared_with, layer_uid("m", r)) for r in found.layers] == [
        (0, None, "m/w"),
        (1, "w", "m/w#1"),
        (2, None, "m/w#2"),
        (3, "w", "m/w#3"),
    ]
    assert found.n_parameters == 4 * 4 * 9


def test_kernels_that_cannot_be_read_are_rows(graph, conv) -> None:
    nodes = [
        Node("made", "conv", ("x",), ("made",), dynamic_weight="k", source_op="Conv"),
        conv("gone", "made", "nowhere"),
        conv("flat", "gone", "flat"),
        conv("ints", "flat", "ints"),
        conv("scaleless", "ints", "scaleless"),
    ]
    tensors = (
        Tensor("flat", (4, 4), "float32", lambda: np.zeros((4, 4), np.float32)),
        Tensor("ints", (4, 4, 3, 3), "int32", lambda: np.zeros((4, 4, 3, 3), np.int32)),
        Tensor(
            "scaleless",
            (4, 4, 3, 3),
            "int8",
            lambda: np.zeros((4, 4, 3, 3), np.int8),
            skip=("missing_scale", "no zero point"),
        ),
        Tensor("table", (9,), "float32", lambda: np.zeros(9, np.float32)),
        Tensor("made", (2,), "float32", lambda: np.zeros(2, np.float32)),
    )
    found = find_layers(RawModel("test", tensors, tuple(nodes), has_edges=True))
    assert found.layers == ()
    assert {s.tensor: s.reason for s in found.skipped} == {
        "flat": "unknown_rank",
        "ints": "unsupported_dtype",
        "scaleless": "missing_scale",
        "table": "buffer",
        "made": "buffer",  # the tensor …
        "made#": "dynamic_weight",  # … and the node of the same name.
        "gone": "dynamic_weight",
    }


def test_node_that_contradicts_its_tensor_is_an_error(graph, conv) -> None:
    with pytest.raises(LayerError, match="3 groups"):
        find_layers(graph({"a.w": (4, 1, 3, 3)}, [conv("a", "x", groups=3)]))
    with pytest.raises(LayerError, match="stride"):
        find_layers(graph({"a.w": (4, 1, 3, 3)}, [conv("a", "x", stride=(1, 1, 1))]))


def test_quantised_and_bfloat_weights_come_as_float32(graph, conv) -> None:
    values = np.linspace(-1, 1, 36).reshape(4, 1, 3, 3)
    tensors = (
        Tensor("a.w", values.shape, "int8", lambda: values, quantised=True),
        Tensor("b.w", values.shape, "bfloat16", lambda: values.astype(np.float32)),
        Tensor("c.w", values.shape, "float16", lambda: values.astype(">f2")),
    )
    nodes = (conv("a", "x"), conv("b", "a"), conv("c", "b"))
    rows = find_layers(RawModel("test", tensors, nodes, has_edges=True)).layers
    assert [r.weights().dtype.name for r in rows] == ["float32", "float32", "float16"]
    assert [r.weights().dtype.isnative for r in rows] == [True] * 3
    assert [(r.source_dtype, r.quantised) for r in rows] == [
        ("int8", True),
        ("bfloat16", False),
        ("float16", False),
    ]
