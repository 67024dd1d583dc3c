"""OpenVINO's layers as nodes, and what happens to constants before a layer reads them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from filterdb.errors import MalformedFileError
from filterdb.layers.raw import SPATIAL_LETTERS, ConvAttributes, Node, NodeOp
from filterdb.sources.formats.constant_pool import ConstantPool, unique_name
from filterdb.sources.formats.graph_constants import MAX_STEPS, Constant, number
from filterdb.sources.formats.openvino_old import OldWeights, old_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from filterdb.layers.raw import Tensor
    from filterdb.sources.formats.openvino_xml import Layer, Network, PortMap

#: (scope, layer, output port).
Source: TypeAlias = tuple[int, str, str]

_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution", "BinaryConvolution"})
_TRANSPOSED = frozenset(
    {"ConvolutionBackpropData", "GroupConvolutionBackpropData", "Deconvolution"}
)
_DEFORMABLE = frozenset({"DeformableConvolution"})
#: Type → place of the weight among the inputs.
_LINEAR = {"MatMul": 1, "FullyConnected": 1, "Gemm": 1}
_RECURRENT = frozenset(
    {"LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell", "RNNCell"}
)
_IDENTITY = frozenset({"Convert", "ConvertLike", "FakeQuantize", "FakeConvert", "Result"})
_NORMS = frozenset({"PReLU", "PRelu", "Normalize", "NormalizeL2", "MVN", "GroupNormalization"})
_ARITHMETIC: Mapping[str, str] = {
    "Add": "add", "Subtract": "subtract", "Multiply": "multiply", "Divide": "divide",
}  # fmt: skip
_MOVED = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Transpose"})
_MAX_EXTENT = 1 << 31


class NetworkTranslator:
    """Turns a network into nodes and tensors.

    Parameters
    ----------
    network
        The parsed ``.xml``.
    stored
        Its constants: index of the layer → what lies in the ``.bin``, by role.
    where
        The file's name, for messages.
    """

    def __init__(
        self, network: Network, stored: Mapping[int, Mapping[str, Constant]], where: str
    ) -> None:
        self.network = network
        self.where = where
        self.nodes: list[Node] = []
        self._stored = stored
        self.pool = ConstantPool({c.base: c for roles in stored.values() for c in roles.values()})
        self._index: dict[tuple[int, str], int] = {}
        for i, layer in enumerate(network.layers):
            if self._index.setdefault((layer.scope, layer.identity), i) != i:
                raise MalformedFileError(f"{where}: two layers have the id {layer.identity!r}")
        self._aliases = self._links()
        self._constants: dict[Source, Constant | None] = {}
        self._names: dict[str, int] = {}
        for i, layer in enumerate(network.layers):
            self._layer(i, layer)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return every constant, as the graph uses it."""
        return self.pool.tensors()

    def _links(self) -> dict[Source, Source]:
        """Join the bodies of loops and branches with what is around them."""
        aliases: dict[Source, Source] = {}
        for layer in self.network.layers:
            for body, scope in layer.bodies:
                for mapped in layer.maps:
                    if mapped.body == body:
                        self._link(layer, scope, mapped, aliases)
        return aliases

    def _link(
        self, layer: Layer, scope: int, mapped: PortMap, aliases: dict[Source, Source]
    ) -> None:
        index = self._index.get((scope, mapped.internal))
        if index is None:
            return
        inner = self.network.layers[index]
        if mapped.is_input:
            source = self.network.edges.get((layer.scope, layer.identity, mapped.external))
            if source is not None and not mapped.sliced and inner.kind == "Parameter":
                for port in inner.outputs:
                    aliases.setdefault((scope, mapped.internal, port), (layer.scope, *source))
        elif inner.kind == "Result" and inner.inputs:
            inside = self.network.edges.get((scope, mapped.internal, inner.inputs[0]))
            if inside is not None:
                outer = (layer.scope, layer.identity, mapped.external)
                aliases.setdefault(outer, (scope, *inside))

    def _sources(self, layer: Layer) -> list[Source | None]:
        """Where each input comes from, in the order of the ports."""
        found: list[Source | None] = []
        for port in layer.inputs:
            edge = self.network.edges.get((layer.scope, layer.identity, port))
            source: Source | None = None if edge is None else (layer.scope, *edge)
            for _ in range(MAX_STEPS):
                if source is None or source not in self._aliases:
                    break
                source = self._aliases[source]
            found.append(source)
        return found

    def constant(self, source: Source | None, depth: int = 0) -> Constant | None:
        """Return the constant behind a value, None where it depends on the input."""
        if source is None or depth > MAX_STEPS:
            return None
        if source in self._constants:
            return self._constants[source]
        self._constants[source] = None  # a cycle has no value
        index = self._index.get(source[:2])
        found = None if index is None else self._computed(index, source, depth + 1)
        self._constants[source] = found
        return found

    def _computed(self, index: int, source: Source, depth: int) -> Constant | None:
        layer = self.network.layers[index]
        if layer.kind == "Const":
            return next(iter(self._stored.get(index, {}).values()), None)
        kind = layer.kind
        if not (kind in _IDENTITY or kind in _ARITHMETIC or kind in _MOVED):
            return None
        inputs = [self.constant(s, depth) for s in self._sources(layer)]
        if not inputs or any(c is None for c in inputs):
            return None
        values = [c for c in inputs if c is not None]
        if kind in _ARITHMETIC:
            return _arithmetic(_ARITHMETIC[kind], values)
        if kind == "Transpose":
            return _transposed(values)
        if kind in _MOVED:
            return values[0].reshaped(layer.outputs.get(source[2], ()))
        if kind == "FakeQuantize":
            levels = _whole(layer.data.get("levels", ""))
            if len(values) != 5 or levels is None or levels < 2:
                return None
            return values[0].combined("fake_quantise", *values[1:], number(levels))
        return values[0]

    def _layer(self, index: int, layer: Layer) -> None:
        kind = layer.kind
        roles = self._stored.get(index, {})
        sources = self._sources(layer)
        if kind in _CONVOLUTIONS or kind in _TRANSPOSED or kind in _DEFORMABLE:
            self._convolution(layer, roles, sources)
            return
        if kind == "Const" or layer.bodies or (kind == "Parameter" and layer.scope):
            return
        values = [self.constant(s) for s in sources]
        if sources and all(c is not None for c in values) and kind != "Result":
            return  # computed before the network runs
        weights: dict[str, str] = {r: self.pool.use(c) for r, c in roles.items()}
        op: NodeOp = "identity" if kind in _IDENTITY else "other"
        epsilon = None
        if kind in _LINEAR or kind in _RECURRENT:
            op, weights = self._linear(kind, weights, values)
        elif kind in _NORMS:
            op = "norm"
            if len(values) > 1 and values[1] is not None:
                weights["weight"] = self.pool.use(values[1])
        elif kind == "BatchNormInference":
            op, weights, epsilon = self._batch_norm(layer, sources)
        elif kind == "Gather" and values[0] is not None and len(values[0].shape) == 2:
            op, weights = "embedding", {"weight": self.pool.use(values[0])}
        elif kind in ("Add", "Multiply", "Eltwise"):
            op, weights = self._elementwise(layer, values)
        elif kind == "ScaleShift" and roles:
            self._scale_shift(layer, weights, sources)
            return
        self._node(layer, op, weights, sources, epsilon=epsilon)

    def _convolution(
        self, layer: Layer, roles: Mapping[str, Constant], sources: list[Source | None]
    ) -> None:
        place = 2 if layer.kind in _DEFORMABLE else 1
        given = sources[place] if len(sources) > place else None
        constant = self.constant(given)
        transposed = layer.kind in _TRANSPOSED
        kernel = old_weights(layer, roles, constant, transposed=transposed, where=self.where)
        if kernel is None and constant is not None:
            kernel = _grouped(layer, constant)
        weights = {}
        if kernel is not None:
            weights["weight"] = self.pool.use(_floats(layer, kernel.constant))
        bias = roles.get("biases")
        if bias is not None:
            weights["bias"] = self.pool.use(bias)
        attributes = _attributes(layer, kernel, transposed=transposed)
        dynamic = None if kernel is not None or given is None else _value(given)
        self._node(
            layer, "conv_transpose" if transposed else "conv", weights, sources,
            attributes=attributes, dynamic=dynamic,
        )  # fmt: skip

    def _linear(
        self, kind: str, weights: dict[str, str], values: list[Constant | None]
    ) -> tuple[NodeOp, dict[str, str]]:
        names = {"weights": "weight", "biases": "bias"}
        found = {names.get(role, role): name for role, name in weights.items()}
        if kind in _RECURRENT:
            constants = [c for c in values if c is not None]
            found |= {f"weight{i}": self.pool.use(c) for i, c in enumerate(constants)}
        else:
            # Either operand of a product may be the stored one.
            stored = [c for c in values[:2] if c is not None]
            if stored:
                found["weight"] = self.pool.use(stored[0])
        return ("linear" if any(r.startswith("weight") for r in found) else "other"), found

    def _batch_norm(
        self, layer: Layer, sources: list[Source | None]
    ) -> tuple[NodeOp, dict[str, str], float | None]:
        # opset1 puts the data third, opset5 first.
        order = ("gamma", "beta", "", "mean", "var")
        if layer.version not in ("opset1", "opset2", "opset3", "opset4"):
            order = ("", "gamma", "beta", "mean", "var")
        weights = {}
        for role, source in zip(order, sources, strict=False):
            constant = self.constant(source) if role else None
            if constant is not None:
                weights[role] = self.pool.use(constant)
        text = layer.data.get("epsilon", layer.data.get("eps", ""))
        return "batch_norm", weights, _real(text)

    def _elementwise(
        self, layer: Layer, values: list[Constant | None]
    ) -> tuple[NodeOp, dict[str, str]]:
        kind = layer.kind
        if kind == "Eltwise":
            kind = {"sum": "Add", "mul": "Multiply", "prod": "Multiply"}.get(
                layer.data.get("operation", "").lower(), ""
            )
        stored = [c for c in values if c is not None]
        # One number per channel; scalars, grids and feature maps are something else.
        if not kind or len(stored) != 1 or sum(n != 1 for n in stored[0].shape) != 1:
            return "other", {}
        return ("add" if kind == "Add" else "multiply"), {"constant": self.pool.use(stored[0])}

    def _scale_shift(
        self, layer: Layer, weights: Mapping[str, str], sources: list[Source | None]
    ) -> None:
        """Add an old layer of a product and a sum."""
        name = unique_name(layer.name, self._names)
        inputs = tuple(_value(s) for s in sources if s is not None and self.constant(s) is None)
        outputs = tuple(_value((layer.scope, layer.identity, port)) for port in layer.outputs)
        steps: list[tuple[NodeOp, str]] = []
        if "weights" in weights:
            steps.append(("multiply", weights["weights"]))
        if "biases" in weights:
            steps.append(("add", weights["biases"]))
        for i, (op, constant) in enumerate(steps):
            last = i == len(steps) - 1
            after = outputs if last else (f"{name}/product",)
            node = name if i == 0 else unique_name(f"{name}/bias", self._names)
            weight = {"constant": constant}
            self.nodes.append(Node(node, op, inputs, after, weight, source_op="ScaleShift"))
            inputs = after

    def _node(
        self,
        layer: Layer,
        op: NodeOp,
        weights: Mapping[str, str],
        sources: list[Source | None],
        *,
        attributes: ConvAttributes | None = None,
        dynamic: str | None = None,
        epsilon: float | None = None,
    ) -> None:
        inputs = [_value(s) for s in sources if s is not None and self.constant(s) is None]
        self.nodes.append(
            Node(
                name=unique_name(layer.name, self._names),
                op=op,
                inputs=tuple(n for n in inputs if n != dynamic),
                outputs=tuple(_value((layer.scope, layer.identity, p)) for p in layer.outputs),
                weights=weights,
                conv=attributes,
                epsilon=epsilon,
                dynamic_weight=dynamic,
                source_op=layer.kind,
            )
        )


def _value(source: Source) -> str:
    return f"{source[0]}/{source[1]}:{source[2]}"


def _arithmetic(operation: str, values: list[Constant]) -> Constant | None:
    if len(values) != 2:
        return None
    left, right = values
    # What is stored in integers, or is the larger, is the weight; the other a scale.
    if len(right.shape) > len(left.shape) or right.size > left.size:
        return right.combined(operation, left, swapped=True)
    return left.combined(operation, right)


def _transposed(values: list[Constant]) -> Constant | None:
    if len(values) != 2 or values[1].size > 8 or values[1].skip is not None:
        return None
    return values[0].transposed(tuple(int(n) for n in values[1].load().reshape(-1)))


def _floats(layer: Layer, constant: Constant) -> Constant:
    """Make floats of integers that nothing scales: a plain conversion, or bits that mean ±1."""
    if constant.scaled or constant.dtype.startswith(("float", "bfloat", "nf")):
        return constant
    if layer.kind == "BinaryConvolution":
        doubled = constant.combined("multiply", number(2.0))
        return (doubled and doubled.combined("subtract", number(1.0))) or constant
    return constant.combined("multiply", number(1.0)) or constant


def _grouped(layer: Layer, constant: Constant) -> OldWeights | None:
    """Join the axis of groups with the channels it stands before."""
    shape = constant.shape
    if layer.kind.startswith("Group"):
        if len(shape) < 4:
            return None
        joined = constant.reshaped((shape[0] * shape[1], *shape[2:]))
        return None if joined is None else OldWeights(joined, shape[0])
    groups = _whole(layer.data.get("group", "1")) if layer.kind in _DEFORMABLE else 1
    return OldWeights(constant, groups or 1)


def _attributes(layer: Layer, kernel: OldWeights | None, *, transposed: bool) -> ConvAttributes:
    rank = 0 if kernel is None else len(kernel.constant.shape) - 2
    letters = SPATIAL_LETTERS.get(rank)
    if kernel is None or letters is None:
        return ConvAttributes()
    return ConvAttributes(
        layout=("IO" if transposed else "OI") + letters,
        groups=kernel.groups,
        stride=_extents(layer, "strides", "stride", rank, least=1),
        dilation=_extents(layer, "dilations", "dilation", rank, least=1),
        padding=_padding(layer, rank),
    )


def _extents(layer: Layer, name: str, old: str, rank: int, *, least: int) -> tuple[int, ...] | None:
    data = layer.data
    found = data.get(name, data.get(old))
    if found is None:  # the oldest versions name the axes
        texts = [data.get(f"{old}-{axis}", "") for axis in "zyx"[3 - rank :]]
    else:
        texts = found.split(",")[:8]
    values = [_whole(text) for text in texts]
    if len(values) != rank or any(v is None or not least <= v < _MAX_EXTENT for v in values):
        return None
    return tuple(v for v in values if v is not None)


def _padding(layer: Layer, rank: int) -> tuple[int, ...] | None:
    automatic = layer.data.get("auto_pad", "").lower()
    if automatic.startswith("same"):
        return None
    if automatic == "valid":
        return (0,) * rank
    begin = _extents(layer, "pads_begin", "pad", rank, least=0)
    end = _extents(layer, "pads_end", "pad", rank, least=0)
    if begin is None or end is None:
        return begin if "pads_end" not in layer.data else None
    return begin if begin == end else begin + end


def _whole(text: str) -> int | None:
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        return None
    return int(text)


def _real(text: str) -> float | None:
    try:
        value = float(text[:64])
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
