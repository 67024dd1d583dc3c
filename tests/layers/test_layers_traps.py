"""Names and shapes of real state dicts that look like kernels and are none, and the other way."""

from __future__ import annotations

from itertools import pairwise

import pytest

from filterdb.layers.detect import find_layers
from filterdb.layers.raw import Node

KERNELS = {
    "stem.conv.weight": (32, 3, 3, 3),
    "block.kernel": (32, 32, 3, 3),
    "block.w": (32, 32, 3, 3),
    "block.W": (32, 32, 3, 3),
    "block.filters": (32, 32, 3, 3),
    "block.conv_weight": (32, 32, 3, 3),
    "encoder.filterbank._filters": (512, 1, 16),
    "conv3": (32, 32, 3, 3),
    "w1": (32, 32, 3, 3),
    # A kernel of length 1 is no linear layer, nor is a layer of one by one.
    "projection.weight": (64, 32, 1),
    "lpips.lin0.model.1.weight": (1, 64, 1, 1),
    "layers.0.conv1d.weight": (64, 32, 5),
    # Convolutions called after positions and embeddings.
    "pos_conv.0.weight": (768, 48, 128),
    "stages.3.pos_emb.pos_enc.weight": (608, 1, 7, 7),
    "patch_embed.proj.weight": (96, 3, 4, 4),
    "tubelet.proj.weight": (96, 3, 2, 16, 16),
    "dfl.conv.weight": (1, 16, 1, 1),
    "conv.lora_down.weight": (4, 32, 3, 3),
}
NO_KERNELS = {
    # Linear layers, lookup tables, position tables, attention biases and masks.
    "attn.in_proj_weight": (192, 64),
    "wte.weight": (1000, 64),
    "codebook.weight": (512, 64),
    "relative_position_bias_table": (169, 3),
    "attn.relative_position_bias": (1, 8, 49, 49),
    "attn.relative_position_index": (49, 49),
    "attn.attention_biases": (4, 49),
    "blocks.0.attn.rel_pos_h": (27, 64),
    "pos_embed": (1, 96, 14, 14),
    "pos_encoder.pe": (5000, 1, 512),
    "temporal_embed": (1, 16, 96),
    "cls_token": (1, 1, 96),
    "rope.freqs_cis": (196, 32, 2),
    "attn_mask": (64, 49, 49),
    "attn.mask": (1, 1, 7, 7),
    "mha.query.kernel": (64, 8, 8),
    "moe.experts.w1": (8, 64, 128),
    "enc.df_fc_emb.0.weight": (8, 64, 64),
    # Fixed filters: blur, resampling, windows, transforms.
    "layer2.0.conv1.aa.filt": (128, 1, 3, 3),
    "conv.blur.kernel": (4, 4),
    "to_rgb.upsample.kernel": (1, 1, 4, 4),
    "ssim.window": (3, 1, 11, 11),
    "gaussian_kernel": (3, 1, 11, 11),
    "sobel_x.weight": (1, 1, 3, 3),
    "dct.basis": (64, 1, 8, 8),
    "stft.forward_basis_buffer": (514, 1, 512),
    "mel.weight": (80, 201, 1),
    # Grids, anchors, constants, scales.
    "model.24.anchor_grid": (3, 1, 3, 1, 1, 2),
    "model.24.anchors": (3, 3, 2),
    "flow.grid": (1, 2, 64, 64),
    "encoder.layers.0.coords": (1, 1, 128, 1),
    "input.const": (1, 512, 4, 4),
    "im.0.implicit": (1, 256, 1, 1),
    "layer_scale.gamma": (96, 1, 1),
    "convblock.0.beta": (1, 192, 1, 1),
    "prelu.weight": (64, 1, 1),
    "snake.alpha": (1, 64, 1),
    "logit_scale": (8, 1, 1),
    "convolution._w3j_1_2_1": (3, 5, 3),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_under_unusual_names_are_taken(state_dict, name: str) -> None:
    found = find_layers(state_dict({name: KERNELS[name]}))
    assert [r.tensor for r in found.layers] == [name]


@pytest.mark.parametrize("name", NO_KERNELS)
def test_what_only_looks_like_a_kernel_is_a_row(state_dict, name: str) -> None:
    shape = NO_KERNELS[name]
    found = find_layers(state_dict({"stem.weight": (8, 3, 3, 3), name: shape}))
    assert [r.tensor for r in found.layers] == ["stem.weight"]
    assert [s.tensor for s in found.skipped] == [name]


def test_a_convolution_ahead_of_the_classifier_is_a_layer_stored_as_one(state_dict) -> None:
    raw = state_dict(
        {
            "features.0.weight": (16, 3, 3, 3),
            "features.3.weight": (32, 16, 3, 3),
            "fc6.weight": (256, 32, 7, 7),
            "fc7.weight": (256, 256, 1, 1),
            "fc8.weight": (10, 256),
        }
    )
    assert [(r.name, r.role) for r in find_layers(raw).layers] == [
        ("features.0", "stem"),
        ("features.3", "spatial"),
        ("fc6", "fc_as_conv"),
        ("fc7", "pointwise"),
    ]


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        # A bilinear upsampling of each channel; the last layer of a decoder has one output.
        (("stem", "up_1", "head"), [1, 64, 1]),
        (("stem", "body", "up_1"), [1, 1, 1]),
    ],
)
def test_transposed_kernels_of_one_output_channel(state_dict, names, groups) -> None:
    shapes = {"stem": (64, 3, 3, 3), "up_1": (64, 1, 4, 4), "body": (64, 64, 3, 3)}
    raw = state_dict({f"{n}.weight": shapes.get(n, (64, 64, 1, 1)) for n in names})
    found = find_layers(raw).layers
    assert [r.groups for r in found] == groups
    assert next(r for r in found if r.name == "up_1").op == "conv_transpose"


def test_sine_and_cosine_side_by_side_are_not_transposed(state_dict) -> None:
    raw = state_dict(
        {"spec.conv_real.weight": (257, 1, 512), "spec.conv_imag.weight": (257, 1, 512)}
    )
    assert [r.op for r in find_layers(raw).layers] == ["conv", "conv"]


def test_groups_by_lists_splits_norms_and_namesakes(state_dict) -> None:
    def block(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{name}.conv1.weight": (4 * width, 256, 1, 1),
            f"{name}.convs.0.weight": (width, width // 8, 3, 3),
            f"{name}.convs.1.weight": (width, width // 8, 3, 3),
            f"{name}.conv3.weight": (256, 4 * width, 1, 1),
        }

    raw = state_dict({"stem.weight": (256, 3, 3, 3), **block("a", 32), **block("b", 64)})
    groups = {r.name: r.groups for r in find_layers(raw).layers}
    assert {n: g for n, g in groups.items() if g > 1} == dict.fromkeys(
        ["a.convs.0", "a.convs.1", "b.convs.0", "b.convs.1"], 8
    )


def test_two_branches_that_read_one_map_are_not_grouped(state_dict) -> None:
    def block(name: str) -> dict[str, tuple[int, ...]]:
        return {
            f"{name}.conv_o.weight": (2, 128, 1, 1),
            f"{name}.conv_p.weight": (128, 2, 8, 1),
            f"{name}.conv_q.weight": (128, 2, 1, 8),
        }

    raw = state_dict({"stem.weight": (128, 3, 3, 3), **block("a"), **block("b")})
    assert all(r.groups == 1 for r in find_layers(raw).layers)


def test_networks_that_halve_their_channels_have_no_pairs_of_groups(state_dict) -> None:
    # LightCNN's maxout: every layer emits twice what the next reads.
    widths = [3, 96, 192, 256, 256]
    shapes = {
        f"conv{i}.weight": (2 * out, into, 3, 3)
        for i, (into, out) in enumerate(pairwise(widths), 1)
    }
    assert all(r.groups == 1 for r in find_layers(state_dict(shapes)).layers)


def test_a_depthwise_multiplier_is_told_by_the_norm_before_it(state_dict) -> None:
    raw = state_dict(
        {
            "stem.weight": (48, 3, 4, 4),
            "stages.0.norm.weight": (48,),
            "stages.0.norm.bias": (48,),
            "stages.1.conv_dw.weight": (96, 1, 5, 5),
            "stages.1.conv_pw.weight": (96, 96, 1, 1),
        }
    )
    layers = {r.name: r for r in find_layers(raw).layers}
    widened = layers["stages.1.conv_dw"]
    assert (widened.groups, widened.in_channels, widened.out_channels) == (48, 48, 96)
    assert widened.weights().shape == (96, 1, 5, 5)


def test_large_last_kernels_that_are_pooled_or_flattened_stay_spatial(
    state_dict, graph, conv
) -> None:
    lenet = {"c1.weight": (6, 1, 5, 5), "c2.weight": (16, 6, 5, 5), "fc1.weight": (120, 256)}
    assert [r.role for r in find_layers(state_dict(lenet)).layers] == ["stem", "spatial"]
    shapes = {"c1.w": (6, 1, 5, 5), "c2.w": (16, 6, 5, 5), "fc.w": (10, 16)}
    fc = Node("fc", "linear", ("p",), ("y",), {"weight": "fc.w"})
    for between, role in (("MaxPool", "spatial"), ("Flatten", "fc_as_conv")):
        nodes = [
            conv("c1", "x"),
            conv("c2", "c1"),
            Node("p", "other", ("c2",), ("p",), source_op=between),
            fc,
        ]
        assert [r.role for r in find_layers(graph(shapes, nodes)).layers] == ["stem", role]
