"""One model on its way into a store: its record, and the files its filters wait in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from filterdb.errors import LayerError
from filterdb.files import disk_errors, sync_file
from filterdb.layers.hashing import tensor_sha256
from filterdb.store.layout import dataset_name, is_stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from filterdb.types import AnyArray

#: Element types a shard may hold.
STORED_DTYPES = ("float16", "float32", "float64")
#: Columns of `layers` that staging and commit fill in.
FILLED_COLUMNS = (
    "stored_dtype",
    "shard",
    "dataset",
    "start",
    "stop",
    "tensor_sha256",
    "duplicate_of",
)


@dataclass(frozen=True, kw_only=True)
class StagedLayer:
    """One layer on its way into the store.

    Parameters
    ----------
    row
        Columns of `layers` but those of :data:`FILLED_COLUMNS`, which the store fills in.
    weights
        (out_channels, in_channels / groups, *kernel), canonical, float16, float32 or float64.
        Always given, to be hashed; written only if the kernel is not 1x1 and ``shared_with`` of
        the row is null.
    states
        Rows of `layer_states`.
    """

    row: Mapping[str, object]
    weights: AnyArray
    states: Sequence[Mapping[str, object]] = ()


@dataclass(frozen=True, kw_only=True)
class StagedModel:
    """One model on its way into the store: either read, or failed.

    Parameters
    ----------
    model
        The row of `models`; None for a failure.
    layers
        In file order. May be a generator: each is written and let go before the next is asked for.
    skipped
        Rows of `skipped`.
    failure
        The row of `failures`; None for a model that was read. ``attempts`` counts this run as 1;
        earlier ones are added at the commit.
    key
        Any word that changes when the model would have to be staged again (a hash of its
        catalogue entry).
    """

    model: Mapping[str, object] | None = None
    layers: Iterable[StagedLayer] = ()
    skipped: Sequence[Mapping[str, object]] = ()
    failure: Mapping[str, object] | None = None
    key: str = ""


def raw_file(dataset: str) -> str:
    """Return the name of the staged file that holds filters for one data set.

    Parameters
    ----------
    dataset
        "2d/3x3/float32".

    Returns
    -------
    str
        "2d-3x3-float32.raw": rows in layer order, little-endian.
    """
    return dataset.replace("/", "-") + ".raw"


@dataclass
class RawFiles:
    """The open files of one stage, one per data set."""

    folder: Path
    files: dict[str, BinaryIO] = field(default_factory=dict)
    hashes: dict[str, hashlib._Hash] = field(default_factory=dict)

    def append(self, dataset: str, values: AnyArray) -> None:
        """Write filters behind those already there.

        Parameters
        ----------
        dataset
            "2d/3x3/float32".
        values
            (n, k²).
        """
        name = raw_file(dataset)
        with disk_errors(self.folder / name, needed=values.nbytes):
            if name not in self.files:
                self.files[name] = (self.folder / name).open("wb")
                self.hashes[name] = hashlib.sha256()
            little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
            content = little.data.cast("B")
            self.files[name].write(content)
            self.hashes[name].update(content)

    def close(self) -> dict[str, tuple[int, str]]:
        """Make the files durable; return size and hash of each."""
        listing = {}
        for name, file in self.files.items():
            with disk_errors(self.folder / name):
                sync_file(file)
                listing[name] = (file.tell(), self.hashes[name].hexdigest())
        self.abandon()
        return listing

    def abandon(self) -> None:
        """Close the files, whatever is in them."""
        for file in self.files.values():
            with disk_errors(self.folder):
                file.close()


def readable(row: Mapping[str, object]) -> dict[str, object]:
    """Escape what is no text (lone surrogates from a damaged file), so that it can be told."""
    return {
        k: v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v
        for k, v in row.items()
    }


def check_layers(layers: Sequence[Mapping[str, object]]) -> None:
    """Refuse repeated names, and layers that claim to share what is not the same."""
    by_uid = {row.get("layer_uid"): row for row in layers}
    if len(by_uid) != len(layers):
        uids = [row.get("layer_uid") for row in layers]
        repeated = next(uid for uid in uids if uids.count(uid) > 1)
        raise LayerError(f"two layers are called {repeated}")
    for row in layers:
        shared = row.get("shared_with")
        if shared is None:
            continue
        owner = by_uid.get(shared)
        if (
            owner is None
            or owner.get("shared_with") is not None
            or owner["tensor_sha256"] != row["tensor_sha256"]
        ):
            raise LayerError(
                f"layer {row.get('layer_uid')} says it shares the filters of {shared}, "
                "which is no layer that holds the same weights"
            )


def write_layer(raw: RawFiles, layer: StagedLayer) -> dict[str, object]:
    """Write a layer's filters and fill in what the store knows of it.

    Parameters
    ----------
    raw
        The open files of its stage.
    layer
        Row and weights.

    Returns
    -------
    dict
        Columns of `layers`.

    Raises
    ------
    LayerError
        Row and weights contradict one another.
    """
    row, weights = layer.row, layer.weights
    uid = row.get("layer_uid")
    dtype = weights.dtype.name
    expected = (row.get("out_channels"), weights.shape[1] if weights.ndim > 1 else None)
    if weights.ndim < 3 or weights.shape[:2] != expected or dtype not in STORED_DTYPES:
        raise LayerError(
            f"layer {uid}: expected weights of (out_channels={row.get('out_channels')}, "
            f"in_channels / groups, kernel) as {', '.join(STORED_DTYPES)}; "
            f"got {weights.shape} {dtype}"
        )
    kernel = weights.shape[2:]
    filters = weights.reshape(weights.shape[0] * weights.shape[1], -1)
    if row.get("n_filters") != filters.shape[0]:
        raise LayerError(
            f"layer {uid}: the row says {row.get('n_filters')} filters, "
            f"the weights {weights.shape} hold {filters.shape[0]}"
        )
    filled: dict[str, object] = {**row, "tensor_sha256": tensor_sha256(weights)}
    if is_stored(kernel):
        dataset = dataset_name(kernel, dtype)
        filled.update(stored_dtype=dtype, dataset=dataset)
        if row.get("shared_with") is None:
            raw.append(dataset, filters)
    return filled
