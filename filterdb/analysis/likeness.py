"""Which layers of one shape are the same by their weights, where names and order do not tell.

Converters list parallel branches in another order: two layers of one shape are then paired
crosswise, and an exact copy would look like a network trained anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filterdb.layers.model import ConvLayer
    from filterdb.types import FloatArray

#: Cosine of two weight vectors from which on they are one layer: rounding to 8 bits and short
#: fine-tuning stay above it, two trainings of one network far below.
ALIKE = 0.99
#: Layers of one shape held in memory together, bytes; larger groups keep their order.
MAX_BYTES = 256 * 1024 * 1024


def pair_alike(
    first: Sequence[ConvLayer], second: Sequence[ConvLayer], pairs: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Pair layers of one shape so that those alike come together.

    Parameters
    ----------
    first, second
        Layers of one shape, of two checkpoints.
    pairs
        Positions paired so far; each occurs once.

    Returns
    -------
    list of (int, int)
        As many pairs. Those alike already stay, the most alike of the others follow, and what is
        like nothing keeps its order.
    """
    size = sum(layer.n_filters * layer.n_coefficients * 4 for layer in (*first, *second))
    if size > MAX_BYTES or (len(first) == 1 and len(second) == 1):
        return list(pairs)
    cosines = _directions(first) @ _directions(second).T
    kept = [pair for pair in pairs if cosines[pair] >= ALIKE]
    for i, j in kept:
        cosines[i, :] = cosines[:, j] = -1.0
    while cosines.size and cosines.max() >= ALIKE:
        i, j = (int(n) for n in np.unravel_index(int(cosines.argmax()), cosines.shape))
        kept.append((i, j))
        cosines[i, :] = cosines[:, j] = -1.0
    firsts, seconds = {i for i, _ in kept}, {j for _, j in kept}
    rest = [i for i, _ in pairs if i not in firsts]
    others = [j for _, j in sorted(pairs, key=lambda pair: pair[1]) if j not in seconds]
    # A pair that lost one side to a better one finds another among what was left over.
    rest += [i for i in range(len(first)) if i not in firsts and i not in rest]
    others += [j for j in range(len(second)) if j not in seconds and j not in others]
    return [*kept, *zip(rest, others, strict=False)]


def _directions(layers: Sequence[ConvLayer]) -> FloatArray:
    """Return the weight vectors at length one, (layers, weights); zero where that is undefined."""
    rows = np.stack([layer.weights().reshape(-1).astype(np.float32) for layer in layers])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        sound = np.isfinite(norms) & (norms > 0)
        unit = np.where(sound[:, None], rows / np.where(sound, norms, 1.0)[:, None], 0.0)
    directions: FloatArray = np.nan_to_num(unit.astype(np.float32))
    return directions
