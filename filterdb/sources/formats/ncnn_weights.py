"""Which weights each ncnn layer reads from the ``.bin``, in which order.

The file has no index: every layer takes what its parameters say, one after the other. A table
entry follows that layer's ``load_model``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from filterdb.sources.formats.ncnn_param import LayerRecord
    from filterdb.types import Shape


@dataclass(frozen=True)
class Block:
    """One array of the ``.bin``.

    Parameters
    ----------
    role
        What the layer uses it for.
    shape
        As the layer indexes it.
    flagged
        True where four bytes before it tell its encoding; else it is plain float32.
    """

    role: str
    shape: Shape
    flagged: bool = False


def _plain(*roles_and_sizes: tuple[str, int]) -> list[Block]:
    return [Block(role, (size,)) for role, size in roles_and_sizes]


def spatial_rank(kind: str) -> int:
    """Return the number of spatial axes of a convolution layer.

    Parameters
    ----------
    kind
        ncnn's layer type.

    Returns
    -------
    int
        1, 2 or 3.
    """
    return {"1D": 1, "3D": 3}.get(kind[-2:], 2)


def kernel_of(layer: LayerRecord) -> Shape:
    """Return a convolution's kernel extents.

    Parameters
    ----------
    layer
        A convolution.

    Returns
    -------
    tuple of int
        Slowest axis first.
    """
    return per_axis(layer, 1, 0)


def per_axis(layer: LayerRecord, key: int, default: int) -> Shape:
    """Return a parameter that is given per spatial axis.

    Parameters
    ----------
    layer
        A convolution.
    key
        Its id for the last axis; +10 for the one before, +20 for the first of three.
    default
        ncnn's default for the last axis, whose value is that of the others.

    Returns
    -------
    tuple of int
        Slowest axis first.
    """
    width = layer.integer(key, default)
    rank = spatial_rank(layer.kind)
    slower = (layer.integer(key + 10 * i, width) for i in reversed(range(1, rank)))
    return (*slower, width)


def _convolution(layer: LayerRecord) -> list[Block]:
    if layer.integer(28 if layer.kind.startswith("De") else 19):
        return []
    outputs, size = layer.integer(0), layer.integer(6)
    kernel = kernel_of(layer)
    positions = 1
    for extent in kernel:
        positions *= extent
    if outputs <= 0 or positions <= 0 or size % (outputs * positions):
        raise MalformedFileError(
            f"ncnn layer {layer.name!r} ({layer.kind}) has {size} weights for {outputs} outputs "
            f"and kernel {kernel}"
        )
    blocks = [Block("weight", (outputs, size // (outputs * positions), *kernel), flagged=True)]
    if layer.integer(5):
        blocks += _plain(("bias", outputs))
    term = layer.integer(8)
    if term and layer.kind in ("Convolution", "ConvolutionDepthWise"):
        n_scales = outputs
        if layer.kind == "ConvolutionDepthWise":
            n_scales = layer.integer(7, 1) if term in (1, 101) else 1
        blocks += _plain(("weight_scale", n_scales), ("input_scale", 1))
        if term > 100:
            blocks += _plain(("output_scale", 1))
    return blocks


def _inner_product(layer: LayerRecord) -> list[Block]:
    outputs, size = layer.integer(0), layer.integer(2)
    if outputs <= 0 or size % outputs:
        raise MalformedFileError(
            f"ncnn layer {layer.name!r} (InnerProduct) has {size} weights for {outputs} outputs"
        )
    blocks = [Block("weight", (outputs, size // outputs), flagged=True)]
    if layer.integer(1):
        blocks += _plain(("bias", outputs))
    if layer.integer(8):
        blocks += _plain(("weight_scale", outputs), ("input_scale", 1))
    return blocks


def _embed(layer: LayerRecord) -> list[Block]:
    outputs, size = layer.integer(0), layer.integer(3)
    if outputs <= 0 or size % outputs:
        raise MalformedFileError(f"ncnn layer {layer.name!r} (Embed) has {size} weights")
    blocks = [Block("weight", (size // outputs, outputs), flagged=True)]
    if layer.integer(2):
        blocks += _plain(("bias", outputs))
    if layer.integer(18):
        blocks += _plain(("weight_scale", 1))
    return blocks


def _batch_norm(layer: LayerRecord) -> list[Block]:
    channels = layer.integer(0)
    return _plain(("gamma", channels), ("mean", channels), ("var", channels), ("beta", channels))


def _scale(layer: LayerRecord) -> list[Block]:
    size = layer.integer(0)
    if size == -233:
        return []
    blocks = _plain(("scale", size))
    return blocks + _plain(("bias", size)) if layer.integer(1) else blocks


def _affine(size_key: int, affine_key: int, *roles: str) -> Callable[[LayerRecord], list[Block]]:
    def blocks(layer: LayerRecord) -> list[Block]:
        size = layer.integer(size_key)
        if not layer.integer(affine_key, 1) or size == 0:
            return []
        return _plain(*((role, size) for role in roles))

    return blocks


def _memory_data(layer: LayerRecord) -> list[Block]:
    width, height, depth, channels = (layer.integer(key) for key in (0, 1, 11, 2))
    if depth:
        shape: Shape = (channels, depth, height, width)
    elif channels:
        shape = (channels, height, width)
    elif height:
        shape = (height, width)
    else:
        shape = (width,)
    return [Block("data", shape, flagged=layer.integer(21, 1) == 0)] if shape != (0,) else []


def _recurrent(gates: int, bias_gates: int) -> Callable[[LayerRecord], list[Block]]:
    def blocks(layer: LayerRecord) -> list[Block]:
        outputs = layer.integer(0)
        ways = 2 if layer.integer(2) == 2 else 1
        hidden = layer.integer(3, outputs) if layer.kind == "LSTM" else outputs
        rows = hidden * gates
        if outputs <= 0 or rows <= 0 or layer.integer(1) % (ways * rows):
            raise MalformedFileError(
                f"ncnn layer {layer.name!r} ({layer.kind}) has {layer.integer(1)} weights for "
                f"{outputs} outputs"
            )
        inputs = layer.integer(1) // ways // rows
        found = [
            Block("weight", (ways, rows, inputs), flagged=True),
            Block("bias", (ways, bias_gates, hidden), flagged=True),
            Block("recurrent", (ways, rows, outputs), flagged=True),
        ]
        if hidden != outputs:
            found.append(Block("projection", (ways, outputs, hidden), flagged=True))
        if layer.integer(8):
            found += [Block("recurrent_scale", (ways, rows)), Block("weight_scale", (ways, rows))]
        return found

    return blocks


def _attention(layer: LayerRecord) -> list[Block]:
    width, size = layer.integer(0), layer.integer(2)
    if width <= 0 or size % width:
        raise MalformedFileError(f"ncnn layer {layer.name!r} (MultiHeadAttention): {size} weights")
    queries = size // width
    inputs = {"q": queries, "k": layer.integer(3, width), "v": layer.integer(4, width)}
    blocks: list[Block] = []
    for role, extent in inputs.items():
        blocks.append(Block(f"{role}_weight", (width, extent), flagged=True))
        blocks += _plain((f"{role}_bias", width))
    blocks += [Block("out_weight", (queries, width), flagged=True), Block("out_bias", (queries,))]
    if layer.integer(18):
        blocks += _plain(*((f"{role}_scale", width) for role in "qkv"), ("out_scale", 1))
    return blocks


def _gemm(layer: LayerRecord) -> list[Block]:
    rows, columns, depth = (layer.integer(key) for key in (7, 8, 9))
    blocks = []
    if layer.integer(4):
        shape = (depth, rows) if layer.integer(2) else (rows, depth)
        blocks.append(Block("weight_a", shape, flagged=True))
    if layer.integer(5):
        shape = (columns, depth) if layer.integer(3) else (depth, columns)
        blocks.append(Block("weight", shape, flagged=True))
    kinds: dict[int, Shape] = {
        0: (1,), 1: (rows,), 2: (rows, 1), 3: (rows, columns), 4: (1, columns)
    }  # fmt: skip
    if layer.integer(6) and layer.integer(10) in kinds:
        blocks.append(Block("bias", kinds[layer.integer(10)], flagged=True))
    if layer.integer(18):
        blocks += _plain(("scale_a", rows)) if layer.integer(4) else []
        blocks += _plain(("weight_scale", 1)) if layer.integer(5) else []
    return blocks


_CONVOLUTIONS = tuple(
    f"{direction}{depthwise}{rank}"
    for direction in ("Convolution", "Deconvolution")
    for depthwise in ("", "DepthWise")
    for rank in ("", "1D", "3D")
)

#: Layer type → its arrays. Types that are not here read nothing, as far as filterdb knows.
WEIGHTED: Mapping[str, Callable[[LayerRecord], list[Block]]] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    "DeformableConv2D": _convolution,
    "InnerProduct": _inner_product,
    "Embed": _embed,
    "BatchNorm": _batch_norm,
    "Scale": _scale,
    "Bias": lambda layer: _plain(("bias", layer.integer(0))),
    "PReLU": lambda layer: _plain(("gamma", layer.integer(0))),
    "LayerNorm": _affine(0, 2, "gamma", "beta"),
    "RMSNorm": _affine(0, 2, "gamma"),
    "GroupNorm": _affine(1, 3, "gamma", "beta"),
    "InstanceNorm": _affine(0, 2, "gamma", "beta"),
    "Normalize": lambda layer: _plain(("gamma", layer.integer(3))),
    "MemoryData": _memory_data,
    "LSTM": _recurrent(4, 4),
    "GRU": _recurrent(3, 4),
    "RNN": _recurrent(1, 1),
    "MultiHeadAttention": _attention,
    "Gemm": _gemm,
    "Quantize": lambda layer: _plain(("scale", layer.integer(0, 1))),
    "Dequantize": lambda layer: _plain(
        ("scale", layer.integer(0, 1)), ("bias", layer.integer(1))
    ),
    "Requantize": lambda layer: _plain(
        ("scale_in", layer.integer(0, 1)), ("scale_out", layer.integer(1, 1)),
        ("bias", layer.integer(2)),
    ),
}  # fmt: skip

#: Layer types that read nothing: only to tell unknown ones, which may.
WEIGHTLESS = frozenset(
    [
        "AbsVal",
        "ArgMax",
        "BNLL",
        "BinaryOp",
        "CELU",
        "Cast",
        "Clip",
        "Concat",
        "CopyTo",
        "Crop",
        "CumulativeSum",
        "DeepCopy",
        "DetectionOutput",
        "Diag",
        "Dropout",
        "ELU",
        "Einsum",
        "Eltwise",
        "Erf",
        "Exp",
        "ExpandDims",
        "Flatten",
        "Flip",
        "Fold",
        "GELU",
        "GLU",
        "GridSample",
        "HardSigmoid",
        "HardSwish",
        "Input",
        "Interp",
        "InverseSpectrogram",
        "LRN",
        "Log",
        "MVN",
        "MatMul",
        "Mish",
        "Noop",
        "PSROIPooling",
        "Packing",
        "Padding",
        "Permute",
        "PixelShuffle",
        "Pooling",
        "Pooling1D",
        "Pooling3D",
        "Power",
        "PriorBox",
        "Proposal",
        "ROIAlign",
        "ROIPooling",
        "ReLU",
        "Reduction",
        "Reorg",
        "Reshape",
        "RotaryEmbed",
        "SDPA",
        "SELU",
        "SPP",
        "Shrink",
        "ShuffleChannel",
        "Sigmoid",
        "Silence",
        "Slice",
        "Softmax",
        "Softplus",
        "Spectrogram",
        "Split",
        "Squeeze",
        "Swish",
        "TanH",
        "Threshold",
        "Tile",
        "UnaryOp",
        "Unfold",
        "YoloDetectionOutput",
        "Yolov3DetectionOutput",
        "StatisticsPooling",
    ]
)
