"""TensorFlow graphs (``GraphDef``) as nodes, whatever they were written in.

TensorFlow.js keeps a GraphDef as JSON; a frozen graph keeps the same as protobuf. Both come here as
lists of :class:`filterdb.sources.formats.tf_operations.Operation`, plus the names of the constants
the file stores.
"""

from __future__ import annotations

import heapq
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.layers.raw import ConvAttributes, Node, NodeOp, layout_of_rank
from filterdb.sources.formats.tf_widths import Widths

if TYPE_CHECKING:
    from filterdb.sources.formats.tf_operations import Operation
    from filterdb.types import Shape

#: Most operations taken seriously.
MAX_OPERATIONS = 1_000_000
#: Returns the elements of a small integer constant, None where there is none.
SmallConstant: TypeAlias = Callable[[str], tuple[int, ...] | None]

_CONV = {"Conv2D": 2, "_FusedConv2D": 2, "FusedConv2D": 2, "Conv3D": 3}
_DEPTHWISE = {"DepthwiseConv2dNative", "FusedDepthwiseConv2dNative", "_FusedDepthwiseConv2dNative"}
_TRANSPOSED = {"Conv2DBackpropInput": 2, "Conv3DBackpropInputV2": 3}
_BATCH_NORM = {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "_FusedBatchNormEx"}
_LINEAR = {"MatMul", "_FusedMatMul", "BatchMatMul", "BatchMatMulV2"}
_ADD = {"Add", "AddV2", "BiasAdd", "BiasAddV1"}
#: What lets a weight through unchanged.
_PASS = {
    "Identity", "Cast", "StopGradient", "ReadVariableOp", "Enter", "CheckNumerics",
    "Snapshot", "Switch",
    "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVarsPerChannel",
    "QuantizeAndDequantizeV2", "QuantizeAndDequantizeV3", "QuantizeAndDequantizeV4",
}  # fmt: skip
#: What also leaves the channels of an activation in place.
_IDENTITY = _PASS | {
    "Dropout", "SpaceToBatchND", "BatchToSpaceND", "Squeeze", "ExpandDims",
    "PreventGradient", "PlaceholderWithDefault",
}  # fmt: skip
_MAX_EXTENT = 1 << 31
#: Each takes some four hundred bytes of memory while the graph is put in order.
_MAX_INPUTS = 300_000


def graph_nodes(
    operations: Sequence[Operation],
    shapes: Mapping[str, Shape],
    *,
    small_constant: SmallConstant = lambda _name: None,
) -> tuple[Node, ...]:
    """Turn a GraphDef into nodes.

    Parameters
    ----------
    operations
        All nodes, in any order.
    shapes
        Constants the file stores: name of the Const node → shape.
    small_constant
        Reads a constant of a few integers (the block of a SpaceToBatchND).

    Returns
    -------
    tuple of Node
        Without constants, in an order in which they can be computed.

    Raises
    ------
    MalformedFileError
        If operations wait for one another outside of a loop.
    UnsafeCheckpointError
        If they have absurdly many inputs.
    """
    if len(operations) > MAX_OPERATIONS:
        raise MalformedFileError(f"a graph of more than {MAX_OPERATIONS:,} operations")
    if sum(len(operation.inputs) for operation in operations) > _MAX_INPUTS:
        raise UnsafeCheckpointError(f"a graph whose operations have over {_MAX_INPUTS:,} inputs")
    graph = _Graph(operations, shapes, small_constant)
    return tuple(node for operation in graph.ordered() for node in graph.nodes(operation))


#: How TensorFlow calls a constant its converters make of a kernel: after the operation that reads
#: it ("Conv/Conv2D/merged_input", "Conv/Conv2D_weights").
_NAMED_KERNEL = re.compile(
    r"^(?P<layer>.+)/(?P<op>Conv2D|Conv3D|convolution|separable_conv2d|depthwise)"
    r"(?:/merged_input|/ReadVariableOp(?:/resource)?|_weights)$"
)


def named_convolutions(shapes: Mapping[str, Shape]) -> tuple[Node, ...]:
    """Find kernels by the names of the operations they were frozen for, where no graph is at hand.

    Parameters
    ----------
    shapes
        Tensor name → shape, in file order.

    Returns
    -------
    tuple of Node
        Convolutions without edges; names that speak for themselves ("conv1/weights") are left out.
    """
    nodes = []
    for name, shape in shapes.items():
        match = _NAMED_KERNEL.match(name)
        rank = len(shape) - 2
        if match and rank in (2, 3):
            letters = "HWIM" if match["op"] == "depthwise" else "HWIO"
            layout = layout_of_rank(letters, rank)
            weights = {"weight": name}
            nodes.append(Node(match["layer"], "conv", weights=weights, conv=ConvAttributes(layout)))
    return tuple(nodes)


class _Graph:
    def __init__(
        self,
        operations: Sequence[Operation],
        shapes: Mapping[str, Shape],
        small_constant: SmallConstant,
    ) -> None:
        self._operations = operations
        self._shapes = shapes
        self._small_constant = small_constant
        self._by_name = {o.name: o for o in operations}
        self._widths = Widths(operations)
        used: dict[str, dict[str, None]] = {}
        for operation in operations:
            for name in operation.inputs:
                base, value = _split(name)
                used.setdefault(base, {})[value] = None
        self._outputs = {base: tuple(values) for base, values in used.items()}

    def ordered(self) -> list[Operation]:
        """Sort operations by need; ties stay in the file's order. Constants are left out."""
        place = {o.name: i for i, o in enumerate(self._operations)}
        waiting: list[int] = []
        readers: dict[int, list[int]] = {}
        for i, operation in enumerate(self._operations):
            needed = {place[b] for b, _ in map(_split, operation.inputs) if b in place}
            if operation.op in ("Merge", "RefMerge"):  # a loop's way back
                needed = {j for j in needed if "NextIteration" not in self._operations[j].op}
            waiting.append(len(needed))
            for j in needed:
                readers.setdefault(j, []).append(i)
        ready = [i for i, n in enumerate(waiting) if n == 0]
        order: list[int] = []
        while ready:
            i = heapq.heappop(ready)
            order.append(i)
            for j in readers.get(i, ()):
                waiting[j] -= 1
                if waiting[j] == 0:
                    heapq.heappush(ready, j)
        if len(order) < len(waiting):
            stuck = next(o.name for o, n in zip(self._operations, waiting, strict=True) if n > 0)
            raise MalformedFileError(
                f"graph: operations wait for one another, {stuck!r} among them"
            )
        found = [self._operations[i] for i in order]
        kept = [o for o in found if self._constant(o.name) is None and o.op != "Const"]
        for operation in kept:
            self._widths.add(operation, self._emitted(operation))
        return kept

    def nodes(self, operation: Operation) -> Iterator[Node]:
        """Translate one operation."""
        op = operation.op
        if op in _CONV or op in _DEPTHWISE or op in _TRANSPOSED:
            yield from self._convolution(operation)
        elif op in _BATCH_NORM:
            yield self._batch_norm(operation, operation.inputs[1:5])
        elif op in _LINEAR or op in ("Prelu", "GatherV2", "Gather", "ResourceGather"):
            yield self._with_weight(operation)
        elif op in _ADD or op == "Mul":
            yield self._by_constant(operation, "multiply" if op == "Mul" else "add")
        else:
            yield self._node(operation, "identity" if op in _IDENTITY else "other", {})

    def _emitted(self, operation: Operation) -> int | None:
        """Output channels of an operation with a kernel; None for any other."""
        op, inputs = operation.op, operation.inputs
        if len(inputs) < 2 or not (op in _CONV or op in _DEPTHWISE or op in _TRANSPOSED):
            return None
        weight, _ = self._kernel(inputs[1])
        shape = self._shapes[weight] if weight is not None else ()
        if len(shape) < 3:
            return None
        if op in _TRANSPOSED:
            return shape[-2]
        return shape[-1] * shape[-2] if op in _DEPTHWISE else shape[-1]

    def _convolution(self, operation: Operation) -> Iterator[Node]:
        transposed = operation.op in _TRANSPOSED
        weight_input = operation.inputs[1] if len(operation.inputs) > 1 else ""
        weight, one_axis = self._kernel(weight_input)
        fused = operation.words("fused_ops")
        extra = operation.inputs[2:]
        weights = {} if weight is None else {"weight": weight}
        bias = self._constant(extra[0]) if "BiasAdd" in fused and extra else None
        if bias is not None:
            weights["bias"] = bias
        # What is fused behind the convolution becomes nodes of its own, so that nobody takes a
        # BatchNorm behind the activation for one behind the convolution.
        normalised = "FusedBatchNorm" in fused and len(extra) >= 4
        activated = any(w not in ("BiasAdd", "FusedBatchNorm") for w in fused)
        steps = ["convolution", *["batch_norm"] * normalised, *["activation"] * activated]
        values = [(f"{operation.name}/{step}",) for step in steps[:-1]] + [self._written(operation)]
        yield Node(
            operation.name,
            "conv_transpose" if transposed else "conv",
            self._activations(operation.inputs[2:3] if transposed else operation.inputs[:1]),
            values[0],
            weights,
            self._attributes(operation, weight, one_axis=one_axis),
            dynamic_weight=_split(weight_input)[1] or None if weight is None else None,
            source_op=operation.op,
        )
        roles = {r: self._constant(i) for r, i in zip(_VECTORS, extra, strict=False)}
        for step, (before, after) in zip(steps[1:], itertools.pairwise(values), strict=True):
            is_norm = step == "batch_norm"
            yield Node(
                f"{operation.name}/{step}",
                "batch_norm" if is_norm else "other",
                before,
                after,
                {r: c for r, c in roles.items() if c is not None and is_norm},
                epsilon=_epsilon(operation) if is_norm else None,
                source_op=operation.op,
            )

    def _kernel(self, name: str) -> tuple[str | None, bool]:
        """Find the constant behind a kernel, and whether it has one spatial axis only."""
        weight = self._constant(name)
        if weight is not None:
            return weight, False
        producer = self._by_name.get(_split(name)[0])
        if producer is not None and producer.op == "ExpandDims" and producer.inputs:
            # conv1d is a Conv2D whose kernel gets its height on the way.
            weight = self._constant(producer.inputs[0])
            if weight is not None and len(self._shapes[weight]) == 3:
                return weight, True
        return None, False

    def _attributes(
        self, operation: Operation, weight: str | None, *, one_axis: bool
    ) -> ConvAttributes:
        op = operation.op
        rank = _CONV.get(op) or _TRANSPOSED.get(op) or 2
        letters = "HWIM" if op in _DEPTHWISE else "HWOI" if op in _TRANSPOSED else "HWIO"
        layout = layout_of_rank(letters, 1 if one_axis else rank)
        shape = self._shapes[weight] if weight is not None else ()
        groups: int | None = 1
        if op in _DEPTHWISE:
            groups = shape[layout.index("I")] if len(shape) == len(layout) else None
        elif op in _CONV and len(shape) == len(layout):
            # A filter of fewer channels than its input has is a grouped one.
            groups = self._widths.groups(operation.inputs[0], *shape[-2:])
        first = 2 if str(operation.attributes.get("data_format", "")).startswith("NC") else 1
        keep = slice(first + 1, first + rank) if one_axis else slice(first, first + rank)
        stride = _extents(operation.integers("strides"), keep)
        dilation = _extents(operation.integers("dilations"), keep)
        if operation.attributes.get("dilations") is None:
            dilation = (1,) * len(layout[:-2])
        padding = _padding(operation, keep)
        block = self._block(operation)
        if block is not None:
            # Older TensorFlow dilates by spreading the input over the batch.
            dilation, padding = (block if len(block) == len(layout) - 2 else None), None
        return ConvAttributes(layout, groups, stride, dilation, padding)

    def _block(self, operation: Operation) -> tuple[int, ...] | None:
        producer = self._by_name.get(_split(operation.inputs[0])[0]) if operation.inputs else None
        if producer is None or producer.op != "SpaceToBatchND" or len(producer.inputs) < 2:
            return None
        constant = self._constant(producer.inputs[1])
        return (self._small_constant(constant) if constant else None) or ()

    def _batch_norm(self, operation: Operation, vectors: Sequence[str]) -> Node:
        roles = {r: self._constant(i) for r, i in zip(_VECTORS, vectors, strict=False)}
        weights = {r: c for r, c in roles.items() if c is not None}
        return self._node(operation, "batch_norm", weights, epsilon=_epsilon(operation))

    def _with_weight(self, operation: Operation) -> Node:
        gathers = "Gather" in operation.op
        place = 0 if gathers else 1
        weight = self._constant(operation.inputs[place]) if len(operation.inputs) > place else None
        if weight is None or (gathers and len(self._shapes[weight]) != 2):
            return self._node(operation, "other", {})
        weights = {"weight": weight}
        if "BiasAdd" in operation.words("fused_ops") and len(operation.inputs) > 2:
            bias = self._constant(operation.inputs[2])
            weights |= {} if bias is None else {"bias": bias}
        op: NodeOp = "embedding" if gathers else "norm" if operation.op == "Prelu" else "linear"
        return self._node(operation, op, weights)

    def _by_constant(self, operation: Operation, op: NodeOp) -> Node:
        constants = [c for i in operation.inputs if (c := self._constant(i)) is not None]
        # Anchors and grids are added, too; a channel's constant has one long axis, the last.
        if len(constants) == 1 and all(n == 1 for n in self._shapes[constants[0]][:-1]):
            return self._node(operation, op, {"constant": constants[0]})
        return self._node(operation, "other", {})

    def _node(
        self,
        operation: Operation,
        op: NodeOp,
        weights: Mapping[str, str],
        *,
        epsilon: float | None = None,
    ) -> Node:
        return Node(
            operation.name, op, self._activations(operation.inputs), self._written(operation),
            weights, epsilon=epsilon, source_op=operation.op,
        )  # fmt: skip

    def _written(self, operation: Operation) -> tuple[str, ...]:
        used = self._outputs.get(operation.name, ())
        return (operation.name, *(v for v in used if v != operation.name))

    def _activations(self, inputs: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            value
            for base, value in map(_split, inputs)
            if self._constant(base) is None and not self._closes_loop(base)
        )

    def _closes_loop(self, name: str) -> bool:
        producer = self._by_name.get(name)
        return producer is not None and "NextIteration" in producer.op

    def _constant(self, name: str) -> str | None:
        """Name of the stored constant behind a value, looking through what passes it on."""
        base = _split(name)[0]
        for _ in range(64):
            if base in self._shapes:
                return base
            producer = self._by_name.get(base)
            if producer is None or producer.op not in _PASS or not producer.inputs:
                return None
            base = _split(producer.inputs[0])[0]
        return None


_VECTORS = ("gamma", "beta", "mean", "var")


def _split(name: str) -> tuple[str, str]:
    """Split an input into its node and its value: "a:0" is "a", "a:1" stays."""
    base, colon, output = name.rpartition(":")
    if not colon or not output.isdigit():
        return name, name
    return base, base if int(output[:9]) == 0 else name


def _epsilon(operation: Operation) -> float | None:
    value = operation.attributes.get("epsilon")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 1e-4  # TensorFlow's default for the attribute
    return float(value) if math.isfinite(value) and value >= 0 else None


def _extents(values: tuple[int, ...] | None, keep: slice) -> tuple[int, ...] | None:
    kept = list(values)[keep] if values is not None else []
    if len(kept) != keep.stop - keep.start or any(not 0 < v < _MAX_EXTENT for v in kept):
        return None
    return tuple(kept)


def _padding(operation: Operation, keep: slice) -> tuple[int, ...] | None:
    word = operation.attributes.get("padding")
    if word == "VALID":
        return (0,) * int(keep.stop - keep.start)
    pairs = operation.integers("explicit_paddings") if word == "EXPLICIT" else None
    if pairs is None or len(pairs) < 2 * keep.stop or any(not 0 <= v < _MAX_EXTENT for v in pairs):
        return None
    begin: tuple[int, ...] = pairs[0::2][keep]
    end: tuple[int, ...] = pairs[1::2][keep]
    return begin if begin == end else begin + end
