"""The parameters of an analysis run, and the fingerprint that names its numbers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from filterdb.errors import AnalysisError, UnknownNameError
from filterdb.metrics.divergence import BINS

if TYPE_CHECKING:
    from filterdb.types import Scaling, Sparse, Weighting, Weights

Compat = Literal["cnn-filter-db"]
#: Groupings of a store that nobody chose groupings for.
DEFAULT_BY = ("task", "visual_category", "depth_decile")
#: The grouping that gives the distance of random initialisations from trained models.
CONTROLS_BY = "init_of is not null"
#: A grouping into more groups than this is a mistake more often than a question.
MAX_GROUPS = 300
#: Word for all layers, and for all layers that are not in the group.
EVERYTHING = "*"
_TREATMENT = ("weights", "scaling", "sparse", "weighting")


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """What to compute, and how.

    Parameters
    ----------
    by
        Groupings: columns of ``layer_view`` or SQL expressions over it.
    compat
        "cnn-filter-db" sets `weighting` to "filter" and `sparse` to "removed", as published; the
        weights stay as they are stored.
    weights, scaling, sparse, weighting
        filter_metrics.md: raw or folded; none or max_abs; kept or removed; by model or by filter.
    draws
        Draws of the bootstrap over models, and of random halves of a group.
    permutations
        Relabellings of a test, at most: a smallest p-value of 1/2,000, so that q < .05 can be
        reached among up to a hundred pairs. Where there are no more ways than that, all are taken.
    seed
        Seed of both.
    kernels
        Kernels to analyse; None is every kernel with enough filters for PCA and 3x3 for shift.
    bins
        Bins of a histogram over the pooled range of all coefficients.

    Raises
    ------
    AnalysisError
        If layer states do not hold what `scaling` needs, or a number is out of range.
    """

    by: tuple[str, ...] = DEFAULT_BY
    compat: Compat | None = None
    weights: Weights = "raw"
    scaling: Scaling = "max_abs"
    sparse: Sparse = "kept"
    weighting: Weighting = "model"
    draws: int = 200
    permutations: int = 1999
    seed: int = 0
    kernels: tuple[str, ...] | None = None
    bins: int = BINS

    def __post_init__(self) -> None:
        for name, value, known in (
            ("weights", self.weights, ("raw", "folded")),
            ("scaling", self.scaling, ("none", "max_abs", "l2", "layer_std")),
            ("sparse", self.sparse, ("kept", "removed")),
            ("weighting", self.weighting, ("filter", "model")),
            ("compat", self.compat or "cnn-filter-db", ("cnn-filter-db",)),
        ):
            if value not in known:
                raise UnknownNameError(name, str(value), known)
        if self.compat is not None:
            object.__setattr__(self, "weighting", "filter")
            object.__setattr__(self, "sparse", "removed")
        if self.scaling not in ("none", "max_abs"):
            raise AnalysisError(
                f"scaling {self.scaling!r} does not follow from layer states, which hold sums of "
                "raw and of max-abs-scaled filters only",
                tip="use none or max_abs; other scalings need a scan of the filters",
            )
        for name, number, least in (
            ("draws", self.draws, 1),
            ("permutations", self.permutations, 1),
            ("bins", self.bins, 2),
        ):
            if number < least:
                raise AnalysisError(f"{name} must be at least {least}, got {number}")

    def fingerprint(self, name: str, version: str, data: str) -> str:
        """Return the hash that names an analysis' numbers.

        Parameters
        ----------
        name, version
            Of the analysis.
        data
            Fingerprint of the store.

        Returns
        -------
        str
            16 hexadecimal digits. The groupings do not enter: a grouping's numbers are the same
            whatever other groupings were asked for.
        """
        parameters = {
            key: getattr(self, key)
            for key in (*_TREATMENT, "draws", "permutations", "seed", "bins")
        }
        text = json.dumps([name, version, parameters, data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
