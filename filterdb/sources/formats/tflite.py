"""TFLite models: constants behind their dequantising operators, convolutions with their layout."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError
from filterdb.layers.raw import ConvAttributes, Node, RawModel, Tensor
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.flatbuffer import FlatBuffer
from filterdb.sources.formats.tflite_schema import external_files, parse_model
from filterdb.sources.formats.tflite_values import (
    check_values,
    is_quantised,
    load_values,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from filterdb.layers.raw import NodeOp
    from filterdb.sources.formats.flatbuffer import Table
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


def sniff(head: bytes, _file: ModelFile) -> bool:
    """Tell whether a file is a TFLite flatbuffer.

    Parameters
    ----------
    head
        The first bytes.

    Returns
    -------
    bool
        True where the file identifier is TFLite's.
    """
    return head[4:8] == b"TFL3"


def read(file: ModelFile) -> RawModel:
    """List the tensors and operators of a TFLite model.

    Parameters
    ----------
    file
        The model.

    Returns
    -------
    RawModel
        Constants under their own names, dequantised; activations by the names of their tensors.

    Raises
    ------
    SourceError
        If the file is damaged or of another schema version.
    """
    with map_file(file.path) as data:
        return read_part(file, FlatBuffer(data, where=file.name or file.path.name))


def read_part(file: ModelFile, buffer: FlatBuffer) -> RawModel:
    """List the tensors and operators of a TFLite model that may lie inside another file.

    Parameters
    ----------
    file
        The file it lies in.
    buffer
        The model's bytes, mapped.

    Returns
    -------
    RawModel
        As for :func:`read`.

    Raises
    ------
    SourceError
        If it is damaged or of another schema version.
    """
    nodes: list[Node] = []
    tensors: list[Tensor] = []
    model = parse_model(buffer)
    for subgraph in model.subgraphs:
        # Options are still packed, so nodes are made while the file is mapped.
        translator = _Translator(subgraph)
        nodes += translator.nodes()
        for index, record in enumerate(subgraph.tensors):
            if record.constant:
                unscaled = index in translator.unscaled
                tensors.append(_tensor(file, record, buffer, unscaled=unscaled))
    description = f" ({model.description})" if model.description else ""
    return RawModel(
        format="tflite",
        tensors=tuple(tensors),
        nodes=tuple(nodes),
        has_edges=True,
        folds_batch_norm=True,
        default_layout="OHWI",
        notes=(f"TFLite schema {model.version}{description}",),
    )


def companions(file: ModelFile) -> tuple[str, ...]:
    """Name the files a model keeps its external buffers in.

    Parameters
    ----------
    file
        The model.

    Returns
    -------
    tuple of str
        As the model names them.

    Raises
    ------
    SourceError
        If the file is damaged.
    """
    with map_file(file.path) as data:
        return external_files(FlatBuffer(data, where=file.name or file.path.name))


def _tensor(file: ModelFile, record: TensorRecord, buffer: FlatBuffer, *, unscaled: bool) -> Tensor:
    path, record, size = _located(file, record, buffer.size)
    check_values(record, buffer.where)
    skip = refusal(record)
    if skip is None and unscaled:
        skip = ("missing_scale", f"{record.dtype} weights without a scale")
    return Tensor(
        name=record.name,
        shape=record.shape,
        dtype=record.dtype,
        load=partial(load_values, path, record, size),
        quantised=is_quantised(record),
        storage=(path.name, record.data[0]) if record.data is not None else None,
        skip=skip,
    )


def _located(file: ModelFile, record: TensorRecord, size: int) -> tuple[Path, TensorRecord, int]:
    """Find out in which file a tensor's values lie, and how large that is."""
    outside = record.external
    path = file.companions.get(outside.file) if outside is not None else None
    if outside is None or path is None or outside.packing not in ("", "unpacked"):
        return file.path, record, size
    place, size = (outside.start, outside.start + outside.size), path.stat().st_size
    if place[1] > size:
        raise MalformedFileError(
            f"tensor {record.name!r} lies at bytes {place[0]} to {place[1]} of {outside.file!r}, "
            f"which is {size} bytes long"
        )
    return path, replace(record, data=place, external=None), size


class _Translator:
    """Makes nodes of one subgraph.

    Parameters
    ----------
    subgraph
        Its tensors and operators.
    """

    def __init__(self, subgraph: SubgraphRecord) -> None:
        self._tensors = subgraph.tensors
        self._operators = subgraph.operators
        self._names: set[str] = set()
        #: Constants used as weights although nothing says what their integers are worth.
        self.unscaled: set[int] = set()
        self._sources: dict[int, int] = {
            i: i for i, record in enumerate(subgraph.tensors) if record.constant
        }
        # Operators are in execution order, so one pass sees every chain of constants.
        for operator in subgraph.operators:
            if operator.kind in _PASSING and operator.inputs and operator.outputs:
                source = self._sources.get(operator.inputs[0])
                if source is not None:
                    self._sources.setdefault(operator.outputs[0], source)

    def nodes(self) -> list[Node]:
        """Translate every operator that computes something.

        Returns
        -------
        list of Node
            In execution order.
        """
        return [
            self._node(operator)
            for operator in self._operators
            if not (
                operator.kind in _PASSING
                and operator.outputs
                and all(index in self._sources for index in operator.outputs)
            )
        ]

    def _source(self, operator: OperatorRecord, place: int) -> TensorRecord | None:
        """Return the constant behind an input, as it is stored."""
        source = self._sources.get(_input(operator, place))
        return None if source is None else self._tensors[source]

    def _node(self, operator: OperatorRecord) -> Node:
        op, weights = self._parameters(operator)
        convolution = op in ("conv", "conv_transpose")
        dynamic = None
        if convolution and "weight" not in weights and len(operator.inputs) > 1:
            index = _input(operator, _OPERATORS[operator.kind][1]["weight"])
            dynamic = self._tensors[index].name if index >= 0 else None
        return Node(
            name=self._name(operator),
            op=op,
            inputs=tuple(
                self._tensors[i].name for i in operator.inputs if i >= 0 and i not in self._sources
            ),
            outputs=tuple(self._tensors[i].name for i in operator.outputs if i >= 0),
            weights=weights,
            conv=self._geometry(operator) if convolution else None,
            dynamic_weight=dynamic,
            source_op=operator.kind,
        )

    def _name(self, operator: OperatorRecord) -> str:
        """Name an operator, which TFLite leaves unnamed, after its first result."""
        named = next((self._tensors[i].name for i in operator.outputs if i >= 0), operator.kind)
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
        if kind not in _OPERATORS:
            return ("identity" if kind in _IDENTITY else "other"), {}
        op, places = _OPERATORS[kind]
        weights: dict[str, str] = {}
        for role, place in places.items():
            record = self._source(operator, place)
            if record is None:
                continue
            weights[role] = record.name
            if role == "weight" and not record.real and not is_quantised(record):
                self.unscaled.add(self._sources[operator.inputs[place]])
        main = next(iter(places))
        if op in ("linear", "norm", "embedding") and main not in weights:
            return "other", {}
        if op == "embedding":
            table = self._source(operator, places[main])
            if table is None or len(table.shape) < 2 or not (table.real or is_quantised(table)):
                self.unscaled.discard(self._sources.get(operator.inputs[places[main]], -1))
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
        shape = self._tensors[index].shape if index >= 0 else ()
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


def _custom_geometry(options: bytes) -> ConvAttributes:
    """MediaPipe's transposed convolution: its options are padding, stride width and height."""
    stride = padding = None
    if len(options) >= 12:
        code, width, height = struct.unpack_from("<3i", options)
        if 0 < width < 1 << 16 and 0 < height < 1 << 16:
            stride, padding = (height, width), _padding(code - 1, 2)
    return ConvAttributes("OHWI", 1, stride, (1, 1), padding)


READER = FormatReader(
    name="tflite",
    title="TensorFlow Lite",
    suffixes=(".tflite", ".lite"),
    sniff=sniff,
    read=read,
    companions=companions,
)
