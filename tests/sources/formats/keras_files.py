"""Small Keras files and TensorFlow.js models, written as Keras and its converters write them."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from filterdb.sources.formats.base import ModelFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Array = np.ndarray[Any, Any]


def layer(
    kind: str, name: str, *inbound: Any, calls: Sequence[Sequence[Any]] = (), **config: Any
) -> dict[str, Any]:
    """A layer of a functional model; `inbound` are names (one call) or `calls` lists of names."""
    many = [list(c) for c in calls] or ([list(inbound)] if inbound else [])
    nodes = [[_reference(i) for i in call] for call in many]
    return {
        "class_name": kind, "name": name, "config": {"name": name, **config},
        "inbound_nodes": nodes,
    }  # fmt: skip


def _reference(source: str | tuple[str, int]) -> list[Any]:
    name, call = (source, 0) if isinstance(source, str) else source
    return [name, call, 0, {}]


def functional(
    name: str, layers: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]
) -> Any:
    return {
        "class_name": "Functional",
        "name": name,
        "config": {
            "name": name,
            "layers": list(layers),
            "input_layers": [[i, 0, 0] for i in inputs],
            "output_layers": [[o, 0, 0] for o in outputs],
        },
    }


def sequential(name: str, layers: Sequence[Any]) -> Any:
    return {
        "class_name": "Sequential",
        "name": name,
        "config": {"name": name, "layers": list(layers)},
    }


def write_keras(
    path: Path,
    groups: Mapping[str, Mapping[str, Array]],
    *,
    config: Any = None,
    backend: str = "tensorflow",
    optimizer: Mapping[str, Array] | None = None,
) -> ModelFile:
    """Write layer groups ({layer: {"layer/kernel:0": array}}) as ``model.save`` does."""
    with h5py.File(path, "w") as root:
        holder = root
        if config is not None:
            root.attrs["model_config"] = json.dumps(config).encode()
            holder = root.create_group("model_weights")
        root.attrs["keras_version"] = b"2.9.0"
        root.attrs["backend"] = backend.encode()
        holder.attrs["layer_names"] = [name.encode() for name in groups]
        # Written in reverse, so that only the lists can tell the order.
        for name, weights in reversed(groups.items()):
            group = holder.create_group(name)
            group.attrs["weight_names"] = [w.encode() for w in weights]
            for weight, values in weights.items():
                group[weight] = values
        for name, values in (optimizer or {}).items():
            root[f"optimizer_weights/{name}"] = values
    return ModelFile(path, name=path.name)


def write_keras_v3(
    path: Path,
    config: Any,
    stores: Mapping[str, Array],
    *,
    names: Mapping[str, str] | None = None,
    compression: int = zipfile.ZIP_STORED,
    extra: Mapping[str, bytes] | None = None,
) -> ModelFile:
    """Write a configuration and {"layers/conv2d/vars/0": array} as Keras 3 does."""
    inner = io.BytesIO()
    with h5py.File(inner, "w") as root:
        for name, values in stores.items():
            root[name] = values
        for group, label in (names or {}).items():
            root.require_group(f"{group}/vars").attrs["name"] = label
    members = {
        "metadata.json": b'{"keras_version": "3.15.1", "date_saved": "2026-01-01@00:00:00"}',
        "config.json": json.dumps(config).encode(),
        "model.weights.h5": inner.getvalue(),
        **(extra or {}),
    }
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            if data:
                archive.writestr(zipfile.ZipInfo(name), data, compression)
    return ModelFile(path, name=path.name)


def kernel(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def conv(name: str, *shape: int, bias: bool = False, seed: int = 0) -> dict[str, Array]:
    weights = {f"{name}/kernel:0": kernel(*shape, seed=seed)}
    if bias:
        weights[f"{name}/bias:0"] = kernel(shape[-1])
    return weights


def norm(name: str, channels: int) -> dict[str, Array]:
    rng = np.random.default_rng(channels)
    leaves = ("gamma", "beta", "moving_mean", "moving_variance")
    return {
        f"{name}/{leaf}:0": rng.uniform(0.5, 1.5, channels).astype(np.float32) for leaf in leaves
    }


def write_tfjs(
    folder: Path,
    weights: Sequence[tuple[dict[str, Any], bytes]],
    topology: Any = None,
    *,
    cuts: Sequence[int] = (),
) -> ModelFile:
    """Write (spec, bytes) pairs into shards cut at byte positions."""
    data = b"".join(b for _, b in weights)
    edges = [0, *cuts, len(data)]
    paths = [f"group1-shard{i + 1}of{len(edges) - 1}.bin" for i in range(len(edges) - 1)]
    for path, start, stop in zip(paths, edges, edges[1:], strict=False):
        (folder / path).write_bytes(data[start:stop])
    manifest = [{"paths": paths, "weights": [s for s, _ in weights]}]
    document: Any = manifest
    if topology is not None:
        document = {"format": "x", "modelTopology": topology, "weightsManifest": manifest}
    main = folder / "model.json"
    main.write_text(json.dumps(document))
    return ModelFile(main, {p: folder / p for p in paths}, "model.json")


def plain(name: str, values: Array) -> tuple[dict[str, Any], bytes]:
    """A weight of a manifest, stored as it is."""
    spec = {"name": name, "shape": list(values.shape), "dtype": values.dtype.name}
    return spec, values.tobytes()
