"""Weight-normalised kernels (TensorFlow Addons): stored as a direction and a length.

The wrapper keeps its layer's ``kernel`` as the direction v and a vector g beside it; the kernel
that is applied is g·v/‖v‖, the norm taken over all axes but the last (Salimans & Kingma 2016,
eq. 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from filterdb.layers.raw import Tensor
    from filterdb.types import AnyArray


def normalised(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Put directions and lengths together.

    Parameters
    ----------
    tensors
        Of a file whose configuration names the wrapper.

    Returns
    -------
    list of Tensor
        The same, where the kernels that have a length beside them load as they are applied.
    """
    lengths = {}
    for tensor in tensors:
        scope, _, leaf = tensor.name.rpartition("/")
        if leaf.split(":")[0] == "g" and len(tensor.shape) == 1 and tensor.skip is None:
            lengths[scope] = tensor
    found = []
    for tensor in tensors:
        scope, _, leaf = tensor.name.rpartition("/")
        # The kernel lies in the wrapper's scope, or in that of the layer inside it.
        length = lengths.get(scope) or lengths.get(scope.rpartition("/")[0])
        kernel = leaf.split(":")[0].endswith("kernel") and len(tensor.shape) > 1
        if length is not None and kernel and tensor.shape[-1:] == length.shape:
            tensor = replace(tensor, load=partial(_applied, tensor, length), storage=None)
        found.append(tensor)
    return found


def _applied(direction: Tensor, length: Tensor) -> AnyArray:
    values = direction.load()
    wide = values.astype(np.float64)
    norm = np.sqrt(np.square(wide).sum(axis=tuple(range(wide.ndim - 1)), keepdims=True))
    # TensorFlow's l2_normalize divides by 1e-6 at least.
    result = wide * length.load().astype(np.float64) / np.maximum(norm, 1e-6)
    return np.asarray(result, dtype=values.dtype)
