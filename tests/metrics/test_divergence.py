"""Divergences against scipy and against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats
from scipy.spatial import distance

from filterdb.metrics import divergence

WIDTH = 0.08
WEIGHTS = np.array([0.5, 0.3, 0.2])


def some_shares(seed: int, groups: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return divergence.mass(rng.poisson(rng.exponential(2.0, size=(groups, 3, 70))))


def published_drift(p: np.ndarray, q: np.ndarray) -> float:
    """The authors' way: densities, empty bins to float32's ε, scipy's entropy both ways."""
    total = 0.0
    for weight, a, b in zip(WEIGHTS, p, q, strict=True):
        a, b = a / WIDTH, b / WIDTH
        a = np.where(a == 0, np.finfo(np.float32).eps, a)
        b = np.where(b == 0, np.finfo(np.float32).eps, b)
        total += weight * (stats.entropy(a, b) + stats.entropy(b, a))
    return total


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_drift_is_the_published_formula(seed):
    p, q = some_shares(seed)
    value = float(divergence.drift(p, q, WEIGHTS, WIDTH))
    assert value == pytest.approx(published_drift(p, q), rel=1e-12)
    assert value == pytest.approx(float(divergence.drift(q, p, WEIGHTS, WIDTH)), rel=1e-12)


def test_drift_matrix_is_all_pairs_at_once():
    shares = some_shares(1, groups=6)
    matrix = divergence.drift_matrix(shares, WEIGHTS, WIDTH)
    for i in range(6):
        for j in range(6):
            assert matrix[i, j] == pytest.approx(published_drift(shares[i], shares[j]), abs=1e-12)
    assert (matrix == matrix.T).all()


def test_drift_of_nearly_equal_groups_is_not_negative():
    one = some_shares(3)[0]
    shares = np.stack([one, one * (1 + 1e-13)])
    assert (divergence.drift_matrix(shares, WEIGHTS, WIDTH) >= 0).all()
    assert divergence.drift(shares[0], shares[1], WEIGHTS, WIDTH) >= 0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_jensen_shannon_is_scipys_distance_squared(seed):
    p, q = some_shares(seed)
    expected = sum(
        w * distance.jensenshannon(a, b, base=2) ** 2 for w, a, b in zip(WEIGHTS, p, q, strict=True)
    )
    value = float(divergence.jensen_shannon(p, q, WEIGHTS))
    assert value == pytest.approx(expected, abs=1e-12)
    assert 0.0 <= value <= 1.0


def test_jensen_shannon_of_disjoint_groups_is_one():
    p, q = np.zeros((2, 3, 70))
    p[:, 0] = q[:, 69] = 1.0
    assert divergence.jensen_shannon(p, q, WEIGHTS) == pytest.approx(1.0)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_wasserstein_is_scipys(seed):
    p, q = some_shares(seed)
    centres = (np.arange(70) + 0.5) * WIDTH
    expected = [
        stats.wasserstein_distance(centres, centres, a, b) for a, b in zip(p, q, strict=True)
    ]
    np.testing.assert_allclose(divergence.wasserstein(p, q, WIDTH), expected, atol=1e-12)


def test_frechet_against_a_matrix_root(rng):
    a, b = rng.normal(size=(200, 5)), rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5)) + 0.3
    moments = [(x.mean(0), np.cov(x.T)) for x in (a, b)]
    (m1, c1), (m2, c2) = moments
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    assert divergence.frechet(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-9)
    assert divergence.frechet(m1, c1, m1, c1) == pytest.approx(0.0, abs=1e-9)


def test_frechet_of_flat_groups():
    flat, round_ = np.diag([4.0, 0.0]), np.eye(2)
    # Commuting: the sum of squared differences of standard deviations, (2 - 1)² + (0 - 1)².
    zero = np.zeros(2)
    assert divergence.frechet(zero, flat, zero, round_) == pytest.approx(2.0)
    assert divergence.frechet(zero, round_, zero, flat) == pytest.approx(2.0)
    assert divergence.frechet(zero, flat, zero, flat) == pytest.approx(0.0, abs=1e-12)


def test_leading_axes_are_independent_cases():
    shares = some_shares(5, groups=8).reshape(2, 4, 3, 70)
    batch = divergence.drift(shares[0], shares[1], WEIGHTS, WIDTH)
    assert batch.shape == (4,)
    alone = divergence.drift(shares[0, 2], shares[1, 2], WEIGHTS, WIDTH)
    assert batch[2] == pytest.approx(float(alone), rel=1e-14)


def test_plug_in_bias_is_as_published(rng):
    # filter_metrics.md §5: .17 at n = 1,000 for two samples of one distribution, 70 bins.
    values = []
    for _ in range(20):
        x = np.stack([rng.normal(size=1_000), rng.normal(size=1_000)])
        edges = np.linspace(x.min(), x.max(), 71)
        shares = divergence.mass(np.stack([np.histogram(v, edges)[0] for v in x]))[:, None]
        values.append(divergence.drift(shares[0], shares[1], np.ones(1), edges[1] - edges[0]))
    assert 0.1 < np.mean(values) < 0.3


def test_no_count_at_all_is_no_mass():
    assert (divergence.mass(np.zeros((2, 5))) == 0.0).all()
