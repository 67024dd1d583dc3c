"""Distribution shift between groups, on one basis and one set of bins (filter_metrics.md §5).

Two passes over the filters, each one task a shard and kernel: the range of the coefficients on the
reference basis, then their histograms, one a layer. Everything after that is made of layers'
histograms and states, so any number of groupings costs no further pass.

Basis and bins are those of the trained models. Random initialisations are scanned too, for
groupings that ask for them; what lies beyond the outermost bins is counted in these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.analysis import pca, shift_groups
from filterdb.analysis.config import EVERYTHING, AnalysisConfig
from filterdb.analysis.grouping import labels, trained
from filterdb.analysis.population import KernelStates, kernel_states, kernels_of
from filterdb.errors import AnalysisError
from filterdb.stats.histogram import Projection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from filterdb.analysis.basis import Basis
    from filterdb.store import Store
    from filterdb.types import AnyArray, FloatArray

NAME, VERSION = shift_groups.NAME, shift_groups.VERSION
#: Bytes of filters in one task; a layer is never split.
TASK_BYTES = 64 << 20


@dataclass(frozen=True)
class ScanTask:
    """Some whole layers of one data set of one shard.

    Parameters
    ----------
    shard_path
        The HDF5 file.
    dataset
        "2d/3x3/float32".
    kernel
        "3x3".
    rows
        (row of ``layers``, start, stop) of each layer, in file order.
    controls
        Whether these are random initialisations, which have no say in the bins.
    """

    shard_path: str
    dataset: str
    kernel: str
    rows: tuple[tuple[int, int, int], ...]
    controls: bool = False


def reference_bases(store: Store, config: AnalysisConfig) -> dict[str, Basis]:
    """Compute the basis of all trained layers, of every kernel that shift is computed for.

    Parameters
    ----------
    store
        The store.
    config
        Treatment and weighting; its `kernels` or 3x3.

    Returns
    -------
    dict
        Kernel to basis; empty where the store has no filter of these kernels.
    """
    from threadpoolctl import threadpool_limits

    fingerprint = config.fingerprint(pca.NAME, pca.VERSION, store.fingerprint)
    bases = {}
    with threadpool_limits(1):
        for kernel, every, counted in _scanned(store, config):
            of_kernel = every.only(counted)
            if of_kernel.n.sum() > 1:
                bases[kernel] = pca.basis_of(of_kernel, config, fingerprint)
    return bases


def scan_tasks(store: Store, config: AnalysisConfig) -> list[ScanTask]:
    """List what the two passes have to read.

    Parameters
    ----------
    store
        The store.
    config
        Its `kernels` or 3x3.

    Returns
    -------
    list of ScanTask
        By kernel, trained before random, shard and data set.

    Raises
    ------
    AnalysisError
        For folded weights: shards hold weights as stored.
    """
    from filterdb.store.layout import shard_name

    if config.weights != "raw":
        raise AnalysisError(
            "shift reads filters, and shards hold them without BatchNorm folded in",
            tip="use weights = raw; max-abs-scaled filters differ by their sign only",
        )
    place = store.layers.arrow.select(["shard", "dataset", "start", "stop"]).to_pylist()
    tasks: list[ScanTask] = []
    for kernel, states, counted in _scanned(store, config):
        files: dict[tuple[bool, int, str], list[tuple[int, int, int]]] = {}
        for row, is_trained in zip(states.rows.tolist(), counted.tolist(), strict=True):
            at = place[row]
            if at["shard"] is not None:
                key = (not is_trained, at["shard"], at["dataset"])
                files.setdefault(key, []).append((row, at["start"], at["stop"]))
        for (controls, shard, dataset), rows in sorted(files.items()):
            path = str(store.path / shard_name(shard))
            in_order = sorted(rows, key=lambda row: row[1])
            tasks.extend(
                ScanTask(path, dataset, kernel, part, controls)
                for part in _parts(in_order, dataset, kernel)
            )
    return tasks


def projection(basis: Basis) -> Projection:
    """Return how filters become coefficients on a basis.

    Parameters
    ----------
    basis
        A basis of max-abs-scaled or raw filters.

    Returns
    -------
    Projection
        What :mod:`filterdb.work.observe` applies.
    """
    return Projection(basis.mean, basis.components, basis.scaling, basis.sparse)  # type: ignore[arg-type]


def bin_edges(
    tasks: Sequence[ScanTask], ranges: Sequence[FloatArray], bins: int
) -> dict[str, FloatArray]:
    """Pool the ranges of all trained layers into the edges of the bins.

    Parameters
    ----------
    tasks
        The tasks.
    ranges
        What ``coefficient_range`` returned for each.
    bins
        How many.

    Returns
    -------
    dict
        Kernel to (bins + 1,) edges from the smallest to the largest coefficient of any component.
    """
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    for task, found in zip(tasks, ranges, strict=True):
        if task.controls:
            continue
        lows[task.kernel] = min(lows.get(task.kernel, np.inf), float(found[:, 0].min()))
        highs[task.kernel] = max(highs.get(task.kernel, -np.inf), float(found[:, 1].max()))
    edges = {}
    for kernel, low in lows.items():
        high = highs[kernel]
        if not np.isfinite(low) or not np.isfinite(high):
            low, high = 0.0, 0.0
        if low == high:
            low, high = low - 0.5, high + 0.5
        edges[kernel] = np.linspace(low, high, bins + 1)
    return edges


def analyse(
    store: Store,
    config: AnalysisConfig,
    tasks: Sequence[ScanTask],
    ranges: Sequence[FloatArray],
    histograms: Sequence[AnyArray],
) -> tuple[Any, Any]:
    """Compare the groups of every grouping.

    Parameters
    ----------
    store
        The store the tasks are of.
    config
        Groupings, treatment, draws and seed.
    tasks
        From :func:`scan_tasks`.
    ranges, histograms
        What both passes returned for each task.

    Returns
    -------
    tuple of pyarrow.Table
        Rows of ``results`` and of ``histograms``.
    """
    import pyarrow as pa
    from threadpoolctl import threadpool_limits

    from filterdb.store.schema import HISTOGRAMS, RESULTS

    axes = {by: labels(store, by) for by in config.by}
    edges = bin_edges(tasks, ranges, config.bins)
    fingerprint = config.fingerprint(NAME, VERSION, store.fingerprint)
    results: list[dict[str, Any]] = []
    shares: list[dict[str, Any]] = []
    # One BLAS thread: small products gain nothing from more, and the bits depend on their number.
    with threadpool_limits(1):
        bases = reference_bases(store, config)
        for kernel, states, counted in _scanned(store, config):
            if kernel not in edges or kernel not in bases:
                continue
            scanned = with_histograms(states, tasks, histograms)
            scale = shift_groups.Scale(config, bases[kernel].evr, edges[kernel], fingerprint)
            everything = scanned.only(counted)
            shares.extend(shift_groups.histogram_rows(everything, EVERYTHING, None, scale))
            for axis, every_label in axes.items():
                label = [every_label[row] for row in scanned.rows]
                shares.extend(shift_groups.histogram_rows(scanned, axis, label, scale))
                results.extend(shift_groups.result_rows(scanned, axis, label, scale))
    return (
        pa.Table.from_pylist(results, schema=RESULTS.arrow),
        pa.Table.from_pylist(shares, schema=HISTOGRAMS.arrow),
    )


def with_histograms(
    states: KernelStates, tasks: Sequence[ScanTask], histograms: Sequence[AnyArray]
) -> KernelStates:
    """Give layers the histograms that the scan counted.

    Parameters
    ----------
    states
        Layers of one kernel.
    tasks, histograms
        The tasks and what ``coefficient_histogram`` returned for each.

    Returns
    -------
    KernelStates
        With `counts`.

    Raises
    ------
    AnalysisError
        If a layer was not scanned, or a histogram holds another number of filters than the
        layer's state.
    """
    by_row: Mapping[int, AnyArray] = {
        row: counts
        for task, of_task in zip(tasks, histograms, strict=True)
        if task.kernel == states.kernel
        for (row, _, _), counts in zip(task.rows, of_task, strict=True)
    }
    missing = [row for row in states.rows.tolist() if row not in by_row]
    if missing:
        message = (
            f"{len(missing)} layers of {states.kernel} were not scanned, first row {missing[0]}"
        )
        raise AnalysisError(message, tip="the store changed while it was analysed: run it again")
    counts = np.stack([by_row[row] for row in states.rows.tolist()]).astype(np.float64)
    for row, n, found in zip(states.rows, states.n, counts[:, 0].sum(axis=1), strict=True):
        if n != found:
            raise AnalysisError(
                f"row {row} of layers: its state counts {n:.0f} filters, its shard {found:.0f}",
                tip="run filterdb verify",
            )
    return states.with_counts(counts)


def _scanned(store: Store, config: AnalysisConfig) -> Iterator[tuple[str, KernelStates, AnyArray]]:
    """Yield each kernel that is scanned, its layers, and which of these are trained."""
    import pyarrow as pa

    layers, states, counted = store.layers.arrow, store.layer_states.arrow, trained(store)
    own = layers.filter(pa.array(counted))
    if config.kernels is not None:
        kernels = pca.kernels_asked_for(own, config.kernels)
    else:
        kernels = [pca.MAIN_KERNEL] if pca.MAIN_KERNEL in kernels_of(own) else []
    for kernel in kernels:
        of_kernel = kernel_states(layers, states, kernel, config)
        yield kernel, of_kernel, counted[of_kernel.rows]


def _parts(
    rows: list[tuple[int, int, int]], dataset: str, kernel: str
) -> list[tuple[tuple[int, int, int], ...]]:
    """Cut a data set's layers into pieces of about :data:`TASK_BYTES`."""
    size = np.dtype(dataset.rsplit("/", 1)[1]).itemsize
    size *= int(np.prod([int(k) for k in kernel.split("x")]))
    parts: list[tuple[tuple[int, int, int], ...]] = []
    part: list[tuple[int, int, int]] = []
    filled = 0
    for row in rows:
        n_bytes = (row[2] - row[1]) * size
        if part and filled + n_bytes > TASK_BYTES:
            parts.append(tuple(part))
            part, filled = [], 0
        part.append(row)
        filled += n_bytes
    return [*parts, tuple(part)] if part else parts
