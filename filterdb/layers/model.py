"""The layer: one use of one convolution, in canonical form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from filterdb.types import (
    AnyArray,
    BatchNormStatus,
    DepthSource,
    FloatArray,
    Op,
    Role,
    Shape,
    SkipReason,
    kernel_label,
)


@dataclass(frozen=True)
class BatchNorm:
    """The four vectors of an inference BatchNorm that follows a convolution.

    Parameters
    ----------
    gamma, beta, mean, var
        (out_channels,) float64.
    epsilon
        ε added to `var`.
    """

    gamma: FloatArray
    beta: FloatArray
    mean: FloatArray
    var: FloatArray
    epsilon: float

    @property
    def scale(self) -> FloatArray:
        """γ / √(v + ε), (out_channels,): what folding multiplies each output channel by."""
        return np.asarray(self.gamma / np.sqrt(self.var + self.epsilon), dtype=np.float64)


@dataclass(frozen=True)
class ConvLayer:
    """One convolution of a model.

    Parameters
    ----------
    index
        Position among the model's layers, in file (graph: execution) order, from 0.
    name
        The module's or node's name, else the tensor's without ``.weight``.
    tensor
        Name of the weight tensor in the file.
    use
        0 for the first use of the tensor, 1… where the graph applies shared weights again.
    op
        conv or conv_transpose.
    kernel
        Spatial extent (k), (kh, kw) or (kd, kh, kw).
    in_channels, out_channels, groups
        As the layer is applied, so ``in_channels`` counts all groups.
    stride, dilation, padding
        None where the file does not say.
    role
        See filter_metrics.md §1.
    conv_depth, conv_depth_norm, depth_decile
        published_values.md; the decile is ``min(9, floor(10·conv_depth_norm))``.
    depth_source
        graph or registration.
    batch_norm_status
        none, separate, folded_in_file or unknown.
    source_dtype
        As stored in the file.
    quantised
        The file's integers were multiplied by its scales.
    shared_with
        Tensor name whose bytes these are, where the file ties two names.
    read
        Returns the canonical weights, see :meth:`weights`.
    read_batch_norm
        Returns the BatchNorm behind it; None unless `batch_norm_status` is "separate".
    """

    index: int
    name: str
    tensor: str
    use: int
    op: Op
    kernel: Shape
    in_channels: int
    out_channels: int
    groups: int
    stride: tuple[int, ...] | None
    dilation: tuple[int, ...] | None
    padding: tuple[int, ...] | None
    role: Role
    conv_depth: int | None
    conv_depth_norm: float | None
    depth_decile: int | None
    depth_source: DepthSource
    batch_norm_status: BatchNormStatus
    source_dtype: str
    quantised: bool
    shared_with: str | None
    read: Callable[[], AnyArray]
    read_batch_norm: Callable[[], BatchNorm] | None = None

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def kernel_name(self) -> str:
        """The kernel's extents as "3x3"."""
        return kernel_label(self.kernel)

    @property
    def n_coefficients(self) -> int:
        """k², the product of the kernel's extents."""
        return int(np.prod(self.kernel))

    @property
    def n_filters(self) -> int:
        """Number of kernel slices, out_channels · in_channels / groups."""
        return self.out_channels * self.in_channels // self.groups

    def weights(self) -> AnyArray:
        """Load the weights.

        Returns
        -------
        ndarray
            (out_channels, in_channels / groups, *kernel), C-contiguous, the source's float dtype
            (float32 for bfloat16 and quantised sources). Row 0 is the top row of the kernel as
            applied (cross-correlation). A transposed convolution is returned as
            (out_channels, in_channels / groups, *kernel) with its kernel as torch stores it.
        """
        return self.read()

    def filters(self) -> AnyArray:
        """Load the filters.

        Returns
        -------
        ndarray
            (n_filters, k²): the kernel slices of :meth:`weights`, output channel slowest.
        """
        return np.ascontiguousarray(self.weights()).reshape(self.n_filters, self.n_coefficients)


@dataclass(frozen=True)
class SkippedTensor:
    """A tensor that is no convolution kernel, and why.

    Parameters
    ----------
    tensor, shape, dtype
        As in the file.
    reason
        One of the closed set of schema.md.
    detail
        What was seen, in a few words.
    """

    tensor: str
    shape: Shape
    dtype: str
    reason: SkipReason
    detail: str


@dataclass(frozen=True)
class ModelLayers:
    """All that a model file yields.

    Parameters
    ----------
    layers
        In file order.
    skipped
        Every other tensor, in file order.
    n_parameters
        Elements of all floating point (or quantised) tensors that are parameters: convolutions
        once, plus skipped ones except buffers, optimizer state and EMA copies.
    """

    layers: tuple[ConvLayer, ...]
    skipped: tuple[SkippedTensor, ...]
    n_parameters: int
