"""PaddlePaddle's ``ProgramDesc``: variables and operators, read from the protobuf wire format."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from filterdb.sources.formats.memory_room import Room
from filterdb.sources.formats.protobuf_wire import BYTES, FIXED32, FIXED64, VARINT, signed

if TYPE_CHECKING:
    from filterdb.sources.formats.protobuf_wire import WireReader
    from filterdb.types import Shape

#: An attribute as far as the reader needs it.
Attribute: TypeAlias = int | float | str | tuple[int, ...] | tuple[float, ...] | None

#: ``VarType.Type`` → numpy's word, for tensors.
ELEMENT_TYPES = {
    0: "bool", 1: "int16", 2: "int32", 3: "int64", 4: "float16", 5: "float32", 6: "float64",
    20: "uint8", 21: "int8", 22: "bfloat16", 23: "complex64", 24: "complex128",
    32: "float8_e4m3fn", 33: "float8_e5m2", 36: "uint16", 37: "uint32", 38: "uint64",
}  # fmt: skip
#: Kinds of variables that are persistable and hold no parameters.
_NO_TENSOR = frozenset({9, 10, 15, 17, 28})
#: Memory for what is made of the messages, in bytes: flat, and for each part.
_FLAT = 128 * 1024 * 1024
_OPERATOR, _VARIABLE, _ATTRIBUTE, _WORD, _NUMBER = 3000, 1500, 400, 150, 40


@dataclass(frozen=True)
class Variable:
    """One variable of a block."""

    name: str
    kind: int = 7
    element: int | None = None
    shape: Shape = ()
    persistable: bool = False

    @property
    def stored(self) -> bool:
        """Whether a file of parameters holds it."""
        return self.persistable and self.kind not in _NO_TENSOR


@dataclass(frozen=True)
class Operator:
    """One operator: parameter name → variable names, and its attributes."""

    kind: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, Attribute] = field(default_factory=lambda: MappingProxyType({}))
    #: Numbers of the blocks it runs.
    blocks: tuple[int, ...] = ()

    def first(self, *parameters: str) -> str | None:
        """Return the first variable given for the first of these parameters that has one."""
        for parameter in parameters:
            names = self.inputs.get(parameter)
            if names:
                return names[0]
        return None

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list attribute, empty where there is none."""
        value = self.attributes.get(name)
        if not isinstance(value, tuple):
            return ()
        return tuple(v for v in value if isinstance(v, int))

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        value = self.attributes.get(name)
        return value if isinstance(value, int) else default

    def text(self, name: str) -> str:
        """Return a string attribute, empty where there is none."""
        value = self.attributes.get(name)
        return value if isinstance(value, str) else ""

    def real(self, name: str) -> float | None:
        """Return a float attribute."""
        value = self.attributes.get(name)
        return value if isinstance(value, float) else None


@dataclass
class Block:
    """Variables and operators of one block."""

    variables: dict[str, Variable] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)


@dataclass
class Program:
    """A network."""

    blocks: list[Block] = field(default_factory=list)
    version: int = 0

    def variables(self) -> dict[str, Variable]:
        """Return the variables of all blocks by name; a stored one wins."""
        found: dict[str, Variable] = {}
        for block in self.blocks:
            for name, variable in block.variables.items():
                if name not in found or variable.stored:
                    found[name] = variable
        return found


class ProgramParser:
    """Parses a ``ProgramDesc``.

    Parameters
    ----------
    wire
        The file's bytes.
    """

    def __init__(self, wire: WireReader) -> None:
        self.wire = wire
        self._room = Room(len(wire.data), flat=_FLAT, where=wire.where)

    def program(self) -> Program:
        """Parse the whole file.

        Returns
        -------
        Program
            Its blocks in order.

        Raises
        ------
        SourceError
            If it is damaged or absurdly large.
        """
        program = Program()
        for number, kind, value, end in self.wire.fields(0, len(self.wire.data)):
            if number == 1 and kind == BYTES:
                self._room.take(_VARIABLE)
                program.blocks.append(self._block(value, end))
            elif number == 4 and kind == BYTES:
                for n, k, v, _ in self.wire.fields(value, end):
                    program.version = signed(v) if (n, k) == (1, VARINT) else program.version
        return program

    def _block(self, start: int, end: int) -> Block:
        block = Block()
        for number, kind, value, stop in self.wire.fields(start, end):
            if number == 3 and kind == BYTES:
                variable = self._variable(value, stop)
                block.variables[variable.name] = variable
                self._room.take(_VARIABLE)
            elif number == 4 and kind == BYTES:
                block.operators.append(self._operator(value, stop))
                self._room.take(_OPERATOR)
        return block

    def _variable(self, start: int, end: int) -> Variable:
        name, persistable, kind = "", False, 7
        element: int | None = None
        shape: Shape = ()
        for number, wire, value, stop in self.wire.fields(start, end):
            if number == 1 and wire == BYTES:
                name = self.wire.text(value, stop)
            elif number == 2 and wire == BYTES:
                kind, element, shape = self._type(value, stop)
            elif number == 3 and wire == VARINT:
                persistable = bool(value)
        return Variable(name, kind, element, shape, persistable)

    def _type(self, start: int, end: int) -> tuple[int, int | None, Shape]:
        kind = 7
        element: int | None = None
        shape: Shape = ()
        for number, wire, value, stop in self.wire.fields(start, end):
            if number == 1 and wire == VARINT:
                kind = value
            elif number == 2 and wire == BYTES:  # SelectedRows
                element, shape = self.tensor_type(value, stop)
            elif number == 3 and wire == BYTES:
                for n, w, v, s in self.wire.fields(value, stop):
                    if n == 1 and w == BYTES:
                        element, shape = self.tensor_type(v, s)
        return kind, element, shape

    def tensor_type(self, start: int, end: int) -> tuple[int, Shape]:
        """Parse a ``TensorDesc``.

        Parameters
        ----------
        start, end
            Its byte range.

        Returns
        -------
        tuple
            Element type and shape.
        """
        element, dims = 5, []
        for number, wire, value, stop in self.wire.fields(start, end):
            if number == 1 and wire == VARINT:
                element = value
            elif number == 2 and wire in (VARINT, BYTES):
                self._take_numbers(wire, value, stop)
                dims += self.wire.integers(wire, value, stop)
        return element, tuple(dims)

    def _operator(self, start: int, end: int) -> Operator:
        kind = ""
        inputs: dict[str, tuple[str, ...]] = {}
        outputs: dict[str, tuple[str, ...]] = {}
        attributes: dict[str, Attribute] = {}
        blocks: list[int] = []
        for number, wire, value, stop in self.wire.fields(start, end):
            if wire != BYTES:
                continue
            if number == 3:
                kind = self.wire.text(value, stop, limit=256)
            elif number in (1, 2):
                self._room.take(_ATTRIBUTE)
                name, arguments = self._arguments(value, stop)
                (inputs if number == 1 else outputs)[name] = arguments
            elif number == 4:
                self._room.take(_ATTRIBUTE)
                name, attribute, runs = self._attribute(value, stop)
                attributes[name] = attribute
                blocks += runs
        return Operator(kind, inputs, outputs, attributes, tuple(blocks))

    def _take_numbers(self, wire: int, value: int, end: int) -> None:
        self._room.take(_NUMBER * (end - value if wire == BYTES else 1))

    def _arguments(self, start: int, end: int) -> tuple[str, tuple[str, ...]]:
        name, arguments = "", []
        for number, wire, value, stop in self.wire.fields(start, end):
            if number == 1 and wire == BYTES:
                name = self.wire.text(value, stop, limit=256)
            elif number == 2 and wire == BYTES:
                self._room.take(_WORD + stop - value)
                arguments.append(self.wire.text(value, stop))
        return name, tuple(arguments)

    def _attribute(self, start: int, end: int) -> tuple[str, Attribute, list[int]]:
        name = ""
        attribute: Attribute = None
        whole: list[int] = []
        real: list[float] = []
        blocks: list[int] = []
        for number, wire, value, stop in self.wire.fields(start, end):
            if number == 1 and wire == BYTES:
                name = self.wire.text(value, stop, limit=256)
            elif number in (3, 10, 13) and wire == VARINT:
                attribute = _int32(value) if number == 3 else signed(value)
            elif number == 4 and wire == FIXED32:
                attribute = self.wire.float32(value)
            elif number == 19 and wire == FIXED64:
                attribute = float(struct.unpack("<d", self.wire.data[value:stop])[0])
            elif number == 5 and wire == BYTES:
                attribute = self.wire.text(value, stop, limit=256)
            elif number in (6, 15) and wire in (VARINT, BYTES):
                self._take_numbers(wire, value, stop)
                whole += self.wire.integers(wire, value, stop)
            elif number == 7 and wire in (FIXED32, BYTES):
                self._take_numbers(wire, value, stop)
                real += self.wire.floats(wire, value, stop)
            elif number in (12, 14) and wire in (VARINT, BYTES):
                self._take_numbers(wire, value, stop)
                blocks += self.wire.integers(wire, value, stop)
        if attribute is None and (whole or real):
            attribute = tuple(whole) if whole else tuple(real)
        return name, attribute, blocks


def _int32(value: int) -> int:
    whole = signed(value)
    return whole if abs(whole) < 1 << 31 else (value & 0xFFFF_FFFF) - (1 << 32)
