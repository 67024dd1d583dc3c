"""What a format reader hands over: named arrays, and what the file's graph says of them.

A reader lists; it interprets nothing. Whether a tensor is a convolution, which role it plays and
how deep it lies is decided once, in :mod:`filterdb.layers.detect`, for every format alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from filterdb.types import AnyArray, Shape, SkipReason

#: What a node does, as far as filterdb cares. Readers translate their framework's operator names:
#: ``conv``, ``conv_transpose``; ``linear`` (Gemm, MatMul, Dense); ``batch_norm`` (inference form,
#: with statistics); ``norm`` (layer/group/instance norm, PReLU slopes and other per-channel
#: parameters); ``embedding``; ``multiply`` / ``add`` by a constant of per-channel shape (a
#: BatchNorm some converters take apart); ``identity`` (Identity, Dropout, Cast, Quantize,
#: Dequantize: passes its input through); ``other``.
NodeOp = Literal[
    "conv",
    "conv_transpose",
    "linear",
    "batch_norm",
    "norm",
    "embedding",
    "multiply",
    "add",
    "identity",
    "other",
]

#: Letters name the axes of a weight tensor: O out, I in (per group), D H W space (1-D uses W),
#: M depthwise multiplier, 1 an axis of length one. Examples: torch ``OIHW``, ``OIW``, ``OIDHW``;
#: torch transposed ``IOHW``; TensorFlow ``HWIO``, transposed ``HWOI``, depthwise ``HWIM``;
#: TFLite ``OHWI``, depthwise ``1HWO``. In transposed layouts I is the input channel and O the
#: output channel of the *transposed* convolution (O per group).
Layout: TypeAlias = str

#: Rank → letters of the spatial axes, slowest first.
SPATIAL_LETTERS: Mapping[int, str] = MappingProxyType({1: "W", 2: "HW", 3: "DHW"})


def layout_of_rank(layout: Layout, rank: int) -> Layout:
    """Fit a layout of two spatial axes to another number of them.

    Parameters
    ----------
    layout
        Axis letters, with "HW".
    rank
        Spatial axes.

    Returns
    -------
    str
        "HWIO" → "WIO" or "DHWIO"; the layout as it is for other ranks than 1 and 3.
    """
    return layout.replace("HW", SPATIAL_LETTERS.get(rank, "HW"))


@dataclass(frozen=True)
class Tensor:
    """One stored array of a model file, not yet loaded.

    Parameters
    ----------
    name
        The file's own name of it.
    shape
        Its shape as stored.
    dtype
        The stored element type in numpy's words ("float32", "bfloat16", "int8", …).
    load
        Returns the array of this shape, native byte order. bfloat16 comes as float32 (lossless),
        quantised tensors come dequantised as float32. May raise SourceError. Cheap to hold, called
        at most a few times, safe to call from another thread.
    quantised
        True where `load` multiplies integers by scales.
    storage
        A key equal for two tensors that are the very same bytes in the file (tied weights); None
        where the reader cannot tell.
    skip
        A reason the reader itself knows to leave it out, with a detail:
        ``("optimizer_state", "state.0.exp_avg")``.
    """

    name: str
    shape: Shape
    dtype: str
    load: Callable[[], AnyArray]
    quantised: bool = False
    storage: tuple[Any, ...] | None = None
    skip: tuple[SkipReason, str] | None = None


@dataclass(frozen=True)
class ConvAttributes:
    """What a graph says of a convolution; None is "the file does not say".

    Parameters
    ----------
    layout
        Axis letters of the weight tensor, see :data:`Layout`.
    groups
        Channel groups; for ``HWIM`` and ``1HWO`` weights it is the number of input channels.
    stride, dilation
        One integer per spatial axis, slowest first.
    padding
        Symmetric padding per spatial axis, or (begin, end) pairs flattened begin-first
        ``[h0, w0, h1, w1]`` where they differ; None where automatic (SAME) or unknown.
    """

    layout: Layout | None = None
    groups: int | None = None
    stride: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    padding: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Node:
    """One operation of the file's graph (or one registered module, where edges are unknown).

    Parameters
    ----------
    name
        The file's name of the operation; the layer's name where it is a convolution.
    op
        Normalised kind, see :data:`NodeOp`.
    inputs, outputs
        Names of the activations read and written (not of weights). Empty for registered modules
        without a graph.
    weights
        Parameter role → tensor name in :attr:`RawModel.tensors`. Roles: ``weight``, ``bias``;
        BatchNorm: ``gamma``, ``beta``, ``mean``, ``var``; ``multiply``/``add``: ``constant``.
        A weight computed while the network runs is left out here and named in `dynamic_weight`.
    conv
        Attributes where `op` is a convolution.
    epsilon
        BatchNorm's ε, if stated.
    dynamic_weight
        Name of the activation that acts as the weight, for a convolution whose kernel another
        operation computes.
    source_op
        The framework's own operator name, for messages and tests.
    """

    name: str
    op: NodeOp
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    conv: ConvAttributes | None = None
    epsilon: float | None = None
    dynamic_weight: str | None = None
    source_op: str = ""


@dataclass(frozen=True)
class RawModel:
    """A model file, opened: every tensor it stores, and its graph as far as there is one.

    Parameters
    ----------
    format
        The reader's name: "torch", "safetensors", "onnx", ….
    tensors
        In file order (registration order for state dicts). Names are unique.
    nodes
        Empty for plain state dicts. In file order, which for graphs is execution order.
    has_edges
        True where `inputs`/`outputs` of the nodes are the real graph, so depth may be computed.
    folds_batch_norm
        True where an inference converter has folded BatchNorm before writing (TFLite), so that a
        convolution with a bias and no BatchNorm behind it counts as ``folded_in_file``.
    default_layout
        Layout of 4-D convolution weights that no node describes ("OIHW" for torch, "HWIO" for
        TensorFlow-born state dicts), None where only the shape can tell.
    notes
        What the reader wants said ("producer pytorch 1.9, opset 11").
    """

    format: str
    tensors: tuple[Tensor, ...]
    nodes: tuple[Node, ...] = ()
    has_edges: bool = False
    folds_batch_norm: bool = False
    default_layout: Layout | None = None
    notes: tuple[str, ...] = ()
