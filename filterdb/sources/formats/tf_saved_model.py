"""SavedModels: the graph of ``saved_model.pb`` with the variables of the checkpoint beside it.

Also the graph a checkpoint of TensorFlow 1 comes with (``model.ckpt.meta``). Which variable of the
graph is which of the checkpoint is told by the operation that would save them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, MissingCompanionError, SourceError
from filterdb.layers.raw import RawModel, Tensor
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.protobuf_wire import WireReader
from filterdb.sources.formats.tf_bundle import Bundle, read_header, shard_name
from filterdb.sources.formats.tf_checkpoint import network_tensors
from filterdb.sources.formats.tf_frozen import graph_model
from filterdb.sources.formats.tf_meta_graph import MetaGraph, meta_graph, meta_graphs
from filterdb.sources.formats.tf_variables import VARIABLES, choose_graph, variable_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from filterdb.sources.formats.tf_object_graph import ObjectGraph

_META = ".meta"


def sniff(head: bytes, file: ModelFile) -> bool:
    """Tell a SavedModel, or the graph of a checkpoint, by its first fields.

    Parameters
    ----------
    head
        The first 4 KiB.
    file
        The file.

    Returns
    -------
    bool
        True where they are those of a SavedModel, or of a MetaGraphDef in a file named so.
    """
    wire = WireReader(head, where="head")
    try:
        if file.name.endswith(_META):
            tag, position = wire.varint(0, len(head))
            _, position = wire.varint(position, len(head))
            return tag == 0x0A and head[position : position + 1] in (b"\x08", b"\x12", b"\x22")
        if head[:1] != b"\x08" or head[2:3] != b"\x12":
            return False
        length, position = wire.varint(3, len(head))
        tag, position = wire.varint(position, len(head))
        # The producer's name of an ONNX model stands where the first graph does here.
        return length > 64 and tag in (0x0A, 0x12)
    except SourceError:
        return False


def companions(file: ModelFile) -> tuple[str, ...]:
    """Name the checkpoint beside the graph.

    Parameters
    ----------
    file
        The graph, with those companions that are known already.

    Returns
    -------
    tuple of str
        None where the graph has no variables; else the index and, once it is there, its data.

    Raises
    ------
    SourceError
        If the graph or the index is damaged.
    """
    with map_file(file.path) as data:
        found = _chosen(WireReader(data, where=_label(file)), file)
        if not any(o.op in VARIABLES for o in found.library.graph.operations):
            return ()
    stem = _stem(file)
    index = file.companions.get(f"{stem}.index")
    if index is None:
        return (f"{stem}.index",)
    with map_file(index) as data:
        shards = read_header(data, where=index.name).shards
    return (f"{stem}.index", *(shard_name(stem, i, shards) for i in range(shards)))


def read(file: ModelFile) -> RawModel:
    """List variables and constants of a SavedModel, with its graph.

    Parameters
    ----------
    file
        ``saved_model.pb`` or ``….meta``; the checkpoint's files are its companions.

    Returns
    -------
    RawModel
        ``has_edges`` is True.

    Raises
    ------
    SourceError
        If a file is damaged, unsafe or missing.
    """
    where = _label(file)
    with map_file(file.path) as data:
        wire = WireReader(data, where=where)
        found = _chosen(wire, file)
        variables, objects = _variables(file, found)
        handles = variable_keys(found)
        graph, aliases = choose_graph(found, handles, objects)
        size = len(data)
    known = {op: _averaged(key, variables).name for op, key in aliases.items() if key in variables}
    tensors, nodes = graph_model(
        graph, file.path, size, where=where, beside=variables.values(), aliases=known
    )
    return RawModel(
        format="tf_saved_model",
        tensors=tensors,
        nodes=nodes,
        has_edges=True,
        default_layout="HWIO",
        notes=(
            f"TensorFlow {found.version or 'of unknown version'}, tags {', '.join(found.tags)}",
            f"{len(found.library.functions)} functions",
        ),
    )


def _label(file: ModelFile) -> str:
    return file.name or file.path.name


def _stem(file: ModelFile) -> str:
    label = _label(file)
    return label.removesuffix(_META) if label.endswith(_META) else "variables/variables"


def _chosen(wire: WireReader, file: ModelFile) -> MetaGraph:
    if _label(file).endswith(_META):
        return meta_graph(wire, 0, len(wire.data))
    found = meta_graphs(wire)
    if not found:
        raise MalformedFileError(f"{wire.where}: a SavedModel without a graph")
    return next((g for g in found if "serve" in g.tags), found[0])


def _averaged(key: str, variables: Mapping[str, Tensor]) -> Tensor:
    """Return a variable's moving average where that is taken in its place."""
    tensor = variables[key]
    if tensor.skip is not None and tensor.skip[0] == "ema_copy":
        return variables.get(f"{key}/ExponentialMovingAverage", tensor)
    return tensor


def _variables(file: ModelFile, found: MetaGraph) -> tuple[dict[str, Tensor], ObjectGraph | None]:
    if not any(o.op in VARIABLES for o in found.library.graph.operations):
        return {}, None
    name = f"{_stem(file)}.index"
    index = file.companions.get(name)
    if index is None:
        raise MissingCompanionError(f"{_label(file)} needs {name}, which is missing")
    with map_file(index) as data:
        bundle = Bundle(data, _stem(file), file.companions, where=name)
        objects = bundle.object_graph()
        return network_tensors(list(bundle.variables()), objects), objects


READER = FormatReader(
    "tf_saved_model",
    "TensorFlow SavedModel",
    (".pb", _META),
    sniff=sniff,
    read=read,
    companions=companions,
)
