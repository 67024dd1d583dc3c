"""ML Program operations as nodes, and what happens to constants before an operation reads them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from filterdb.layers.raw import SPATIAL_LETTERS, ConvAttributes, Node, NodeOp
from filterdb.sources.formats.constant_pool import ConstantPool, unique_name
from filterdb.sources.formats.coreml_constants import (
    PackedPalette,
    Palette,
    Sparse,
    stored_constant,
)
from filterdb.sources.formats.coreml_fields import extents
from filterdb.sources.formats.coreml_mil import Operation, Value, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from filterdb.layers.raw import Tensor
    from filterdb.sources.formats.base import ModelFile
    from filterdb.sources.formats.coreml_network import Contents
    from filterdb.sources.formats.graph_constants import Constant
    from filterdb.sources.formats.protobuf_wire import WireReader
    from filterdb.types import Shape

_IDENTITY = frozenset({"identity", "cast", "quantize", "dequantize"})
_ARITHMETIC = {"mul": "multiply", "add": "add", "sub": "subtract", "real_div": "divide"}
_MOVED = frozenset({"reshape", "expand_dims", "squeeze"})
_NORMS = {
    "layer_norm": {"gamma": "gamma", "beta": "beta"},
    "instance_norm": {"gamma": "gamma", "beta": "beta"},
    "prelu": {"weight": "alpha"},
}
_RECURRENT = frozenset({"lstm", "gru", "rnn"})
_VECTORS = {"gamma": "gamma", "beta": "beta", "mean": "mean", "var": "variance"}
_SMALL = 64


class ProgramTranslator:
    """Turns a function's operations into nodes and tensors.

    Parameters
    ----------
    wire
        The model's bytes, for texts.
    file
        The model and its weight file.
    contents
        Filled with tensors and nodes.
    prefix
        Put before names, for parts of a pipeline and functions.
    value
        Turns the name of an activation into one that is unique in the file.
    """

    def __init__(
        self,
        wire: WireReader,
        file: ModelFile,
        contents: Contents,
        *,
        prefix: str = "",
        value: Callable[[str], str] = str,
    ) -> None:
        self.wire = wire
        self.file = file
        self.contents = contents
        self._prefix = prefix
        self._value = value
        #: Stored constants by the name of their tensor.
        self._stored: dict[str, Constant] = {}
        #: Constants by the name of their value, those computed from stored ones among them.
        self._constants: dict[str, Constant] = {}
        self._texts: dict[str, Value] = {}
        self._pool = ConstantPool(self._stored)

    def function(self, operations: Sequence[Operation]) -> None:
        """Translate a function.

        Parameters
        ----------
        operations
            In order of execution.
        """
        for operation in operations:
            self._operation(operation)
        tensors: tuple[Tensor, ...] = self._pool.tensors()
        self.contents.tensors += tensors

    def _operation(self, operation: Operation) -> None:
        kind = operation.kind
        for block in operation.blocks:
            for inner in block:
                self._operation(inner)
        if kind == "const":
            value = operation.attributes.get("val")
            for name in operation.outputs:
                if value is not None and value.payload == "string":
                    self._texts[name] = value
                elif value is not None:
                    self._constants[name] = self._store(name, value)
            return
        computed = self._computed(operation)
        if computed is not None:
            self._constants.update(dict.fromkeys(list(operation.outputs)[:1], computed))
            return
        if kind in ("conv", "conv_transpose", "conv_quantized"):
            self._convolution(operation)
        elif kind in ("linear", "matmul"):
            weights = self._weights(
                operation, {"weight": "weight" if kind == "linear" else "y", "bias": "bias"}
            )
            self._node(operation, "linear" if "weight" in weights else "other", weights)
        elif kind == "batch_norm":
            weights = self._weights(operation, _VECTORS)
            self._node(operation, "batch_norm", weights, epsilon=self._real(operation, "epsilon"))
        elif kind in _NORMS:
            self._node(operation, "norm", self._weights(operation, _NORMS[kind]))
        elif kind in _RECURRENT:
            roles = {f"weight{i}": name for i, name in enumerate(operation.inputs) if name != "x"}
            self._node(operation, "linear", self._weights(operation, roles))
        elif kind == "gather":
            self._gather(operation)
        elif kind in ("mul", "add"):
            self._elementwise(operation)
        else:
            self._node(operation, "identity" if kind in _IDENTITY else "other", {})

    def _store(self, name: str, value: Value) -> Constant:
        wanted = unique_name(f"{self._prefix}{name}", self.contents.tensor_names)
        size = len(self.wire.data)
        self._stored[wanted] = constant = stored_constant(self.file, size, wanted, value)
        return constant

    def _constant(self, operation: Operation, parameter: str) -> Constant | None:
        given = operation.given(parameter)
        if isinstance(given, str):
            return self._constants.get(given)
        if given is None or given.payload == "string":
            return None
        owner = next(iter(operation.outputs), operation.kind)
        # Once stored, the same value is found under its name.
        name = f"{owner}/{parameter}"
        if name not in self._constants:
            self._constants[name] = self._store(name, given)
        return self._constants[name]

    def _computed(self, operation: Operation) -> Constant | None:
        """Return what an operation makes of constants alone, None where it does no such thing."""
        kind = operation.kind
        shape = next(iter(operation.outputs.values()), None)
        if kind.startswith("constexpr_"):
            return self._decompressed(operation, shape)
        if kind in _ARITHMETIC:
            left, right = self._constant(operation, "x"), self._constant(operation, "y")
            if left is None or right is None:
                return None
            if right.size > left.size or len(right.shape) > len(left.shape):
                return right.combined(_ARITHMETIC[kind], left, swapped=True)
            return left.combined(_ARITHMETIC[kind], right)
        source = self._constant(operation, "x") or self._constant(operation, "input")
        if source is None:
            return None
        if kind in ("identity", "cast"):
            return source
        if kind in _MOVED:
            return None if shape is None else source.reshaped(shape)
        if kind == "transpose":
            return source.transposed(self._integers(operation, "perm"))
        if kind == "dequantize":
            return self._affine(operation, source, "zero_point")
        return None

    def _decompressed(self, operation: Operation, shape: Shape | None) -> Constant | None:
        kind = operation.kind.removeprefix("constexpr_")
        if kind == "cast":
            return self._constant(operation, "source_val")
        if kind == "affine_dequantize":
            source = self._constant(operation, "quantized_data")
            return None if source is None else self._affine(operation, source, "zero_point")
        if kind == "blockwise_shift_scale":
            return self._blockwise(operation)
        if kind == "lut_to_dense":
            return self._palette(operation, shape)
        if kind == "sparse_to_dense":
            return self._sparse(operation, shape)
        return None

    def _affine(self, operation: Operation, source: Constant, zero_name: str) -> Constant | None:
        axis = self._integers(operation, "axis")
        place = axis[0] if axis else 0
        place = place + len(source.shape) if place < 0 else place
        for parameter, what in ((zero_name, "subtract"), ("scale", "multiply")):
            factor = self._constant(operation, parameter)
            if factor is None:
                if parameter == zero_name:
                    continue
                return None
            wide = tuple(
                n if i == place and factor.size > 1 else 1 for i, n in enumerate(source.shape)
            )
            shaped = factor.reshaped(wide)
            combined = None if shaped is None else source.combined(what, shaped)
            if combined is None:
                return None
            source = combined
        return source

    def _blockwise(self, operation: Operation) -> Constant | None:
        stored = self._constant(operation, "data")
        scale = self._constant(operation, "scale")
        if stored is None or scale is None or not _divides(scale.shape, stored.shape):
            return None
        # Each axis becomes two: blocks, and what lies within one.
        pairs = [(n, m // n) for n, m in zip(scale.shape, stored.shape, strict=True)]
        source = stored.reshaped(tuple(n for pair in pairs for n in pair))
        for parameter, what in (("offset", "subtract"), ("scale", "multiply")):
            factor = self._constant(operation, parameter)
            if factor is None and parameter == "offset":
                continue
            wide = tuple(n for blocks, _ in pairs for n in (blocks, 1))
            shaped = None if factor is None else factor.reshaped(wide)
            if source is None or shaped is None:
                return None
            source = source.combined(what, shaped)
        return None if source is None else source.reshaped(stored.shape)

    def _palette(self, operation: Operation, shape: Shape | None) -> Constant | None:
        places, table = self._constant(operation, "indices"), self._constant(operation, "lut")
        if places is None or table is None:
            return None
        if operation.given("shape") is not None:
            shape = self._integers(operation, "shape")
            return places.derived(
                PackedPalette(places.load, table.load, shape), shape, parameters=(table,)
            )
        if shape is None or not _divides(table.shape[:-2], places.shape):
            return None
        axis = self._integers(operation, "vector_axis")
        place = axis[0] if axis else len(places.shape) - 1
        place = place + len(places.shape) if place < 0 else place
        if not 0 <= place < len(places.shape):
            return None
        load = Palette(places.load, table.load, shape, place)
        return places.derived(load, shape, parameters=(table,))

    def _sparse(self, operation: Operation, shape: Shape | None) -> Constant | None:
        numbers, mask = (self._constant(operation, name) for name in ("nonzero_data", "mask"))
        if numbers is None or mask is None:
            return None
        packed = operation.given("shape") is not None
        shape = self._integers(operation, "shape") if packed else mask.shape
        load = Sparse(numbers.load, mask.load, shape, packed)
        return numbers.derived(load, shape, parameters=(mask,), scaled=numbers.scaled)

    def _convolution(self, operation: Operation) -> None:
        transposed = operation.kind == "conv_transpose"
        constant = self._constant(operation, "weight")
        weights = self._weights(operation, {"bias": "bias"})
        attributes = ConvAttributes()
        if constant is not None:
            weights["weight"] = self._pool.use(constant)
            letters = SPATIAL_LETTERS.get(len(constant.shape) - 2)
            if letters is not None:
                attributes = self._attributes(operation, letters, transposed=transposed)
        given = operation.given("weight")
        dynamic = given if constant is None and isinstance(given, str) else None
        self._node(
            operation, "conv_transpose" if transposed else "conv", weights,
            attributes=attributes, dynamic=dynamic,
        )  # fmt: skip

    def _attributes(
        self, operation: Operation, letters: str, *, transposed: bool
    ) -> ConvAttributes:
        rank = len(letters)
        ones = (1,) * rank
        word = self._text(operation, "pad_type")
        padding: tuple[int, ...] | None = None
        if word in ("", "valid"):
            padding = (0,) * rank
        elif word == "custom":
            pairs = self._integers(operation, "pad") or (0,) * (2 * rank)
            if len(pairs) == 2 * rank:
                begin, end = pairs[0::2], pairs[1::2]
                padding = extents(begin if begin == end else begin + end, None, least=0)
        groups = self._integers(operation, "groups")
        return ConvAttributes(
            layout=("IO" if transposed else "OI") + letters,
            groups=groups[0] if groups and groups[0] > 0 else 1,
            stride=extents(self._integers(operation, "strides") or ones, rank, least=1),
            dilation=extents(self._integers(operation, "dilations") or ones, rank, least=1),
            padding=padding,
        )

    def _gather(self, operation: Operation) -> None:
        table = self._constant(operation, "x")
        if table is None or len(table.shape) != 2:
            self._node(operation, "other", {})
        else:
            self._node(operation, "embedding", {"weight": self._pool.use(table)})

    def _elementwise(self, operation: Operation) -> None:
        stored = [c for n in ("x", "y") if (c := self._constant(operation, n)) is not None]
        # One number per channel; scalars, grids and feature maps are something else.
        if len(stored) != 1 or sum(n != 1 for n in stored[0].shape) != 1:
            self._node(operation, "other", {})
            return
        op: NodeOp = "add" if operation.kind == "add" else "multiply"
        self._node(operation, op, {"constant": self._pool.use(stored[0])})

    def _weights(self, operation: Operation, roles: Mapping[str, str]) -> dict[str, str]:
        found = {}
        for role, parameter in roles.items():
            constant = self._constant(operation, parameter)
            if constant is not None:
                found[role] = self._pool.use(constant)
        return found

    def _integers(self, operation: Operation, parameter: str) -> tuple[int, ...]:
        constant = self._constant(operation, parameter)
        small = constant is not None and constant.size <= _SMALL and constant.skip is None
        if constant is None or not small or not constant.dtype.startswith(("int", "uint")):
            return ()
        return tuple(int(n) for n in constant.load().reshape(-1))

    def _real(self, operation: Operation, parameter: str) -> float | None:
        constant = self._constant(operation, parameter)
        if constant is None or constant.size != 1 or not constant.dtype.startswith("float"):
            return None
        value = float(constant.load().reshape(-1)[0])
        return value if math.isfinite(value) and value >= 0 else None

    def _text(self, operation: Operation, parameter: str) -> str:
        given = operation.given(parameter)
        if isinstance(given, str):
            given = self._texts.get(given)
        return "" if given is None else text_of(self.wire, given)

    def _node(
        self,
        operation: Operation,
        op: NodeOp,
        weights: Mapping[str, str],
        *,
        attributes: ConvAttributes | None = None,
        dynamic: str | None = None,
        epsilon: float | None = None,
    ) -> None:
        outputs = list(operation.outputs)
        name = f"{self._prefix}{outputs[0] if outputs else operation.kind}"
        inputs = [
            given
            for bound in operation.inputs.values()
            for given in bound
            if isinstance(given, str)
            and given not in self._constants
            and given not in self._texts
            and given != dynamic
        ]
        self.contents.nodes.append(
            Node(
                name=unique_name(name, self.contents.node_names),
                op=op,
                inputs=tuple(self._value(n) for n in inputs),
                outputs=tuple(self._value(n) for n in outputs),
                weights=weights,
                conv=attributes,
                epsilon=epsilon,
                dynamic_weight=None if dynamic is None else self._value(dynamic),
                source_op=operation.kind,
            )
        )


def _divides(small: Shape, large: Shape) -> bool:
    return len(small) == len(large) and all(
        a > 0 and b % a == 0 for a, b in zip(small, large, strict=True)
    )
