"""Parts of a checkpoint: named tensors with their registered modules, and what a part is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from filterdb.sources.formats.pickle_values import Record, Table
from filterdb.types import SkipReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from filterdb.layers.raw import Node
    from filterdb.sources.formats.torch_tensors import TensorSpec

Skip: TypeAlias = tuple[SkipReason, str] | None

_OPTIMIZER = re.compile(
    r"\w*optim\w*|opt|opt_?[dg]|opt_state\w*|\w*_opt|(lr_?)?schedulers?\w*|\w*scheduler|amp|"
    r"(grad_?|loss_?)?scaler\w*",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor, under the name it has below the place where the walk began."""

    name: str
    spec: TensorSpec
    skip: Skip = None


@dataclass
class Part:
    """Tensors and registered modules of one branch of the graph, in order."""

    tensors: list[Found] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    def below(self, label: str) -> Part:
        """Return the same with every name put below `label`."""
        nodes = [
            replace(
                node,
                name=join(label, node.name),
                weights={role: join(label, name) for role, name in node.weights.items()},
            )
            for node in self.nodes
        ]
        return Part([replace(f, name=join(label, f.name)) for f in self.tensors], nodes)


def join(prefix: str, name: str) -> str:
    """Join two parts of a name by a dot, either of which may be empty."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def is_module(attributes: Mapping[str, Any]) -> bool:
    """Tell an ``nn.Module``'s instance dictionary from others."""
    return type(attributes.get("_modules")) is Table and "_parameters" in attributes


def is_optimizer(label: str, value: Any) -> bool:
    """Tell whether a part of a checkpoint is the state of an optimizer or its helpers.

    Parameters
    ----------
    label
        Its key.
    value
        Its value.

    Returns
    -------
    bool
        By its key, or by being a dictionary of ``state`` and ``param_groups``.
    """
    if type(value) is Table and len(value.pairs) < 8:
        keys = {key for key, _ in value.pairs if type(key) is str}
        if {"state", "param_groups"} <= keys:
            return True
    if _OPTIMIZER.fullmatch(label) is None:
        return False
    # A part of the network may well be called "scaler"; modules are never an optimizer's.
    if type(value) is Record:
        return value.state is not None and not is_scripted(value) and not _is_module_record(value)
    return isinstance(value, Table | list)


def is_scripted(record: Record) -> bool:
    """Tell TorchScript's objects, whose attributes are parameters and submodules at once."""
    kind = record.kind
    return kind is not None and kind.module.startswith("__torch__")


def _is_module_record(record: Record) -> bool:
    return is_module(record.attributes())
