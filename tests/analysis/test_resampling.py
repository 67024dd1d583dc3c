"""Permutations and bootstrap draws over models: what they keep, and that tests keep their level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filterdb.analysis import resampling

model_sets = st.lists(st.integers(0, 15), unique=True, min_size=1, max_size=10).map(
    lambda models: np.array(sorted(models))
)


@given(model_sets, model_sets, st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_relabelling_keeps_sizes_and_uses_every_unit_once(first, second, seed):
    pair = resampling.pairing(first, second)
    a, b = resampling.permutations(pair, 20, np.random.default_rng(seed))
    assert (a + b == 1).all()
    assert (a.sum(axis=1) == len(first)).all()
    # A model in both groups stays in both, with its two parts perhaps exchanged.
    for i, j in zip(pair.shared_first, pair.shared_second, strict=True):
        assert (a[:, i] + a[:, len(first) + j] == 1).all()


@given(model_sets, model_sets, st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_bootstrap_draws_models_whole(first, second, seed):
    pair = resampling.pairing(first, second)
    a, b = resampling.bootstrap(pair, 20, np.random.default_rng(seed))
    assert (a.sum(axis=1) == len(first)).all()
    assert (b.sum(axis=1) == len(second)).all()
    assert (a[:, pair.shared_first] == b[:, pair.shared_second]).all()


def test_what_is_tested():
    def why(first, second):
        return resampling.pairing(np.array(first), np.array(second)).why_not_tested

    assert resampling.pairing(np.arange(2), np.arange(2, 4)).n_relabellings == 3
    assert resampling.pairing(np.arange(3), np.arange(3, 6)).n_relabellings == 10
    assert resampling.pairing(np.arange(5), np.arange(5)).n_relabellings == 16
    assert why([0, 1, 2], [3, 4, 5]) is None
    assert "2 against 2" in why([0, 1], [2, 3])
    assert "too few to swap" in why([0, 1, 2], [0, 1, 2])
    assert why(range(5), range(5)) is None


def test_streams_do_not_depend_on_one_another():
    one = resampling.generator(0, "task", "a", "b").random(3)
    assert (one == resampling.generator(0, "task", "a", "b").random(3)).all()
    assert (one != resampling.generator(0, "task", "a", "c").random(3)).any()
    assert (one != resampling.generator(1, "task", "a", "b").random(3)).any()
    assert (one != resampling.generator(0, "task", "ab", "").random(3)).any()


def test_halves():
    first = resampling.halves(5, 50, np.random.default_rng(0))
    assert (first.sum(axis=1) == 2).all()
    assert (first.sum(axis=0) > 0).all()


def test_interval_holds_the_estimate_where_percentiles_do_not():
    rng = np.random.default_rng(0)
    estimate = np.array(0.0156)
    draws = rng.uniform(0.0174, 0.0932, size=(200,))
    low, high = resampling.bias_corrected_interval(estimate, draws)
    assert low < estimate < high
    assert high - low == pytest.approx(np.subtract(*np.percentile(draws, [97.5, 2.5])))


def test_interval_covers_no_difference_where_percentiles_never_do():
    rng = np.random.default_rng(2)
    covered, by_percentiles, n = 0, 0, 10
    for _ in range(200):
        values = rng.normal(size=(2, n, 5))
        a, b = (resampling.resample(n, 200, rng) for _ in range(2))
        estimate = ((values[0].mean(axis=0) - values[1].mean(axis=0)) ** 2).sum()
        draws = ((a @ values[0] / n - b @ values[1] / n) ** 2).sum(axis=1)
        low, high = resampling.bias_corrected_interval(estimate, draws)
        covered += max(low, 0.0) == 0.0 <= high
        by_percentiles += np.percentile(draws, 2.5) <= 0.0
    assert covered > 140
    assert by_percentiles == 0


@pytest.mark.parametrize("paired", [False, True])
def test_level_of_the_permutation_test(paired):
    rng = np.random.default_rng(1)
    n, p = 8, []
    models = np.arange(n)
    pair = resampling.pairing(models, models if paired else models + n)
    for _ in range(400):
        common = rng.normal(size=n) if paired else 0.0
        values = np.concatenate([rng.normal(size=n) + common, rng.normal(size=n) + common])
        estimate = abs(values[:n].mean() - values[n:].mean())
        a, b = resampling.permutations(pair, 99, rng)
        p.append(resampling.permutation_p_value(estimate, np.abs(a @ values - b @ values) / n))
    rate = np.mean(np.array(p) <= 0.05)
    assert 0.015 < rate < 0.09
