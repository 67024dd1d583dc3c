"""ONNX operations as filterdb's nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from filterdb.layers.raw import SPATIAL_LETTERS, ConvAttributes, Node, NodeOp, Tensor
from filterdb.sources.formats.onnx_computed import RULES
from filterdb.sources.formats.onnx_flatten import Flattener, Operation, sort_operations
from filterdb.sources.formats.onnx_geometry import (
    MMCV_CONV,
    conv_attributes,
    mmcv_attributes,
)
from filterdb.sources.formats.onnx_rules import DOMAINS, follow
from filterdb.sources.formats.onnx_values import element_type
from filterdb.sources.formats.onnx_views import Step, View

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from filterdb.sources.formats.onnx_constants import Constants
    from filterdb.types import SkipReason

_IDENTITY = frozenset(
    {"Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
)
#: What may stand between an integer convolution and the product with its scale.
_BEFORE_SCALE = ("Cast", "Identity", "Add")
#: Input positions of the parameters, for operations whose weights are used as they are.
_PLAIN: Mapping[str, tuple[NodeOp, Mapping[str, int]]] = {
    "BatchNormalization": ("batch_norm", {"gamma": 1, "beta": 2, "mean": 3, "var": 4}),
    "LayerNormalization": ("norm", {"gamma": 1, "beta": 2}),
    "InstanceNormalization": ("norm", {"gamma": 1, "beta": 2}),
    "GroupNormalization": ("norm", {"gamma": 1, "beta": 2}),
    "GroupNorm": ("norm", {"gamma": 1, "beta": 2}),
    "RMSNormalization": ("norm", {"gamma": 1}),
    "SimplifiedLayerNormalization": ("norm", {"gamma": 1}),
    "SkipLayerNormalization": ("norm", {"gamma": 2, "beta": 3, "bias": 4}),
    "SkipSimplifiedLayerNormalization": ("norm", {"gamma": 2}),
    "PRelu": ("norm", {"gamma": 1}),
    "LSTM": ("linear", {"weight": 1, "recurrent": 2, "bias": 3}),
    "GRU": ("linear", {"weight": 1, "recurrent": 2, "bias": 3}),
    "RNN": ("linear", {"weight": 1, "recurrent": 2, "bias": 3}),
    "Gemm": ("linear", {"weight": 1, "bias": 2}),
    "FusedGemm": ("linear", {"weight": 1, "bias": 2}),
    "FusedMatMul": ("linear", {"weight": 1}),
    "MatMulNBits": ("linear", {"weight": 1}),
    "Attention": ("linear", {"weight": 1, "bias": 2}),
}


@dataclass(frozen=True)
class _Quantised:
    """Input positions of an operation that takes integers and their scales."""

    op: NodeOp
    weight: int
    scale: int | None
    zero_point: int
    bias: int | None = None
    input_scale: int | None = None
    axis: int = 0


_QUANTISED: Mapping[str, _Quantised] = {
    "ConvInteger": _Quantised("conv", 1, None, 3),
    "QLinearConv": _Quantised("conv", 3, 4, 5, bias=8, input_scale=1),
    "MatMulInteger": _Quantised("linear", 1, None, 3, axis=-1),
    "QLinearMatMul": _Quantised("linear", 3, 4, 5, axis=-1),
    "QGemm": _Quantised("linear", 3, 4, 5, bias=6, input_scale=1, axis=-1),
    "DynamicQuantizeMatMul": _Quantised("linear", 1, 2, 3, bias=4, axis=-1),
    "MatMulIntegerToFloat": _Quantised("linear", 1, 3, 5, bias=6, axis=-1),
}
#: Position of the bias of convolutions in floating point.
_CONV = {
    "Conv": 2, "FusedConv": 2, "NhwcConv": 2, "NhwcFusedConv": 2, "ConvTranspose": 2,
    "ConvTransposeWithDynamicPads": 3, "DeformConv": 3, "CausalConvWithState": 2,
    "VarlenCausalConvWithState": 3,
}  # fmt: skip
_TRANSPOSED = frozenset({"ConvTranspose", "ConvTransposeWithDynamicPads"})
#: Always one group a channel, without an attribute that says so.
_DEPTHWISE = frozenset({"CausalConvWithState", "VarlenCausalConvWithState"})
_BLOCKED = "weights in blocks (ONNX Runtime's NCHWc), as wide as the machine that wrote them liked"


@dataclass
class _Draft:
    """A node before its weights have tensor names."""

    operation: Operation
    op: NodeOp
    roles: dict[str, View]
    conv: ConvAttributes | None = None
    epsilon: float | None = None
    dynamic_weight: str | None = None


class GraphTranslator:
    """Translates a flattened graph.

    Parameters
    ----------
    flat
        Its operations and stored tensors.
    constants
        Its constants; extended while the operations are followed.
    """

    def __init__(self, flat: Flattener, constants: Constants) -> None:
        self._flat = flat
        self._constants = constants
        self._operations = sort_operations(flat.operations, flat.where)
        self._producers: dict[str, Operation] = {}
        self._readers: dict[str, list[Operation]] = {}
        live: list[Operation] = []
        for operation in self._operations:
            for value in operation.inputs:
                if value:
                    self._readers.setdefault(value, []).append(operation)
            self._producers.update((out, operation) for out in operation.outputs if out)
            if not follow(constants, operation):
                live.append(operation)
        #: Views of each stored tensor, in order of use, and the tensors no scale was found for.
        self._views: dict[str, list[View]] = {}
        self._unscaled: set[str] = set()
        self._blocked: set[str] = set()
        drafts = [self._draft(operation) for operation in live]
        self._names = self._name_views()
        self.nodes = tuple(self._node(draft) for draft in drafts)
        self.n_computed = sum(draft.dynamic_weight is not None for draft in drafts)

    def tensors(self) -> tuple[Tensor, ...]:
        """List every stored tensor, as the graph uses it.

        Returns
        -------
        tuple of Tensor
            In file order; a tensor used in two ways (reshaped twice) is there twice.
        """
        listed: list[Tensor] = []
        for base, record in self._flat.tensors.items():
            views = self._views.get(base) or [View(base, record.shape)]
            listed += [self._tensor(view) for view in views]
        return tuple(listed)

    def _tensor(self, view: View) -> Tensor:
        base = view.base
        kind = element_type(self._flat.tensors[base])
        skip: tuple[SkipReason, str] | None = None
        if kind.stored is None:
            skip = ("unsupported_dtype", kind.name)
        elif base in self._blocked:
            skip = ("unsupported_dtype", _BLOCKED)
        elif base in self._constants.parameters:
            skip = ("buffer", "scale or zero point of a quantised tensor")
        elif base in self._unscaled and not view.scaled:
            skip = ("missing_scale", "no constant scale found for these integers")
        integer = not kind.name.startswith(("float", "bfloat"))
        return Tensor(
            name=self._names.get(view, base),
            shape=view.shape,
            dtype=kind.name,
            load=partial(self._constants.load, view),
            quantised=integer and view.scaled,
            storage=self._constants.storage(view),
            skip=skip,
        )

    def _name_views(self) -> dict[View, str]:
        """Give each view of a stored tensor a name; the plainest one keeps the tensor's own."""
        names: dict[View, str] = {}
        for base, views in self._views.items():
            views.sort(key=lambda view: bool(view.steps))
            for i, view in enumerate(views):
                names[view] = base if i == 0 else f"{base}#view{i + 1}"
        return names

    def _use(self, view: View) -> View:
        views = self._views.setdefault(view.base, [])
        if view not in views:
            views.append(view)
        return view

    def _node(self, draft: _Draft) -> Node:
        operation = draft.operation
        views = self._constants.views
        return Node(
            name=operation.name,
            op=draft.op,
            inputs=tuple(n for n in operation.inputs if n and n not in views),
            outputs=tuple(n for n in operation.outputs if n),
            weights={role: self._names[view] for role, view in draft.roles.items()},
            conv=draft.conv,
            epsilon=draft.epsilon,
            dynamic_weight=draft.dynamic_weight,
            source_op=operation.op_type,
        )

    def _draft(self, operation: Operation) -> _Draft:
        kind = operation.op_type
        if kind in MMCV_CONV:
            return self._mmcv(operation, *MMCV_CONV[kind])
        if operation.domain not in DOMAINS:
            # Other domains reuse names: onnxruntime's nchwc.Conv has its weights in blocks.
            weight = self._input(operation, 1) if kind == "Conv" else None
            if weight is not None and operation.domain == "com.microsoft.nchwc":
                self._blocked.add(weight.base)
            return _Draft(operation, "other", {})
        if kind in _CONV:
            return self._convolution(operation)
        if kind in _QUANTISED:
            return self._quantised(operation, _QUANTISED[kind])
        if kind in _PLAIN:
            return self._plain(operation)
        if kind in ("MatMul", "Gather", "Mul", "Add", "Einsum"):
            return self._with_constant(operation)
        return _Draft(operation, "identity" if kind in _IDENTITY else "other", {})

    def _input(self, operation: Operation, place: int | None) -> View | None:
        if place is None or place >= len(operation.inputs):
            return None
        return self._constants.views.get(operation.inputs[place])

    def _stored(self, view: View) -> View:
        """Return what is listed of a weight that is no kernel: as stored, not as computed with."""
        form = view.stored_form()
        if any(step.kind in RULES for step in form.steps):
            return View(view.base, self._flat.tensors[view.base].shape)
        return form

    def _plain(self, operation: Operation) -> _Draft:
        op, places = _PLAIN[operation.op_type]
        roles = {
            role: self._use(self._stored(view) if op != "batch_norm" else view.stored_form())
            for role, place in places.items()
            if (view := self._input(operation, place)) is not None
        }
        first = next(iter(places))
        if first not in roles or (op == "batch_norm" and len(roles) < 4):
            return _Draft(operation, "other", roles if op != "batch_norm" else {})
        epsilon = float(operation.number("epsilon", 1e-5)) if op == "batch_norm" else None
        return _Draft(operation, op, roles, epsilon=epsilon)

    def _with_constant(self, operation: Operation) -> _Draft:
        kind = operation.op_type
        found = [v for n in operation.inputs if (v := self._constants.views.get(n)) is not None]
        if len(found) != 1:
            return _Draft(operation, "other", {})
        view = found[0]
        wide = [n for n in view.shape if n != 1]
        real = element_type(self._flat.tensors[view.base]).name.startswith(("float", "bfloat"))
        if kind in ("Mul", "Add"):
            # One number per channel; scalars and feature maps are something else.
            if len(wide) != 1 or not (real or view.scaled):
                return _Draft(operation, "other", {})
            return _Draft(
                operation,
                "multiply" if kind == "Mul" else "add",
                {"constant": self._use(view.stored_form())},
            )
        if kind == "Gather":
            table = self._input(operation, 0)
            if table is None or len(table.shape) < 2 or not (real or view.scaled):
                return _Draft(operation, "other", {})
            return _Draft(operation, "embedding", {"weight": self._use(self._stored(table))})
        return _Draft(operation, "linear", {"weight": self._use(self._stored(view))})

    def _convolution(self, operation: Operation) -> _Draft:
        op: NodeOp = "conv_transpose" if operation.op_type in _TRANSPOSED else "conv"
        roles: dict[str, View] = {}
        bias = self._input(operation, _CONV[operation.op_type])
        if bias is not None:
            roles["bias"] = self._use(bias.stored_form())
        return self._with_weight(operation, op, self._input(operation, 1), roles, place=1)

    def _mmcv(self, operation: Operation, place: int, bias_place: int) -> _Draft:
        bias = self._input(operation, bias_place) if bias_place > 0 else None
        roles = {} if bias is None else {"bias": self._use(bias.stored_form())}
        draft = self._with_weight(
            operation, "conv", self._input(operation, place), roles, place=place
        )
        layout = None if draft.conv is None else draft.conv.layout
        return replace(draft, conv=mmcv_attributes(operation, layout))

    def _with_weight(
        self,
        operation: Operation,
        op: NodeOp,
        weight: View | None,
        roles: dict[str, View],
        *,
        place: int,
    ) -> _Draft:
        """Draft a convolution; a permutation right before it becomes its layout."""
        if weight is None:
            rank = len(operation.integers("kernel_shape") or ())
            dynamic = operation.inputs[place] if place < len(operation.inputs) else ""
            attributes = conv_attributes(operation, rank, None)
            return _Draft(operation, op, roles, attributes, dynamic_weight=dynamic or None)
        stored, order = weight.without_transposes()
        rank = len(weight.shape) - 2
        letters = ("IO" if op == "conv_transpose" else "OI") + SPATIAL_LETTERS.get(rank, "")
        layout = None
        if rank in SPATIAL_LETTERS:
            by_axis = dict(zip(order, letters, strict=True))
            layout = "".join(by_axis[axis] for axis in range(len(letters)))
        roles = {"weight": self._use(stored), **roles}
        attributes = conv_attributes(operation, rank, layout)
        if operation.op_type in _DEPTHWISE:
            attributes = replace(attributes, groups=weight.shape[0], padding=None)
        return _Draft(operation, op, roles, attributes)

    def _quantised(self, operation: Operation, places: _Quantised) -> _Draft:
        constants = self._constants
        weight = self._input(operation, places.weight)
        roles: dict[str, View] = {}
        if weight is not None:
            scale = self._input(operation, places.scale)
            if scale is None:
                scale = self._scale_behind(operation)
            zero_point = self._input(operation, places.zero_point)
            scaled = constants.dequantised(weight, scale, zero_point, axis=places.axis)
            if scaled is None:
                self._unscaled.add(weight.base)
            bias, input_scale = (
                self._input(operation, places.bias),
                self._input(operation, places.input_scale),
            )
            if bias is not None and scale is not None and input_scale is not None:
                shape = bias.shape
                product = bias.then(Step("dequantise", others=(scale,), axis=0), shape)
                roles["bias"] = self._use(
                    product.then(Step("dequantise", others=(input_scale,), axis=0), shape)
                )
            weight = scaled or weight
        for place in set(range(len(operation.inputs))) - {places.weight, places.bias}:
            parameter = self._input(operation, place)
            if parameter is not None and len(parameter.shape) < 2:
                constants.parameters.add(parameter.base)
        if places.op == "conv":
            return self._with_weight(operation, "conv", weight, roles, place=places.weight)
        if weight is None:
            return _Draft(operation, "other", {})
        return _Draft(operation, "linear", {"weight": self._use(weight.stored_form()), **roles})

    def _scale_behind(self, operation: Operation) -> View | None:
        """Find the weight scale a dynamically quantised operation is multiplied by afterwards.

        Such models multiply the integer result, to which a bias may have been added, by (input
        scale · weight scale): the one constant factor is the weight's. Two constant factors could
        be either, so they are none.
        """
        value = operation.outputs[0] if operation.outputs else ""
        for _ in range(6):
            readers = self._readers.get(value, [])
            product = next((r for r in readers if r.op_type == "Mul"), None)
            if product is not None:
                others = [n for n in product.inputs if n != value]
                factors = self._factors(others)
                return factors[0] if len(factors) == 1 else None
            passing = next((r for r in readers if r.op_type in _BEFORE_SCALE), None)
            if passing is None:
                return None
            value = passing.outputs[0]
        return None

    def _factors(self, values: Sequence[str]) -> list[View]:
        """Constant factors of a product, looking through what only changes its shape."""
        factors: list[View] = []
        waiting = list(values)
        for _ in range(16):
            if not waiting:
                break
            value = waiting.pop()
            view = self._constants.views.get(value)
            producer = self._producers.get(value)
            if view is not None:
                factors.append(view)
            elif producer is None:
                continue
            elif producer.op_type == "Mul":
                waiting += producer.inputs
            elif producer.op_type in ("Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity"):
                waiting.append(producer.inputs[0])
        return factors
