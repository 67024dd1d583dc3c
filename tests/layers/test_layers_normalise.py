"""Layouts: round trips, orientation, and what each layout computes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filterdb.errors import LayerError
from filterdb.layers.normalise import (
    canonical,
    canonical_shape,
    family_of,
    layout_for,
    stored,
)

CONV = ["OIHW", "HWIO", "OHWI", "OIW", "WIO", "OWI", "OIDHW", "DHWIO", "ODHWI"]
TRANSPOSED = ["IOHW", "HWOI", "IOW", "WOI", "IODHW", "DHWOI"]
DEPTHWISE = ["HWIM", "WIM", "DHWIM", "1HWO", "1WO"]
SOBEL = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]], np.float32)


def _weights(groups: int, out: int, into: int, rank: int) -> np.ndarray:
    kernel = (2, 3, 5)[3 - rank :]
    shape = (groups * out, into, *kernel)
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@given(
    layout=st.sampled_from(CONV + TRANSPOSED + DEPTHWISE),
    groups=st.integers(1, 4),
    out=st.integers(1, 3),
    into=st.integers(1, 3),
)
def test_every_layout_comes_back(layout: str, groups: int, out: int, into: int) -> None:
    rank = sum(a in "DHW" for a in layout)
    op = "conv_transpose" if layout in TRANSPOSED else "conv"
    weights = _weights(groups, out, 1 if layout in DEPTHWISE else into, rank)

    there = stored(weights, layout, groups=groups, op=op)
    back = canonical(there, layout, groups=groups, op=op)

    assert len(there.shape) == len(layout)
    assert back.shape == canonical_shape(there.shape, layout, groups=groups, op=op)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, weights)


@pytest.mark.parametrize(
    "layout", [x for x in CONV + TRANSPOSED + DEPTHWISE if "HW" in x and "D" not in x]
)
def test_sobel_stays_upright(layout: str) -> None:
    weights = np.zeros((4, 1, 3, 3), np.float32)
    weights[2, 0] = SOBEL
    op = "conv_transpose" if layout in TRANSPOSED else "conv"
    there = stored(weights, layout, groups=4, op=op)
    np.testing.assert_array_equal(canonical(there, layout, groups=4, op=op)[2, 0], SOBEL)


def _correlate(image: np.ndarray, weights: np.ndarray, groups: int) -> np.ndarray:
    """Plain cross-correlation without padding, in loops: the definition itself."""
    out, into, height, width = weights.shape
    per_group = out // groups
    h, w = image.shape[1] - height + 1, image.shape[2] - width + 1
    result = np.zeros((out, h, w))
    for o in range(out):
        first = o // per_group * into
        for y in range(h):
            for x in range(w):
                patch = image[first : first + into, y : y + height, x : x + width]
                result[o, y, x] = np.sum(patch * weights[o])
    return result


@pytest.mark.torch
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_canonical_weights_compute_what_torch_computes(groups: int) -> None:
    import torch

    rng = np.random.default_rng(3)
    layer = torch.nn.Conv2d(4, 8, (3, 2), groups=groups, bias=False)
    image = rng.normal(size=(4, 6, 5))
    weights = canonical(layer.weight.detach().numpy(), "OIHW", groups=groups)
    with torch.no_grad():
        expected = layer(torch.tensor(image[None], dtype=torch.float32))[0].numpy()
    np.testing.assert_allclose(_correlate(image, weights, groups), expected, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_weights_are_torchs_kernels_by_output_channel(groups: int) -> None:
    import torch

    layer = torch.nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    weights = canonical(layer.weight.detach().numpy(), "IOHW", groups=groups, op="conv_transpose")
    image = torch.zeros(1, 4, 1, 1)
    image[0, 3] = 1
    # One lit pixel of channel 3 writes that channel's kernel, unflipped, into each output.
    with torch.no_grad():
        written = layer(image)[0].numpy()
    per_group = 4 // groups
    group, inner = divmod(3, per_group)
    rows = range(group * 6 // groups, (group + 1) * 6 // groups)
    for o in range(6):
        expected = weights[o, inner] if o in rows else np.zeros((3, 3))
        np.testing.assert_allclose(written[o], expected, atol=1e-6)


def test_depthwise_multiplier_orders_outputs_by_input_channel() -> None:
    # TensorFlow's depthwise output channel k·M + m comes from input channel k.
    weights = np.zeros((1, 1, 3, 2))
    weights[0, 0, 1, 0], weights[0, 0, 2, 1] = 10, 21
    rows = canonical(weights, "HWIM", groups=3)[:, 0, 0, 0]
    assert rows.tolist() == [0, 0, 10, 0, 0, 21]


@pytest.mark.parametrize(
    ("shape", "layout", "groups", "op", "what"),
    [
        ((4, 3, 3), "OIHW", 1, "conv", "names 4 axes"),
        ((4, 3, 3, 3), "OIHW", 3, "conv", "do not divide"),
        ((4, 3, 3, 3), "IOHW", 3, "conv_transpose", "do not divide"),
        ((2, 3, 3, 8), "1HWO", 8, "conv", "of length 1"),
        ((0, 3, 3, 3), "OIHW", 1, "conv", "no weights"),
        ((4, 3, 3, 3), "OIHW", 0, "conv", "at least one"),
    ],
)
def test_contradictions_are_errors(
    shape: tuple[int, ...], layout: str, groups: int, op: str, what: str
) -> None:
    with pytest.raises(LayerError, match=what):
        canonical_shape(shape, layout, groups=groups, op=op, where="w")


@given(st.sampled_from(["OIHW", "HWIO", "OHWI"]), st.integers(1, 3), st.booleans())
def test_layout_names_their_family(family: str, rank: int, transposed: bool) -> None:
    assert family_of(layout_for(family, rank, transposed=transposed)) == family
