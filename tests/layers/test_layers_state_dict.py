"""What is concluded from names and shapes alone, and what is not."""

from __future__ import annotations

import numpy as np
import pytest

from filterdb.errors import LayerError
from filterdb.layers.detect import find_layers, layer_uid
from filterdb.layers.hashing import tensor_sha256
from filterdb.layers.names import keeps_order, registration_order, split_name
from filterdb.layers.normalise import canonical
from filterdb.layers.raw import RawModel, Tensor


def _bn(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (channels,) for leaf in leaves}


def test_kinds_of_tensors_and_their_reasons(state_dict) -> None:
    raw = state_dict(
        {
            "patch_embed.proj.weight": (8, 3, 4, 4),
            "pos_embed": (1, 5, 8),
            "cls_token": (1, 1, 8),
            "conv.weight": (8, 8, 3, 3),
            "conv.bias": (8,),
            "bn.weight": (8,),
            "bn.bias": (8,),
            "bn.running_mean": (8,),
            "bn.running_var": (8,),
            "bn.num_batches_tracked": np.array(3),
            "temporal.weight": (8, 8, 5),
            "volume.weight": (4, 8, 3, 3, 3),
            "fc.weight": (10, 8),
            "fc.bias": (10,),
            "wte.weight": (100, 8),
            "layer_scale": (8, 1, 1),
            "relative_position_index": np.zeros((4, 4), np.int64),
            "quantised.weight": np.zeros((8, 8, 3, 3), np.int8),
            "attn.relative_position_bias_table": (169, 3),
        }
    )
    found = find_layers(raw)
    assert {r.name: r.kernel for r in found.layers} == {
        "patch_embed.proj": (4, 4),
        "conv": (3, 3),
        "temporal": (5,),
        "volume": (3, 3, 3),
    }
    reasons = {s.tensor: s.reason for s in found.skipped}
    assert reasons == {
        "pos_embed": "embedding",
        "cls_token": "embedding",
        "conv.bias": "bias",
        "bn.weight": "norm",
        "bn.bias": "norm",
        "bn.running_mean": "buffer",
        "bn.running_var": "buffer",
        "bn.num_batches_tracked": "buffer",
        "fc.weight": "fully_connected",
        "fc.bias": "bias",
        "wte.weight": "embedding",
        "layer_scale": "norm",
        "relative_position_index": "buffer",
        "quantised.weight": "unsupported_dtype",
        "attn.relative_position_bias_table": "embedding",
    }
    # Everything but buffers and the integers without scales.
    taken = 8 * 3 * 16 + 8 * 8 * 9 + 8 * 8 * 5 + 4 * 8 * 27
    others = 5 * 8 + 8 + 8 + 8 + 8 + 80 + 10 + 800 + 8 + 169 * 3
    assert found.n_parameters == taken + others


def test_every_tensor_is_a_layer_or_a_row(state_dict) -> None:
    names = {"a.weight": (4, 3, 3, 3), "b": (2, 2, 2, 2, 2, 2), "c.x": (3,), "d": ()}
    found = find_layers(state_dict(names))
    assert [r.tensor for r in found.layers] == ["a.weight"]
    assert [s.tensor for s in found.skipped] == ["b", "c.x", "d"]


def test_transposed_by_bias_batch_norm_name_glob_and_chain(state_dict) -> None:
    raw = state_dict(
        {
            "inc.weight": (16, 3, 3, 3),
            "by_bias.weight": (16, 8, 2, 2),
            "by_bias.bias": (8,),
            "block.0.weight": (8, 6, 4, 4),
            **_bn("block.1", 6),
            "deconv.weight": (6, 6, 3, 3),
            "up.weight": (6, 6, 2, 2),
            "plain.weight": (6, 6, 2, 2),
            "stated.weight": (6, 5, 3, 3),
            "chain.weight": (5, 3, 4, 4),
        }
    )
    found = find_layers(raw, transposed=["stated.*"])
    assert {r.name: (r.op, r.in_channels, r.out_channels) for r in found.layers} == {
        "inc": ("conv", 3, 16),
        "by_bias": ("conv_transpose", 16, 8),
        "block.0": ("conv_transpose", 8, 6),
        "deconv": ("conv_transpose", 6, 6),
        "up": ("conv_transpose", 6, 6),
        "plain": ("conv", 6, 6),
        "stated": ("conv_transpose", 6, 5),
        "chain": ("conv_transpose", 5, 3),
    }


def test_grouped_transposed_by_bias(state_dict) -> None:
    raw = state_dict({"mosaick.weight": (12, 1, 2, 2), "mosaick.bias": (3,)})
    (layer,) = find_layers(raw).layers
    assert (layer.op, layer.in_channels, layer.out_channels, layer.groups) == (
        "conv_transpose",
        12,
        3,
        3,
    )
    assert layer.weights().shape == (3, 4, 2, 2)


def test_one_input_channel_is_depthwise_behind_other_layers_only(state_dict) -> None:
    raw = state_dict(
        {
            "stem.weight": (8, 1, 3, 3),
            "dw.weight": (8, 1, 3, 3),
            "mask.weight": (1, 8, 1, 1),
            "from_mask.weight": (16, 1, 3, 3),
        }
    )
    groups = {r.name: r.groups for r in find_layers(raw).layers}
    assert groups == {"stem": 1, "dw": 8, "mask": 1, "from_mask": 1}


def test_groups_need_repeated_evidence(state_dict) -> None:
    block = {"conv1.weight": (32, 64, 1, 1), "conv2.weight": (32, 4, 3, 3)}
    once = {"stem.weight": (64, 3, 3, 3), **{f"a.{k}": v for k, v in block.items()}}
    twice = {**once, **{f"b.{k}": v for k, v in block.items()}}
    assert [r.groups for r in find_layers(state_dict(once)).layers] == [1, 1, 1]
    assert [r.groups for r in find_layers(state_dict(twice)).layers] == [1, 1, 8, 1, 8]


def test_pixel_shuffle_is_not_taken_for_groups(state_dict) -> None:
    # 256 channels become 64 by shuffling, so conv2 reads a quarter of what conv1 writes.
    names = {"head.weight": (64, 3, 3, 3)}
    names |= {f"upconv{i}.weight": (256, 64, 3, 3) for i in (1, 2, 3)}
    assert {r.groups for r in find_layers(state_dict(names)).layers} == {1}


@pytest.mark.parametrize(
    ("shapes", "layout", "expected"),
    [
        ({"a.weight": (16, 3, 3, 3), "b.weight": (32, 3, 3, 16)}, "auto", (16, 3)),
        ({"a.weight": (16, 3, 3, 3)}, "auto", (16, 3)),
        ({"a.weight": (16, 3, 3, 4)}, "OHWI", (16, 4)),
        ({"a/kernel:0": (3, 3, 4, 16)}, "auto", (16, 4)),
        ({"a/kernel:0": (5, 5, 4, 16), "b/kernel:0": (16, 8)}, "auto", (16, 4)),
        ({"a/W": (16, 4, 3, 3)}, "auto", (16, 4)),
        ({"a.weight": (3, 3, 4, 16), "b.weight": (3, 3, 16, 32)}, "auto", (16, 4)),
    ],
)
def test_layout_by_name_shape_or_catalogue(state_dict, shapes, layout, expected) -> None:
    first = find_layers(state_dict(shapes), layout=layout).layers[0]
    assert (first.out_channels, first.in_channels) == expected


def test_unknown_layout_is_an_error_that_lists_them(state_dict) -> None:
    with pytest.raises(LayerError, match="OIHW"):
        find_layers(state_dict({"a.weight": (4, 3, 3, 3)}), layout="NCHW")


def test_keras_depthwise_kernels(state_dict) -> None:
    raw = state_dict(
        {
            "dw/depthwise_kernel:0": (3, 3, 8, 2),
            "sep/depthwise_kernel:0": (3, 3, 16, 1),
            "sep/pointwise_kernel:0": (1, 1, 16, 4),
            "sep/bias:0": (4,),
            "new/kernel": (3, 3, 4, 1),
            "new/bias": (4,),
            "up/conv2d_transpose/kernel:0": (2, 2, 6, 4),
            "up/conv2d_transpose/bias:0": (6,),
        }
    )
    rows = [
        (r.op, r.in_channels, r.out_channels, r.groups, r.weights().shape[1])
        for r in find_layers(raw).layers
    ]
    assert rows == [
        ("conv", 8, 16, 8, 1),
        ("conv", 16, 16, 16, 1),
        ("conv", 16, 4, 1, 16),
        ("conv", 4, 4, 4, 1),
        ("conv_transpose", 4, 6, 1, 4),
    ]


def test_tied_tensors_share_unless_applied_differently() -> None:
    array = np.arange(4 * 4 * 9, dtype=np.float32).reshape(4, 4, 3, 3)
    names = ("encoder.conv.weight", "copy.conv.weight", "decoder.deconv.weight")
    tensors = tuple(
        Tensor(n, array.shape, "float32", lambda: array, storage=("s", 0)) for n in names
    )
    found = find_layers(RawModel("test", tensors))
    assert [(r.tensor, r.use, r.shared_with) for r in found.layers] == [
        (names[0], 0, None),
        (names[1], 0, names[0]),
        (names[2], 0, None),
    ]
    assert found.n_parameters == array.size
    assert layer_uid("m", found.layers[1]) == "m/copy.conv.weight"


def test_weight_norm_and_spectral_norm_are_put_together(state_dict) -> None:
    rng = np.random.default_rng(5)
    v = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    g = rng.normal(size=(4, 1, 1, 1)).astype(np.float32)
    u, right = rng.normal(size=4), rng.normal(size=27)
    mask = (rng.random((4, 3, 3, 3)) > 0.5).astype(np.float32)
    raw = state_dict(
        {
            "old.weight_g": g,
            "old.weight_v": v,
            "new.parametrizations.weight.original0": g,
            "new.parametrizations.weight.original1": v,
            "sn.weight_orig": v,
            "sn.weight_u": u,
            "sn.weight_v": right,
            "pruned.weight_orig": v,
            "pruned.weight_mask": mask,
        }
    )
    found = find_layers(raw)
    made = {r.name: r.weights() for r in found.layers}
    normal = g * v / np.linalg.norm(v.reshape(4, -1), axis=1).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(made["old"], normal, rtol=1e-5)
    np.testing.assert_allclose(made["new"], normal, rtol=1e-5)
    sigma = u @ v.reshape(4, -1).astype(float) @ right
    np.testing.assert_allclose(made["sn"], v / sigma, rtol=1e-5)
    np.testing.assert_array_equal(made["pruned"], v * mask)
    assert {s.tensor: s.reason for s in found.skipped} == {
        "old.weight_g": "buffer",
        "new.parametrizations.weight.original0": "buffer",
        "sn.weight_u": "buffer",
        "sn.weight_v": "buffer",
        "pruned.weight_mask": "buffer",
    }


def test_parts_of_a_weight_that_do_not_fit_are_an_error(state_dict) -> None:
    raw = state_dict({"a.weight_g": (5, 1, 1, 1), "a.weight_v": (4, 3, 3, 3)})
    with pytest.raises(LayerError, match="magnitude"):
        find_layers(raw).layers[0].weights()


def test_a_file_that_gives_other_shapes_than_announced_is_an_error() -> None:
    tensor = Tensor("a.weight", (4, 3, 3, 3), "float32", lambda: np.zeros((4, 3, 3), np.float32))
    with pytest.raises(LayerError, match="announced"):
        find_layers(RawModel("test", (tensor,))).layers[0].weights()


def test_readers_own_reasons_stand(state_dict) -> None:
    kept = Tensor(
        "state.exp_avg.weight", (4, 3, 3, 3), "float32", lambda: np.zeros(0),
        skip=("optimizer_state", "Adam"),
    )  # fmt: skip
    found = find_layers(RawModel("test", (kept,)))
    assert found.layers == ()
    assert (found.skipped[0].reason, found.skipped[0].detail) == ("optimizer_state", "Adam")
    assert found.n_parameters == 0


def test_an_empty_model_has_no_layers(state_dict) -> None:
    found = find_layers(state_dict({}))
    assert (found.layers, found.skipped, found.n_parameters) == ((), (), 0)


def test_alphabetical_files_are_put_into_order(state_dict) -> None:
    names = ["blocks.10.conv", "blocks.2.conv", "head.conv", "stem.conv"]
    assert not keeps_order(names)
    assert [names[i] for i in registration_order(names)] == [
        "stem.conv",
        "blocks.2.conv",
        "blocks.10.conv",
        "head.conv",
    ]
    shapes = {
        "blocks.10.conv.weight": (8, 8, 3, 3),
        "blocks.2.conv.weight": (8, 8, 3, 3),
        "head.conv.weight": (2, 8, 1, 1),
        "stem.conv.weight": (8, 3, 3, 3),
    }
    found = find_layers(state_dict(shapes))
    assert [r.tensor for r in found.layers] == list(shapes)  # file order …
    assert {r.name: (r.conv_depth, r.role) for r in found.layers} == {  # … and construction.
        "stem.conv": (0, "stem"),
        "blocks.2.conv": (1, "spatial"),
        "blocks.10.conv": (2, "spatial"),
        "head.conv": (3, "head"),
    }


def test_decoders_that_count_down_are_in_order() -> None:
    names = [f"encode_{i}" for i in (1, 2, 3)] + [f"decode_{i}" for i in (3, 2, 1)]
    assert keeps_order(names)
    assert not keeps_order(["conv2", "conv4", "conv1", "conv3"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layer1.0.conv1.weight", ("layer1.0.conv1", "weight")),
        ("conv2d/kernel:0", ("conv2d", "kernel")),
        ("stage1.conv0_running_mean", ("stage1.conv0", "running_mean")),
        ("attn.in_proj_weight", ("attn.in_proj", "weight")),
        ("conv2d_0.w_0", ("conv2d_0", "w_0")),
        ("W1", ("", "W1")),
        ("a.parametrizations.weight.original1", ("a", "weight_v")),
    ],
)
def test_names_split_into_module_and_parameter(name: str, expected: tuple[str, str]) -> None:
    assert split_name(name) == expected


def test_hash_knows_dtype_shape_and_content_but_not_byte_order() -> None:
    array = np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3)
    same = tensor_sha256(array)
    assert tensor_sha256(array.astype(">f4")) == same
    assert tensor_sha256(np.asfortranarray(array)) == same
    others = [array.reshape(2, 2, 3, 3), array.astype(np.float64), array + 1, array[::-1]]
    assert len({same, *map(tensor_sha256, others)}) == 5
    assert len(tensor_sha256(np.zeros((0, 3)))) == len(tensor_sha256(np.float32(1))) == 64


def test_same_network_in_two_layouts_has_equal_hashes(state_dict) -> None:
    weights = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    torch_like = find_layers(state_dict({"c.weight": weights}))
    keras_like = find_layers(state_dict({"c/kernel:0": weights.transpose(2, 3, 1, 0)}))
    hashes = {tensor_sha256(m.layers[0].weights()) for m in (torch_like, keras_like)}
    assert hashes == {tensor_sha256(canonical(weights, "OIHW"))}


@pytest.mark.parametrize(
    ("raw_name", "average"),
    [
        ("conv.weight", "ema.conv.weight"),
        ("model.conv.weight", "model_ema.conv.weight"),
        ("model.conv.weight", "ema_model.module.conv.weight"),
        ("params.conv.weight", "params_ema.conv.weight"),
        ("conv.weight", "conv.weight_ema"),
        ("conv/kernel:0", "conv/kernel/ExponentialMovingAverage:0"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_of_a_weight_and_its_average_the_average_is_taken(
    state_dict, raw_name: str, average: str, swapped: bool
) -> None:
    names = (average, raw_name) if swapped else (raw_name, average)
    shape = (3, 3, 4, 8) if "kernel" in raw_name else (8, 4, 3, 3)
    found = find_layers(state_dict(dict.fromkeys(names, shape)))
    assert [r.tensor for r in found.layers] == [average]
    assert [(s.tensor, s.reason) for s in found.skipped] == [(raw_name, "ema_copy")]
    assert found.n_parameters == 8 * 4 * 9


def test_an_average_without_dots_gives_way_and_other_averages_stay(state_dict) -> None:
    found = find_layers(
        state_dict(
            {
                "model.diffusion.conv_in.weight": (8, 4, 3, 3),
                "model_ema.diffusionconv_inweight": (8, 4, 3, 3),
                "ema.lonely.weight": (8, 8, 3, 3),
                "ema.conv.weight": (8, 8, 5, 5),
                "conv.weight": (8, 8, 3, 3),
            }
        )
    )
    assert {r.tensor for r in found.layers} == {
        "model.diffusion.conv_in.weight",
        "ema.lonely.weight",
        "ema.conv.weight",
        "conv.weight",
    }
