"""What the values of TorchScript code stand for while its data flow is followed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from filterdb.sources.formats.pickle_values import Record
    from filterdb.sources.formats.torch_tensors import TensorSpec
    from filterdb.types import Shape

#: Constants are Python's own; lists and tuples are Python's, too.
Value: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Flow:
    """An activation: what a node of the graph writes.

    Parameters
    ----------
    name
        As in the node's outputs.
    """

    name: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """A stored tensor, or one the code makes of it and of what scales it.

    Parameters
    ----------
    name
        Of the stored tensor.
    shape
        Its stored shape.
    moved
        Whether the code has taken its axes apart, or mixed it with another of its sort.
    """

    name: str
    shape: Shape
    moved: bool = False


@dataclass(eq=False, slots=True)
class Instance:
    """A module, or another object of a class in the archive's code.

    Parameters
    ----------
    kind
        Qualified name of its class.
    path
        Names of attributes that lead to it from the model.
    record
        As the pickle has it; None for objects the code makes.
    own
        Attributes looked up or set so far.
    restored
        Whether its class's ``__setstate__`` has been followed.
    """

    kind: str
    path: str
    record: Record | None = None
    own: dict[str, Value] = field(default_factory=dict)
    restored: bool = False


@dataclass(frozen=True, slots=True)
class Packed:
    """A convolution's parameters packed for a backend: weight, bias and what a call would say.

    Parameters
    ----------
    weight, bias
        Stored tensors.
    stride, padding, dilation, groups
        As in the call that packs them.
    transposed
        Whether for a transposed convolution.
    """

    weight: Value
    bias: Value = None
    stride: Value = None
    padding: Value = None
    dilation: Value = None
    groups: Value = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Callee:
    """The name of a function or class that code refers to: ``torch.conv2d``, ``__torch__.…``."""

    name: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that is neither known nor an activation: a size, a number made of one."""


UNKNOWN = Unknown()


class Finder(Protocol):
    """Understands tensor records."""

    def find(self, value: Any) -> TensorSpec | None:
        """Return the tensor a record describes, None where it describes none."""
