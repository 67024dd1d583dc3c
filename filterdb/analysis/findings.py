"""Named findings of layers, each with its statistic, threshold, p-value and effect size.

The published rule for degenerate layers is one of them; the others say what is wrong, and how
sure that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from filterdb.metrics.randomness import (
    DEGENERATE_ENTROPY,
    DEGENERATE_MARGIN,
    DEGENERATE_SPARSITY,
    RANDOM_EFFECT,
    RANDOM_LEVEL,
    degenerate_published,
    entropy_threshold,
    minimum_filters,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.analysis.quality import LayerQuality, LayerRows

Severity = Literal["defect", "unusual", "note"]

#: Share of exactly zero filters from which a layer is called dead in part.
DEAD_SHARE = 0.1
#: Share of the noise level of H below which filters are hardly diverse: .5 of log10 9, as
#: published for 3x3, carried over to every kernel.
LOW_DIVERSITY = DEGENERATE_ENTROPY / float(np.log10(9.0))


@dataclass(frozen=True)
class FindingKind:
    """What a finding means.

    Parameters
    ----------
    name
        As in the tables and in ``--fail-on``.
    severity
        defect, unusual or note.
    text
        The rule, in words.
    """

    name: str
    severity: Severity
    text: str


#: Every finding there is, in the order in which they are reported.
KINDS: dict[str, FindingKind] = {
    kind.name: kind
    for kind in (
        FindingKind("non_finite", "defect", "a weight is NaN or infinite"),
        FindingKind("all_zero", "defect", "every weight is zero"),
        FindingKind("constant", "defect", "every weight has the same value, which is not zero"),
        FindingKind(
            "dead", "unusual", f"at least {DEAD_SHARE:.0%} of the filters are all zero; not for 1x1"
        ),
        FindingKind(
            "sparse",
            "unusual",
            f"at least {DEGENERATE_SPARSITY:.0%} of the filters are sparse; not for 1x1",
        ),
        FindingKind(
            "low_diversity",
            "unusual",
            f"variance entropy below {LOW_DIVERSITY:.3f} of what independent Gaussian filters have",
        ),
        FindingKind(
            "random",
            "unusual",
            f"not told apart from independent Gaussian filters: Holm-adjusted p >= {RANDOM_LEVEL}, "
            f"entropy deficit <= {RANDOM_EFFECT}, and filters enough to see such a deficit",
        ),
        FindingKind(
            "random_inconclusive",
            "note",
            "not told apart from independent Gaussian filters, but there are too few to tell",
        ),
        FindingKind(
            "degenerate_published",
            "note",
            f"rule of CNN Filter DB for 3x3: H >= T_H - {DEGENERATE_MARGIN}, or "
            f"H < {DEGENERATE_ENTROPY} and S >= {DEGENERATE_SPARSITY}",
        ),
        FindingKind("duplicated", "note", "the same weights stand in an earlier model"),
    )
}


@dataclass(frozen=True)
class _Hit:
    detail: str
    statistic: float = float("nan")
    threshold: float = float("nan")
    p_value: float = float("nan")
    effect: float = float("nan")


def find(rows: LayerRows, quality: LayerQuality) -> list[dict[str, Any]]:
    """Return every finding of every layer.

    Parameters
    ----------
    rows
        The layers' states.
    quality
        Their metrics with sparse filters kept.

    Returns
    -------
    list of dict
        Rows of ``findings``, in the order of `rows`, then of :data:`KINDS`.
    """
    published = _published(rows, quality)
    records = []
    for i in range(len(rows.uid)):
        for name, hit in _of_layer(rows, quality, published, i):
            record: dict[str, Any] = {
                "layer_uid": rows.uid[i],
                "weights": rows.weights[i],
                "finding": name,
                "severity": KINDS[name].severity,
                "detail": hit.detail,
            }
            for column in ("statistic", "threshold", "p_value", "effect"):
                value = getattr(hit, column)
                record[column] = None if np.isnan(value) else float(value)
            records.append(record)
    return records


def _published(rows: LayerRows, quality: LayerQuality) -> Any:
    verdict = degenerate_published(quality.entropy, quality.n, quality.sparsity)
    square = np.array([kernel == "3x3" for kernel in rows.kernel], dtype=bool)
    return (verdict == 1.0) & square if len(square) else verdict


def _of_layer(
    rows: LayerRows, quality: LayerQuality, published: Any, i: int
) -> Iterator[tuple[str, _Hit]]:
    n = int(rows.n[i])
    if rows.n_nonfinite[i] > 0:
        bad = int(rows.n_nonfinite[i])
        yield "non_finite", _Hit(f"{bad} of {n} filters hold a NaN or an infinity", bad, 0.0)
    elif rows.absmax[i] == 0.0 and n > 0:
        yield "all_zero", _Hit(f"all {n} filters are zero", 1.0, 1.0)
    elif rows.m2[i] == 0.0 and n * rows.n_coefficients[i] > 1:
        yield "constant", _Hit(f"every weight has magnitude {rows.absmax[i]:.6g}", 0.0, 0.0)
    else:
        yield from _of_values(rows, quality, i)
        if published[i]:
            yield "degenerate_published", _degenerate(quality, i)
    other = rows.duplicate_of[i]
    if other is not None and rows.weights[i] == "raw":
        yield "duplicated", _Hit(f"the same weights as {other}")


def _of_values(rows: LayerRows, quality: LayerQuality, i: int) -> Iterator[tuple[str, _Hit]]:
    n, k = int(rows.n[i]), int(rows.n_coefficients[i])
    if k < 2:  # a 1x1 "filter" is a single weight: its size says nothing of a kernel
        return
    dead = rows.n_zero[i] / n if n else 0.0
    if dead >= DEAD_SHARE:
        detail = f"{int(rows.n_zero[i])} of {n} filters are all zero"
        yield "dead", _Hit(detail, dead, DEAD_SHARE)
    if quality.sparsity[i] >= DEGENERATE_SPARSITY:
        detail = f"{int(rows.n_sparse[i])} of {n} filters have every |w| below 1 % of the largest"
        yield "sparse", _Hit(detail, quality.sparsity[i], DEGENERATE_SPARSITY)
    p, effect = quality.p_adjusted[i], quality.effect_random[i]
    if np.isnan(p):
        return
    observed, expected = quality.entropy_norm[i], quality.expected_norm[i]
    minimum = minimum_filters(k)
    against = f"entropy {observed:.3f} of its maximum, {expected:.3f} expected of noise"
    if n >= minimum and observed < LOW_DIVERSITY * expected:
        yield "low_diversity", _Hit(against, observed, LOW_DIVERSITY * expected, p, effect)
    if p < RANDOM_LEVEL:
        return
    limit = (1.0 - RANDOM_EFFECT) * expected
    if n < minimum:
        detail = f"{against}; {n} filters, {minimum} needed"
        yield "random_inconclusive", _Hit(detail, observed, limit, p, effect)
    elif effect <= RANDOM_EFFECT:
        yield "random", _Hit(against, observed, limit, p, effect)


def _degenerate(quality: LayerQuality, i: int) -> _Hit:
    entropy = quality.entropy[i]
    threshold = float(entropy_threshold(quality.n[i])) - DEGENERATE_MARGIN
    if entropy >= threshold:
        return _Hit(f"H {entropy:.3f} is at least T_H - {DEGENERATE_MARGIN}", entropy, threshold)
    share = quality.sparsity[i]
    detail = f"H {entropy:.3f} is below {DEGENERATE_ENTROPY} and S is {share:.3f}"
    return _Hit(detail, entropy, DEGENERATE_ENTROPY)
