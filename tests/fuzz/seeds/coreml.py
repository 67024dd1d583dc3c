from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.seeds._proto import floats, message

if TYPE_CHECKING:
    from tests.fuzz.packing import Files

Field = tuple[int, Any]
_DESCRIBED: Field = (2, [(1, [(1, "x")]), (10, [(1, "y")])])


def seeds(folder: Path) -> list[Files]:
    conv = [(1, 2), (2, 1), (10, 1), (20, bytes([3, 3])), (30, bytes([1, 1])), (50, []),
            (90, [(1, floats(*range(18)))]), (91, [(1, floats(1, 2))])]  # fmt: skip
    half = [*conv[:6], (90, [(2, struct.pack("<18e", *range(18)))])]
    codes = [(30, bytes(range(18))), (40, [(1, 8), (101, [(1, floats(0.5, 2)), (2, floats(0))])])]
    norm = [(1, 2), *((n, [(1, floats(1, 2))]) for n in (15, 16, 17, 18)), (10, 0.001)]
    first: list[Field] = [_layer("c", "x", "h", 100, conv), _layer("n", "h", "y", 160, norm)]
    packed: list[Field] = [_layer("c", "x", "y", 100, [*conv[:6], (90, codes)])]
    network = [(1, 1), _DESCRIBED, (500, first)]
    pipeline = [(1, 1), _DESCRIBED, (202, [(1, [(1, 1), _DESCRIBED, (500, packed)])])]
    halves = [(1, 1), _DESCRIBED, (500, [_layer("c", "x", "y", 100, half)])]
    models: list[list[Field]] = [network, pipeline, halves]
    return [*({"model.mlmodel": message(m)} for m in models), _program(), _compressed()]


def _compressed() -> Files:
    """Weights in fewer bits, as the operations of a program make them whole."""
    bytes_ = _value(31, (2, 1, 4), 7, bytes(range(8)))
    nibbles, ones = _value(35, (2, 1, 4), 7, bytes(range(4))), _value(37, (1, 1, 8), 7, b"\x05")
    table, pair = _value(11, (4,), 1, floats(1, 2, 3, 4)), _value(11, (2,), 1, floats(1, 2))
    shape, axis = _value(33, (3,), 2, bytes([1, 2, 16])), _value(23, (), 2, b"\0")
    four = _value(11, (2, 1, 2), 1, floats(1, 2, 3, 4))
    operations: list[Field] = []
    for kind, given in (
        ("affine_dequantize", {"quantized_data": bytes_, "scale": pair, "axis": axis}),
        ("lut_to_dense", {"indices": bytes_, "lut": table, "shape": shape}),
        ("blockwise_shift_scale", {"data": nibbles, "scale": four}),
        ("sparse_to_dense", {"nonzero_data": pair, "mask": ones}),
    ):
        bound = [_bound(name, [(2, value)]) for name, value in given.items()]
        operations.append((3, [(1, f"constexpr_{kind}"), *bound, (3, [(1, kind)])]))
        weight = [_bound(n, [(1, v)]) for n, v in (("x", "x"), ("weight", kind))]
        operations.append((3, [(1, "conv"), *weight, (3, [(1, f"y {kind}")])]))
    function = [(2, "CoreML5"), (3, [(1, "CoreML5"), (2, operations)])]
    program = (502, [(1, 1), (2, [(1, "main"), (2, function)])])
    return {"model.mlmodel": message([(1, 8), _DESCRIBED, program])}


def _value(element: int, shape: tuple[int, ...], field: int, data: bytes) -> list[Field]:
    kind = [(1, element), (2, len(shape)), *((3, [(1, [(1, n)])]) for n in shape)]
    return [(2, [(1, kind)]), (3, [(1, [(field, [(1, data)])])])]


def _layer(name: str, into: str, out: str, kind: int, fields: list[Field]) -> Field:
    return 1, [(1, name), (2, into), (3, out), (kind, fields)]


def _program() -> Files:
    kind = [(1, [(1, 11), (2, 4), *((3, [(1, [(1, n)])]) for n in (2, 1, 3, 3))])]
    blob = [(2, kind), (5, [(1, "@model_path/weights/weight.bin"), (2, 64)])]
    numbers = [(2, [(1, [(1, 23), (3, [(1, [(1, 2)])])])]), (3, [(1, [(2, [(1, bytes([1, 1]))])])])]
    text = [(2, [(1, [(1, 2)])]), (3, [(1, [(4, [(1, "valid")])])])]
    operations: list[Field] = [
        (3, [(1, "const"), (3, [(1, "w"), (2, kind)]), (5, [(1, "val"), (2, blob)])]),
        (3, [(1, "conv"), *(_bound(n, [(1, v)]) for n, v in (("x", "x"), ("weight", "w"))),
             _bound("strides", [(2, numbers)]), _bound("pad_type", [(2, text)]),
             (3, [(1, "y"), (2, kind)])]),
    ]  # fmt: skip
    function = [(2, "CoreML5"), (3, [(1, "CoreML5"), (2, [(2, "y"), *operations])])]
    model = message([(1, 7), _DESCRIBED, (502, [(1, 1), (2, [(1, "main"), (2, function)])])])
    data = floats(*range(18))
    file = struct.pack("<II", 1, 2).ljust(64, b"\0")
    file += struct.pack("<IIQQ", 0xDEADBEEF, 2, len(data), 128).ljust(64, b"\0") + data
    return {"model.mlmodel": model, "weights/weight.bin": file}


def _bound(name: str, binding: list[Field]) -> Field:
    return 2, [(1, name), (2, [(1, binding)])]
