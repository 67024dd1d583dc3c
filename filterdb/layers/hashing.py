"""Content hashes of layers, by which duplicates across models are found."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from filterdb.types import AnyArray, Shape

#: Bytes brought into little-endian C order at once: a copy of a large layer would cost as much as
#: its hash.
BLOCK_BYTES = 8 * 1024 * 1024


def tensor_sha256(array: AnyArray, *, shape: Shape | None = None) -> str:
    r"""Hash a layer's canonical weights: element type, shape and bytes.

    Parameters
    ----------
    array
        Canonical weights, any shape and dtype; or the same values as rows, as a shard has them.
    shape
        Shape of the canonical weights where `array` holds them as rows.

    Returns
    -------
    str
        64 hexadecimal digits: SHA-256 of the line ``"<dtype> <shape joined by ,>\\n"`` followed by
        the little-endian bytes in C order. Equal on machines of either byte order.
    """
    header = ",".join(str(int(n)) for n in (array.shape if shape is None else shape))
    digest = hashlib.sha256(f"{array.dtype.name} {header}\n".encode())
    if array.size:
        rows = np.atleast_1d(array).reshape(array.shape[0] if array.ndim else 1, -1)
        little = array.dtype.newbyteorder("<")
        step = max(1, BLOCK_BYTES // (rows.shape[1] * rows.itemsize))
        for start in range(0, rows.shape[0], step):
            block = np.ascontiguousarray(rows[start : start + step], dtype=little)
            digest.update(block.view(np.uint8).data)
    return digest.hexdigest()
