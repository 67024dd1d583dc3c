"""First look at a model: its modules in order, and the tensors that cannot be layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from filterdb.layers.averages import without_copies
from filterdb.layers.model import SkippedTensor
from filterdb.layers.modules import Kind, Module, modules_of
from filterdb.layers.names import keeps_order, registration_order, split_name
from filterdb.layers.reparametrised import assemble
from filterdb.layers.skipped import supported

if TYPE_CHECKING:
    from filterdb.layers.raw import Node, RawModel, Tensor
    from filterdb.types import SkipReason

_KINDS: Mapping[str, Kind] = {
    "conv": "conv",
    "conv_transpose": "conv",
    "linear": "linear",
    "batch_norm": "batch_norm",
    "norm": "norm",
    "embedding": "embedding",
}


@dataclass(frozen=True)
class Survey:
    """What a file holds, before anything is concluded.

    Parameters
    ----------
    tensors
        In file order, reparametrised weights put together.
    modules
        In order of construction (graph: execution); position is the place in this tuple.
    ordered
        False where the file lists its tensors by the alphabet or at random, so that order says
        little.
    parts
        Parts of reparametrised weights.
    reasons
        Tensors that would be kernels and cannot be: name → reason.
    dynamic
        Convolutions whose kernel another operation computes.
    """

    tensors: tuple[Tensor, ...]
    modules: tuple[Module, ...]
    ordered: bool
    parts: Mapping[str, tuple[Tensor, str]]
    reasons: Mapping[str, tuple[SkipReason, str]]
    dynamic: tuple[SkippedTensor, ...]


def survey(raw: RawModel) -> Survey:
    """List a model's modules.

    Parameters
    ----------
    raw
        An opened model file.

    Returns
    -------
    Survey
        Nodes decide where there are any. Where they carry no edges (registered modules), tensors
        that no node mentions are read by their names, too, since custom modules keep their own.
    """
    assembled = assemble(raw.tensors if raw.nodes else without_copies(raw.tensors))
    by_name = {t.name: t for t in assembled.tensors}
    reasons: dict[str, tuple[SkipReason, str]] = {}
    marked = {t.name: t.skip for t in assembled.tensors if t.skip is not None}
    reasons.update(marked)
    nodes, dynamic = _of_nodes(raw.nodes, by_name, assembled.tensors)
    named: list[Module] = []
    if not raw.has_edges:
        covered = {name for n in raw.nodes if n.op in _KINDS for name in n.weights.values()}
        covered |= {t.name for m in nodes for t in m.tensors.values()}
        free = [t for t in assembled.tensors if t.name not in covered and t.skip is None]
        named = modules_of(free)
    names = [m.name for m in named]
    ordered = bool(nodes) or (keeps_order(names) and not _by_alphabet(assembled.tensors))
    if nodes:
        modules = _merged(nodes, named, assembled.tensors)
    else:
        modules = [named[i] for i in registration_order(names, ordered=ordered)]
    kept = tuple(m for m in modules if _usable(m, reasons))
    placed = tuple(replace(m, position=i) for i, m in enumerate(kept))
    return Survey(assembled.tensors, placed, ordered, assembled.parts, reasons, tuple(dynamic))


def _by_alphabet(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors stand by the alphabet, or by type and alphabet (safetensors' writer)."""
    by_type: dict[str, list[str]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor.name)
    return max(map(len, by_type.values()), default=0) > 3 and all(
        a <= b for names in by_type.values() for a, b in pairwise(names)
    )


def _of_nodes(
    nodes: Sequence[Node], by_name: Mapping[str, Tensor], tensors: Sequence[Tensor]
) -> tuple[list[Module], list[SkippedTensor]]:
    # A registered module's reparametrised weight is not under the name the module gives it.
    owned = {
        split_name(t.name)[0]: t
        for t in tensors
        if split_name(t.name)[1] in ("weight_v", "weight_orig")
    }
    modules: list[Module] = []
    dynamic: list[SkippedTensor] = []
    used = set(by_name)
    for i, node in enumerate(nodes):
        kind = _KINDS.get(node.op)
        if kind is None:
            continue
        parts = {r: by_name[n] for r, n in node.weights.items() if n in by_name}
        if kind == "conv" and "weight" not in parts and node.name in owned:
            parts["weight"] = owned[node.name]
        if kind == "conv" and "weight" not in parts:
            dynamic.append(_dynamic_row(node, i, used))
            continue
        modules.append(_of_node(node, i, kind, parts))
    return modules, dynamic


def _of_node(node: Node, i: int, kind: Kind, parts: dict[str, Tensor]) -> Module:
    channels = inputs = None
    vector = parts.get("mean") or parts.get("gamma")
    if kind in ("batch_norm", "norm") and vector is not None:
        channels = vector.shape[-1] if vector.shape else None
    if kind == "batch_norm" and not {"mean", "var"} <= parts.keys():
        kind = "norm"
    weight = parts.get("weight")
    if kind == "linear" and weight is not None and len(weight.shape) == 2:
        channels, inputs = weight.shape
    return Module(node.name, kind, parts, channels, inputs, epsilon=node.epsilon, node=i)


def _dynamic_row(node: Node, i: int, used: set[str]) -> SkippedTensor:
    name = node.name or f"node {i}"
    # Rows of `skipped` are known by their name; a node may be called like a tensor.
    while name in used:
        name += "#"
    used.add(name)
    stored = node.weights.get("weight")
    what = f"tensor {stored!r}, which is not in the file"
    if node.dynamic_weight is not None:
        what = f"{node.dynamic_weight!r}, computed while the network runs"
    elif stored is None:
        what = "no stored tensor"
    operation = node.source_op or node.op
    return SkippedTensor(
        name, (), "", "dynamic_weight", f"{operation} takes its kernel from {what}"
    )


def _merged(
    nodes: Sequence[Module], named: Sequence[Module], tensors: Sequence[Tensor]
) -> list[Module]:
    """Put modules known by name only behind the node whose tensors precede theirs in the file."""
    order = {t.name: i for i, t in enumerate(tensors)}
    node_at = {order[t.name]: i for i, m in enumerate(nodes) for t in m.tensors.values()}
    placed: list[tuple[int, int, int, Module]] = [(i, 0, 0, m) for i, m in enumerate(nodes)]
    before = -1
    starts = {min(order[t.name] for t in m.tensors.values()): m for m in named if m.tensors}
    for position in range(len(tensors)):
        before = node_at.get(position, before)
        if position in starts:
            placed.append((before, 1, position, starts[position]))
    return [m for *_, m in sorted(placed, key=lambda p: p[:3])]


def _usable(module: Module, reasons: dict[str, tuple[SkipReason, str]]) -> bool:
    """Whether a module can be what it says; a kernel that cannot be read gets its reason."""
    if module.kind != "conv":
        return True
    weight = module.tensors["weight"]
    reason = _unreadable(module, weight)
    if reason is None:
        return True
    reasons[weight.name] = reason
    return False


def _unreadable(
    module: Module, weight: Tensor
) -> tuple[SkipReason, str] | tuple[Literal["dynamic_weight"], str] | None:
    if weight.skip is not None:
        return weight.skip
    rank = len(weight.shape) - 2
    if rank not in (1, 2, 3):
        return "unknown_rank", f"a kernel of {rank} axes"
    if not supported(weight):
        return "unsupported_dtype", f"a kernel of {weight.dtype} without scales"
    if module.node is None and rank == 3 and _is_modulated(weight.shape):
        return "dynamic_weight", "a kernel that a style vector modulates (StyleGAN2)"
    return None


def _is_modulated(shape: tuple[int, ...]) -> bool:
    # StyleGAN2 keeps 2-D kernels as (1, O, I, k, k), multiplied by a style before use.
    one, out, into, height, width = shape
    return one == 1 and height == width <= 7 and min(out, into) > width
