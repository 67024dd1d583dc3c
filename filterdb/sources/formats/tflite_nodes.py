"""TFLite operators as filterdb's nodes: convolutions with their layout, constants behind casts."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from filterdb.layers.raw import SPATIAL_LETTERS, ConvAttributes, Node
from filterdb.sources.formats.tflite_calls import find_calls
from filterdb.sources.formats.tflite_values import is_quantised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from filterdb.layers.raw import NodeOp
    from filterdb.sources.formats.flatbuffer import Table
    from filterdb.sources.formats.tflite_calls import Call
    from filterdb.sources.formats.tflite_schema import (
        OperatorRecord,
        SubgraphRecord,
        TensorRecord,
    )

#: Operators that hand a constant on unchanged.
_PASSING = frozenset({"DEQUANTIZE", "DENSIFY", "CAST"})

#: Positions of the parameters: kind → (op, {role: input}).
_OPERATORS: Mapping[str, tuple[NodeOp, Mapping[str, int]]] = {
    "CONV_2D": ("conv", {"weight": 1, "bias": 2}),
    "DEPTHWISE_CONV_2D": ("conv", {"weight": 1, "bias": 2}),
    "CONV_3D": ("conv", {"weight": 1, "bias": 2}),
    "TRANSPOSE_CONV": ("conv_transpose", {"weight": 1, "bias": 3}),
    "CONV_3D_TRANSPOSE": ("conv_transpose", {"weight": 1, "bias": 3}),
    "STABLEHLO_CONVOLUTION": ("conv", {"weight": 1}),
    "custom:Convolution2DTransposeBias": ("conv_transpose", {"weight": 1, "bias": 2}),
    "FULLY_CONNECTED": ("linear", {"weight": 1, "bias": 2}),
    "BATCH_MATMUL": ("linear", {"weight": 1}),
    "EMBEDDING_LOOKUP": ("embedding", {"weight": 1}),
    "GATHER": ("embedding", {"weight": 0}),
    "PRELU": ("norm", {"gamma": 1}),
}
_RECURRENT = frozenset(
    {
        "LSTM", "RNN", "SVDF", "UNIDIRECTIONAL_SEQUENCE_RNN", "UNIDIRECTIONAL_SEQUENCE_LSTM",
        "BIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM",
    }
)  # fmt: skip
_IDENTITY = frozenset({"DEQUANTIZE", "QUANTIZE", "DENSIFY", "CAST"})

#: Per convolution: layout, spatial axes, and the option fields (padding, strides, dilations).
_GEOMETRY: Mapping[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "CONV_2D": ("OHWI", (2, 1), (5, 4)),
    "DEPTHWISE_CONV_2D": ("1HWO", (2, 1), (6, 5)),
    "TRANSPOSE_CONV": ("OHWI", (2, 1), ()),
    "CONV_3D": ("DHWIO", (1, 3, 2), (5, 7, 6)),
    "CONV_3D_TRANSPOSE": ("DHWOI", (1, 3, 2), (5, 7, 6)),
}


def translate(subgraphs: Sequence[SubgraphRecord]) -> tuple[list[Node], set[str]]:
    """Translate every operator that computes something.

    Parameters
    ----------
    subgraphs
        Of one model, while its file is mapped: options are still packed.

    Returns
    -------
    tuple
        Nodes in execution order, subgraph after subgraph; names of the constants used as weights
        although nothing says what their integers are worth.
    """
    calls = {call.callee: call for call in find_calls(subgraphs)}
    translators: dict[int, _Translator] = {}
    # Callers come before those they call, and hand constants on to them.
    for number in [0, *calls, *range(1, len(subgraphs))]:
        if number not in translators and number < len(subgraphs):
            call = calls.get(number)
            given = {} if call is None else translators[call.caller].handed_on(call)
            translators[number] = _Translator(subgraphs[number], given)
    nodes: list[Node] = []
    for number, translator in sorted(translators.items()):
        call = calls.get(number)
        if call is not None:
            nodes.append(_entrance(call, translators))
        results: dict[int, tuple[str, ...]] = {}
        for made in calls.values():
            if made.caller == number:
                before = results.get(id(made.operator), ())
                results[id(made.operator)] = before + translators[made.callee].results
        nodes += translator.nodes(results)
    return nodes, {name for t in translators.values() for name in t.unscaled}


def _entrance(call: Call, translators: Mapping[int, _Translator]) -> Node:
    """Join the activations an operator hands into a subgraph to their names there."""
    outer, inner = translators[call.caller], translators[call.callee]
    pairs = [(o, i) for o, i in call.arguments if i not in inner.sources]
    return Node(
        name=f"subgraph {call.callee}",
        op="identity",
        inputs=tuple(outer.tensors[o].name for o, _i in pairs if o not in outer.sources),
        outputs=tuple(inner.tensors[i].name for _o, i in pairs),
        source_op=call.operator.kind,
    )


class _Translator:
    """Makes nodes of one subgraph.

    Parameters
    ----------
    subgraph
        Its tensors and operators.
    given
        Constants of other subgraphs that are handed in, by index of the input.
    """

    def __init__(self, subgraph: SubgraphRecord, given: Mapping[int, TensorRecord]) -> None:
        self.tensors = subgraph.tensors
        self._operators = subgraph.operators
        self._names: set[str] = set()
        #: Names of constants used as weights although nothing says what their integers are worth.
        self.unscaled: set[str] = set()
        #: Constants behind tensors.
        self.sources: dict[int, TensorRecord] = {
            **{i: record for i, record in enumerate(subgraph.tensors) if record.constant},
            **given,
        }
        #: Names of what the subgraph yields.
        self.results = tuple(self.tensors[i].name for i in subgraph.outputs if i >= 0)
        # Operators are in execution order, so one pass sees every chain of constants.
        for operator in subgraph.operators:
            if operator.kind in _PASSING and operator.inputs and operator.outputs:
                source = self.sources.get(operator.inputs[0])
                if source is not None:
                    self.sources.setdefault(operator.outputs[0], source)

    def handed_on(self, call: Call) -> dict[int, TensorRecord]:
        """Constants that stay what they are inside the subgraph they are handed to.

        Parameters
        ----------
        call
            An operator of this subgraph.

        Returns
        -------
        dict
            By index of the tensor there.
        """
        return {
            inner: self.sources[outer]
            for outer, inner in call.arguments
            if outer in self.sources and inner in call.kept
        }

    def nodes(self, results: Mapping[int, tuple[str, ...]]) -> list[Node]:
        """Translate every operator that computes something.

        Parameters
        ----------
        results
            What the subgraphs yield that operators call, by the operator's ``id``.

        Returns
        -------
        list of Node
            In execution order.
        """
        return [
            self._node(operator, results.get(id(operator), ()))
            for operator in self._operators
            if not (
                operator.kind in _PASSING
                and operator.outputs
                and all(index in self.sources for index in operator.outputs)
            )
        ]

    def _source(self, operator: OperatorRecord, place: int) -> TensorRecord | None:
        """Return the constant behind an input, as it is stored."""
        return self.sources.get(_input(operator, place))

    def _node(self, operator: OperatorRecord, yielded: tuple[str, ...]) -> Node:
        op, weights = self._parameters(operator)
        convolution = op in ("conv", "conv_transpose")
        dynamic = None
        if convolution and "weight" not in weights and len(operator.inputs) > 1:
            index = _input(operator, _OPERATORS[operator.kind][1]["weight"])
            dynamic = self.tensors[index].name if index >= 0 else None
        return Node(
            name=self._name(operator),
            op=op,
            inputs=(
                *(
                    self.tensors[i].name
                    for i in operator.inputs
                    if i >= 0 and i not in self.sources
                ),
                *yielded,
            ),
            outputs=tuple(self.tensors[i].name for i in operator.outputs if i >= 0),
            weights=weights,
            conv=self._geometry(operator) if convolution else None,
            dynamic_weight=dynamic,
            source_op=operator.kind,
        )

    def _name(self, operator: OperatorRecord) -> str:
        """Name an operator, which TFLite leaves unnamed, after its first result."""
        named = next((self.tensors[i].name for i in operator.outputs if i >= 0), operator.kind)
        name, n = named, 2
        while name in self._names:
            name, n = f"{named}#{n}", n + 1
        self._names.add(name)
        return name

    def _parameters(self, operator: OperatorRecord) -> tuple[NodeOp, dict[str, str]]:
        kind = operator.kind
        if kind in _RECURRENT:
            found = [self._source(operator, place) for place in range(len(operator.inputs))]
            named = [record.name for record in found if record is not None]
            return "linear", {f"weight_{i}": name for i, name in enumerate(named)}
        if kind in ("MUL", "ADD"):
            return self._elementwise(operator)
        if kind not in _OPERATORS or _turned(operator):
            return ("identity" if kind in _IDENTITY else "other"), {}
        op, places = _OPERATORS[kind]
        weights: dict[str, str] = {}
        for role, place in places.items():
            record = self._source(operator, place)
            if record is None:
                continue
            weights[role] = record.name
            if role == "weight" and not record.real and not is_quantised(record):
                self.unscaled.add(record.name)
        main = next(iter(places))
        if op in ("linear", "norm", "embedding") and main not in weights:
            return "other", {}
        if op == "embedding":
            table = self._source(operator, places[main])
            if table is None or len(table.shape) < 2 or not (table.real or is_quantised(table)):
                self.unscaled.discard(table.name if table is not None else "")
                return "other", {}
        return op, weights

    def _elementwise(self, operator: OperatorRecord) -> tuple[NodeOp, dict[str, str]]:
        found = [self._source(operator, place) for place in (0, 1)]
        constants = [record for record in found if record is not None]
        # One number per channel; scalars and feature maps are something else.
        if len(constants) != 1 or sum(n != 1 for n in constants[0].shape) != 1:
            return "other", {}
        return ("multiply" if operator.kind == "MUL" else "add"), {"constant": constants[0].name}

    def _geometry(self, operator: OperatorRecord) -> ConvAttributes:
        weight = self._source(operator, 1)
        if operator.kind.startswith("custom:"):
            return _custom_geometry(operator.custom_options)
        if operator.kind == "STABLEHLO_CONVOLUTION":
            return _stablehlo_geometry(operator.options)
        layout, strides, dilations = _GEOMETRY[operator.kind]
        options = operator.options
        return ConvAttributes(
            layout=layout,
            groups=self._groups(operator, weight),
            stride=_extents(options, strides),
            dilation=_extents(options, dilations) if dilations else (1,) * len(strides),
            padding=_padding(options.integer(0, "i1") if options else 0, len(strides)),
        )

    def _groups(self, operator: OperatorRecord, weight: TensorRecord | None) -> int | None:
        if operator.kind == "TRANSPOSE_CONV":
            return 1
        index = _input(operator, 2 if operator.kind == "CONV_3D_TRANSPOSE" else 0)
        shape = self.tensors[index].shape if index >= 0 else ()
        channels = shape[-1] if len(shape) > 2 and shape[-1] > 0 else None
        if weight is None or len(weight.shape) < 4:
            return None
        if operator.kind == "DEPTHWISE_CONV_2D":
            multiplier = operator.options.integer(3, "i4") if operator.options else 0
            outputs = weight.shape[-1]
            if channels and outputs % channels == 0:
                return channels
            return outputs // multiplier if multiplier > 0 else outputs
        per_group = weight.shape[-1 if operator.kind in ("CONV_2D", "CONV_3D_TRANSPOSE") else -2]
        if channels is None or per_group < 1 or channels % per_group:
            return None
        return channels // per_group


def _input(operator: OperatorRecord, place: int) -> int:
    """Index of the tensor an operator reads there; −1 where it reads none."""
    return operator.inputs[place] if place < len(operator.inputs) else -1


def _extents(options: Table | None, fields: tuple[int, ...]) -> tuple[int, ...]:
    return tuple((options.integer(field, "i4", 1) if options else 1) or 1 for field in fields)


def _padding(code: int, rank: int) -> tuple[int, ...] | None:
    # 0 is SAME, which depends on the input's extent; 1 is VALID.
    return (0,) * rank if code == 1 else None


def _turned(operator: OperatorRecord) -> bool:
    """Whether a convolution runs its kernel backwards, as gradients do."""
    options = operator.options
    if operator.kind != "STABLEHLO_CONVOLUTION" or options is None:
        return False
    return bool(options.array(4, "u1").any())


def _stablehlo_geometry(options: Table | None) -> ConvAttributes:
    """StableHLO's convolution says itself which axis of the kernel is which."""
    if options is None:
        return ConvAttributes()
    places = [int(n) for n in options.numbers(10, "i8")]
    rank = len(places)
    letters = dict(zip(places, SPATIAL_LETTERS.get(rank, ""), strict=False))
    letters[options.integer(8, "i8")] = "I"
    letters[options.integer(9, "i8")] = "O"
    layout = None
    if rank in SPATIAL_LETTERS and sorted(letters) == list(range(rank + 2)):
        layout = "".join(letters[i] for i in range(rank + 2))
    pads = tuple(int(n) for n in options.numbers(1, "i8")) or (0,) * (2 * rank)
    begin, end = pads[0::2], pads[1::2]
    ones = (1,) * rank
    return ConvAttributes(
        layout=layout,
        groups=options.integer(14, "i8") or 1,
        stride=tuple(int(n) for n in options.numbers(0, "i8")) or ones,
        dilation=tuple(int(n) for n in options.numbers(3, "i8")) or ones,
        padding=begin if begin == end else begin + end,
    )


def _custom_geometry(options: bytes) -> ConvAttributes:
    """MediaPipe's transposed convolution: its options are padding, stride width and height."""
    stride = padding = None
    if len(options) >= 12:
        code, width, height = struct.unpack_from("<3i", options)
        if 0 < width < 1 << 16 and 0 < height < 1 << 16:
            stride, padding = (height, width), _padding(code - 1, 2)
    return ConvAttributes("OHWI", 1, stride, (1, 1), padding)
