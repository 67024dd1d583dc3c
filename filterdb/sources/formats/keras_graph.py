"""Keras' own description of a network (``model_config``), turned into nodes.

Shared by the HDF5 files of Keras and by TensorFlow.js layers models, which carry the same JSON.
Sequential, functional and nested models are flattened into one graph, in an order in which they
can be computed; a layer that is called several times becomes several nodes with one weight.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.keras_layers import layer_nodes
from filterdb.sources.formats.keras_paths import layer_name as _name
from filterdb.sources.formats.keras_paths import plain_text
from filterdb.sources.formats.keras_weights import Weight, WeightIndex

if TYPE_CHECKING:
    from filterdb.layers.raw import Node

#: Deepest nesting of models in models that is taken seriously.
MAX_DEPTH = 32
#: Most layers, calls counted.
MAX_NODES = 50_000
#: Most characters of all their names, and most references between them.
MAX_WORK = 20_000_000
#: Longest configuration: JSON takes some twenty times its length in memory.
MAX_CONFIG_BYTES = 10_000_000

_MODELS = {"Model", "Functional", "Sequential", "Graph"}

#: (layer, call, output)
Reference: TypeAlias = tuple[str, int, int]


class Weights(Protocol):
    """Finds the weights of a layer."""

    def of(self, path: Sequence[str], *, inner: str = "") -> tuple[Weight, ...]:
        """Return the weights of the layer at a path of names."""


def keras_nodes(config: Mapping[str, Any], weights: Sequence[Weight]) -> tuple[Node, ...]:
    """Turn a ``model_config`` into nodes.

    Parameters
    ----------
    config
        With ``class_name`` and ``config``.
    weights
        The file's, in order.

    Returns
    -------
    tuple of Node
        In an order in which they can be computed.

    Raises
    ------
    MalformedFileError
        If this is no network: no list of layers, layers that wait for one another, absurd depth.
    """
    return graph_nodes(config, WeightIndex(weights, _layer_names(config, 0)))


def graph_nodes(config: Mapping[str, Any], weights: Weights) -> tuple[Node, ...]:
    """Turn a ``model_config`` into nodes, with weights found by somebody else.

    Parameters
    ----------
    config
        With ``class_name`` and ``config``.
    weights
        Knows whose each weight is.

    Returns
    -------
    tuple of Node
        In an order in which they can be computed.

    Raises
    ------
    MalformedFileError
        If this is no network: no list of layers, layers that wait for one another, absurd depth.
    """
    try:
        graph = _Graph(weights)
        graph.add_model(config, ["input"], ())
    except RecursionError as error:
        raise MalformedFileError("Keras configuration nested too deeply") from error
    return tuple(graph.nodes)


def has_layers(config: Mapping[str, Any]) -> bool:
    """Whether a configuration lists layers, as opposed to a model written as a class.

    Parameters
    ----------
    config
        With ``class_name`` and ``config``.

    Returns
    -------
    bool
        True for Sequential, functional models and their subclasses.
    """
    body = config.get("config")
    return isinstance(body.get("layers") if isinstance(body, Mapping) else body, list)


def parse_config(text: str | bytes, *, what: str = "model_config") -> Mapping[str, Any]:
    """Parse JSON that has to be an object.

    Parameters
    ----------
    text
        JSON.
    what
        Its name in errors.

    Returns
    -------
    Mapping
        The object.

    Raises
    ------
    MalformedFileError
        No JSON, or no object.
    UnsafeCheckpointError
        It is too long.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise UnsafeCheckpointError(
            f"{what} takes {len(text):,} bytes; {MAX_CONFIG_BYTES:,} are the most"
        )
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedFileError(f"{what} is no JSON: {error}") from error
    if not isinstance(config, Mapping):
        raise MalformedFileError(f"{what} is no JSON object")
    return config


@dataclass
class _Graph:
    """Collects nodes while a configuration is walked."""

    index: Weights
    nodes: list[Node] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    work: int = 0

    def spend(self, amount: int) -> None:
        """Bound what a short configuration can be made to grow into."""
        self.work += amount
        if self.work > MAX_WORK or len(self.nodes) > MAX_NODES:
            raise UnsafeCheckpointError(
                f"Keras configuration that grows into more than {MAX_NODES:,} layers, or absurdly "
                "long names"
            )

    def add_model(
        self, config: Mapping[str, Any], inputs: list[str], path: tuple[str, ...], where: str = ""
    ) -> list[str]:
        """Add a (nested) model and return the names of its output activations.

        `path` holds the names of the models around, `where` the same with the number of the call.
        """
        if len(path) > MAX_DEPTH:
            raise MalformedFileError(f"Keras models nested deeper than {MAX_DEPTH}")
        body = config.get("config")
        layers = body.get("layers") if isinstance(body, Mapping) else body
        if not isinstance(layers, list):
            raise MalformedFileError("Keras configuration without a list of layers")
        layers = [layer for layer in layers if isinstance(layer, Mapping)]
        self.spend(len(layers))
        if isinstance(body, Mapping) and "input_layers" in body:
            return self._add_functional(body, layers, inputs, path, where)
        for layer in layers:
            inputs = self._add_layer(layer, inputs, path, where)
        return inputs

    def _add_functional(
        self,
        body: Mapping[str, Any],
        layers: list[Mapping[str, Any]],
        inputs: list[str],
        path: tuple[str, ...],
        where: str,
    ) -> list[str]:
        names = {_name(layer) for layer in layers}
        fed = {
            ref[0]: position
            for position, ref in enumerate(references(body.get("input_layers", []), names))
        }
        calls = _calls(layers, names)
        values: dict[tuple[str, int], list[str]] = {}
        for position, call, needed in _in_order(layers, calls):
            layer, name = layers[position], _name(layers[position])
            self.spend(len(needed))
            given = _read(values, needed)
            if not needed and name in fed:
                given = inputs[fed[name] : fed[name] + 1]
            inner = where if call == 0 else f"{where}call{call}/"
            values[name, call] = self._add_layer(layer, given, path, inner)
        return _read(values, references(body.get("output_layers", []), names))

    def _add_layer(
        self, layer: Mapping[str, Any], inputs: list[str], path: tuple[str, ...], where: str
    ) -> list[str]:
        name, kind, config = _name(layer), _kind(layer), layer.get("config")
        wrapped = ""
        for _ in range(MAX_DEPTH):
            inner = _wrapped(kind, config)
            if inner is None:
                break
            wrapped, kind = _name(inner), _kind(inner)
            config = inner["config"]
        here = (*path, name)
        if _is_model(kind, config):
            nested = {"class_name": kind, "config": config}
            return self.add_model(nested, inputs, here, f"{where}{name}/")
        self.spend(len(where) + len(name) + len(inputs))
        weights = self.index.of(here, inner=wrapped)
        self.spend(len(weights))
        value = self._unique(f"{where}{name}")
        self.nodes += layer_nodes(
            value, kind, config if isinstance(config, Mapping) else {}, weights, tuple(inputs)
        )
        return [value]

    def _unique(self, name: str) -> str:
        unique, n = name, 1
        while unique in self.names:
            n += 1
            unique = f"{name}#{n}"
        self.names.add(unique)
        return unique


def _kind(layer: Mapping[str, Any]) -> str:
    return plain_text(layer.get("class_name", ""))


def _wrapped(kind: str, config: object) -> Mapping[str, Any] | None:
    """Return the layer that another one applies: at every step, pruned, normalised …."""
    inner = config.get("layer") if isinstance(config, Mapping) else None
    if kind == "Bidirectional" or not isinstance(inner, Mapping):
        return None
    return inner if isinstance(inner.get("config"), Mapping | list) else None


def _is_model(kind: str, config: object) -> bool:
    if isinstance(config, list):
        return kind in _MODELS
    # A subclass of Model keeps the configuration of one.
    return isinstance(config, Mapping) and isinstance(config.get("layers"), list)


def _calls(layers: Sequence[Mapping[str, Any]], names: set[str]) -> list[list[list[Reference]]]:
    """For each layer, what each of its calls reads; a layer that reads nothing is called once."""
    found = []
    for layer in layers:
        calls = layer.get("inbound_nodes")
        calls = calls if isinstance(calls, list) else []
        found.append([references(arguments, names) for arguments in calls] or [[]])
    return found


def _in_order(
    layers: Sequence[Mapping[str, Any]], calls: Sequence[Sequence[list[Reference]]]
) -> list[tuple[int, int, list[Reference]]]:
    """Sort calls so that each comes after what it reads; ties stay in the file's order."""
    place = {_name(layer): position for position, layer in enumerate(layers)}
    waiting: dict[tuple[int, int], int] = {}
    readers: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for position, of_layer in enumerate(calls):
        for call, needed in enumerate(of_layer):
            # A call that is not listed stands for the first, as `_read` takes it.
            sources = {
                (place[name], c if 0 <= c < len(calls[place[name]]) else 0) for name, c, _ in needed
            }
            waiting[position, call] = len(sources)
            for source in sources:
                readers.setdefault(source, []).append((position, call))
    ready = [key for key, n in waiting.items() if n == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        position, call = heapq.heappop(ready)
        order.append((position, call, calls[position][call]))
        for reader in readers.get((position, call), ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(waiting):
        stuck = next(key for key, n in waiting.items() if n > 0)
        raise MalformedFileError(
            f"Keras configuration: layers wait for one another, {_name(layers[stuck[0]])!r} "
            "among them"
        )
    return order


def _read(values: Mapping[tuple[str, int], list[str]], refs: Sequence[Reference]) -> list[str]:
    """Names of the activations that references stand for."""
    found = []
    for name, call, output in refs:
        outputs = values.get((name, call)) or values.get((name, 0)) or []
        # A layer of several outputs is one node with one output here.
        found += outputs[output : output + 1] if 0 <= output < len(outputs) else outputs[:1]
    return found


def _layer_names(config: object, depth: int) -> set[str]:
    if depth > 8 * MAX_DEPTH:
        return set()
    if isinstance(config, Mapping):
        here = {_name(config)} if "class_name" in config else set()
        return here.union(*(_layer_names(v, depth + 1) for v in config.values()))
    if isinstance(config, list):
        return set().union(*(_layer_names(v, depth + 1) for v in config))
    return set()


def references(value: object, names: set[str], depth: int = 0) -> list[Reference]:
    """Find every (layer, call, output) a call's arguments name, in order.

    Parameters
    ----------
    value
        JSON of ``inbound_nodes`` (any Keras version), ``input_layers`` or ``output_layers``.
    names
        Layer names of the model.
    depth
        Nesting so far.

    Returns
    -------
    list of tuple
        (layer name, call index, output index).
    """
    if depth > MAX_DEPTH:
        return []
    if isinstance(value, Mapping):
        history = value.get("keras_history")
        inside = [history] if history is not None else value.values()
        return [ref for v in inside for ref in references(v, names, depth + 1)]
    if not isinstance(value, list):
        return []
    if len(value) >= 3 and _is_reference(value, names):
        # The fourth item holds keyword arguments, which may name more tensors.
        more = references(value[3], names, depth + 1) if len(value) > 3 else []
        return [(value[0], value[1], value[2]), *more]
    return [ref for v in value for ref in references(v, names, depth + 1)]


def _is_reference(value: list[Any], names: set[str]) -> bool:
    name, call, output = value[:3]
    return (
        isinstance(name, str)
        and name in names
        and isinstance(call, int)
        and isinstance(output, int)
    )
