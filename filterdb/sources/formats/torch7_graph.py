"""The graph that torch7's containers make of their modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.layers.raw import Node
from filterdb.sources.formats.torch7_modules import (
    OPERATIONS,
    Kernel,
    fields_of,
    kernel_of,
    short_kind,
)
from filterdb.sources.formats.torch7_objects import LuaTable, TorchObject, TorchTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from filterdb.layers.raw import NodeOp

#: Containers nest a dozen deep at most.
_MAX_DEPTH = 100
_MAX_NODES = 50_000
#: Activations one table may hold.
_MAX_WIDTH = 256
_CHAINS = frozenset({"Sequential", "Decorator", "Bottle", "Profile", "WeightNorm", "Checkpointed"})
_JOINED = frozenset({"Concat", "DepthConcat", "Parallel", "Inception"})
#: Copies of one network, for several devices.
_REPLICAS = frozenset({"DataParallelTable", "DataParallel", "MapTable"})


class GraphBuilder:
    """Walks modules and gathers nodes.

    Parameters
    ----------
    where
        The file's name, for messages.
    named
        Given a tensor and a name for it, lists it and returns the name it is listed under.
    """

    def __init__(
        self, where: str, named: Callable[[TorchTensor, str, TorchObject, str], str]
    ) -> None:
        self.where = where
        self.named = named
        self.nodes: list[Node] = []
        #: False once a container was met whose order of execution nobody knows.
        self.has_edges = True
        self.kernels: dict[int, Kernel | None] = {}
        #: Modules met so far.
        self.met: set[int] = set()
        self._path: set[int] = set()
        self._n_emitted = 0

    def emit(self, module: TorchObject, name: str, inputs: tuple[str, ...]) -> tuple[str, ...]:
        """Add a module and all it contains.

        Parameters
        ----------
        module
            Any module.
        name
            Its place: "1.3" is the third module of the first.
        inputs
            Activations it reads.

        Returns
        -------
        tuple of str
            Activations it emits.

        Raises
        ------
        SourceError
            If modules contain themselves, or nest absurdly deep.
        """
        if id(module) in self._path:
            raise MalformedFileError(f"{self.where}: module {name!r} contains itself")
        self._n_emitted += 1
        if len(self._path) > _MAX_DEPTH or self._n_emitted > _MAX_NODES:
            raise UnsafeCheckpointError(
                f"{self.where}: modules nest deeper than {_MAX_DEPTH} or are more than {_MAX_NODES}"
            )
        self._path.add(id(module))
        self.met.add(id(module))
        kind = short_kind(module)
        if kind == "gModule":
            found = self._graph(module, name, inputs)
        elif children := _children(module):
            found = self._container(kind, children, name, inputs)
        else:
            found = self._leaf(module, kind, name, inputs)
        self._path.discard(id(module))
        return found

    def _container(
        self,
        kind: str,
        children: list[tuple[str, TorchObject]],
        name: str,
        inputs: tuple[str, ...],
    ) -> tuple[str, ...]:
        def child_name(key: str) -> str:
            return f"{name}.{key}" if name else key

        if kind in _REPLICAS:
            return self.emit(children[0][1], child_name(children[0][0]), inputs)
        if kind in _JOINED or kind in ("ConcatTable", "ParallelTable"):
            found: list[str] = []
            for i, (key, child) in enumerate(children):
                each = inputs[i : i + 1] if kind == "ParallelTable" and i < len(inputs) else inputs
                found += self.emit(child, child_name(key), each)
            if kind not in _JOINED:
                return tuple(found[:_MAX_WIDTH])
            joined = tuple(found[:_MAX_WIDTH])
            self.nodes.append(Node(name, "other", joined, (f"{name}/out",), source_op=kind))
            return (f"{name}/out",)
        if kind not in _CHAINS:
            self.has_edges = False
        for key, child in children:
            inputs = self.emit(child, child_name(key), inputs)
        return inputs

    def _graph(self, module: TorchObject, name: str, inputs: tuple[str, ...]) -> tuple[str, ...]:
        """Add an nngraph module: its nodes say where their inputs come from."""
        forward = module.get("forwardnodes")
        nodes = forward.items() if isinstance(forward, LuaTable) else []
        emitted: dict[int, tuple[str, ...]] = {}
        last = inputs
        for i, node in enumerate(nodes, start=1):
            data = node.get("data") if isinstance(node, TorchObject) else None
            if not isinstance(data, LuaTable):
                self.has_edges = False
                continue
            sources = data.entries.get("mapindex")
            found = [
                activation
                for source in (sources.items() if isinstance(sources, LuaTable) else [])
                for activation in emitted.get(id(source), ())
            ]
            reads = tuple(dict.fromkeys(found))[:_MAX_WIDTH] or inputs
            inner = data.entries.get("module")
            if isinstance(inner, TorchObject):
                label = f"{name}.{i}" if name else str(i)
                reads = self.emit(inner, label, reads)
            last = emitted[id(data)] = reads
        return last

    def _leaf(
        self, module: TorchObject, kind: str, name: str, inputs: tuple[str, ...]
    ) -> tuple[str, ...]:
        op: NodeOp = OPERATIONS.get(kind, "other")
        weights: dict[str, str] = {}
        attributes = None
        for role, key in fields_of(op).items():
            tensor = module.get(key)
            if role == "var" and not isinstance(tensor, TorchTensor):
                key = "running_std"
                tensor = module.get(key)
            if isinstance(tensor, TorchTensor) and tensor.shape:
                if role == "weight" and op in ("conv", "conv_transpose"):
                    kernel = self._kernel(module, tensor)
                    if kernel is None:
                        op = "other"
                    else:
                        tensor, attributes = kernel.tensor, kernel.attributes
                weights[role] = self.named(tensor, f"{name}.{key}" if name else key, module, key)
        epsilon = module.get("eps")
        out = (f"{name}/out",)
        self.nodes.append(
            Node(
                name,
                op,
                inputs,
                out,
                weights,
                conv=attributes,
                epsilon=epsilon if op == "batch_norm" and isinstance(epsilon, float) else None,
                source_op=module.kind,
            )
        )
        return out

    def _kernel(self, module: TorchObject, tensor: TorchTensor) -> Kernel | None:
        # A module used twice has one kernel, and one tensor.
        if id(module) not in self.kernels:
            self.kernels[id(module)] = kernel_of(module, tensor)
        return self.kernels[id(module)]


def is_module(value: Any) -> bool:
    """Tell whether a value is a module of a network.

    Parameters
    ----------
    value
        Anything read from a file.

    Returns
    -------
    bool
        True for objects with modules or parameters in them, and those of the nn packages.
    """
    if not isinstance(value, TorchObject):
        return False
    packages = ("nn.", "cudnn.", "inn.", "cunn.")
    return value.kind.startswith(packages) or any(
        value.get(key) is not None for key in ("modules", "weight", "forwardnodes")
    )


def _children(module: TorchObject) -> list[tuple[str, TorchObject]]:
    inside = module.get("modules")
    if isinstance(inside, LuaTable):
        numbered = enumerate(inside.items(), start=1)
        return [(str(i), child) for i, child in numbered if isinstance(child, TorchObject)]
    if short_kind(module) in OPERATIONS:
        return []
    # A class of somebody's own that keeps its modules in fields.
    return [(str(key), value) for key, value in module.fields.entries.items() if is_module(value)]
