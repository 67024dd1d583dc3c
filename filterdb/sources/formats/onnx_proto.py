"""ONNX messages as records of byte ranges (public schema ``onnx.proto``, its numbers)."""

from __future__ import annotations

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.base import MAX_RANK, MAX_TENSORS
from filterdb.sources.formats.memory_room import Room
from filterdb.sources.formats.onnx_records import (
    MAX_DEPTH,
    PAYLOADS,
    Attribute,
    GraphRecord,
    ModelRecord,
    NodeRecord,
    TensorRecord,
    sparse_record,
)
from filterdb.sources.formats.protobuf_wire import BYTES, FIXED32, VARINT, WireReader, signed

#: Bytes of memory that may be taken for records, beside as many as the file has.
_ROOM = 96 * 1024**2
#: What a record takes, with what is made of it later: a tensor, a node, an attribute, a name, a
#: number of a list.
_TENSOR, _NODE, _ATTRIBUTE, _NAME, _NUMBER = 1900, 700, 260, 100, 40


class OnnxParser:
    """Turns bytes into records.

    Parameters
    ----------
    wire
        The file's bytes.
    """

    def __init__(self, wire: WireReader) -> None:
        self.wire = wire
        self._tensors_left = MAX_TENSORS
        self._take = Room(len(wire.data), flat=_ROOM, where=wire.where).take

    def model(self) -> ModelRecord:
        """Parse the whole file.

        Returns
        -------
        ModelRecord
            The model.

        Raises
        ------
        MalformedFileError
            If it is no ONNX model, or a damaged one.
        UnsafeCheckpointError
            If it nests deeper or holds more than any network.
        """
        wire = self.wire
        graph, ir_version, producer = None, 0, ["", ""]
        opsets: list[tuple[str, int]] = []
        functions: dict[tuple[str, str], GraphRecord] = {}
        for number, kind, value, end in wire.fields(0, len(wire.data)):
            if number == 1 and kind == VARINT:
                ir_version = value
            elif number in (2, 3) and kind == BYTES:
                producer[number - 2] = wire.text(value, end, limit=80)
            elif number == 7 and kind == BYTES:
                # Protocol buffers merge a repeated message; nobody writes two graphs.
                if graph is not None:
                    raise wire.malformed("a second graph", value)
                graph = self.graph(value, end, depth=0)
            elif number == 8 and kind == BYTES:
                opsets.append(self._opset(value, end))
            elif number == 25 and kind == BYTES:
                key, body = self._function(value, end)
                functions[key] = body
        if graph is None:
            raise MalformedFileError(
                f"{wire.where} is no complete ONNX model: it holds no graph",
                tip="was the download cut short?",
            )
        text = " ".join(filter(None, producer))
        return ModelRecord(graph, ir_version, text, tuple(opsets), functions)

    def _opset(self, start: int, end: int) -> tuple[str, int]:
        domain, version = "", 0
        for number, kind, value, stop in self.wire.fields(start, end):
            if number == 1 and kind == BYTES:
                domain = self.wire.text(value, stop, limit=80)
            elif number == 2 and kind == VARINT:
                version = value
        return domain, version

    def graph(self, start: int, end: int, *, depth: int) -> GraphRecord:
        """Parse a GraphProto.

        Parameters
        ----------
        start, end
            Its byte range.
        depth
            How many graphs lie around it.

        Returns
        -------
        GraphRecord
            The graph.
        """
        if depth > MAX_DEPTH:
            raise UnsafeCheckpointError(
                f"{self.wire.where} nests graphs deeper than {MAX_DEPTH} levels"
            )
        nodes, initializers = [], []
        inputs: list[str] = []
        outputs: list[str] = []
        for number, kind, value, stop in self.wire.fields(start, end):
            if kind != BYTES:
                continue
            if number == 1:
                nodes.append(self._node(value, stop, depth))
            elif number == 5:
                initializers.append(self.tensor(value, stop))
            elif number == 15:
                initializers.append(self._sparse(value, stop))
            elif number in (11, 12):
                self._take(_NAME + stop - value)
                (inputs if number == 11 else outputs).append(self._string(value, stop, field=1))
        return GraphRecord(tuple(nodes), tuple(initializers), tuple(inputs), tuple(outputs))

    def _function(self, start: int, end: int) -> tuple[tuple[str, str], GraphRecord]:
        wire = self.wire
        name, domain = "", ""
        nodes = []
        inputs: list[str] = []
        outputs: list[str] = []
        for number, kind, value, stop in wire.fields(start, end):
            if kind != BYTES:
                continue
            if number == 1:
                name = wire.text(value, stop)
            elif number == 10:
                domain = wire.text(value, stop)
            elif number == 7:
                nodes.append(self._node(value, stop, 0))
            elif number in (4, 5):
                self._take(_NAME + stop - value)
                (inputs if number == 4 else outputs).append(wire.text(value, stop))
        body = GraphRecord(tuple(nodes), inputs=tuple(inputs), outputs=tuple(outputs))
        return (domain, name), body

    def _string(self, start: int, end: int, *, field: int) -> str:
        """Return one string field of a message, "" where it is absent."""
        for number, kind, value, stop in self.wire.fields(start, end):
            if number == field and kind == BYTES:
                return self.wire.text(value, stop)
        return ""

    def _node(self, start: int, end: int, depth: int) -> NodeRecord:
        wire = self.wire
        self._take(_NODE)
        texts = {3: "", 4: "", 7: ""}
        inputs: list[str] = []
        outputs: list[str] = []
        attributes: dict[str, Attribute] = {}
        for number, kind, value, stop in wire.fields(start, end):
            if kind != BYTES:
                continue
            if number in (1, 2, 3):
                self._take(_NAME + stop - value)
            if number == 1:
                inputs.append(wire.text(value, stop))
            elif number == 2:
                outputs.append(wire.text(value, stop))
            elif number in texts:
                texts[number] = wire.text(value, stop)
            elif number == 5:
                attribute = self._attribute(value, stop, depth)
                attributes[attribute.name] = attribute
        domain = "" if texts[7] == "ai.onnx" else texts[7]
        return NodeRecord(texts[3], texts[4], domain, tuple(inputs), tuple(outputs), attributes)

    def _attribute(self, start: int, end: int, depth: int) -> Attribute:
        wire = self.wire
        self._take(_ATTRIBUTE)
        name, text, reference = "", "", ""
        number_value: float | int | None = None
        tensor: TensorRecord | None = None
        graphs: list[GraphRecord] = []
        floats: list[float] = []
        integers: list[int] = []
        for number, kind, value, stop in wire.fields(start, end):
            if number == 1 and kind == BYTES:
                name = wire.text(value, stop)
            elif number == 2 and kind == FIXED32:
                number_value = wire.float32(value)
            elif number == 3 and kind == VARINT:
                number_value = signed(value)
            elif number == 4 and kind == BYTES:
                text = wire.text(value, stop)
            elif number == 5 and kind == BYTES:
                tensor = self.tensor(value, stop)
            elif number in (6, 11) and kind == BYTES:
                graphs.append(self.graph(value, stop, depth=depth + 1))
            elif number == 7 and kind in (BYTES, FIXED32):
                self._take(_NUMBER * max(1, (stop - value) // 4 if kind == BYTES else 1))
                floats += wire.floats(kind, value, stop)
            elif number == 8 and kind in (BYTES, VARINT):
                self._take(_NUMBER * (stop - value if kind == BYTES else 1))
                integers += wire.integers(kind, value, stop)
            elif number == 21 and kind == BYTES:
                reference = wire.text(value, stop)
            elif number == 22 and kind == BYTES:
                tensor = self._sparse(value, stop)
        return Attribute(
            name=name,
            number=number_value,
            text=text,
            numbers=tuple(integers or floats),
            tensor=tensor,
            graphs=tuple(graphs),
            reference=reference,
        )

    def _sparse(self, start: int, end: int) -> TensorRecord:
        """Parse a SparseTensorProto."""
        parts = {1: TensorRecord("", (0,), 0), 2: TensorRecord("", (0,), 7)}
        dims: list[int] = []
        for number, kind, value, stop in self.wire.fields(start, end):
            if number in parts and kind == BYTES:
                parts[number] = self.tensor(value, stop)
            elif number == 3 and kind in (VARINT, BYTES):
                self._take(_NUMBER * (stop - value if kind == BYTES else 1))
                dims += self.wire.integers(kind, value, stop)
        return sparse_record(parts[1], parts[2], tuple(dims))

    def tensor(self, start: int, end: int) -> TensorRecord:
        """Parse a TensorProto.

        Parameters
        ----------
        start, end
            Its byte range.

        Returns
        -------
        TensorRecord
            With the ranges of its values.
        """
        self._take(_TENSOR)
        self._tensors_left -= 1
        if self._tensors_left < 0:
            raise UnsafeCheckpointError(f"{self.wire.where} holds more than {MAX_TENSORS} tensors")
        wire = self.wire
        name, data_type, located, segmented = "", 0, 0, False
        dims: list[int] = []
        external: dict[str, str] = {}
        ranges: dict[str, list[tuple[int, int]]] = {}
        inline: dict[str, list[float | int]] = {}
        for number, kind, value, stop in wire.fields(start, end):
            if number in PAYLOADS:
                payload = PAYLOADS[number]
                if kind == BYTES and stop > value:
                    ranges.setdefault(payload, []).append((value, stop))
                elif kind != BYTES:
                    self._take(_NUMBER)
                    unpacked = wire.integers if kind == VARINT else wire.floats
                    inline.setdefault(payload, []).extend(unpacked(kind, value, stop))
            elif number == 1 and kind in (VARINT, BYTES):
                self._take(_NUMBER * (stop - value if kind == BYTES else 1))
                dims += wire.integers(kind, value, stop)
            elif number == 2 and kind == VARINT:
                data_type = value
            elif number == 3:
                segmented = True
            elif number == 8 and kind == BYTES:
                name = wire.text(value, stop)
            elif number == 13 and kind == BYTES:
                key, content = self._entry(value, stop)
                external[key] = content
            elif number == 14 and kind == VARINT:
                located = value
        filled = [*ranges, *inline]
        if len(filled) > 1 or (filled and located == 1):
            raise MalformedFileError(
                f"tensor {name!r} in {wire.where} stores its values more than once "
                f"({', '.join(filled)}{', external' if located == 1 else ''})"
            )
        payload = filled[0] if filled else ""
        return TensorRecord(
            name=name,
            shape=tuple(dims[: MAX_RANK + 1]),
            data_type=data_type,
            payload=payload,
            ranges=tuple(ranges.get(payload, ())),
            inline=tuple(inline[payload]) if payload in inline else None,
            external=external if located == 1 else None,
            segmented=segmented,
        )

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        texts = ["", ""]
        for number, kind, value, stop in self.wire.fields(start, end):
            if number in (1, 2) and kind == BYTES:
                texts[number - 1] = self.wire.text(value, stop, limit=4096)
        return texts[0], texts[1]
