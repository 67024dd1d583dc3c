"""Core ML neural networks: layers with their weights in line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from filterdb.errors import UnsafeCheckpointError
from filterdb.layers.raw import ConvAttributes, Node, NodeOp
from filterdb.sources.formats.constant_pool import unique_name
from filterdb.sources.formats.coreml_fields import Fields, extents
from filterdb.sources.formats.coreml_weights import parse_weights, weight_tensor
from filterdb.sources.formats.memory_room import Room

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from filterdb.layers.raw import Tensor
    from filterdb.sources.formats.protobuf_wire import WireReader
    from filterdb.types import Shape

#: Branches within loops within branches, and so on.
_MAX_DEPTH = 16

#: Memory for what is made of the messages, in bytes: flat, and for each part.
_FLAT = 128 * 1024 * 1024
_LAYER, _WEIGHT, _WORD = 3000, 2000, 200

#: Layers without weights of their own that filterdb has a word for: field number → kind.
_PLAIN: dict[int, NodeOp] = {
    230: "add", 880: "add", 231: "multiply", 900: "multiply", 600: "identity",
}  # fmt: skip
#: Fields that hold weights of layers whose parts play no role: field number → kind and fields.
_VECTORS: dict[int, tuple[NodeOp, dict[int, str]]] = {
    1350: ("norm", {3: "gamma", 4: "beta"}),
}
_RECURRENT: dict[int, tuple[int, ...]] = {
    400: (30, 31, 32),
    410: (30, 31, 32, 50, 51, 52, 70, 71, 72),
}
_LSTM = {420: "uniDirectionalLSTM", 430: "biDirectionalLSTM"}
_LSTM_FIELDS: tuple[int, ...] = (1, 2, 3, 4, 20, 21, 22, 23, 40, 41, 42, 43, 60, 61, 62)


@dataclass(frozen=True)
class Record:
    """One layer: its name, what it reads and writes, and the field that says what it is."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    number: int = 0
    start: int = 0
    end: int = 0


@dataclass
class Contents:
    """What has been found in a model so far; shared by the parts of a pipeline."""

    tensors: list[Tensor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    tensor_names: dict[str, int] = field(default_factory=dict)
    node_names: dict[str, int] = field(default_factory=dict)
    room: Room | None = None


class NetworkReader:
    """Reads the layers of one network.

    Parameters
    ----------
    wire
        The file.
    path
        Where it lies.
    contents
        Filled with tensors and nodes.
    prefix
        Put before names, for parts of a pipeline.
    value
        Turns the name of an activation into one that is unique in the file.
    """

    def __init__(
        self,
        wire: WireReader,
        path: Path,
        contents: Contents,
        *,
        prefix: str = "",
        value: Callable[[str], str] = str,
    ) -> None:
        self.wire = wire
        self.path = path
        self.contents = contents
        self._room = contents.room or Room(len(wire.data), flat=_FLAT, where=wire.where)
        contents.room = self._room
        self._prefix = prefix
        self._value = value
        #: Values that are stored arrays: value → tensor.
        self._constants: dict[str, Tensor] = {}

    def network(self, start: int, end: int, depth: int = 0) -> None:
        """Read a ``NeuralNetwork`` (or classifier, or regressor) message.

        Parameters
        ----------
        start, end
            Its byte range.
        depth
            How many branches and loops it lies in.
        """
        if depth > _MAX_DEPTH:
            raise UnsafeCheckpointError(
                f"{self.wire.where} nests more than {_MAX_DEPTH} branches and loops"
            )
        for number, fields in Fields(self.wire, start, end).messages():
            if number != 1:
                continue
            self._room.take(_LAYER)
            layer = self._record(fields)
            if layer.number in (605, 615):
                self._node(layer, "other", {}, source="branch" if layer.number == 605 else "loop")
                for part, (a, b) in self._parts(layer):
                    if (layer.number, part) in ((605, 1), (605, 2), (615, 3), (615, 4)):
                        self.network(a, b, depth + 1)
            else:
                self._layer(layer)

    def _record(self, fields: Fields) -> Record:
        number, start, end = 0, 0, 0
        inputs: list[str] = []
        outputs: list[str] = []
        for n, part in fields.messages():
            if n in (2, 3):
                self._room.take(_WORD + part.end - part.start)
                (inputs if n == 2 else outputs).append(part.as_text())
            elif n >= 100:
                number, start, end = n, part.start, part.end
        name = fields.text(1) or (outputs[0] if outputs else "layer")
        return Record(name, tuple(inputs), tuple(outputs), number, start, end)

    def _parts(self, layer: Record) -> list[tuple[int, tuple[int, int]]]:
        fields = Fields(self.wire, layer.start, layer.end)
        return [(number, (part.start, part.end)) for number, part in fields.messages()]

    def _layer(self, layer: Record) -> None:
        handlers: dict[int, Callable[[Record, Fields], None]] = {
            100: self._convolution, 1471: self._convolution_3d, 140: self._inner_product,
            1045: self._inner_product, 150: self._embedding, 1040: self._embedding,
            160: self._batch_norm, 245: self._scale, 250: self._bias, 290: self._load,
            1070: self._load, 130: self._activation, 500: self._custom,
        }  # fmt: skip
        number = layer.number
        fields = Fields(self.wire, layer.start, layer.end)
        if number in handlers:
            handlers[number](layer, fields)
        elif number in _VECTORS:
            op, roles = _VECTORS[number]
            weights = {r: self._weight(layer, fields, n, r, (-1,)) for n, r in roles.items()}
            self._node(layer, op, _present(weights))
        elif number in _RECURRENT:
            self._recurrent(layer, [(fields, _RECURRENT[number])])
        elif number in _LSTM:
            self._recurrent(layer, [(p, _LSTM_FIELDS) for n, p in fields.messages() if n == 20])
        elif number in _PLAIN:
            self._by_constant(layer, _PLAIN[number])
        else:
            self._node(layer, "other", {})

    def _convolution(self, layer: Record, fields: Fields) -> None:
        out, into = fields.integer(1), fields.integer(2)
        groups = fields.integer(10) or 1
        kernel = fields.integers(20) or (3, 3)
        transposed = bool(fields.integer(60))
        shape = (into, out // groups, *kernel) if transposed else (out, into, *kernel)
        weights = {
            "weight": self._weight(layer, fields, 90, "weight", shape, axis=int(transposed)),
            "bias": self._weight(layer, fields, 91, "bias", (-1,)),
        }
        attributes = ConvAttributes(
            layout="IOHW" if transposed else "OIHW",
            groups=groups,
            stride=extents(fields.integers(30) or (1, 1), 2, least=1),
            dilation=extents(fields.integers(40) or (1, 1), 2, least=1),
            padding=self._padding(fields),
        )
        self._convolve(layer, weights, attributes, transposed=transposed)

    def _padding(self, fields: Fields) -> tuple[int, ...] | None:
        valid = fields.message(50)
        if valid is None:
            return None if fields.message(51) is not None else (0, 0)
        amounts = valid.message(1)
        if amounts is None:
            return (0, 0)
        pairs = [(edge.integer(1), edge.integer(2)) for n, edge in amounts.messages() if n == 10]
        if not pairs:
            return (0, 0)
        begin = extents(tuple(a for a, _ in pairs), 2, least=0)
        end = extents(tuple(b for _, b in pairs), 2, least=0)
        if begin is None or end is None:
            return None
        return begin if begin == end else begin + end

    def _convolution_3d(self, layer: Record, fields: Fields) -> None:
        out, into = fields.integer(1), fields.integer(2)
        groups = fields.integer(10) or 1
        kernel = tuple(fields.integer(n) for n in (20, 21, 22))
        transposed = bool(fields.integer(86))
        shape = (into, out // groups, *kernel) if transposed else (out, into // groups, *kernel)
        weights = {
            "weight": self._weight(layer, fields, 60, "weight", shape, axis=int(transposed)),
            "bias": self._weight(layer, fields, 61, "bias", (-1,)),
        }
        padding: tuple[int, ...] | None = (0, 0, 0)
        if fields.integer(70) == 2:
            padding = None
        elif fields.integer(70) == 0:
            begin, end = ([fields.integer(n) for n in numbers] for numbers in _EDGES_3D)
            padding = extents(tuple(begin if begin == end else begin + end), None, least=0)
        attributes = ConvAttributes(
            layout="IODHW" if transposed else "OIDHW",
            groups=groups,
            stride=extents(tuple(fields.integer(n) or 1 for n in (31, 32, 33)), 3, least=1),
            dilation=extents(tuple(fields.integer(n) or 1 for n in (40, 41, 42)), 3, least=1),
            padding=padding,
        )
        self._convolve(layer, weights, attributes, transposed=transposed)

    def _convolve(
        self,
        layer: Record,
        weights: Mapping[str, str | None],
        attributes: ConvAttributes,
        *,
        transposed: bool,
    ) -> None:
        kept = _present(weights)
        dynamic = None
        if "weight" not in kept and len(layer.inputs) > 1:
            stored = self._constants.get(layer.inputs[1])
            if stored is not None:
                kept["weight"] = stored.name
            else:
                dynamic = layer.inputs[1]
        self._node(
            layer, "conv_transpose" if transposed else "conv", kept,
            attributes=attributes, dynamic=dynamic,
        )  # fmt: skip

    def _inner_product(self, layer: Record, fields: Fields) -> None:
        batched = layer.number == 1045
        rows, columns = fields.integer(6 if batched else 2), fields.integer(5 if batched else 1)
        weights = {
            "weight": self._weight(layer, fields, 8 if batched else 20, "weight", (rows, columns)),
            "bias": self._weight(layer, fields, 9 if batched else 21, "bias", (-1,)),
        }
        kept = _present(weights)
        self._node(layer, "linear" if "weight" in kept else "other", kept)

    def _embedding(self, layer: Record, fields: Fields) -> None:
        shape = (fields.integer(2), fields.integer(1))
        weights = {
            "weight": self._weight(layer, fields, 20, "weight", shape),
            "bias": self._weight(layer, fields, 21, "bias", (-1,)),
        }
        self._node(layer, "embedding", _present(weights))

    def _batch_norm(self, layer: Record, fields: Fields) -> None:
        roles = {15: "gamma", 16: "beta", 17: "mean", 18: "var"}
        weights = {r: self._weight(layer, fields, n, r, (-1,)) for n, r in roles.items()}
        kept = _present(weights)
        # Statistics of the input itself: an instance norm.
        computed = fields.integer(5) or fields.integer(6) or not {"mean", "var"} <= kept.keys()
        self._node(layer, "norm" if computed else "batch_norm", kept, epsilon=fields.real(10, 1e-5))

    def _scale(self, layer: Record, fields: Fields) -> None:
        scale = self._weight(layer, fields, 2, "scale", fields.integers(1) or (-1,))
        shift = self._weight(layer, fields, 5, "bias", fields.integers(4) or (-1,))
        outputs = (f"{layer.name}/product",) if shift else layer.outputs
        product = Record(layer.name, layer.inputs, outputs, layer.number)
        self._node(product, "multiply", _present({"constant": scale}))
        if shift:
            added = Record(f"{layer.name}/bias", outputs, layer.outputs, layer.number)
            self._node(added, "add", {"constant": shift})

    def _bias(self, layer: Record, fields: Fields) -> None:
        shift = self._weight(layer, fields, 2, "bias", fields.integers(1) or (-1,))
        self._node(layer, "add", _present({"constant": shift}))

    def _load(self, layer: Record, fields: Fields) -> None:
        name = self._weight(layer, fields, 2, "data", fields.integers(1) or (-1,))
        if name is not None:
            for value in layer.outputs:
                self._constants[value] = self.contents.tensors[-1]

    def _by_constant(self, layer: Record, op: NodeOp) -> None:
        stored = [self._constants[v] for v in layer.inputs if v in self._constants]
        # One number per channel; scalars, grids and feature maps are something else.
        if op == "identity" or len(stored) != 1 or sum(n != 1 for n in stored[0].shape) != 1:
            self._node(layer, op if op == "identity" else "other", {})
            return
        self._node(layer, op, {"constant": stored[0].name})

    def _activation(self, layer: Record, fields: Fields) -> None:
        prelu = fields.message(25)
        if prelu is None:
            self._node(layer, "other", {}, source="activation")
            return
        slopes = self._weight(layer, prelu, 1, "slope", (-1,))
        self._node(layer, "norm", _present({"weight": slopes}), source="PReLU")

    def _custom(self, layer: Record, fields: Fields) -> None:
        for number, part in fields.messages():
            if number == 20:
                self._add(layer, part, "weight", (-1,))
        self._node(layer, "other", {}, source=fields.text(10) or "custom")

    def _recurrent(self, layer: Record, parts: list[tuple[Fields, tuple[int, ...]]]) -> None:
        names = [
            self._weight(layer, fields, number, "weight", (-1,))
            for fields, numbers in parts
            for number in numbers
        ]
        weights = {f"weight{i}": name for i, name in enumerate(names) if name is not None}
        self._node(layer, "linear", weights, source="LSTM" if layer.number in _LSTM else "RNN")

    def _weight(
        self, layer: Record, fields: Fields, number: int, role: str, shape: Shape, *, axis: int = 0
    ) -> str | None:
        """Add one of a layer's weights; None where it has none."""
        message = fields.message(number)
        return None if message is None else self._add(layer, message, role, shape, axis=axis)

    def _add(
        self, layer: Record, message: Fields, role: str, shape: Shape, *, axis: int = 0
    ) -> str | None:
        record = parse_weights(self.wire, message.start, message.end)
        if record.empty:
            return None
        self._room.take(_WEIGHT)
        name = unique_name(f"{self._prefix}{layer.name}.{role}", self.contents.tensor_names)
        size = len(self.wire.data)
        tensor = weight_tensor(record, name, shape, path=self.path, size=size, axis=axis)
        self.contents.tensors.append(tensor)
        return name

    def _node(
        self,
        layer: Record,
        op: NodeOp,
        weights: Mapping[str, str],
        *,
        attributes: ConvAttributes | None = None,
        dynamic: str | None = None,
        epsilon: float | None = None,
        source: str = "",
    ) -> None:
        used = {dynamic} | self._constants.keys()
        self.contents.nodes.append(
            Node(
                name=unique_name(f"{self._prefix}{layer.name}", self.contents.node_names),
                op=op,
                inputs=tuple(self._value(v) for v in layer.inputs if v not in used),
                outputs=tuple(self._value(v) for v in layer.outputs),
                weights=weights,
                conv=attributes,
                epsilon=epsilon,
                dynamic_weight=None if dynamic is None else self._value(dynamic),
                source_op=source or f"layer {layer.number}",
            )
        )


#: Fields of a 3-D convolution's padding: front, top, left; back, bottom, right.
_EDGES_3D = ((80, 82, 84), (81, 83, 85))


def _present(weights: Mapping[str, str | None]) -> dict[str, str]:
    return {role: name for role, name in weights.items() if name is not None}
