"""How large what Darknet's layers emit is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError

if TYPE_CHECKING:
    from filterdb.sources.formats.darknet_cfg import Section


@dataclass(frozen=True)
class Extent:
    """What a layer emits.

    Parameters
    ----------
    channels, height, width
        Of a map; height and width are 0 where nobody says.
    outputs
        Values in all.
    """

    channels: int
    height: int
    width: int
    outputs: int


def image(channels: int, height: int, width: int) -> Extent:
    """Return the extent of a map.

    Parameters
    ----------
    channels, height, width
        Its extents; height and width below one become 0.

    Returns
    -------
    Extent
        With its number of values.
    """
    height, width = max(height, 0), max(width, 0)
    return Extent(channels, height, width, channels * height * width)


def positive(section: Section, key: str, default: int) -> int:
    """Return an option that is at least one.

    Parameters
    ----------
    section
        The layer.
    key, default
        Its name, and Darknet's default.

    Returns
    -------
    int
        Its value.

    Raises
    ------
    MalformedFileError
        If it is smaller.
    """
    value = section.integer(key, default)
    if value < 1:
        raise MalformedFileError(
            f"layer {section.index} ([{section.kind}], line {section.line}): expected {key} above "
            f"0, got {value}"
        )
    return value


def pooled(section: Section, before: Extent) -> Extent:
    """Return what a pooling layer emits.

    Parameters
    ----------
    section
        The layer.
    before
        What it reads.

    Returns
    -------
    Extent
        Of its output.
    """
    stride = positive(section, "stride", 1)
    size = positive(section, "size", stride)
    padding = section.integer("padding", size - 1)
    down = max(section.integer("stride_y", stride), 1)
    across = max(section.integer("stride_x", stride), 1)
    channels = before.channels
    if section.integer("maxpool_depth"):
        channels = positive(section, "out_channels", 1)
        return image(channels, before.height, before.width)
    height = (before.height + padding - size) // down + 1
    width = (before.width + padding - size) // across + 1
    return image(channels, height, width)


def upsampled(section: Section, before: Extent) -> Extent:
    """Return what a layer that repeats pixels emits.

    Parameters
    ----------
    section
        The layer.
    before
        What it reads.

    Returns
    -------
    Extent
        Of its output.
    """
    factor = section.integer("stride", 2)
    if factor >= 0:
        return image(before.channels, before.height * factor, before.width * factor)
    # A negative stride is Darknet's way to say "smaller".
    return image(before.channels, before.height // -factor, before.width // -factor)


def reorganised(section: Section, before: Extent) -> Extent:
    """Return what a layer that folds space into channels emits.

    Parameters
    ----------
    section
        The layer.
    before
        What it reads.

    Returns
    -------
    Extent
        Of its output.
    """
    factor = positive(section, "stride", 1)
    if section.integer("reverse"):
        return image(before.channels // factor**2, before.height * factor, before.width * factor)
    return image(before.channels * factor**2, before.height // factor, before.width // factor)
