"""Every constant of an ONNX graph, computed only when it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.file_view import check_expansion, dequantise
from filterdb.sources.formats.onnx_computed import RULES, compute
from filterdb.sources.formats.onnx_values import TensorValues, element_type
from filterdb.sources.formats.onnx_views import Step, View

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from filterdb.sources.formats.onnx_records import TensorRecord
    from filterdb.types import AnyArray

#: Elements of a constant read while the graph is parsed (shapes, axes, permutations).
_SMALL = 64


class Constants:
    """Every value of a graph that does not depend on its input.

    Parameters
    ----------
    tensors
        Stored tensors by value name.
    values
        Reads them.
    """

    def __init__(self, tensors: Mapping[str, TensorRecord], values: TensorValues) -> None:
        self.tensors = tensors
        self.values = values
        self.views: dict[str, View] = {n: View(n, t.shape) for n, t in tensors.items()}
        #: Stored tensors used as scales and zero points.
        self.parameters: set[str] = set()
        self._loaders = {n: values.loader(t, n) for n, t in tensors.items()}

    def storage(self, view: View) -> tuple[object, ...] | None:
        """Return the storage key of a constant.

        Parameters
        ----------
        view
            The constant.

        Returns
        -------
        tuple or None
            See :class:`filterdb.layers.raw.Tensor`; where the graph computes with the stored
            values, only what is computed in the same way has the same key.
        """
        key = self._loaders[view.base][1]
        return (*key, view.steps) if key is not None and view.scaled else key

    def dequantised(
        self,
        view: View,
        scale: View | None,
        zero_point: View | None,
        *,
        axis: int,
        block_size: int = 0,
    ) -> View | None:
        """Return a view of integers times their scale.

        Parameters
        ----------
        view
            The integers.
        scale, zero_point
            Their parameters; without a scale there is no such view.
        axis
            Axis the scales run along.
        block_size
            For blocked quantisation, else 0.

        Returns
        -------
        View or None
            None where the scale is unknown.
        """
        if scale is None:
            return None
        self.parameters.add(scale.base)
        if zero_point is not None:
            self.parameters.add(zero_point.base)
        if view.steps and view.steps[-1].kind == "quantise":
            return View(view.base, view.shape, view.steps[:-1])
        others = (scale,) if zero_point is None else (scale, zero_point)
        step = Step("dequantise", others=others, axis=axis, block_size=block_size)
        return view.then(step, view.shape)

    def small_integers(self, view: View | None) -> tuple[int, ...] | None:
        """Read a short list of integers the graph keeps in a tensor.

        Parameters
        ----------
        view
            The constant.

        Returns
        -------
        tuple of int or None
            None where it is absent, long, or no integer tensor.
        """
        if view is None or len(view.shape) > 1 or int(np.prod(view.shape)) > _SMALL:
            return None
        record = self.tensors[view.base]
        if element_type(record).name not in ("int64", "int32"):
            return None
        if int(np.prod(record.shape, dtype=object)) > _SMALL:
            return None
        values = self.load(view).reshape(-1)
        whole = np.isfinite(values) & (np.abs(values) < 2**62)
        return tuple(int(n) for n in values) if whole.all() else None

    def load(self, view: View) -> AnyArray:
        """Read the stored tensor and apply the steps.

        Parameters
        ----------
        view
            A view of this graph.

        Returns
        -------
        ndarray
            Of the view's shape.

        Raises
        ------
        SourceError
            If the values cannot be read, or do not fit together.
        """
        itemsize = max(4, element_type(self.tensors[view.base]).bits // 8)
        check_expansion(
            int(np.prod(view.shape)) * itemsize, self.values.size, what=f"tensor {view.base!r}"
        )
        array = self._loaders[view.base][0]()
        for step in view.steps:
            array = self._apply(array, step, view)
        if array.shape != view.shape:
            raise MalformedFileError(
                f"constant {view.base!r} comes to shape {array.shape}, expected {view.shape}"
            )
        return array

    def _apply(self, array: AnyArray, step: Step, view: View) -> AnyArray:
        if step.kind == "transpose":
            return np.ascontiguousarray(np.transpose(array, step.numbers))
        if step.kind == "reshape":
            return array.reshape(step.numbers)
        others = [self.load(other) for other in step.others]
        if step.kind == "dequantise":
            zero_point = others[1] if len(others) > 1 else None
            return dequantise(
                array, others[0], zero_point, axis=step.axis, block_size=step.block_size
            )
        if step.kind == "quantise":
            raise MalformedFileError(f"constant {view.base!r} is quantised and never dequantised")
        self._check_step(array, others, step, view)
        if step.kind in RULES:
            return compute(step.kind, array, others, step)
        left, right = array, others[0]
        if step.swapped:
            left, right = right, left
        if left.dtype.kind != "f" or right.dtype.kind != "f":
            left, right = left.astype(np.float32), right.astype(np.float32)
        with np.errstate(all="ignore"):
            return np.asarray(_ARITHMETIC[step.kind](left, right))

    def _check_step(self, array: AnyArray, others: list[AnyArray], step: Step, view: View) -> None:
        """Refuse what is larger on the way than it is in the end."""
        shape: tuple[int, ...] = array.shape
        if step.kind == "Expand":
            shape = step.numbers
        elif step.kind in _ARITHMETIC:
            shape = np.broadcast_shapes(array.shape, others[0].shape)
        n_bytes = int(np.prod(shape, dtype=object)) * max(4, array.itemsize)
        check_expansion(n_bytes, self.values.size, what=f"a constant made of {view.base!r}")


_ARITHMETIC: dict[str, Callable[[AnyArray, AnyArray], AnyArray]] = {
    "multiply": np.multiply,
    "divide": np.divide,
    "add": np.add,
    "subtract": np.subtract,
    "power": np.power,
}
