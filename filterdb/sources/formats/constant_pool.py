"""The tensors of a model whose graph computes with constants, and names that stay apart."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from filterdb.layers.raw import Tensor
    from filterdb.sources.formats.graph_constants import Constant, Load


class ConstantPool:
    """The tensors of a model: what is stored, as the graph uses it.

    Parameters
    ----------
    stored
        Every stored tensor, in file order.
    """

    def __init__(self, stored: Mapping[str, Constant]) -> None:
        self.stored = stored
        self._tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[str, Load], str] = {}
        self._taken = dict.fromkeys(stored, 2)
        self._parameters: dict[str, None] = {}

    def use(self, constant: Constant) -> str:
        """Add a constant an operation reads, and return its tensor's name.

        Parameters
        ----------
        constant
            Stored, or computed from a stored one.

        Returns
        -------
        str
            The stored tensor's name; ``name#2`` where it is used in two forms.
        """
        key = (constant.base, constant.load)
        if key not in self._names:
            first = constant.base not in self._tensors
            name = constant.base if first else unique_name(constant.base, self._taken)
            self._names[key] = name
            self._tensors[name] = constant.tensor(name)
            self._parameters.update(dict.fromkeys(constant.parameters))
        return self._names[key]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, scales and zero points marked as such.

        Returns
        -------
        tuple of Tensor
            In file order; second forms of one tensor last.
        """
        used = dict(self._tensors)
        found = []
        for name, constant in self.stored.items():
            tensor = used.pop(name, None)
            if tensor is None:
                tensor = constant.tensor(name)
                if name in self._parameters and tensor.skip is None:
                    reason = "scale, zero point or range of quantised values"
                    tensor = replace(tensor, skip=("buffer", reason))
            found.append(tensor)
        return (*found, *used.values())


def unique_name(wanted: str, taken: dict[str, int]) -> str:
    """Return a name nobody has, and take it.

    Parameters
    ----------
    wanted
        The name in the file.
    taken
        Names in use, each with the number its next namesake gets; the result is added.

    Returns
    -------
    str
        `wanted`, or ``wanted#2`` and so on.
    """
    n = taken.setdefault(wanted, 1)
    taken[wanted] = n + 1
    if n == 1:
        return wanted
    while f"{wanted}#{n}" in taken:
        n += 1
    taken[wanted] = n + 1
    taken[f"{wanted}#{n}"] = 2
    return f"{wanted}#{n}"
