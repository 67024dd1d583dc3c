from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.seeds._proto import floats, message

if TYPE_CHECKING:
    from tests.fuzz.packing import Files

Field = tuple[int, Any]


def seeds(folder: Path) -> list[Files]:
    plain = [placeholder(), constant("w"), convolution("c", "x", "w")]
    quantised = [placeholder(), constant("w"), node("i", "Identity", "w"),
                 convolution("c", "x", "i"), node("r", "Relu", "c")]  # fmt: skip
    function = [(1, [(1, "f"), (2, [(1, "a"), (3, 1)]), (3, [(1, "r"), (3, 1)])]),
                (3, convolution("inner", "a", "k")[1]), (3, constant("k")[1]),
                (4, [(1, "r"), (2, "inner:output:0")])]  # fmt: skip
    call = node("call", "PartitionedCall", "x", f=[(10, [(1, "f")])])
    library = (2, [(1, function)])
    graphs: list[list[Field]] = [plain, quantised, [placeholder(), call, library]]
    return [{"model.pb": message(graph)} for graph in graphs]


def node(name: str, op: str, *inputs: str, **attributes: list[Field]) -> Field:
    fields: list[Field] = [(1, name), (2, op), *((3, i) for i in inputs)]
    fields += [(5, [(1, key), (2, value)]) for key, value in attributes.items()]
    return 1, fields


def placeholder() -> Field:
    return node("x", "Placeholder", dtype=[(6, 1)])


def constant(name: str, shape: tuple[int, ...] = (3, 3, 1, 1)) -> Field:
    extents = [(2, [(1, n)]) for n in shape]
    tensor = [(1, 1), (2, extents), (4, floats(*range(9)))]
    return node(name, "Const", dtype=[(6, 1)], value=[(8, tensor)])


def convolution(name: str, *inputs: str) -> Field:
    strides = [(1, [(3, bytes([1, 2, 2, 1]))])]
    return node(name, "Conv2D", *inputs, strides=strides, padding=[(2, "SAME")],
                data_format=[(2, "NHWC")])  # fmt: skip
