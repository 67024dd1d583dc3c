"""Builders of raw models, shared by the tests of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from filterdb.layers.raw import ConvAttributes, Node, RawModel, Tensor


def _give(array: np.ndarray) -> np.ndarray:
    return array


def tensors_of(arrays: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name, array.shape, array.dtype.name, partial(_give, array))
        for name, array in arrays.items()
    )


@pytest.fixture(scope="session")
def state_dict() -> Callable[..., RawModel]:
    """Make a raw model of arrays, or of shapes filled with seeded numbers."""

    def make(content: Mapping[str, np.ndarray | Sequence[int]], **options: Any) -> RawModel:
        rng = np.random.default_rng(1)
        arrays = {
            name: given
            if isinstance(given, np.ndarray)
            else rng.normal(size=tuple(given)).astype(np.float32)
            for name, given in content.items()
        }
        return RawModel("test", tensors_of(arrays), **options)

    return make


@pytest.fixture(scope="session")
def graph() -> Callable[..., RawModel]:
    """Make a raw model with edges from (node, inputs, outputs) rows."""

    def make(
        arrays: Mapping[str, np.ndarray | Sequence[int]], nodes: Sequence[Node], **options: Any
    ) -> RawModel:
        rng = np.random.default_rng(2)
        filled = {
            name: given
            if isinstance(given, np.ndarray)
            else rng.normal(size=tuple(given)).astype(np.float32)
            for name, given in arrays.items()
        }
        return RawModel("test", tensors_of(filled), tuple(nodes), has_edges=True, **options)

    return make


@pytest.fixture(scope="session")
def conv() -> Callable[..., Node]:
    """Make a convolution node that reads `source` and writes its own name."""

    def make(name: str, source: str, weight: str | None = None, **options: Any) -> Node:
        weights = {"weight": f"{name}.w" if weight is None else weight}
        if "bias" in options:
            weights["bias"] = options.pop("bias")
        op = options.pop("op", "conv")
        layout = options.pop("layout", "OIHW" if op == "conv" else "IOHW")
        return Node(
            name,
            op,
            (source,),
            (name,),
            weights,
            ConvAttributes(layout=layout, groups=options.pop("groups", 1), **options),
        )

    return make
