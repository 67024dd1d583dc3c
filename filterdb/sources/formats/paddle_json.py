"""PaddlePaddle 3 keeps its programs as JSON (``inference.json``, "PIR"): the same, by position.

Operators carry no parameter names there. They are given those of a ``ProgramDesc``, so that one
translator serves both; a value is called by its parameter's name, or by its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.sources.formats.paddle_proto import Attribute, Block, Operator, Program, Variable
from filterdb.sources.formats.tf_operations import clean
from filterdb.sources.formats.tfjs_text import load_document

if TYPE_CHECKING:
    from filterdb.sources.formats.base import ModelFile
    from filterdb.types import Shape

_MAX_DEPTH = 16
_MAX_RANK = 64
_KERNEL = ("Input", "Filter")
_NORM = ("X", "Scale", "Bias")
#: Operator → the parameters its inputs stand for; others have one, X.
_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "conv2d": _KERNEL, "depthwise_conv2d": _KERNEL, "conv3d": _KERNEL,
    "conv2d_transpose": (*_KERNEL, "OutputSize"), "conv2d_transpose_bias": (*_KERNEL, "Bias"),
    "depthwise_conv2d_transpose": (*_KERNEL, "OutputSize"), "conv3d_transpose": _KERNEL,
    "fused_conv2d_add_act": (*_KERNEL, "Bias", "ResidualData"),
    "deformable_conv": ("Input", "Offset", "Filter", "Mask"),
    "batch_norm": ("X", "Mean", "Variance", "Scale", "Bias"),
    "layer_norm": _NORM, "group_norm": _NORM, "instance_norm": _NORM, "prelu": ("X", "Alpha"),
    "matmul": ("X", "Y"), "fc": ("Input", "W", "Bias"), "embedding": ("Ids", "W"),
    "elementwise_add": ("X", "Y"), "elementwise_mul": ("X", "Y"),
    "dequantize_linear": ("X", "Scale", "ZeroPoint"),
}  # fmt: skip
_NAMES = {"add": "elementwise_add", "multiply": "elementwise_mul", "sync_batch_norm": "batch_norm"}
#: Operators whose second input is a list of integers, and the attribute it stands for.
_LISTS = {"reshape": "shape", "unsqueeze": "axes"}
_RENAMED = {"perm": "axis"}
_TYPES = {
    "0.t_f32": 5, "0.t_f16": 4, "0.t_bf16": 22, "0.t_f64": 6, "0.t_i8": 21, "0.t_ui8": 20,
    "0.t_i16": 1, "0.t_i32": 2, "0.t_i64": 3, "0.t_bool": 0,
    "0.t_f8e4m3fn": 32, "0.t_f8e5m2": 33,
}  # fmt: skip


def is_program(head: bytes) -> bool:
    """Whether a file begins like a program in JSON.

    Parameters
    ----------
    head
        Its first bytes.

    Returns
    -------
    bool
        True where its mark stands among them.
    """
    return head.lstrip()[:1] == b"{" and b'"magic"' in head[:256] and b'"pir"' in head[:256]


def read_program(file: ModelFile) -> Program:
    """Parse a program in JSON.

    Parameters
    ----------
    file
        The file.

    Returns
    -------
    Program
        With one block; bodies of branches and loops follow the operator that runs them.

    Raises
    ------
    SourceError
        If it is damaged or absurdly large.
    """
    label = file.name or file.path.name
    try:
        return _Reader(load_document(file)).program
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise MalformedFileError(f"{label} is no PaddlePaddle program: {error!r}") from error


class _Reader:
    def __init__(self, document: Any) -> None:
        version = document["base_code"]["version"]
        self.program = Program([Block()], version if isinstance(version, int) else 0)
        self._block = self.program.blocks[0]
        #: Number of a value → the names it stands for (several where values are combined).
        self._names: dict[int, tuple[str, ...]] = {}
        self._lists: dict[str, tuple[int, ...]] = {}
        for region in document["program"]["regions"]:
            for block in region["blocks"]:
                self._operators(block, (), (), 0)

    def _operators(
        self, block: Any, given: tuple[str, ...], results: tuple[str, ...], depth: int
    ) -> None:
        """Read a block: what its arguments are, and where its results go."""
        if depth > _MAX_DEPTH:
            raise UnsafeCheckpointError(f"a program nests more than {_MAX_DEPTH} blocks")
        for argument, name in zip(block.get("args", []), given, strict=False):
            self._pass(name, self._name(argument))
        for operator in block["ops"]:
            kind = clean(str(operator["#"]))
            if kind == "p":
                self._parameter(operator)
            elif kind.endswith(".yield"):
                inputs = self._inputs(operator)
                # A loop hands its condition on first.
                start = len(inputs) - len(results) if len(inputs) > len(results) else 0
                for name, result in zip(inputs[start:], results, strict=False):
                    self._pass(name, result)
            elif kind.endswith(".combine"):
                (output,) = operator["O"]
                self._names[_number(output)] = self._inputs(operator)
            else:
                self._operator(kind.partition(".")[2].rstrip("_"), operator, depth)

    def _pass(self, source: str, target: str) -> None:
        self._block.operators.append(Operator("assign", {"X": (source,)}, {"Out": (target,)}))

    def _parameter(self, operator: Any) -> None:
        name = operator["A"][3]
        if not isinstance(name, str):
            raise TypeError("a parameter without a name")
        name = clean(name)
        output = operator["O"]
        self._names[_number(output)] = (name,)
        element, shape = _tensor_type(output.get("TT"))
        # Persistable (else the file of parameters lacks it), stop_gradient, trainable.
        kept = operator.get("OA", [1])[:1] != [0]
        self._block.variables[name] = Variable(name, 7, element, shape, persistable=kept)

    def _operator(self, kind: str, operator: Any, depth: int) -> None:
        kind = _NAMES.get(kind, kind)
        attributes: dict[str, Attribute] = {
            _RENAMED.get(a["N"], a["N"]): _attribute(a["AT"]) for a in operator.get("A", [])
        }
        inputs = self._inputs(operator)
        outputs = tuple(self._name(output) for output in operator["O"])
        if kind == "full_int_array":
            value = attributes.get("value")
            if isinstance(value, tuple):
                self._lists[outputs[0]] = tuple(v for v in value if isinstance(v, int))
        if kind in _LISTS and len(inputs) > 1 and inputs[1] in self._lists:
            attributes[_LISTS[kind]] = self._lists[inputs[1]]
            inputs = inputs[:1]
        names = _PARAMETERS.get(kind, ("X",))
        named: dict[str, tuple[str, ...]] = {
            name: (value,) for name, value in zip(names, inputs, strict=False) if value
        }
        rest = tuple(value for value in inputs[len(names) :] if value)
        if rest:
            named["Others"] = rest
        regions = operator.get("regions", [])
        written = {"Out": outputs} if outputs and not regions else {}
        self._block.operators.append(Operator(kind, named, written, attributes))
        for region in regions:
            for block in region["blocks"]:
                self._operators(block, inputs[1:], outputs, depth + 1)

    def _inputs(self, operator: Any) -> tuple[str, ...]:
        found: list[str] = []
        for value in operator["I"]:
            found += self._names.get(_number(value), (f"%{_number(value)}",))
        return tuple(found)

    def _name(self, value: Any) -> str:
        return self._names.get(_number(value), (f"%{_number(value)}",))[0]


def _number(value: Any) -> int:
    number = value["%"]
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError("a value without a number")
    return number


def _tensor_type(described: Any) -> tuple[int | None, Shape]:
    if not isinstance(described, Mapping) or described.get("#") != "0.t_dtensor":
        return None, ()
    element, shape = described["D"][0]["#"], described["D"][1]
    if len(shape) > _MAX_RANK or not all(isinstance(n, int) for n in shape):
        raise TypeError("a shape that is no list of integers")
    return _TYPES.get(element), tuple(shape)


def _attribute(described: Any) -> Attribute:
    value = described.get("D")
    if isinstance(value, bool | int | float | str):
        return int(value) if isinstance(value, bool) else value
    if not isinstance(value, list):
        return None
    numbers = [v.get("D") if isinstance(v, Mapping) else v for v in value]
    whole = tuple(v for v in numbers if isinstance(v, int) and not isinstance(v, bool))
    return whole if len(whole) == len(numbers) else None
