"""IR of the versions 2 to 7: weights as blobs of a layer, their shapes in its attributes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.openvino_values import element_bits, element_type

if TYPE_CHECKING:
    from collections.abc import Mapping

    from filterdb.sources.formats.graph_constants import Constant
    from filterdb.sources.formats.openvino_xml import Blob, Layer
    from filterdb.types import Shape


@dataclass(frozen=True)
class OldWeights:
    """The kernel of a convolution, (outputs, inputs of a group, …) or the other way round."""

    constant: Constant
    groups: int


def blob_type(layer: Layer, blob: Blob) -> str:
    """Return the element type of a blob.

    Parameters
    ----------
    layer
        Whose precision goes for blobs that state none.
    blob
        One of its blobs.

    Returns
    -------
    str
        Modern name.
    """
    return element_type(blob.precision or layer.precision)


def blob_shape(layer: Layer, blob: Blob) -> Shape:
    """Return the shape of a blob as far as it is known: a Const's output, else one axis.

    Parameters
    ----------
    layer
        The layer.
    blob
        One of its blobs.

    Returns
    -------
    tuple of int
        Extents.
    """
    bits = element_bits(blob_type(layer, blob))
    size = int(blob.size) if blob.size.isascii() and blob.size.isdigit() else 0
    count = 8 * size // bits if bits else 0
    outputs = next(iter(layer.outputs.values()), None)
    if layer.kind == "Const" and outputs is not None and math.prod(outputs) == count:
        return outputs
    return (count,)


def old_weights(
    layer: Layer,
    roles: Mapping[str, Constant],
    given: Constant | None,
    *,
    transposed: bool,
    where: str,
) -> OldWeights | None:
    """Give an old convolution's kernel its shape.

    Parameters
    ----------
    layer
        The convolution.
    roles
        Its blobs.
    given
        The constant at its second input, which version 7 has for quantised weights.
    transposed
        For transposed ones the inputs are the first axis.
    where
        The file's name, for messages.

    Returns
    -------
    OldWeights or None
        None where the layer is of version 10 or later.

    Raises
    ------
    MalformedFileError
        If the blob does not make the kernel the attributes describe.
    """
    outputs = _number(layer, "output")
    kernel = _kernel(layer)
    constant = roles.get("weights", given)
    if outputs is None or kernel is None or constant is None:
        return None
    groups = _number(layer, "group") or 1
    area = math.prod(kernel)
    per_group = outputs // groups if transposed else outputs
    fits = area and per_group and outputs % groups == 0
    rest = constant.size // (area * per_group) if fits else 0
    shape = (rest, per_group, *kernel) if transposed else (per_group, rest, *kernel)
    shaped = constant.reshaped(shape) if rest else None
    if shaped is None:
        raise MalformedFileError(
            f"{where}, layer {layer.name!r}: {constant.size} weights make no kernel of "
            f"{outputs} outputs, {groups} groups and extent {list(kernel)}"
        )
    return OldWeights(shaped, groups)


def _number(layer: Layer, name: str) -> int | None:
    text = layer.data.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and 0 < len(text) < 10 else None


def _kernel(layer: Layer) -> Shape | None:
    if "kernel" in layer.data:
        texts = layer.data["kernel"].split(",")[:4]
    else:
        names = [n for n in ("kernel-z", "kernel-y", "kernel-x") if n in layer.data]
        texts = [layer.data[n] for n in names]
    if not 1 <= len(texts) <= 3:
        return None
    if not all(t.strip().isascii() and t.strip().isdigit() and len(t) < 10 for t in texts):
        return None
    return tuple(int(t) for t in texts)
