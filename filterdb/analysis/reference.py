"""Where a layer stands among the comparable layers of a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from filterdb.analysis.measured import METRICS
from filterdb.analysis.tables import floats, strings

if TYPE_CHECKING:
    from filterdb.layers.model import ConvLayer
    from filterdb.store.reader import Store
    from filterdb.types import AnyArray, FloatArray

#: Fewer comparable layers, or from fewer models, say nothing.
MINIMUM_LAYERS = 200
MINIMUM_MODELS = 20


@dataclass(frozen=True)
class Reference:
    """The layers a store holds, and their metrics (raw weights, sparse filters kept).

    Parameters
    ----------
    store
        Path of the store, for people.
    n_models
        Models whose layers are in it.
    places
        (role, kernel, half-decade of n) → rows.
    model
        Model of each row, as a number.
    values
        Metric → value of each row; NaN where null.
    """

    store: str
    n_models: int
    places: dict[tuple[str, str, int], AnyArray]
    model: AnyArray
    values: dict[str, FloatArray]

    def percentile(self, layer: ConvLayer, metric: str, value: float) -> tuple[int | None, str]:
        """Rank a value among comparable layers.

        Parameters
        ----------
        layer
            Layers of its role, kernel and half-decade of the number of filters are comparable.
        metric
            One of :data:`filterdb.analysis.measured.METRICS`.
        value
            The layer's.

        Returns
        -------
        tuple of (int or None, str)
            Share of comparable layers below, in percent, rounded down, and why there is none.
        """
        rows = self.places.get((layer.role, layer.kernel_name, half_decade(layer.n_filters)))
        if rows is None:
            return None, "no comparable layers"
        values = self.values[metric][rows]
        known = ~np.isnan(values)
        n_layers, n_models = int(known.sum()), len(np.unique(self.model[rows[known]]))
        if n_layers < MINIMUM_LAYERS or n_models < MINIMUM_MODELS:
            have = f"{n_layers} of {n_models} models"
            need = f"{MINIMUM_LAYERS} of {MINIMUM_MODELS} needed"
            return None, f"too few comparable layers ({have}; {need})"
        return int(100 * np.count_nonzero(values[known] < value) // n_layers), ""


def half_decade(n: int) -> int:
    """Return the half-decade a number of filters lies in: 2·log10 n, rounded down.

    Parameters
    ----------
    n
        At least 1.

    Returns
    -------
    int
        0 for 1 to 3, 1 for 4 to 9, 2 for 10 to 31, ….
    """
    # In integers: n ≥ √10·10^h exactly where n² ≥ 10^(2h+1).
    return len(str(n * n)) - 1


def reference_of(store: Store) -> Reference:
    """Read the reference population of a store.

    Parameters
    ----------
    store
        An analysed store. Random initialisations and layers whose weights an earlier model or
        layer has already are left out.

    Returns
    -------
    Reference
        Its layers.

    Raises
    ------
    IncompleteStoreError
        If the store has not been analysed.
    """
    quality, layers, models = store.quality.arrow, store.layers.arrow, store.models.arrow
    twins = {
        model
        for model, of in zip(strings(models, "model_id"), strings(models, "init_of"), strict=True)
        if of is not None
    }
    words = [
        strings(layers, name)
        for name in ("layer_uid", "model_id", "role", "kernel", "shared_with", "duplicate_of")
    ]
    sizes = floats(layers, "n_filters")
    known: dict[str, tuple[str, tuple[str, str, int]]] = {}
    for size, (uid, model, role, kernel, shared, duplicate) in zip(
        sizes, zip(*words, strict=True), strict=True
    ):
        if model not in twins and shared is None and duplicate is None:
            known[str(uid)] = (str(model), (str(role), str(kernel), half_decade(int(size))))
    uids, weights, sparse = (strings(quality, n) for n in ("layer_uid", "weights", "sparse"))
    chosen = [
        i
        for i, row in enumerate(zip(uids, weights, sparse, strict=True))
        if row[1:] == ("raw", "kept") and str(row[0]) in known
    ]
    places: dict[tuple[str, str, int], list[int]] = {}
    owners: list[str] = []
    for row, i in enumerate(chosen):
        owner, place = known[str(uids[i])]
        places.setdefault(place, []).append(row)
        owners.append(owner)
    return Reference(
        store=str(store.path),
        n_models=len(set(owners)),
        places={place: np.array(rows) for place, rows in places.items()},
        model=np.unique(owners, return_inverse=True)[1] if owners else np.zeros(0, np.int64),
        values={name: floats(quality, name)[chosen] for name in METRICS},
    )
