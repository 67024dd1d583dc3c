"""Layers of one open file, measured as a store's layers are, without a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.analysis.findings import find
from filterdb.analysis.quality import LayerRows, layer_quality, null_reason, number
from filterdb.stats.state import LayerState, layer_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from filterdb.layers.model import ConvLayer
    from filterdb.types import AnyArray, FloatArray

#: Metrics of a layer, in the order in which they are shown.
METRICS = (
    "sparsity",
    "entropy",
    "entropy_norm",
    "t_h_ratio",
    "p_random",
    "effect_random",
    "orthogonality",
)


@dataclass(frozen=True)
class Measured:
    """The metrics of several layers; raw weights, sparse filters kept.

    Parameters
    ----------
    states
        One per layer.
    values
        Metric → value or None, one dictionary per layer.
    reasons
        Metric → why its value is None.
    findings
        Rows of the table ``findings``, one list per layer.
    """

    states: tuple[LayerState, ...]
    values: tuple[dict[str, float | None], ...]
    reasons: tuple[dict[str, str], ...]
    findings: tuple[list[dict[str, Any]], ...]


def measure(
    layers: Sequence[ConvLayer], *, look: Callable[[int, AnyArray], None] | None = None
) -> Measured:
    """Measure layers, reading each weight tensor once.

    Parameters
    ----------
    layers
        Layers of one model, in file order.
    look
        Called with (position, weights) of every layer whose weights are read, so that others need
        not read them again.

    Returns
    -------
    Measured
        A layer that repeats another's filters repeats its state.
    """
    states: list[LayerState] = []
    first: dict[str, LayerState] = {}
    for i, layer in enumerate(layers):
        state = first.get(layer.shared_with) if layer.shared_with is not None else None
        if state is None:
            weights = layer.weights()
            state = layer_state(weights, layer.groups, stride=layer.stride, l_orth=False)
            first.setdefault(layer.tensor, state)
            if look is not None:
                look(i, weights)
        states.append(state)
    rows = _rows(layers, states)
    quality = layer_quality(rows, _StateTable(states), "kept")
    found: list[list[dict[str, Any]]] = [[] for _ in layers]
    for finding in find(rows, quality):
        found[int(finding["layer_uid"])].append(finding)
    columns = {name: getattr(quality, name) for name in METRICS[:-1]}
    columns["orthogonality"] = rows.orthogonality
    values = tuple({n: number(c[i]) for n, c in columns.items()} for i in range(len(layers)))
    reasons = tuple(_reasons(null_reason(rows, quality, i), own) for i, own in enumerate(values))
    return Measured(tuple(states), values, reasons, tuple(found))


def _rows(layers: Sequence[ConvLayer], states: Sequence[LayerState]) -> LayerRows:
    def column(name: str) -> FloatArray:
        values = [getattr(state, name) for state in states]
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

    return LayerRows(
        # Positions serve as names: the analysis needs unique ones, a file need not have them.
        uid=[str(i) for i in range(len(layers))],
        model=[""] * len(layers),
        weights=["raw"] * len(layers),
        kernel=[layer.kernel_name for layer in layers],
        n_coefficients=np.array([layer.n_coefficients for layer in layers], dtype=np.int64),
        n=column("n"),
        n_zero=column("n_zero"),
        n_nonfinite=column("n_nonfinite"),
        n_sparse=column("n_sparse_01"),
        absmax=column("absmax"),
        m2=column("m2"),
        orthogonality=column("orthogonality"),
        duplicate_of=[None] * len(layers),
        null_reason=[state.null_reason for state in states],
    )


class _StateTable:
    """The list columns of ``layer_states``, without pyarrow.

    Importing pyarrow and, with its lists, pandas would cost ``inspect`` more than its mathematics.
    """

    def __init__(self, states: Sequence[LayerState]) -> None:
        self._states = states

    def column(self, name: str) -> _Lists:
        return _Lists([getattr(state, name) for state in self._states])


class _Lists:
    """As much of an Arrow list array as :class:`filterdb.analysis.tables.ListColumn` reads."""

    def __init__(self, lists: Sequence[tuple[float, ...] | None]) -> None:
        lengths = [0 if v is None else len(v) for v in lists]
        self._valid = np.array([v is not None for v in lists], dtype=bool)
        self.offsets = _Values(np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))
        self.values = _Values(np.array([x for v in lists if v is not None for x in v]))

    def __len__(self) -> int:
        return len(self._valid)

    def combine_chunks(self) -> _Lists:
        return self

    def is_valid(self) -> _Values:
        return _Values(self._valid)


class _Values:
    def __init__(self, values: AnyArray) -> None:
        self._values = values

    def to_numpy(self, *, zero_copy_only: bool = True) -> AnyArray:  # noqa: ARG002 - Arrow's face
        return self._values


def _reasons(reason: str | None, values: dict[str, float | None]) -> dict[str, str]:
    """Share a row's one reason out to the metrics it speaks of."""
    parts = (reason or "").split("; ") if reason else []
    found: dict[str, str] = {}
    for name in (n for n, value in values.items() if value is None):
        own = [p for p in parts if name in p.split(": ")[0].replace(",", " ").split()]
        general = [p for p in parts if "what follows" in p or ": " not in p]
        chosen = own or general or [p for p in parts if p.startswith("non-finite")]
        found[name] = (chosen[0].split(": ", 1)[-1] if chosen else "; ".join(parts)) or "undefined"
    return found
