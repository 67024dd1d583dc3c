"""Coefficients on a basis and their bins, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filterdb.stats import histogram
from filterdb.stats.histogram import Projection


def projection(rng, scaling="max_abs", sparse="kept", k=9):
    components = np.linalg.qr(rng.normal(size=(k, k)))[0]
    return Projection(rng.normal(size=k) * 0.1, components, scaling, sparse)


def plain(filters, how):
    values = filters.astype(np.float64)
    peak = np.abs(values).max(axis=1)
    keep = np.full(len(values), True)
    if how.sparse == "removed":
        keep = peak >= 0.01 * peak.max()
    if how.scaling == "max_abs":
        values = values / np.where(peak == 0, 1, peak)[:, None]
    return ((values - how.mean) @ how.components.T)[keep]


@pytest.mark.parametrize("scaling", ["none", "max_abs"])
@pytest.mark.parametrize("sparse", ["kept", "removed"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_counts_are_numpys(rng, scaling, sparse, dtype):
    filters = rng.normal(size=(40_000, 9)).astype(dtype)
    filters[:300] = 0
    filters[300:900] *= 1e-3
    how = projection(rng, scaling, sparse)
    expected = plain(filters, how)
    low, high = histogram.coefficient_range(filters, how)
    assert (low, high) == pytest.approx((expected.min(), expected.max()), abs=1e-12)
    edges = np.linspace(low, high, 71)
    counts = histogram.coefficient_counts(filters, how, edges)
    assert counts.sum(axis=1).tolist() == [len(expected)] * 9
    for row, column in zip(counts, np.clip(expected, low, high).T, strict=True):
        # A coefficient on an edge may fall to either side by its last bit.
        assert np.abs(row - np.histogram(column, edges)[0]).max() <= 1


@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=50),
    st.floats(-3, 2.9),
    st.floats(0.1, 4),
    st.integers(2, 100),
)
@settings(max_examples=200, deadline=None)
def test_bins_are_numpys_for_any_value_inside(values, low, span, bins):
    edges = np.linspace(low, low + span, bins + 1)
    inside = np.array([v for v in values if edges[0] <= v <= edges[-1]] + list(edges))
    index = histogram.bin_index(inside, edges)
    expected = np.histogram(inside, edges)[0]
    assert np.bincount(index, minlength=bins).tolist() == expected.tolist()


def test_values_outside_are_counted_at_the_ends():
    edges = np.linspace(0, 1, 5)
    assert histogram.bin_index(np.array([-9.0, 9.0, 1.0, 0.0]), edges).tolist() == [0, 3, 3, 0]


def test_no_filter_at_all(rng):
    how = projection(rng)
    assert histogram.coefficient_range(np.zeros((0, 9)), how) == (np.inf, -np.inf)
    assert histogram.coefficient_counts(np.zeros((0, 9)), how, np.linspace(0, 1, 3)).sum() == 0


def test_coefficients_have_the_bound_a_frozen_range_relies_on(rng):
    how = projection(rng)
    low, high = histogram.coefficient_range(rng.normal(size=(5_000, 9)), how)
    bound = 3 * (1 + np.abs(how.mean).max())
    assert -bound <= low < high <= bound
