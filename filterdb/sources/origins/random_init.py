"""``init:timm/arch?seed=0`` — an architecture's random initial weights: the null of every finding.

The weights are written once, as a safetensors file whose metadata lists the modules, so that they
have a hash and a reader like everything else. The bytes depend on architecture, seed and the
versions of timm and torch alone; the cache knows them by those four.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING, Any

from filterdb.errors import SourceError, UnknownNameError
from filterdb.sources.stored import Filled, Sink, Stored

if TYPE_CHECKING:
    from filterdb.sources.origins import Request

#: Key of the metadata under which the module list stands.
MODULES_KEY = "filterdb.modules"
_DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "int32": "I32"}
_ALIGNMENT = 64
#: torch draws from one generator for the whole process: two models built at once would share it.
_DRAWING = Lock()


def obtain(request: Request) -> Stored:
    """Make an architecture's initial weights, or take those made before.

    Parameters
    ----------
    request
        ``init:timm/arch?seed=N``; seed 0 where none is given.

    Returns
    -------
    Stored
        A safetensors file; no network is used.

    Raises
    ------
    UnknownNameError
        Where timm knows no such architecture; names the nearest.
    SourceError
        Where the architecture cannot be built by its name alone.
    """
    arch = request.uri.body.partition("/")[2]
    seed = int(request.uri.parameters.get("seed", "0"))
    uri = replace(request.uri, query=(("seed", str(seed)),))
    name = f"{arch}.seed{seed}.safetensors"

    def fill(sink: Sink) -> Filled:
        request.tell(name, 0, None)
        write_safetensors(_build(arch, seed), sink)
        request.tell(name, sink.bytes, sink.bytes)
        return Filled(name, str(uri))

    key = f"{uri} timm {version('timm')} torch {version('torch')}"
    stored = request.cache.get(key, fill, sha256=request.sha256)
    return replace(stored, name=name, uri=str(uri))


def _build(arch: str, seed: int) -> Any:
    import timm
    import torch

    if not timm.is_model(arch):
        raise UnknownNameError("architecture", arch, timm.list_models(), where="timm")
    # The caller's own random state stays as it was.
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return timm.create_model(arch, pretrained=False).eval()
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise SourceError(f"timm cannot build {arch!r}: {error}") from error


def write_safetensors(model: Any, sink: Sink) -> None:
    """Write a module's state as safetensors, the same bytes each time.

    Parameters
    ----------
    model
        A torch module. Its tensors keep their order of registration, which safetensors' own
        writer would not.
    sink
        Takes the bytes.

    Raises
    ------
    SourceError
        If a tensor is of a type that initial weights never are.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    modules = json.dumps(list_modules(model), separators=(",", ":"))
    header: dict[str, Any] = {"__metadata__": {MODULES_KEY: modules}}
    start = 0
    for name, tensor in state.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in _DTYPES:
            raise SourceError(
                f"tensor {name!r} is of dtype {kind}, which initial weights never are"
            )
        stop = start + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[kind],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    sink.write(len(text).to_bytes(8, "little") + text)
    for tensor in state.values():
        sink.write(tensor.contiguous().numpy().tobytes())


def list_modules(model: Any) -> list[dict[str, Any]]:
    """List a module tree's leaves, and what else owns parameters.

    Parameters
    ----------
    model
        A torch module.

    Returns
    -------
    list of dict
        In order of registration. `name` is the module's path, `type` its class; convolutions add
        kernel_size, in_channels, stride, padding, dilation, groups and transposed; `weight` and
        `bias`, or `gamma`, `beta`, `mean`, `var` and `eps` of a batch norm, name tensors of the
        file.
    """
    return [
        _describe(name, module)
        # Under every name of a module that is used twice, as the state has it.
        for name, module in model.named_modules(remove_duplicate=False)
        if not list(module.children()) or list(module.parameters(recurse=False))
    ]


def _describe(name: str, module: Any) -> dict[str, Any]:
    import torch

    record: dict[str, Any] = {"name": name, "type": type(module).__name__}
    roles = {"weight": "weight", "bias": "bias"}
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        record |= {
            "kernel_size": list(module.kernel_size),
            "in_channels": int(module.in_channels),
            "stride": list(module.stride),
            "dilation": list(module.dilation),
            # "same" depends on the input's size: the file does not say.
            "padding": None if isinstance(module.padding, str) else list(module.padding),
            "groups": int(module.groups),
            "transposed": bool(module.transposed),
        }
    elif getattr(module, "running_mean", None) is not None:
        roles = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}
        record["eps"] = float(module.eps)
    elif isinstance(module, torch.nn.Linear):
        record["in_features"] = int(module.in_features)
    elif isinstance(module, torch.nn.Embedding):
        record["num_embeddings"] = int(module.num_embeddings)
    for role, attribute in roles.items():
        if isinstance(getattr(module, attribute, None), torch.Tensor):
            record[role] = f"{name}.{attribute}" if name else attribute
    return record


ORIGIN = obtain
