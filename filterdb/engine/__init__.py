"""Run functions over tasks with dask; the only part of filterdb that schedules anything.

The engine knows no model and no analysis: it maps a picklable function over small picklable tasks
and returns the outcomes in task order, whatever order they finished in.
"""

from __future__ import annotations

from filterdb.engine.cluster import Cluster, parse_cluster
from filterdb.engine.execute import Outcome, run

__all__ = ["Cluster", "Outcome", "parse_cluster", "run"]
