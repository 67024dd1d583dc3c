"""Names shared by every part: ids, aliases, and the vocabulary of closed sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
AnyArray: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

#: Called with (what, done so far, total or None) from any thread; the library itself never prints.
ProgressHook: TypeAlias = Callable[[str, int, int | None], None]

#: A catalogue-wide unique slug of one model, ``[a-z0-9._-]+``.
ModelId: TypeAlias = str
#: ``model_id/tensor[#use]``.
LayerUid: TypeAlias = str

Op = Literal["conv", "conv_transpose"]
Role = Literal[
    "stem", "patch_embed", "spatial", "depthwise", "pointwise", "downsample", "fc_as_conv", "head"
]
BatchNormStatus = Literal["none", "separate", "folded_in_file", "unknown"]
DepthSource = Literal["graph", "registration"]
Weights = Literal["raw", "folded"]
Scaling = Literal["none", "max_abs", "l2", "layer_std"]
Sparse = Literal["kept", "removed"]
Weighting = Literal["filter", "model"]
Stage = Literal["fetch", "hash", "open", "parse", "layers", "state", "write"]
SkipReason = Literal[
    "fully_connected",
    "embedding",
    "bias",
    "norm",
    "buffer",
    "optimizer_state",
    "ema_copy",
    "dynamic_weight",
    "unsupported_dtype",
    "missing_scale",
    "missing_companion",
    "unknown_rank",
]

#: Scatter matrices are kept for kernels of at most this many coefficients (schema.md).
MAX_SCATTER_COEFFICIENTS = 121


def kernel_label(kernel: Shape) -> str:
    """Return "3x3" for (3, 3).

    Parameters
    ----------
    kernel
        Spatial extent, slowest axis first.

    Returns
    -------
    str
        The extents joined by "x".
    """
    return "x".join(str(k) for k in kernel)
