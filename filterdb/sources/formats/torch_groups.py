"""Which of a checkpoint's parts is the network: wrappers, optimizers, EMA copies."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from filterdb.sources.formats.pickle_values import Record, Table
from filterdb.sources.formats.torch_parts import (
    Found,
    Part,
    Skip,
    is_module,
    is_optimizer,
    is_scripted,
    join,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from filterdb.sources.formats.torch_walk import Walker

_EMA = re.compile(r"(^|[_.-])(ema|averaged|avg|swa)(?=[_.-]|$)", re.I)
#: Keys people put a state dict under. Others ("encoder", "generator") are names of parts.
_WRAPPERS = frozenset(
    {"state_dict", "model", "model_state_dict", "model_state", "model_dict", "model_weights"}
    | {"net", "network", "net_state_dict", "network_state_dict", "net_g", "netg", "weights"}
    | {"params", "parameters", "module", "state", "checkpoint", "ckpt", "learner"}
)
_WRAPPER_DEPTH = 8
#: Buffers that no average is made of.
_STATISTICS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
#: Checkpoints have a handful of parts; comparing all pairs of many would take long.
_MAX_PARTS = 100


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
    _choose_copies({label: part for label, part in parts.items() if label not in direct}, parts)
    taken = [
        label
        for label, part in parts.items()
        if _is_wrapper(label) and label not in direct and any(f.skip is None for f in part.tensors)
    ]
    if len(taken) > 1:
        taken = [label for label in taken if _kernels(parts[label])] or taken
    wrapped_bytes = sum(_nbytes(parts[label]) for label in taken)
    if wrapped_bytes > sum(_nbytes(parts[label]) for label in direct):
        for label in direct:
            parts[label] = _marked(parts[label], "buffer", "beside the state dict")
    return _joined(parts, taken[0] if len(taken) == 1 else None)


def _joined(parts: Mapping[str, Part], network: str | None) -> Part:
    """Put the parts behind one another, below their keys; that of the `network` is dropped."""
    result = Part()
    names = {found.name for found in parts[network].tensors} if network else set()
    for label, part in parts.items():
        if label != network and any(join(label, f.name) in names for f in part.tensors):
            network = None
    for label, part in parts.items():
        named = part if label == network else part.below(label)
        result.tensors += named.tensors
        result.nodes += named.nodes
    return result


def mark_flat_copies(part: Part) -> Part:
    """Where one state dict holds a network and its moving average side by side, mark one of them.

    Parameters
    ----------
    part
        All of a checkpoint's tensors.

    Returns
    -------
    Part
        The same, with the tensors under ``model.`` marked where ``ema_model.`` holds the same
        names; where those are the same but for missing dots, the average's values stand under
        the network's names.
    """
    groups: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for found in part.tensors:
        label, _, rest = found.name.partition(".")
        if rest and found.skip is None and len(found.spec.shape) > 1:
            groups.setdefault(label, []).append((rest.removeprefix("module."), found.spec.shape))
    copies = [label for label in groups if _EMA.search(label)]
    if not copies or len(groups) > _MAX_PARTS:
        return part
    marked: dict[str, str] = {}
    for copy in copies:
        for raw in groups.keys() - set(copies):
            if set(groups[raw]) <= set(groups[copy]):
                marked[raw] = f"{copy!r} is taken instead"
            elif _without_dots(groups[raw]) <= _without_dots(groups[copy]):
                part = Part(_exchanged(part.tensors, raw, copy), part.nodes)
    tensors = [
        replace(found, skip=("ema_copy", marked[label]))
        if (label := found.name.partition(".")[0]) in marked and found.skip is None
        else found
        for found in part.tensors
    ]
    left_out = {found.name for found in tensors if found.skip and found.skip[0] == "ema_copy"}
    nodes = [node for node in part.nodes if left_out.isdisjoint(node.weights.values())]
    return Part(tensors, nodes)


def _exchanged(tensors: Sequence[Found], raw: str, copy: str) -> list[Found]:
    """Put an average's values under the network's names, and the network's, marked, under its."""
    averages = {f.name: f for f in tensors if f.name.startswith(f"{copy}.")}
    partner: dict[str, Found] = {}
    for found in tensors:
        label, _, rest = found.name.partition(".")
        average = averages.get(f"{copy}.{rest.replace('.', '')}") if label == raw else None
        if average is not None and average.spec.shape == found.spec.shape:
            partner[found.name], partner[average.name] = average, found
    why: Skip = ("ema_copy", f"raw values; those of {copy!r} are taken instead")
    exchanged = []
    for found in tensors:
        other = partner.get(found.name)
        if other is None:
            exchanged.append(found)
        else:
            skip = why if found.name in averages else found.skip
            exchanged.append(replace(found, spec=other.spec, skip=skip))
    return exchanged


def _without_dots(kernels: Iterable[tuple[str, tuple[int, ...]]]) -> set[tuple[str, Any]]:
    return {(name.replace(".", ""), shape) for name, shape in kernels}


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


def _choose_copies(candidates: Mapping[str, Part], parts: dict[str, Part]) -> None:
    """Where a network and its moving average are both there, mark the one not taken."""
    kernels = {label: _kernels(part) for label, part in candidates.items()}
    kernels = {label: found for label, found in kernels.items() if found}
    copies = [label for label in kernels if _EMA.search(label)]
    if len(kernels) > _MAX_PARTS:
        return
    for copy in copies:
        raw_label = _EMA.sub("", copy).strip("_.-").lower()
        for raw in kernels.keys() - set(copies):
            if raw.lower() != raw_label and (raw_label or not _is_wrapper(raw)):
                continue
            if set(kernels[raw]) <= set(kernels[copy]):
                parts[raw] = _marked(parts[raw], "ema_copy", f"{copy!r} is taken instead")
            elif _shapes(kernels[raw]) == _shapes(kernels[copy]):
                _name_copy(parts, raw, copy)


def _name_copy(parts: dict[str, Part], raw: str, copy: str) -> None:
    """Take a list of averages (torch_ema's) under the names of the parameters it was made from."""
    averages = [f for f in parts[copy].tensors if f.skip is None]
    own = [f for f in parts[raw].tensors if f.skip is None and not _STATISTICS.search(f.name)]
    if [f.spec.shape for f in averages] != [f.spec.shape for f in own]:
        # Which is which cannot be told: the names count more than the average.
        parts[copy] = _marked(parts[copy], "ema_copy", f"nameless copy of {raw!r}")
        return
    taken = {f.name: average for f, average in zip(own, averages, strict=True)}
    left = {average.name: f for f, average in zip(own, averages, strict=True)}
    named = [
        replace(f, spec=taken[f.name].spec) if f.name in taken else f for f in parts[raw].tensors
    ]
    rest = [
        replace(f, spec=left[f.name].spec) if f.name in left else f for f in parts[copy].tensors
    ]
    parts[raw] = Part(named, parts[raw].nodes)
    why = f"raw values of {raw!r}; the average's are taken instead"
    parts[copy] = _marked(Part(rest, []), "ema_copy", why)


def _shapes(kernels: Iterable[tuple[str, tuple[int, ...]]]) -> list[tuple[int, ...]]:
    return sorted(shape for _, shape in kernels)


def _nbytes(part: Part) -> int:
    return sum(found.spec.nbytes for found in part.tensors if found.skip is None)


def _kernels(part: Part) -> Sequence[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of the tensors of two axes or more that would be taken."""
    return [
        (found.name.removeprefix("module."), found.spec.shape)
        for found in part.tensors
        if len(found.spec.shape) > 1 and found.skip is None
    ]
