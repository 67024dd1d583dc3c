"""Pictures of filters: indexed PNG sheets, one pixel a coefficient.

Row 0 of a kernel is the top row of its picture. One transparent pixel lies between filters, and the
page scales a sheet up with ``image-rendering: pixelated``, so every coefficient stays a flat square
on screen and on paper.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from filterdb.report.palette import GAP_LEVEL, palette_bytes, signed_levels

#: Layers of at most this many filters are drawn whole.
DRAW_ALL = 256
#: Filters drawn of larger layers.
DRAW_SOME = 64


@dataclass(frozen=True)
class Sheet:
    """One picture of filters.

    Parameters
    ----------
    png
        The file's bytes.
    width, height
        Size in pixels.
    columns
        Filters in a row of the sheet.
    cell
        (height, width) of one filter in pixels, without the gap.
    limit
        Value of the palette's last level; the picture shows -limit to +limit.
    """

    png: bytes
    width: int
    height: int
    columns: int
    cell: tuple[int, int]
    limit: float

    @property
    def data_uri(self) -> str:
        """The picture as a ``data:`` address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Sample:
    """The filters of one layer that are drawn.

    Parameters
    ----------
    values
        (n, k*k) coefficients, largest norm first.
    rows
        Their rows in the layer.
    n_total
        Filters the layer has.
    limit
        Largest finite |w| of the whole layer.
    """

    values: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    n_total: int
    limit: float


def sample_filters(values: npt.NDArray[np.generic], *, count: int = DRAW_SOME) -> Sample:
    """Choose filters at even ranks of their L2 norm, largest first.

    The white tail of the drawn sheet is then the share of nearly empty filters.

    Parameters
    ----------
    values
        (n, k*k) filters of one layer.
    count
        How many at most.

    Returns
    -------
    Sample
        All filters where there are at most `count`.
    """
    n = len(values)
    array = np.asarray(values, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.einsum("ij,ij->i", array, array, dtype=np.float64)
    order = np.argsort(-np.where(np.isfinite(norms), norms, np.inf), kind="stable")
    if n > count:
        order = order[np.rint(np.linspace(0, n - 1, count)).astype(np.int64)]
    magnitude = np.abs(array)
    finite = np.isfinite(magnitude)
    limit = float(np.max(magnitude, initial=0.0, where=finite))
    return Sample(array[order], order.astype(np.int64), n, limit)


def filter_sheet(
    filters: npt.ArrayLike, kernel: tuple[int, ...], *, limit: float, columns: int = 16
) -> Sheet:
    """Draw filters as a sheet of small squares.

    Parameters
    ----------
    filters
        (n, product of `kernel`) coefficients.
    kernel
        Extent, slowest axis first: 1-D as strips, 3-D as its slices from left to right.
    limit
        Value of the palette's ends.
    columns
        Filters in a row.

    Returns
    -------
    Sheet
        Indexed PNG, the gap transparent.
    """
    array = np.asarray(filters, dtype=np.float64)
    cells = _as_cells(array, kernel)
    n, height, width = cells.shape
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), GAP_LEVEL, np.uint8)
    levels = np.where(
        cells == _GAP, GAP_LEVEL, signed_levels(np.where(cells == _GAP, 0, cells), limit)
    )
    for index in range(n):
        top = index // columns * (height + 1)
        left = index % columns * (width + 1)
        canvas[top : top + height, left : left + width] = levels[index]
    return Sheet(
        indexed_png(canvas), canvas.shape[1], canvas.shape[0], columns, (height, width), limit
    )


#: Marks a pixel that belongs to no coefficient; no weight is exactly this.
_GAP = float(np.finfo(np.float64).max)


def _as_cells(array: npt.NDArray[np.float64], kernel: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return (n, height, width) pixels of each filter."""
    n = len(array)
    if len(kernel) == 1:
        return array.reshape(n, 1, kernel[0])
    if len(kernel) == 2:
        return array.reshape(n, *kernel)
    depth, height, width = kernel
    cube = array.reshape(n, depth, height, width)
    out = np.full((n, height, depth * (width + 1) - 1), _GAP)
    for d in range(depth):
        out[:, :, d * (width + 1) : d * (width + 1) + width] = cube[:, d]
    return out


def indexed_png(levels: npt.NDArray[np.uint8]) -> bytes:
    """Encode palette indices as a PNG of 64 entries with a transparent first one.

    Parameters
    ----------
    levels
        (height, width) indices 0 to 63.

    Returns
    -------
    bytes
        The file; the same for the same input.
    """
    from PIL import Image

    image = Image.fromarray(levels)
    picture = Image.frombytes("P", image.size, image.tobytes())
    picture.putpalette(palette_bytes(), "RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=False, compress_level=9, transparency=GAP_LEVEL)
    return buffer.getvalue()


def pack_filters(sample: Sample) -> str:
    """Pack a sample for the page's inspector.

    Parameters
    ----------
    sample
        The filters drawn.

    Returns
    -------
    str
        Base64 of, for n filters of k*k: n float32 largest |w|, n rows of `row_width` bytes,
        n*k*k int8 (127ths of the filter's own largest |w|). Little endian.
    """
    values = np.nan_to_num(sample.values.astype(np.float64), posinf=0.0, neginf=0.0)
    top = np.abs(values).max(axis=1, initial=0.0)
    scaled = np.rint(values / np.where(top > 0, top, 1.0)[:, None] * 127).astype(np.int8)
    parts = (
        top.astype("<f4").tobytes(),
        sample.rows.astype(f"<u{row_width(sample)}").tobytes(),
        scaled.tobytes(),
    )
    return base64.b64encode(b"".join(parts)).decode("ascii")


def row_width(sample: Sample) -> int:
    """Return the bytes of a row number in `pack_filters`.

    Parameters
    ----------
    sample
        The filters drawn.

    Returns
    -------
    int
        2 or 4.
    """
    return 2 if sample.n_total <= 65_536 else 4


def eigenfilter_strip(components: npt.ArrayLike, kernel: tuple[int, ...], *, limit: float) -> Sheet:
    """Draw eigenfilters in one row on one scale.

    Parameters
    ----------
    components
        (n, k*k), one component a row, signs already fixed.
    kernel
        Extent.
    limit
        Shared end of the scale.

    Returns
    -------
    Sheet
        One row.
    """
    array = np.asarray(components, dtype=np.float64)
    return filter_sheet(array, kernel, limit=limit, columns=len(array))


def fix_signs(components: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Make the entry of largest magnitude of each row positive.

    Parameters
    ----------
    components
        (n, k*k).

    Returns
    -------
    ndarray
        A copy with signs turned where needed; of equal magnitudes the first decides.
    """
    array = np.array(components, dtype=np.float64)
    for row in array:
        pivot = row[int(np.argmax(np.round(np.abs(row), 9)))]
        if pivot < 0:
            row *= -1
    return array


def align_signs(components: npt.ArrayLike, reference: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Turn each row so that it points the way of the same row of `reference`.

    Parameters
    ----------
    components, reference
        (n, k*k) each.

    Returns
    -------
    ndarray
        A copy; rows at a right angle keep the sign rule of `fix_signs`.
    """
    array = fix_signs(components)
    other = np.asarray(reference, dtype=np.float64)
    for row, target in zip(array, other, strict=True):
        if float(row @ target) < -1e-12:
            row *= -1
    return array
