"""Read the filters of some layers once: functions of a path and integers, for any worker.

Each takes a :class:`filterdb.analysis.shift.ScanTask` and what all tasks share, and returns one
entry a layer of the task.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from filterdb.analysis.shift import ScanTask, projection
from filterdb.stats import histogram

if TYPE_CHECKING:
    from filterdb.analysis.basis import Basis
    from filterdb.types import AnyArray, FloatArray


def coefficient_range(task: ScanTask, basis: Basis) -> FloatArray:
    """Find the smallest and largest coefficient of every layer on a basis.

    Parameters
    ----------
    task
        Where the layers lie.
    basis
        The reference basis of the task's kernel.

    Returns
    -------
    ndarray
        (layers, 2); (inf, −inf) for a layer of which no filter counts.
    """
    how = projection(basis)
    return np.array([histogram.coefficient_range(values, how) for values in _layers(task)])


def coefficient_histogram(task: ScanTask, basis: Basis, edges: FloatArray) -> AnyArray:
    """Count the coefficients of every layer in bins.

    Parameters
    ----------
    task
        Where the layers lie.
    basis
        The reference basis of the task's kernel.
    edges
        (bins + 1,) from :func:`filterdb.analysis.shift.bin_edges`.

    Returns
    -------
    ndarray
        (layers, k², bins) int64.
    """
    how = projection(basis)
    return np.stack([histogram.coefficient_counts(v, how, edges) for v in _layers(task)])


def _layers(task: ScanTask) -> list[AnyArray]:
    from filterdb.store.filters import map_dataset

    values = map_dataset(Path(task.shard_path), task.dataset)
    return [values[start:stop] for _, start, stop in task.rows]
