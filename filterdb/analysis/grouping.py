"""Groups of layers: any column or expression over the layers and their models.

Random initialisations are controls: they count in no group and not among all models, so that adding
them changes no number, except in a grouping that itself asks whether a model is one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from filterdb.analysis.config import CONTROLS_BY, DEFAULT_BY, MAX_GROUPS
from filterdb.analysis.tables import strings
from filterdb.errors import AnalysisError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from filterdb.store import Store
    from filterdb.store.table import Table
    from filterdb.types import AnyArray

#: Columns that hold lists; a label is the list joined by ", ".
_LIST_COLUMNS = ("training_dataset", "pretraining_dataset")
#: SQL text and comments, in which a column's name is no column.
_QUOTED = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)
_CONTROL_COLUMNS = re.compile(r"\b(init_of|seed)\b", re.IGNORECASE)


def trained(store: Store) -> AnyArray:
    """Return which rows of ``layers`` stand for the population.

    Parameters
    ----------
    store
        The store.

    Returns
    -------
    ndarray
        (rows,) bool: layers of models that are no random initialisation. In a store of nothing
        but random initialisations, all.
    """
    models = store.models.arrow
    ids = zip(strings(models, "model_id"), strings(models, "init_of"), strict=True)
    known = {model for model, init_of in ids if init_of is None}
    counted = np.array([m in known for m in strings(store.layers.arrow, "model_id")], dtype=bool)
    return counted if counted.any() else ~counted


def default_by(store: Store) -> tuple[str, ...]:
    """Return the groupings of a store that nobody chose groupings for.

    Parameters
    ----------
    store
        The store.

    Returns
    -------
    tuple of str
        The usual ones; where the store holds trained models and random initialisations, also the
        two against one another.
    """
    return DEFAULT_BY if trained(store).all() else (*DEFAULT_BY, CONTROLS_BY)


def names_controls(by: str) -> bool:
    """Return whether a grouping asks what is a random initialisation.

    Parameters
    ----------
    by
        A column or an SQL expression.

    Returns
    -------
    bool
        Whether it names the column ``init_of`` or ``seed``.
    """
    return _CONTROL_COLUMNS.search(_QUOTED.sub(" ", by)) is not None


def labels(store: Store, by: str) -> list[str | None]:
    """Return the group of every row of ``layers``.

    Parameters
    ----------
    store
        The store.
    by
        A column of ``layer_view``, or an SQL expression over it:
        ``"case when n_parameters > 1e7 then 'large' else 'small' end"``.

    Returns
    -------
    list of str or None
        In the order of ``layers``; None, which leaves the layer out of this grouping, where the
        expression is null or an empty list, and for random initialisations unless
        :func:`names_controls`.

    Raises
    ------
    UnknownNameError
        A column that does not exist; the nearest are named.
    UsageError
        Not an expression.
    AnalysisError
        More than :data:`~filterdb.analysis.config.MAX_GROUPS` groups.
    """
    if not by.strip():
        raise UsageError(
            "an empty grouping", tip="name a column, such as task, or an SQL expression"
        )
    value = f"array_to_string({by}, ', ')" if by.strip() in _LIST_COLUMNS else f"({by}\n)"
    answer = _asked(store, by, value)
    found = dict(zip(answer["layer_uid"].to_pylist(), answer["label"].to_pylist(), strict=True))
    counted = np.full(len(found), True) if names_controls(by) else trained(store)
    uids = store.layers["layer_uid"].to_pylist()
    result = [(found[uid] or None) if c else None for uid, c in zip(uids, counted, strict=True)]
    n_groups = len({label for label in result if label is not None})
    if n_groups > MAX_GROUPS:
        raise AnalysisError(
            f"grouping by {by!r} gives {n_groups:,} groups, expected at most {MAX_GROUPS}",
            tip="group by something coarser, or by an SQL CASE expression",
        )
    return result


def _asked(store: Store, by: str, value: str) -> Table:
    try:
        return store.sql(f"SELECT layer_uid, CAST({value} AS VARCHAR) AS label FROM layer_view")
    except UnknownNameError:
        raise
    except UsageError as error:
        # DuckDB shows the whole query, of which nobody typed more than the grouping.
        reason = error.message.splitlines()[0]
        raise UsageError(
            f"the grouping {by!r} cannot be evaluated: {reason}",
            tip=error.tip or "one column, or one SQL expression of columns: n_filters > 1000",
        ) from error


def groups_of(group_labels: list[str | None]) -> list[str]:
    """Return the groups there are, numbers by size and words by alphabet.

    Parameters
    ----------
    group_labels
        One a layer.

    Returns
    -------
    list of str
        Without duplicates and without None.
    """
    return sorted({label for label in group_labels if label is not None}, key=_natural)


def _natural(label: str) -> tuple[int, float, str]:
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)
