"""The same filters as two files hold them, drawn beside one another as one SVG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import escape

from filterdb.report.layerwords import shorten
from filterdb.report.pictures import filter_sheet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filterdb.types import AnyArray

#: Filters drawn of a layer, eight a row where they are small.
N_DRAWN = 16
_COLUMNS = 8
#: Screen pixels of one coefficient, and of a whole filter at most.
_PIXEL, _LARGEST_CELL = 9, 44
_MARGIN, _LINE, _GUTTER = 16, 18, 32
#: Screen pixels of a row of filters at most, and of a letter of a title.
_WIDEST, _LETTER = 420, 7.0
_FONT = "font-family='Inter, Helvetica, Arial, sans-serif'"


@dataclass(frozen=True)
class Pair:
    """One layer in both files.

    Parameters
    ----------
    names
        What either file calls it.
    filters
        (n, *kernel) coefficients of either, the same filters in the same order.
    limit
        Value of the palette's ends, one for both.
    verdict
        How they differ, in words.
    """

    names: tuple[str, str]
    filters: tuple[AnyArray, AnyArray]
    limit: float
    verdict: str


def side_by_side(titles: tuple[str, str], pairs: Sequence[Pair]) -> str:
    """Draw layers of two files in two columns.

    Parameters
    ----------
    titles
        What the files are.
    pairs
        Layers, in order.

    Returns
    -------
    str
        An SVG document that needs nothing beside it; a kernel's first row is on top.
    """
    blocks: list[str] = []
    widest = 0.0
    drawn = [[_picture(pair, side) for side in (0, 1)] for pair in pairs]
    column = max((picture[1] for row in drawn for picture in row), default=0.0)
    column = max(column, _LETTER * max(len(title) for title in titles))
    top = _MARGIN + 2.2 * _LINE
    for pair, row in zip(pairs, drawn, strict=True):
        kernel = "×".join(map(str, pair.filters[0].shape[1:]))
        words = f"{kernel} · {pair.verdict} · −{pair.limit:.3g} to +{pair.limit:.3g}"
        blocks.append(_text(_MARGIN, top, words, "#475467"))
        for side, (uri, width, height) in enumerate(row):
            left = _MARGIN + side * (column + _GUTTER)
            blocks.append(_text(left, top + _LINE, shorten(pair.names[side], 44), "#101828"))
            place = f"x='{left:g}' y='{top + 1.5 * _LINE:g}' width='{width:g}' height='{height:g}'"
            # Grey shows through between the filters: a white filter then has edges.
            blocks.append(
                f"<rect {place} fill='#d0d5dd'/>"
                f"<image {place} style='image-rendering:pixelated' href='{uri}'/>"
            )
            widest = max(widest, left + width)
        top += max(picture[2] for picture in row) + 3.2 * _LINE
    width = max(widest, 2 * column + _GUTTER) + _MARGIN
    head = [
        _text(_MARGIN + side * (column + _GUTTER), _MARGIN + 0.6 * _LINE, title, "#101828", "600")
        for side, title in enumerate(titles)
    ]
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:g}' height='{top:g}' "
        f"viewBox='0 0 {width:g} {top:g}' role='img'>"
        f"<title>{escape(f'{titles[0]} beside {titles[1]}')}</title>"
        f"<rect width='100%' height='100%' fill='#ffffff'/>{''.join(head + blocks)}</svg>\n"
    )


def _text(x: float, y: float, words: str, colour: str, weight: str = "400") -> str:
    return (
        f"<text x='{x:g}' y='{y:g}' {_FONT} font-size='12' font-weight='{weight}' "
        f"fill='{colour}'>{escape(words)}</text>"
    )


def _picture(pair: Pair, side: int) -> tuple[str, float, float]:
    """Return the sheet's address and its size on the screen."""
    values = pair.filters[side][:N_DRAWN]
    kernel = values.shape[1:]
    flat = values.reshape(len(values), -1)
    across = (kernel[-1] + 1) * (kernel[0] if len(kernel) == 3 else 1)
    columns = max(1, min(_COLUMNS, _WIDEST // across))
    sheet = filter_sheet(flat, kernel, limit=pair.limit, columns=columns)
    scale = max(1.0, min(_PIXEL, _LARGEST_CELL / max(sheet.cell)))
    return sheet.data_uri, scale * sheet.width, scale * sheet.height
