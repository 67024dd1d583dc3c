"""Whose the numbered weights of Keras 3 are: each layer's group, found by its configuration.

Keras files each layer under the snake-case name of its class and a number that counts the layers
of that class in their container (``layers/conv2d_1/vars/0``), never under the layer's own name.
Going through the configuration in the order in which Keras went through the model gives each group
its layer. Newer versions also write the layer's name into an attribute, which then decides. Files
of TensorFlow 2.12 call the container ``_layer_checkpoint_dependencies`` and count layers that have
weights twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from filterdb.errors import UnsafeCheckpointError
from filterdb.sources.formats.base import MAX_TENSORS
from filterdb.sources.formats.keras_vars import VARS, leaf_names, snake_case
from filterdb.sources.formats.keras_weights import Weight

if TYPE_CHECKING:
    from filterdb.types import Shape

_TWICE = "_layer_checkpoint_dependencies"
_CONTAINERS = ("layers", _TWICE, "_layers")
#: Attribute of a wrapper that holds what it wraps.
_INNER = ("layer", "_layer")
_MAX_DEPTH = 64


@dataclass(frozen=True)
class Variable:
    """One numbered weight.

    Parameters
    ----------
    tensor
        Name of its tensor.
    path
        Its path in the store: ``layers/conv2d/vars/0``.
    shape
        Its shape.
    """

    tensor: str
    path: str
    shape: Shape


@dataclass
class _Group:
    """A group of the store: what lies in it, and what lies in its ``vars``."""

    path: str = ""
    label: str = ""
    children: dict[str, _Group] = field(default_factory=dict)
    variables: dict[int, Variable] = field(default_factory=dict)

    def child(self, *names: str) -> _Group | None:
        return next((self.children[n] for n in names if n in self.children), None)


class PathIndex:
    """Finds the weights of a layer among numbered ones.

    Parameters
    ----------
    config
        The model's, with ``class_name`` and ``config``.
    variables
        All of a store, in its order.
    labels
        Path of a group → name of the layer whose it is, where the store says.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        variables: Sequence[Variable],
        labels: Mapping[str, str],
    ) -> None:
        self._found: dict[tuple[str, ...], tuple[Weight, ...]] = {}
        self._known: dict[object, _Group] = {}
        self._visits = 0
        self._model(_tree(variables, labels), config, (), 0)

    def of(self, path: Sequence[str], *, inner: str = "") -> tuple[Weight, ...]:  # noqa: ARG002
        """Return the weights of one layer.

        Parameters
        ----------
        path
            Names of the models it lies in, outermost first, and its own.
        inner
            Name of the layer it wraps; paths are exact without it.

        Returns
        -------
        tuple of Weight
            In the store's order; empty where it has none.
        """
        return self._found.get(tuple(path), ())

    def _model(
        self, group: _Group, config: Mapping[str, Any], path: tuple[str, ...], depth: int
    ) -> None:
        body = config.get("config")
        listed = body.get("layers") if isinstance(body, Mapping) else body
        container = group.child(*_CONTAINERS)
        if not isinstance(listed, list) or container is None or depth > _MAX_DEPTH:
            return
        layers = [la for la in listed if isinstance(la, Mapping) and ".ops." not in _module(la)]
        step = 2 if container.path.rsplit("/", 1)[-1] == _TWICE else 1
        for layer, found in _paired(container, layers, step):
            # A layer that another model holds, too, is filed where Keras met it first.
            keys = (f"#{layer.get('shared_object_id') or layer_name(layer)}", _identity(layer))
            if found is None:
                known = (self._known.get(key) for key in keys)
                found = next((group for group in known if group is not None), None)
            if found is not None:
                for key in keys:
                    self._known.setdefault(key, found)
                self._layer(found, layer, (*path, layer_name(layer)), depth + 1)

    def _layer(
        self, group: _Group, layer: Mapping[str, Any], path: tuple[str, ...], depth: int
    ) -> None:
        kind, config = str(layer.get("class_name", "")), layer.get("config")
        body = config if isinstance(config, Mapping) else {}
        wrapped = body.get("layer")
        inner = group.child(*_INNER)
        if isinstance(body.get("layers"), list) or isinstance(config, list):
            self._model(group, layer, path, depth)
        elif isinstance(wrapped, Mapping) and inner is not None and depth < _MAX_DEPTH:
            self._layer(inner, wrapped, path, depth + 1)
        else:
            if path not in self._found:
                self._found[path] = tuple(_weights(group, "", kind, body, 0))
                self._visits += len(self._found[path])
            if self._visits > 2 * MAX_TENSORS:
                raise UnsafeCheckpointError("weights shared by absurdly many layers")


def layer_name(layer: Mapping[str, Any]) -> str:
    """Return the name of a layer in a configuration.

    Parameters
    ----------
    layer
        With ``class_name``, ``config`` and, in functional models, ``name``.

    Returns
    -------
    str
        Its name, else its class.
    """
    config = layer.get("config")
    inner = config.get("name") if isinstance(config, Mapping) else None
    return plain_text(layer.get("name") or inner or layer.get("class_name", ""))


def plain_text(value: object) -> str:
    """Return a value of a configuration as text that can be written anywhere.

    Parameters
    ----------
    value
        Anything JSON can hold.

    Returns
    -------
    str
        With half characters (lone surrogates) replaced.
    """
    return str(value).encode("utf-8", "replace").decode()


def _tree(variables: Sequence[Variable], labels: Mapping[str, str]) -> _Group:
    root = _Group()
    for variable in variables:
        match = VARS.match(variable.path)
        if match is None:
            continue
        group = root
        for part in (match[1] or "").split("/"):
            path = f"{group.path}/{part}".removeprefix("/")
            if part:
                group = group.children.setdefault(part, _Group(path, labels.get(path, "")))
        group.variables[int(match[2])] = variable
    return root


def _identity(layer: Mapping[str, Any]) -> tuple[str, str]:
    return str(layer.get("class_name", "")), layer_name(layer)


def _module(layer: Mapping[str, Any]) -> str:
    return f".{layer.get('module') or ''}."


def _paired(
    container: _Group, layers: Sequence[Mapping[str, Any]], step: int
) -> Iterator[tuple[Mapping[str, Any], _Group | None]]:
    """Give each layer of a container its group."""
    labelled = {g.label: g for g in container.children.values() if g.label}
    of_class: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers:
        of_class.setdefault(snake_case(str(layer.get("class_name", ""))), []).append(layer)
    groups: dict[int, _Group | None] = {}
    of_base = _numbered(container)
    for base, members in of_class.items():
        numbered = of_base.get(base, {})
        if len(numbered) == len(members):
            groups.update(zip(map(id, members), (g for _, g in sorted(numbered.items())),
                              strict=True))  # fmt: skip
            continue
        number = 0
        for layer in members:
            groups[id(layer)] = numbered.get(number)
            number += step if number in numbered else 1
    for layer in layers:
        named = labelled.get(layer_name(layer))
        yield layer, named if named is not None else groups[id(layer)]


def _numbered(container: _Group) -> dict[str, dict[int, _Group]]:
    """Sort groups by class and number; ``conv_1`` is a second conv or the first conv_1."""
    found: dict[str, dict[int, _Group]] = {}
    for name, group in container.children.items():
        found.setdefault(name, {})[0] = group
        match = re.fullmatch(r"(.*)_(\d{1,9})", name, re.DOTALL)
        if match:
            found.setdefault(match[1], {}).setdefault(int(match[2]), group)
    return found


def _weights(
    group: _Group, scope: str, kind: str, config: Mapping[str, Any], depth: int
) -> Iterator[Weight]:
    """Name a layer's variables, then those of what a layer of somebody's own is made of."""
    ordered = [group.variables[i] for i in sorted(group.variables)]
    names = leaf_names(kind, [v.shape for v in ordered], config)
    for name, variable in zip(names, ordered, strict=True):
        yield Weight(variable.tensor, f"{scope}{name}", "", variable.shape)
    if depth < _MAX_DEPTH:
        for name, child in group.children.items():
            yield from _weights(child, f"{scope}{name}/", name, {}, depth + 1)
