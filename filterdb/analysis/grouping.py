"""Groups of layers: any column or expression over the layers and their models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.analysis.config import MAX_GROUPS
from filterdb.errors import AnalysisError, UsageError

if TYPE_CHECKING:
    from filterdb.store import Store

#: Columns that hold lists; a label is the list joined by ", ".
_LIST_COLUMNS = ("training_dataset", "pretraining_dataset")


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
        In the order of ``layers``; None where the expression is null or an empty list, which
        leaves the layer out of this grouping.

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
    answer = store.sql(f"SELECT layer_uid, CAST({value} AS VARCHAR) AS label FROM layer_view")
    found = dict(zip(answer["layer_uid"].to_pylist(), answer["label"].to_pylist(), strict=True))
    result = [found[uid] or None for uid in store.layers["layer_uid"].to_pylist()]
    n_groups = len({label for label in result if label is not None})
    if n_groups > MAX_GROUPS:
        raise AnalysisError(
            f"grouping by {by!r} gives {n_groups:,} groups, expected at most {MAX_GROUPS}",
            tip="group by something coarser, or by an SQL CASE expression",
        )
    return result


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
