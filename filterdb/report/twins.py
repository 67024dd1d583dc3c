"""Random-initialised twins: the basis of untrained models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import AnalysisError

if TYPE_CHECKING:
    from filterdb.report.corpus import Corpus


def twin_basis(corpus: Corpus, kernel: str) -> dict[str, Any] | None:
    """Return the basis of random initialisations, from their layer states.

    Parameters
    ----------
    corpus
        The store.
    kernel
        "3x3".

    Returns
    -------
    dict or None
        Columns as in `bases`, each model weighing the same; None where the corpus holds no twin
        with such filters, or they have no variance.
    """
    from filterdb.analysis.config import AnalysisConfig
    from filterdb.analysis.pca import basis_of
    from filterdb.analysis.population import kernel_states

    models = corpus.models
    wanted = set(models[models["init_of"].notna()]["model_id"])
    if not wanted:
        return None
    config = AnalysisConfig()
    layers, states = corpus.store.layers.arrow, corpus.store.layer_states.arrow
    every = kernel_states(layers, states, kernel, config)
    owners = np.array(layers.column("model_id").to_pylist(), dtype=object)
    chosen = np.array([m in wanted for m in owners[every.rows]], dtype=bool)
    try:
        basis = basis_of(every.only(chosen), config, fingerprint="")
    except AnalysisError:
        return None
    return {
        "components": basis.components,
        "evr": basis.evr,
        "n_models": basis.n_models,
        "n_filters": basis.n_filters,
    }
