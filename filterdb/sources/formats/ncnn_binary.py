"""ncnn's ``.param.bin``: the text model without its names, as 32-bit numbers."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, UnsupportedFormatError
from filterdb.sources.formats.memory_room import Room
from filterdb.sources.formats.ncnn_param import (
    ARRAY,
    LAYER_BYTES,
    MAGIC,
    PARAMETER_BYTES,
    ROOM,
    LayerRecord,
    Parameter,
)

if TYPE_CHECKING:
    from filterdb.sources.formats.file_view import ByteSource

_END = -233
#: Parameters one layer may have, as in ncnn.
_MAX_PARAMETERS = 32

#: Layer types by number; ncnn only ever appends.
_NAMES = (
    "AbsVal ArgMax BatchNorm Bias BNLL Concat Convolution Crop Deconvolution Dropout Eltwise ELU "
    "Embed Exp Flatten InnerProduct Input Log LRN MemoryData MVN Pooling Power PReLU Proposal "
    "Reduction ReLU Reshape ROIPooling Scale Sigmoid Slice Softmax Split SPP TanH Threshold Tile "
    "RNN LSTM BinaryOp UnaryOp ConvolutionDepthWise Padding Squeeze ExpandDims Normalize Permute "
    "PriorBox DetectionOutput Interp DeconvolutionDepthWise ShuffleChannel InstanceNorm Clip "
    "Reorg YoloDetectionOutput Quantize Dequantize Yolov3DetectionOutput PSROIPooling ROIAlign "
    "Packing Requantize Cast HardSigmoid SELU HardSwish Noop PixelShuffle DeepCopy Mish "
    "StatisticsPooling Swish Gemm GroupNorm LayerNorm Softplus GRU MultiHeadAttention GELU "
    "Convolution1D Pooling1D ConvolutionDepthWise1D Convolution3D ConvolutionDepthWise3D "
    "Pooling3D MatMul Deconvolution1D DeconvolutionDepthWise1D Deconvolution3D "
    "DeconvolutionDepthWise3D Einsum DeformableConv2D GLU Fold Unfold GridSample CumulativeSum "
    "CopyTo Erf Diag CELU Shrink RMSNorm Spectrogram InverseSpectrogram Flip SDPA "
    "RotaryEmbed"
)
LAYER_TYPES = tuple(_NAMES.split())


@dataclass(frozen=True)
class BinaryLayer(LayerRecord):
    """A layer whose parameters are 32 bits each; who reads one knows whether it is a float."""

    def real(self, key: int, default: float) -> float:
        """Return a float parameter.

        Parameters
        ----------
        key
            Its id.
        default
            ncnn's default.

        Returns
        -------
        float
            Its value.
        """
        value = self.parameters.get(key)
        if not isinstance(value, int):
            return default
        return float(struct.unpack("<f", struct.pack("<i", value))[0])


def is_binary(head: bytes) -> bool:
    """Tell a binary model from its first bytes.

    Parameters
    ----------
    head
        The first bytes.

    Returns
    -------
    bool
        True for the magic number as an integer, followed by plausible counts.
    """
    if len(head) < 12:
        return False
    magic, n_layers, n_blobs = struct.unpack("<3i", head[:12])
    return bool(magic == int(MAGIC) and n_layers > 0 and n_blobs > 0)


class _Numbers:
    """Reads integers one after the other."""

    def __init__(self, data: ByteSource, where: str) -> None:
        self.data, self.where, self.position = data, where, 0

    def take(self, count: int) -> tuple[int, ...]:
        start, end = self.position, self.position + 4 * count
        if count < 0 or end > len(self.data):
            raise MalformedFileError(
                f"{self.where} ends early: expected {count} numbers at byte {start}, the file has "
                f"{len(self.data)} bytes",
                tip="was the download cut short?",
            )
        self.position = end
        return struct.unpack(f"<{count}i", bytes(self.data[start:end]))


def parse_binary(data: ByteSource, where: str) -> list[LayerRecord]:
    """Parse a ``.param.bin`` file.

    Parameters
    ----------
    data
        Its bytes.
    where
        Its name, for messages.

    Returns
    -------
    list of LayerRecord
        In file order; layers are named by their kind and number, blobs by their number.

    Raises
    ------
    UnsupportedFormatError
        If a layer is of a kind made up by somebody.
    MalformedFileError
        If the file ends early, or goes on after its last layer.
    UnsafeCheckpointError
        If it holds more than any network.
    """
    numbers = _Numbers(data, where)
    room = Room(len(data), flat=ROOM, where=where)
    _magic, n_layers, _n_blobs = numbers.take(3)
    layers: list[LayerRecord] = []
    for index in range(n_layers):
        room.take(LAYER_BYTES)
        kind, n_inputs, n_outputs = numbers.take(3)
        if not 0 <= kind < len(LAYER_TYPES):
            raise UnsupportedFormatError(
                f"{where}: layer {index} is of type {kind}, which is none of ncnn's "
                f"{len(LAYER_TYPES)}",
                tip="custom layers are known by name in the text form, .param",
            )
        room.take(PARAMETER_BYTES * (max(n_inputs, 0) + max(n_outputs, 0)))
        inputs, outputs = (tuple(map(str, numbers.take(n))) for n in (n_inputs, n_outputs))
        name = LAYER_TYPES[kind]
        parameters = _parameters(numbers, room, index)
        layers.append(BinaryLayer(name, f"{name}_{index}", inputs, outputs, parameters))
    if numbers.position != len(data):
        raise MalformedFileError(
            f"{where}: its {n_layers} layers take {numbers.position} bytes, the file has "
            f"{len(data)}"
        )
    return layers


def _parameters(numbers: _Numbers, room: Room, index: int) -> dict[int, Parameter]:
    found: dict[int, Parameter] = {}
    while (key := numbers.take(1)[0]) != _END:
        is_array = key <= ARRAY
        key = ARRAY - key if is_array else key
        if not 0 <= key < _MAX_PARAMETERS:
            raise MalformedFileError(
                f"{numbers.where}: layer {index} has a parameter {key}, {_MAX_PARAMETERS - 1} is "
                "the last there can be"
            )
        count = numbers.take(1)[0] if is_array else 1
        room.take(PARAMETER_BYTES * max(count, 1))
        values = numbers.take(count)
        found[key] = values if is_array else values[0]
    return found
