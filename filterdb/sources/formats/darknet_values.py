"""Darknet's ``.weights``: a short header, then the arrays of all layers one behind the other."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.file_view import check_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.sources.formats.darknet_layers import Layer, Part
    from filterdb.sources.formats.file_view import ByteSource
    from filterdb.types import Shape

_NORM = ("gamma", "mean", "var")
_HEADER = struct.Struct("<3i")
#: Versions from here on are Darknet's way of saying "matrices are stored transposed".
_TRANSPOSED = 1000


@dataclass(frozen=True)
class Header:
    """The first bytes.

    Parameters
    ----------
    version
        major, minor, revision.
    size
        Its bytes: 16, or 20 where images seen are counted in 64 bits.
    is_transposed
        Matrices are (inputs, outputs).
    """

    version: tuple[int, int, int]
    size: int
    is_transposed: bool


@dataclass(frozen=True)
class Slot:
    """One array of the file.

    Parameters
    ----------
    layer, part
        Whose it is.
    role
        weight, bias, gamma, beta, mean, var, constant.
    shape, strides
        In elements.
    offset
        In bytes.
    """

    layer: Layer
    part: Part
    role: str
    shape: Shape
    strides: tuple[int, ...]
    offset: int


def looks_like_weights(head: bytes) -> bool:
    """Tell whether bytes begin like a ``.weights`` file.

    Parameters
    ----------
    head
        The first bytes.

    Returns
    -------
    bool
        True where the version is one Darknet has had.
    """
    if len(head) < 20:
        return False
    major, minor, revision = _HEADER.unpack_from(head)
    return bool(0 <= major <= 9 and 0 <= minor <= 99 and 0 <= revision <= 999)


def read_header(data: ByteSource, where: str) -> Header:
    """Read the header.

    Parameters
    ----------
    data
        The file.
    where
        Its name, for messages.

    Returns
    -------
    Header
        As Darknet's ``load_weights_upto`` understands it.

    Raises
    ------
    MalformedFileError
        If the file is shorter.
    """
    if len(data) < 16:
        raise MalformedFileError(
            f"{where} is no Darknet weights file: expected 16 bytes at least, got {len(data)}"
        )
    major, minor, revision = _HEADER.unpack_from(data)
    is_transposed = major > _TRANSPOSED or minor > _TRANSPOSED
    is_long = major * 10 + minor >= 2 and not is_transposed
    return Header((major, minor, revision), 20 if is_long else 16, is_transposed)


def place(layers: list[Layer], header: Header, file_size: int, where: str) -> list[Slot]:
    """Find where every array lies.

    Parameters
    ----------
    layers
        The network; it must use the file up to its last byte.
    header
        The header.
    file_size
        Bytes of the file.
    where
        Its name, for messages.

    Returns
    -------
    list of Slot
        In file order.

    Raises
    ------
    MalformedFileError
        If configuration and weights do not belong together.
    """
    has_norms = any(part.kind == "batch_norm" for layer in layers for part in layer.parts)
    wanted = 0
    # Darknet wrote 3 vectors for [batchnorm] until 2018 and 4 since, and some tools write the long
    # counter under an old version number: nothing in the file says so but its length.
    for size in (header.size, 36 - header.size):
        for biased in (True, False) if has_norms else (True,):
            slots, end = _placed(layers, replace(header, size=size), file_size, biased=biased)
            if end == file_size:
                return slots
            wanted = wanted or end
    raise MalformedFileError(
        f"{where}: the layers of the configuration read {wanted} bytes, the file has {file_size}",
        tip=_whereabouts(layers, header, file_size, where),
    )


def _whereabouts(layers: list[Layer], header: Header, file_size: int, where: str) -> str:
    position = header.size
    for layer in layers:
        position += _placed([layer], header, file_size, biased=True)[1] - header.size
        if position == file_size and layer.parts:
            return (
                f"{where} ends behind layer {layer.section.index}: it holds the first layers only, "
                f"as those for training do; name it like x.conv.{layer.section.index + 1}"
            )
    return "is it the .weights file of this .cfg?"


def _placed(
    layers: list[Layer], header: Header, file_size: int, *, biased: bool
) -> tuple[list[Slot], int]:
    slots: list[Slot] = []
    position = header.size
    for layer in layers:
        for part in layer.parts:
            for role, shape, strides in _arrays(part, header.is_transposed, biased=biased):
                count = check_shape(shape, what=f"layer {layer.section.index} ({role})")
                slots.append(Slot(layer, part, role, shape, strides, position))
                position += 4 * count
        if position > file_size:
            # What follows lies outside; only the length is still of interest.
            slots.clear()
    return slots, position


def _arrays(
    part: Part, is_transposed: bool, *, biased: bool
) -> Iterator[tuple[str, Shape, tuple[int, ...]]]:
    if part.shared is not None:
        return
    vector = (part.outputs,)
    norm = [(role, vector, (1,)) for role in _NORM]
    weight = ("weight", part.shape, _strides(part, is_transposed))
    if part.kind == "scale":
        yield "constant", part.shape, (part.shape[1], 1)
    elif part.kind == "batch_norm":
        yield from ([("beta", vector, (1,))] if biased else [])
        yield from norm
    elif part.kind == "linear":
        # A matrix stands before its norm, a kernel behind it.
        yield "beta" if part.has_norm else "bias", vector, (1,)
        yield weight
        yield from norm if part.has_norm else []
    else:
        yield "beta" if part.has_norm else "bias", vector, (1,)
        yield from norm if part.has_norm else []
        yield weight


def _strides(part: Part, is_transposed: bool) -> tuple[int, ...]:
    steps, step = [], 1
    for extent in reversed(part.shape):
        steps.append(step)
        step *= extent
    plain = tuple(reversed(steps))
    if part.is_flipped or (is_transposed and part.kind == "linear"):
        # Stored as (everything else, outputs).
        return (1, *(stride * part.shape[0] for stride in plain[1:]))
    return plain
