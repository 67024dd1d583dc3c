"""The TFLite reader: sparse tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.tflite_schema import Dimension, Sparsity
from filterdb.sources.formats.tflite_values import expand_sparse
from tests.sources.formats.tflite_builder import ModelBuilder, i8, i32, u8
from tests.sources.formats.tflite_files import HALF, RNG, only_node, read, tensor


def encode_sparse(
    dense: Any, order: list[int], blocks: dict[int, int], compressed: set[int]
) -> tuple[Any, Sparsity]:
    """Write a dense array as TFLite's converter does: level by level, in `order`."""
    rank = dense.ndim
    block_map = tuple(blocks)
    extents = [dense.shape[a] // blocks.get(a, 1) for a in range(rank)]
    extents += [blocks[a] for a in block_map]

    def position(at: dict[int, int]) -> tuple[int, ...]:
        inner = {a: at[rank + i] for i, a in enumerate(block_map)}
        return tuple(at[a] * blocks.get(a, 1) + inner.get(a, 0) for a in range(rank))

    def empty(at: dict[int, int], level: int) -> bool:
        if level == len(order):
            return bool(dense[position(at)] == 0)
        return all(empty({**at, order[level]: i}, level + 1) for i in range(extents[order[level]]))

    nodes: list[dict[int, int]] = [{}]
    levels = []
    for level, axis in enumerate(order):
        following, segments, indices = [], [0], []
        for at in nodes:
            for i in range(extents[axis]):
                deeper = {**at, axis: i}
                if axis in compressed and empty(deeper, level + 1):
                    continue
                following.append(deeper)
                indices.append(i)
            segments.append(len(following))
        if axis in compressed:
            levels.append(Dimension(0, np.array(segments), np.array(indices, np.int64)))
        else:
            levels.append(Dimension(extents[axis]))
        nodes = following
    values = np.array([dense[position(at)] for at in nodes], dense.dtype)
    return values, Sparsity(tuple(order), block_map, tuple(levels))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sparse_tensors_expand_to_what_was_encoded(data: Any) -> None:
    shape = data.draw(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3))
    blocked = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, max_size=2))
    blocks = {
        a: data.draw(st.sampled_from([n for n in (1, 2, 4) if n <= shape[a]])) for a in blocked
    }
    order = data.draw(st.permutations(range(len(shape))))
    order += list(range(len(shape), len(shape) + len(blocks)))
    compressed = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    dense = np.array(
        data.draw(st.lists(st.sampled_from([0, 0, 1, -2]), min_size=64, max_size=64)), np.float32
    )[: int(np.prod(shape))].reshape(shape)
    values, sparsity = encode_sparse(dense, list(order), blocks, compressed)
    np.testing.assert_array_equal(expand_sparse(values, sparsity, tuple(shape), "t"), dense)


def test_sparse_weight_in_a_file(tmp_path: Path) -> None:
    dense = RNG.standard_normal((4, 1, 1, 8)).astype(np.float16)
    dense[:, :, :, :4] = 0
    dense[2] = 0
    values, found = encode_sparse(dense, [0, 1, 2, 3, 4], {3: 2}, {3})
    level = found.dimensions[3]
    assert level.segments is not None
    assert level.indices is not None
    dims: list[Any] = [{0: i8(0), 1: i32(d.size)} for d in found.dimensions]
    dims[3] = {
        0: i8(1), 2: u8(3), 3: {0: level.segments.astype(np.uint8)},
        4: u8(1), 5: {0: level.indices.astype("<i4")},
    }  # fmt: skip
    table = {0: np.array(found.order, "<i4"), 1: np.array([3], "<i4"), 2: dims}
    model = ModelBuilder()
    model.tensor("x", (1, 8, 8, 8))
    model.tensor("w", dense.shape, HALF, values, sparsity=table)
    model.tensor("w_dense", dense.shape, HALF)
    model.tensor("w_float", dense.shape)
    model.tensor("y", (1, 8, 8, 4))
    model.operator(124, [1], [2])
    model.operator(6, [2], [3])
    model.operator(3, [0, 3], [4], {})
    raw = read(tmp_path, model.bytes())
    assert only_node(raw).weights["weight"] == "w"
    assert values.size < dense.size
    np.testing.assert_array_equal(tensor(raw, "w").load(), dense)


@pytest.mark.parametrize(
    "levels",
    [
        [Dimension(1 << 40), Dimension(2)],
        [Dimension(-1), Dimension(2)],
        [Dimension(0, np.array([0, 9]), np.array([0])), Dimension(2)],
        [Dimension(0, np.array([0, -1]), np.array([0])), Dimension(2)],
        [Dimension(0, np.array([0]), np.array([0])), Dimension(2)],
        [Dimension(0, np.array([0, 1]), np.array([7])), Dimension(2)],
        [Dimension(0, np.array([0, 1]), np.array([-1])), Dimension(2)],
        [Dimension(2), Dimension(0, np.array([0, 1, 99]), np.arange(2))],
        [Dimension(2)],
        [Dimension(2), Dimension(2), Dimension(2)],
    ],
)
def test_inconsistent_sparse_tensors(levels: list[Dimension]) -> None:
    sparsity = Sparsity(tuple(range(len(levels))), (), tuple(levels))
    with pytest.raises(MalformedFileError, match="inconsistent"):
        expand_sparse(np.zeros(4, np.float32), sparsity, (2, 2), "t")
