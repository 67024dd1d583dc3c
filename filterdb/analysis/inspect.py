"""Checks of one checkpoint (filter_metrics.md §6): metrics, findings, and where they stand."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filterdb.analysis.measured import METRICS, Measured, measure
from filterdb.analysis.oddities import INSPECT_KINDS, Finding, oddities

if TYPE_CHECKING:
    from collections.abc import Iterable

    from filterdb.analysis.reference import Reference
    from filterdb.layers.model import ConvLayer, ModelLayers, SkippedTensor
    from filterdb.types import AnyArray

SCHEMA = 1
_SEVERITIES = ("defect", "unusual", "note")
#: Columns of the text, beside name, kernel, role and filters.
_SHOWN = ("sparsity", "entropy_norm", "t_h_ratio", "orthogonality")


@dataclass(frozen=True)
class SourceInfo:
    """Which file was read.

    Parameters
    ----------
    uri
        As given, resolved.
    format
        The reader's name.
    sha256
        Of the file, or of its list of companions.
    bytes
        Size with companions.
    """

    uri: str
    format: str
    sha256: str
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the source as in ``inspect --json``."""
        return {
            "uri": self.uri,
            "format": self.format,
            "sha256": self.sha256,
            "bytes": self.bytes,
        }


@dataclass(frozen=True)
class Metric:
    """A number of a layer and where it stands.

    Parameters
    ----------
    value
        None where undefined.
    percentile
        Share of comparable layers below it, 0 to 100, rounded down.
    reason
        Why `value` or, if that is there, `percentile` is None.
    """

    value: float | None
    percentile: int | None
    reason: str | None


@dataclass(frozen=True)
class LayerReport:
    """One layer, inspected.

    Parameters
    ----------
    layer
        The layer.
    metrics
        By name, see :data:`filterdb.analysis.measured.METRICS`.
    findings
        What stands out, in the order of ``INSPECT_KINDS``.
    """

    layer: ConvLayer
    metrics: dict[str, Metric]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class InspectReport:
    """One checkpoint, inspected.

    Parameters
    ----------
    source
        The file.
    layers
        In file order.
    skipped
        Tensors that are no convolution kernels.
    n_parameters
        Of the network.
    population
        (store, models) the percentiles refer to.
    """

    source: SourceInfo
    layers: tuple[LayerReport, ...]
    skipped: tuple[SkippedTensor, ...]
    n_parameters: int
    population: tuple[str, int] | None

    @property
    def n_filters(self) -> int:
        """Number of filters, shared ones once."""
        return sum(self.kernels.values())

    @property
    def kernels(self) -> dict[str, int]:
        """Number of filters by kernel, most first, shared ones once."""
        counts: Counter[str] = Counter()
        for report in self.layers:
            if report.layer.shared_with is None:
                counts[report.layer.kernel_name] += report.layer.n_filters
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def findings(self) -> dict[str, int]:
        """Number of layers by finding, in the order of their severity."""
        counts = Counter(f.name for report in self.layers for f in report.findings)
        return {name: counts[name] for name in _by_severity(counts)}

    def to_json(self) -> dict[str, Any]:
        """Return the report as ``inspect --json`` prints it (schema.md).

        Returns
        -------
        dict
            Without NaN or infinity: null with its reason instead.
        """
        store = self.population
        return {
            "schema": SCHEMA,
            "source": self.source.to_json(),
            "summary": {
                "n_layers": len(self.layers),
                "n_filters": self.n_filters,
                "kernels": self.kernels,
                "n_parameters": self.n_parameters,
                "findings": self.findings,
            },
            "layers": [_layer_json(report) for report in self.layers],
            "skipped": [_skipped_json(row) for row in self.skipped],
            "population": None if store is None else {"store": store[0], "n_models": store[1]},
        }

    def text(self) -> list[str]:
        """Return the report as lines for a terminal, without colours.

        Returns
        -------
        list of str
            A heading, the layers, the findings by severity, what was skipped.
        """
        kernels = ", ".join(f"{k} {n:,}" for k, n in self.kernels.items()) or "none"
        lines = [
            f"{self.source.uri} ({self.source.format}, {self.source.bytes:,} bytes)",
            f"{_count(len(self.layers), 'convolution')}, "
            f"{_count(self.n_filters, 'filter')} ({kernels}), "
            f"{_count(self.n_parameters, 'parameter')}",
        ]
        if self.population is not None:
            lines.append(
                f"percentiles among {_count(self.population[1], 'model')} of "
                f"{self.population[0]} in brackets"
            )
        lines += ["", *_table(self.layers)] if self.layers else []
        lines += ["", *self._finding_lines()]
        reasons = Counter(row.reason for row in self.skipped)
        if reasons:
            counted = ", ".join(f"{r} {n}" for r, n in sorted(reasons.items()))
            lines += ["", f"{_count(len(self.skipped), 'other tensor')}: {counted}"]
        return lines

    def _finding_lines(self) -> list[str]:
        lines = []
        for name, count in self.findings.items():
            kind = INSPECT_KINDS[name]
            lines.append(
                f"{kind.severity}: {name} in {count} of {_count(len(self.layers), 'layer')}"
            )
            hits = [
                (r.layer.name, f.detail) for r in self.layers for f in r.findings if f.name == name
            ]
            lines += [f"  {layer}: {detail}" for layer, detail in hits[:3]]
            if count > 3:
                lines.append(f"  and {count - 3} more")
        if not self.layers:
            return ["no convolutions: there is nothing to check"]
        return lines or ["nothing stands out"]


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def inspect_layers(
    model: ModelLayers, source: SourceInfo, *, population: Reference | None = None
) -> InspectReport:
    """Inspect the layers of one checkpoint.

    Parameters
    ----------
    model
        Its layers; each weight tensor is read once.
    source
        The file they come from.
    population
        Reference population for percentiles.

    Returns
    -------
    InspectReport
        Raw weights, sparse filters kept.
    """
    odd: dict[int, list[Finding]] = {}

    def look(i: int, weights: AnyArray) -> None:
        odd[i] = oddities(model.layers[i], weights)

    measured = measure(model.layers, look=look)
    first = {layer.tensor: i for i, layer in reversed(list(enumerate(model.layers)))}
    reports = []
    for i, layer in enumerate(model.layers):
        own = odd.get(i)
        if own is None:
            own = odd.get(first.get(layer.shared_with or "", i), [])
        findings = (*_of_states(measured, i), *own)
        reports.append(LayerReport(layer, _metrics(layer, measured, i, population), findings))
    told = None if population is None else (population.store, population.n_models)
    return InspectReport(source, tuple(reports), model.skipped, model.n_parameters, told)


def _of_states(measured: Measured, i: int) -> list[Finding]:
    return [
        Finding(
            row["finding"],
            row["severity"],
            row["statistic"],
            row["threshold"],
            row["p_value"],
            row["detail"],
        )
        for row in measured.findings[i]
    ]


def _metrics(
    layer: ConvLayer, measured: Measured, i: int, population: Reference | None
) -> dict[str, Metric]:
    metrics = {}
    for name in METRICS:
        value = measured.values[i][name]
        if value is None:
            metrics[name] = Metric(None, None, measured.reasons[i][name])
        elif population is None:
            metrics[name] = Metric(value, None, "no reference population")
        else:
            percentile, reason = population.percentile(layer, name, value)
            metrics[name] = Metric(value, percentile, reason or None)
    return metrics


def _by_severity(names: Iterable[str]) -> list[str]:
    order = list(INSPECT_KINDS)
    return sorted(
        names, key=lambda n: (_SEVERITIES.index(INSPECT_KINDS[n].severity), order.index(n))
    )


def _layer_json(report: LayerReport) -> dict[str, Any]:
    layer = report.layer
    return {
        "name": layer.name,
        "kernel": layer.kernel_name,
        "role": layer.role,
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "groups": layer.groups,
        "n_filters": layer.n_filters,
        "dtype": layer.source_dtype,
        "metrics": {
            name: {"value": m.value, "percentile": m.percentile, "reason": m.reason}
            for name, m in report.metrics.items()
        },
        "findings": [
            {
                "name": f.name,
                "statistic": _finite(f.statistic),
                "threshold": _finite(f.threshold),
                "p": _finite(f.p),
                "severity": f.severity,
                "detail": f.detail,
            }
            for f in report.findings
        ],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _skipped_json(row: SkippedTensor) -> dict[str, Any]:
    return {
        "tensor": row.tensor,
        "shape": list(row.shape),
        "dtype": row.dtype,
        "reason": row.reason,
        "detail": row.detail,
    }


def _table(reports: tuple[LayerReport, ...]) -> list[str]:
    rows = [["layer", "kernel", "role", "filters", *_SHOWN, "findings"]]
    for report in reports:
        layer = report.layer
        cells = [_cell(report.metrics[name]) for name in _SHOWN]
        names = ", ".join(f.name for f in report.findings)
        rows.append(
            [layer.name, layer.kernel_name, layer.role, f"{layer.n_filters:,}", *cells, names]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip()
        for row in rows
    ]


def _cell(metric: Metric) -> str:
    if metric.value is None:
        return "-"
    rank = "" if metric.percentile is None else f" [{metric.percentile}]"
    return f"{metric.value:.3f}{rank}"
