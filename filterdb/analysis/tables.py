"""Columns of Arrow tables as numpy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filterdb.types import AnyArray, FloatArray


def floats(table: Any, name: str) -> FloatArray:
    """Return a numeric column.

    Parameters
    ----------
    table
        Arrow table.
    name
        Column.

    Returns
    -------
    ndarray
        (rows,) float64; NaN where null.
    """
    # Without pandas, whose import costs more than the analyses: integers with nulls become NaN.
    return np.array(table.column(name).to_numpy(), dtype=np.float64)


def strings(table: Any, name: str) -> list[str | None]:
    """Return a column of words.

    Parameters
    ----------
    table
        Arrow table.
    name
        Column.

    Returns
    -------
    list of str or None
        One a row.
    """
    return list(table.column(name).to_pylist())


class ListColumn:
    """A column of lists of floats, read without making Python floats of them.

    Parameters
    ----------
    table
        Arrow table.
    name
        Column of type list<double>.
    """

    def __init__(self, table: Any, name: str) -> None:
        array = table.column(name).combine_chunks()
        if hasattr(array, "chunks"):  # an empty chunked array stays one
            array = array.chunk(0) if array.num_chunks else None
        if array is None or len(array) == 0:
            self._values, self._offsets = np.zeros(0), np.zeros(1, dtype=np.int64)
            self.lengths: AnyArray = np.zeros(0, dtype=np.int64)
            return
        self._values = np.asarray(array.values.to_numpy(zero_copy_only=False), dtype=np.float64)
        self._offsets = array.offsets.to_numpy().astype(np.int64)
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        self.lengths = np.where(valid, np.diff(self._offsets), -1)

    def matrix(self, rows: Sequence[int] | AnyArray) -> FloatArray:
        """Return the lists of some rows, all of one length, one a row.

        Parameters
        ----------
        rows
            Row numbers.

        Returns
        -------
        ndarray
            (len(rows), length).
        """
        chosen = np.asarray(rows, dtype=np.int64)
        if len(chosen) == 0:
            return np.zeros((0, 0))
        length = int(self.lengths[chosen[0]])
        places = self._offsets[chosen][:, None] + np.arange(length)
        return np.asarray(self._values[places], dtype=np.float64)


def kernel_sizes(layers: Any) -> AnyArray:
    """Return k² of every row of ``layers``.

    Parameters
    ----------
    layers
        The table.

    Returns
    -------
    ndarray
        (rows,) int64, the product of the kernel's extents.
    """
    words = layers.column("kernel").to_pylist()
    sizes = {w: int(np.prod([int(k) for k in w.split("x")])) for w in set(words)}
    return np.array([sizes[w] for w in words], dtype=np.int64)
