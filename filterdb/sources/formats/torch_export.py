"""Programs ``torch.export.save`` writes (``.pt2``): weights as raw bytes, the graph as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from filterdb.errors import MalformedFileError, UnsafeCheckpointError, UnsupportedFormatError
from filterdb.sources.formats.file_view import check_shape
from filterdb.sources.formats.stored_array import StoredArray, span
from filterdb.sources.formats.torch_model import raw_model
from filterdb.sources.formats.torch_parts import Found, Part
from filterdb.sources.formats.torch_tensors import TensorSpec, unreadable
from filterdb.sources.formats.torchscript_code import CodeError
from filterdb.sources.formats.torchscript_ops import Call, Recorder
from filterdb.sources.formats.torchscript_values import UNKNOWN, Flow, Parameter, Value

if TYPE_CHECKING:
    from filterdb.layers.raw import RawModel
    from filterdb.sources.formats.zip_entries import ZipEntries

#: torch._export.serde.schema.ScalarType: numpy's name and the size in bytes.
_TYPES = {
    1: ("uint8", 1), 2: ("int8", 1), 3: ("int16", 2), 4: ("int32", 4), 5: ("int64", 8),
    6: ("float16", 2), 7: ("float32", 4), 8: ("float64", 8), 9: ("complex32", 4),
    10: ("complex64", 8), 11: ("complex128", 16), 12: ("bool", 1), 13: ("bfloat16", 2),
    28: ("uint16", 2), 29: ("float8_e4m3fn", 1), 30: ("float8_e5m2", 1),
}  # fmt: skip
_STRIDED = 7
_MAX_JSON = 160 * 1024 * 1024
#: Names the operators' own schemas use, and ours.
_NAMES = {
    "self": "input", "mat1": "input", "mat2": "weight", "running_mean": "mean",
    "running_var": "var", "indices": "input",
}  # fmt: skip
_NORMS = frozenset({"batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm"})


def find_root(entries: ZipEntries) -> str | None:
    """Return the folder of an exported program, None where there is none."""
    for name in entries.members:
        if name == "archive_format" or name.endswith("/archive_format"):
            return name.removesuffix("archive_format")
    return None


def read_exported(entries: ZipEntries, root: str) -> RawModel:
    """Read an exported program.

    Parameters
    ----------
    entries
        The zip file.
    root
        Its folder in it, with a slash, or "".

    Returns
    -------
    RawModel
        With the graph, has_edges True.

    Raises
    ------
    UnsupportedFormatError
        It is of a version, or holds what, nothing here understands.
    MalformedFileError
        Its parts do not fit one another.
    """
    models = [n for n in entries.members if n.startswith(f"{root}models/") and n.endswith(".json")]
    if len(models) != 1:
        raise UnsupportedFormatError(
            f"{entries.label}: an exported program with {len(models)} models, one is read"
        )
    name = models[0].removeprefix(f"{root}models/").removesuffix(".json")
    found: dict[str, Found] = {}
    for kind in ("weights", "constants"):
        member = f"{root}data/{kind}/{name}_{kind}_config.json"
        if member in entries.members:
            config = _table(_json(entries, member), "config", entries.label)
            for key, entry in config.items():
                where = f"{entries.label}: tensor {key[:80]!r}"
                found[key] = Found(key, _tensor(entries, f"{root}data/{kind}/", entry, where))
    if not found:
        raise UnsupportedFormatError(
            f"{entries.label}: an exported program without weights of its own",
            tip="programs of torch 2.8 and later hold them; export it again",
        )
    program = _table(_json(entries, models[0]), "graph_module", entries.label)
    recorder = Recorder()
    try:
        _record(program, found, recorder)
    except CodeError as error:
        raise UnsafeCheckpointError(f"{entries.label}: {error}") from error
    part = Part(list(found.values()), recorder.nodes)
    return raw_model(part, ("torch exported program",), has_edges=True)


def _json(entries: ZipEntries, member: str) -> Any:
    raw = entries.read(member)
    cost = 240 * raw.count(b"{") + 96 * raw.count(b"[") + 56 * raw.count(b",") + 2 * len(raw)
    if cost > _MAX_JSON:
        raise UnsafeCheckpointError(f"{entries.label}: {member} is larger than any real one")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedFileError(f"{entries.label}: {member} is no JSON: {error}") from error


def _table(value: Any, key: str, label: str) -> dict[str, Any]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise MalformedFileError(f"{label}: the exported program has no {key!r}")
    return found


def _tensor(entries: ZipEntries, folder: str, entry: Any, where: str) -> TensorSpec:
    meta = _table(entry, "tensor_meta", where)
    shape = _numbers(meta.get("sizes"), where)
    strides = _numbers(meta.get("strides"), where)
    (offset,) = _numbers([meta.get("storage_offset")], where)
    dtype, itemsize = _TYPES.get(meta.get("dtype", 0), ("", 0))
    member = f"{folder}{entry.get('path_name')}"
    if not dtype or entry.get("use_pickle") or meta.get("layout") != _STRIDED:
        raise UnsupportedFormatError(f"{where} is pickled, sparse or of an unknown type")
    source = entries.members.get(member)
    count = check_shape(shape, what=where)
    if source is None or len(shape) != len(strides):
        raise MalformedFileError(f"{where} has no bytes, or strides that do not fit its shape")
    if (offset + span(shape, strides)) * itemsize > source.size or count * itemsize > 16 * (
        source.size + 1
    ):
        raise MalformedFileError(f"{where} reaches beyond its {source.size} bytes")
    load = StoredArray(source, offset * itemsize, shape, strides, dtype)
    key = (member, offset, shape, strides, dtype)
    return TensorSpec(shape, dtype, load, count * itemsize, storage=key, skip=unreadable(dtype))


def _numbers(values: Any, where: str) -> tuple[int, ...]:
    numbers = []
    for part in values if isinstance(values, list) else [None]:
        number = part.get("as_int") if isinstance(part, dict) else None
        if type(number) is not int or not 0 <= number < 1 << 48:
            raise MalformedFileError(f"{where} has sizes that are no numbers")
        numbers.append(number)
    return tuple(numbers)


# -- the graph -------------------------------------------------------------------------------------


def _record(program: dict[str, Any], found: dict[str, Found], recorder: Recorder) -> None:
    values: dict[str, Value] = {}
    for spec in _list(_get(_get(program, "signature"), "input_specs")):
        for kind in ("parameter", "buffer", "tensor_constant"):
            stored = _get(spec, kind)
            name = _get(stored, f"{kind}_name")
            if isinstance(name, str) and name in found:
                argument = _get(_get(stored, "arg"), "name")
                values[str(argument)] = Parameter(name, found[name].spec.shape)
    for node in _list(_get(_get(program, "graph"), "nodes")):
        target = _get(node, "target")
        parts = target.split(".") if isinstance(target, str) else []
        # torch.ops.aten.conv2d.default; higher-order operators are not opened.
        name = parts[-2] if len(parts) > 3 else "call"
        given = {}
        for argument in _list(_get(node, "inputs")):
            key = str(_get(argument, "name"))
            given[_named(name, key)] = _value(_get(argument, "arg"), values)
        first = [v for k, v in given.items() if k in ("input", "other", "tensors")]
        plain = name in ("mul", "add", "cat", "stack") or not first
        arguments = list(given.values()) if plain else first[:1]
        rest = {} if plain else {k: v for k, v in given.items() if v is not arguments[0]}
        like = "batch_norm" if name in _NORMS else name
        made = recorder.call(Call(like, "torch", arguments, rest, ""))
        for output in _list(_get(node, "outputs")):
            for tensor in _tensors(output):
                values[tensor] = made


def _named(operator: str, key: str) -> str:
    if operator in _NORMS:
        key = {"weight": "gamma", "bias": "beta"}.get(key, key)
    if operator == "addmm" and key == "self":
        return "bias"
    return _NAMES.get(key, key)


def _value(argument: Any, values: dict[str, Value]) -> Value:
    if not isinstance(argument, dict) or len(argument) != 1:
        return UNKNOWN
    ((kind, content),) = argument.items()
    if kind == "as_tensor":
        name = str(_get(content, "name"))
        return values.get(name, Flow(f"input.{name}"))
    if kind in ("as_tensors", "as_optional_tensors"):
        return [_value({"as_tensor": _get(t, "as_tensor") or t}, values) for t in _list(content)]
    if kind == "as_none":
        return None
    if kind in ("as_int", "as_float", "as_bool", "as_string"):
        return content if type(content) in (int, float, bool, str) else UNKNOWN
    return list(_list(content)) if kind == "as_ints" else UNKNOWN


def _tensors(output: Any) -> list[str]:
    listed = _get(output, "as_tensors")
    parts = _list(listed) if listed is not None else [_get(output, "as_tensor")]
    return [str(_get(part, "name")) for part in parts if part is not None]


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
