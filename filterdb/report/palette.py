"""Colours: vik for signed numbers, viridis for unsigned ones, and the page's tokens.

vik is one of Fabio Crameri's Scientific colour maps (MIT licence, doi 10.5281/zenodo.1243862),
sampled at 63 levels with zero set to exactly white, so that a picture of filters fits a palette of
64 entries and an empty filter looks empty. Its two ends stay apart under each form of colour
blindness; viridis grows evenly in lightness.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Levels of the signed palette; the middle one is zero.
N_LEVELS = 63
#: Index of the transparent gap between pictures; the first, so that one byte says which it is.
GAP_LEVEL = 0
#: Index of zero.
ZERO_LEVEL = 32

_VIK = (
    "001261011965021f6902266d022c71023275023879033f7e034582"
    "044c8605538a085a8f0e61941668991f709e2a78a33581a94189af"
    "4e92b45b9aba68a2c075abc682b3cb8fbbd19cc3d6a9cbdbb6d3e0"
    "c3dae5d0e0e8dce5e9e5e7e7ffffffeee0d8eedaceecd2c3e9cab8"
    "e5c1ade2b9a2deb197dba98cd8a182d49a78d1926ece8b64cb835a"
    "c87c51c57547c16e3ebe6735ba5f2bb55622af4d19a743119f390a"
    "9630078d29068522067d1c067516066e1007670a07600508590008"
)

#: (63, 3) red, green, blue of the signed palette, from most negative to most positive.
VIK: npt.NDArray[np.uint8] = np.frombuffer(bytes.fromhex(_VIK), dtype=np.uint8).reshape(63, 3)

#: Colour, shape and word of each severity; the shape and the word carry it without colour.
SEVERITIES: dict[str, tuple[str, str]] = {
    "defect": ("#c4320a", "\u25a0"),
    "unusual": ("#8a6100", "\u25b2"),
    "note": ("#4b6584", "\u25cf"),
}


def signed_levels(values: npt.ArrayLike, limit: float) -> npt.NDArray[np.uint8]:
    """Return the palette index of each value.

    Parameters
    ----------
    values
        Finite numbers of any shape; non-finite ones become the gap.
    limit
        Value of the last level, > 0; larger ones are clipped. 0 makes everything zero.

    Returns
    -------
    ndarray of uint8
        1 to 63, 32 where the value is (nearly) zero, 0 where it is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    if limit <= 0 or not np.isfinite(limit):
        scaled = np.zeros_like(array)
    else:
        scaled = np.where(finite, array, 0.0) / limit
    levels = np.rint(np.clip(scaled, -1.0, 1.0) * (N_LEVELS // 2)) + ZERO_LEVEL
    return np.where(finite, levels, GAP_LEVEL).astype(np.uint8)


def palette_bytes() -> bytes:
    """Return the 64 entries as Pillow takes them: the (transparent) gap and 63 colours."""
    return b"\xff\xff\xff" + VIK.tobytes()


def relative_luminance(colour: str) -> float:
    """Return the WCAG relative luminance of ``#rrggbb``, 0 to 1.

    Parameters
    ----------
    colour
        Hexadecimal colour.

    Returns
    -------
    float
        0 black to 1 white.
    """
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Return the WCAG contrast ratio of two colours, 1 to 21.

    Parameters
    ----------
    first, second
        Hexadecimal colours.

    Returns
    -------
    float
        Ratio of the lighter to the darker.
    """
    bright, dark = sorted((relative_luminance(first), relative_luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)
