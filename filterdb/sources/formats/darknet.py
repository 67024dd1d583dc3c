"""Darknet models: a ``.cfg`` text that says what the ``.weights`` beside it holds, in order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.errors import MissingCompanionError, UnsafeCheckpointError
from filterdb.layers.raw import ConvAttributes, Node, RawModel, Tensor
from filterdb.sources.formats.base import MAX_TENSORS, FormatReader, ModelFile
from filterdb.sources.formats.darknet_cfg import parse_cfg
from filterdb.sources.formats.darknet_layers import Layer, Part, understand
from filterdb.sources.formats.darknet_values import Slot, looks_like_weights, place, read_header
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.stored_array import FileBytes, StoredArray, span

if TYPE_CHECKING:
    from filterdb.layers.raw import NodeOp
    from filterdb.types import SkipReason

#: Text of the largest real networks is below 100 kilobytes.
_MAX_TEXT = 8 * 1024 * 1024
#: Nothing in it can be matched in two ways: many empty lines take no time.
_FIRST_SECTION = re.compile(rb"(?:\s|[#;][^\n]*+\n)*+\[net(?:work)?\]", re.I)
_WEIGHTS = (".weights", ".backup")
#: What training appends to the name of the configuration.
_STAGE = re.compile(r"_(best|final|last|[0-9]+)$")
#: Files for training begin with the first layers only: darknet53.conv.74.
_PARTIAL = re.compile(r"\.(?:conv\.)?([0-9]{1,5})$")
_EPSILON = 1e-5
_OPS: dict[str, NodeOp] = {
    "conv": "conv", "conv_transpose": "conv_transpose", "linear": "linear",
    "batch_norm": "batch_norm", "local": "other", "scale": "other",
}  # fmt: skip


def sniff(head: bytes, file: ModelFile) -> bool:
    """Tell whether a file is a Darknet configuration, or weights by that suffix.

    Parameters
    ----------
    head
        The first 4 KiB.
    file
        The file.

    Returns
    -------
    bool
        True where [net] is the first section, or a header of weights begins a ``.weights``.
    """
    return _is_cfg(head) or (file.suffix in _WEIGHTS and looks_like_weights(head))


def _is_cfg(head: bytes) -> bool:
    return _FIRST_SECTION.match(head.removeprefix(b"\xef\xbb\xbf")) is not None


def companions(file: ModelFile) -> tuple[str, ...]:
    """Name the other half: weights for a configuration, a configuration for weights.

    Parameters
    ----------
    file
        Either.

    Returns
    -------
    tuple of str
        The first of the usual names that lies beside the file, else the most usual.
    """
    names = _usual_names(file)
    there = [name for name in names if (file.path.parent / name).is_file()]
    return (there[0] if there else names[0],)


def _usual_names(file: ModelFile) -> list[str]:
    name = Path(file.name or file.path.name)
    stem = name.stem
    if name.suffix.lower() not in _WEIGHTS:
        endings = (".weights", "_best.weights", "_final.weights", "_last.weights", ".backup")
        return [stem + ending for ending in endings]
    bare = _STAGE.sub("", stem)
    return list(dict.fromkeys((f"{bare}.cfg", f"{stem}.cfg")))


def read(file: ModelFile) -> RawModel:
    """List the layers of a Darknet model and the arrays they read.

    Parameters
    ----------
    file
        The ``.cfg`` with its ``.weights`` as companion (or beside it), or the other way round.

    Returns
    -------
    RawModel
        Layers are named by kind and number, tensors ``convolutional_3.weight``.

    Raises
    ------
    SourceError
        If text and weights do not fit together to the last byte.
    """
    cfg_path, weights_path, where, weights_name = _halves(file)
    with map_file(cfg_path) as data:
        if len(data) > _MAX_TEXT:
            raise UnsafeCheckpointError(f"{where} holds {len(data)} bytes of text")
        text = bytes(data).decode("utf-8-sig", "replace")
    layers = understand(parse_cfg(text, where), where)
    partial = _PARTIAL.search(weights_name)
    if partial is not None:
        layers = layers[: int(partial[1])]
    if sum(len(layer.parts) for layer in layers) * 5 > MAX_TENSORS:
        raise UnsafeCheckpointError(f"{where} describes more than a million tensors")
    with map_file(weights_path) as data:
        header = read_header(data, weights_name)
        slots = place(layers, header, len(data), weights_name)
    tensors, names = _tensors(slots, weights_path)
    version = ".".join(map(str, header.version))
    return RawModel(
        format="darknet",
        tensors=tuple(tensors),
        nodes=tuple(_nodes(layers, names)),
        has_edges=True,
        default_layout="OIHW",
        notes=(f"Darknet network of {len(layers)} layers, weights of version {version}",),
    )


def _halves(file: ModelFile) -> tuple[Path, Path, str, str]:
    """Return paths and names of configuration and weights."""
    name = file.name or file.path.name
    with map_file(file.path) as data:
        is_cfg = file.suffix not in _WEIGHTS or _is_cfg(bytes(data[:4096]))
    wanted = companions(file)[0]
    given = dict(file.companions)
    if wanted in given or not given:
        other, path = wanted, given.get(wanted, file.path.parent / wanted)
    else:
        other, path = next(iter(given.items()))
    if not path.is_file():
        usual = ", ".join(_usual_names(file))
        holds = "the layers without their weights" if is_cfg else "numbers without their layers"
        raise MissingCompanionError(
            f"{name} holds {holds}: expected {other!r} beside it, which is not there",
            tip=f"put it there, or name it under companions (usual names: {usual})",
        )
    return (file.path, path, name, other) if is_cfg else (path, file.path, other, name)


def _tensors(slots: list[Slot], path: Path) -> tuple[list[Tensor], dict[tuple[str, str], str]]:
    """Return the tensors, and their names by (layer's name with suffix, role)."""
    tensors: list[Tensor] = []
    names: dict[tuple[str, str], str] = {}
    for slot in slots:
        label = slot.layer.section.name + slot.part.suffix
        name = names[label, slot.role] = f"{label}.{slot.role}"
        size = 4 * span(slot.shape, slot.strides)
        source = FileBytes(path, slot.offset, size)
        skip: tuple[SkipReason, str] | None = None
        if slot.part.kind == "local" and slot.role == "weight":
            skip = ("unknown_rank", "a kernel of its own for every position")
        tensors.append(
            Tensor(
                name,
                slot.shape,
                "float32",
                StoredArray(source, 0, slot.shape, slot.strides, "float32"),
                storage=("weights", slot.offset),
                skip=skip,
            )
        )
    return tensors, names


def _nodes(layers: list[Layer], names: dict[tuple[str, str], str]) -> list[Node]:
    nodes: list[Node] = []
    kinds = {layer.section.index: layer.section.name for layer in layers}
    for layer in layers:
        section = layer.section
        inputs = tuple(_activation(i) for i in layer.sources)
        final = (_activation(section.index),)
        if not layer.parts:
            op: NodeOp = "identity" if section.kind == "dropout" else "other"
            nodes.append(Node(section.name, op, inputs, final, source_op=section.kind))
            continue
        ends: list[str] = []
        for k, part in enumerate(layer.parts):
            label = section.name + part.suffix
            source = inputs if k == 0 or part.suffix.startswith((".w", ".v")) else tuple(ends[-1:])
            out = final[0] if len(layer.parts) == 1 else f"{section.index}{part.suffix}"
            owner = label if part.shared is None else kinds.get(part.shared, "")
            nodes += _part_nodes(section.kind, label, owner, part, source, out, names)
            ends.append(out)
        if len(layer.parts) > 1:
            nodes.append(Node(section.name, "other", tuple(ends), final, source_op=section.kind))
    return nodes


def _activation(index: int) -> str:
    return "data" if index < 0 else str(index)


def _part_nodes(
    kind: str,
    label: str,
    owner: str,
    part: Part,
    inputs: tuple[str, ...],
    out: str,
    names: dict[tuple[str, str], str],
) -> list[Node]:
    def named(*roles: str) -> dict[str, str]:
        return {role: names[owner, role] for role in roles if (owner, role) in names}

    op = _OPS[part.kind]
    if part.kind in ("batch_norm", "scale"):
        found = named("gamma", "beta", "mean", "var", "constant")
        epsilon = _EPSILON if part.kind == "batch_norm" else None
        return [Node(label, op, inputs, (out,), found, epsilon=epsilon, source_op=kind)]
    attributes = None
    if op in ("conv", "conv_transpose"):
        attributes = ConvAttributes(
            layout="IOHW" if op == "conv_transpose" else "OIHW",
            groups=part.groups,
            stride=part.stride,
            dilation=(part.dilation, part.dilation),
            padding=(part.padding, part.padding),
        )
    between = f"{out}/sum" if part.has_norm else out
    nodes = [
        Node(
            label, op, inputs, (between,), named("weight", "bias"), conv=attributes, source_op=kind
        )
    ]
    if part.has_norm:
        affine = named("gamma", "beta", "mean", "var")
        nodes.append(
            Node(
                f"{label}/batch_norm", "batch_norm", (between,), (out,), affine,
                epsilon=_EPSILON, source_op="batch_normalize",
            )
        )  # fmt: skip
    return nodes


READER = FormatReader(
    name="darknet",
    title="Darknet",
    suffixes=(".cfg", ".weights", ".backup"),
    sniff=sniff,
    read=read,
    companions=companions,
)
