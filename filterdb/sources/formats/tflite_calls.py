"""Subgraphs that operators of other subgraphs call: IF, WHILE, CALL and composites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from filterdb.sources.formats.tflite_schema import OperatorRecord, SubgraphRecord

#: Operator → which options name a subgraph, and where its arguments begin among the inputs.
_CALLS: Mapping[str, tuple[tuple[int, ...], int]] = {
    "CALL": ((0,), 0),
    "IF": ((0, 1), 1),
    "WHILE": ((0, 1), 0),
    "STABLEHLO_COMPOSITE": ((1,), 0),
}


@dataclass(frozen=True)
class Call:
    """One use of a subgraph.

    Parameters
    ----------
    caller
        Number of the subgraph the operator lies in.
    operator
        The operator.
    callee
        Number of the subgraph it runs.
    arguments
        (outer, inner) tensor indices: what the operator hands in.
    kept
        Inner indices whose values no pass of a loop changes; all of them for other operators.
    """

    caller: int
    operator: OperatorRecord
    callee: int
    arguments: tuple[tuple[int, int], ...]
    kept: frozenset[int]


def find_calls(subgraphs: Sequence[SubgraphRecord]) -> Iterator[Call]:
    """Follow the calls from the main subgraph on.

    Parameters
    ----------
    subgraphs
        Of one model.

    Yields
    ------
    Call
        The first use of each subgraph that is used, callers before those they call.
    """
    seen, waiting = {0}, [0]
    while waiting:
        caller = waiting.pop(0)
        if caller >= len(subgraphs):
            continue
        for operator in subgraphs[caller].operators:
            for callee in _callees(operator):
                if callee in seen or not 0 <= callee < len(subgraphs):
                    continue
                seen.add(callee)
                waiting.append(callee)
                yield _call(subgraphs, caller, operator, callee)


def _callees(operator: OperatorRecord) -> tuple[int, ...]:
    fields = _CALLS.get(operator.kind, ((), 0))[0]
    if operator.options is None:
        return ()
    # The numbers of all these options are 32 bits wide.
    return tuple(operator.options.integer(field, "i4") for field in fields)


def _call(
    subgraphs: Sequence[SubgraphRecord], caller: int, operator: OperatorRecord, callee: int
) -> Call:
    given = operator.inputs[_CALLS[operator.kind][1] :]
    entered = subgraphs[callee].inputs
    kept = frozenset(entered)
    if operator.kind == "WHILE":
        body = _callees(operator)[-1]
        loop = subgraphs[body] if 0 <= body < len(subgraphs) else subgraphs[callee]
        kept = frozenset(
            inner
            for inner, before, after in zip(entered, loop.inputs, loop.outputs, strict=False)
            if before == after
        )
    arguments = tuple((o, i) for o, i in zip(given, entered, strict=False) if o >= 0 and i >= 0)
    return Call(caller, operator, callee, arguments, kept)
