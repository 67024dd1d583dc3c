"""Sparsity, variance entropy, the published threshold: against plain forms and published values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from filterdb.metrics import entropy, randomness, sparsity


def of_sums(filters: np.ndarray) -> float:
    filters = np.asarray(filters, dtype=np.float64)
    centred = entropy.centred_scatter(filters.T @ filters, filters.sum(axis=0), len(filters))
    return float(entropy.variance_entropy(centred))


@given(st.integers(2, 60), st.integers(1, 12), st.floats(-3, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_entropy_from_sums_equals_entropy_by_svd(n, k, offset, seed):
    filters = np.random.default_rng(seed).normal(offset, 1.0, size=(n, k))
    assert of_sums(filters) == pytest.approx(entropy.variance_entropy_of_filters(filters), abs=1e-7)
    assert -1e-12 <= of_sums(filters) <= np.log10(k) + 1e-12


def test_entropy_is_that_of_scipy(rng):
    filters = rng.normal(size=(500, 9)) * np.arange(1, 10)
    shares = np.linalg.svd(filters - filters.mean(0), compute_uv=False) ** 2
    assert of_sums(filters) == pytest.approx(stats.entropy(shares, base=10), abs=1e-10)


def test_entropy_at_its_ends():
    assert of_sums(np.vstack([np.eye(9), -np.eye(9)])) == pytest.approx(np.log10(9), abs=1e-12)
    assert of_sums(np.outer([1.0, -1.0, 2.0], np.arange(9))) == pytest.approx(0.0, abs=1e-9)
    for nothing in (np.ones((1, 9)), np.full((7, 9), 0.1), np.zeros((5, 9))):
        assert np.isnan(of_sums(nothing))
        assert np.isnan(entropy.variance_entropy_of_filters(nothing))


def test_normalised_entropy():
    assert entropy.normalised_entropy(np.log10(25), 25) == pytest.approx(1.0)
    assert np.isnan(entropy.normalised_entropy(0.0, 1))


def test_sparsity_is_strict_and_whole_for_zeros():
    filters = np.zeros((4, 9))
    assert sparsity.sparse_filters(filters).all()
    filters[0, 0], filters[1, 8], filters[2, 4] = -2.0, 0.02, 0.0199
    assert sparsity.sparse_filters(filters).tolist() == [False, False, True, True]
    assert sparsity.sparsity(2, 4) == 0.5
    assert np.isnan(sparsity.sparsity(0, 0))


def test_published_threshold():
    scale, middle, slope, offset = randomness.THRESHOLD_PARAMETERS
    for n in (3, 64, 4096):
        expected = scale / (1 + np.exp(-slope * (np.log2(n) - middle))) + offset
        assert randomness.entropy_threshold(n) == pytest.approx(expected, rel=1e-14)
    assert np.isnan(randomness.entropy_threshold(2))
    # -.009 at n = 2 is why: published_values.md.
    value = scale / (1 + np.exp(-slope * (1 - middle))) + offset
    assert value == pytest.approx(-0.009, abs=5e-4)


def test_published_rule_for_degenerate_layers():
    n = np.full(4, 4096.0)
    threshold = float(randomness.entropy_threshold(4096))
    h = np.array([threshold - 0.019, threshold - 0.021, 0.49, 0.49])
    verdict = randomness.degenerate_published(h, n, np.array([0.0, 0.5, 0.14, 0.13]))
    assert verdict.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert np.isnan(randomness.degenerate_published(np.array([np.nan]), n[:1], n[:1] * 0)).all()


def test_minimum_filters_is_what_the_rule_says():
    assert randomness.minimum_filters(9) == 72
    assert randomness.minimum_filters(25) >= 26
    assert randomness.minimum_filters(121) == 122


def test_holm_and_benjamini_hochberg():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(randomness.holm(p), [0.03, np.nan, 0.06, 0.06, 0.02])
    expected = stats.false_discovery_control(p[[0, 2, 3, 4]])
    np.testing.assert_allclose(randomness.benjamini_hochberg(p)[[0, 2, 3, 4]], expected)
    assert np.isnan(randomness.benjamini_hochberg(p)[1])
    assert np.isnan(randomness.holm(np.array([np.nan]))).all()
