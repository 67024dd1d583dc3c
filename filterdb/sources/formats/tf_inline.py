"""Function calls of a TensorFlow graph, replaced by what they call.

Models of TensorFlow 2 keep their layers in functions: the graph itself holds variables and one
call. Bodies of branches and loops are functions, too; each is taken once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.tf_graph_proto import Graph
from filterdb.sources.formats.tf_operations import Operation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from filterdb.sources.formats.tf_graph_proto import Function, Library

_CALLS = frozenset({
    "PartitionedCall", "StatefulPartitionedCall", "RemoteCall", "TPUPartitionedCall",
    "BatchFunction",
})  # fmt: skip
_LOOPS = frozenset({"While", "StatelessWhile"})
_BRANCHES = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})
#: Calls within calls, and operations that may come of them.
_DEEPEST = 64
_MOST = 200_000
#: Inputs of all operations, and characters of all their names.
_MOST_INPUTS = 2_000_000
_MOST_TEXT = 48 << 20


def inline(library: Library, *, roots: Sequence[str] | None = None) -> Graph:
    """Replace calls by the operations of the functions.

    Parameters
    ----------
    library
        The graph and its functions.
    roots
        Values wanted; operations they do not need are left out. None keeps everything.

    Returns
    -------
    Graph
        Names of operations inside functions are kept where nothing else has them.

    Raises
    ------
    UnsafeCheckpointError
        If functions call one another without end, or make absurdly many operations.
    """
    graph = library.graph
    if roots is not None:
        graph = needed(graph, roots)
    run = _Inliner(library.functions, {o.name for o in graph.operations})
    run.graph(graph, {}, {}, "", 0)
    run.resolve()
    return run.out


def needed(graph: Graph, roots: Sequence[str]) -> Graph:
    """Leave out what some values do not need.

    Parameters
    ----------
    graph
        Any graph.
    roots
        The values wanted.

    Returns
    -------
    Graph
        In the same order.
    """
    by_name = {o.name: o for o in graph.operations}
    seen: set[str] = set()
    waiting = [r.split(":", 1)[0] for r in roots]
    while waiting:
        name = waiting.pop()
        operation = by_name.get(name)
        if operation is None or name in seen:
            continue
        seen.add(name)
        waiting += [i.split(":", 1)[0] for i in operation.inputs]
    kept = [o for o in graph.operations if o.name in seen]
    return Graph(kept, {n: c for n, c in graph.constants.items() if n in seen})


class _Inliner:
    def __init__(self, functions: Mapping[str, Function], taken: set[str]) -> None:
        self._functions = functions
        self._taken = set(taken)
        #: Output of a call → value it stands for.
        self._aliases: dict[str, str] = {}
        self._seen = self._inputs = self._text = 0
        self.out = Graph()

    def graph(
        self,
        graph: Graph,
        arguments: Mapping[str, str],
        renamed: dict[str, str],
        prefix: str,
        depth: int,
    ) -> None:
        """Copy a graph; `renamed` becomes own name → name in the copy."""
        if depth > _DEEPEST:
            raise UnsafeCheckpointError(f"functions call one another more than {_DEEPEST} deep")
        for operation in graph.operations:
            name = operation.name
            if name in renamed:
                raise MalformedFileError(f"two operations of one graph are named {name!r}")
            if depth:
                if name in self._taken:
                    name = f"{prefix}/{name}"
                while name in self._taken:
                    name += "_"
                self._taken.add(name)
            self._spend(operation, name)
            renamed[operation.name] = name
        for operation in graph.operations:
            inputs = tuple(_value(i, arguments, renamed) for i in operation.inputs)
            self._operation(operation, renamed[operation.name], inputs, depth)
            if operation.name in graph.constants:
                self.out.constants[renamed[operation.name]] = graph.constants[operation.name]

    def resolve(self) -> None:
        """Make operations read what the calls stood for."""
        for i, operation in enumerate(self.out.operations):
            inputs = tuple(self._resolved(v) for v in operation.inputs)
            if inputs != operation.inputs:
                self.out.operations[i] = Operation(
                    operation.name, operation.op, inputs, operation.attributes
                )

    def _spend(self, operation: Operation, name: str) -> None:
        self._seen += 1
        self._inputs += len(operation.inputs)
        self._text += len(name)
        if self._seen > _MOST or self._inputs > _MOST_INPUTS or self._text > _MOST_TEXT:
            raise UnsafeCheckpointError(
                f"functions called again and again make more than {_MOST:,} operations"
            )

    def _resolved(self, value: str) -> str:
        for _ in range(2 * _DEEPEST):
            target = self._aliases.get(value)
            if target is None or target == value:
                break
            value = target
        return value

    def _operation(
        self, operation: Operation, name: str, inputs: tuple[str, ...], depth: int
    ) -> None:
        """Copy an operation, or what it calls."""
        bodies, given = _called(operation, inputs, self._functions)
        found = [self._functions[b] for b in bodies if b in self._functions]
        if not found:
            self.out.operations.append(Operation(name, operation.op, inputs, operation.attributes))
            return
        results: list[list[str]] = []
        for k, function in enumerate(found):
            inner: dict[str, str] = {}
            arguments = dict(zip(function.arguments, given, strict=False))
            prefix = name if len(found) == 1 else f"{name}/{k}"
            self.graph(function.body, arguments, inner, prefix, depth + 1)
            results.append([_value(r, arguments, inner) for r in function.results])
        for i, values in enumerate(zip(*results, strict=False)):
            value = values[0]
            if len(values) > 1:  # whichever branch was taken
                value = f"{name}/result{i}"
                self._taken.add(value)
                self.out.operations.append(Operation(value, "Merge", tuple(values), {}))
            self._aliases[f"{name}:{i}" if i else name] = value


def _called(
    operation: Operation, inputs: tuple[str, ...], functions: Mapping[str, Function]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the functions an operation calls, and what it hands over."""

    def word(key: str) -> str:
        value = operation.attributes.get(key)
        return value if isinstance(value, str) else ""

    if operation.op in _CALLS:
        return (word("f"),), inputs
    if operation.op in functions:
        return (operation.op,), inputs
    if operation.op in _LOOPS:
        return (word("body"),), inputs
    if operation.op in _BRANCHES:
        listed = operation.words("branches") or (word("then_branch"), word("else_branch"))
        return listed, inputs[1:]
    return (), ()


def _value(value: str, arguments: Mapping[str, str], renamed: Mapping[str, str]) -> str:
    """Translate a value of a body: an argument, "node:output:0", or "node:0" of a graph."""
    base, _, rest = value.partition(":")
    if base in arguments and base not in renamed:
        return arguments[base]
    name = renamed.get(base, base)
    number = rest.rpartition(":")[2]
    return f"{name}:{int(number[:9])}" if number.isdigit() and int(number[:9]) else name
