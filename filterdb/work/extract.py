"""Extract one model: fetch, read, find its layers, stage its filters and their states.

Here stands the one guard around a model. Whatever is wrong with a checkpoint becomes a row in
``failures`` with the stage it failed in; what is wrong with the store (a full disk) raises.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.errors import FetchError, HashMismatchError, PipelineError, StoreError

if TYPE_CHECKING:
    from filterdb.catalog.model import Entry
    from filterdb.layers.model import ConvLayer, ModelLayers
    from filterdb.sources import Fetched
    from filterdb.store.staging import StagedModel
    from filterdb.types import ModelId, Stage

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
    n_layers, n_filters_3x3
        What was staged; 0 for a failure.
    stage, error, message
        Where and how it failed; None otherwise.
    retryable
        Whether the next run tries it again by itself.
    """

    model_id: ModelId
    n_layers: int = 0
    n_filters_3x3: int = 0
    stage: Stage | None = None
    error: str | None = None
    message: str | None = None
    retryable: bool = False

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
    return ExtractOutcome(entry.id, len(found.layers), _n_filters(found, "3x3"))


def _staged(
    task: ExtractTask, fetched: Fetched, format_name: str, found: ModelLayers
) -> StagedModel:
    from filterdb.store.rows import staged_layers
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
        layers=staged_layers(task.entry.id, found.layers),
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
    from filterdb.store.rows import entry_columns

    return {
        **entry_columns(entry),
        "uri": fetched.uri,
        "format": format_name,
        "archive_sha256": fetched.archive_sha256,
        "member_sha256": fetched.member_sha256,
        "bytes": fetched.bytes,
        "init_of": fetched.init_of,
        "seed": fetched.seed,
        "n_parameters": found.n_parameters,
        "n_conv_layers": len(found.layers),
        "n_filters": _n_filters(found),
        "n_filters_3x3": _n_filters(found, "3x3"),
        "n_skipped": len(found.skipped),
        "status": "ok" if found.layers else "no_convolutions",
    }
