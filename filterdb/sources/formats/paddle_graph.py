"""PaddlePaddle's operators as nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.errors import UnsafeCheckpointError
from filterdb.layers.raw import ConvAttributes, Node, NodeOp, layout_of_rank
from filterdb.sources.formats.constant_pool import ConstantPool, unique_name
from filterdb.sources.formats.graph_constants import Constant, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.layers.raw import Tensor
    from filterdb.sources.formats.paddle_proto import Operator, Program

#: Operators → (spatial axes, transposed).
_CONVOLUTIONS = {
    "conv2d": (2, False), "depthwise_conv2d": (2, False), "conv3d": (3, False),
    "conv2d_fusion": (2, False), "fused_conv2d": (2, False), "fused_conv3d": (3, False),
    "fused_conv2d_add_act": (2, False), "fused_depthwise_conv2d": (2, False),
    "conv2d_transpose": (2, True), "depthwise_conv2d_transpose": (2, True),
    "conv2d_transpose_bias": (2, True), "conv3d_transpose": (3, True),
    "deformable_conv": (2, False), "deformable_conv_v1": (2, False),
}  # fmt: skip
_LINEAR = {"mul": "Y", "matmul": "Y", "matmul_v2": "Y", "fc": "W", "fused_fc_elementwise_layernorm": "W"}  # noqa: E501  # fmt: skip
_EMBEDDING = {"lookup_table": "W", "lookup_table_v2": "W", "embedding": "W"}
_RECURRENT = frozenset({"rnn", "lstm", "gru", "cudnn_lstm", "fusion_gru", "fusion_lstm"})
_NORMS: dict[str, dict[str, str]] = {
    "layer_norm": {"gamma": "Scale", "beta": "Bias"},
    "group_norm": {"gamma": "Scale", "beta": "Bias"},
    "instance_norm": {"gamma": "Scale", "beta": "Bias"},
    "prelu": {"weight": "Alpha"},
}
_BATCH_NORM = {"batch_norm", "sync_batch_norm"}
_VECTORS = {"gamma": "Scale", "beta": "Bias", "mean": "Mean", "var": "Variance"}
#: What lets values pass, a weight's and an activation's.
_PASS = frozenset({"assign", "share_data", "cast", "memcpy", "memcpy_h2d", "memcpy_d2h"})
_IDENTITY = _PASS | {"dropout", "quantize_linear", "quantize", "dequantize", "feed", "fetch"}
_FAKE = "fake_"
_MAX_EXTENT = 1 << 31
_MAX_OPERATORS = 1_000_000


@dataclass(frozen=True)
class _Kernel:
    constant: Constant
    #: The graph gives a 1-D kernel its height.
    one_axis: bool = False


class ProgramTranslator:
    """Turns a program into nodes and tensors.

    Parameters
    ----------
    program
        The parsed program.
    constants
        Its stored parameters.
    """

    def __init__(self, program: Program, constants: Mapping[str, Constant]) -> None:
        self.constants = constants
        self.nodes: list[Node] = []
        #: Names of the constants the graph computes from stored ones.
        self._views: dict[str, Constant] = dict(constants)
        self._pool = ConstantPool(constants)
        self._node_names: dict[str, int] = {}
        operators = list(_flat(program))
        written: dict[str, int] = {}
        for operator in operators:
            for name in _all(operator.outputs):
                written[name] = written.get(name, 0) + 1
        self._written = written
        #: Value → the operator that scales it back, where weights are left as integers.
        self._rescaled = {
            value: operator
            for operator in operators
            if operator.kind in ("fake_dequantize_max_abs", "fake_channel_wise_dequantize_max_abs")
            and (value := operator.first("X")) is not None
        }
        for operator in operators:
            self._operator(operator)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return every stored parameter, as the graph uses it."""
        return self._pool.tensors()

    def _operator(self, operator: Operator) -> None:
        kind = operator.kind
        if kind in _CONVOLUTIONS:
            self._convolution(operator)
        elif kind in _BATCH_NORM:
            self._node(operator, "batch_norm", self._weights(operator, _VECTORS),
                       epsilon=_epsilon(operator))  # fmt: skip
        elif kind in _LINEAR:
            weights = self._weights(operator, {"weight": _LINEAR[kind], "bias": "Bias"})
            self._node(operator, "linear" if "weight" in weights else "other", weights)
        elif kind in _EMBEDDING:
            self._node(operator, "embedding", self._weights(operator, {"weight": "W"}))
        elif kind in _RECURRENT:
            self._recurrent(operator)
        elif kind in _NORMS:
            self._node(operator, "norm", self._weights(operator, _NORMS[kind]))
        elif kind in ("elementwise_add", "elementwise_mul"):
            self._elementwise(operator)
        elif not self._constant_step(operator):
            passes = kind in _IDENTITY or kind.startswith(_FAKE)
            self._node(operator, "identity" if passes else "other", {})

    def _constant_step(self, operator: Operator) -> bool:
        """Follow what happens to a stored parameter; False where the operator is no such step."""
        name = operator.first("X", "Input")
        outputs = operator.outputs.get("Out") or operator.outputs.get("Y") or ()
        source = self._views.get(name or "")
        if source is None or not outputs or self._written.get(outputs[0], 0) != 1:
            return False
        view = self._stepped(operator, source)
        if view is None:
            return False
        self._views[outputs[0]] = view
        return True

    def _stepped(self, operator: Operator, source: Constant) -> Constant | None:
        kind = operator.kind
        # Quantisation rehearsed in training keeps floats: the kernel is what the file holds.
        if kind in _PASS or (kind.startswith(_FAKE) and "quantize_dequantize" in kind):
            return source
        if kind in ("unsqueeze2", "unsqueeze"):
            return _unsqueezed(source, operator.integers("axes"))
        if kind in ("reshape2", "reshape"):
            extents = operator.integers("shape")
            if not extents or len(extents) > 8 or 0 in extents:
                return None
            return source.reshaped(extents)
        if kind in ("transpose2", "transpose"):
            return source.transposed(operator.integers("axis"))
        if kind == "dequantize_linear":
            return self._dequantised(operator, source)
        return None

    def _dequantised(self, operator: Operator, source: Constant) -> Constant | None:
        scale = self._views.get(operator.first("Scale") or "")
        bits = operator.integer("bit_length", 8)
        axis = operator.integer("quant_axis", -1)
        if scale is None or not 2 <= bits <= 16:
            return None
        if scale.size == 1:
            shaped = scale.reshaped((1,) * len(source.shape))
        elif 0 <= axis < len(source.shape):
            shape = [1] * len(source.shape)
            shape[axis] = scale.size
            shaped = scale.reshaped(tuple(shape))
        else:
            return None
        # The scale stands for the largest integer of so many bits.
        step = shaped.combined("divide", number((1 << (bits - 1)) - 1)) if shaped else None
        return source.combined("multiply", step) if step else None

    def _convolution(self, operator: Operator) -> None:
        rank, transposed = _CONVOLUTIONS[operator.kind]
        name = operator.first("Filter")
        kernel = self._scaled_later(operator, self._kernel(name))
        weights = self._weights(operator, {"bias": "Bias"})
        axes = rank
        if kernel is not None:
            weights["weight"] = self._pool.use(kernel.constant)
            axes = 1 if kernel.one_axis else rank
        layout = layout_of_rank("IOHW" if transposed else "OIHW", axes)
        groups = operator.integer("groups", 1)
        attributes = ConvAttributes(
            layout=layout,
            groups=groups if groups > 0 else 1,
            stride=_extents(operator.integers("strides"), rank, axes, least=1),
            dilation=_extents(operator.integers("dilations"), rank, axes, least=1),
            padding=_padding(operator, rank, axes),
        )
        self._node(
            operator,
            "conv_transpose" if transposed else "conv",
            weights,
            attributes=attributes,
            dynamic=name if kernel is None else None,
        )

    def _scaled_later(self, operator: Operator, kernel: _Kernel | None) -> _Kernel | None:
        """Scale a kernel of integers (however stored) as its convolution's result is scaled."""
        outputs = operator.outputs.get("Output", ())
        later = self._rescaled.get(outputs[0]) if outputs else None
        if later is None or kernel is None or kernel.constant.scaled:
            return kernel
        constant = kernel.constant
        largest = later.real("max_range")
        step: Constant | None = None
        if later.kind == "fake_dequantize_max_abs":
            # (127 / scale) · 127, the second for the activation's eight bits.
            step = number(127 / largest) if largest is not None and largest > 0 else None
        else:
            scales = self._views.get(later.first("Scales") or "")
            bits = (*later.integers("quant_bits"), 8)[0]
            axis = later.integer("quant_axis", 0)
            if scales is not None and 2 <= bits <= 16 and 0 <= axis < len(constant.shape):
                wide = [scales.size if i == axis else 1 for i in range(len(constant.shape))]
                shaped = scales.reshaped(tuple(wide))
                step = shaped and shaped.combined("divide", number((1 << (bits - 1)) - 1))
        scaled = constant.combined("multiply", step) if step is not None else None
        return kernel if scaled is None else _Kernel(scaled, kernel.one_axis)

    def _kernel(self, name: str | None) -> _Kernel | None:
        constant = self._views.get(name or "")
        if constant is None:
            return None
        stored = self.constants[constant.base]
        # paddle.nn.Conv1D runs conv2d and gives its kernel a height of one on the way.
        if len(stored.shape) == 3 and constant.shape == (*stored.shape[:2], 1, stored.shape[2]):
            return _Kernel(stored, one_axis=True)
        return _Kernel(constant)

    def _weights(self, operator: Operator, roles: Mapping[str, str]) -> dict[str, str]:
        found = {}
        for role, parameter in roles.items():
            constant = self._views.get(operator.first(parameter) or "")
            if constant is not None:
                found[role] = self._pool.use(constant)
        return found

    def _recurrent(self, operator: Operator) -> None:
        names = [n for n in _all(operator.inputs) if n in self.constants]
        self._node(operator, "linear", {f"weight{i}": n for i, n in enumerate(names)})

    def _elementwise(self, operator: Operator) -> None:
        op: NodeOp = "add" if operator.kind == "elementwise_add" else "multiply"
        constant = self._views.get(operator.first("Y") or "")
        other = operator.first("X")
        if constant is None:
            constant, other = self._views.get(other or ""), operator.first("Y")
        # One number per channel; scalars, grids and feature maps are something else.
        if constant is None or other in self._views or sum(n != 1 for n in constant.shape) != 1:
            self._node(operator, "other", {})
            return
        self._node(operator, op, {"constant": self._pool.use(self.constants[constant.base])})

    def _node(
        self,
        operator: Operator,
        op: NodeOp,
        weights: Mapping[str, str],
        *,
        attributes: ConvAttributes | None = None,
        dynamic: str | None = None,
        epsilon: float | None = None,
    ) -> None:
        outputs = _all(operator.outputs)
        wanted = outputs[0] if outputs else operator.kind
        if "weight" in weights and attributes is not None:
            # conv2d_0.w_0 belongs to the layer conv2d_0.
            wanted = weights["weight"].rsplit(".", 1)[0]
        skipped = {dynamic} if dynamic else set()
        self.nodes.append(
            Node(
                name=unique_name(wanted or operator.kind, self._node_names),
                op=op,
                inputs=tuple(
                    n for n in _all(operator.inputs) if n not in self._views and n not in skipped
                ),
                outputs=tuple(n for n in outputs if n not in self.constants),
                weights=weights,
                conv=attributes,
                epsilon=epsilon,
                dynamic_weight=dynamic,
                source_op=operator.kind,
            )
        )


def _flat(program: Program) -> Iterator[Operator]:
    """List the operators of all blocks, those of a loop behind the operator that runs it."""
    seen: set[int] = set()
    count = 0
    stack = [iter(program.blocks[0].operators)] if program.blocks else []
    seen.add(0)
    while stack:
        operator = next(stack[-1], None)
        if operator is None:
            stack.pop()
            continue
        count += 1
        if count > _MAX_OPERATORS:
            raise UnsafeCheckpointError(f"a program of more than {_MAX_OPERATORS:,} operators")
        yield operator
        for block in operator.blocks:
            if 0 <= block < len(program.blocks) and block not in seen:
                seen.add(block)
                stack.append(iter(program.blocks[block].operators))


def _all(variables: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in variables.values() for name in names))


def _epsilon(operator: Operator) -> float | None:
    value = operator.real("epsilon")
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def _extents(
    values: tuple[int, ...], rank: int, axes: int, *, least: int
) -> tuple[int, ...] | None:
    if len(values) == 1:
        values = values * rank
    if len(values) != rank or any(not least <= v < _MAX_EXTENT for v in values):
        return None
    return values[rank - axes :]


def _padding(operator: Operator, rank: int, axes: int) -> tuple[int, ...] | None:
    word = operator.text("padding_algorithm")
    if word == "SAME":
        return None
    if word == "VALID":
        return (0,) * axes
    values = operator.integers("paddings")
    if len(values) == 2 * rank:
        begin = _extents(values[0::2], rank, axes, least=0)
        end = _extents(values[1::2], rank, axes, least=0)
        if begin is None or end is None:
            return None
        return begin if begin == end else begin + end
    return _extents(values, rank, axes, least=0)


def _unsqueezed(source: Constant, axes: tuple[int, ...]) -> Constant | None:
    rank = len(source.shape) + len(axes)
    if rank > 8 or any(not -rank <= axis < rank for axis in axes):
        return None
    shape = list(source.shape)
    for axis in sorted(a + len(shape) + 1 if a < 0 else a for a in axes):
        shape.insert(axis, 1)
    return source.reshaped(tuple(shape))
