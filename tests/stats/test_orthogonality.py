"""Orthogonality: the blocked forms against the plain ones, and the identity with 𝒦𝒦ᵀ."""

from __future__ import annotations

import numpy as np
import pytest

from filterdb.metrics import orthogonality as plain
from filterdb.stats import orthogonality as blocked
from filterdb.stats.state import layer_state


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_row_orthogonality_equals_the_plain_form(rng, groups, monkeypatch):
    monkeypatch.setattr(blocked, "GRAM_ROWS", 3)
    weights = rng.normal(size=(12, 5, 3, 3))
    weights[3] = 0.0
    value, reason = blocked.row_orthogonality(weights, groups)
    assert reason is None
    assert value == pytest.approx(plain.row_orthogonality(weights, groups), abs=1e-13)


def test_orthogonal_rows_give_one_and_equal_rows_zero():
    assert blocked.row_orthogonality(np.eye(9).reshape(9, 1, 3, 3), 1)[0] == 1.0
    value, _ = blocked.row_orthogonality(np.ones((4, 1, 3, 3)), 1)
    assert value == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("weights", "groups"), [(np.ones((1, 4, 3, 3)), 1), (np.ones((4, 1, 3, 3)), 4)]
)
def test_one_output_channel_is_null_with_a_reason(weights, groups):
    value, reason = blocked.row_orthogonality(weights, groups)
    assert value is None
    assert "fewer than two" in reason


def test_tiny_weights_do_not_underflow(rng):
    weights = rng.normal(size=(4, 3, 3, 3))
    small = blocked.row_orthogonality(weights * 1e-200, 1)[0]
    assert small == pytest.approx(blocked.row_orthogonality(weights, 1)[0], abs=1e-12)


@pytest.mark.parametrize(
    "shape", [(4, 3, 3, 3), (7, 2, 3, 3), (3, 5, 2, 2), (9, 2, 3, 1), (3, 2, 5)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutional_orthogonality_equals_the_plain_form(rng, shape, stride):
    weights = rng.normal(size=shape)
    strides = (stride,) * (len(shape) - 2)
    value, _ = blocked.convolutional_orthogonality(weights, 1, strides)
    assert value == pytest.approx(plain.convolutional_orthogonality(weights, strides), rel=1e-12)


@pytest.mark.parametrize("shape", [(3, 4, 3, 3), (7, 2, 3, 3), (9, 2, 3, 3), (2, 3, 2, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_identity_with_the_circulant_operator(rng, shape, stride):
    weights = rng.normal(size=shape)
    side = -(-(2 * shape[2] - 1) // stride)
    operator = plain.circulant_operator(weights, stride, side)
    wide = shape[0] <= shape[1] * stride**2
    gram = operator @ operator.T if wide else operator.T @ operator
    expected = ((gram - np.eye(len(gram))) ** 2).sum() / side**2
    value, _ = blocked.convolutional_orthogonality(weights, 1, (stride, stride))
    assert value == pytest.approx(expected, rel=1e-10)


def test_an_orthogonal_convolution_has_none_left():
    weights = np.zeros((4, 4, 3, 3))
    weights[np.arange(4), np.arange(4), 1, 1] = 1.0
    assert blocked.convolutional_orthogonality(weights, 1, (1, 1)) == (0.0, None)


def test_groups_add_up(rng):
    weights = rng.normal(size=(6, 2, 3, 3))
    parts = [plain.convolutional_orthogonality(w, (1, 1)) for w in np.split(weights, 3)]
    value, _ = blocked.convolutional_orthogonality(weights, 3, (1, 1))
    assert value == pytest.approx(sum(parts), rel=1e-12)


def test_transposed_layers_are_judged_by_their_adjoint(rng):
    weights = rng.normal(size=(8, 3, 2, 2))
    state = layer_state(weights, 2, stride=(2, 2), transposed=True)
    adjoint = [w.swapaxes(0, 1) for w in np.split(weights, 2)]
    expected = sum(plain.convolutional_orthogonality(w, (2, 2)) for w in adjoint)
    assert state.l_orth == pytest.approx(expected, rel=1e-12)


def test_too_much_work_is_null_with_a_reason(monkeypatch):
    monkeypatch.setattr(blocked, "MAX_MULTIPLY_ADDS", 10.0)
    state = layer_state(np.eye(9).reshape(9, 1, 3, 3))
    assert state.orthogonality is None
    assert state.l_orth is None
    assert "multiply-adds" in state.null_reason
    skipped = layer_state(np.ones((2, 2, 1)), l_orth=False)
    assert "l_orth: not asked for" in skipped.null_reason
