"""ONNX models (.onnx and .ort), read without the onnx package: graph walked, values left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.errors import SourceError
from filterdb.layers.raw import RawModel
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.flatbuffer import FlatBuffer
from filterdb.sources.formats.onnx_constants import Constants
from filterdb.sources.formats.onnx_flatten import Flattener
from filterdb.sources.formats.onnx_graph import GraphTranslator
from filterdb.sources.formats.onnx_ort import IDENTIFIER, parse_ort
from filterdb.sources.formats.onnx_proto import OnnxParser
from filterdb.sources.formats.onnx_values import TensorValues, external_range
from filterdb.sources.formats.protobuf_wire import BYTES, VARINT, WireReader

if TYPE_CHECKING:
    from filterdb.sources.formats.onnx_records import GraphRecord, ModelRecord

#: Wire types of ModelProto's fields.
_MODEL_FIELDS = {
    1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES,
    14: BYTES, 20: BYTES, 25: BYTES, 26: BYTES,
}  # fmt: skip
_MAX_IR_VERSION = 64


def sniff(head: bytes, _file: ModelFile) -> bool:
    """Tell whether a file begins like an ONNX model.

    Parameters
    ----------
    head
        The first 4 KiB.

    Returns
    -------
    bool
        True where the first fields are those of a ModelProto, or for ONNX Runtime's own form.
    """
    if head[4:8] == IDENTIFIER:
        return True
    wire = WireReader(head, where="head")
    seen: set[int] = set()
    position = 0
    try:
        while position < len(head) and 7 not in seen:
            tag, after = wire.varint(position, len(head))
            number, kind = tag >> 3, tag & 7
            if _MODEL_FIELDS.get(number) != kind:
                return False
            value, after = wire.varint(after, len(head))
            if number == 1 and not 0 < value <= _MAX_IR_VERSION:
                return False
            if number in (2, 3, 4, 6):
                text = head[after : after + value]
                if len(text) != value or (not text.decode("utf-8").isprintable() and number != 6):
                    return False
            seen.add(number)
            position = after if kind == VARINT else after + value
    except (SourceError, UnicodeDecodeError):
        return False
    return 1 in seen and bool(seen & {7, 8})


def read(file: ModelFile) -> RawModel:
    """List the tensors and operations of an ONNX model.

    Parameters
    ----------
    file
        The model, with its external data as companions.

    Returns
    -------
    RawModel
        ``has_edges`` is True; quantised weights keep their initializer's name and come
        dequantised.

    Raises
    ------
    SourceError
        If the file is damaged, unsafe, or lacks a companion.
    """
    name = file.name or file.path.name
    file = ModelFile(file.path, file.companions, name)
    model, size = _parse(file)
    flat = Flattener(model, name, size=size)
    constants = Constants(flat.tensors, TensorValues(file, size))
    translator = GraphTranslator(flat, constants)
    return RawModel(
        format="onnx",
        tensors=translator.tensors(),
        nodes=translator.nodes,
        has_edges=True,
        default_layout="OIHW",
        notes=_notes(model, flat, translator),
    )


def companions(file: ModelFile) -> tuple[str, ...]:
    """Name the files an ONNX model keeps its large tensors in.

    Parameters
    ----------
    file
        The model.

    Returns
    -------
    tuple of str
        Relative to the model's folder, in order of first use.

    Raises
    ------
    SourceError
        If the file is damaged, or names a place outside its folder.
    """
    model, _size = _parse(file)
    graphs: list[GraphRecord] = [model.graph, *model.functions.values()]
    names: dict[str, None] = {}
    while graphs:
        graph = graphs.pop()
        records = list(graph.initializers)
        for node in graph.nodes:
            for attribute in node.attributes.values():
                graphs += attribute.graphs
                if attribute.tensor is not None:
                    records.append(attribute.tensor)
        for record in records:
            for part in (record, *(record.sparse or ())):
                if part.external is not None:
                    names[external_range(file, part.external, part.name).location] = None
    return tuple(names)


def _parse(file: ModelFile) -> tuple[ModelRecord, int]:
    where = file.name or file.path.name
    with map_file(file.path) as data:
        if data[4:8] == IDENTIFIER:
            return parse_ort(FlatBuffer(data, where=where)), len(data)
        return OnnxParser(WireReader(data, where=where)).model(), len(data)


def _notes(model: ModelRecord, flat: Flattener, translator: GraphTranslator) -> tuple[str, ...]:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in model.opsets)
    notes = [
        f"producer {model.producer or 'unknown'}, IR version {model.ir_version}, opset {opsets}"
    ]
    if flat.expanded:
        calls = ", ".join(f"{name} ({n}x)" for name, n in list(flat.expanded.items())[:8])
        notes.append(f"local functions expanded: {calls}")
    if translator.n_computed:
        notes.append(f"{translator.n_computed} convolutions take a weight the graph computes")
    return tuple(notes)


READER = FormatReader(
    name="onnx",
    title="ONNX",
    suffixes=(".onnx", ".ort"),
    sniff=sniff,
    read=read,
    companions=companions,
)
