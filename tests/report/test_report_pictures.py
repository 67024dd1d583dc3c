"""Pictures: upright, exact, small."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from filterdb.report.palette import (
    GAP_LEVEL,
    N_LEVELS,
    SEVERITIES,
    VIK,
    ZERO_LEVEL,
    contrast,
    signed_levels,
)
from filterdb.report.pictures import (
    align_signs,
    filter_sheet,
    fix_signs,
    pack_filters,
    row_width,
    sample_filters,
)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def test_zero_is_exactly_white_and_the_ends_are_dark():
    assert VIK.shape == (N_LEVELS, 3)
    assert VIK[N_LEVELS // 2].tolist() == [255, 255, 255]
    assert VIK[0].tolist() == [0, 18, 97]
    assert VIK[-1].tolist() == [89, 0, 8]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_levels_are_odd_and_monotone(values, limit):
    levels = signed_levels(values, limit)
    mirrored = signed_levels([-v for v in values], limit)
    assert np.array_equal(levels.astype(int) - ZERO_LEVEL, ZERO_LEVEL - mirrored.astype(int))
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(levels[order].astype(int)) >= 0)


def test_levels_of_non_finite_values_and_of_an_empty_layer():
    assert signed_levels([np.nan, np.inf, 0.0], 1.0).tolist() == [GAP_LEVEL, GAP_LEVEL, ZERO_LEVEL]
    assert signed_levels([0.0, 0.0], 0.0).tolist() == [ZERO_LEVEL, ZERO_LEVEL]


def test_sobel_is_upright_with_the_right_signs():
    sobel = np.array([[[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], [[-1, -2, -1], [0, 0, 0], [1, 2, 1]]])
    sheet = filter_sheet(sobel.reshape(2, 9), (3, 3), limit=2.0)
    picture = pixels(sheet.png)
    assert picture.shape == (3, 7, 4)
    first, gap, second = picture[:, :3], picture[:, 3], picture[:, 4:]
    assert (gap[:, 3] == 0).all()
    assert (first[..., 3] == 255).all()
    blue = first[..., 2].astype(int) - first[..., 0]
    assert (blue[:, 0] > 0).all(), "negative left column is blue"
    assert (blue[:, 2] < 0).all(), "positive right column is red"
    assert (first[:, 1, :3] == 255).all(), "zero is white"
    assert (second[0, :, 2] > second[0, :, 0]).all(), "negative top row is blue"
    assert first[1, 0].tolist()[:3] == VIK[0].tolist()


def test_rank_one_and_three():
    strip = filter_sheet(np.arange(10.0).reshape(2, 5), (5,), limit=9.0)
    assert (strip.width, strip.height) == (11, 1)
    cube = filter_sheet(np.arange(27.0).reshape(1, 27), (3, 3, 3), limit=27.0)
    assert (cube.width, cube.height) == (11, 3)
    assert pixels(cube.png)[0, 3, 3] == 0
    slices = pixels(cube.png)[..., :3]
    assert (slices[2, 10] == VIK[round(26 / 27 * 31) + 31]).all(), "last slice, last row, right"


def test_sample_takes_even_ranks_of_the_norm_and_says_the_limit():
    rng = np.random.default_rng(1)
    filters = rng.standard_normal((1000, 9)).astype(np.float32)
    filters[700:] *= 1e-6
    sample = sample_filters(filters, count=64)
    norms = np.linalg.norm(sample.values, axis=1)
    assert np.all(np.diff(norms) <= 1e-9)
    assert abs((norms < 1e-3).mean() - 0.3) < 0.03, "the white tail is the empty share"
    assert sample.n_total == 1000
    assert sample.limit == pytest.approx(np.abs(filters).max())
    assert np.array_equal(filters[sample.rows], sample.values)


def test_sample_survives_non_finite_weights():
    filters = np.ones((4, 9), np.float32)
    filters[2, 3] = np.nan
    sample = sample_filters(filters, count=2)
    assert sample.limit == 1.0
    assert sample.rows[0] == 2


@given(st.integers(1, 70), st.sampled_from([1, 4, 9, 25]))
def test_packed_numbers_are_those_of_the_filters(n, size):
    rng = np.random.default_rng(n * size)
    sample = sample_filters(rng.standard_normal((n, size)).astype(np.float32), count=64)
    raw = base64.b64decode(pack_filters(sample))
    k = len(sample.values)
    assert len(raw) == k * (4 + row_width(sample) + size)
    top = np.frombuffer(raw[: 4 * k], "<f4")
    rows = np.frombuffer(raw[4 * k : 6 * k], "<u2")
    values = np.frombuffer(raw[6 * k :], np.int8).reshape(k, size) / 127 * top[:, None]
    assert rows.tolist() == sample.rows.tolist()
    assert np.abs(values - sample.values).max() <= top.max() / 254 * 1.001


def test_pictures_are_small_and_the_same_each_time():
    filters = np.random.default_rng(0).standard_normal((64, 9))
    one, two = (filter_sheet(filters, (3, 3), limit=3.0) for _ in range(2))
    assert one.png == two.png
    assert len(one.data_uri) < 1_200


def test_sign_rules():
    components = np.array([[0.1, -0.9, 0.2], [0.5, -0.5, 0.1]])
    assert fix_signs(components).tolist() == [[-0.1, 0.9, -0.2], [0.5, -0.5, 0.1]]
    reference = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    assert align_signs(components, reference)[0].tolist() == [0.1, -0.9, 0.2]


def test_text_marks_and_findings_have_contrast():
    from importlib.resources import files

    css = (files("filterdb.report") / "templates" / "page.css").read_text()
    light, dark = (dict(re.findall(r"--(\w+):(#\w+)", line)) for line in css.split("\n")[:2])
    full = {k: v if len(v) == 7 else "#" + "".join(c * 2 for c in v[1:]) for k, v in light.items()}
    night = {**full, **dark}
    for theme in (full, night):
        for ground in ("bg", "panel"):
            for ink in ("text", "muted", "link"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
            assert contrast(theme["mark"], theme[ground]) >= 3.0
        assert contrast(theme["focus"], theme["bg"]) >= 3.0
    shapes = {shape for _, shape in SEVERITIES.values()}
    assert len(shapes) == 3
    assert all(contrast(colour, "#ffffff") >= 3.0 for colour, _ in SEVERITIES.values())
