from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.seeds._proto import floats, message

if TYPE_CHECKING:
    from tests.fuzz.packing import Files

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
        {"inference.json": _in_json(),
         "inference.pdiparams": _stored((2, 1, 3), floats(*range(6)))},
    ]  # fmt: skip


def _in_json() -> bytes:
    kind = {"#": "0.t_dtensor", "D": [{"#": "0.t_f32"}, [2, 1, 3], "NCHW", [], 0]}
    axes = {"N": "value", "AT": {"#": "0.a_array", "D": [{"#": "0.a_i64", "D": -2}]}}
    strides = {"N": "strides", "AT": {"#": "0.a_array", "D": [{"D": 1}, {"D": 2}]}}
    body: list[Any] = [{"#": "2.yield", "A": [], "I": [{"%": 5}], "O": []}]
    operators: list[Any] = [
        {"#": "p", "A": [0, 1, 1, "w"], "O": {"%": 1, "TT": kind}, "OA": [1, 0, 1]},
        {"#": "1.full_int_array", "A": [axes], "I": [], "O": [{"%": 3}]},
        {"#": "1.unsqueeze", "A": [], "I": [{"%": 1}, {"%": 3}], "O": [{"%": 4}]},
        {"#": "1.conv2d", "A": [strides], "I": [{"%": 2}, {"%": 4}], "O": [{"%": 5}]},
        {"#": "1.if", "A": [], "I": [{"%": 5}], "O": [{"%": 6}],
         "regions": [{"blocks": [{"args": [], "ops": body}]}]},
    ]  # fmt: skip
    program = {"regions": [{"blocks": [{"args": [], "ops": operators}]}]}
    document = {"base_code": {"magic": "pir", "version": 1}, "program": program}
    return json.dumps(document).encode()


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
