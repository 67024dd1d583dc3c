"""Keep FORMAT.md equal to schema.py: ``python -m filterdb.store.format_md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filterdb.store.query import LAYER_VIEW, view_columns
from filterdb.store.schema import MANIFEST, TABLES, TableSchema

FORMAT_PATH = Path(__file__).with_name("FORMAT.md")
BEGIN, END = "<!-- columns: begin -->", "<!-- columns: end -->"


def table_markdown(schema: TableSchema) -> str:
    """Return one table's section of FORMAT.md.

    Parameters
    ----------
    schema
        The declared table.

    Returns
    -------
    str
        Heading, what a row is, key, and one line a column.
    """
    lines = [
        f"### {schema.name}",
        "",
        f"One row is {schema.text}. Key: {', '.join(f'`{k}`' for k in schema.key)}.",
        "",
        "| column | type | null | meaning |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {c.name} | {type_name(c.type)} | {'yes' if c.nullable else 'no'} | {c.text} |"
        for c in schema.columns
    ]
    return "\n".join(lines)


def type_name(type_: Any) -> str:
    """Return an Arrow type as FORMAT.md writes it.

    Parameters
    ----------
    type_
        Arrow type.

    Returns
    -------
    str
        "string", "int64", "list of double".
    """
    value = getattr(type_, "value_type", None)
    return f"list of {value}" if value is not None else str(type_)


def view_markdown() -> str:
    """Return the section of FORMAT.md on the view SQL offers beside the tables.

    Returns
    -------
    str
        Every column that has another name in the view.
    """
    renamed = [
        f"`{name}` is {source}"
        for name, source in view_columns().items()
        if source.split(".")[1] != name
    ]
    return (
        f"### {LAYER_VIEW} (not a file)\n\n"
        "In `filterdb query` and in `where=`, this view joins each row of layers with its model "
        "and, where analysed, its quality (raw weights, sparse filters kept). Columns keep their "
        f"names, but: {'; '.join(renamed)}."
    )


def rendered(text: str) -> str:
    """Return FORMAT.md with its generated part brought up to date.

    Parameters
    ----------
    text
        FORMAT.md as it is.

    Returns
    -------
    str
        FORMAT.md as it should be.
    """
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    sections = [table_markdown(s) for s in (*TABLES.values(), MANIFEST)] + [view_markdown()]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(sections) + f"\n\n{END}{after}"


if __name__ == "__main__":
    FORMAT_PATH.write_text(rendered(FORMAT_PATH.read_text(encoding="utf-8")), encoding="utf-8")
