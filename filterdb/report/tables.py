"""Packed columns: a table of 60,000 rows in less than a megabyte of page.

Each column becomes bytes (dictionary codes, whole numbers, four-place decimals, single precision),
the bytes of one significance are put beside each other, and all of it is gzipped and written as
base64. The page's script decodes it with ``DecompressionStream``.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from filterdb.report.model import Grid, GridColumn

#: Numbers in one sparkline.
SPARK_POINTS = 10
_INT_NULL = -(2**31)


@dataclass(frozen=True)
class PackedGrid:
    """A grid as the page holds it.

    Parameters
    ----------
    header
        JSON: columns with their encoding and place in the bytes.
    body
        Base64 of gzip.
    """

    header: str
    body: str


def pack_grid(grid: Grid) -> PackedGrid:
    """Pack a grid.

    Parameters
    ----------
    grid
        Columns of equal length.

    Returns
    -------
    PackedGrid
        The same for the same grid.
    """
    columns: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    offset = 0
    for column in grid.columns:
        meta, data = _pack_column(column, grid.n_rows)
        columns.append({**_describe(column), **meta, "at": offset, "size": len(data)})
        chunks.append(data)
        offset += len(data)
    header = {
        "slug": grid.slug,
        "rows": grid.n_rows,
        "source": grid.source,
        "columns": columns,
    }
    packed = gzip.compress(b"".join(chunks), compresslevel=9, mtime=0)
    return PackedGrid(script_json(header), base64.b64encode(packed).decode("ascii"))


def unpack_grid(packed: PackedGrid) -> dict[str, list[Any]]:
    """Return the columns of a packed grid, as the page's script reads them.

    Parameters
    ----------
    packed
        From `pack_grid`.

    Returns
    -------
    dict of str to list
        Values by column name, None where null.
    """
    header = json.loads(packed.header)
    data = gzip.decompress(base64.b64decode(packed.body))
    out: dict[str, list[Any]] = {}
    for column in header["columns"]:
        raw = data[column["at"] : column["at"] + column["size"]]
        out[column["name"]] = _unpack_column(column, raw, header["rows"])
    return out


def script_json(value: Any) -> str:
    """Return JSON that may stand inside a script element.

    Parameters
    ----------
    value
        What to write.

    Returns
    -------
    str
        Without ``<``, ``>`` and ``&``, keys in their order, no NaN.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def spark_bytes(values: Sequence[float | None], low: float, high: float) -> bytes:
    """Quantise one sparkline.

    Parameters
    ----------
    values
        `SPARK_POINTS` numbers or None.
    low, high
        Ends of its scale.

    Returns
    -------
    bytes
        One a number: 0 to 254, 255 for None.
    """
    span = high - low or 1.0
    return bytes(
        255 if v is None or not math.isfinite(v) else round(min(1, max(0, (v - low) / span)) * 254)
        for v in values
    )


def _describe(column: GridColumn) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": column.name, "label": column.label, "width": column.width}
    optional = {
        "sql": column.sql,
        "text": column.text,
        "many": column.many,
        "link": column.link,
        "hidden": column.hidden,
    }
    return meta | {k: v for k, v in optional.items() if v}


def _pack_column(column: GridColumn, n_rows: int) -> tuple[dict[str, Any], bytes]:
    values = list(column.values)
    if len(values) != n_rows:
        raise ValueError(f"column {column.name}: expected {n_rows} values, got {len(values)}")
    if column.kind == "words":
        return _pack_words(values)
    if column.kind in ("text", "picture"):
        kind = {"text": "text", "picture": "picture"}[column.kind]
        lines = ("" if v is None else " ".join(str(v).splitlines()) for v in values)
        return {"kind": kind}, "\n".join(lines).encode("utf-8", "replace")
    if column.kind == "spark":
        return {"kind": "spark"}, b"".join(values)
    return _pack_numbers(column.kind, values)


def _pack_words(values: Iterable[str | None]) -> tuple[dict[str, Any], bytes]:
    texts = list(values)
    known = sorted({v for v in texts if v is not None})
    code = {word: index for index, word in enumerate(known)}
    wide = len(known) >= 255
    null = 65535 if wide else 255
    codes = np.array([null if v is None else code[v] for v in texts], "<u2" if wide else "u1")
    return {"kind": "words", "words": known, "type": codes.dtype.str[1:]}, _shuffle(codes)


def _pack_numbers(kind: str, values: list[Any]) -> tuple[dict[str, Any], bytes]:
    numbers = np.array(
        [math.nan if v is None or not math.isfinite(v) else float(v) for v in values], np.float64
    )
    null = np.isnan(numbers)
    filled = np.where(null, 0.0, numbers)
    if kind == "float":
        with np.errstate(over="ignore", under="ignore"):
            return {"kind": "float", "type": "f4"}, _shuffle(numbers.astype("<f4"))
    scale = 10_000 if kind == "decimal" else 1
    whole = np.array([round_half_away(v * scale) for v in filled], np.float64)
    low, high = float(whole.min(initial=0)), float(whole.max(initial=0))
    meta: dict[str, Any] = {"kind": kind, "scale": scale}
    if low >= 0 and high < 65535:
        return meta | {"type": "u2"}, _shuffle(np.where(null, 65535, whole).astype("<u2"))
    if low > _INT_NULL and high < 2**31:
        return meta | {"type": "i4"}, _shuffle(np.where(null, _INT_NULL, whole).astype("<i4"))
    return meta | {"type": "f8"}, _shuffle(np.where(null, math.nan, whole).astype("<f8"))


def round_half_away(value: float) -> int:
    """Round half away from zero, as DuckDB's ``round`` does, so that page and query agree.

    Parameters
    ----------
    value
        Any finite number.

    Returns
    -------
    int
        The nearest whole number.
    """
    whole = math.floor(abs(value) + 0.5)
    return whole if value >= 0 else -whole


def _shuffle(array: npt.NDArray[Any]) -> bytes:
    """Put first bytes first: gzip finds more in columns of equal significance."""
    width = array.dtype.itemsize
    return np.frombuffer(array.tobytes(), np.uint8).reshape(-1, width).T.tobytes()


def _unpack_column(column: dict[str, Any], raw: bytes, n_rows: int) -> list[Any]:
    kind = column["kind"]
    if kind in ("text", "picture"):
        return [line or None for line in raw.decode().split("\n")] if n_rows else []
    if kind == "spark":
        return [raw[i : i + SPARK_POINTS] for i in range(0, len(raw), SPARK_POINTS)]
    dtype = np.dtype("<" + column["type"])
    flat = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
    codes = np.frombuffer(flat, dtype)
    if kind == "words":
        null = 255 if column["type"] == "u1" else 65535
        return [None if c == null else column["words"][int(c)] for c in codes]
    nulls = {"u2": 65535, "i4": _INT_NULL}
    scale = column.get("scale", 1)
    return [
        None if c == nulls.get(column["type"]) or math.isnan(c) else float(c) / scale
        for c in codes.tolist()
    ]
