"""Extract one model: fetch, read, find its layers, stage its filters and their states.

Here stands the one guard around a model. Whatever is wrong with a checkpoint becomes a row in
``failures`` with the stage it failed in; what is wrong with the store (a full disk) raises.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import FetchError, HashMismatchError, PipelineError, StoreError

if TYPE_CHECKING:
    from filterdb.catalog.model import Entry
    from filterdb.layers.model import ConvLayer, ModelLayers
    from filterdb.sources import Fetched
    from filterdb.stats.state import LayerState
    from filterdb.store.staging import StagedLayer, StagedModel
    from filterdb.types import AnyArray, ModelId, Stage

#: Changes when extraction itself gives other rows for the same file; stages of older ones are
#: then not taken up again.
EXTRACTION_VERSION = 1


@dataclass(frozen=True)
class ExtractTask:
    """What a worker needs to extract one model.

    Parameters
    ----------
    store_path
        The store.
    entry
        The catalogue's entry.
    cache_path
        Cache of fetched files; None for the default one.
    """

    store_path: str
    entry: Entry
    cache_path: str | None = None

    @property
    def key(self) -> str:
        """Hash of what the stage depends on, so that an edited entry is extracted again."""
        record = {**asdict(self.entry), "base": "", "extraction": EXTRACTION_VERSION}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ExtractOutcome:
    """What became of one model.

    Parameters
    ----------
    model_id
        The model.
    n_layers, n_filters
        What was staged; 0 for a failure.
    stage, error, message
        Where and how it failed; None otherwise.
    """

    model_id: ModelId
    n_layers: int = 0
    n_filters: int = 0
    stage: Stage | None = None
    error: str | None = None
    message: str | None = None

    @property
    def failed(self) -> bool:
        """Whether there is a row in failures rather than one in models."""
        return self.error is not None


@dataclass
class _Where:
    """The stage a model is in, for the failure row."""

    stage: Stage = "fetch"


def extract_model(task: ExtractTask) -> ExtractOutcome:
    """Extract one model into the store's staging area.

    Parameters
    ----------
    task
        Paths and the catalogue entry.

    Returns
    -------
    ExtractOutcome
        What was staged.

    Raises
    ------
    PipelineError, StoreError
        The store cannot be written; no model's fault.
    """
    where = _Where()
    try:
        return _extract(task, where)
    except (PipelineError, StoreError):
        raise
    except Exception as error:  # noqa: BLE001 - the one guard around a model
        return stage_failure(task, where.stage, error)


def stage_failure(task: ExtractTask, stage: Stage, error: Exception) -> ExtractOutcome:
    """Stage a failed model, so that the next run knows it was tried.

    Parameters
    ----------
    task
        The model's task.
    stage
        Where it failed.
    error
        What was raised.

    Returns
    -------
    ExtractOutcome
        The failure.
    """
    from filterdb.store.staging import StagedModel, stage_model

    if isinstance(error, HashMismatchError):
        stage = "hash"
    message = " ".join(str(error).split())[:2000] or type(error).__name__
    failure = {
        "model_id": task.entry.id,
        "uri": task.entry.uri,
        "stage": stage,
        "error": type(error).__name__,
        "message": message,
        "retryable": isinstance(error, FetchError),
        "attempts": 1,
    }
    stage_model(Path(task.store_path), task.entry.id, StagedModel(failure=failure, key=task.key))
    return ExtractOutcome(task.entry.id, stage=stage, error=type(error).__name__, message=message)


def _extract(task: ExtractTask, where: _Where) -> ExtractOutcome:
    from filterdb.layers.detect import find_layers
    from filterdb.sources import Cache, fetch_entry, open_raw
    from filterdb.store.staging import stage_model

    entry, cache = task.entry, Cache(task.cache_path)
    fetched = fetch_entry(entry, cache)
    try:
        where.stage = "open"
        raw = open_raw(fetched, entry.format)
        where.stage = "layers"
        found = find_layers(raw, layout=entry.layout, transposed=entry.transposed)
        where.stage = "state"
        record = _staged(task, fetched, raw.format, found)
        stage_model(Path(task.store_path), entry.id, record)
    finally:
        cache.release(*fetched.objects)
    return ExtractOutcome(entry.id, len(found.layers), _n_filters(found))


def _staged(
    task: ExtractTask, fetched: Fetched, format_name: str, found: ModelLayers
) -> StagedModel:
    from filterdb.store.staging import StagedModel

    skipped = [
        {
            "model_id": task.entry.id,
            "tensor": s.tensor,
            "shape": list(s.shape),
            "dtype": s.dtype,
            "reason": s.reason,
            "detail": s.detail,
        }
        for s in found.skipped
    ]
    return StagedModel(
        model=_model_row(task.entry, fetched, format_name, found),
        layers=_staged_layers(task.entry.id, found),
        skipped=skipped,
        key=task.key,
    )


def _own(layer: ConvLayer) -> bool:
    """Whether the layer's filters count as its own: shared weights are stored once."""
    return layer.shared_with is None


def _n_filters(found: ModelLayers, kernel: str | None = None) -> int:
    return sum(
        layer.n_filters
        for layer in found.layers
        if _own(layer) and kernel in (None, layer.kernel_name)
    )


def _model_row(
    entry: Entry, fetched: Fetched, format_name: str, found: ModelLayers
) -> Mapping[str, object]:
    return {
        "model_id": entry.id,
        "catalogue": entry.catalogue,
        "uri": fetched.uri,
        "format": format_name,
        "archive_sha256": fetched.archive_sha256,
        "member_sha256": fetched.member_sha256,
        "bytes": fetched.bytes,
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
        "init_of": fetched.init_of,
        "seed": fetched.seed,
        "n_parameters": found.n_parameters,
        "n_conv_layers": len(found.layers),
        "n_filters": _n_filters(found),
        "n_filters_3x3": _n_filters(found, "3x3"),
        "n_skipped": len(found.skipped),
        "status": "ok" if found.layers else "no_convolutions",
    }


def _staged_layers(model_id: ModelId, found: ModelLayers) -> Iterator[StagedLayer]:
    """Yield one layer at a time: memory is bounded by the largest tensor."""
    from filterdb.layers.detect import layer_uid
    from filterdb.store.staging import StagedLayer

    first_uid: dict[str, str] = {}
    for layer in found.layers:
        if _own(layer):  # a tensor may be of its own twice: as convolution and transposed
            first_uid.setdefault(layer.tensor, layer_uid(model_id, layer))
    for layer in found.layers:
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
    from filterdb.stats.state import layer_state

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
