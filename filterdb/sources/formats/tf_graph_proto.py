"""TensorFlow graphs as protobuf (``graph.proto``, ``function.proto``); values stay in the file."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.protobuf_wire import (
    BYTES,
    FIXED32,
    VARINT,
    WireReader,
    signed,
)
from filterdb.sources.formats.tf_operations import Attribute, Operation
from filterdb.sources.formats.tf_types import Constant, read_constant, read_shape

#: Operations of one file, functions included. Each costs up to a kilobyte of memory.
_MAX_OPERATIONS = 150_000
_MAX_INPUTS = 1_000_000
_LONGEST_LIST = 64
#: What the readers ask for; other attributes are passed over.
_WANTED = frozenset({
    "strides", "dilations", "padding", "explicit_paddings", "data_format", "epsilon", "fused_ops",
    "f", "body", "cond", "then_branch", "else_branch", "branches", "mode", "shared_name",
    "narrow_range", "axis", "_output_shapes", "shape", "is_training", "block_shape", "function",
})  # fmt: skip
_CONSTANTS = frozenset({"Const", "HostConst"})


@dataclass(frozen=True)
class Graph:
    """A list of operations, and the constants among them.

    Parameters
    ----------
    operations
        In file order.
    constants
        Name of a Const operation → its value; None where the file leaves it out.
    """

    operations: list[Operation] = field(default_factory=list)
    constants: dict[str, Constant | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Function:
    """A function of the library.

    Parameters
    ----------
    name
        As operations call it.
    arguments
        Names of its inputs.
    results
        Its outputs, as values of its body: "node:output:0".
    result_names
        Their names, in the same order.
    body
        Its operations.
    """

    name: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    result_names: tuple[str, ...]
    body: Graph


@dataclass(frozen=True)
class Library:
    """A GraphDef: the graph, and the functions it may call."""

    graph: Graph
    functions: dict[str, Function]

    @classmethod
    def empty(cls) -> Library:
        """Return one without operations."""
        return cls(Graph(), {})


class GraphParser:
    """Parses the graphs of one file.

    Parameters
    ----------
    wire
        Its bytes.
    """

    def __init__(self, wire: WireReader) -> None:
        self.wire = wire
        # Within twice the size of the file and a constant, whatever it is made of.
        self._operations_left = _MAX_OPERATIONS + len(wire.data) // 1024
        self._inputs_left = _MAX_INPUTS

    def graph(self, start: int, end: int) -> Library:
        """Parse a ``GraphDef``.

        Parameters
        ----------
        start, end
            Its byte range.

        Returns
        -------
        Library
            Without values.

        Raises
        ------
        MalformedFileError
            If it is damaged.
        UnsafeCheckpointError
            If it has more operations than any network.
        """
        graph = Graph()
        functions: dict[str, Function] = {}
        for number, kind, value, stop in self.wire.fields(start, end):
            if kind != BYTES:
                continue
            if number == 1:
                self._node(value, stop, graph)
            elif number == 2:
                for field_number, inner, first, last in self.wire.fields(value, stop):
                    if field_number == 1 and inner == BYTES:
                        function = self._function(first, last)
                        functions[function.name] = function
        return Library(graph, functions)

    def strings(self, constant: Constant) -> tuple[str, ...]:
        """Read a constant of texts.

        Parameters
        ----------
        constant
            Any constant.

        Returns
        -------
        tuple of str
            Empty where it holds no texts.
        """
        if constant.dtype != "string":
            return ()
        return tuple(
            self.wire.text(a, b, limit=4096) for kind, a, b in constant.pieces if kind == BYTES
        )

    def _function(self, start: int, end: int) -> Function:
        name, body = "", Graph()
        arguments: tuple[str, ...] = ()
        result_names: tuple[str, ...] = ()
        results: dict[str, str] = {}
        for number, kind, value, stop in self.wire.fields(start, end):
            if kind != BYTES:
                continue
            if number == 1:
                name, arguments, result_names = self._signature(value, stop)
            elif number == 3:
                self._node(value, stop, body)
            elif number == 4:
                key, inner = self._pair(value, stop)
                results[key] = self.wire.text(*inner) if inner else ""
        return Function(
            name, arguments, tuple(results.get(r, "") for r in result_names), result_names, body
        )

    def _signature(self, start: int, end: int) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        name = ""
        arguments: list[str] = []
        results: list[str] = []
        for number, kind, value, stop in self.wire.fields(start, end):
            if kind == BYTES and number == 1:
                name = self.wire.text(value, stop)
            elif kind == BYTES and number in (2, 3):
                (arguments if number == 2 else results).append(self._name(value, stop))
        self._spend_inputs(len(arguments) + len(results))
        return name, tuple(arguments), tuple(results)

    def _name(self, start: int, end: int) -> str:
        for number, kind, value, stop in self.wire.fields(start, end):
            if number == 1 and kind == BYTES:
                return self.wire.text(value, stop)
        return ""

    def _node(self, start: int, end: int, graph: Graph) -> None:
        self._operations_left -= 1
        if self._operations_left < 0:
            raise UnsafeCheckpointError(
                f"{self.wire.where} holds more operations than any network of its size"
            )
        name = op = ""
        inputs: list[str] = []
        attributes: dict[str, Attribute] = {}
        constant: Constant | None = None
        for number, kind, value, stop in self.wire.fields(start, end):
            if kind != BYTES:
                continue
            if number == 1:
                name = self.wire.text(value, stop, limit=4096)
            elif number == 2:
                op = self.wire.text(value, stop, limit=256)
            elif number == 3:
                self._spend_inputs(1)
                text = self.wire.text(value, stop, limit=4096)
                if not text.startswith("^"):
                    inputs.append(text)
            elif number == 5:
                key, inner = self._pair(value, stop)
                if key == "value" and inner is not None and op in _CONSTANTS:
                    constant = self._constant(*inner, name)
                elif key in _WANTED and inner is not None:
                    attributes[key] = self._attribute(*inner, name)
        if op in _CONSTANTS:
            if name in graph.constants:
                raise MalformedFileError(f"{self.wire.where}: two constants are named {name!r}")
            graph.constants[name] = constant
        graph.operations.append(Operation(name, op, tuple(inputs), attributes))

    def _pair(self, start: int, end: int) -> tuple[str, tuple[int, int] | None]:
        key, inner = "", None
        for number, kind, value, stop in self.wire.fields(start, end):
            if number == 1 and kind == BYTES:
                key = self.wire.text(value, stop, limit=4096)
            elif number == 2 and kind == BYTES:
                inner = (value, stop)
        return key, inner

    def _constant(self, start: int, end: int, name: str) -> Constant | None:
        for number, kind, value, stop in self.wire.fields(start, end):
            if number == 8 and kind == BYTES:
                return read_constant(self.wire, value, stop, what=name)
        return None

    def _attribute(self, start: int, end: int, name: str) -> Attribute:
        wire = self.wire
        for number, kind, value, stop in wire.fields(start, end):
            if number == 1 and kind == BYTES:
                return self._list(value, stop, name)
            if number == 2 and kind == BYTES:
                return wire.text(value, stop, limit=4096)
            if number == 3 and kind == VARINT:
                return signed(value)
            if number == 4 and kind == FIXED32:
                return float(struct.unpack("<f", wire.data[value:stop])[0])
            if number == 5 and kind == VARINT:
                return bool(value)
            if number == 7 and kind == BYTES:
                return read_shape(wire, value, stop, what=name)
            if number == 10 and kind == BYTES:
                return self._name(value, stop)
        return None

    def _list(self, start: int, end: int, name: str) -> Attribute:
        whole: list[int] = []
        words: list[str] = []
        for number, kind, value, stop in self.wire.fields(start, end):
            if number == 3 and (kind == VARINT or stop - value <= 10 * _LONGEST_LIST):
                whole += self.wire.integers(kind, value, stop)
            elif number == 2 and kind == BYTES:
                words.append(self.wire.text(value, stop, limit=256))
            elif number == 9 and kind == BYTES:
                words.append(self._name(value, stop))
            elif number == 7 and kind == BYTES and not whole:  # of several outputs, the first
                whole += read_shape(self.wire, value, stop, what=name) or ()
            if max(len(whole), len(words)) > _LONGEST_LIST:
                return None
        return tuple(whole) if whole else tuple(words)

    def _spend_inputs(self, count: int) -> None:
        self._inputs_left -= count
        if self._inputs_left < 0:
            raise UnsafeCheckpointError(
                f"{self.wire.where} has operations of more than {_MAX_INPUTS:,} inputs"
            )
