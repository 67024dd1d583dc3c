"""ONNX Runtime's own files, ``.ort``: an ONNX graph as a flatbuffer (public schema ``ort.fbs``).

The graph, its operators and their attributes are ONNX's, so only the encoding differs: here it is
turned into the same records as a ``.onnx`` file, and everything else follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.base import MAX_RANK
from filterdb.sources.formats.onnx_records import (
    MAX_DEPTH,
    Attribute,
    GraphRecord,
    ModelRecord,
    NodeRecord,
    TensorRecord,
    sparse_record,
)

if TYPE_CHECKING:
    from filterdb.sources.formats.flatbuffer import FlatBuffer, Table

IDENTIFIER = b"ORTM"
#: AttributeType → which kind of field holds the value.
_FLOAT, _INT, _FLOATS, _INTS = 1, 2, 6, 7


def parse_ort(buffer: FlatBuffer) -> ModelRecord:
    """Parse an ``.ort`` file.

    Parameters
    ----------
    buffer
        The whole file.

    Returns
    -------
    ModelRecord
        As of an ONNX file; nodes may be in any order.

    Raises
    ------
    MalformedFileError
        If the bytes break the rules of flatbuffers, or there is no graph.
    UnsafeCheckpointError
        If it nests deeper or holds more than any network.
    """
    session = buffer.root()
    model = session.table(1)
    graph = None if model is None else model.table(7)
    if model is None or graph is None:
        raise MalformedFileError(f"{buffer.where} is no complete ORT model: it holds no graph")
    opsets = tuple(
        (_domain(table.text(0, limit=80)), table.integer(1, "i8")) for table in model.tables(1)
    )
    producer = f"{model.text(2, limit=80)} {model.text(3, limit=80)}".strip()
    text = f"{producer}, ORT format {session.text(0, limit=20)}".lstrip(", ")
    return ModelRecord(_graph(graph, depth=0), model.integer(0, "i8"), text, opsets)


def _domain(text: str) -> str:
    return "" if text == "ai.onnx" else text


def _graph(table: Table, *, depth: int) -> GraphRecord:
    if depth > MAX_DEPTH:
        raise UnsafeCheckpointError(
            f"{table.buffer.where} nests graphs deeper than {MAX_DEPTH} levels"
        )
    return GraphRecord(
        nodes=tuple(_node(node, depth) for node in table.tables(2)),
        initializers=(
            *(_tensor(tensor) for tensor in table.tables(0)),
            *(_sparse(tensor) for tensor in table.tables(7)),
        ),
        inputs=table.texts(5),
        outputs=table.texts(6),
    )


def _node(table: Table, depth: int) -> NodeRecord:
    attributes = [_attribute(attribute, depth) for attribute in table.tables(10)]
    return NodeRecord(
        name=table.text(0),
        op_type=table.text(5),
        domain=_domain(table.text(2)),
        inputs=table.texts(8),
        outputs=table.texts(9),
        attributes={attribute.name: attribute for attribute in attributes},
    )


def _attribute(table: Table, depth: int) -> Attribute:
    kind = table.integer(2, "i4")
    number: float | int | None = None
    if kind == _FLOAT:
        number = table.real(3)
    elif kind == _INT:
        number = table.integer(4, "i8")
    numbers: tuple[float | int, ...] = ()
    if kind in (_FLOATS, _INTS):
        numbers = table.numbers(8, "f4") if kind == _FLOATS else table.numbers(9, "i8")
    tensor = table.table(6)
    single = table.table(7)
    graphs = [*([] if single is None else [single]), *table.tables(12)]
    return Attribute(
        name=table.text(0),
        number=number,
        text=table.text(5),
        numbers=numbers,
        tensor=None if tensor is None else _tensor(tensor),
        graphs=tuple(_graph(graph, depth=depth + 1) for graph in graphs),
    )


def _tensor(table: Table) -> TensorRecord:
    dims = table.numbers(2, "i8")[: MAX_RANK + 1]
    start, count = table.extent(4, 1) or (0, 0)
    start += table.buffer.start
    return TensorRecord(
        name=table.text(0),
        shape=tuple(int(n) for n in dims),
        data_type=table.integer(3, "i4"),
        payload="raw_data" if count else "",
        ranges=((start, start + count),) if count else (),
    )


def _sparse(table: Table) -> TensorRecord:
    values, indices = table.table(0), table.table(1)
    if values is None or indices is None:
        raise table.buffer.malformed("a sparse tensor without its values", table.position)
    dims = tuple(int(n) for n in table.numbers(2, "i8"))
    return sparse_record(_tensor(values), _tensor(indices), dims)
