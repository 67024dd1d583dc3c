"""Why a tensor was not taken."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from filterdb.layers.model import SkippedTensor
from filterdb.layers.modules import Module, is_embedding_name, kernel_objection
from filterdb.layers.names import BIAS_LEAVES, BUFFER_LEAVES, split_name

if TYPE_CHECKING:
    from filterdb.layers.raw import Node, Tensor
    from filterdb.types import SkipReason

_FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})
_RECURRENT = re.compile(r"^(LSTM|GRU|RNN|UnidirectionalSequenceLSTM)", re.I)
_SCALE = re.compile(r"alpha|beta|gamma|scale|slope|gain|weight|temperature|tau", re.I)
_RECURRENT_NAME = re.compile(r"weight_(ih|hh)_l\d|(^|[._/])(lstm|gru|rnn)\w*(?=$|[._/])", re.I)

#: Role of a tensor in a module or node → reason.
_ROLE_REASONS: Mapping[str, tuple[SkipReason, str]] = {
    "bias": ("bias", ""),
    "gamma": ("norm", "scale of a batch norm"),
    "beta": ("norm", "shift of a batch norm"),
    "mean": ("buffer", "running mean of a batch norm"),
    "var": ("buffer", "running variance of a batch norm"),
}


def supported(tensor: Tensor) -> bool:
    """Whether a tensor's elements are numbers filterdb analyses.

    Parameters
    ----------
    tensor
        Any tensor.

    Returns
    -------
    bool
        True for 16 to 64 bit floats, bfloat16 and dequantised integers.
    """
    return tensor.quantised or tensor.dtype in _FLOATS


def is_parameter(tensor: Tensor, reason: SkipReason) -> bool:
    """Whether a skipped tensor counts among the network's parameters.

    Parameters
    ----------
    tensor
        The tensor.
    reason
        Why it was skipped.

    Returns
    -------
    bool
        False for buffers, optimizer state, copies, and tensors that are not numbers with a value.
    """
    if reason in ("buffer", "optimizer_state", "ema_copy", "dynamic_weight"):
        return False
    return supported(tensor) or tensor.dtype.startswith("float")


class Reasons:
    """Finds the reason of any tensor of one file.

    Parameters
    ----------
    modules
        Modules found in the file.
    nodes
        The file's nodes.
    parts
        Parts of reparametrised weights: name → (tensor, what it was).
    known
        Reasons decided elsewhere: tensor name → (reason, detail).
    """

    def __init__(
        self,
        modules: Sequence[Module],
        nodes: Sequence[Node],
        parts: Mapping[str, tuple[Tensor, str]],
        known: Mapping[str, tuple[SkipReason, str]],
    ) -> None:
        self._known = dict(known)
        for name, (_, what) in parts.items():
            self._known.setdefault(name, ("buffer", what))
        for module in modules:
            for role, tensor in module.tensors.items():
                found = self._of_role(module, role, tensor)
                if found is not None:
                    self._known.setdefault(tensor.name, found)
        for node in nodes:
            for role, name in node.weights.items():
                self._known.setdefault(name, self._of_node(node, role))

    def row(self, tensor: Tensor) -> SkippedTensor:
        """Return the row of a tensor.

        Parameters
        ----------
        tensor
            A tensor that is no convolution kernel.

        Returns
        -------
        SkippedTensor
            With a reason of the closed set.
        """
        reason, detail = tensor.skip or self._known.get(tensor.name) or self._by_name(tensor)
        return SkippedTensor(tensor.name, tensor.shape, tensor.dtype, reason, detail)

    @staticmethod
    def _of_role(module: Module, role: str, tensor: Tensor) -> tuple[SkipReason, str] | None:
        if module.kind == "other":
            return None
        if role in _ROLE_REASONS:
            reason, detail = _ROLE_REASONS[role]
            if module.kind == "norm" and reason == "bias":
                return "norm", f"shift of {module.name}"
            return reason, detail or f"of {module.name}"
        reasons: Mapping[str, tuple[SkipReason, str]] = {
            "linear": ("fully_connected", "two axes"),
            "embedding": ("embedding", "a lookup table"),
            "norm": ("norm", "per-channel scale"),
        }
        if module.kind == "linear" and _RECURRENT_NAME.search(tensor.name):
            return "fully_connected", "recurrent"
        return reasons.get(module.kind)

    @staticmethod
    def _of_node(node: Node, role: str) -> tuple[SkipReason, str]:
        what = f"{role} of {node.source_op or node.op}"
        if role == "bias":
            return "bias", what
        reasons: Mapping[str, SkipReason] = {
            "linear": "fully_connected",
            "embedding": "embedding",
            "norm": "norm",
            "batch_norm": "norm",
            "multiply": "norm",
            "add": "bias",
        }
        if _RECURRENT.match(node.source_op):
            return "fully_connected", f"recurrent {what}"
        return reasons.get(node.op, "buffer"), what

    @staticmethod
    def _by_name(tensor: Tensor) -> tuple[SkipReason, str]:
        _, leaf = split_name(tensor.name)
        low = leaf.lower()
        if not supported(tensor):
            return "buffer", f"{tensor.dtype} values that no layer uses"
        if low in BUFFER_LEAVES:
            return "buffer", leaf
        if is_embedding_name(tensor.name):
            return "embedding", "by its name"
        if low in BIAS_LEAVES or low.endswith("bias"):
            return "bias", "by its name"
        if _RECURRENT_NAME.search(tensor.name) and len(tensor.shape) == 2:
            return "fully_connected", "recurrent"
        if sum(n > 1 for n in tensor.shape) <= 1 and _SCALE.search(leaf):
            return "norm", "per-channel or scalar parameter"
        if len(tensor.shape) > 2:
            return "buffer", kernel_objection(tensor.name, tensor.shape) or "used by no convolution"
        if len(tensor.shape) == 2 and min(tensor.shape) > 1:
            return "fully_connected", "two axes"
        return "buffer", f"{int(np.prod(tensor.shape))} values, no weight by name"
