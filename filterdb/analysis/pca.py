"""PCA of any grouping from layer states alone: no filter is read (filter_metrics.md §4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.analysis import resampling
from filterdb.analysis.basis import Basis, principal_components
from filterdb.analysis.config import EVERYTHING, AnalysisConfig
from filterdb.analysis.grouping import groups_of, labels, trained
from filterdb.analysis.population import (
    KernelStates,
    Units,
    averaged,
    kernel_states,
    kernels_of,
    units,
)
from filterdb.errors import AnalysisError, UnknownNameError
from filterdb.metrics.entropy import NO_VARIANCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filterdb.store import Store
    from filterdb.types import AnyArray, FloatArray

NAME, VERSION = "pca", "2"
#: The kernel that is always analysed.
MAIN_KERNEL = "3x3"
#: Filters per coefficient below which a group of another kernel gets no basis.
FILTERS_PER_COEFFICIENT = 10
#: Models below which explained variance gets no interval.
MIN_MODELS_FOR_INTERVAL = 3


@dataclass(frozen=True)
class _Group:
    axis: str
    group: str
    kernel: str
    units: Units


def analyse(store: Store, config: AnalysisConfig) -> tuple[Any, Any]:
    """Compute the basis and the explained variance of every group of every grouping.

    Parameters
    ----------
    store
        The store; layers, layer_states and, for groupings, models are read.
    config
        Groupings and treatment.

    Returns
    -------
    tuple of pyarrow.Table
        Rows of ``results`` (metric evr) and of ``bases``: all trained layers first (axis and
        group "*"), then the groupings in the order asked for.

    Raises
    ------
    AnalysisError
        If there is no filter to analyse.
    """
    import pyarrow as pa
    from threadpoolctl import threadpool_limits

    from filterdb.store.schema import BASES, RESULTS

    fingerprint = config.fingerprint(NAME, VERSION, store.fingerprint)
    layers, states = store.layers.arrow, store.layer_states.arrow
    axes = {by: labels(store, by) for by in config.by}
    counted = trained(store)
    results: list[dict[str, Any]] = []
    bases: list[dict[str, Any]] = []
    # One BLAS thread: small products gain nothing from more, and the bits depend on their number.
    with threadpool_limits(1):
        for kernel in _kernels(layers.filter(pa.array(counted)), config):
            of_kernel = kernel_states(layers, states, kernel, config)
            for group in _groups(of_kernel, axes, counted, config):
                rows, basis = _analyse_group(group, config, fingerprint)
                results.extend(rows)
                if basis is not None:
                    bases.append(_basis_row(group, basis))
    return (
        pa.Table.from_pylist(results, schema=RESULTS.arrow),
        pa.Table.from_pylist(bases, schema=BASES.arrow),
    )


def basis_of(states: KernelStates, config: AnalysisConfig, fingerprint: str) -> Basis:
    """Compute the basis of some layers of one kernel.

    Parameters
    ----------
    states
        The layers.
    config
        Treatment and weighting.
    fingerprint
        Of the analysis, kept in the basis.

    Returns
    -------
    Basis
        Of all of them together.

    Raises
    ------
    AnalysisError
        If there are fewer than two filters, or no variance among them.
    """
    everything = units(states, np.ones(len(states.rows), dtype=bool), config.weighting)
    basis = _basis(everything, states.kernel, config, fingerprint)
    if basis is None:
        raise AnalysisError(
            f"no PCA of {states.kernel}: {everything.n_filters} filters without any variance",
            tip="see the tables skipped and failures, and layer_states.null_reason",
        )
    return basis


def _kernels(layers: Any, config: AnalysisConfig) -> list[str]:
    known = kernels_of(layers)
    if config.kernels is None:
        return [
            kernel
            for kernel, n in known.items()
            if n >= FILTERS_PER_COEFFICIENT * _size(kernel) or kernel == MAIN_KERNEL
        ]
    return kernels_asked_for(layers, config.kernels)


def kernels_asked_for(layers: Any, wanted: Sequence[str]) -> list[str]:
    """Check that the store has filters of these kernels.

    Parameters
    ----------
    layers
        Arrow table.
    wanted
        "3x3", "7x7".

    Returns
    -------
    list of str
        The same.

    Raises
    ------
    UnknownNameError
        For a kernel of which no filter counts; 1x1 kernels have no shape.
    """
    known = kernels_of(layers)
    for kernel in wanted:
        if kernel not in known:
            raise UnknownNameError("kernel", kernel, known, where="layers")
    return list(wanted)


def _size(kernel: str) -> int:
    return int(np.prod([int(k) for k in kernel.split("x")]))


def _groups(
    states: KernelStates,
    axes: dict[str, list[str | None]],
    counted: AnyArray,
    config: AnalysisConfig,
) -> list[_Group]:
    whole = units(states, counted[states.rows], config.weighting)
    found = [_Group(EVERYTHING, EVERYTHING, states.kernel, whole)]
    for axis, every_label in axes.items():
        label = [every_label[row] for row in states.rows]
        for group in groups_of(label):
            chosen = np.array([name == group for name in label], dtype=bool)
            merged = units(states, chosen, config.weighting)
            if len(merged):
                found.append(_Group(axis, group, states.kernel, merged))
    return found


def _analyse_group(
    group: _Group, config: AnalysisConfig, fingerprint: str
) -> tuple[list[dict[str, Any]], Basis | None]:
    needed = FILTERS_PER_COEFFICIENT * _size(group.kernel)
    reason = None
    if group.kernel != MAIN_KERNEL and group.units.n_filters < needed:
        reason = f"{group.units.n_filters} filters, {needed} needed"
    basis = None if reason else _basis(group.units, group.kernel, config, fingerprint)
    if basis is None:
        if group.axis == EVERYTHING and group.units.n_filters == 0:
            return [], None
        nothing = _row(group, config, fingerprint, component=1)
        nothing["null_reason"] = reason or "no variance among the filters"
        return [nothing], None
    return _evr_rows(group, config, basis), basis


def _evr_rows(group: _Group, config: AnalysisConfig, basis: Basis) -> list[dict[str, Any]]:
    n_models = len(group.units)
    low = high = None
    reason = None
    if n_models >= MIN_MODELS_FOR_INTERVAL:
        words = (NAME, group.axis, group.group, group.kernel)
        random = resampling.generator(config.seed, *words)
        selection = resampling.resample(n_models, config.draws, random)
        _, covariance, _ = averaged(group.units, selection)
        spectra = np.asarray(np.linalg.eigvalsh(covariance))[:, ::-1]
        # A draw of nothing but constant layers has no variance to explain.
        drawn = _explained(spectra[(spectra > 0).any(axis=1)])
        ends = resampling.bias_corrected_interval(basis.evr, drawn)
        low, high = np.clip(ends[0], 0.0, 1.0), np.clip(ends[1], 0.0, 1.0)
    else:
        reason = f"interval: {n_models} models, {MIN_MODELS_FOR_INTERVAL} needed"
    rows = []
    for i, share in enumerate(basis.evr):
        row = _row(group, config, basis.fingerprint, component=i + 1)
        row["value"], row["null_reason"] = float(share), reason
        if low is not None and high is not None:
            row["low"], row["high"] = float(low[i]), float(high[i])
        rows.append(row)
    return rows


def _basis(group: Units, kernel: str, config: AnalysisConfig, fingerprint: str) -> Basis | None:
    if len(group) == 0:
        return None
    mean, covariance, _ = averaged(group)
    second = np.trace(covariance[0]) + float(mean[0] @ mean[0])
    if group.n_filters < 2 or np.trace(covariance[0]) <= NO_VARIANCE * second:
        return None
    eigenvalues, components = principal_components(covariance[0])
    if config.weighting == "filter":
        # As scikit-learn: the unbiased variance. Where models weigh equally there is no such
        # count, and the variance is that of the mixture.
        eigenvalues = eigenvalues * (group.n_filters / (group.n_filters - 1.0))
    return Basis(
        kernel=kernel,
        mean=mean[0],
        components=components,
        eigenvalues=eigenvalues,
        evr=_explained(eigenvalues),
        n_models=len(group),
        n_filters=group.n_filters,
        weighting=config.weighting,
        weights=config.weights,
        scaling=config.scaling,
        sparse=config.sparse,
        fingerprint=fingerprint,
    )


def _explained(eigenvalues: FloatArray) -> FloatArray:
    values = np.clip(eigenvalues, 0.0, None)
    return np.asarray(values / values.sum(axis=-1, keepdims=True))


def _row(group: _Group, config: AnalysisConfig, fingerprint: str, component: int) -> dict[str, Any]:
    return {
        "analysis": NAME,
        "version": VERSION,
        "fingerprint": fingerprint,
        "axis": group.axis,
        "group_a": group.group,
        "kernel": group.kernel,
        "component": component,
        "metric": "evr",
        "n_models": len(group.units),
        "n_filters": group.units.n_filters,
        "weighting": config.weighting,
        "weights": config.weights,
        "scaling": config.scaling,
        "sparse": config.sparse,
    }


def _basis_row(group: _Group, basis: Basis) -> dict[str, Any]:
    return {
        "analysis": NAME,
        "version": VERSION,
        "fingerprint": basis.fingerprint,
        "axis": group.axis,
        "group": group.group,
        "kernel": group.kernel,
        "mean": basis.mean.tolist(),
        "components": basis.components.ravel().tolist(),
        "eigenvalues": basis.eigenvalues.tolist(),
        "evr": basis.evr.tolist(),
        "n_models": basis.n_models,
        "n_filters": basis.n_filters,
        "weighting": basis.weighting,
        "weights": basis.weights,
        "scaling": basis.scaling,
        "sparse": basis.sparse,
    }
