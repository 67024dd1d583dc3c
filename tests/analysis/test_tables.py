"""Arrow columns as numpy arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from filterdb.analysis import tables


def test_numbers_with_nulls():
    table = pa.table({"i": pa.array([1, None, 3]), "f": pa.array([None, 0.5, 2.0])})
    np.testing.assert_array_equal(tables.floats(table, "i"), [1, np.nan, 3])
    np.testing.assert_array_equal(tables.floats(table, "f"), [np.nan, 0.5, 2])
    assert tables.floats(table.slice(0, 0), "i").tolist() == []


def test_lists_of_two_lengths_in_several_chunks():
    chunks = [pa.array([[1.0, 2.0], None, [3.0]]), pa.array([[4.0, 5.0]])]
    table = pa.table({"x": pa.chunked_array(chunks)})
    column = tables.ListColumn(table, "x")
    assert column.lengths.tolist() == [2, -1, 1, 2]
    assert column.matrix([0, 3]).tolist() == [[1, 2], [4, 5]]
    assert column.matrix([2]).tolist() == [[3]]
    assert column.matrix([]).shape == (0, 0)
    sliced = tables.ListColumn(table.slice(2), "x")
    assert sliced.matrix([1]).tolist() == [[4, 5]]


def test_kernel_sizes():
    table = pa.table({"kernel": ["3x3", "7", "1x3x3", "3x3"]})
    assert tables.kernel_sizes(table).tolist() == [9, 7, 9, 9]
