"""ML Programs (MIL): functions, blocks and operations, read from the protobuf wire format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from filterdb.errors import UnsafeCheckpointError
from filterdb.sources.formats.coreml_fields import Fields
from filterdb.sources.formats.memory_room import Room
from filterdb.sources.formats.protobuf_wire import BYTES, FIXED32, FIXED64, VARINT, signed

if TYPE_CHECKING:
    from filterdb.sources.formats.protobuf_wire import WireReader
    from filterdb.types import Shape

#: ``DataType`` → filterdb's word.
ELEMENT_TYPES = {
    1: "bool", 2: "string", 10: "float16", 11: "float32", 12: "float64", 13: "bfloat16",
    21: "int8", 22: "int16", 23: "int32", 24: "int64", 25: "int4",
    31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2", 37: "uint1",
    38: "uint6", 39: "uint3", 40: "float8_e4m3fn", 41: "float8_e5m2",
}  # fmt: skip
#: Fields of ``TensorValue`` → how its values are written.
_PAYLOADS = {1: "float32", 2: "varint", 3: "varint", 4: "string", 5: "varint", 6: "float64"}
_MAX_DEPTH = 16
#: Memory for what is made of the messages, in bytes: flat, and for each part.
_FLAT = 128 * 1024 * 1024
_OPERATION, _INPUT, _VALUE, _RANGE = 3000, 500, 1500, 150
_MAX_RANK = 64
_MAX_RANGES = 1 << 16


@dataclass
class Value:
    """A constant: its type, and where its numbers lie."""

    element: str = ""
    shape: Shape = ()
    #: How the numbers are written: "float32", "float64", "varint", "bytes", "string".
    payload: str = ""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    #: Name and offset of a weight file.
    blob: tuple[str, int] | None = None


@dataclass
class Operation:
    """One operation: what it reads by parameter, and what it writes."""

    kind: str = ""
    inputs: dict[str, list[str | Value]] = field(default_factory=dict)
    #: Name → shape; None where it is unknown.
    outputs: dict[str, Shape | None] = field(default_factory=dict)
    attributes: dict[str, Value] = field(default_factory=dict)
    blocks: list[list[Operation]] = field(default_factory=list)

    def given(self, name: str) -> str | Value | None:
        """Return what is given for a parameter: a value's name, a constant, or nothing."""
        bound = self.inputs.get(name)
        return bound[0] if bound else self.attributes.get(name)


class ProgramParser:
    """Parses a ``Program``.

    Parameters
    ----------
    wire
        The file.
    """

    def __init__(self, wire: WireReader) -> None:
        self.wire = wire
        self._room = Room(len(wire.data), flat=_FLAT, where=wire.where)

    def functions(self, start: int, end: int) -> dict[str, list[Operation]]:
        """Parse the whole program.

        Parameters
        ----------
        start, end
            Its byte range.

        Returns
        -------
        dict of str to list of Operation
            Function → its operations.

        Raises
        ------
        SourceError
            If it is damaged or absurdly large.
        """
        found: dict[str, list[Operation]] = {}
        for number, entry in Fields(self.wire, start, end).messages():
            function = entry.message(2) if number == 2 else None
            if function is not None:
                found[entry.text(1)] = self._function(function)
        return found

    def _function(self, function: Fields) -> list[Operation]:
        opset = function.text(2)
        chosen: Fields | None = None
        for number, entry in function.messages():
            if number == 3 and (chosen is None or entry.text(1) == opset):
                chosen = entry.message(2)
        return [] if chosen is None else self._block(chosen, 0)

    def _block(self, block: Fields, depth: int) -> list[Operation]:
        if depth > _MAX_DEPTH:
            raise UnsafeCheckpointError(f"{self.wire.where} nests more than {_MAX_DEPTH} blocks")
        operations = []
        for number, part in block.messages():
            if number == 3:
                self._room.take(_OPERATION)
                operations.append(self._operation(part, depth))
        return operations

    def _operation(self, fields: Fields, depth: int) -> Operation:
        operation = Operation()
        for number, part in fields.messages():
            self._room.take(_INPUT)
            if number == 1:
                operation.kind = part.as_text()[:256]
            elif number == 2:
                argument = part.message(2)
                bound = [] if argument is None else self._bindings(argument)
                operation.inputs[part.text(1)] = bound
            elif number == 3:
                operation.outputs[part.text(1)] = self._output_shape(part)
            elif number == 4:
                operation.blocks.append(self._block(part, depth + 1))
            elif number == 5:
                value = part.message(2)
                if value is not None:
                    operation.attributes[part.text(1)] = self._value(value)
        return operation

    def _bindings(self, argument: Fields) -> list[str | Value]:
        bound: list[str | Value] = []
        for number, binding in argument.messages():
            if number != 1:
                continue
            self._room.take(_INPUT)
            for n, part in binding.messages():
                if n == 1:
                    bound.append(part.as_text())
                elif n == 2:
                    bound.append(self._value(part))
        return bound

    def _output_shape(self, named: Fields) -> Shape | None:
        kind = named.message(2)
        tensor = None if kind is None else kind.message(1)
        return None if tensor is None else self._tensor_type(tensor)[1]

    def _tensor_type(self, fields: Fields) -> tuple[str, Shape | None]:
        element, shape, known = "", [], True
        for number, kind, value, end in self.wire.fields(fields.start, fields.end):
            if number == 1 and kind == VARINT:
                element = ELEMENT_TYPES.get(value, f"type {value}")
            elif number == 3 and kind == BYTES:
                constant = Fields(self.wire, value, end).message(1)
                known = known and constant is not None
                shape.append(0 if constant is None else constant.integer(1))
                if len(shape) > _MAX_RANK:
                    raise self.wire.malformed(f"a tensor of more than {_MAX_RANK} axes", value)
        return element, tuple(shape) if known else None

    def _value(self, fields: Fields) -> Value:
        self._room.take(_VALUE)
        value = Value()
        for number, part in fields.messages():
            if number == 2:
                tensor = part.message(1)
                if tensor is not None:
                    element, shape = self._tensor_type(tensor)
                    value.element, value.shape = element, shape or ()
            elif number == 3:
                tensor = part.message(1)
                if tensor is not None:
                    self._payload(value, tensor)
            elif number == 5:
                value.blob = (part.text(1), part.integer(2))
        return value

    def _payload(self, value: Value, tensor: Fields) -> None:
        for number, part in tensor.messages():
            if number == 7:
                value.payload = "bytes"
            elif number in _PAYLOADS:
                value.payload = _PAYLOADS[number]
            else:
                continue
            value.ranges = []
            for n, kind, start, end in self.wire.fields(part.start, part.end):
                self._room.take(_RANGE)
                if n == 1 and kind in (BYTES, FIXED32, FIXED64) and start < end:
                    value.ranges.append((start, end))
                elif n == 1 and kind == VARINT:
                    self._unpacked(value, start)
                if len(value.ranges) > _MAX_RANGES:
                    value.ranges = value.ranges[:1]
                    value.payload = "string" if value.payload == "string" else "pieces"
                    break

    def _unpacked(self, value: Value, number: int) -> None:
        # A single number may be written unpacked; nothing longer is.
        value.payload = "number"
        value.ranges = [(signed(number), 0)]


def text_of(wire: WireReader, value: Value) -> str:
    """Return the first text of a constant.

    Parameters
    ----------
    wire
        The file.
    value
        A constant.

    Returns
    -------
    str
        "" where it holds no text.
    """
    if value.payload != "string" or not value.ranges:
        return ""
    return wire.text(*value.ranges[0], limit=256)
