"""Operators that TorchScript code calls, turned into nodes of a graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from filterdb.layers.names import split_name
from filterdb.layers.raw import SPATIAL_LETTERS, ConvAttributes, Node, NodeOp
from filterdb.sources.formats.torchscript_code import CodeError
from filterdb.sources.formats.torchscript_values import (
    UNKNOWN,
    Flow,
    Instance,
    Packed,
    Parameter,
    Unknown,
    Value,
)

MAX_NODES = 200_000
#: Names of inputs over all nodes: lists that go from hand to hand must not grow quadratically.
_MAX_INPUTS = 2_000_000
_MAX_DEPTH = 8
_MASK = re.compile(r"mask$")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ARGUMENTS: dict[str, str] = {
    "conv1d": "input weight bias stride padding dilation groups",
    "conv_transpose1d": "input weight bias stride padding output_padding groups dilation",
    "_convolution": "input weight bias stride padding dilation transposed output_padding groups",
    "thnn_conv2d": "input weight kernel_size bias stride padding",
    "cudnn_convolution": "input weight padding stride dilation groups",
    "conv_tbc": "input weight bias padding",
    "prepack": "weight bias stride padding dilation groups",
    "prepack_transposed": "weight bias stride padding output_padding dilation groups",
    "linear": "input weight bias",
    "addmm": "bias input weight",
    "embedding": "weight input",
    "batch_norm": "input gamma beta mean var training momentum eps",
    "instance_norm": "input weight bias mean var training momentum eps",
    "layer_norm": "input shape weight bias eps",
    "group_norm": "input groups weight bias eps",
    "prelu": "input weight",
}
_SAME_ARGUMENTS = {
    "conv2d": "conv1d", "conv3d": "conv1d", "_convolution_mode": "conv1d",
    "conv_transpose2d": "conv_transpose1d", "conv_transpose3d": "conv_transpose1d",
    "convolution": "_convolution", "_slow_conv2d_forward": "thnn_conv2d", "mm": "linear",
    "cudnn_convolution_relu": "conv1d", "matmul": "linear", "embedding_bag": "embedding",
    "native_batch_norm": "batch_norm", "native_layer_norm": "layer_norm",
}  # fmt: skip
_NORMS = frozenset({"layer_norm", "group_norm", "instance_norm", "prelu"})
_LINEAR = frozenset({"linear", "addmm", "matmul", "mm"})
_RECURRENT = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}
#: What passes a tensor through as it is, weights as well as activations.
_IDENTITIES = _words(
    "to contiguous dropout dropout_ feature_dropout feature_dropout_ alpha_dropout detach "
    "detach_ clone alias type_as float double half cpu cuda dequantize quantize_per_tensor "
    "data quantize_per_tensor_dynamic fake_quantize_per_tensor_affine "
    "fake_quantize_per_channel_affine alias_copy lift_fresh_copy requires_grad_ view_as_real"
)
#: What tells of a tensor without passing on its values.
_DESCRIPTIONS = _words(
    "size dim len numel device dtype layout is_cuda requires_grad shape is_floating_point "
    "__contains__ get_device is_complex is_quantized stride storage_offset NumToTensor "
    "is_contiguous is_scripting is_tracing warn format"
)
_AS = _words("reshape_as view_as")
#: What makes a tensor's axes mean something else.
_MOVING = _words(
    "permute transpose t movedim swapaxes reshape view unsqueeze squeeze flatten unflatten "
    "flip chunk split select slice index index_select cat stack expand repeat narrow unbind "
    "rot90 conv1d conv2d conv3d matmul mm bmm einsum kron pad roll interpolate"
)
_PACKED_CONV = frozenset(
    f"{head}conv{rank}d{tail}"
    for head in ("", "sparse_")
    for rank in (1, 2, 3)
    for tail in ("", "_relu", "_dynamic", "_add", "_add_relu")
) | {f"conv_transpose{rank}d{tail}" for rank in (1, 2, 3) for tail in ("", "_dynamic")}
_PREPACKED = frozenset({"conv2d_clamp_run", "conv2d_transpose_clamp_run", "conv2d_run"})


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Parameters
    ----------
    name
        Without its library: ``conv2d``.
    library
        ``torch``, ``quantized``, ``prim``, ….
    arguments, keywords
        Values as passed.
    path
        The module whose code makes the call.
    """

    name: str
    library: str
    arguments: Sequence[Value]
    keywords: Mapping[str, Value]
    path: str

    def named(self, like: str) -> dict[str, Value]:
        """Return the arguments by name, as the operator `like` calls them."""
        found = dict(zip(_ARGUMENTS[like].split(), self.arguments, strict=False))
        return {**found, **self.keywords}


class Recorder:
    """Writes down the nodes of a graph while code is followed."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._inputs = 0

    def call(self, call: Call) -> Value:
        """Write down one call and return what stands for its result."""
        name = call.name
        if name in _DESCRIPTIONS:
            return UNKNOWN
        if call.library in ("quantized", "prepacked", "sparse"):
            return self._packed(call)
        if name in _IDENTITIES:
            return self._identity(call)
        if name in ("_weight_norm", "_weight_norm_interface"):
            return made_of(call.arguments)
        like = _SAME_ARGUMENTS.get(name, name)
        if like in ("conv1d", "conv_transpose1d", "_convolution", "thnn_conv2d") or like in (
            "cudnn_convolution",
            "conv_tbc",
        ):
            return self._convolution(call, call.named(like))
        if name in _AS and len(call.arguments) == 2:
            return self._shaped_as(call, *call.arguments)
        handler = _HANDLERS.get(like)
        if handler is not None and any(True for a in call.arguments for _ in flows(a)):
            return handler(self, call, like)
        return self.other(call)

    # -- nodes ---------------------------------------------------------------------------------

    def write(self, op: NodeOp, call: Call, inputs: Iterable[Value], **more: Any) -> Flow:
        """Add a node and return what it writes."""
        names = tuple(dict.fromkeys(flow for value in inputs for flow in flows(value)))
        self._inputs += len(names)
        if len(self.nodes) >= MAX_NODES or self._inputs > _MAX_INPUTS:
            raise CodeError("a graph larger than any network's")
        number = len(self.nodes)
        name = more.pop("name", None) or f"{call.path or 'model'}.{call.name}_{number}"
        source = more.pop("source_op", call.name)
        made = Flow(f"%{number}")
        self.nodes.append(
            Node(name=name, op=op, inputs=names, outputs=(made.name,), source_op=source, **more)
        )
        return made

    def join(self, values: Sequence[Value], path: str) -> Value:
        """Return one value for several, of which the code would use one or all."""
        names = list(dict.fromkeys(flow for value in values for flow in flows(value)))
        if len(names) == 1:
            return Flow(names[0])
        if names:
            call = Call("join", "", values, {}, path)
            return self.write("identity", call, values)
        known = [value for value in values if not isinstance(value, Unknown) and value is not None]
        return known[0] if known else UNKNOWN

    def other(self, call: Call) -> Value:
        """Write down an operator that no layer is made of."""
        values = [*call.arguments, *call.keywords.values()]
        if any(True for value in values for _ in flows(value)):
            return self.write("other", call, values)
        return made_of(values, moved=call.name.removesuffix("_") in _MOVING)

    def _shaped_as(self, call: Call, value: Value, pattern: Value) -> Value:
        # Standardised weights are flattened, normalised, and brought back to their own shape.
        back = isinstance(value, Parameter) and isinstance(pattern, Parameter)
        return pattern if back and value.name == pattern.name else self.other(call)

    def _identity(self, call: Call) -> Value:
        value = call.arguments[0] if call.arguments else UNKNOWN
        if isinstance(value, Flow):
            return self.write("identity", call, [value])
        return value

    # -- convolutions --------------------------------------------------------------------------

    def _convolution(self, call: Call, given: Mapping[str, Value]) -> Value:
        transposed = given.get("transposed") is True or "transpose" in call.name
        defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        packed = _packed({**defaults, **given}, transposed=transposed)
        return self._node_of(call, packed, given.get("input"))

    def _node_of(self, call: Call, packed: Packed, *inputs: Value) -> Value:
        weight, bias = packed.weight, packed.bias
        op: NodeOp = "conv_transpose" if packed.transposed else "conv"
        if not isinstance(weight, Parameter) or weight.moved:
            # Its parts are then no kernel, or one whose axes mean something else.
            made = weight.name if isinstance(weight, Parameter) else next(flows(weight), None)
            return self.write(op, call, inputs, dynamic_weight=made, conv=ConvAttributes())
        rank = len(weight.shape) - 2
        weights = {"weight": weight.name}
        if isinstance(bias, Parameter):
            weights["bias"] = bias.name
        return self.write(
            op,
            call,
            inputs,
            name=split_name(weight.name)[0] or weight.name,
            weights=weights,
            conv=_attributes(packed, rank, call.name),
        )

    def _packed(self, call: Call) -> Value:
        name, arguments = call.name, call.arguments
        if name.endswith("_prepack"):
            transposed = "transpose" in name
            given = call.named("prepack_transposed" if transposed else "prepack")
            if "conv" not in name:
                return made_of(arguments)
            return _packed(given, transposed=transposed)
        packed = next((a for a in arguments if isinstance(a, Packed)), None)
        if packed is not None and (name in _PACKED_CONV or name in _PREPACKED):
            return self._node_of(call, packed, *(a for a in arguments if a is not packed))
        return self.other(call)

    # -- layers that are no convolutions -------------------------------------------------------

    def _batch_norm(self, call: Call, like: str) -> Value:
        given = call.named(like)
        epsilon = given.get("eps")
        return self.write(
            "batch_norm",
            call,
            [given.get("input")],
            weights=_stored(given, "gamma", "beta", "mean", "var"),
            epsilon=epsilon if type(epsilon) is float else 1e-5,
        )

    def _norm(self, call: Call, like: str) -> Value:
        given = call.named(like)
        return self.write(
            "norm", call, [given.get("input")], weights=_stored(given, "weight", "bias")
        )

    def _linear(self, call: Call, like: str) -> Value:
        given = call.named(like)
        if not isinstance(given.get("weight"), Parameter):
            return self.other(call)
        weights = _stored(given, "weight", "bias")
        return self.write("linear", call, [given.get("input")], weights=weights)

    def _embedding(self, call: Call, like: str) -> Value:
        given = call.named(like)
        weights = _stored(given, "weight")
        return self.write("embedding", call, [given.get("input")], weights=weights)

    def _recurrent(self, call: Call, like: str) -> Value:
        stored = [p for p in parameters(call.arguments) if len(p.shape) < 3]
        weights = {f"weight{i}": p.name for i, p in enumerate(stored)}
        return self.write(
            "linear", call, call.arguments, weights=weights, source_op=_RECURRENT[like]
        )

    def _scaled(self, call: Call, like: str) -> Value:
        pair = call.arguments[:2]
        stored = [a for a in pair if isinstance(a, Parameter)]
        if len(stored) != 1 or not any(isinstance(a, Flow) for a in pair):
            return self.other(call)
        if stored[0].moved or (like == "add" and len(call.arguments) > 2):
            return self.other(call)
        op: NodeOp = "multiply" if like.startswith("mul") else "add"
        return self.write(op, call, pair, weights={"constant": stored[0].name})


_HANDLERS: dict[str, Callable[[Recorder, Call, str], Value]] = {
    "batch_norm": Recorder._batch_norm,
    "embedding": Recorder._embedding,
    "mul": Recorder._scaled,
    "mul_": Recorder._scaled,
    "add": Recorder._scaled,
    "add_": Recorder._scaled,
    **dict.fromkeys(_NORMS, Recorder._norm),
    **dict.fromkeys(_LINEAR, Recorder._linear),
    **dict.fromkeys(_RECURRENT, Recorder._recurrent),
}


def _packed(given: Mapping[str, Value], *, transposed: bool) -> Packed:
    return Packed(
        weight=given.get("weight"),
        bias=given.get("bias"),
        stride=given.get("stride"),
        padding=given.get("padding"),
        dilation=given.get("dilation"),
        groups=given.get("groups"),
        transposed=transposed,
    )


def _attributes(packed: Packed, rank: int, name: str) -> ConvAttributes:
    space = SPATIAL_LETTERS.get(rank)
    if space is None:
        return ConvAttributes()
    layout = ("IO" if packed.transposed else "OI") + space
    padding = packed.padding
    if isinstance(padding, str):
        padding = 0 if padding == "valid" else None
    groups = packed.groups
    return ConvAttributes(
        layout="WIO" if name == "conv_tbc" else layout,
        groups=groups if type(groups) is int and groups > 0 else None,
        stride=_per_axis(packed.stride, rank, least=1),
        dilation=_per_axis(packed.dilation, rank, least=1),
        padding=_per_axis(padding, rank, least=0),
    )


def _per_axis(value: Value, rank: int, *, least: int) -> tuple[int, ...] | None:
    parts = list(value) if isinstance(value, list | tuple) else [value]
    # The quantised form of 1-D convolutions is two-dimensional, and its numbers with it.
    if len(parts) == 1:
        parts *= rank
    if len(parts) != rank or not all(type(p) is int and least <= p < 1 << 31 for p in parts):
        return None
    return tuple(parts)


def _stored(given: Mapping[str, Value], *roles: str) -> dict[str, str]:
    return {r: v.name for r in roles if isinstance(v := given.get(r), Parameter)}


def flows(value: Value, depth: int = 0) -> Iterator[str]:
    """Yield the names of the activations in a value."""
    if isinstance(value, Flow):
        yield value.name
    elif isinstance(value, list | tuple) and depth < _MAX_DEPTH:
        for part in value:
            yield from flows(part, depth + 1)
    elif isinstance(value, dict) and depth < _MAX_DEPTH:
        for part in value.values():
            yield from flows(part, depth + 1)
    elif isinstance(value, Instance) and value.record is None and depth < _MAX_DEPTH:
        for part in value.own.values():
            yield from flows(part, depth + 1)


def parameters(value: Value, depth: int = 0) -> Iterator[Parameter]:
    """Yield the stored tensors in a value."""
    if isinstance(value, Parameter):
        yield value
    elif isinstance(value, list | tuple) and depth < _MAX_DEPTH:
        for part in value:
            yield from parameters(part, depth + 1)


def made_of(values: Sequence[Value], *, moved: bool = False) -> Value:
    """Return what stands for a value computed from stored tensors alone, or from nothing.

    Parameters
    ----------
    values
        What it is computed from.
    moved
        Whether the computation takes its axes apart.

    Returns
    -------
    Parameter or Unknown
        The kernel, where it is made of one and of what scales it (weight normalisation); marked
        as moved where it is made of several.
    """
    stored = list(parameters(values))
    if not stored:
        return UNKNOWN
    main = max(stored, key=_axes)
    others = {p.name for p in stored if _axes(p) > 1 and not _MASK.search(p.name)} - {main.name}
    kernels = len(main.shape) > 2 and any(len(p.shape) > 2 for p in stored if p.name in others)
    return Parameter(main.name, main.shape, moved or kernels or main.moved)


def _axes(parameter: Parameter) -> int:
    return sum(extent > 1 for extent in parameter.shape)
