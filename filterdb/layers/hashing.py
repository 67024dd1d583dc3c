"""Content hashes of layers, by which duplicates across models are found."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from filterdb.types import AnyArray


def tensor_sha256(array: AnyArray) -> str:
    """Hash a layer's canonical weights: element type, shape and bytes.

    Parameters
    ----------
    array
        Canonical weights, any shape and dtype.

    Returns
    -------
    str
        64 hexadecimal digits; equal on machines of either byte order.
    """
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest = hashlib.sha256()
    shape = ",".join(str(n) for n in array.shape)
    digest.update(f"{array.dtype.name}[{shape}]".encode())
    # As a view of bytes: a copy of a large layer would cost as much as the hash.
    digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
