from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from filterdb.stats.state import layer_state
from filterdb.store.schema import LAYER_STATES, LAYERS
from filterdb.types import kernel_label

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20_260)


@dataclass(frozen=True)
class Layer:
    """A layer of a test: where it belongs, and its weights."""

    model: str
    name: str
    weights: np.ndarray
    role: str = "spatial"
    groups: int = 1
    decile: int | None = None
    duplicate_of: str | None = None
    shared_with: str | None = None

    @property
    def uid(self) -> str:
        return f"{self.model}/{self.name}"


def tables_of(layers: Sequence[Layer]) -> tuple[pa.Table, pa.Table]:
    """The tables `layers` and `layer_states` that extraction would write."""
    rows: list[dict[str, Any]] = []
    states = []
    start: dict[str, int] = {}
    for index, layer in enumerate(layers):
        kernel = layer.weights.shape[2:]
        n = layer.weights.shape[0] * layer.weights.shape[1]
        data_set = f"{len(kernel)}d/{kernel_label(kernel)}/{layer.weights.dtype}"
        first = start.get(data_set, 0)
        start[data_set] = first + n
        row: dict[str, Any] = {f.name: None for f in LAYERS.arrow}
        row |= {
            "layer_uid": layer.uid, "model_id": layer.model, "layer_index": index,
            "name": layer.name, "op": "conv", "rank": len(kernel), "kernel": kernel_label(kernel),
            "kw": kernel[-1], "in_channels": layer.weights.shape[1] * layer.groups,
            "out_channels": layer.weights.shape[0], "groups": layer.groups, "role": layer.role,
            "depth_decile": layer.decile, "depth_source": "registration", "bn": "none",
            "n_filters": n, "source_dtype": str(layer.weights.dtype), "quantised": False,
            "shard": 0, "dataset": data_set, "start": first, "stop": first + n,
            "tensor_sha256": str(index), "duplicate_of": layer.duplicate_of,
            "shared_with": layer.shared_with,
        }  # fmt: skip
        rows.append(row)
        state = layer_state(layer.weights, layer.groups)
        states.append({"layer_uid": layer.uid, "weights": "raw", **state.to_record()})
    return (
        pa.Table.from_pylist(rows, schema=LAYERS.arrow),
        pa.Table.from_pylist(states, schema=LAYER_STATES.arrow),
    )


@pytest.fixture
def make_tables() -> Callable[[Sequence[Layer]], tuple[pa.Table, pa.Table]]:
    return tables_of


@pytest.fixture
def make_layer() -> type[Layer]:
    return Layer
