"""Finds the tensors of an unpickled graph, and names them as their state dict would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from filterdb.errors import UnsafeCheckpointError
from filterdb.sources.formats.base import (
    EXPANSION_SLACK,
    MAX_EXPANSION,
    MAX_SHARING,
    MAX_TENSORS,
    SHARING_SLACK,
)
from filterdb.sources.formats.pickle_values import PersistentId, Record, Table
from filterdb.sources.formats.torch_modules import module_node
from filterdb.sources.formats.torch_parts import (
    Found,
    Part,
    Skip,
    is_module,
    is_optimizer,
    is_scripted,
    join,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filterdb.sources.formats.torch_tensors import TensorSpec, TensorTable
    from filterdb.types import Shape

#: Modules in modules in lists …; real models stay below 30.
MAX_NESTING = 100
#: How often the parts of a pickle are looked at, on average: state dicts and their copies.
_MOST_USES = 6
#: Bytes of memory one tensor, one module, one attribute to be looked at later take …
_TENSOR_BYTES, _NODE_BYTES, _LATER_BYTES = 900, 900, 120
#: … and what they may take besides as many bytes as the file has.
_MEMORY_SLACK = 80 * 1024 * 1024
_SKIP_ATTRIBUTES = frozenset(("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"))
_ATTRIBUTE: Skip = ("buffer", "an attribute of a module, not in its state dict")
_NOT_PERSISTENT: Skip = ("buffer", "registered as not persistent")


class Walker:
    """Walks graphs of inert values with a bounded number of steps.

    Parameters
    ----------
    table
        Understands tensor records.
    where
        The file's name for messages.
    n_opcodes
        Opcodes of the pickles: an unshared graph has no more parts than these.
    file_size
        Bytes of the file, which bound what it may unfold to.
    """

    def __init__(self, table: TensorTable, where: str, n_opcodes: int, file_size: int) -> None:
        self._table = table
        self._where = where
        self._steps = _MOST_USES * n_opcodes + 100_000
        self._bytes = MAX_SHARING * file_size + SHARING_SLACK
        self._largest = MAX_EXPANSION * file_size + EXPANSION_SLACK
        self._memory = _MEMORY_SLACK + file_size
        self._count = 0
        self._open: set[int] = set()
        self._seen: set[int] = set()
        self._later: list[tuple[str, Any]] = []
        self._extra = False
        self._late = False
        self._part = Part()

    def tensor(self, value: Any) -> TensorSpec | None:
        """Return the tensor `value` describes, None where it describes none."""
        return self._table.find(value)

    def walk(self, value: Any) -> Part:
        """Return every tensor below `value`.

        Parameters
        ----------
        value
            Any part of the graph.

        Returns
        -------
        Part
            Tensors of modules by the names of ``state_dict()``, others by their path; what only
            attributes of modules hold comes last.

        Raises
        ------
        UnsafeCheckpointError
            The graph unfolds to far more than the file holds, or is nested absurdly deep.
        """
        self._part, self._later = Part(), []
        self._extra = self._late = False
        self._visit("", value, None, 0)
        self._extra = self._late = True
        # The list grows while modules are found in attributes of modules.
        for name, attribute in self._later:
            self._visit(name, attribute, None, 0)
        return self._part

    # -- bounds --------------------------------------------------------------------------------

    def _fail(self, what: str) -> None:
        raise UnsafeCheckpointError(
            f"{self._where}: {what}", tip="refused: no real checkpoint looks like this"
        )

    def _step(self, count: int) -> None:
        self._steps -= count
        if self._steps < 0:
            self._fail("parts that contain one another unfold to far more than the file holds")

    def _charge(self, n_bytes: int) -> None:
        self._memory -= n_bytes
        if self._memory < 0:
            self._fail("its names and modules take many times the file's own size")

    def _emit(self, name: str, spec: TensorSpec, skip: Skip) -> None:
        self._count += 1
        self._charge(_TENSOR_BYTES + 2 * len(name))
        self._bytes -= spec.nbytes
        if self._count > MAX_TENSORS:
            self._fail(f"more than {MAX_TENSORS:,} tensors")
        if self._bytes < 0 or spec.nbytes > self._largest:
            self._fail(f"its tensors (up to {name[-80:]!r}) take many times the file's own size")
        self._part.tensors.append(Found(name, spec, skip or spec.skip))

    # -- the walk ------------------------------------------------------------------------------

    def _visit(self, name: str, value: Any, skip: Skip, depth: int) -> None:
        if not isinstance(value, Record | Table | list | tuple):
            return
        self._step(1)
        if depth > MAX_NESTING:
            self._fail(f"nested more than {MAX_NESTING} levels deep, at {name[:80]!r}")
        identity = id(value)
        if identity in self._open or (self._extra and identity in self._seen):
            return
        spec = self._table.find(value)
        if spec is not None:
            self._seen.add(identity)
            self._emit(name, spec, skip or (_ATTRIBUTE if self._extra else None))
            return
        self._open.add(identity)
        self._seen.add(identity)
        attributes = self._attributes(value)
        if type(value) is Record and is_module(attributes):
            self._module(name, value, attributes, skip, depth)
        else:
            self._container(name, value, attributes, skip, depth)
        self._open.discard(identity)

    def _attributes(self, value: Any) -> dict[str, Any]:
        if type(value) is not Record:
            return {}
        found = value.attributes()
        self._step(len(found))
        return found

    def _container(
        self, name: str, value: Any, attributes: dict[str, Any], skip: Skip, depth: int
    ) -> None:
        if type(value) is Record and is_scripted(value) and self._owns_something(attributes):
            self._node(name, value, attributes, attributes)
        for label, child in self.children(value):
            path = join(name, label)
            why = skip
            if why is None and is_optimizer(label, child):
                why = ("optimizer_state", path[-200:])
            self._visit(path, child, why, depth + 1)

    def _owns_something(self, attributes: dict[str, Any]) -> bool:
        """Tell scripted modules with tensors, or without submodules, from mere containers."""
        records = [part for part in attributes.values() if type(part) is Record]
        return not records or any(self._table.find(part) is not None for part in records)

    def children(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield the parts of a container that may hold tensors, with their labels.

        Parameters
        ----------
        value
            A record, table, list or tuple.

        Yields
        ------
        tuple of (str, object)
            Label and part; the last of parts with equal labels wins, as in a dict.
        """
        if isinstance(value, list | tuple):
            self._step(len(value))
            parts = {str(i): part for i, part in enumerate(value) if _may_hold(part)}
        else:
            self._step(len(value.pairs))
            parts = {
                label(key, i): part for i, (key, part) in enumerate(value.pairs) if _may_hold(part)
            }
        if type(value) is Record:
            self._step(len(value.items) + len(value.args))
            parts |= {str(i): part for i, part in enumerate(value.args) if _may_hold(part)}
            parts |= {str(i): part for i, part in enumerate(value.items) if _may_hold(part)}
            attributes = self._attributes(value)
            parts |= {k: part for k, part in attributes.items() if _may_hold(part)}
            if not attributes and _may_hold(value.state):
                parts["state"] = value.state
        elif type(value) is Table and isinstance(value.state, Table):
            self._step(len(value.state.pairs))
            own = value.state.named()
            parts |= {k: p for k, p in own.items() if _may_hold(p) and k not in parts}
        yield from parts.items()

    def _module(
        self, name: str, record: Record, attributes: dict[str, Any], skip: Skip, depth: int
    ) -> None:
        fleeting = _names_in(attributes.get("_non_persistent_buffers_set"))
        leaves = {**_named(attributes, "_parameters"), **_named(attributes, "_buffers")}
        self._step(len(leaves))
        extra, self._extra = self._extra, False
        for leaf, value in leaves.items():
            reason = skip or (_NOT_PERSISTENT if leaf in fleeting else None)
            self._visit(join(name, leaf), value, reason, depth + 1)
        submodules = _named(attributes, "_modules")
        if leaves or not submodules:
            self._node(name, record, attributes, leaves)
        for leaf, value in submodules.items():
            self._visit(join(name, leaf), value, skip, depth + 1)
        self._extra = extra
        for leaf, value in attributes.items():
            if leaf not in _SKIP_ATTRIBUTES and _may_hold(value):
                path = join(name, leaf)
                self._charge(_LATER_BYTES + len(path))
                self._later.append((path, value))

    def _node(
        self, name: str, record: Record, attributes: dict[str, Any], leaves: dict[str, Any]
    ) -> None:
        kind = record.kind
        class_name = kind.name.rpartition(".")[2] if kind else "Module"
        tensors: dict[str, tuple[str, Shape]] = {}
        for leaf, value in leaves.items():
            spec = self._table.find(value)
            if spec is not None:
                tensors[leaf] = (join(name, leaf), spec.shape)
        node = module_node(name, class_name, attributes, tensors)
        # What only an attribute holds (a loss) is part of the network where it holds tensors.
        if node.weights or not self._late:
            self._charge(_NODE_BYTES + 3 * len(name))
            self._part.nodes.append(node)


def label(key: Any, index: int) -> str:
    """Return a dictionary key as part of a name."""
    if type(key) is str:
        return key
    return str(key) if type(key) is int and abs(key) < 1 << 64 else f"item{index}"


def _may_hold(value: Any) -> bool:
    return isinstance(value, Record | Table | list | tuple) and not isinstance(value, PersistentId)


def _named(attributes: dict[str, Any], which: str) -> dict[str, Any]:
    table = attributes.get(which)
    return table.named() if type(table) is Table else {}


def _names_in(value: Any) -> frozenset[str]:
    if type(value) is not Record:
        return frozenset()
    items = value.items
    if value.args and isinstance(value.args[0], list):
        items = [*items, *value.args[0]]
    return frozenset(item for item in items if type(item) is str)
