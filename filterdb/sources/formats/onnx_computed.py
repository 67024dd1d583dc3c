"""Constants that a graph computes: kernels normalised, joined or cut before they are used.

Exporters leave such arithmetic in the file: weight-normalised, weight-standardised and tied
kernels. The rules say what shape comes out; the values are computed when somebody loads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from filterdb.sources.formats.onnx_views import Step, View

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from filterdb.sources.formats.onnx_constants import Constants
    from filterdb.sources.formats.onnx_flatten import Operation
    from filterdb.types import AnyArray

_Found: TypeAlias = list[View | None]
Rule: TypeAlias = "Callable[[Constants, Operation, _Found], View | None]"

_UNARY: Mapping[str, Callable[[AnyArray], AnyArray]] = {
    "Neg": np.negative,
    "Abs": np.abs,
    "Sqrt": np.sqrt,
    "Exp": np.exp,
    "Reciprocal": np.reciprocal,
}
_REDUCE: Mapping[str, Callable[..., AnyArray]] = {
    "ReduceSum": np.sum,
    "ReduceMean": np.mean,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceL1": lambda a, **k: np.sum(np.abs(a), **k),
    "ReduceL2": lambda a, **k: np.sqrt(np.sum(np.square(a), **k)),
    "ReduceSumSquare": lambda a, **k: np.sum(np.square(a), **k),
}


def compute(kind: str, array: AnyArray, others: list[AnyArray], step: Step) -> AnyArray:
    """Apply one of this module's operations.

    Parameters
    ----------
    kind
        The step's kind.
    array
        The main operand.
    others
        The other operands.
    step
        The step.

    Returns
    -------
    ndarray
        float32 at least.
    """
    if kind == "Concat":
        return np.concatenate([array, *others], axis=step.axis)
    if kind == "Slice":
        return np.ascontiguousarray(array[_cuts(step.numbers, array.ndim)])
    if kind == "Expand":
        return np.ascontiguousarray(np.broadcast_to(array, step.numbers))
    real = array if array.dtype.kind == "f" else array.astype(np.float32)
    with np.errstate(all="ignore"):
        if kind == "BatchNormalization":
            return _normalised(real, others, step)
        if kind in _UNARY:
            return np.asarray(_UNARY[kind](real))
        result = _REDUCE[kind](real, axis=step.numbers, keepdims=bool(step.block_size))
        return np.asarray(result, dtype=real.dtype)


def _normalised(array: AnyArray, others: list[AnyArray], step: Step) -> AnyArray:
    """Batch normalisation, by its own statistics where the node is in training mode."""
    along = [-1 if i == 1 else 1 for i in range(array.ndim)]
    gamma, beta, mean, variance = (other.reshape(along) for other in others)
    if step.swapped:
        axes = tuple(i for i in range(array.ndim) if i != 1)
        mean, variance = array.mean(axes, keepdims=True), array.var(axes, keepdims=True)
    return np.asarray((array - mean) / np.sqrt(variance + step.number) * gamma + beta, array.dtype)


def _unary(_constants: Constants, operation: Operation, found: _Found) -> View | None:
    view = found[0]
    return None if view is None else view.then(Step(operation.op_type), view.shape)


def _axes(constants: Constants, operation: Operation, found: _Found) -> tuple[int, ...] | None:
    """Return the axes an operation names, () for none; None where they are computed."""
    given = operation.integers("axes")
    if given is None and len(found) > 1:
        return constants.small_integers(found[1])
    return given or ()


def _reduce(constants: Constants, operation: Operation, found: _Found) -> View | None:
    view, axes = found[0], _axes(constants, operation, found)
    if view is None or axes is None:
        return None
    rank = len(view.shape)
    if not axes and operation.number("noop_with_empty_axes", 0):
        return view
    if any(not -rank <= axis < rank for axis in axes) or 0 in view.shape:
        return None
    dropped = {axis % rank for axis in axes} if axes else set(range(rank))
    keep = bool(operation.number("keepdims", 1))
    shape = tuple(
        1 if i in dropped else n for i, n in enumerate(view.shape) if keep or i not in dropped
    )
    step = Step(operation.op_type, tuple(sorted(dropped)), block_size=int(keep))
    return view.then(step, shape)


def _concat(_constants: Constants, operation: Operation, found: _Found) -> View | None:
    views = [view for view in found if view is not None]
    if not views or len(views) < len(found):
        return None
    rank, axis = len(views[0].shape), int(operation.number("axis", 0))
    if not -rank <= axis < rank:
        return None
    axis %= rank
    rests = {(view.shape[:axis], view.shape[axis + 1 :]) for view in views}
    if len(rests) > 1 or any(len(view.shape) != rank for view in views):
        return None
    first = views[0]
    shape = list(first.shape)
    shape[axis] = sum(view.shape[axis] for view in views)
    return first.then(Step("Concat", others=tuple(views[1:]), axis=axis), tuple(shape))


def _slice(constants: Constants, operation: Operation, found: _Found) -> View | None:
    view = found[0]
    if view is None:
        return None
    rank = len(view.shape)
    given: list[tuple[int, ...] | None] = []
    for place, name in enumerate(("starts", "ends", "axes", "steps"), start=1):
        listed = operation.integers(name)
        present = place < len(operation.inputs) and operation.inputs[place]
        given.append(constants.small_integers(found[place]) if present else listed)
    starts, ends, axes, steps = given
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if len(axes) != len(starts) or len(steps) != len(starts) or 0 in steps:
        return None
    if any(not -rank <= axis < rank for axis in axes):
        return None
    numbers: list[int] = []
    for axis, start, end, stride in zip(axes, starts, ends, steps, strict=True):
        # Negative strides would need "before the first": nobody cuts kernels backwards.
        if stride < 0:
            return None
        numbers += (axis % rank, *slice(start, end, stride).indices(view.shape[axis])[:2], stride)
    cuts = _cuts(tuple(numbers), rank)
    shape = tuple(len(range(*cut.indices(n))) for cut, n in zip(cuts, view.shape, strict=True))
    return view.then(Step("Slice", tuple(numbers)), shape)


def _cuts(numbers: tuple[int, ...], rank: int) -> tuple[slice, ...]:
    cuts = [slice(None)] * rank
    for i in range(0, len(numbers), 4):
        axis, start, end, stride = numbers[i : i + 4]
        cuts[axis] = slice(start, end, stride)
    return tuple(cuts)


def _expand(constants: Constants, _operation: Operation, found: _Found) -> View | None:
    view = found[0]
    target = constants.small_integers(found[1]) if len(found) > 1 else None
    if view is None or target is None or any(n < 0 for n in target) or len(target) > 8:
        return None
    try:
        shape = tuple(np.broadcast_shapes(view.shape, target))
    except ValueError:
        return None
    return view if shape == view.shape else view.then(Step("Expand", shape), shape)


def _batch_norm(_constants: Constants, operation: Operation, found: _Found) -> View | None:
    view = found[0]
    others = tuple(other for other in found[1:5] if other is not None)
    if view is None or len(others) < 4 or len(view.shape) < 2 or 0 in view.shape:
        return None
    if any(other.shape != (view.shape[1],) for other in others):
        return None
    step = Step(
        "BatchNormalization",
        others=others,
        swapped=bool(operation.number("training_mode", 0)),
        number=float(operation.number("epsilon", 1e-5)),
    )
    return view.then(step, view.shape)


#: Operation → rule, for those whose values :func:`compute` makes.
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_REDUCE, _reduce),
    "Concat": _concat,
    "Slice": _slice,
    "Expand": _expand,
    "BatchNormalization": _batch_norm,
}
