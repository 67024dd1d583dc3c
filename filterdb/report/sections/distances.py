"""Distances between the groups of one grouping, arranged for drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.report.corpus import records
from filterdb.report.sections.common import clean

if TYPE_CHECKING:
    import pandas as pd

OTHERS = "*"
#: Filters below which D is mostly the price of few numbers (filter_metrics.md §5).
FEW_FILTERS = 1_000
#: Groups drawn at most; the others are in the data.
MOST_GROUPS = 40


@dataclass(frozen=True)
class Distances:
    """The distances of one grouping.

    Parameters
    ----------
    axis
        Grouping.
    groups
        In the order drawn; groups of one model or of few filters last.
    models
        Models of each group.
    thin
        Groups of fewer than `FEW_FILTERS` filters.
    pairs
        Rows of `results` by (group, group), both ways; halves at (group, group).
    """

    axis: str
    groups: list[str]
    models: dict[str, int]
    thin: frozenset[str]
    pairs: dict[tuple[str, str], dict[str, Any]]

    def is_apart(self, group: str) -> bool:
        """Return whether a group is set apart: one model, or few filters.

        Parameters
        ----------
        group
            The group.

        Returns
        -------
        bool
            Such a group does not set the scale.
        """
        return self.models[group] <= 1 or group in self.thin

    def value(self, a: str, b: str, column: str = "value") -> float | None:
        """Return one number of a pair.

        Parameters
        ----------
        a, b
            Groups.
        column
            Of `results`.

        Returns
        -------
        float or None
            None where it is null or was not computed.
        """
        row = self.pairs.get((a, b))
        value = clean(row[column]) if row else None
        return None if value is None else float(value)


def distances_of(rows: pd.DataFrame, axis: str, n_filters: dict[str, int]) -> Distances:
    """Arrange the rows of one grouping.

    Parameters
    ----------
    rows
        Rows of `results` with metric drift.
    axis
        Grouping.
    n_filters
        Filters of each group, where known.

    Returns
    -------
    Distances
        Groups ordered by likeness; numbers in their own order.
    """
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    models: dict[str, int] = {}
    for row in records(rows):
        a, b = str(row["group_a"]), str(clean(row["group_b"]))
        halves = int(row["n_models_b"]) if a == b else 0
        models.setdefault(a, int(row["n_models"]) + halves)
        pairs[a, b] = row
        if b not in (OTHERS, a):
            n_b = clean(row["n_models_b"])
            if n_b is not None:
                models.setdefault(b, int(n_b))
            pairs[b, a] = row
    thin = frozenset(g for g in models if n_filters.get(g, FEW_FILTERS) < FEW_FILTERS)
    return Distances(axis, _order(models, thin, pairs), models, thin, pairs)


def _order(
    models: dict[str, int], thin: frozenset[str], pairs: dict[tuple[str, str], dict[str, Any]]
) -> list[str]:
    names = sorted(models)
    if all(is_number(n) for n in names):
        return sorted(names, key=float)
    several = [n for n in names if models[n] > 1 and n not in thin]
    single = [n for n in names if models[n] <= 1 or n in thin]
    kept = sorted(several, key=lambda n: (-models[n], n))[:MOST_GROUPS]
    return _by_likeness(sorted(kept), pairs) + single[: max(0, MOST_GROUPS - len(kept))]


def is_number(text: str) -> bool:
    """Return whether a group's name is a number, so that groups have an order of their own.

    Parameters
    ----------
    text
        Name.

    Returns
    -------
    bool
        True for "3" and "0.5".
    """
    try:
        float(text)
    except ValueError:
        return False
    return True


def _by_likeness(names: list[str], pairs: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """Average linkage with optimal leaf order; ties by name, since `names` are sorted."""
    if len(names) < 3:
        return names
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    n = len(names)
    matrix = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            row = pairs.get((names[i], names[j]))
            value = clean(row["value"]) if row else None
            matrix[i, j] = matrix[j, i] = 0.0 if value is None else max(0.0, float(value))
    condensed = squareform(np.round(matrix, 12), checks=False)
    tree = hierarchy.linkage(condensed, "average", optimal_ordering=True)
    order = [names[i] for i in hierarchy.leaves_list(tree)]
    return order if order[0] <= order[-1] else order[::-1]
