"""What the modules of torch7's nn package keep, by their class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from filterdb.layers.raw import SPATIAL_LETTERS, ConvAttributes

if TYPE_CHECKING:
    from filterdb.layers.raw import NodeOp
    from filterdb.sources.formats.torch7_objects import TorchObject, TorchTensor
    from filterdb.types import Shape

#: Class without its package → operation. ``nn``, ``cudnn`` and others name the same things alike.
OPERATIONS: dict[str, NodeOp] = {
    "SpatialConvolution": "conv", "SpatialConvolutionMM": "conv",
    "SpatialDilatedConvolution": "conv", "SpatialDepthWiseConvolution": "conv",
    "VolumetricConvolution": "conv", "VolumetricConvolutionMM": "conv",
    "VolumetricDilatedConvolution": "conv", "TemporalConvolution": "conv",
    "SpatialFullConvolution": "conv_transpose", "VolumetricFullConvolution": "conv_transpose",
    "BatchNormalization": "batch_norm", "SpatialBatchNormalization": "batch_norm",
    "VolumetricBatchNormalization": "batch_norm",
    "InstanceNormalization": "norm", "SpatialInstanceNormalization": "norm", "PReLU": "norm",
    "LayerNormalization": "norm", "CMul": "norm", "Mul": "norm", "CAdd": "norm", "Add": "norm",
    "Linear": "linear", "LinearNoBias": "linear", "SparseLinear": "linear", "Bilinear": "linear",
    "LinearWeightNorm": "linear", "LookupTable": "embedding",
    "Identity": "identity", "Dropout": "identity", "SpatialDropout": "identity",
    "VolumetricDropout": "identity", "Copy": "identity", "Contiguous": "identity",
}  # fmt: skip

#: Role → the module's field.
_FIELDS = {
    "batch_norm": {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"},
    "norm": {"gamma": "weight", "bias": "bias"},
}
_PLAIN = {"weight": "weight", "bias": "bias"}


def short_kind(module: TorchObject) -> str:
    """Return a module's class without its package."""
    return module.kind.rsplit(".", 1)[-1]


def fields_of(op: NodeOp) -> dict[str, str]:
    """Return parameter role → field of a module."""
    return _FIELDS.get(op, _PLAIN)


@dataclass(frozen=True)
class Kernel:
    """A convolution's weight, with its axes apart.

    Parameters
    ----------
    tensor
        The stored tensor, seen with all its axes.
    attributes
        What the module says of it.
    """

    tensor: TorchTensor
    attributes: ConvAttributes


def kernel_of(module: TorchObject, weight: TorchTensor) -> Kernel | None:
    """Give a convolution's weight its axes.

    Parameters
    ----------
    module
        The convolution.
    weight
        Its weight; modules of the MM kind, and old files, keep (outputs, inputs · kernel).

    Returns
    -------
    Kernel or None
        None where module and weight do not fit together.
    """
    kind = short_kind(module)
    if kind == "TemporalConvolution":
        axes, letters = "W", "OWI"
        inputs, outputs = _integer(module, "inputFrameSize"), _integer(module, "outputFrameSize")
    else:
        axes = SPATIAL_LETTERS[3 if kind.startswith("Volumetric") else 2]
        letters = ("IO" if "Full" in kind else "OI") + axes
        inputs, outputs = _integer(module, "nInputPlane"), _integer(module, "nOutputPlane")
    names = ["T" if axis == "D" else axis for axis in axes]
    kernel = tuple(_integer(module, f"k{axis}") for axis in names)
    groups = _integer(module, "groups", 1)
    if kind == "SpatialDepthWiseConvolution":
        # One stack of filters per multiplier, (multiplier, inputs, height, width).
        letters, groups = "MI" + axes, inputs
    if min(kernel, default=0) < 1 or inputs < 1 or outputs < 1 or groups < 1:
        return None
    size = {"O": outputs, "I": inputs // groups, "M": outputs}
    if letters[0] == "I":
        size = {"I": inputs, "O": outputs // groups}
    elif letters[0] == "M":
        size = {"M": outputs, "I": inputs}
    size.update(zip(axes, kernel, strict=True))
    shape = tuple(size[letter] for letter in letters)
    tensor = _split(weight, shape)
    if tensor is None:
        return None
    return Kernel(
        tensor,
        ConvAttributes(
            layout=letters,
            groups=groups,
            stride=tuple(_integer(module, f"d{axis}", 1) for axis in names),
            dilation=tuple(_integer(module, f"dilation{axis}", 1) for axis in names),
            padding=_padding(module, names),
        ),
    )


def _padding(module: TorchObject, names: list[str]) -> Shape:
    # Until 2014 one field stood for both axes.
    old = _integer(module, "padding", 0)
    return tuple(_integer(module, f"pad{axis}", old) for axis in names)


def _integer(module: TorchObject, key: str, default: int = 0) -> int:
    value = module.get(key)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 31:
        return int(value)
    return default


def _split(tensor: TorchTensor, shape: Shape) -> TorchTensor | None:
    """See a tensor under another shape of as many elements, where no copy is needed."""
    if tensor.shape == shape:
        return tensor
    if prod(tensor.shape) != prod(shape) or not tensor.shape:
        return None
    # Axes are split from the last: all that follows the first axis lies in one run.
    if len(tensor.shape) > 1 and tensor.shape[0] == shape[0]:
        rows, step = tensor.strides[0], tensor.strides[-1]
        if not _is_run(tensor.shape[1:], tensor.strides[1:], step):
            return None
        return replace(tensor, shape=shape, strides=(rows, *_steps(shape[1:], step)))
    step = tensor.strides[-1]
    if not _is_run(tensor.shape, tensor.strides, step):
        return None
    return replace(tensor, shape=shape, strides=_steps(shape, step))


def _steps(shape: Shape, step: int) -> tuple[int, ...]:
    strides = []
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def _is_run(shape: Shape, strides: tuple[int, ...], step: int) -> bool:
    return all(
        extent == 1 or stride == wanted
        for extent, stride, wanted in zip(shape, strides, _steps(shape, step), strict=True)
    )
