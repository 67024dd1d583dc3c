"""The role of each convolution (filter_metrics.md §1), by the first rule that holds.

1. ``patch_embed``: a first layer whose stride equals its kernel, larger than 1. Where the file
   does not state strides: a first layer called patch or stem with an even kernel of at least 4, or
   with an even or 7-fold kernel of at least 8 (ViT's 8, 14, 16, 32).
2. ``stem``: any other first layer. With a graph, a first layer has no convolution before it and,
   if any such layer reads at most four channels, it does, too (others read a style vector or
   features). Without, it is the first in order of construction if that reads at most 16 channels,
   else the first that reads at most four with a kernel above 1, else the first; and those called
   like it but for a number that read as many, one or three, channels (parallel branches).
3. ``depthwise``: as many groups as input channels, more than one.
4. ``fc_as_conv``: a kernel of at least 4 along every axis, not strided, not padded (if known),
   ungrouped, with more weights than all convolutions before it together, and nothing but 1×1
   convolutions and linear layers behind it, of which the next reads exactly what it emits, so that
   its map is a single point (LeNet's last 5×5 kernels emit a map, which is pooled and flattened:
   those are spatial; without a graph the next has to be a 1×1 convolution); or one whose own name
   is fc, dense or linear and whose kernel is larger than 1.
5. ``head``: with a graph, a convolution behind which there is neither another one nor a linear
   layer; without, the last one, where no linear layer follows it.
6. ``downsample``: stride = kernel > 1, or a 1×1 kernel with a stride, or a name that holds
   downsample or shortcut with a stride unknown or above 1. Transposed ones are never this.
7. ``pointwise``: a kernel of 1 along every axis.
8. ``spatial``: all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from filterdb.layers.names import last_part, tokens

if TYPE_CHECKING:
    from filterdb.layers.candidates import Candidate
    from filterdb.layers.depth import Graph
    from filterdb.layers.modules import Module
    from filterdb.layers.raw import Node
    from filterdb.types import Role

_FULLY_CONNECTED = re.compile(r"^(fc|dense|linear|fully_?connected)_?\d*$", re.I)
_POOLED = re.compile(r"pool|reduce|mean", re.I)
_WRAPPER = re.compile(r"^(\d*|c|conv(2d)?)$", re.I)
_PATCH = re.compile(r"patch|stem|embed|(^|\.)downsample_layers\.0", re.I)
_SHORTCUTS = frozenset({"downsample", "shortcut", "downsampling", "downsampler"})
#: Channels of an image, at most; and of anything else that is fed to a network's first layer.
_IMAGE_CHANNELS = 4
_INPUT_CHANNELS = 16


@dataclass(frozen=True)
class Surroundings:
    """What lies before and behind each convolution; one entry per candidate.

    Parameters
    ----------
    first
        No convolution before it.
    last
        No convolution and no linear layer behind it.
    spatial_behind
        Another convolution with a kernel above 1 lies behind it.
    weights_before
        Number of weights of all convolutions before it.
    read_whole
        The next layer behind it reads exactly its output channels, nothing pooled in between;
        without a graph, a 1×1 convolution does.
    """

    first: tuple[bool, ...]
    last: tuple[bool, ...]
    spatial_behind: tuple[bool, ...]
    weights_before: tuple[int, ...]
    read_whole: tuple[bool, ...]


def surroundings_in_graph(
    candidates: Sequence[Candidate],
    nodes: Sequence[Node],
    graph: Graph,
    modules: Sequence[Module],
) -> Surroundings:
    """Look around each convolution along the graph's edges.

    Parameters
    ----------
    candidates
        Convolutions, in execution order, each with its node.
    nodes, graph
        The file's graph, without cycles.
    modules
        Its modules, each with its node.

    Returns
    -------
    Surroundings
        One entry per candidate. ``weights_before`` counts in execution order.
    """
    is_convolution = [n.op in ("conv", "conv_transpose") for n in nodes]
    is_any = [n.op in ("conv", "conv_transpose", "linear") for n in nodes]
    spatial = [False] * len(nodes)
    for c in candidates:
        if c.module.node is not None:
            spatial[c.module.node] = max(c.kernel) > 1
    widths = {m.node: _widths(m) for m in modules if m.node is not None and _reads(m)}
    before = graph.marked_above(is_convolution)
    behind = graph.marked_below(is_any)
    spatial_behind = graph.marked_below(spatial)
    at = [c.module.node or 0 for c in candidates]
    first = [not before[i] for i in at]
    if any(f and c.in_channels <= _IMAGE_CHANNELS for f, c in zip(first, candidates, strict=True)):
        first = [
            f and c.in_channels <= _IMAGE_CHANNELS for f, c in zip(first, candidates, strict=True)
        ]
    return Surroundings(
        first=tuple(first),
        last=tuple(not behind[i] for i in at),
        spatial_behind=tuple(spatial_behind[i] for i in at),
        weights_before=_running(candidates),
        read_whole=tuple(
            max(c.kernel) > 1
            and not spatial_behind[i]
            and _is_read_whole(i, c.out_channels, nodes, graph, widths)
            for i, c in zip(at, candidates, strict=True)
        ),
    )


def _is_read_whole(
    position: int,
    channels: int,
    nodes: Sequence[Node],
    graph: Graph,
    widths: Mapping[int, frozenset[int]],
) -> bool:
    """Follow a convolution's output to the next layers."""
    waiting, seen, found = [position], {position}, False
    while waiting:
        for reader in graph.consumers[waiting.pop()]:
            if reader in seen:
                continue
            seen.add(reader)
            if reader in widths:
                if channels not in widths[reader]:
                    return False
                found = True
            elif _POOLED.search(nodes[reader].source_op):
                return False
            else:
                waiting.append(reader)
    return found


def surroundings_in_order(
    candidates: Sequence[Candidate], modules: Sequence[Module]
) -> Surroundings:
    """Look around each convolution along the order of construction.

    Parameters
    ----------
    candidates
        Convolutions in order of construction.
    modules
        All modules in that order.

    Returns
    -------
    Surroundings
        One entry per candidate.
    """
    n = len(candidates)
    first = 0
    if candidates and candidates[0].in_channels > _INPUT_CHANNELS:
        first = next((i for i, c in enumerate(candidates) if _reads_image(c)), 0)
    last_linear = max((m.position for m in modules if m.kind == "linear"), default=-1)
    last_spatial = max((i for i, c in enumerate(candidates) if max(c.kernel) > 1), default=-1)
    return Surroundings(
        first=tuple(i == first or _twin(candidates[first], candidates[i]) for i in range(n)),
        last=tuple(
            i == n - 1 and c.module.position > last_linear for i, c in enumerate(candidates)
        ),
        spatial_behind=tuple(i < last_spatial for i in range(n)),
        weights_before=_running(candidates),
        read_whole=tuple(_is_before_pointwise(c, modules) for c in candidates),
    )


def _is_before_pointwise(candidate: Candidate, modules: Sequence[Module]) -> bool:
    """Whether a 1×1 convolution is next: a linear layer might read what was pooled to a point."""
    behind = (m for m in modules[candidate.module.position + 1 :] if _reads(m))
    after = next(behind, None)
    if after is None or after.kind != "conv":
        return False
    shape = after.tensors["weight"].shape
    return candidate.out_channels in shape and sum(n > 1 for n in shape) <= 2


def _reads(module: Module) -> bool:
    return module.kind in ("conv", "linear")


def _widths(module: Module) -> frozenset[int]:
    """Channels a layer may read: either axis of a matrix, either of the two of a kernel."""
    weight = module.tensors.get("weight")
    if weight is None:
        return frozenset()
    return frozenset(weight.shape)


def _reads_image(candidate: Candidate) -> bool:
    return candidate.in_channels <= _IMAGE_CHANNELS and max(candidate.kernel) > 1


def _twin(first: Candidate, other: Candidate) -> bool:
    """Whether a layer is another branch's first: called alike but for a number, on an image."""
    names = [re.sub(r"\d+", "#", c.module.name) for c in (first, other)]
    channels = {first.in_channels, other.in_channels}
    return names[0] == names[1] and len(channels) == 1 and channels.pop() in (1, 3)


def _running(candidates: Sequence[Candidate]) -> tuple[int, ...]:
    sizes = [0, *(int(np.prod(c.shape)) for c in candidates)]
    return tuple(int(v) for v in np.cumsum(sizes)[: len(candidates)])


def roles_of(candidates: Sequence[Candidate], around: Surroundings) -> list[Role]:
    """Decide every convolution's role.

    Parameters
    ----------
    candidates
        Convolutions.
    around
        What lies before and behind each.

    Returns
    -------
    list of str
        One role per candidate.
    """
    return [_role(c, i, around) for i, c in enumerate(candidates)]


def _role(candidate: Candidate, i: int, around: Surroundings) -> Role:
    kernel = candidate.kernel
    if around.first[i] and candidate.op == "conv":
        return "patch_embed" if _is_patch(candidate) else "stem"
    if candidate.groups == candidate.in_channels > 1:
        return "depthwise"
    if _is_fully_connected(candidate, i, around):
        return "fc_as_conv"
    if around.last[i]:
        return "head"
    if _is_downsample(candidate):
        return "downsample"
    return "pointwise" if max(kernel) == 1 else "spatial"


def _is_patch(candidate: Candidate) -> bool:
    kernel = candidate.kernel
    if max(kernel) == 1:
        return False
    if candidate.stride is not None:
        return tuple(candidate.stride) == kernel
    if len(kernel) == 1 or len(set(kernel[-2:])) > 1:
        return False
    side = kernel[-1]
    named = _PATCH.search(candidate.module.name) is not None
    return (side >= 4 and side % 2 == 0 and named) or (
        side >= 8 and (side % 2 == 0 or side % 7 == 0)
    )


def _is_fully_connected(candidate: Candidate, i: int, around: Surroundings) -> bool:
    kernel, stride, padding = candidate.kernel, candidate.stride, candidate.attributes.padding
    if candidate.op != "conv" or candidate.groups != 1 or max(kernel) == 1:
        return False
    if _FULLY_CONNECTED.match(last_part(candidate.module.name)[1]):
        return True
    if min(kernel) < 4 or around.spatial_behind[i]:
        return False
    if (stride is not None and max(stride) > 1) or (padding is not None and any(padding)):
        return False
    return around.read_whole[i] and int(np.prod(candidate.shape)) > around.weights_before[i]


def _is_downsample(candidate: Candidate) -> bool:
    if candidate.op != "conv":
        return False
    kernel, stride = candidate.kernel, candidate.stride
    # Its own name or its parent's: a whole block may be called so (RepViT).
    parts = [p for p in re.split(r"[./]", candidate.module.name) if not _WRAPPER.match(p)]
    named = any(_SHORTCUTS & set(tokens(p)) for p in parts[-2:])
    if stride is None:
        return named
    if max(stride) == 1:
        return False
    return named or max(kernel) == 1 or tuple(stride) == kernel
