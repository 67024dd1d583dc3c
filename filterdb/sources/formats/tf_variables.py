"""Which part of a SavedModel's graph is the network, and which variables it reads."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

from filterdb.sources.formats.tf_graph_proto import Graph, Library
from filterdb.sources.formats.tf_inline import inline, needed
from filterdb.sources.formats.tf_object_graph import VALUE_KEY
from filterdb.sources.formats.tf_operations import Operation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from filterdb.sources.formats.tf_meta_graph import MetaGraph
    from filterdb.sources.formats.tf_object_graph import ObjectGraph

#: Operations that stand for a variable.
VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable", "AutoReloadVariable"})
_PASS = frozenset({"Identity", "ReadVariableOp", "Cast", "StopGradient", "Enter", "IdentityN"})
_CONVOLUTIONS = frozenset({
    "Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "Conv3DBackpropInputV2",
    "_FusedConv2D", "XlaConvV2", "XlaConv",
})  # fmt: skip
_TRAINING = re.compile(r"(^|/)(gradients|gradient_tape|save|report_uninitialized\w*)(_\d+)?/")
_MOST_SIGNATURES = 16
_SAVE = "SaveV2"


def variable_keys(found: MetaGraph) -> dict[str, str]:
    """Find the checkpoint's key of each variable by the operation that would save it.

    Parameters
    ----------
    found
        A graph.

    Returns
    -------
    dict of str to str
        Name of the variable's operation → key; by its own name where nothing saves it.
    """
    library = found.library
    saving = {
        name
        for name, function in library.functions.items()
        if any(o.op == _SAVE for o in function.body.operations)
    }
    roots = [
        o.name for o in library.graph.operations if o.op == _SAVE or o.attributes.get("f") in saving
    ]
    keys = {o.name: _own_name(o) for o in library.graph.operations if o.op in VARIABLES}
    if not roots:
        return keys
    graph = inline(library, roots=roots)
    by_name = {o.name: o for o in graph.operations}
    for operation in graph.operations:
        if operation.op != _SAVE or len(operation.inputs) < 3:
            continue
        constant = graph.constants.get(operation.inputs[1].split(":", 1)[0])
        names = found.parser.strings(constant) if constant is not None else ()
        for key, value in zip(names, operation.inputs[3:], strict=False):
            handle = _origin(value, by_name)
            if handle is not None:
                keys[handle] = key
    return keys


def _own_name(operation: Operation) -> str:
    shared = operation.attributes.get("shared_name")
    return shared if isinstance(shared, str) and shared else operation.name


def _origin(value: str, by_name: Mapping[str, Operation]) -> str | None:
    name = value.split(":", 1)[0]
    for _ in range(64):
        operation = by_name.get(name)
        if operation is None:
            return None
        if operation.op in VARIABLES:
            return name
        if operation.op not in _PASS or not operation.inputs:
            return None
        name = operation.inputs[0].split(":", 1)[0]
    return None


def choose_graph(
    found: MetaGraph, keys: Mapping[str, str], objects: ObjectGraph | None
) -> tuple[Graph, dict[str, str]]:
    """Take the part of a model that computes its outputs.

    Parameters
    ----------
    found
        The graph.
    keys
        See :func:`variable_keys`.
    objects
        Objects of the checkpoint.

    Returns
    -------
    tuple of (Graph, dict of str to str)
        Operations without calls; names of those that stand for variables → key.
    """
    library = found.library
    roots = _signatures(found)
    graph = inline(library, roots=roots) if roots else _inference(library)
    if not _kernels(graph):
        other, bound = _bound_function(found, objects)
        if _kernels(other):
            return other, bound
    aliases = {o.name: keys[o.name] for o in graph.operations if o.name in keys}
    aliases |= _joined(graph, aliases)
    return graph, aliases


def _inference(library: Library) -> Graph:
    """Leave training out of a graph that does not say what its outputs are."""
    graph = library.graph
    kept = [o for o in graph.operations if not _TRAINING.search(o.name)]
    names = {o.name for o in kept}
    constants = {n: c for n, c in graph.constants.items() if n in names}
    return inline(Library(Graph(kept, constants), library.functions))


def _kernels(graph: Graph) -> int:
    return sum(o.op in _CONVOLUTIONS for o in graph.operations)


def _signatures(found: MetaGraph) -> list[str]:
    """Return the outputs of the signatures that cover the model, each part once."""
    reached: dict[str, set[str]] = {}
    for name, values in list(found.signatures.items())[:_MOST_SIGNATURES]:
        if name.startswith("__saved_model"):
            continue
        graph = needed(found.library.graph, values)
        reached[name] = {o.name for o in graph.operations if o.op in VARIABLES} or {
            o.name for o in graph.operations
        }
    covered: set[str] = set()
    chosen: list[str] = []
    for name in sorted(reached, key=lambda n: (-len(reached[n]), n != "serving_default", n)):
        fresh = reached[name] - covered
        # A second way into the same network is not a second network.
        if 2 * len(fresh) > len(reached[name]) or not chosen:
            chosen += found.signatures[name]
            covered |= reached[name]
    return chosen


def _joined(graph: Graph, aliases: Mapping[str, str]) -> dict[str, str]:
    """Find where the parts of a partitioned variable are put together."""
    by_name = {o.name: o for o in graph.operations}
    joined: dict[str, str] = {}
    for operation in graph.operations:
        if operation.op not in ("ConcatV2", "Concat") or len(operation.inputs) < 3:
            continue
        parts = operation.inputs[:-1] if operation.op == "ConcatV2" else operation.inputs[1:]
        handles = [_origin(value, by_name) for value in parts]
        keys = {aliases.get(h) if h is not None else None for h in handles}
        if len(keys) == 1 and len(set(handles)) > 1:
            key = keys.pop()
            if key is not None:
                joined[operation.name] = key
    return joined


def _bound_function(found: MetaGraph, objects: ObjectGraph | None) -> tuple[Graph, dict[str, str]]:
    """Take the function with the most convolutions, its variables bound as the model says."""
    best: tuple[Graph, dict[str, str]] = (Graph(), {})
    if objects is None:
        return best
    keys = _object_keys(found.children, objects)
    functions = found.library.functions
    listed = [n for n in found.bound if n in functions]
    # Whoever calls others is larger than it looks: begin with what binds the most variables.
    listed.sort(key=lambda n: (-len(found.bound[n]), n))
    for name in listed[:_MOST_SIGNATURES]:
        bound, arguments = found.bound[name], functions[name].arguments
        free = arguments[: max(0, len(arguments) - len(bound))]
        inputs = [Operation(f"input/{a}", "Placeholder", (), {}) for a in free]
        handles = {f"object/{i}": keys.get(i, "") for i in bound}
        values = [*(o.name for o in inputs), *(f"object/{i}" for i in bound)]
        call = Operation("call", "PartitionedCall", tuple(values), {"f": name})
        variables = [Operation(h, "VarHandleOp", (), {}) for h in handles]
        graph = inline(Library(Graph([*inputs, *variables, call], {}), functions))
        if _kernels(graph) > _kernels(best[0]):
            best = (graph, {h: key for h, key in handles.items() if key})
    return best


def _object_keys(children: Sequence[Mapping[str, int]], objects: ObjectGraph) -> dict[int, str]:
    """Walk model and checkpoint together; object of the model → key of its variable."""
    found: dict[int, str] = {}
    seen = {0}
    waiting = deque([(0, 0)])
    while waiting:
        here, there = waiting.popleft()
        if here >= len(children) or there >= len(objects.children):
            continue
        for key in objects.keys[there]:
            if key.endswith(VALUE_KEY):
                found[here] = key
        below = objects.children[there]
        for name, target in children[here].items():
            if name in below and target not in seen:
                seen.add(target)
                waiting.append((target, below[name]))
    return found
