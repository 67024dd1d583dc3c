"""Two checkpoints, layer by layer: what changed, by how much, and how far the shapes drifted."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.analysis.basis import principal_components
from filterdb.analysis.deltas import Delta, delta, folded
from filterdb.analysis.matching import How, match_layers
from filterdb.analysis.measured import Measured, measure
from filterdb.metrics.divergence import BINS, drift, jensen_shannon, mass
from filterdb.metrics.entropy import centred_scatter
from filterdb.stats.histogram import Projection, coefficient_counts, coefficient_range
from filterdb.stats.state import LayerState, unpack_scatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filterdb.analysis.inspect import SourceInfo
    from filterdb.layers.model import ConvLayer, ModelLayers
    from filterdb.types import FloatArray

SCHEMA = 1
#: Metrics shown of either side.
_SIDES = ("sparsity", "entropy")
_REARRANGED = {
    "transposed": "the spatial transpose of the first's: rows and columns are exchanged",
    "rotated_180": "the first's turned by 180 degrees",
    "input_channels_reversed": "the first's with its input channels in reverse order",
}
#: Why a state has no sums, of which a basis is made; its other reasons do not concern drift.
_NO_SUMS = ("scatters", "non-finite", "too large")


@dataclass(frozen=True)
class LayerComparison:
    """One layer of both checkpoints.

    Parameters
    ----------
    first, second
        The layer in either.
    how
        Matched by name, by order and shape, or by shape and weights.
    delta
        How the weights differ.
    before, after
        Sparsity and entropy of either; None where undefined.
    """

    first: ConvLayer
    second: ConvLayer
    how: How
    delta: Delta
    before: dict[str, float | None]
    after: dict[str, float | None]

    @property
    def dtype_changed(self) -> bool:
        """Whether the files store the weights in different element types."""
        return self.first.source_dtype != self.second.source_dtype


@dataclass(frozen=True)
class KernelDrift:
    """How far the shapes of one kernel drifted from one checkpoint to the other.

    Parameters
    ----------
    kernel
        "3x3".
    drift, jensen_shannon
        D and the Jensen-Shannon divergence on the basis of both together, weighted by explained
        variance, of filters divided by their largest |w|; None where undefined.
    n_first, n_second
        Filters of either.
    null_reason
        Why they are None.
    """

    kernel: str
    drift: float | None
    jensen_shannon: float | None
    n_first: int
    n_second: int
    null_reason: str | None


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints, compared.

    Parameters
    ----------
    first, second
        The files.
    layers
        Layers of both, in the order of the first.
    reshaped
        Layers of equal name and different shape.
    removed, added
        Layers of one only.
    drifts
        By kernel, most filters first.
    """

    first: SourceInfo
    second: SourceInfo
    layers: tuple[LayerComparison, ...]
    reshaped: tuple[tuple[ConvLayer, ConvLayer], ...]
    removed: tuple[ConvLayer, ...]
    added: tuple[ConvLayer, ...]
    drifts: tuple[KernelDrift, ...]

    @property
    def identical(self) -> bool:
        """Whether both hold the same layers with the same weights, whatever their dtypes."""
        rest = self.reshaped or self.removed or self.added
        return not rest and all(c.delta.relation == "equal" for c in self.layers)

    @property
    def relations(self) -> dict[str, int]:
        """Number of matched layers by relation, most first."""
        return dict(Counter(c.delta.relation for c in self.layers).most_common())

    @property
    def rearrangement(self) -> str | None:
        """The one rearrangement that turns every layer that differs into the other's, if any."""
        kinds = {c.delta.relation for c in self.layers if c.delta.relation != "equal"}
        return kinds.pop() if len(kinds) == 1 and kinds <= _REARRANGED.keys() else None

    @property
    def folded_difference(self) -> float | None:
        """The largest relative difference of layers equal but for a folded BatchNorm, if any."""
        gaps = (c.delta.folded_difference for c in self.layers)
        return max((gap for gap in gaps if gap is not None), default=None)

    def summary(self) -> str:
        """Return the outcome in one or two sentences."""
        if not self.layers:
            return "The checkpoints have no layer in common."
        counted = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)} matched"
        by_order = sum(c.how == "order" for c in self.layers)
        by_weights = sum(c.how == "weights" for c in self.layers)
        ways = [f"{by_order} of them by order and shape"] if by_order else []
        ways += [f"{by_weights} by shape and weights"] if by_weights else []
        counted += f" ({', '.join(ways)})" if ways else ""
        dtypes = sum(c.dtype_changed for c in self.layers)
        parts = [f"{counted}, {self._outcome()}."]
        if dtypes:
            parts.append(f"{dtypes} are stored in another element type.")
        rest = [
            f"{len(items)} {what}"
            for what, items in (
                ("reshaped", self.reshaped),
                ("removed", self.removed),
                ("added", self.added),
            )
            if items
        ]
        if rest:
            parts.append(f"Beside them: {', '.join(rest)}.")
        return " ".join(parts)

    def _outcome(self) -> str:
        relations = self.relations
        equal, total = relations.get("equal", 0), len(self.layers)
        if equal == total:
            return "all equal weight by weight"
        if self.rearrangement is not None:
            others = total - equal
            return f"{equal} equal and {others} {_REARRANGED[self.rearrangement]}"
        same = f"{equal} equal"
        if self.folded_difference is not None:
            equal += relations["folded"]
            same += (
                f", {relations['folded']} equal once BatchNorm is folded in "
                f"(largest relative difference {self.folded_difference:.2g})"
            )
        changed = [c for c in self.layers if c.delta.relative and c.delta.relation != "folded"]
        if not changed:
            return f"{same}, {total - equal} cannot be compared" if total > equal else same
        most = max(changed, key=lambda c: c.delta.relative or 0.0)
        median = float(np.median([c.delta.relative or 0.0 for c in changed]))
        return (
            f"{same}, {total - equal} changed: by {median:.3g} of their norm in the median, "
            f"most in {most.first.name} ({most.delta.relative:.3g})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as ``compare --json`` prints it.

        Returns
        -------
        dict
            Without NaN or infinity: null with its reason instead.
        """
        return {
            "schema": SCHEMA,
            "first": self.first.to_json(),
            "second": self.second.to_json(),
            "summary": {
                "text": self.summary(),
                "identical": self.identical,
                "relations": self.relations,
                "rearrangement": self.rearrangement,
                "folded_difference": self.folded_difference,
                "n_matched": len(self.layers),
                "n_reshaped": len(self.reshaped),
                "n_removed": len(self.removed),
                "n_added": len(self.added),
            },
            "layers": [_layer_json(c) for c in self.layers],
            "reshaped": [{"first": _brief(a), "second": _brief(b)} for a, b in self.reshaped],
            "removed": [_brief(layer) for layer in self.removed],
            "added": [_brief(layer) for layer in self.added],
            "drift": [asdict(d) for d in self.drifts],
        }

    def text(self) -> list[str]:
        """Return the comparison as lines for a terminal, without colours.

        Returns
        -------
        list of str
            Summary, layers that differ, drift by kernel, layers of one side only.
        """
        lines = [f"{self.first.uri}", f"{self.second.uri}", "", self.summary()]
        differing = [c for c in self.layers if c.delta.relation != "equal"]
        if differing:
            lines += ["", *_table(differing)]
        if self.drifts:
            lines.append("")
        for d in self.drifts:
            n = f"{d.n_first:,} and {d.n_second:,} filters"
            if d.drift is None:
                lines.append(f"drift of {d.kernel}: not defined, {d.null_reason} ({n})")
            else:
                value = f"D {d.drift:.4f}, Jensen-Shannon {d.jensen_shannon:.4f}"
                lines.append(f"drift of {d.kernel}: {value} ({n})")
        lines += [f"reshaped: {_line(a)} -> {_line(b)}" for a, b in self.reshaped]
        lines += [f"removed: {_line(layer)}" for layer in self.removed]
        return lines + [f"added: {_line(layer)}" for layer in self.added]


def compare_models(
    first: ModelLayers,
    second: ModelLayers,
    *,
    sources: tuple[SourceInfo, SourceInfo],
) -> Comparison:
    """Compare two checkpoints layer by layer.

    Parameters
    ----------
    first, second
        Their layers.
    sources
        The files they come from.

    Returns
    -------
    Comparison
        Raw weights, sparse filters kept.
    """
    matching = match_layers(first.layers, second.layers)
    measured = measure(first.layers), measure(second.layers)
    layers = [
        LayerComparison(
            first.layers[m.first],
            second.layers[m.second],
            m.how,
            _delta(first.layers[m.first], second.layers[m.second]),
            {name: measured[0].values[m.first][name] for name in _SIDES},
            {name: measured[1].values[m.second][name] for name in _SIDES},
        )
        for m in matching.matches
    ]
    return Comparison(
        first=sources[0],
        second=sources[1],
        layers=tuple(layers),
        reshaped=tuple((first.layers[i], second.layers[j]) for i, j in matching.reshaped),
        removed=tuple(first.layers[i] for i in matching.removed),
        added=tuple(second.layers[j] for j in matching.added),
        drifts=tuple(_drifts(first.layers, second.layers, measured)),
    )


def _delta(first: ConvLayer, second: ConvLayer) -> Delta:
    weights = first.weights(), second.weights()
    found = delta(*weights)
    norms = first.read_batch_norm, second.read_batch_norm
    if found.relation != "changed" or (norms[0] is None) == (norms[1] is None):
        return found
    apart = 0 if norms[0] is not None else 1
    read = norms[apart]
    assert read is not None
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = read().scale
    return folded(found, weights[apart], scale, weights[1 - apart])


def _drifts(
    first: Sequence[ConvLayer], second: Sequence[ConvLayer], measured: tuple[Measured, Measured]
) -> list[KernelDrift]:
    sides = []
    for layers, side in zip((first, second), measured, strict=True):
        own: dict[str, list[tuple[ConvLayer, LayerState]]] = {}
        for layer, state in zip(layers, side.states, strict=True):
            shaped = layer.n_coefficients > 1 and layer.role != "fc_as_conv"
            if shaped and layer.shared_with is None:
                own.setdefault(layer.kernel_name, []).append((layer, state))
        sides.append(own)
    both = [kernel for kernel in sides[0] if kernel in sides[1]]
    found = [_drift(kernel, sides[0][kernel], sides[1][kernel]) for kernel in both]
    return sorted(found, key=lambda d: (-d.n_first, d.kernel))


def _drift(
    kernel: str,
    first: Sequence[tuple[ConvLayer, LayerState]],
    second: Sequence[tuple[ConvLayer, LayerState]],
) -> KernelDrift:
    counts = sum(s.n for _, s in first), sum(s.n for _, s in second)
    basis = _pooled_basis([state for _, state in (*first, *second)])
    if isinstance(basis, str):
        return KernelDrift(kernel, None, None, *counts, basis)
    projection, evr = basis
    ranges = [coefficient_range(layer.filters(), projection) for layer, _ in (*first, *second)]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    edges = np.linspace(low, high, BINS + 1)
    shares = [
        mass(np.sum([coefficient_counts(x.filters(), projection, edges) for x, _ in side], axis=0))
        for side in (first, second)
    ]
    value = float(drift(shares[0], shares[1], evr, float(edges[1] - edges[0])))
    divergence = float(jensen_shannon(shares[0], shares[1], evr))
    return KernelDrift(kernel, value, divergence, *counts, None)


def _pooled_basis(states: Sequence[LayerState]) -> tuple[Projection, FloatArray] | str:
    """PCA of both checkpoints' scaled filters together, or why there is none."""
    pooled = states[0]
    for state in states[1:]:
        pooled = pooled.merge(state)
    if pooled.scaled_sum is None or pooled.scaled_scatter is None:
        reasons = (pooled.null_reason or "").split("; ")
        told = [why for r in reasons for what, _, why in [r.partition(": ")] if what in _NO_SUMS]
        return "; ".join(told) or "no sums"
    size = len(pooled.scaled_sum)
    total = np.array(pooled.scaled_sum)
    scatter = unpack_scatter(np.array(pooled.scaled_scatter), size)
    eigenvalues, components = principal_components(
        np.asarray(centred_scatter(scatter, total, pooled.n)) / max(1, pooled.n)
    )
    if eigenvalues.sum() == 0.0:
        return "all filters have the same shape"
    return Projection(total / pooled.n, components), eigenvalues / eigenvalues.sum()


def _layer_json(comparison: LayerComparison) -> dict[str, Any]:
    first, second = comparison.first, comparison.second
    return {
        "name": first.name,
        "name_second": second.name,
        "matched_by": comparison.how,
        "kernel": first.kernel_name,
        "role": first.role,
        "n_filters": first.n_filters,
        "dtype": first.source_dtype,
        "dtype_second": second.source_dtype,
        "dtype_changed": comparison.dtype_changed,
        **asdict(comparison.delta),
        "before": comparison.before,
        "after": comparison.after,
    }


def _brief(layer: ConvLayer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "op": layer.op,
        "kernel": layer.kernel_name,
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "groups": layer.groups,
    }


def _line(layer: ConvLayer) -> str:
    return f"{layer.name} ({layer.in_channels} -> {layer.out_channels}, {layer.kernel_name})"


def _table(comparisons: Sequence[LayerComparison]) -> list[str]:
    rows = [["layer", "kernel", "change", "relative", "cosine", "max |d|", "rank", "entropy"]]
    for c in comparisons:
        d = c.delta
        numbers = [_number(v) for v in (d.relative, d.cosine, d.largest, d.stable_rank)]
        entropy = f"{_number(c.before['entropy'])} -> {_number(c.after['entropy'])}"
        name = c.first.name if c.how == "name" else f"{c.first.name} = {c.second.name}"
        rows.append([name, c.first.kernel_name, d.relation, *numbers, entropy])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
