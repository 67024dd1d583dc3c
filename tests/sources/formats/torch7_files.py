"""Writes torch7's binary form, as torch7's own ``File.lua`` and ``generic/*.c`` do."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_KINDS = {
    "float32": "Float", "float64": "Double", "int64": "Long", "int32": "Int", "uint8": "Byte",
    "float16": "Half",
}  # fmt: skip


@dataclass(eq=False)
class Module:
    """An object of a class: ``Module("nn.ReLU", {...})``."""

    kind: str
    fields: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Function:
    """A function: byte code nobody runs, and its upvalues."""

    code: bytes
    kind: int = 8
    upvalues: Any = None


@dataclass(eq=False)
class View:
    """A tensor with strides of its own over a storage that others may share."""

    storage: np.ndarray
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int = 0


class Writer:
    """Collects the bytes of one file; equal objects are written once, as torch7 does."""

    def __init__(self, *, long_size: int = 8) -> None:
        self.out = bytearray()
        self.long = "q" if long_size == 8 else "i"
        self.indices: dict[int, int] = {}
        self._kept: list[Any] = []

    def integer(self, value: int) -> None:
        self.out += struct.pack("<i", value)

    def longs(self, *values: int) -> None:
        self.out += struct.pack(f"<{len(values)}{self.long}", *values)

    def text(self, value: str | bytes) -> None:
        raw = value.encode() if isinstance(value, str) else value
        self.integer(len(raw))
        self.out += raw

    def _reference(self, value: Any) -> bool:
        """Write the index; True where the object itself has been written before."""
        known = id(value) in self.indices
        self.indices.setdefault(id(value), len(self.indices) + 1)
        self._kept.append(value)
        self.integer(self.indices[id(value)])
        return known

    def value(self, value: Any) -> None:
        if value is None:
            self.integer(0)
        elif isinstance(value, bool):
            self.integer(5)
            self.integer(int(value))
        elif isinstance(value, int | float):
            self.integer(1)
            self.out += struct.pack("<d", value)
        elif isinstance(value, str | bytes):
            self.integer(2)
            self.text(value)
        elif isinstance(value, Function):
            self._function(value)
        elif isinstance(value, dict | list):
            self._table(value)
        elif isinstance(value, Module):
            self.integer(4)
            if not self._reference(value):
                self.text("V 1")
                self.text(value.kind)
                self.value(value.fields)
        else:
            self._tensor(value)

    def _function(self, value: Function) -> None:
        self.integer(value.kind)
        if value.kind != 6 and self._reference(value):
            return
        self.text(value.code)
        self.value({} if value.upvalues is None else value.upvalues)

    def _table(self, value: dict[Any, Any] | list[Any]) -> None:
        self.integer(3)
        if self._reference(value):
            return
        entries = dict(enumerate(value, start=1)) if isinstance(value, list) else value
        self.integer(len(entries))
        for key, item in entries.items():
            self.value(key)
            self.value(item)

    def _tensor(self, value: np.ndarray | View) -> None:
        if isinstance(value, np.ndarray):
            steps = tuple(s // value.itemsize for s in np.ascontiguousarray(value).strides)
            view = View(np.ascontiguousarray(value).reshape(-1), value.shape, steps)
        else:
            view = value
        self.integer(4)
        if self._reference(value):
            return
        kind = _KINDS[str(view.storage.dtype)]
        self.text("V 1")
        self.text(f"torch.{kind}Tensor")
        self.integer(len(view.shape))
        self.longs(*view.shape)
        self.longs(*view.strides)
        self.longs(view.start + 1)
        self.integer(4)
        if not self._reference(view.storage):
            self.text("V 1")
            self.text(f"torch.{kind}Storage")
            self.longs(view.storage.size)
            self.out += view.storage.astype(view.storage.dtype.newbyteorder("<")).tobytes()


def serialise(value: Any, *, long_size: int = 8) -> bytes:
    """Return the bytes ``torch.save`` would write."""
    writer = Writer(long_size=long_size)
    writer.value(value)
    return bytes(writer.out)


def convolution(weight: np.ndarray, *, flat: bool = False, **options: Any) -> Module:
    """A SpatialConvolution as nn makes it; `flat` as the MM kind keeps its weight."""
    outputs, inputs, height, width = weight.shape
    groups = options.get("groups", 1)
    kind = options.pop("kind", "nn.SpatialConvolutionMM" if flat else "nn.SpatialConvolution")
    fields = {
        "nInputPlane": inputs * groups, "nOutputPlane": outputs, "kW": width, "kH": height,
        "dW": 1, "dH": 1, "padW": 0, "padH": 0, **options,
        "weight": weight.reshape(outputs, -1) if flat else weight,
        "bias": np.zeros(outputs, weight.dtype),
        "gradWeight": np.zeros_like(weight), "_type": "torch.FloatTensor", "train": False,
    }  # fmt: skip
    return Module(kind, fields)
