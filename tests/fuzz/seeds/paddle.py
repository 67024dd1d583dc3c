from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from tests.fuzz.packing import Files
from tests.fuzz.seeds._proto import floats, message

Field = tuple[int, Any]


def seeds(folder: Path) -> list[Files]:
    operators = [
        _operator("conv2d", {"Input": "x", "Filter": "w"}, {"Output": "c"}, [
            (4, [(1, "strides"), (2, 3), (6, 2), (6, 2)]),
            (4, [(1, "groups"), (2, 0), (3, 1)]),
            (4, [(1, "data_format"), (2, 2), (5, "NCHW")]),
        ]),
        _operator("batch_norm", dict.fromkeys(("Scale", "Bias", "Mean", "Variance"), "b")
                  | {"X": "c"}, {"Y": "y"}, [(4, [(1, "epsilon"), (2, 1), (4, 0.001)])]),
    ]  # fmt: skip
    variables = [_variable("x", (-1, 1, 8, 8), False), _variable("w", (2, 1, 3, 3), True)]
    variables += [_variable("b", (2,), True)]
    block = [(1, 0), (2, -1), *((3, v) for v in variables), *((4, o) for o in operators)]
    program = message([(1, block), (4, [(1, 2)])])
    stored = _stored((2,), floats(1, 2)) + _stored((2, 1, 3, 3), floats(*range(18)))
    return [
        {"model.pdmodel": program, "model.pdiparams": stored},
        {"__model__": program, "b": stored[: len(_stored((2,), floats(1, 2)))],
         "w": _stored((2, 1, 3, 3), floats(*range(18)))},
    ]  # fmt: skip


def _variable(name: str, shape: tuple[int, ...], stored: bool) -> list[Field]:
    tensor = [(1, 5), *((2, n) for n in shape)]
    return [(1, name), (2, [(1, 7), (3, [(1, tensor)])]), (3, int(stored))]


def _operator(
    kind: str, inputs: dict[str, str], outputs: dict[str, str], attributes: list[Field]
) -> list[Field]:
    fields: list[Field] = [(1, [(1, k), (2, v)]) for k, v in inputs.items()]
    fields += [(2, [(1, k), (2, v)]) for k, v in outputs.items()]
    return [*fields, (3, kind), *attributes]


def _stored(shape: tuple[int, ...], values: bytes) -> bytes:
    described = message([(1, 5), *((2, n) for n in shape)])
    head = struct.pack("<IQI", 0, 0, 0)
    return head + struct.pack("<i", len(described)) + described + values
