"""Objects of a checkpoint (``TrackableObjectGraph``): what its variables are called.

Checkpoints of TensorFlow 2 name a variable by the way to it (``layer_with_weights-0/kernel``) and
tell its full name and the optimizer's slots in a graph of objects, stored like a variable.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.protobuf_wire import BYTES, VARINT, WireReader

#: Where the graph lies in a checkpoint.
OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
#: End of the key of a variable's value.
VALUE_KEY = "/.ATTRIBUTES/VARIABLE_VALUE"
_MAX_OBJECTS = 500_000


@dataclass
class ObjectGraph:
    """What the graph says.

    Parameters
    ----------
    full_names
        Key of a variable → its own name; those without are left out.
    slots
        Keys of an optimizer's slot variables.
    children
        For each object, name → number of the object below it.
    keys
        For each object, the keys of its values.
    """

    full_names: dict[str, str] = field(default_factory=dict)
    slots: set[str] = field(default_factory=set)
    children: list[dict[str, int]] = field(default_factory=list)
    keys: list[list[str]] = field(default_factory=list)


def read_object_graph(data: bytes, *, where: str) -> ObjectGraph:
    """Parse the objects of a checkpoint.

    Parameters
    ----------
    data
        A ``TrackableObjectGraph``.
    where
        For messages.

    Returns
    -------
    ObjectGraph
        Names and slots.

    Raises
    ------
    MalformedFileError
        If it is damaged.
    """
    wire = WireReader(data, where=f"{where}, object graph")
    graph = ObjectGraph()
    slot_objects: set[int] = set()
    for number, kind, value, end in wire.fields(0, len(data)):
        if number == 1 and kind == BYTES:
            _object(wire, value, end, graph, slot_objects)
            if len(graph.keys) > _MAX_OBJECTS:
                raise MalformedFileError(f"{where}: more than {_MAX_OBJECTS:,} objects")
    for i in slot_objects:
        if i < len(graph.keys):
            graph.slots.update(graph.keys[i])
    return graph


def _object(
    wire: WireReader, start: int, stop: int, graph: ObjectGraph, slot_objects: set[int]
) -> None:
    children: dict[str, int] = {}
    keys: list[str] = []
    for number, kind, value, end in wire.fields(start, stop):
        if kind != BYTES:
            continue
        if number == 1:
            target, texts = _message(wire, value, end)
            children[texts.get(2, "")] = target.get(1, 0)
        elif number == 2:
            _, texts = _message(wire, value, end)
            key = texts.get(3, "")
            keys.append(key)
            if texts.get(2):
                graph.full_names[key] = texts[2]
        elif number == 3:
            numbers, _ = _message(wire, value, end)
            slot_objects.add(numbers.get(3, 0))
    graph.children.append(children)
    graph.keys.append(keys)


def _message(wire: WireReader, start: int, end: int) -> tuple[dict[int, int], dict[int, str]]:
    numbers: dict[int, int] = {}
    texts: dict[int, str] = {}
    for number, kind, value, stop in wire.fields(start, end):
        if kind == VARINT:
            numbers[number] = value
        elif kind == BYTES:
            texts[number] = wire.text(value, stop, limit=4096)
    return numbers, texts
