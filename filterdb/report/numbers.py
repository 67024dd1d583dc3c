"""How numbers are written: two or three digits, thousands apart, a true minus, never NaN."""

from __future__ import annotations

import math

#: Stands where there is no number; its reason is beside it.
NONE = "–"


def count(value: float | int | None) -> str:
    """Return a whole number with thin spaces between thousands ("1,315").

    Parameters
    ----------
    value
        The number, or None.

    Returns
    -------
    str
        For people.
    """
    if value is None or not math.isfinite(value):
        return NONE
    return f"{round(value):,}".replace("-", "−")


def short(value: float | None, digits: int = 3) -> str:
    """Return a number of few significant digits.

    Parameters
    ----------
    value
        The number, or None.
    digits
        Significant digits.

    Returns
    -------
    str
        "0.0213", "12.3", "1,230", "2.1e−7".
    """
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4:
        mantissa, exponent = f"{value:.{max(0, digits - 2)}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    decimals = max(0, digits - 1 - size)
    if size >= digits:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:,.{decimals}f}".replace("-", "−")


def share(value: float | None, digits: int = 2) -> str:
    """Return a share as per cent ("2.1 %").

    Parameters
    ----------
    value
        0 to 1, or None.
    digits
        Significant digits.

    Returns
    -------
    str
        Never "100 %" for less than all, never "0 %" for more than none.
    """
    if value is None or not math.isfinite(value):
        return NONE
    if 0.995 <= value < 1:
        return "over 99\u00a0%"
    if 0 < value < 0.0005:
        return "under 0.1\u00a0%"
    text = f"{100 * value:.{digits}g}" if value < 0.995 else "100"
    return f"{float(text):g}\u00a0%".replace("-", "−")


def megabytes(n_bytes: float) -> str:
    """Return a size ("1.2 MB").

    Parameters
    ----------
    n_bytes
        Bytes.

    Returns
    -------
    str
        kB below one MB, GB from 1,000 MB on.
    """
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= factor:
            return f"{short(n_bytes / factor)}\u00a0{unit}"
    return f"{int(n_bytes)} B"


def plural(number: float | int, one: str, many: str | None = None) -> str:
    """Return the number with its noun ("1 model", "23 models").

    Parameters
    ----------
    number
        How many.
    one, many
        Noun for one, and for others (`one` + "s" if not given).

    Returns
    -------
    str
        Both words.
    """
    noun = one if number == 1 else (many or f"{one}s")
    return f"{count(number)} {noun}"


def words(label: str) -> str:
    """Return a label of the vocabulary as people write it ("object detection").

    Parameters
    ----------
    label
        As in the store.

    Returns
    -------
    str
        Underscores turned to spaces.
    """
    return label.replace("_", " ")


def wilson(hits: int, n: int) -> tuple[float, float] | None:
    """Return the 95 % Wilson interval of a share.

    Parameters
    ----------
    hits, n
        How many of how many.

    Returns
    -------
    tuple of float or None
        Lower and upper end; None where n is 0.
    """
    if n == 0:
        return None
    z = 1.959963984540054
    p = hits / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (
        max(0.0, (centre - spread) / (1 + z * z / n)),
        min(1.0, (centre + spread) / (1 + z * z / n)),
    )
