"""Hypothesis strategies; Hypothesis is imported when one is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.catalog.model import Entry
from filterdb.testing.models import TEST_SHARD_BYTES, random_weights

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from filterdb.types import AnyArray


def entry_lists(*, max_size: int = 20, prefix: str = "m") -> SearchStrategy[tuple[Entry, ...]]:
    """Return a Hypothesis strategy for catalogues.

    Parameters
    ----------
    max_size
        Most entries.
    prefix
        Ids begin with it.

    Returns
    -------
    SearchStrategy
        Tuples of entries with unique ids, sizes from 0 to beyond a shard, some unknown.
    """
    from hypothesis import strategies as st

    sizes = st.one_of(st.none(), st.integers(0, 3 * TEST_SHARD_BYTES))
    ids = st.lists(st.integers(0, 10_000), unique=True, max_size=max_size)

    @st.composite
    def draw_entries(draw: Any) -> tuple[Entry, ...]:
        return tuple(
            Entry(id=f"{prefix}{i}", uri=f"file:{i}.npz", bytes=draw(sizes)) for i in draw(ids)
        )

    return draw_entries()


def convolution_weights(*, max_channels: int = 6) -> SearchStrategy[AnyArray]:
    """Return a Hypothesis strategy for canonical weights.

    Parameters
    ----------
    max_channels
        Most channels on either side.

    Returns
    -------
    SearchStrategy
        (out_channels, in_channels / groups, *kernel), rank 1 to 3, every stored dtype.
    """
    from hypothesis import strategies as st

    @st.composite
    def draw_weights(draw: Any) -> AnyArray:
        rank = draw(st.integers(1, 3))
        kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
        channels = (draw(st.integers(1, max_channels)), draw(st.integers(1, max_channels)))
        dtype = draw(st.sampled_from(["float16", "float32", "float64"]))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        return random_weights(rng, (*channels, *kernel), dtype=dtype)

    return draw_weights()
