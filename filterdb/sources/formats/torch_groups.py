"""Which of a checkpoint's parts is the network: wrappers, optimizers, EMA copies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from filterdb.sources.formats.pickle_values import Record, Table
from filterdb.sources.formats.torch_parts import Part, is_module, is_optimizer, is_scripted, join

if TYPE_CHECKING:
    from filterdb.sources.formats.torch_walk import Walker

_EMA = re.compile(r"(^|[_.-])(ema|averaged|avg|swa)(?=[_.-]|$)", re.I)
#: Keys people put a state dict under. Others ("encoder", "generator") are names of parts.
_WRAPPERS = frozenset(
    {"state_dict", "model", "model_state_dict", "model_state", "model_dict", "model_weights"}
    | {"net", "network", "net_state_dict", "network_state_dict", "net_g", "netg", "weights"}
    | {"params", "parameters", "module", "state", "checkpoint", "ckpt", "learner"}
)
_WRAPPER_DEPTH = 8


def collect(walker: Walker, root: Any, depth: int = 0) -> Part:
    """Return all tensors of a checkpoint; those that are not the network's are marked.

    Parameters
    ----------
    walker
        Finds tensors.
    root
        The unpickled object, or the content of a wrapper.
    depth
        How many wrappers have been opened.

    Returns
    -------
    Part
        Where one wrapper holds the network, its key is not part of the names.
    """
    if not _is_mapping(walker, root):
        return walker.walk(root)
    parts: dict[str, Part] = {}
    direct: set[str] = set()
    for label, child in walker.children(root):
        if walker.tensor(child) is not None:
            direct.add(label)
        wrapped = depth < _WRAPPER_DEPTH and _is_wrapper(label)
        part = collect(walker, child, depth + 1) if wrapped else walker.walk(child)
        if is_optimizer(label, child):
            part = _marked(part, "optimizer_state", label)
        parts[label] = part
    _choose_copies(parts)
    taken = [
        label
        for label, part in parts.items()
        if _is_wrapper(label) and label not in direct and any(f.skip is None for f in part.tensors)
    ]
    result = Part()
    names: set[str] = set()
    if len(taken) > 1:
        taken = [label for label in taken if _kernels(parts[label])] or taken
    if len(taken) == 1:
        names = {found.name for found in parts[taken[0]].tensors}
    for label, part in parts.items():
        if taken and label in direct:
            part = _marked(part, "buffer", "beside the state dict")
        plain = [label] == taken and not any(
            join(other, found.name) in names
            for other, rest in parts.items()
            if other != label
            for found in rest.tensors
        )
        part = part if plain else part.below(label)
        result.tensors += part.tensors
        result.nodes += part.nodes
    return result


def _is_mapping(walker: Walker, value: Any) -> bool:
    if type(value) is Table:
        return True
    if type(value) is not Record or walker.tensor(value) is not None:
        return False
    if is_scripted(value):
        return False
    attributes = value.attributes()
    return bool(attributes) and not is_module(attributes)


def _is_wrapper(label: str) -> bool:
    return label.lower() in _WRAPPERS or _EMA.search(label) is not None


def _marked(part: Part, reason: Any, detail: str) -> Part:
    """Return the part with every tensor marked to be left out."""
    marked = [
        found if found.skip else replace(found, skip=(reason, detail)) for found in part.tensors
    ]
    return Part(marked, [])


def _choose_copies(parts: dict[str, Part]) -> None:
    """Where a network and its moving average are both there, mark the one not taken."""
    for label in list(parts):
        if _EMA.search(label) is None or not _kernels(parts[label]):
            continue
        raw_label = _EMA.sub("", label).strip("_.-").lower()
        for other in list(parts):
            low = other.lower()
            if other == label or _EMA.search(other) is not None or not _kernels(parts[other]):
                continue
            if low != raw_label and not (_is_wrapper(other) and not raw_label):
                continue
            raw, copy = _kernels(parts[other]), _kernels(parts[label])
            if set(raw) <= set(copy):
                parts[other] = _marked(parts[other], "ema_copy", f"{label!r} is taken instead")
            elif sorted(shape for _, shape in raw) == sorted(shape for _, shape in copy):
                # The same tensors without their names (torch_ema's list): the names count more.
                parts[label] = _marked(parts[label], "ema_copy", f"nameless copy of {other!r}")


def _kernels(part: Part) -> Sequence[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of the tensors of two axes or more that would be taken."""
    return [
        (found.name.removeprefix("module."), found.spec.shape)
        for found in part.tensors
        if len(found.spec.shape) > 1 and found.skip is None
    ]
