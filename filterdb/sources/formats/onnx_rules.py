"""What constants of an ONNX graph become on their way to a weight input.

Exporters store weights as plain initializers, or behind Identity, Cast, Transpose, Reshape,
DequantizeLinear and constant arithmetic. One function for each of these operations says what the
:class:`~filterdb.sources.formats.onnx_views.View` of its result is; any other operation ends the
chain, and what it yields counts as computed by the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from filterdb.sources.formats.onnx_computed import RULES
from filterdb.sources.formats.onnx_views import MAX_STEPS, Step, View

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from filterdb.sources.formats.onnx_constants import Constants
    from filterdb.sources.formats.onnx_flatten import Operation
    from filterdb.types import Shape

#: Operator domains whose operators mean what their names say; "filterdb" marks those that
#: flattening adds.
DOMAINS = ("", "com.microsoft", "filterdb")

_Found: TypeAlias = list[View | None]


def _pass_through(_constants: Constants, _operation: Operation, found: _Found) -> View | None:
    return found[0]


def _transpose(_constants: Constants, operation: Operation, found: _Found) -> View | None:
    view = found[0]
    if view is None:
        return None
    rank = len(view.shape)
    order = operation.integers("perm") or tuple(reversed(range(rank)))
    if sorted(order) != list(range(rank)):
        return None
    return view.then(Step("transpose", order), tuple(view.shape[i] for i in order))


def _reshape(constants: Constants, operation: Operation, found: _Found) -> View | None:
    view = found[0]
    target = operation.integers("shape") or constants.small_integers(
        found[1] if len(found) > 1 else None
    )
    if view is None or target is None:
        return None
    allow_zero = bool(operation.number("allowzero", 0))
    shape = [
        view.shape[i] if n == 0 and not allow_zero and i < len(view.shape) else n
        for i, n in enumerate(target)
    ]
    count = int(np.prod(view.shape))
    known = int(np.prod([n for n in shape if n != -1]))
    if shape.count(-1) == 1 and known:
        shape[shape.index(-1)] = count // known
    return _reshaped(view, tuple(shape))


def _reshaped(view: View, shape: Shape) -> View | None:
    if any(n < 0 for n in shape) or np.prod(shape, dtype=object) != np.prod(
        view.shape, dtype=object
    ):
        return None
    return view.then(Step("reshape", shape, before=view.shape), shape)


def _axes(constants: Constants, operation: Operation, found: _Found) -> tuple[int, ...] | None:
    given = operation.integers("axes")
    if given is None and len(found) > 1:
        return constants.small_integers(found[1])
    return given


def _unsqueeze(constants: Constants, operation: Operation, found: _Found) -> View | None:
    view, axes = found[0], _axes(constants, operation, found)
    if view is None or axes is None:
        return None
    rank = len(view.shape) + len(axes)
    places = {axis % rank for axis in axes}
    rest = iter(view.shape)
    if len(places) != len(axes):
        return None
    return _reshaped(view, tuple(1 if i in places else next(rest) for i in range(rank)))


def _squeeze(constants: Constants, operation: Operation, found: _Found) -> View | None:
    view, axes = found[0], _axes(constants, operation, found)
    if view is None or not view.shape:
        return None
    rank = len(view.shape)
    dropped = (
        {i for i, n in enumerate(view.shape) if n == 1}
        if axes is None
        else {axis % rank for axis in axes}
    )
    return _reshaped(view, tuple(n for i, n in enumerate(view.shape) if i not in dropped))


def _flatten(_constants: Constants, operation: Operation, found: _Found) -> View | None:
    view = found[0]
    if view is None:
        return None
    axis = int(operation.number("axis", 1))
    if not -len(view.shape) <= axis <= len(view.shape):
        return None
    axis = axis + len(view.shape) if axis < 0 else axis
    return _reshaped(view, (int(np.prod(view.shape[:axis])), int(np.prod(view.shape[axis:]))))


def _dequantise(constants: Constants, operation: Operation, found: _Found) -> View | None:
    view = found[0]
    if view is None or len(found) < 2:
        return None
    return constants.dequantised(
        view,
        found[1],
        found[2] if len(found) > 2 else None,
        axis=int(operation.number("axis", 1)),
        block_size=int(operation.number("block_size", 0)),
    )


def _quantise(constants: Constants, _operation: Operation, found: _Found) -> View | None:
    # Fake quantisation of stored floats: the stored floats are what the file keeps.
    view = found[0]
    if view is None:
        return None
    constants.parameters.update(v.base for v in found[1:] if v is not None)
    return view.then(Step("quantise"), view.shape)


def _arithmetic(kind: str) -> Callable[[Constants, Operation, _Found], View | None]:
    def rule(_constants: Constants, _operation: Operation, found: _Found) -> View | None:
        if len(found) != 2 or found[0] is None or found[1] is None:
            return None
        left, right = found[0], found[1]
        if any(len(v.shape) > 8 for v in (left, right)):
            return None
        try:
            shape = np.broadcast_shapes(left.shape, right.shape)
        except ValueError:
            return None
        swapped = np.prod(right.shape, dtype=object) > np.prod(left.shape, dtype=object)
        main, other = (right, left) if swapped else (left, right)
        return main.then(Step(kind, others=(other,), swapped=bool(swapped)), shape)

    return rule


_RULES: Mapping[str, Callable[[Constants, Operation, _Found], View | None]] = {
    "Identity": _pass_through,
    "Dropout": _pass_through,
    "Cast": _pass_through,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Flatten": _flatten,
    "DequantizeLinear": _dequantise,
    "QuantizeLinear": _quantise,
    "Mul": _arithmetic("multiply"),
    "Div": _arithmetic("divide"),
    "Add": _arithmetic("add"),
    "Sub": _arithmetic("subtract"),
    "Pow": _arithmetic("power"),
    **RULES,
}


def follow(constants: Constants, operation: Operation) -> bool:
    """Note what an operation on constants yields.

    Parameters
    ----------
    constants
        What is constant so far; extended.
    operation
        To be given in execution order.

    Returns
    -------
    bool
        True where its output is a constant now.
    """
    rule = _RULES.get(operation.op_type)
    present = [n for n in operation.inputs if n]
    if rule is None or not present or operation.domain not in DOMAINS:
        return False
    found = [constants.views.get(n) if n else None for n in operation.inputs]
    if any(n and view is None for n, view in zip(operation.inputs, found, strict=True)):
        return False
    view = rule(constants, operation, found)
    if view is None or view.cost > MAX_STEPS or not operation.outputs:
        return False
    constants.views[operation.outputs[0]] = view
    return True
