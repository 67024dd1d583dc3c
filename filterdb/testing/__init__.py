"""For tests, ours and yours: tiny catalogues, random layers, a store in a temporary folder.

Everything is made from an explicit seed and goes through the real writer, so a store made here is
a store like any other.
"""

from __future__ import annotations

from filterdb.testing.models import (
    LAYER_SPECS,
    TASKS,
    LayerSpec,
    failed_model,
    make_entries,
    make_model,
    model_row,
    random_layers,
    random_weights,
)
from filterdb.testing.stores import extract_entries, make_store, temporary_store
from filterdb.testing.strategies import convolution_weights, entry_lists

__all__ = [
    "LAYER_SPECS",
    "TASKS",
    "LayerSpec",
    "convolution_weights",
    "entry_lists",
    "extract_entries",
    "failed_model",
    "make_entries",
    "make_model",
    "make_store",
    "model_row",
    "random_layers",
    "random_weights",
    "temporary_store",
]
