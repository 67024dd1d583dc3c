"""One flat list of operations from nested ONNX graphs.

If and Loop bodies see the names of the graphs around them, sibling bodies repeat names, and local
functions are applied like macros. Here every value gets one name of its own, so that what follows
need not know about nesting. Top-level names stay as they are; inner ones are prefixed by the node
they belong to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.memory_room import Room
from filterdb.sources.formats.onnx_records import (
    MAX_DEPTH,
    Attribute,
    GraphRecord,
    ModelRecord,
    NodeRecord,
    TensorRecord,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Bytes of memory that may be taken for operations, functions expanded, beside as many as the file
#: has; and what one takes, with the node that is made of it.
_ROOM, _OPERATION, _VALUE = 104 * 1024**2, 900, 100


@dataclass(frozen=True)
class Operation:
    """A node whose value names are unique in the file ("" for an absent optional input)."""

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]

    def number(self, name: str, default: float | int) -> float | int:
        """Return a number attribute.

        Parameters
        ----------
        name
            The attribute.
        default
            What ONNX assumes where it is absent.

        Returns
        -------
        float or int
            Its value.
        """
        found = self.attributes.get(name)
        return default if found is None or found.number is None else found.number

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Return a list attribute.

        Parameters
        ----------
        name
            The attribute.

        Returns
        -------
        tuple of int or None
            None where it is absent.
        """
        found = self.attributes.get(name)
        return None if found is None else tuple(int(n) for n in found.numbers)

    def text(self, name: str) -> str:
        """Return a string attribute.

        Parameters
        ----------
        name
            The attribute.

        Returns
        -------
        str
            "" where it is absent.
        """
        found = self.attributes.get(name)
        return "" if found is None else found.text


class _Scope:
    """Names of one graph body, on top of those around it."""

    def __init__(self, outer: _Scope | None, prefix: str) -> None:
        self.outer = outer
        self.prefix = prefix
        self.names: dict[str, str] = {}

    def find(self, name: str) -> str | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return None


class Flattener:
    """Collects the operations and stored tensors of a model.

    Parameters
    ----------
    model
        The parsed file.
    where
        Its name, for messages.
    size
        Bytes of the file.
    """

    def __init__(self, model: ModelRecord, where: str, *, size: int) -> None:
        self.model = model
        self.where = where
        self.operations: list[Operation] = []
        #: Stored tensors by value name, in file order.
        self.tensors: dict[str, TensorRecord] = {}
        #: Functions that were expanded, and how often.
        self.expanded: dict[str, int] = {}
        self._values: set[str] = set()
        self._node_names: set[str] = set()
        self._take = Room(size, flat=_ROOM, where=where).take
        self._body(model.graph, _Scope(None, ""), {}, depth=0)

    def _unique(self, wanted: str, taken: set[str]) -> str:
        name, n = wanted, 2
        while name in taken:
            name, n = f"{wanted}#{n}", n + 1
        taken.add(name)
        return name

    def _declare(self, scope: _Scope, name: str) -> str:
        """Give a value of this scope its name in the flat list."""
        if name in scope.names:
            raise MalformedFileError(
                f"{self.where} computes or stores the value {name!r} twice in one graph"
            )
        unique = self._unique(scope.prefix + name, self._values)
        scope.names[name] = unique
        return unique

    def _body(
        self, graph: GraphRecord, scope: _Scope, given: Mapping[str, Attribute], *, depth: int
    ) -> None:
        """Flatten one graph whose inputs are declared already (or are the model's own)."""
        if depth > MAX_DEPTH:
            raise UnsafeCheckpointError(
                f"{self.where} nests graphs and functions deeper than {MAX_DEPTH} levels"
            )
        for record in graph.initializers:
            # Older files list initializers among the graph's inputs too.
            self.tensors[self._declare(scope, record.name or "initializer")] = record
        for name in graph.inputs:
            if name not in scope.names:
                self._declare(scope, name)
        for node in graph.nodes:
            for output in node.outputs:
                if output:
                    self._declare(scope, output)
        for node in graph.nodes:
            self._node(node, scope, given, depth)

    def _node(
        self, node: NodeRecord, scope: _Scope, given: Mapping[str, Attribute], depth: int
    ) -> None:
        self._take(_OPERATION + _VALUE * (len(node.inputs) + len(node.outputs)))
        # A name nobody declares is an error the runtime would report; here it is just unknown.
        inputs = tuple((scope.find(n) or scope.prefix + n) if n else "" for n in node.inputs)
        outputs = tuple(scope.names[n] if n else "" for n in node.outputs)
        named = node.name or next(filter(None, node.outputs), node.op_type)
        name = self._unique(scope.prefix + named, self._node_names)
        attributes = _bind(node.attributes, given)
        function = self.model.functions.get((node.domain, node.op_type))
        if function is not None:
            self._function(node, function, name, (inputs, outputs), attributes, depth)
            return
        if node.op_type == "Constant" and outputs:
            record = _constant(attributes)
            if record is not None:
                self.tensors[outputs[0]] = record
                return
        inner = self._subgraphs(name, inputs, scope, attributes, given, depth)
        self.operations.append(
            Operation(name, node.op_type, node.domain, (*inputs, *inner), outputs, attributes)
        )

    def _subgraphs(
        self,
        name: str,
        inputs: tuple[str, ...],
        scope: _Scope,
        attributes: Mapping[str, Attribute],
        given: Mapping[str, Attribute],
        depth: int,
    ) -> tuple[str, ...]:
        """Flatten the bodies a node carries; return the names of what they yield."""
        yielded: list[str] = []
        for attribute in attributes.values():
            for graph in attribute.graphs:
                body = _Scope(scope, f"{name}/{attribute.name}/")
                own = {t.name for t in graph.initializers}
                entered = [self._declare(body, n) for n in graph.inputs if n and n not in own]
                if entered:
                    # Loop and Scan hand their inputs to the body.
                    enter = self._unique(f"{body.prefix}inputs", self._node_names)
                    self.operations.append(
                        Operation(enter, "Identity", "filterdb", inputs, tuple(entered), {})
                    )
                self._body(graph, body, given, depth=depth + 1)
                yielded += [found for n in graph.outputs if (found := body.find(n))]
        return tuple(yielded)

    def _function(
        self,
        node: NodeRecord,
        function: GraphRecord,
        name: str,
        values: tuple[tuple[str, ...], tuple[str, ...]],
        attributes: Mapping[str, Attribute],
        depth: int,
    ) -> None:
        """Expand one call of a local function."""
        self.expanded[node.op_type] = self.expanded.get(node.op_type, 0) + 1
        inputs, outputs = values
        body = _Scope(None, f"{name}/")
        for formal, actual in zip(function.inputs, inputs, strict=False):
            body.names[formal] = actual
        for formal in function.inputs[len(inputs) :]:
            body.names[formal] = ""
        self._body(function, body, attributes, depth=depth + 1)
        results = tuple(body.find(formal) or "" for formal in function.outputs)
        for found, wanted in zip(results, outputs, strict=False):
            if found and wanted:
                leave = self._unique(f"{name}/output", self._node_names)
                self.operations.append(
                    Operation(leave, "Identity", "filterdb", (found,), (wanted,), {})
                )


def _bind(
    attributes: Mapping[str, Attribute], given: Mapping[str, Attribute]
) -> Mapping[str, Attribute]:
    """Fill in attributes that refer to those of the function call around them."""
    if not any(a.reference for a in attributes.values()):
        return attributes
    bound = {}
    for name, attribute in attributes.items():
        actual = given.get(attribute.reference) if attribute.reference else attribute
        if actual is not None:
            bound[name] = actual
    return bound


def _constant(attributes: Mapping[str, Attribute]) -> TensorRecord | None:
    """Return the tensor of a Constant node, in whichever attribute it is given."""
    for name, attribute in attributes.items():
        if name in ("value", "sparse_value") and attribute.tensor is not None:
            return attribute.tensor
        if name in ("value_float", "value_int") and attribute.number is not None:
            return _listed((attribute.number,), (), name)
        if name in ("value_floats", "value_ints"):
            return _listed(attribute.numbers, (len(attribute.numbers),), name)
        if name in ("value_string", "value_strings"):
            return TensorRecord("", (), 8)
    return None


def _listed(numbers: tuple[float | int, ...], shape: tuple[int, ...], name: str) -> TensorRecord:
    real = name.startswith("value_float")
    payload = "float_data" if real else "int64_data"
    return TensorRecord("", shape, 1 if real else 7, payload, inline=numbers)


def sort_operations(operations: list[Operation], where: str) -> list[Operation]:
    """Order operations so that each comes after those it reads.

    Parameters
    ----------
    operations
        In file order, which the standard wants sorted; some exporters do not care.
    where
        The file's name, for the message.

    Returns
    -------
    list of Operation
        File order as far as possible.

    Raises
    ------
    MalformedFileError
        If they form a cycle.
    """
    producer = {out: i for i, op in enumerate(operations) for out in op.outputs if out}
    ordered: list[Operation] = []
    # 0 new, 1 waiting for its inputs, 2 placed; depth first, without recursion.
    state = bytearray(len(operations))
    for start in range(len(operations)):
        stack = [start]
        while stack:
            at = stack[-1]
            if state[at] == 2:
                stack.pop()
                continue
            waiting = [producer[n] for n in operations[at].inputs if n in producer]
            waiting = [w for w in waiting if state[w] != 2]
            if not waiting:
                state[at] = 2
                ordered.append(operations[stack.pop()])
                continue
            if state[at] == 1 or at in waiting:
                raise MalformedFileError(
                    f"{where} holds a cycle through operation {operations[at].name!r}"
                )
            state[at] = 1
            stack += reversed(waiting)
    return ordered
