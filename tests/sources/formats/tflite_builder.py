"""A small TFLite writer for tests: tables as dictionaries, numbered as in the public schema."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scalar:
    """An inline number, with its struct code."""

    code: str
    value: float | int


def u8(value: int) -> Scalar:
    return Scalar("B", value)


def i8(value: int) -> Scalar:
    return Scalar("b", value)


def i32(value: int) -> Scalar:
    return Scalar("i", value)


def u32(value: int) -> Scalar:
    return Scalar("I", value)


def u64(value: int) -> Scalar:
    return Scalar("Q", value)


@dataclass(frozen=True)
class Shared:
    """Something many offsets lead to; it is written once, behind them all."""

    item: Any


def serialise(root: dict[int, Any], identifier: bytes = b"TFL3") -> bytes:
    """Lay out tables, vectors and strings one after the other, offsets forward."""
    out = bytearray(b"\0\0\0\0" + identifier)
    waiting: deque[tuple[int, Any]] = deque([(0, root)])
    shared: dict[int, tuple[Any, list[int]]] = {}
    while waiting or shared:
        if not waiting:
            item, slots = shared.pop(next(iter(shared)))
        else:
            slot, item = waiting.popleft()
            slots = [slot]
            if isinstance(item, Shared):
                shared.setdefault(id(item.item), (item.item, []))[1].append(slot)
                continue
        position = _place(out, item, waiting)
        for slot in slots:
            struct.pack_into("<I", out, slot, position - slot)
    return bytes(out)


def _align(out: bytearray, extra: int = 0) -> None:
    while (len(out) + extra) % 8:
        out.append(0)


def _place(out: bytearray, item: Any, waiting: deque[tuple[int, Any]]) -> int:
    if isinstance(item, dict):
        return _table(out, item, waiting)
    if isinstance(item, str):
        item = item.encode()
        ending = b"\0"
    else:
        ending = b""
    _align(out, 4)
    position = len(out)
    out += struct.pack("<I", len(item))
    if isinstance(item, list):
        for child in item:
            waiting.append((len(out), child))
            out += bytes(4)
    else:
        out += item if isinstance(item, bytes) else np.ascontiguousarray(item).tobytes()
        out += ending
    return position


def _table(out: bytearray, fields: dict[int, Any], waiting: deque[tuple[int, Any]]) -> int:
    n_fields = max(fields, default=-1) + 1
    offsets, size = [0] * n_fields, 4
    for number, value in fields.items():
        width = struct.calcsize(value.code) if isinstance(value, Scalar) else 4
        size += -size % width
        offsets[number] = size
        size += width
    _align(out, 4 + 2 * n_fields)
    vtable = len(out)
    out += struct.pack(f"<{2 + n_fields}H", 4 + 2 * n_fields, size, *offsets)
    position = len(out)
    out += struct.pack("<i", position - vtable) + bytes(size - 4)
    for number, value in fields.items():
        place = position + offsets[number]
        if isinstance(value, Scalar):
            struct.pack_into("<" + value.code, out, place, value.value)
        else:
            waiting.append((place, value))
    return position


@dataclass
class ModelBuilder:
    """Collects tensors and operators of one subgraph."""

    tensors: list[dict[int, Any]] = field(default_factory=list)
    buffers: list[dict[int, Any]] = field(default_factory=lambda: [{}])
    codes: list[dict[int, Any]] = field(default_factory=list)
    operators: list[dict[int, Any]] = field(default_factory=list)

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: int = 0,
        values: Any = None,
        **more: Any,
    ) -> int:
        """Add a tensor; `more`: scale, zero_point, axis, sparsity, buffer."""
        buffer = more.get("buffer", 0)
        if values is not None:
            buffer = len(self.buffers)
            data = values if isinstance(values, bytes) else np.ascontiguousarray(values).tobytes()
            self.buffers.append({0: data})
        entry: dict[int, Any] = {
            0: np.array(shape, "<i4"), 1: i8(kind), 2: u32(buffer), 3: name
        }  # fmt: skip
        if "scale" in more:
            zero_point = more.get("zero_point", np.zeros(len(more["scale"])))
            entry[4] = {
                2: np.array(more["scale"], "<f4"),
                3: np.array(zero_point, "<i8"),
                6: i32(more.get("axis", 0)),
            }
        if "details" in more:
            entry[4] = {2: np.array([1], "<f4"), 4: u8(more["details"]), 5: {}}
        if "sparsity" in more:
            entry[6] = more["sparsity"]
        if "external" in more:
            entry[10] = u32(more["external"])
        self.tensors.append(entry)
        return len(self.tensors) - 1

    def operator(
        self,
        code: int,
        inputs: list[int],
        outputs: list[int],
        options: dict[int, Any] | None = None,
        custom: tuple[str, bytes] | None = None,
    ) -> None:
        entry: dict[int, Any] = {0: i8(min(code, 127)), 2: i32(1), 3: i32(code)}
        if custom is not None:
            entry[1] = custom[0]
        self.codes.append(entry)
        operator: dict[int, Any] = {
            0: u32(len(self.codes) - 1),
            1: np.array(inputs, "<i4"),
            2: np.array(outputs, "<i4"),
        }
        if options is not None:
            operator[3], operator[4] = u8(1), options
        if custom is not None:
            operator[5] = custom[1]
        self.operators.append(operator)

    def bytes(self, version: int = 3, *, copies: int = 1) -> bytes:
        subgraph = {
            0: self.tensors,
            1: np.zeros(1, "<i4"),
            2: np.zeros(1, "<i4"),
            3: self.operators,
            4: "main",
        }
        return serialise(
            {
                0: u32(version),
                1: self.codes,
                2: [Shared(subgraph)] * copies,
                3: "tests",
                4: self.buffers,
            }
        )
