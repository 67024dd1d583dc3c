"""A PCA basis: a small file that can be published and reused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import AnalysisError
from filterdb.stats.kernels import scale_divisors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from filterdb.types import AnyArray, FloatArray

FORMAT = "filterdb-basis"
FORMAT_VERSION = 1
_WORDS = ("kernel", "weighting", "weights", "scaling", "sparse", "fingerprint")
_ARRAYS = ("mean", "components", "eigenvalues", "evr")


@dataclass(frozen=True, eq=False, kw_only=True)
class Basis:
    """Mean filter and principal components of a set of filters.

    Parameters
    ----------
    kernel
        "3x3".
    mean
        (k²,) mean filter.
    components
        (k², k²) one component a row, largest variance first; the entry of largest magnitude of
        each is positive.
    eigenvalues
        (k²,) variances along the components.
    evr
        (k²,) explained variance ratio.
    n_models, n_filters
        What it was computed from.
    weighting, weights, scaling, sparse
        How; see :class:`filterdb.analysis.config.AnalysisConfig`.
    fingerprint
        Of the analysis that made it.
    """

    kernel: str
    mean: FloatArray
    components: FloatArray
    eigenvalues: FloatArray
    evr: FloatArray
    n_models: int
    n_filters: int
    weighting: str
    weights: str
    scaling: str
    sparse: str
    fingerprint: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Basis:
        """Return the basis that a row of ``bases`` holds.

        Parameters
        ----------
        row
            The row, as ``store.bases.to_pylist()`` gives it.

        Returns
        -------
        Basis
            To be saved, or to project filters on.
        """
        values: dict[str, Any] = {name: row[name] for name in (*_WORDS, "n_models", "n_filters")}
        values |= {name: np.array(row[name], dtype=np.float64) for name in _ARRAYS}
        size = len(values["mean"])
        values["components"] = values["components"].reshape(size, size)
        return cls(**values)

    def project(self, filters: AnyArray) -> FloatArray:
        """Return the coefficients of filters on the components.

        Parameters
        ----------
        filters
            (n, k²) as stored; they are scaled here as the basis' filters were.

        Returns
        -------
        ndarray
            (n, k²). No filter is left out, whatever `sparse` says: that needs the whole layer.
        """
        values = np.asarray(filters, dtype=np.float64)
        if self.scaling == "max_abs":
            values = values / scale_divisors(np.abs(values).max(axis=1, initial=0.0))[:, None]
        return np.asarray((values - self.mean) @ self.components.T)

    def save(self, path: str | Path) -> None:
        """Write the basis as JSON, every number exactly.

        Parameters
        ----------
        path
            File to write.
        """
        record: dict[str, Any] = {"format": FORMAT, "version": FORMAT_VERSION}
        record |= {name: getattr(self, name) for name in _WORDS}
        record |= {"n_models": self.n_models, "n_filters": self.n_filters}
        record |= {name: getattr(self, name).tolist() for name in _ARRAYS}
        Path(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Basis:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path
            File to read.

        Returns
        -------
        Basis
            Equal in every bit.

        Raises
        ------
        AnalysisError
            If the file is not a basis, or one of another version.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            name, version = record["format"], record["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise AnalysisError(f"{path} is no basis: {error}") from error
        if (name, version) != (FORMAT, FORMAT_VERSION):
            expected = f"{FORMAT} version {FORMAT_VERSION}"
            raise AnalysisError(f"{path}: expected {expected}, got {name} version {version}")
        arrays = {key: np.array(record[key], dtype=np.float64) for key in _ARRAYS}
        size = len(arrays["mean"])
        shapes = {key: value.shape for key, value in arrays.items()}
        if shapes["components"] != (size, size) or shapes["evr"] != (size,):
            raise AnalysisError(f"{path}: arrays of {shapes} do not make a basis")
        values: dict[str, Any] = {**arrays, **{key: str(record[key]) for key in _WORDS}}
        values |= {key: int(record[key]) for key in ("n_models", "n_filters")}
        return cls(**values)


def principal_components(covariance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return eigenvalues and components of covariance matrices under the sign rule.

    Parameters
    ----------
    covariance
        (k², k²) symmetric.

    Returns
    -------
    tuple of ndarray
        (k²,) eigenvalues, descending and not negative; (k², k²) components, one a row, whose
        entry of largest magnitude is positive (the first of them where two are equal).
    """
    values, vectors = np.linalg.eigh(covariance)
    components = vectors.T[::-1]
    peak = np.argmax(np.round(np.abs(components), 12), axis=1)
    signs = np.where(components[np.arange(len(components)), peak] < 0.0, -1.0, 1.0)
    return np.clip(values[::-1], 0.0, None), components * signs[:, None]
