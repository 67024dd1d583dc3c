"""Names of data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given

from filterdb.errors import StoreError
from filterdb.store.layout import dataset_name, is_stored, parse_dataset
from filterdb.testing import convolution_weights

if TYPE_CHECKING:
    from filterdb.types import AnyArray


@given(convolution_weights())
def test_data_set_names_round_trip(weights: AnyArray) -> None:
    kernel = weights.shape[2:]
    name = dataset_name(kernel, weights.dtype.name)
    assert parse_dataset(name) == (kernel, weights.dtype)
    assert is_stored(kernel) == (np.prod(kernel) > 1)


@pytest.mark.parametrize("name", ["", "2d/3x3", "1d/3x3/float32", "2d/axb/float32", "2d/3x3/nope"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match="rank/kernel/dtype"):
        parse_dataset(name)
