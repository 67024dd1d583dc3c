"""Layer quality from layer states alone (filter_metrics.md §3).

One row per layer, weights and treatment of sparse filters, and the named findings of
:mod:`filterdb.analysis.findings`. No filter is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from filterdb.analysis import findings as findings_module
from filterdb.analysis.tables import ListColumn, floats, kernel_sizes, strings
from filterdb.errors import AnalysisError
from filterdb.metrics.entropy import centred_scatter, normalised_entropy, variance_entropy
from filterdb.metrics.null import expected_entropy, p_value
from filterdb.metrics.randomness import entropy_deficit, entropy_threshold, holm
from filterdb.metrics.sparsity import sparsity
from filterdb.stats.state import unpack_scatter
from filterdb.types import MAX_SCATTER_COEFFICIENTS, AnyArray, FloatArray, Sparse

TREATMENTS: tuple[Sparse, ...] = ("kept", "removed")


@dataclass(frozen=True)
class LayerRows:
    """The states, one entry a row of ``layer_states``, with what ``layers`` says of each.

    Parameters
    ----------
    uid, model, weights, kernel
        Words of each row.
    n_coefficients
        k².
    n, n_zero, n_nonfinite, n_sparse, absmax, m2, orthogonality
        Columns; NaN where null.
    duplicate_of
        First layer of an earlier model with the same weights.
    null_reason
        The state's.
    """

    uid: list[str]
    model: list[str]
    weights: list[str]
    kernel: list[str]
    n_coefficients: AnyArray
    n: FloatArray
    n_zero: FloatArray
    n_nonfinite: FloatArray
    n_sparse: FloatArray
    absmax: FloatArray
    m2: FloatArray
    orthogonality: FloatArray
    duplicate_of: list[str | None]
    null_reason: list[str | None]


@dataclass(frozen=True)
class LayerQuality:
    """The metrics of every row for one treatment of sparse filters.

    Parameters
    ----------
    n
        Filters that are left.
    sparsity, entropy, entropy_norm, t_h_ratio, p_random, effect_random
        Columns of ``quality``; NaN where null.
    p_adjusted
        `p_random` by Holm over the layers of a model.
    expected_norm
        E[H]/log10 k² of independent Gaussian filters.
    """

    n: FloatArray
    sparsity: FloatArray
    entropy: FloatArray
    entropy_norm: FloatArray
    t_h_ratio: FloatArray
    p_random: FloatArray
    effect_random: FloatArray
    p_adjusted: FloatArray
    expected_norm: FloatArray


def quality_tables(layers: Any, states: Any) -> tuple[Any, Any]:
    """Compute the tables ``quality`` and ``findings``.

    Parameters
    ----------
    layers
        Arrow table ``layers``; only layer_uid, model_id, kernel and duplicate_of are read.
    states
        Arrow table ``layer_states`` whose layers are all in `layers`.

    Returns
    -------
    tuple of pyarrow.Table
        In the order of `states`; kept before removed.

    Raises
    ------
    AnalysisError
        If a state belongs to no layer.
    """
    import pyarrow as pa
    from threadpoolctl import threadpool_limits

    from filterdb.store.schema import FINDINGS, QUALITY

    rows = layer_rows(layers, states)
    with threadpool_limits(1):
        by_treatment = {sparse: layer_quality(rows, states, sparse) for sparse in TREATMENTS}
    found = findings_module.find(rows, by_treatment["kept"])
    names: dict[tuple[str, str], list[str]] = {}
    for finding in found:
        names.setdefault((finding["layer_uid"], finding["weights"]), []).append(finding["finding"])
    records = []
    for i in range(len(rows.uid)):
        for sparse, quality in by_treatment.items():
            record = _record(rows, quality, i)
            record["sparse"] = sparse
            record["findings"] = names.get((rows.uid[i], rows.weights[i]), [])
            records.append(record)
    return (
        pa.Table.from_pylist(records, schema=QUALITY.arrow),
        pa.Table.from_pylist(found, schema=FINDINGS.arrow),
    )


def layer_rows(layers: Any, states: Any) -> LayerRows:
    """Join the states with their layers.

    Parameters
    ----------
    layers, states
        Arrow tables.

    Returns
    -------
    LayerRows
        In the order of `states`.

    Raises
    ------
    AnalysisError
        If a state belongs to no layer.
    """
    position = {uid: i for i, uid in enumerate(layers.column("layer_uid").to_pylist())}
    uids = states.column("layer_uid").to_pylist()
    missing = [uid for uid in uids if uid not in position]
    if missing:
        message = f"layer_states has {len(missing)} rows without a layer, the first is {missing[0]}"
        raise AnalysisError(message, tip="run filterdb verify")
    at = [position[uid] for uid in uids]
    kernel, model = strings(layers, "kernel"), strings(layers, "model_id")
    duplicate = strings(layers, "duplicate_of")
    return LayerRows(
        uid=uids,
        model=[str(model[i]) for i in at],
        weights=[str(w) for w in strings(states, "weights")],
        kernel=[str(kernel[i]) for i in at],
        n_coefficients=kernel_sizes(layers)[at] if at else np.zeros(0, dtype=np.int64),
        n=floats(states, "n"),
        n_zero=floats(states, "n_zero"),
        n_nonfinite=floats(states, "n_nonfinite"),
        n_sparse=floats(states, "n_sparse_01"),
        absmax=floats(states, "absmax"),
        m2=floats(states, "m2"),
        orthogonality=floats(states, "orthogonality"),
        duplicate_of=[duplicate[i] for i in at],
        null_reason=strings(states, "null_reason"),
    )


def layer_quality(rows: LayerRows, states: Any, sparse: Sparse) -> LayerQuality:
    """Compute the metrics of every row.

    Parameters
    ----------
    rows
        The joined rows.
    states
        Arrow table ``layer_states``.
    sparse
        Whether sparse filters count.

    Returns
    -------
    LayerQuality
        Arrays in the order of `rows`.
    """
    n = rows.n - rows.n_sparse if sparse == "removed" else rows.n.copy()
    entropy, norm, ratio, p, effect, expected = (np.full(len(n), np.nan) for _ in range(6))
    columns = {name: ListColumn(states, name) for name in _needed(sparse)}
    has_scatter = columns["scatter"].lengths >= 0
    for size in np.unique(rows.n_coefficients[has_scatter]):
        k = int(size)
        chosen = np.flatnonzero(has_scatter & (rows.n_coefficients == k))
        total, scatter = columns["sum"].matrix(chosen), columns["scatter"].matrix(chosen)
        if sparse == "removed":
            total = total - columns["sparse_sum"].matrix(chosen)
            scatter = scatter - columns["sparse_scatter"].matrix(chosen)
        centred = centred_scatter(unpack_scatter(scatter, k), total, n[chosen])
        entropy[chosen] = variance_entropy(centred)
        norm[chosen] = normalised_entropy(entropy[chosen], k)
        p[chosen] = p_value(entropy[chosen], n[chosen], k)
        effect[chosen] = entropy_deficit(entropy[chosen], n[chosen], k)
        expected[chosen] = normalised_entropy(expected_entropy(n[chosen], k), k)
    square = np.array([kernel == "3x3" for kernel in rows.kernel], dtype=bool)
    if square.any():
        ratio[square] = entropy[square] / entropy_threshold(n[square])
    return LayerQuality(
        n=n,
        sparsity=sparsity(rows.n_sparse, np.where(np.isnan(rows.n_sparse), 0.0, rows.n)),
        entropy=entropy,
        entropy_norm=norm,
        t_h_ratio=ratio,
        p_random=p,
        effect_random=effect,
        p_adjusted=_adjusted(rows, p),
        expected_norm=expected,
    )


def _needed(sparse: Sparse) -> tuple[str, ...]:
    if sparse == "removed":
        return ("sum", "scatter", "sparse_sum", "sparse_scatter")
    return ("sum", "scatter")


def _adjusted(rows: LayerRows, p: FloatArray) -> FloatArray:
    """Holm over the layers of a model, raw and folded apart."""
    families: dict[tuple[str, str], list[int]] = {}
    for i, family in enumerate(zip(rows.model, rows.weights, strict=True)):
        families.setdefault(family, []).append(i)
    adjusted = np.full(len(p), np.nan)
    for members in families.values():
        adjusted[members] = holm(p[members])
    return adjusted


def _record(rows: LayerRows, quality: LayerQuality, i: int) -> dict[str, Any]:
    return {
        "layer_uid": rows.uid[i],
        "weights": rows.weights[i],
        "sparsity": number(quality.sparsity[i]),
        "entropy": number(quality.entropy[i]),
        "entropy_norm": number(quality.entropy_norm[i]),
        "t_h_ratio": number(quality.t_h_ratio[i]),
        "p_random": number(quality.p_random[i]),
        "effect_random": number(quality.effect_random[i]),
        "orthogonality": number(rows.orthogonality[i]),
        "null_reason": null_reason(rows, quality, i),
    }


def number(value: Any) -> float | None:
    """Return a float for a table: None for NaN.

    Parameters
    ----------
    value
        A number.

    Returns
    -------
    float or None
        Never NaN.
    """
    return None if np.isnan(value) else float(value)


def null_reason(rows: LayerRows, quality: LayerQuality, i: int) -> str | None:
    """Say why metrics of a row are null.

    Parameters
    ----------
    rows
        The joined rows.
    quality
        Their metrics.
    i
        Row.

    Returns
    -------
    str or None
        Reasons joined by "; ", each with the metrics it speaks of; None where nothing is null.
    """
    if np.isnan(rows.m2[i]):
        return rows.null_reason[i]
    k, n = int(rows.n_coefficients[i]), int(quality.n[i])
    reasons = []
    if np.isnan(quality.entropy[i]):
        if k > MAX_SCATTER_COEFFICIENTS:
            why = f"{k} coefficients, more than {MAX_SCATTER_COEFFICIENTS}"
        else:
            why = f"{n} filters" if n < 2 else "the filters are all the same"
        reasons.append(f"entropy and what follows from it: {why}")
    elif k < 2:
        reasons.append("entropy_norm, p_random, effect_random: the kernel has one coefficient")
    elif n <= k:
        reasons.append(f"p_random, effect_random: {n} filters, not more than {k} coefficients")
    if np.isnan(quality.t_h_ratio[i]) and not np.isnan(quality.entropy[i]):
        why = (
            "T_H is not positive for n <= 2" if rows.kernel[i] == "3x3" else "defined for 3x3 only"
        )
        reasons.append(f"t_h_ratio: {why}")
    state = [part for part in (rows.null_reason[i] or "").split("; ") if "orthogonality" in part]
    return "; ".join(state + reasons) or None
