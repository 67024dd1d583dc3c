"""Small models of PaddlePaddle, OpenVINO and Core ML, built from their public schemas."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from filterdb.errors import SourceError
from filterdb.sources.formats import ModelFile, read_model

Array = np.ndarray[Any, Any]
#: (number, value): int → varint, float → fixed32, bytes and str → length-delimited, list → message.
Fields = Sequence[tuple[int, Any]]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(fields: Fields) -> bytes:
    """Write a protobuf message."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        elif isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            data = value.encode() if isinstance(value, str) else value
            data = data if isinstance(data, bytes) else message(data)
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def check_damage(folder: Path, name: str, others: dict[str, bytes], data: bytes) -> int:
    """Cut a file short everywhere and damage it anywhere: nothing but SourceError comes out."""
    rng = np.random.default_rng(11)
    inputs = [data[:n] for n in range(0, len(data), max(1, len(data) // 150))]
    for _ in range(150):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), int(rng.integers(1, 4))):
            broken[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
        inputs.append(bytes(broken))
    for companion, content in others.items():
        (folder / companion).write_bytes(content)
    refused = 0
    for content in inputs:
        (folder / name).write_bytes(content)
        try:
            for tensor in read_model(ModelFile(folder / name)).tensors:
                if tensor.skip is None:
                    assert tensor.load().shape == tensor.shape
        except SourceError:
            refused += 1
    return refused


# PaddlePaddle

_PADDLE_TYPES = {"float32": 5, "float16": 4, "int8": 21}


def paddle_stored(array: Array) -> bytes:
    desc = message([(1, _PADDLE_TYPES[array.dtype.name]), *((2, n) for n in array.shape)])
    return struct.pack("<IQIi", 0, 0, 0, len(desc)) + desc + array.tobytes()


def paddle_operator(
    kind: str,
    inputs: dict[str, str],
    outputs: dict[str, str],
    **attributes: Any,
) -> list[tuple[int, Any]]:
    fields: list[tuple[int, Any]] = [(1, [(1, k), (2, v)]) for k, v in inputs.items()]
    fields += [(2, [(1, k), (2, v)]) for k, v in outputs.items()]
    fields.append((3, kind))
    for name, value in attributes.items():
        attribute: list[tuple[int, Any]] = [(1, name)]
        if isinstance(value, list):
            attribute += [(2, 3), *((6, n) for n in value)]
        elif isinstance(value, str):
            attribute += [(2, 2), (5, value)]
        elif isinstance(value, float):
            attribute += [(2, 1), (4, value)]
        else:
            attribute += [(2, 8), (12, value)] if name == "sub_block" else [(2, 0), (3, value)]
        fields.append((4, attribute))
    return fields


def paddle_model(
    parameters: dict[str, Array], *blocks: Sequence[list[tuple[int, Any]]]
) -> tuple[bytes, bytes]:
    """Return program and combined parameters."""

    def described(array: Array) -> Fields:
        tensor = [(1, _PADDLE_TYPES[array.dtype.name]), *((2, n) for n in array.shape)]
        return [(1, 7), (3, [(1, tensor)])]

    variables = [[(1, name), (2, described(a)), (3, 1)] for name, a in parameters.items()]
    variables.append([(1, "feed"), (2, [(1, 9)]), (3, 1)])
    program = [
        (1, [(1, i), (2, -1 if i == 0 else 0), *((3, v) for v in variables if i == 0),
             *((4, o) for o in operators)])
        for i, operators in enumerate(blocks)
    ]  # fmt: skip
    data = b"".join(paddle_stored(parameters[name]) for name in sorted(parameters))
    return message([*program, (4, [(1, 2_006_001)])]), data


# OpenVINO


class OpenVino:
    """Builds an IR layer by layer."""

    def __init__(self, version: int = 11) -> None:
        self.version = version
        self.layers: list[str] = []
        self.edges: list[str] = []
        self.data = b""

    def constant(self, name: str, array: Array, element: str, shape: Sequence[int] = ()) -> int:
        shape = tuple(shape) or array.shape
        data = f'element_type="{element}" shape="{", ".join(map(str, shape))}"'
        data += f' offset="{len(self.data)}" size="{array.nbytes}"'
        self.data += array.tobytes()
        return self.layer(name, "Const", data, [], shape)

    def layer(
        self,
        name: str,
        kind: str,
        data: str,
        sources: Sequence[int],
        shape: Sequence[int] = (),
        inside: str = "",
    ) -> int:
        number = len(self.layers)
        ports = "".join(f'<port id="{i}"/>' for i in range(len(sources)))
        dims = "".join(f"<dim>{n}</dim>" for n in shape)
        self.layers.append(
            f'<layer id="{number}" name="{name}" type="{kind}" version="opset1" precision="FP32">'
            f"<data {data}/><input>{ports}</input>"
            f'<output><port id="{len(sources)}">{dims}</port></output>{inside}</layer>'
        )
        for i, source in enumerate(sources):
            port = self.layers[source].count("<port id", 0, self.layers[source].index("<output>"))
            self.edges.append(
                f'<edge from-layer="{source}" from-port="{port}" to-layer="{number}" '
                f'to-port="{i}"/>'
            )
        return number

    def text(self) -> bytes:
        return (
            f'<?xml version="1.0"?>\n<net name="m" version="{self.version}"><layers>'
            f"{''.join(self.layers)}</layers><edges>{''.join(self.edges)}</edges></net>"
        ).encode()

    def write(self, folder: Path) -> Path:
        (folder / "m.bin").write_bytes(self.data)
        (folder / "m.xml").write_bytes(self.text())
        return folder / "m.xml"


# Core ML


def coreml_model(kind: int, model: Fields, version: int = 4, outputs: Fields = ()) -> bytes:
    described = [(1, [(1, "x"), (3, b"")]), *outputs]
    return message([(1, version), (2, described), (kind, model)])


def coreml_layer(name: str, source: str, result: str, number: int, fields: Fields) -> Any:
    return (1, [(1, name), (2, source), (3, result), (number, fields)])


def packed_varints(*values: int) -> bytes:
    return b"".join(varint(v) for v in values)


def mil_type(element: int, shape: Sequence[int]) -> list[tuple[int, Any]]:
    dims = [(3, [(1, [(1, n)])]) for n in shape]
    return [(1, [(1, element), (2, len(shape)), *dims])]


def mil_value(element: int, shape: Sequence[int], field: int, data: Any) -> list[tuple[int, Any]]:
    return [(2, mil_type(element, shape)), (3, [(1, [(field, [(1, data)])])])]


def mil_blob(element: int, shape: Sequence[int], name: str, offset: int) -> list[tuple[int, Any]]:
    return [(2, mil_type(element, shape)), (5, [(1, name), (2, offset)])]


def mil_operation(
    kind: str,
    output: str,
    inputs: dict[str, Any],
    attributes: dict[str, Any] | None = None,
    shape: Sequence[int] = (1,),
) -> Any:
    """Write an operation: inputs are names, or values in line."""
    fields: list[tuple[int, Any]] = [(1, kind)]
    for name, given in inputs.items():
        binding = [(1, given)] if isinstance(given, str) else [(2, given)]
        fields.append((2, [(1, name), (2, [(1, binding)])]))
    fields.append((3, [(1, output), (2, mil_type(11, shape))]))
    fields += [(5, [(1, name), (2, value)]) for name, value in (attributes or {}).items()]
    return (3, fields)


def mil_program(operations: Fields) -> list[tuple[int, Any]]:
    block = [(3, [(1, "CoreML5"), (2, list(operations))])]
    return [(1, 1), (2, [(1, "main"), (2, [(2, "CoreML5"), *block])])]


def blob_file(*entries: tuple[int, bytes]) -> tuple[bytes, list[int]]:
    """Write a weight file; return it and where each entry's description lies."""
    out, offsets = bytearray(struct.pack("<II56x", len(entries), 2)), []
    for kind, data in entries:
        offsets.append(len(out))
        out += struct.pack("<IIQQ40x", 0xDEADBEEF, kind, len(data), len(out) + 64)
        out += data + bytes(-len(data) % 64)
    return bytes(out), offsets
