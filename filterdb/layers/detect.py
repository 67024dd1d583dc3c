"""Find every convolution of a model file, and say of every other tensor why it is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import LayerError
from filterdb.layers.batchnorm import (
    EPSILON_TENSORFLOW,
    EPSILON_TORCH,
    Pairing,
    pair_in_graph,
    reader_of,
)
from filterdb.layers.candidates import Candidate, candidates_of
from filterdb.layers.depth import Depth, Graph, graph_of, ranked
from filterdb.layers.layout import LayoutChoice, choose_layout
from filterdb.layers.model import ConvLayer, ModelLayers, SkippedTensor
from filterdb.layers.names import split_name
from filterdb.layers.namesakes import pair_by_name
from filterdb.layers.normalise import canonical
from filterdb.layers.roles import roles_of, surroundings_in_graph, surroundings_in_order
from filterdb.layers.skipped import Reasons, is_parameter
from filterdb.layers.survey import Survey, survey

if TYPE_CHECKING:
    from filterdb.layers.raw import RawModel, Tensor
    from filterdb.types import AnyArray, LayerUid, ModelId, Op, Role


@dataclass(frozen=True)
class _Place:
    """What is known of a candidate beyond itself."""

    depth: Depth
    role: Role
    pairing: Pairing
    use: int
    shared_with: str | None


def find_layers(
    raw: RawModel, *, layout: str = "auto", transposed: Sequence[str] = ()
) -> ModelLayers:
    """Find the convolutions of a model.

    Where the file has nodes, they decide. A state dict is read by names, shapes and neighbours;
    :mod:`filterdb.layers.modules` says what counts as a kernel, :mod:`filterdb.layers.layout`
    which axis is which, :mod:`filterdb.layers.candidates` what is transposed or grouped,
    :mod:`filterdb.layers.batchnorm` which BatchNorm follows and :mod:`filterdb.layers.roles` the
    role. No values are loaded.

    Parameters
    ----------
    raw
        An opened model file.
    layout
        "auto", or the family ("OIHW", "HWIO", "OHWI") of kernels that no node describes.
    transposed
        Globs of tensor names that are transposed convolutions.

    Returns
    -------
    ModelLayers
        Layers in file order (graph: execution order), and every other tensor with its reason.

    Raises
    ------
    LayerError
        If a node's attributes do not fit its tensor, or `layout` is unknown.
    """
    seen = survey(raw)
    told = {i for i, n in enumerate(raw.nodes) if n.conv is not None and n.conv.layout}
    unsaid = [m for m in seen.modules if m.node is None or m.node not in told]
    choice = choose_layout(unsaid, layout=layout, default=raw.default_layout)
    candidates = candidates_of(
        seen.modules, raw.nodes, choice, transposed=transposed, ordered=seen.ordered
    )
    places = _places(candidates, raw, seen, choice)
    order = _file_order(candidates, seen, in_file=not raw.nodes)
    layers = tuple(_layer(i, candidates[j], places[j]) for i, j in enumerate(order))
    skipped = _skipped(candidates, raw, seen)
    return ModelLayers(layers, skipped, _n_parameters(candidates, skipped, seen))


def layer_uid(model_id: ModelId, layer: ConvLayer) -> LayerUid:
    """Return the name under which a layer stands in a store.

    Parameters
    ----------
    model_id
        The catalogue's slug.
    layer
        One of the model's layers.

    Returns
    -------
    str
        ``model_id/tensor``, with ``#use`` for second and later uses of a shared weight.
    """
    return f"{model_id}/{layer.tensor}" + (f"#{layer.use}" if layer.use else "")


def _places(
    candidates: Sequence[Candidate], raw: RawModel, seen: Survey, choice: LayoutChoice
) -> list[_Place]:
    graph = graph_of(raw.nodes) if raw.has_edges and raw.nodes else None
    levels = graph.levels(raw.nodes) if graph is not None else None
    if graph is not None and levels is not None:
        depths = _depths_in_graph(candidates, raw, levels)
        around = surroundings_in_graph(candidates, raw.nodes, graph, seen.modules)
    else:
        depths = ranked(range(len(candidates)), "registration")
        around = surroundings_in_order(candidates, seen.modules)
    pairings = _pairings(candidates, raw, seen, choice, graph)
    roles = roles_of(candidates, around)
    uses = _uses(candidates)
    return [
        _Place(d, r, p, use, shared)
        for d, r, p, (use, shared) in zip(depths, roles, pairings, uses, strict=True)
    ]


def _depths_in_graph(
    candidates: Sequence[Candidate], raw: RawModel, levels: Sequence[int]
) -> list[Depth]:
    # Levels are ranked over all convolutions, those with unreadable weights among them.
    convolutions = [i for i, n in enumerate(raw.nodes) if n.op in ("conv", "conv_transpose")]
    by_node = dict(
        zip(convolutions, ranked([levels[i] for i in convolutions], "graph"), strict=True)
    )
    return [by_node[c.module.node or 0] for c in candidates]


def _pairings(
    candidates: Sequence[Candidate],
    raw: RawModel,
    seen: Survey,
    choice: LayoutChoice,
    graph: Graph | None,
) -> list[Pairing]:
    folds = raw.folds_batch_norm
    if graph is not None:
        tensors = {t.name: t for t in seen.tensors}
        return pair_in_graph(candidates, raw.nodes, graph, tensors, folds=folds)
    epsilon = EPSILON_TENSORFLOW if choice.family == "HWIO" else EPSILON_TORCH
    return pair_by_name(
        candidates, seen.modules, ordered=seen.ordered, folds=folds, epsilon=epsilon
    )


def _uses(candidates: Sequence[Candidate]) -> list[tuple[int, str | None]]:
    """For each candidate: how often its tensor was used before, and whose filters it repeats."""
    counts: dict[str, int] = {}
    first: dict[object, Candidate] = {}
    found: list[tuple[int, str | None]] = []
    for candidate in candidates:
        tensor = candidate.tensor
        use = counts.get(tensor.name, 0)
        counts[tensor.name] = use + 1
        shared = None
        for key in (tensor.name, tensor.storage):
            if key is None:
                continue
            earlier = first.setdefault(key, candidate)
            # Tied bytes applied in another way (an autoencoder's transposed twin) make other
            # filters.
            if earlier is not candidate and shared is None and _alike(earlier, candidate):
                shared = earlier.tensor.name
        found.append((use, shared))
    return found


def _alike(a: Candidate, b: Candidate) -> bool:
    return (a.op, a.layout, a.groups, a.shape) == (b.op, b.layout, b.groups, b.shape)


def _file_order(candidates: Sequence[Candidate], seen: Survey, *, in_file: bool) -> list[int]:
    if not in_file:
        return list(range(len(candidates)))
    place = {t.name: i for i, t in enumerate(seen.tensors)}
    return sorted(range(len(candidates)), key=lambda i: place[candidates[i].tensor.name])


def _layer(index: int, candidate: Candidate, place: _Place) -> ConvLayer:
    tensor, told = candidate.tensor, candidate.attributes
    affine = place.pairing.affine
    read = partial(_read, tensor, candidate.layout, candidate.groups, candidate.op)
    return ConvLayer(
        index=index,
        name=candidate.module.name or split_name(tensor.name)[0] or tensor.name,
        tensor=tensor.name,
        use=place.use,
        op=candidate.op,
        kernel=candidate.kernel,
        in_channels=candidate.in_channels,
        out_channels=candidate.out_channels,
        groups=candidate.groups,
        stride=told.stride,
        dilation=told.dilation,
        padding=told.padding,
        role=place.role,
        conv_depth=place.depth.level,
        conv_depth_norm=place.depth.share,
        depth_decile=place.depth.decile,
        depth_source=place.depth.source,
        batch_norm_status=place.pairing.status,
        source_dtype=tensor.dtype,
        quantised=tensor.quantised,
        shared_with=place.shared_with,
        read=read,
        read_batch_norm=None if affine is None else reader_of(affine),
    )


def _read(tensor: Tensor, layout: str, groups: int, op: Op) -> AnyArray:
    array = np.asarray(tensor.load())
    if array.shape != tuple(tensor.shape):
        raise LayerError(
            f"{tensor.name}: the file announced shape {tuple(tensor.shape)} and gave {array.shape}"
        )
    if array.dtype.kind != "f":
        raise LayerError(f"{tensor.name}: {array.dtype} values where floats were announced")
    if tensor.quantised:
        array = array.astype(np.float32, copy=False)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return canonical(native, layout, groups=groups, op=op, where=tensor.name)


def _skipped(
    candidates: Sequence[Candidate], raw: RawModel, seen: Survey
) -> tuple[SkippedTensor, ...]:
    taken = {c.tensor.name for c in candidates}
    reasons = Reasons(seen.modules, raw.nodes, seen.parts, seen.reasons)
    rows = [reasons.row(t) for t in raw.tensors if t.name not in taken]
    return (*rows, *seen.dynamic)


def _n_parameters(
    candidates: Sequence[Candidate], skipped: Sequence[SkippedTensor], seen: Survey
) -> int:
    by_name = {t.name: t for t in seen.tensors}
    counted = {c.tensor.name: c.tensor for c in candidates}
    for row in skipped:
        tensor = by_name.get(row.tensor)
        if tensor is not None and is_parameter(tensor, row.reason):
            counted[tensor.name] = tensor
    tied: dict[object, Tensor] = {}
    for tensor in counted.values():
        tied.setdefault(tensor.name if tensor.storage is None else tensor.storage, tensor)
    return sum(int(np.prod(t.shape)) for t in tied.values())
