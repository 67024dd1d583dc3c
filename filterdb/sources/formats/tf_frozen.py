"""Frozen TensorFlow graphs: a ``GraphDef`` whose Const operations hold the weights.

TensorFlow.js' first converter wrote the same with the values beside it, in the shards its
``weights_manifest.json`` names.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, SourceError
from filterdb.layers.raw import RawModel, Tensor
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.file_view import check_expansion, map_file
from filterdb.sources.formats.protobuf_wire import WireReader
from filterdb.sources.formats.tf_graph import graph_nodes
from filterdb.sources.formats.tf_graph_proto import GraphParser
from filterdb.sources.formats.tf_inline import inline
from filterdb.sources.formats.tf_operations import Operation
from filterdb.sources.formats.tf_quantised import Range, RangedValues, rewrite
from filterdb.sources.formats.tf_types import Constant, ConstantValues, item_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from filterdb.layers.raw import Node
    from filterdb.sources.formats.tf_graph_proto import Graph, Library
    from filterdb.types import SkipReason

_MANIFEST = "weights_manifest.json"
_SMALL = 8


def sniff(head: bytes, _file: ModelFile) -> bool:
    """Tell a GraphDef by its first operation.

    Parameters
    ----------
    head
        The first 4 KiB.

    Returns
    -------
    bool
        True where the file begins with a named operation.
    """
    wire = WireReader(head, where="head")
    try:
        tag, position = wire.varint(0, len(head))
        if tag != 0x0A:
            return False
        length, position = wire.varint(position, len(head))
        end = min(position + length, len(head))
        words = []
        for wanted in (0x0A, 0x12):
            tag, position = wire.varint(position, end)
            length, position = wire.varint(position, end)
            if tag != wanted or length > end - position:
                return False
            words.append(bytes(head[position : position + length]).decode("ascii"))
            position += length
    except (SourceError, UnicodeDecodeError):
        return False
    name, op = words
    return bool(name) and name.isprintable() and op.replace(">", "a").isidentifier()


def companions(file: ModelFile) -> tuple[str, ...]:
    """Name the files that hold the values, where the graph does not.

    Parameters
    ----------
    file
        The graph, with those companions that are known already.

    Returns
    -------
    tuple of str
        None for a frozen graph; else the manifest and, once it is there, its shards.

    Raises
    ------
    SourceError
        If the graph or the manifest is damaged.
    """
    library, _ = _parse(file)
    if not _stripped(library.graph.constants):
        return ()
    manifest = file.companions.get(_MANIFEST)
    if manifest is None:
        return (_MANIFEST,)
    from filterdb.sources.formats.tfjs import companions as shards

    return (_MANIFEST, *shards(ModelFile(manifest, name=_MANIFEST)))


def read(file: ModelFile) -> RawModel:
    """List the constants of a frozen graph, with the graph.

    Parameters
    ----------
    file
        The graph.

    Returns
    -------
    RawModel
        ``has_edges`` is True.

    Raises
    ------
    SourceError
        If the file is damaged or unsafe, or the values beside it are missing.
    """
    where = file.name or file.path.name
    library, size = _parse(file)
    graph = inline(library)
    beside: tuple[Tensor, ...] = ()
    if _stripped(library.graph.constants):
        beside = _beside(file)
    tensors, nodes = graph_model(graph, file.path, size, beside=beside, where=where)
    n = len(library.functions)
    return RawModel(
        format="tf_graph",
        tensors=tensors,
        nodes=nodes,
        has_edges=True,
        default_layout="HWIO",
        notes=(f"a library of {n} functions",) if n else (),
    )


def _parse(file: ModelFile) -> tuple[Library, int]:
    where = file.name or file.path.name
    with map_file(file.path) as data:
        library = GraphParser(WireReader(data, where=where)).graph(0, len(data))
        if not library.graph.operations:
            raise MalformedFileError(f"{where}: a graph without operations")
        return library, len(data)


def _stripped(constants: Mapping[str, Constant | None]) -> bool:
    """Whether no constant has a value; single ones without are zero."""
    return bool(constants) and all(c is None or not c.pieces for c in constants.values())


def _beside(file: ModelFile) -> tuple[Tensor, ...]:
    from filterdb.errors import MissingCompanionError
    from filterdb.sources.formats.tfjs import read as read_manifest

    manifest = file.companions.get(_MANIFEST)
    if manifest is None:
        raise MissingCompanionError(
            f"{file.name or file.path.name} holds no values; it needs {_MANIFEST}, which is missing"
        )
    return read_manifest(ModelFile(manifest, file.companions, _MANIFEST)).tensors


def graph_model(
    graph: Graph,
    path: Path,
    size: int,
    *,
    where: str,
    beside: Iterable[Tensor] = (),
    aliases: Mapping[str, str] | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Node, ...]]:
    """Turn a graph without calls into tensors and nodes.

    Parameters
    ----------
    graph
        Its operations and constants.
    path, size
        The file the constants lie in.
    where
        Its name, for messages.
    beside
        Tensors kept in other files.
    aliases
        Name of an operation that stands for a variable → the variable's tensor in `beside`.

    Returns
    -------
    tuple of (tuple of Tensor, tuple of Node)
        Constants and the tensors beside; the graph.

    Raises
    ------
    SourceError
        If a constant is damaged or the graph no graph.
    """
    constants = graph.constants
    loaders = {n: ConstantValues(path, c) for n, c in constants.items() if c is not None}

    def scalar(name: str) -> float | None:
        loader = loaders.get(name)
        if loader is None or loader.constant.elements != 1 or not loader.constant.pieces:
            return None
        if item_size(loader.constant.dtype) is None or loader.constant.dtype.startswith("complex"):
            return None
        return float(loader().reshape(()))

    operations, ranges = rewrite(graph.operations, constants, scalar)
    tensors = {t.name: t for t in beside}
    renamed = _conflicts(operations, tensors, aliases)
    for name, constant in constants.items():
        if constant is None or constant.shape == () or (aliases is None and name in tensors):
            continue
        shown = renamed.get(name, name)
        tensors[shown] = _tensor(loaders[name], shown, ranges.get(name), size, where)
    shapes = {n: t.shape for n, t in tensors.items()}
    if aliases is not None:
        operations = [
            _standing(o, renamed, aliases) for o in operations if aliases.get(o.name) != o.name
        ]

    def small_constant(name: str) -> tuple[int, ...] | None:
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype not in ("int32", "int64") or tensor.skip is not None:
            return None
        if not tensor.shape or max(tensor.shape) > _SMALL or len(tensor.shape) > 2:
            return None
        return tuple(int(v) for v in tensor.load().reshape(-1))

    return tuple(tensors.values()), graph_nodes(operations, shapes, small_constant=small_constant)


def _conflicts(
    operations: Iterable[Operation],
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, str] | None,
) -> dict[str, str]:
    """Find other names for operations that are called like a tensor they do not stand for."""
    if aliases is None:
        return {}
    names = {o.name for o in operations}
    renamed: dict[str, str] = {}
    for name in names & tensors.keys():
        if aliases.get(name) != name:
            other = f"{name}/graph"
            while other in names or other in tensors:
                other += "_"
            renamed[name] = other
    return renamed


def _standing(
    operation: Operation, renamed: Mapping[str, str], aliases: Mapping[str, str]
) -> Operation:
    """Let a variable's handle pass on the tensor it stands for."""
    name = renamed.get(operation.name, operation.name)
    if operation.name in aliases:
        return Operation(name, "Identity", (aliases[operation.name],), {})
    if not renamed:
        return operation
    inputs = []
    for value in operation.inputs:
        base, colon, output = value.partition(":")
        inputs.append(f"{renamed.get(base, base)}{colon}{output}")
    return replace(operation, name=name, inputs=tuple(inputs))


def _tensor(
    loader: ConstantValues, name: str, given: Range | None, size: int, where: str
) -> Tensor:
    constant = loader.constant
    width = item_size(constant.dtype)
    skip: tuple[SkipReason, str] | None = None
    if width is None or constant.dtype.startswith("complex"):
        skip = ("unsupported_dtype", f"type {constant.dtype!r}")
    # One stored value may stand for all: a small file must not make a large array.
    check_expansion(constant.elements * (width or 1), size, what=f"{where}: {name}")
    return Tensor(
        name,
        constant.shape,
        constant.dtype,
        loader if given is None else RangedValues(loader, given),
        quantised=given is not None,
        storage=("constant", *constant.pieces[0]) if constant.pieces else None,
        skip=skip,
    )


READER = FormatReader(
    "tf_graph",
    "TensorFlow frozen graph",
    (".pb", ".graphdef"),
    sniff=sniff,
    read=read,
    companions=companions,
)
