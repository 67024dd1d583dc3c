"""A TorchScript archive's classes and stored objects, looked up with bounded effort."""

from __future__ import annotations

import ast
import math
from typing import TYPE_CHECKING, Any

from filterdb.sources.formats.pickle_values import Record, Table
from filterdb.sources.formats.torchscript_code import Code, CodeError
from filterdb.sources.formats.torchscript_ops import Recorder
from filterdb.sources.formats.torchscript_packed import packed_of
from filterdb.sources.formats.torchscript_values import (
    UNKNOWN,
    Finder,
    Instance,
    Parameter,
    Value,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filterdb.sources.formats.torch_parts import Found

#: A YOLOv8 takes 9,000.
MAX_STEPS = 300_000
#: Calls in calls and expressions in expressions, which are calls of this program, too.
MAX_DEPTH = 250
#: Packed convolutions hold 15 numbers at most.
_MAX_NUMBERS = 32
#: Lists in lists of an object's state.
_MAX_NESTING = 8


class Archive:
    """What the code of an archive may look up.

    Parameters
    ----------
    code
        Its classes and functions.
    table
        Understands tensor records.
    stored
        The archive's tensors, each once.
    constants
        ``CONSTANTS.c0`` and following.
    """

    def __init__(
        self, code: Code, table: Finder, stored: Sequence[Found], constants: Sequence[Any]
    ) -> None:
        self.recorder = Recorder()
        self._code = code
        self._table = table
        self._names = {id(found.spec): found.name for found in stored}
        self._specs = {found.name: found.spec for found in stored}
        self._constants = constants
        self._instances: dict[int, Instance] = {}
        self.steps = 0
        self._depth = 0

    # -- stored values ---

    def convert(self, value: Any, path: str, depth: int = 0) -> Value:
        """Return what stands for a value of the pickle."""
        self.step()
        if type(value) is Record:
            return self._of_record(value, path)
        if isinstance(value, list | tuple) and depth < _MAX_NESTING:
            parts = [self.convert(part, path, depth + 1) for part in value]
            return tuple(parts) if isinstance(value, tuple) else parts
        if type(value) is Table and depth < _MAX_NESTING:
            pairs = [(k, v) for k, v in value.pairs if type(k) in (str, int)]
            return {k: self.convert(v, path, depth + 1) for k, v in pairs}
        return value if value is None or type(value) in (bool, int, float, str) else UNKNOWN

    def _of_record(self, record: Record, path: str) -> Value:
        spec = self._table.find(record)
        if spec is not None:
            name = self._names.get(id(spec))
            return UNKNOWN if name is None else Parameter(name, spec.shape)
        kind = record.kind
        if kind is not None and kind.module == "torch.jit._pickle" and record.args:
            return self.convert(record.args[0], path)  # A list, with the type of its elements.
        if kind is None or not kind.module.startswith("__torch__"):
            return UNKNOWN
        if kind.module.startswith("__torch__.torch.classes."):
            return packed_of(kind.name, self.convert(record.state, path), self._numbers)
        known = self._instances.get(id(record))
        if known is None:
            known = self._instances[id(record)] = Instance(kind.path, path, record)
        return known

    def _numbers(self, parameter: Parameter) -> list[Value]:
        """Return the values of a small stored tensor of whole numbers."""
        spec = self._specs.get(parameter.name)
        if spec is None or math.prod(spec.shape) > _MAX_NUMBERS or not spec.dtype.startswith("int"):
            return []
        return [int(number) for number in spec.load().reshape(-1)]

    def methods(self, kind: str) -> tuple[dict[str, ast.FunctionDef], dict[str, ast.expr]]:
        """Return a class's methods and constants by name."""
        body = getattr(self._code.find(kind), "body", ())
        self.step(len(body) // 8)
        methods = {part.name: part for part in body if isinstance(part, ast.FunctionDef)}
        constants = {
            part.target.id: part.value
            for part in body
            if isinstance(part, ast.AnnAssign)
            and isinstance(part.target, ast.Name)
            and part.value is not None
        }
        return methods, constants

    def step(self, count: int = 1) -> None:
        """Account for work; raise CodeError where there is too much of it."""
        self.steps += count
        if self.steps > MAX_STEPS:
            raise CodeError("calls that unfold to far more than the file holds")

    def deeper(self, count: int) -> None:
        """Note that calls or expressions nest deeper; raise CodeError where they nest too deep."""
        self._depth += count
        if self._depth > MAX_DEPTH:
            raise CodeError("calls nested absurdly deep")
