"""A constant of an ONNX graph: one stored tensor, and what happens to it before it is used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filterdb.types import Shape

#: Steps of one view, its operands' counted too; more is no weight but somebody's algorithm.
MAX_STEPS = 64


@dataclass(frozen=True)
class Step:
    """One operation on a constant.

    Parameters
    ----------
    kind
        "transpose", "reshape", "dequantise", "quantise" (undone by the next dequantise),
        "multiply", "divide", "add", "subtract", "power", or an ONNX operation of
        :mod:`~filterdb.sources.formats.onnx_computed`.
    numbers
        Permutation, shape, axes, or (axis, start, end, stride) of each cut.
    others
        The other operands.
    axis, block_size
        Of a dequantisation; 1 is a reduction that keeps its axes.
    swapped
        The stored tensor is the second operand; a normalisation takes its own statistics.
    before
        Shape before a reshape.
    number
        A normalisation's ε.
    """

    kind: str
    numbers: tuple[int, ...] = ()
    others: tuple[View, ...] = ()
    axis: int = 1
    block_size: int = 0
    swapped: bool = False
    before: Shape = ()
    number: float = 0.0


@dataclass(frozen=True)
class View:
    """A constant: a stored tensor and what the graph does to it.

    Parameters
    ----------
    base
        Value name of the stored tensor.
    shape
        After all steps.
    steps
        In order of application.
    """

    base: str
    shape: Shape
    steps: tuple[Step, ...] = ()

    @property
    def cost(self) -> int:
        """Number of steps, those of operands included."""
        return sum(1 + sum(other.cost for other in step.others) for step in self.steps)

    @property
    def scaled(self) -> bool:
        """Whether values, not only their order, change on the way."""
        return any(step.kind not in ("transpose", "reshape") for step in self.steps)

    def then(self, step: Step, shape: Shape) -> View:
        """Append a step.

        Parameters
        ----------
        step
            The operation.
        shape
            Its result's shape.

        Returns
        -------
        View
            A new view.
        """
        return View(self.base, shape, (*self.steps, step))

    def without_transposes(self) -> tuple[View, tuple[int, ...]]:
        """Split off the permutation at the end.

        Returns
        -------
        tuple
            The view before it, and the permutation: axis i of this view is axis ``order[i]`` of
            the other.
        """
        order = tuple(range(len(self.shape)))
        view = self
        while view.steps and view.steps[-1].kind == "transpose":
            permutation = view.steps[-1].numbers
            order = tuple(permutation[i] for i in order)
            shape = [0] * len(view.shape)
            for axis, source in enumerate(permutation):
                shape[source] = view.shape[axis]
            view = View(view.base, tuple(shape), view.steps[:-1])
        return view, order

    def stored_form(self) -> View:
        """Drop the steps at the end that only move values.

        Returns
        -------
        View
            The view whose shape is nearest to what the file stores.
        """
        view, _order = self.without_transposes()
        while view.steps and view.steps[-1].kind == "reshape":
            view, _order = replace(
                view, steps=view.steps[:-1], shape=view.steps[-1].before
            ).without_transposes()
        return view
