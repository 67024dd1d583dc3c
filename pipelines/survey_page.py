"""The page a survey publishes: what was tried, read, and seen otherwise than listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.survey_list import Row


def to_markdown(rows: Sequence[Row]) -> str:
    """Write the page.

    Parameters
    ----------
    rows
        The surveyed list.

    Returns
    -------
    str
        Markdown; the rows themselves are in the CSV beside it.
    """
    parts = [
        "# Files tried\n",
        _summary(rows),
        _formats(rows),
        _unread(rows),
        _differences(rows),
    ]
    return "\n".join(part for part in parts if part)


def _summary(rows: Sequence[Row]) -> str:
    read = [row for row in rows if row.is_read]
    compared = [row for row in rows if row.is_compared]
    agree = [row for row in compared if row.agrees]
    lines = [
        f"{len(read):,} of {len(rows):,} files read ({_share(len(read), len(rows))}): every "
        "convolution kernel in them was found and loaded. One row a file: `rows.csv`, which "
        "`filterdb survey` reads again."
    ]
    if compared:
        explained = sum(bool(row.explanation) for row in compared)
        rules = Counter(row.other_rules for row in compared if row.other_rules)
        lines.append(
            f"Layers and 3×3 filters are those the list gives in {len(agree):,} of "
            f"{len(compared):,} ({_share(len(agree), len(compared))}); {explained:,} of the "
            f"{len(compared) - len(agree):,} differences are explained below."
        )
        if rules:
            both = len(agree) + rules.total()
            lines.append(
                f"In {both:,} ({_share(both, len(compared))}) they are, once the file is counted "
                "by rules that lists are known to follow: "
                + "; ".join(f"{words} ({n})" for words, n in rules.most_common())
                + "."
            )
    by_graph = sum(row.seen.depth_source == "graph" for row in read)
    weird = sum(bool(row.seen.n_nonfinite_layers) for row in read)
    lines.append(
        f"{by_graph:,} give the depth of their layers by their own graph, the others by order. "
        f"{weird:,} have layers with weights that are NaN or infinite."
    )
    return "\n\n".join(lines) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def _formats(rows: Sequence[Row]) -> str:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.listed.format or row.seen.format or "unknown", []).append(row)
    lines = ["| listed format | files | read | counts as listed | readers | layers | 3×3 filters |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        readers = Counter(row.seen.format for row in group if row.is_read)
        words = ", ".join(f"{reader} {n}" for reader, n in readers.most_common())
        n_read = sum(row.is_read for row in group)
        compared = sum(row.is_compared for row in group)
        agree = f"{sum(row.agrees for row in group):,}" if compared else ""
        layers = sum(row.seen.n_layers for row in group)
        filters = sum(row.seen.n_filters_3x3 for row in group)
        lines.append(
            f"| {name} | {len(group):,} | {n_read:,} | {agree} | {words} "
            f"| {layers:,} | {filters:,} |"
        )
    return "\n".join(lines) + "\n"


def _unread(rows: Sequence[Row]) -> str:
    unread = [row for row in rows if not row.is_read]
    if not unread:
        return ""
    lines = ["## Not read\n", "| file | listed format | reason |", "|---|---|---|"]
    lines += [
        f"| {_code(row.listed.uri)} | {row.listed.format} "
        f"| {_plain(f'{row.seen.error}: {row.seen.message}')} |"
        for row in unread
    ]
    return "\n".join(lines) + "\n"


def _differences(rows: Sequence[Row]) -> str:
    other = [row for row in rows if row.is_compared and not row.agrees]
    if not other:
        return ""
    lines = [
        "## Counted otherwise than listed\n",
        "| file | layers, listed | 3×3 filters, listed | why |",
        "|---|---|---|---|",
    ]
    for row in other:
        listed, seen = row.listed, row.seen
        layers = _pair(seen.n_layers, listed.n_layers)
        filters = _pair(seen.n_filters_3x3, listed.n_filters_3x3)
        why = row.explanation or "not explained"
        lines.append(f"| {_code(listed.uri)} | {layers} | {filters} | {_plain(why)} |")
    return "\n".join(lines) + "\n"


def _pair(ours: int, listed: int | None) -> str:
    if listed is None or ours == listed:
        return f"{ours:,}"
    return f"{ours:,}, {listed:,}"


def _code(text: str) -> str:
    return f"`{_plain(text).replace('`', ' ')}`"


def _plain(text: str) -> str:
    # What strangers name their files must not become markup or another cell.
    shown = "".join(c if c.isprintable() else " " for c in text)
    return shown.replace("|", "\\|").replace("<", "&lt;")
