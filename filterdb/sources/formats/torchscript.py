"""TorchScript archives: the modules of ``data.pkl``, and the graph their code describes.

Scripted and traced modules keep their weights as attributes and their convolutions' strides only in
code. The code is read as text (:mod:`filterdb.sources.formats.torchscript_code`) and its data flow
is followed (:mod:`filterdb.sources.formats.torchscript_run`); nothing of it is executed. Where it
cannot be followed, the modules alone are reported, and why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from filterdb.sources.formats.pickle_values import Record
from filterdb.sources.formats.torch_parts import Found, Part
from filterdb.sources.formats.torchscript_code import Code, CodeError
from filterdb.sources.formats.torchscript_run import Interpreter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filterdb.layers.raw import Node
    from filterdb.sources.formats.torch_tensors import TensorSpec, TensorTable
    from filterdb.sources.formats.zip_entries import ZipEntries

_CONVOLUTIONS = ("conv", "conv_transpose")
_PLACE = re.compile(r"\.state(\.\d+)*$")
_STATE = re.compile(r"\.state(\.\d+)+$")


@dataclass(frozen=True)
class Pickled:
    """One of an archive's pickles.

    Parameters
    ----------
    value
        Its content.
    table
        Understands its tensor records.
    part
        Tensors and modules found in it.
    """

    value: Any
    table: TensorTable
    part: Part


@dataclass(frozen=True)
class Scripted:
    """What a TorchScript archive holds.

    Parameters
    ----------
    part
        Its tensors, each once, and its nodes.
    has_edges
        Whether the nodes are the graph its code describes.
    notes
        What the reader wants said.
    """

    part: Part
    has_edges: bool
    notes: tuple[str, ...]


class _Tables:
    """Tensor records of both pickles."""

    def __init__(self, data: TensorTable, constants: TensorTable) -> None:
        self._data = data
        self._constants = constants

    def find(self, value: Any) -> TensorSpec | None:
        """Return the tensor a record describes."""
        table = self._constants if self._constants.knows(value) else self._data
        return table.find(value)


def scripted(entries: ZipEntries, root: str, data: Pickled, constants: Pickled) -> Scripted:
    """Put an archive's tensors and its code together.

    Parameters
    ----------
    entries
        The zip file.
    root
        Folder of the archive in it, with its slash, or "".
    data, constants
        Its pickles.

    Returns
    -------
    Scripted
        Layers in the order in which the code calls them, where it can be followed.
    """
    found = _once([*data.part.tensors, *constants.part.below("constants").tensors])
    modules = _known(data.part.nodes, {f.name for f in found})
    tables = _Tables(data.table, constants.table)
    content = constants.value if isinstance(constants.value, list | tuple) else ()
    try:
        interpreter = Interpreter(Code(entries, root), tables, found, content)
        if not isinstance(data.value, Record):
            raise CodeError("the archive holds no module")
        interpreter.run(data.value)
    except (CodeError, RecursionError) as error:
        reason = "calls nested absurdly deep" if isinstance(error, RecursionError) else error
        notes = (f"TorchScript: its modules are read; its code is not ({reason})",)
        return Scripted(Part(found, modules), False, notes)
    nodes = interpreter.recorder.nodes
    used = {name for node in nodes for name in node.weights.values()}
    beside = [n for n in modules if n.op in _CONVOLUTIONS and not used & set(n.weights.values())]
    if not any(n.op in _CONVOLUTIONS for n in nodes):
        notes = ("TorchScript: its modules are read; its code calls no convolution",)
        return Scripted(Part(found, modules), False, notes)
    note = "TorchScript: layers and graph as its code calls them"
    if beside:
        note += f"; {len(beside)} convolutions that its forward never calls stand behind them"
    return Scripted(_renamed(Part(found, [*nodes, *beside])), True, (note,))


def _once(found: Sequence[Found]) -> list[Found]:
    """Keep the first name of a tensor that several modules share: the code names objects."""
    first: dict[int, Found] = {}
    for one in found:
        first.setdefault(id(one.spec), one)
    return list(first.values())


def _known(nodes: Sequence[Node], names: set[str]) -> list[Node]:
    """Drop modules met a second time on another path."""
    return [n for n in nodes if not n.weights or names & set(n.weights.values())]


def _renamed(part: Part) -> Part:
    """Call what packed convolutions store ``weight`` and ``bias``, not by its place in a tuple."""
    taken = {found.name for found in part.tensors}
    new: dict[str, str] = {}
    for node in part.nodes:
        for role, name in node.weights.items():
            better = _STATE.sub("", name) + f".{role}"
            if _STATE.search(name) and name not in new and better not in taken:
                new[name] = better
                taken.add(better)
    if not new:
        return part
    nodes = [
        replace(
            node,
            name=_PLACE.sub("", node.name),
            weights={role: new.get(name, name) for role, name in node.weights.items()},
        )
        for node in part.nodes
    ]
    return Part([replace(f, name=new.get(f.name, f.name)) for f in part.tensors], nodes)
