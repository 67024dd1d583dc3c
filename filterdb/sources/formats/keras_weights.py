"""Whose a Keras weight is, and what it does, from the names Keras gave it.

An HDF5 file keeps one group per top-level layer; the weights of a model inside a model lie in the
group of the outer one and carry their own layer's name. TensorFlow.js keeps names only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filterdb.types import Shape

#: What Keras (and its first version) call a weight → the role it plays.
_ROLES = {
    "kernel": "weight", "W": "weight", "bias": "bias", "b": "bias",
    "depthwise_kernel": "depthwise", "pointwise_kernel": "pointwise",
    "gamma": "gamma", "beta": "beta", "moving_mean": "mean", "moving_variance": "var",
    "running_mean": "mean", "running_std": "var", "running_variance": "var",
    "embeddings": "weight", "alpha": "weight", "recurrent_kernel": "recurrent",
    # TF-slim's names, in layers made of modules of TensorFlow Hub.
    "weights": "weight", "biases": "bias",
    "depthwise_weights": "depthwise", "pointwise_weights": "pointwise",
}  # fmt: skip
#: Keras 1 joins layer and weight by an underscore: "convolution2d_1_W", "bn_running_std".
_JOINED = ("running_mean", "running_std", "gamma", "beta", "W", "b")


@dataclass(frozen=True)
class Weight:
    """One stored weight.

    Parameters
    ----------
    tensor
        Name of its tensor in the raw model.
    name
        Keras' name of it: "conv2d_1/kernel:0".
    group
        Top-level layer it is filed under; empty where the format has no groups.
    shape
        Its shape.
    """

    tensor: str
    name: str
    group: str
    shape: Shape

    @property
    def scopes(self) -> tuple[str, ...]:
        """Every part of the name before the last."""
        return tuple(self.name.split("/")[:-1])

    @property
    def role(self) -> str | None:
        """See :func:`weight_role`."""
        return weight_role(self.name)


class WeightIndex:
    """Finds the weights of a layer.

    Parameters
    ----------
    weights
        All of a file, in its order.
    layer_names
        Names of all layers of the configuration.
    """

    def __init__(self, weights: Iterable[Weight], layer_names: Collection[str] = ()) -> None:
        self._of_group: dict[str, list[Weight]] = {}
        self._numbered: dict[tuple[str, str], set[str]] = {}
        self._of_scope: dict[tuple[str, str], list[Weight]] = {}
        for weight in weights:
            self._of_group.setdefault(weight.group, []).append(weight)
            for scope in dict.fromkeys(weight.scopes):
                self._of_scope.setdefault((weight.group, scope), []).append(weight)
                base, _, number = scope.rpartition("_")
                # TensorFlow makes a scope unique by a number that the layer's name does not have.
                if number.isdigit() and scope not in layer_names:
                    self._numbered.setdefault((weight.group, base), set()).add(scope)

    def of(self, path: Sequence[str], *, inner: str = "") -> tuple[Weight, ...]:
        """Return the weights of one layer.

        Parameters
        ----------
        path
            Names of the models it lies in, outermost first, and its own.
        inner
            Name of the layer it wraps, if it does.

        Returns
        -------
        tuple of Weight
            In file order; empty where it has none.
        """
        group = path[0] if path[0] in self._of_group else ""
        if group and len(path) == 1:
            return tuple(self._of_group[group])
        for name in (path[-1], inner):
            found = self._of_scope.get((group, name), []) if name else []
            if found:
                return _best(found, path)
        other = self._numbered.get((group, path[-1]), set())
        return tuple(self._of_scope[group, min(other)]) if len(other) == 1 else ()


def _best(found: Sequence[Weight], path: Sequence[str]) -> tuple[Weight, ...]:
    """Of equally named layers, those whose scopes share most with the path."""
    scores = [len(set(w.scopes) & set(path)) for w in found]
    best = max(scores)
    return tuple(w for w, score in zip(found, scores, strict=True) if score == best)


def by_role(weights: Iterable[Weight]) -> Mapping[str, Weight]:
    """Return the first weight of each role.

    Parameters
    ----------
    weights
        Of one layer.

    Returns
    -------
    Mapping
        Role → weight.
    """
    roles: dict[str, Weight] = {}
    for weight in weights:
        if weight.role is not None:
            roles.setdefault(weight.role, weight)
    return roles


def weight_role(name: str) -> str | None:
    """Tell a weight's role from its Keras name.

    Parameters
    ----------
    name
        Such as ``conv2d_1/kernel:0`` or, from Keras 1, ``convolution2d_1_W:0``.

    Returns
    -------
    str or None
        A role of :class:`filterdb.layers.raw.Node`, "depthwise", "pointwise", "recurrent", or
        None.
    """
    last = name.rsplit("/", 1)[-1].split(":")[0]
    if last in _ROLES:
        return _ROLES[last]
    return next((_ROLES[old] for old in _JOINED if last.endswith(f"_{old}")), None)
