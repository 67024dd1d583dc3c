"""Caffe models (``.caffemodel``): the trained network with its topology, in one protocol buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, SourceError
from filterdb.layers.raw import SPATIAL_LETTERS, ConvAttributes, Node, RawModel, Tensor
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.caffe_layers import (
    dense_block_nodes,
    is_convolution,
    n_transitions,
    roles_of,
    scaled_norms,
)
from filterdb.sources.formats.caffe_proto import LayerRecord, NetParser, NetRecord
from filterdb.sources.formats.caffe_values import AveragedValues, BlobValues, values_of
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.protobuf_wire import BYTES, VARINT, WireReader

if TYPE_CHECKING:
    from filterdb.layers.raw import NodeOp
    from filterdb.types import SkipReason

_OPS: dict[str, NodeOp] = {
    "InnerProduct": "linear", "LSTM": "linear", "RNN": "linear", "Recurrent": "linear",
    "Lstm": "linear", "Embed": "embedding", "PReLU": "norm", "Normalize": "norm",
    "LayerNorm": "norm", "BatchNorm": "batch_norm", "CuDNNBatchNorm": "batch_norm",
    "SyncBN": "batch_norm", "BN": "batch_norm",
    "Split": "identity", "Dropout": "identity", "Silence": "identity",
}  # fmt: skip
_VECTORS = frozenset({"bias", "mean", "var", "gamma", "beta", "scale", "scale_factor"})
#: Field of NetParameter → wire type.
_NET_FIELDS = {
    1: (BYTES,), 2: (BYTES,), 3: (BYTES,), 4: (VARINT, BYTES), 5: (VARINT,), 6: (BYTES,),
    7: (VARINT,), 8: (BYTES,), 100: (BYTES,),
}  # fmt: skip
_EPSILON = 1e-5


def sniff(head: bytes, _file: ModelFile) -> bool:
    """Tell whether a file begins like a Caffe network.

    Parameters
    ----------
    head
        The first 4 KiB.

    Returns
    -------
    bool
        True where the first fields are those of a NetParameter, up to the type of its first layer.
    """
    wire = WireReader(head, where="head")
    position = 0
    try:
        while position < len(head):
            tag, position = wire.varint(position, len(head))
            number, kind = tag >> 3, tag & 7
            if kind not in _NET_FIELDS.get(number, ()):
                return False
            value, position = wire.varint(position, len(head))
            if number in (2, 100):
                return _is_layer(wire, position, min(position + value, len(head)), number == 2)
            if kind == BYTES:
                if number in (1, 3) and not _is_text(head[position : position + value]):
                    return False
                position += value
    except SourceError:
        return False
    return False


def _is_layer(wire: WireReader, start: int, end: int, is_v1: bool) -> bool:
    """Whether a layer's type comes up before anything that is not of a layer."""
    position = start
    while position < end:
        tag, position = wire.varint(position, end)
        number, kind = tag >> 3, tag & 7
        value, position = wire.varint(position, end)
        if is_v1 and (number, kind) == (5, VARINT):
            return 0 < value < 256
        if kind != BYTES or number not in ((1, 2, 3, 4) if is_v1 else (1, 2)):
            return False
        if is_v1 and number == 1:
            # V0: a layer within the layer, with its name and type as text.
            return _is_layer(wire, position, min(position + value, end), False)
        if not _is_text(wire.data[position : position + value]):
            return False
        if not is_v1 and number == 2:
            return value > 0
        position += value
    return False


def _is_text(raw: bytes) -> bool:
    try:
        return raw.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False


def read(file: ModelFile) -> RawModel:
    """List the layers of a Caffe model and their arrays.

    Parameters
    ----------
    file
        The ``.caffemodel``.

    Returns
    -------
    RawModel
        Tensors are named ``layer.role``; a Scale behind a BatchNorm is that norm's gamma and beta.

    Raises
    ------
    SourceError
        If the file is damaged or is no Caffe network.
    """
    where = file.name or file.path.name
    with map_file(file.path) as data:
        net, size = NetParser(WireReader(data, where=where)).net(), len(data)
    builder = _Builder(file, size, where)
    builder.build(net)
    return RawModel(
        format="caffe",
        tensors=tuple(builder.tensors),
        nodes=tuple(builder.nodes),
        has_edges=True,
        default_layout="OIHW",
        notes=(f"Caffe network {net.name!r} of {len(net.layers)} layers",),
    )


class _Builder:
    """Turns layers into tensors and nodes.

    Parameters
    ----------
    file
        The file.
    size
        Its bytes.
    where
        Its name, for messages.
    """

    def __init__(self, file: ModelFile, size: int, where: str) -> None:
        self.path, self.size, self.where = file.path, size, where
        self.tensors: list[Tensor] = []
        self.nodes: list[Node] = []
        self._names: set[str] = set()

    def build(self, net: NetRecord) -> None:
        """Translate every layer.

        Parameters
        ----------
        net
            The network.
        """
        norms = scaled_norms(net.layers)
        merged = {scale: norm for norm, scale in norms.items()}
        affine: dict[int, dict[str, str]] = {}
        places: dict[int, int] = {}
        for i, layer in enumerate(net.layers):
            weights = self._tensors(layer)
            if i in merged:
                affine[merged[i]] = {
                    {"scale": "gamma", "bias": "beta"}[role]: name for role, name in weights.items()
                }
            places[i] = len(self.nodes)
            self._nodes(layer, weights, is_merged=i in merged)
        for i, extra in affine.items():
            norm = self.nodes[places[i]]
            self.nodes[places[i]] = Node(
                norm.name, norm.op, norm.inputs, norm.outputs, {**norm.weights, **extra},
                epsilon=norm.epsilon, source_op=norm.source_op,
            )  # fmt: skip

    def _tensors(self, layer: LayerRecord) -> dict[str, str]:
        roles = roles_of(layer)
        found: dict[str, BlobValues] = {}
        for role, blob in zip(roles, layer.blobs, strict=True):
            what = f"{self.where}, layer {layer.name!r} ({layer.kind}), {role}"
            kind = "vector" if role.rsplit("/", 1)[-1] in _VECTORS else "array"
            if role == "weight" and layer.kind in ("InnerProduct", "Embed"):
                kind = "matrix"
            found[role] = values_of(self.path, blob, kind, what=what, file_size=self.size)
        prefix, n = layer.name, 2
        while any(f"{prefix}.{role}" in self._names for role in roles):
            prefix, n = f"{layer.name}#{n}", n + 1
        names = {role: f"{prefix}.{role}" for role in roles}
        factor = found.get("scale_factor")
        if factor is not None and factor.shape != (1,):
            raise MalformedFileError(f"{factor.what} has shape {factor.shape}, expected one number")
        for role, values in found.items():
            load: BlobValues | AveragedValues = values
            if factor is not None and role in ("mean", "var"):
                load = AveragedValues(values, factor)
            skip: tuple[SkipReason, str] | None = None
            if role == "scale_factor":
                skip = ("buffer", "weight of the running statistics")
            self._names.add(names[role])
            self.tensors.append(
                Tensor(
                    names[role],
                    values.shape,
                    values.dtype,
                    load,
                    storage=("blob", *values.blob.parts[0]) if values.blob.parts else None,
                    skip=skip,
                )
            )
        return {role: name for role, name in names.items() if role != "scale_factor"}

    def _nodes(self, layer: LayerRecord, weights: dict[str, str], *, is_merged: bool) -> None:
        inputs, outputs = tuple(layer.bottoms), tuple(layer.tops)
        op: NodeOp = _OPS.get(layer.kind, "other")
        attributes = None
        if layer.kind in ("Scale", "Bias") and weights and not is_merged:
            self._affine(layer, weights)
            return
        if n_transitions(layer):
            self.nodes += dense_block_nodes(layer, weights)
            return
        if is_merged:
            op, weights = "identity", {}
        elif is_convolution(layer):
            op = "conv_transpose" if "deconv" in layer.kind.lower() else "conv"
            attributes = self._attributes(layer)
        elif op == "batch_norm" and not {"mean", "var"} <= weights.keys():
            op = "norm"
        self.nodes.append(
            Node(
                layer.name,
                op,
                inputs,
                outputs,
                weights,
                conv=attributes,
                epsilon=(_EPSILON if layer.epsilon is None else layer.epsilon)
                if op == "batch_norm"
                else None,
                source_op=layer.kind,
            )
        )

    def _affine(self, layer: LayerRecord, weights: dict[str, str]) -> None:
        """Add a Scale or Bias layer: a product, a sum, or one after the other."""
        inputs, outputs = tuple(layer.bottoms), tuple(layer.tops)
        if layer.axis != 1:
            self.nodes.append(Node(layer.name, "norm", inputs, outputs, weights, source_op="Scale"))
            return
        steps: list[tuple[NodeOp, str]] = [
            ("multiply" if role == "scale" else "add", name) for role, name in weights.items()
        ]
        for k, (op, name) in enumerate(steps):
            is_last = k == len(steps) - 1
            after = outputs if is_last else (f"{layer.name}/product",)
            label = layer.name if k == 0 else f"{layer.name}/bias"
            self.nodes.append(
                Node(label, op, inputs, after, {"constant": name}, source_op=layer.kind)
            )
            inputs = after

    def _attributes(self, layer: LayerRecord) -> ConvAttributes:
        shape = layer.blobs[0].shape if layer.blobs else ()
        rank = max(len(shape) - 2, 1) if shape else 2
        letters = SPATIAL_LETTERS.get(rank)
        stated = layer.extents.get("kernel") or layer.pairs.get("kernel")
        kernel = layer.per_axis("kernel", rank, 1)
        if shape and stated and kernel != tuple(shape[2:]):
            raise MalformedFileError(
                f"{self.where}, layer {layer.name!r} ({layer.kind}): kernel {kernel} is stated for "
                f"weights of shape {list(shape)}"
            )
        group = layer.group
        if group == 1 and "depthwise" in layer.kind.lower() and shape[1:2] == (1,):
            # Some forks leave the number of groups to the layer's name.
            group = shape[0]
        is_transposed = "deconv" in layer.kind.lower()
        return ConvAttributes(
            layout=None if letters is None else ("IO" if is_transposed else "OI") + letters,
            groups=group,
            stride=layer.per_axis("stride", rank, 1),
            dilation=layer.per_axis("dilation", rank, 1),
            padding=layer.per_axis("pad", rank, 0),
        )


READER = FormatReader(
    name="caffe",
    title="Caffe",
    suffixes=(".caffemodel",),
    sniff=sniff,
    read=read,
)
