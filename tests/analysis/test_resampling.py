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
    a, exact = resampling.relabellings(pair, 20, np.random.default_rng(seed))
    assert exact == (pair.n_relabellings <= 20)
    assert len(a) == min(pair.n_relabellings, 20)
    assert ((a == 0) | (a == 1)).all()
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
        a, _ = resampling.relabellings(pair, 99, rng)
        p.append(resampling.permutation_p_value(estimate, np.abs((2 * a - 1) @ values) / n))
    rate = np.mean(np.array(p) <= 0.05)
    assert 0.015 < rate < 0.09


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0, 1, 2], [3, 4, 5]),  # nothing in common: 20 splits, in mirrored pairs
        ([0, 1, 2], [3, 4, 5, 6]),
        ([0, 1, 2, 3], [0, 1, 2, 3]),  # all in common: 16 swaps, in mirrored pairs
        ([0, 1, 2, 3], [2, 3, 4, 5]),
        ([0, 1, 2, 3], [3, 4]),
        ([0, 1], [0, 1, 2, 3]),
    ],
)
def test_all_relabellings_are_those_that_random_ones_come_to(first, second):
    pair = resampling.pairing(np.array(first), np.array(second))
    every, exact = resampling.relabellings(pair, 50, np.random.default_rng(0))
    assert exact
    size = len(first)
    assert (every[0] == (np.arange(len(every[0])) < size)).all()  # the labels as they are

    def unordered(rows):
        """A relabelling as both of its sides, which are not told apart where they can swap."""
        return {
            frozenset([tuple(row), tuple(1 - row)]) if pair.mirrored else tuple(row)
            for row in rows.astype(int)
        }

    assert len(unordered(every)) == len(every) == pair.n_relabellings
    drawn = np.concatenate([
        resampling.relabellings(pair, pair.n_relabellings - 1, np.random.default_rng(seed))[0]
        for seed in range(400)
    ])  # fmt: skip
    assert unordered(drawn) == unordered(every)


def test_p_value_of_three_against_three_is_exact():
    pair = resampling.pairing(np.arange(3), np.arange(3, 6))
    every, exact = resampling.relabellings(pair, 1999, np.random.default_rng(0))
    assert (len(every), exact) == (10, True)

    def p_value(values):
        distances = np.abs((2 * every - 1) @ np.array(values))
        return resampling.permutation_p_value(distances[0], distances, exact=exact)

    assert p_value([1.0, 2.0, 3.0, 10.0, 20.0, 30.0]) == 0.1  # the widest split of all
    assert p_value([1.0, 2.0, 10.0, 3.0, 20.0, 30.0]) == 0.2
    assert p_value([1.0] * 6) == 1.0


def test_random_relabellings_come_near_the_exact_p_value():
    rng = np.random.default_rng(4)
    values = rng.normal(size=14) + np.repeat([0.8, 0.0], 7)
    pair = resampling.pairing(np.arange(7), np.arange(7, 14))
    p = {}
    for most in (1716, 1715):
        in_first, exact = resampling.relabellings(pair, most, rng)
        estimate, drawn = (np.abs((2 * a - 1) @ values) for a in (np.repeat([1, 0], 7), in_first))
        p[exact] = float(resampling.permutation_p_value(estimate, drawn, exact=exact))
    assert 0.02 < p[True] < 0.5
    assert p[False] == pytest.approx(p[True], abs=4 * np.sqrt(p[True] / 1715))


def test_p_values_by_hand():
    estimate, drawn = np.array([2.0]), np.array([[1.0], [2.0], [3.0]])
    assert resampling.permutation_p_value(estimate, drawn) == [0.75]
    assert resampling.permutation_p_value(estimate, drawn, exact=True) == [2 / 3]
