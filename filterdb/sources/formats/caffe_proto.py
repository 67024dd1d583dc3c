"""Caffe's NetParameter as it lies in a file: layers of all three generations, blobs by offset.

Field numbers are those of the public ``caffe.proto``: ``layer`` (100, since 2014), ``layers``
(2, "V1", types by number) and, inside a V1 layer, ``layer`` (1, "V0"). NVCaffe's blobs of half
precision are read too: ``raw_data`` (0.16 and later) and ``half_data`` (0.14).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.base import MAX_TENSORS
from filterdb.sources.formats.memory_room import Room
from filterdb.sources.formats.protobuf_wire import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    WireReader,
    signed,
)

if TYPE_CHECKING:
    from filterdb.types import Shape

#: V1LayerParameter.LayerType → the name LayerParameter gives the same layer.
_V1_TYPES = {
    1: "Accuracy", 2: "BNLL", 3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout",
    7: "EuclideanLoss", 8: "Flatten", 9: "HDF5Data", 10: "HDF5Output", 11: "Im2col",
    12: "ImageData", 13: "InfogainLoss", 14: "InnerProduct", 15: "LRN",
    16: "MultinomialLogisticLoss", 17: "Pooling", 18: "ReLU", 19: "Sigmoid", 20: "Softmax",
    21: "SoftmaxWithLoss", 22: "Split", 23: "TanH", 24: "WindowData", 25: "Eltwise", 26: "Power",
    27: "SigmoidCrossEntropyLoss", 28: "HingeLoss", 29: "MemoryData", 30: "ArgMax",
    31: "Threshold", 32: "DummyData", 33: "Slice", 34: "MVN", 35: "AbsVal", 36: "Silence",
    37: "ContrastiveLoss", 38: "Exp", 39: "Deconvolution",
}  # fmt: skip
_V0_TYPES = {
    "conv": "Convolution", "innerproduct": "InnerProduct", "relu": "ReLU", "pool": "Pooling",
    "dropout": "Dropout", "split": "Split", "softmax": "Softmax",
}  # fmt: skip
#: NVCaffe's enum Type.
_RAW_TYPES = {0: "float64", 1: "float32", 2: "float16", 3: "int32", 4: "uint32"}
#: ConvolutionParameter: repeated extents, and the pairs that replace them.
_EXTENTS = {3: "pad", 4: "kernel", 6: "stride", 18: "dilation"}
_PAIRS = {
    9: ("pad", 0), 10: ("pad", 1), 11: ("kernel", 0), 12: ("kernel", 1), 13: ("stride", 0),
    14: ("stride", 1),
}  # fmt: skip
_V0_EXTENTS = {7: "pad", 8: "kernel", 10: "stride"}
_MAX_AXES = 32
#: What records take, those that reader and layers make of them included.
_LAYER_BYTES, _BLOB_BYTES, _TEXT_BYTES = 3000, 3000, 200
_FLAT = 160 << 20


@dataclass(frozen=True)
class BlobRecord:
    """One stored array.

    Parameters
    ----------
    shape
        As the file gives it, absent extents of the old form as 1.
    is_legacy
        The old form: always num, channels, height, width.
    dtype
        Numpy's word, or "half_varints" for NVCaffe 0.14.
    parts
        Byte ranges that hold the values, in order; one but for files that were merged.
    step
        Bytes from one value to the next: the value's size where they are packed.
    n_values
        How many there are; -1 where they have to be counted (half_varints).
    """

    shape: Shape
    is_legacy: bool
    dtype: str
    parts: tuple[tuple[int, int], ...]
    step: int
    n_values: int


@dataclass
class LayerRecord:
    """One layer, whatever its generation.

    Parameters
    ----------
    name, kind
        Its name, and its type in today's words.
    bottoms, tops
        Blobs read and written.
    blobs
        Its arrays.
    has_parameters
        A convolution_param was there.
    group, axis, epsilon, has_bias
        Of convolution_param, batch_norm_param, scale_param.
    extents
        "pad", "kernel", "stride", "dilation" → one value, or one per axis.
    """

    name: str = ""
    kind: str = ""
    bottoms: list[str] = field(default_factory=list)
    tops: list[str] = field(default_factory=list)
    blobs: list[BlobRecord] = field(default_factory=list)
    has_parameters: bool = False
    group: int = 1
    axis: int = 1
    epsilon: float | None = None
    has_bias: bool = True
    extents: dict[str, list[int]] = field(default_factory=dict)
    pairs: dict[str, dict[int, int]] = field(default_factory=dict)

    def per_axis(self, what: str, rank: int, default: int) -> Shape | None:
        """Return an extent for every spatial axis.

        Parameters
        ----------
        what
            "pad", "kernel", "stride" or "dilation".
        rank
            Number of spatial axes.
        default
            Caffe's default.

        Returns
        -------
        tuple of int or None
            None where the file gives another number of values.
        """
        values = list(self.extents.get(what, ()))
        if what in self.pairs and rank == 2:
            pair = self.pairs[what]
            return (pair.get(0, default), pair.get(1, default))
        if not values:
            return (default,) * rank
        if len(values) == 1:
            return (values[0],) * rank
        return tuple(values) if len(values) == rank else None


@dataclass(frozen=True)
class NetRecord:
    """A network.

    Parameters
    ----------
    name
        Its name.
    layers
        In file order, which is execution order.
    """

    name: str
    layers: list[LayerRecord]


class NetParser:
    """Reads a NetParameter.

    Parameters
    ----------
    wire
        Over the whole file.
    """

    def __init__(self, wire: WireReader) -> None:
        self.wire = wire
        self._room = Room(len(wire.data), flat=_FLAT, where=wire.where)

    def net(self) -> NetRecord:
        """Read the network.

        Returns
        -------
        NetRecord
            Its layers, their values left in the file.

        Raises
        ------
        MalformedFileError
            If it is damaged or is no network.
        UnsafeCheckpointError
            If it holds absurdly many layers.
        """
        name, layers = "", []
        for number, wire, value, end in self.wire.fields(0, len(self.wire.data)):
            if number == 1 and wire == BYTES:
                name = self.wire.text(value, end)
            elif number == 100 and wire == BYTES:
                layers.append(self._layer(value, end))
            elif number == 2 and wire == BYTES:
                layers.append(self._layer_v1(value, end))
            if len(layers) > MAX_TENSORS:
                raise UnsafeCheckpointError(f"{self.wire.where} holds more than a million layers")
        if not layers:
            raise MalformedFileError(
                f"{self.wire.where} is no Caffe network: expected layers, found none",
                tip="a mean file (.binaryproto) or a solver's state holds no network",
            )
        return NetRecord(name, layers)

    def _text(self, start: int, end: int) -> str:
        self._room.take(_TEXT_BYTES + end - start)
        return self.wire.text(start, end)

    def _layer(self, start: int, end: int) -> LayerRecord:
        self._room.take(_LAYER_BYTES)
        layer = LayerRecord()
        for number, wire, value, stop in self.wire.fields(start, end):
            if wire != BYTES:
                continue
            if number == 1:
                layer.name = self.wire.text(value, stop)
            elif number == 2:
                layer.kind = self.wire.text(value, stop)
            elif number == 3:
                layer.bottoms.append(self._text(value, stop))
            elif number == 4:
                layer.tops.append(self._text(value, stop))
            elif number == 7:
                layer.blobs.append(self._blob(value, stop))
            elif number == 106:
                self._convolution(layer, value, stop)
            elif number == 139:
                self._batch_norm(layer, value, stop)
            elif number == 142:
                layer.axis = self._integer(value, stop, 1, 1)
        return layer

    def _layer_v1(self, start: int, end: int) -> LayerRecord:
        self._room.take(_LAYER_BYTES)
        layer = LayerRecord()
        for number, wire, value, stop in self.wire.fields(start, end):
            if number == 5 and wire == VARINT:
                layer.kind = _V1_TYPES.get(value, f"V1 type {value}")
            elif wire != BYTES:
                continue
            elif number == 1:
                self._layer_v0(layer, value, stop)
            elif number == 2:
                layer.bottoms.append(self._text(value, stop))
            elif number == 3:
                layer.tops.append(self._text(value, stop))
            elif number == 4:
                layer.name = self.wire.text(value, stop)
            elif number == 6:
                layer.blobs.append(self._blob(value, stop))
            elif number == 10:
                self._convolution(layer, value, stop)
        return layer

    def _layer_v0(self, layer: LayerRecord, start: int, end: int) -> None:
        for number, wire, value, stop in self.wire.fields(start, end):
            if number == 1 and wire == BYTES:
                layer.name = self.wire.text(value, stop)
            elif number == 2 and wire == BYTES:
                kind = self.wire.text(value, stop)
                layer.kind = _V0_TYPES.get(kind, kind)
                layer.has_parameters = kind == "conv"
            elif number == 50 and wire == BYTES:
                layer.blobs.append(self._blob(value, stop))
            elif number == 4 and wire == VARINT:
                layer.has_bias = bool(value)
            elif number == 9 and wire == VARINT:
                layer.group = value
            elif number in _V0_EXTENTS and wire == VARINT:
                layer.extents[_V0_EXTENTS[number]] = [value]

    def _integer(self, start: int, end: int, wanted: int, default: int) -> int:
        for number, wire, value, _stop in self.wire.fields(start, end):
            if number == wanted and wire == VARINT:
                default = signed(value)
        return default

    def _batch_norm(self, layer: LayerRecord, start: int, end: int) -> None:
        for number, wire, value, _stop in self.wire.fields(start, end):
            if number == 3 and wire == FIXED32:
                layer.epsilon = self.wire.float32(value)

    def _convolution(self, layer: LayerRecord, start: int, end: int) -> None:
        layer.has_parameters = True
        for number, wire, value, stop in self.wire.fields(start, end):
            if number in _EXTENTS and wire in (VARINT, BYTES):
                if wire == BYTES and stop - value > 10 * _MAX_AXES:
                    raise self.wire.malformed(f"{stop - value} bytes of extents", value)
                numbers = self.wire.integers(wire, value, stop)
                layer.extents.setdefault(_EXTENTS[number], []).extend(numbers)
                if len(layer.extents[_EXTENTS[number]]) > _MAX_AXES:
                    raise self.wire.malformed("a kernel of more than 32 axes", value)
            elif wire != VARINT:
                continue
            elif number in _PAIRS:
                what, axis = _PAIRS[number]
                layer.pairs.setdefault(what, {})[axis] = value
            elif number == 5:
                layer.group = value
            elif number == 2:
                layer.has_bias = bool(value)
            elif number == 16:
                layer.axis = signed(value)

    def _blob(self, start: int, end: int) -> BlobRecord:
        self._room.take(_BLOB_BYTES)
        legacy: dict[int, int] = {}
        shape: list[int] | None = None
        raw_type = 1
        parts: dict[str, list[tuple[int, int]]] = {}
        for number, wire, value, stop in self.wire.fields(start, end):
            if number in (1, 2, 3, 4) and wire == VARINT:
                legacy[number] = signed(value)
            elif number == 7 and wire == BYTES:
                shape = self._shape(value, stop)
            elif number == 10 and wire == VARINT:
                raw_type = value
            elif number == 10 and wire == BYTES:
                parts.setdefault("half_varints", []).append((value, stop))
            elif number == 12 and wire == BYTES:
                parts.setdefault("raw", []).append((value, stop))
            elif number == 5 and wire in (BYTES, FIXED32):
                parts.setdefault("float32" if wire == BYTES else "float32 unpacked", []).append(
                    (value, stop)
                )
            elif number == 8 and wire in (BYTES, FIXED64):
                parts.setdefault("float64" if wire == BYTES else "float64 unpacked", []).append(
                    (value, stop)
                )
        return self._stored(shape, legacy, raw_type, {k: v for k, v in parts.items() if v}, start)

    def _stored(
        self,
        shape: list[int] | None,
        legacy: dict[int, int],
        raw_type: int,
        parts: dict[str, list[tuple[int, int]]],
        start: int,
    ) -> BlobRecord:
        extents = (
            tuple(shape) if shape is not None else tuple(legacy.get(i, 1) for i in range(1, 5))
        )
        is_legacy = shape is None
        # An empty message field is no second copy of the values.
        kinds = [kind for kind, ranges in parts.items() if any(e > s for s, e in ranges)]
        if len(kinds) > 1:
            raise self.wire.malformed(f"values of several types ({', '.join(kinds)})", start)
        if not kinds:
            return BlobRecord(extents, is_legacy, "float32", (), 4, 0)
        kind, ranges = kinds[0], parts[kinds[0]]
        if kind == "half_varints":
            return BlobRecord(extents, is_legacy, kind, tuple(ranges), 0, -1)
        if kind == "raw":
            if raw_type not in _RAW_TYPES:
                raise self.wire.malformed(f"unknown raw_data_type {raw_type}", start)
            dtype = _RAW_TYPES[raw_type]
        else:
            dtype = kind.split()[0]
        size = {"float64": 8, "float16": 2}.get(dtype, 4)
        if kind.endswith("unpacked"):
            return self._unpacked(BlobRecord(extents, is_legacy, dtype, (), size + 1, 0), ranges)
        for begin, stop in ranges:
            if (stop - begin) % size:
                raise self.wire.malformed(f"{stop - begin} bytes of {dtype}", begin)
        n_values = sum(stop - begin for begin, stop in ranges) // size
        return BlobRecord(extents, is_legacy, dtype, tuple(ranges), size, n_values)

    def _unpacked(self, blob: BlobRecord, ranges: list[tuple[int, int]]) -> BlobRecord:
        """Join single values that lie one behind the other, each after its tag of one byte."""
        parts: list[tuple[int, int]] = []
        for begin, stop in ranges:
            if parts and begin - parts[-1][1] == 1:
                parts[-1] = (parts[-1][0], stop)
            else:
                parts.append((begin, stop))
        return BlobRecord(
            blob.shape, blob.is_legacy, blob.dtype, tuple(parts), blob.step, len(ranges)
        )

    def _shape(self, start: int, end: int) -> list[int]:
        shape: list[int] = []
        for number, wire, value, stop in self.wire.fields(start, end):
            if number == 1 and wire in (VARINT, BYTES):
                if wire == BYTES and stop - value > 10 * _MAX_AXES:
                    raise self.wire.malformed(f"{stop - value} bytes of a shape", value)
                shape += self.wire.integers(wire, value, stop)
            if len(shape) > _MAX_AXES:
                raise self.wire.malformed("a shape of more than 32 axes", value)
        return shape
