"""Random-initialised twins: bases of trained and untrained models apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import AnalysisError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from filterdb.report.corpus import Corpus


def twin_basis(corpus: Corpus, kernel: str) -> dict[str, Any] | None:
    """Return the basis of random initialisations.

    Parameters
    ----------
    corpus
        The store.
    kernel
        "3x3".

    Returns
    -------
    dict or None
        Columns as in `bases`; None where the corpus holds no twin with such filters.
    """
    models = corpus.models
    return basis_where(corpus, kernel, models[models["init_of"].notna()]["model_id"])


def basis_where(corpus: Corpus, kernel: str, model_ids: Iterable[str]) -> dict[str, Any] | None:
    """Return the basis of some models, from their layer states.

    Parameters
    ----------
    corpus
        The store.
    kernel
        "3x3".
    model_ids
        Models; each weighs the same.

    Returns
    -------
    dict or None
        Columns as in `bases`; None where they have no such filters, or no variance.
    """
    from filterdb.analysis.config import AnalysisConfig
    from filterdb.analysis.pca import basis_of
    from filterdb.analysis.population import KernelStates, kernel_states

    wanted = set(model_ids)
    if not wanted:
        return None
    config = AnalysisConfig()
    layers, states = corpus.store.layers.arrow, corpus.store.layer_states.arrow
    every = kernel_states(layers, states, kernel, config)
    models = np.array(layers.column("model_id").to_pylist(), dtype=object)
    chosen = np.array([m in wanted for m in models[every.rows]], dtype=bool)
    if not chosen.any():
        return None
    some = KernelStates(
        kernel, every.rows[chosen], every.model[chosen], every.n[chosen], every.moments[chosen]
    )
    try:
        basis = basis_of(some, config, fingerprint="")
    except AnalysisError:
        return None
    return {
        "components": basis.components,
        "evr": basis.evr,
        "n_models": basis.n_models,
        "n_filters": basis.n_filters,
    }
