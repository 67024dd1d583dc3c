"""Graphs with what a SavedModel says about them (``meta_graph``, ``saved_object_graph``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.protobuf_wire import BYTES, VARINT, WireReader
from filterdb.sources.formats.tf_graph_proto import GraphParser, Library

#: More would be no model.
_MAX_GRAPHS = 16
_MAX_ENTRIES = 200_000


@dataclass
class MetaGraph:
    """One graph of a SavedModel.

    Parameters
    ----------
    library
        The graph and its functions.
    tags, version
        What it is for; who wrote it.
    signatures
        Name → the values it returns.
    bound
        Function → numbers of the objects (variables) bound to its last arguments.
    children
        For each object, name → number of the object below it.
    parser
        Reads texts of constants while the file is mapped.
    """

    library: Library
    parser: GraphParser
    tags: list[str] = field(default_factory=list)
    version: str = ""
    signatures: dict[str, list[str]] = field(default_factory=dict)
    bound: dict[str, list[int]] = field(default_factory=dict)
    children: list[dict[str, int]] = field(default_factory=list)


def meta_graphs(wire: WireReader) -> list[MetaGraph]:
    """Parse a ``SavedModel``.

    Parameters
    ----------
    wire
        The file.

    Returns
    -------
    list of MetaGraph
        Its graphs.

    Raises
    ------
    MalformedFileError
        If it is damaged.
    """
    ranges = [
        (value, end)
        for number, kind, value, end in wire.fields(0, len(wire.data))
        if number == 2 and kind == BYTES
    ]
    if len(ranges) > _MAX_GRAPHS:
        raise MalformedFileError(f"{wire.where}: {len(ranges):,} graphs in one model")
    parser = GraphParser(wire)
    return [meta_graph(wire, *place, parser) for place in ranges]


def meta_graph(
    wire: WireReader, start: int, end: int, parser: GraphParser | None = None
) -> MetaGraph:
    """Parse a ``MetaGraphDef``.

    Parameters
    ----------
    wire
        The file.
    start, end
        Its byte range.
    parser
        Of the file, where it holds several graphs.

    Returns
    -------
    MetaGraph
        What it says.

    Raises
    ------
    MalformedFileError
        If it is damaged.
    UnsafeCheckpointError
        If its graph is absurdly large.
    """
    parser = GraphParser(wire) if parser is None else parser
    found = MetaGraph(Library.empty(), parser)
    for number, kind, value, stop in wire.fields(start, end):
        if kind != BYTES:
            continue
        if number == 1:
            _information(wire, value, stop, found)
        elif number == 2:
            found.library = parser.graph(value, stop)
        elif number == 5:
            _signature(wire, value, stop, found)
        elif number == 7:
            _objects(wire, value, stop, found)
    if not found.library.graph.operations:
        raise MalformedFileError(f"{wire.where}: a graph without operations")
    return found


def _information(wire: WireReader, start: int, end: int, found: MetaGraph) -> None:
    for number, kind, value, stop in wire.fields(start, end):
        if kind == BYTES and number == 4 and len(found.tags) < 16:
            found.tags.append(wire.text(value, stop, limit=100))
        elif kind == BYTES and number == 5:
            found.version = wire.text(value, stop, limit=100)


def _signature(wire: WireReader, start: int, end: int, found: MetaGraph) -> None:
    name, content = _entry(wire, start, end)
    values: list[str] = []
    for number, kind, first, last in wire.fields(*content):
        if number != 2 or kind != BYTES:
            continue
        _, inner = _entry(wire, first, last)
        for field_number, wire_type, a, b in wire.fields(*inner):
            if field_number == 1 and wire_type == BYTES:
                values.append(wire.text(a, b, limit=4096))
    if values and len(found.signatures) < 1000:
        found.signatures[name] = values


def _entry(wire: WireReader, start: int, end: int) -> tuple[str, tuple[int, int]]:
    """Read one entry of a map: its key, and the byte range of its value."""
    key, content = "", (end, end)
    for number, kind, value, stop in wire.fields(start, end):
        if number == 1 and kind == BYTES:
            key = wire.text(value, stop, limit=4096)
        elif number == 2 and kind == BYTES:
            content = (value, stop)
    return key, content


def _objects(wire: WireReader, start: int, end: int, found: MetaGraph) -> None:
    for number, kind, value, stop in wire.fields(start, end):
        if kind != BYTES:
            continue
        if number == 1:
            found.children.append(_children(wire, value, stop))
        elif number == 2:
            name, content = _entry(wire, value, stop)
            found.bound[name] = [
                n for f, k, a, b in wire.fields(*content) if f == 2 for n in wire.integers(k, a, b)
            ]
        if len(found.children) + len(found.bound) > _MAX_ENTRIES:
            raise MalformedFileError(f"{wire.where}: more than {_MAX_ENTRIES:,} objects")


def _children(wire: WireReader, start: int, end: int) -> dict[str, int]:
    children: dict[str, int] = {}
    for number, kind, value, stop in wire.fields(start, end):
        if number != 1 or kind != BYTES:
            continue
        name, target = "", 0
        for field_number, wire_type, a, b in wire.fields(value, stop):
            if field_number == 1 and wire_type == VARINT:
                target = a
            elif field_number == 2 and wire_type == BYTES:
                name = wire.text(a, b, limit=4096)
        children[name] = target
    return children
