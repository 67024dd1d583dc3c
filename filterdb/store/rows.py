"""Rows of the extracted tables, made of what was read of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from filterdb.layers.detect import layer_uid
from filterdb.stats.state import layer_state
from filterdb.store.staged import StagedLayer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from filterdb.catalog.model import Entry
    from filterdb.layers.model import ConvLayer
    from filterdb.stats.state import LayerState
    from filterdb.types import AnyArray, LayerUid, ModelId


def entry_columns(entry: Entry) -> dict[str, object]:
    """Return the columns of `models` that say what the catalogue says.

    Parameters
    ----------
    entry
        The model's catalogue entry.

    Returns
    -------
    dict
        Id, labels, licences and where they are known from.
    """
    return {
        "model_id": entry.id,
        "catalogue": entry.catalogue,
        "name": entry.name or entry.id,
        "architecture": entry.architecture,
        "family": entry.family,
        "task": entry.task,
        "visual_category": entry.visual_category,
        "training_dataset": list(entry.training_dataset),
        "pretraining_dataset": list(entry.pretraining_dataset),
        "licence_package": entry.licence_package,
        "licence_weights": entry.licence_weights,
        "paper": entry.paper,
        "note": entry.note,
        "label_source": entry.label_source,
    }


def staged_layers(model_id: ModelId, layers: Sequence[ConvLayer]) -> Iterator[StagedLayer]:
    """Make layers ready to be staged, one at a time: memory is bounded by the largest tensor.

    Parameters
    ----------
    model_id
        The model they belong to.
    layers
        All its layers, in file order.

    Yields
    ------
    StagedLayer
        Row, weights, and states of the weights as they are and, where BatchNorm is known, with
        it folded in.
    """
    first_uid: dict[str, LayerUid] = {}
    for layer in layers:
        if layer.shared_with is None:  # a tensor may be of its own twice: also as transposed
            first_uid.setdefault(layer.tensor, layer_uid(model_id, layer))
    for layer in layers:
        weights = layer.weights()
        uid = layer_uid(model_id, layer)
        row = _layer_row(model_id, uid, layer)
        if layer.shared_with is not None:
            row["shared_with"] = first_uid.get(layer.shared_with)
        yield StagedLayer(row=row, weights=weights, states=_state_rows(uid, layer, weights))


def _layer_row(model_id: ModelId, uid: str, layer: ConvLayer) -> dict[str, object]:
    kd, kh, kw = (None,) * (3 - layer.rank) + layer.kernel
    return {
        "layer_uid": uid,
        "model_id": model_id,
        "layer_index": layer.index,
        "name": layer.name,
        "op": layer.op,
        "rank": layer.rank,
        "kernel": layer.kernel_name,
        "kd": kd,
        "kh": kh,
        "kw": kw,
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "groups": layer.groups,
        "stride": _listed(layer.stride),
        "dilation": _listed(layer.dilation),
        "padding": _listed(layer.padding),
        "role": layer.role,
        "conv_depth": layer.conv_depth,
        "conv_depth_norm": layer.conv_depth_norm,
        "depth_decile": layer.depth_decile,
        "depth_source": layer.depth_source,
        "bn": layer.batch_norm_status,
        "n_filters": layer.n_filters,
        "source_dtype": layer.source_dtype,
        "quantised": layer.quantised,
        "shared_with": None,
    }


def _listed(value: tuple[int, ...] | None) -> list[int] | None:
    return None if value is None else list(value)


def _state_rows(uid: str, layer: ConvLayer, weights: AnyArray) -> list[dict[str, object]]:
    """Return the raw state and, where BatchNorm is known, the one with it folded in."""

    def state_of(values: AnyArray) -> LayerState:
        return layer_state(
            values,
            groups=layer.groups,
            stride=layer.stride,
            transposed=layer.op == "conv_transpose",
        )

    raw = state_of(weights)
    rows = [{"layer_uid": uid, "weights": "raw", **raw.to_record()}]
    if layer.read_batch_norm is not None:
        scale = layer.read_batch_norm().scale
        with np.errstate(over="ignore", invalid="ignore"):
            folded = np.asarray(weights, dtype=np.float64) * scale.reshape(
                -1, *[1] * (weights.ndim - 1)
            )
        state = state_of(folded)
        rows.append({"layer_uid": uid, "weights": "folded", **state.to_record()})
    return rows
