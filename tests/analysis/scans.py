"""Shift of a small store, as an analysis job computes it, without an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from filterdb.analysis import shift
from filterdb.work import observe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filterdb.analysis.config import AnalysisConfig
    from filterdb.analysis.shift import ScanTask
    from filterdb.store import Store


def shifted(
    store: Store, config: AnalysisConfig, tasks: Sequence[ScanTask] | None = None
) -> tuple[Any, Any]:
    """Both passes over the filters, and the tables `results` and `histograms`."""
    bases = shift.reference_bases(store, config)
    tasks = shift.scan_tasks(store, config) if tasks is None else tasks
    ranges = [observe.coefficient_range(t, bases[t.kernel]) for t in tasks]
    edges = shift.bin_edges(tasks, ranges, config.bins)
    counts = [observe.coefficient_histogram(t, bases[t.kernel], edges[t.kernel]) for t in tasks]
    return shift.analyse(store, config, tasks, ranges, counts)
