"""ncnn models: a ``.param`` text, or its binary form, says what the ``.bin`` beside it holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, MissingCompanionError, UnsafeCheckpointError
from filterdb.layers.raw import SPATIAL_LETTERS, ConvAttributes, Node, RawModel, Tensor
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.ncnn_binary import is_binary, parse_binary
from filterdb.sources.formats.ncnn_param import MAGIC, LayerRecord, parse_param
from filterdb.sources.formats.ncnn_values import Stored, load_stored, locate
from filterdb.sources.formats.ncnn_weights import WEIGHTED, WEIGHTLESS, per_axis, spatial_rank

if TYPE_CHECKING:
    from filterdb.layers.raw import NodeOp
    from filterdb.sources.formats.file_view import ByteSource
    from filterdb.types import Shape, SkipReason

#: The text of the largest real networks is below one megabyte.
_MAX_TEXT = 32 * 1024 * 1024
_IDENTITY = frozenset(
    {"Split", "Noop", "Dropout", "Cast", "Packing", "Quantize", "Dequantize", "Requantize"}
)
_OPS: dict[str, NodeOp] = {
    "InnerProduct": "linear", "LSTM": "linear", "GRU": "linear", "RNN": "linear",
    "MultiHeadAttention": "linear", "Gemm": "linear", "Embed": "embedding",
    "BatchNorm": "batch_norm", "PReLU": "norm", "LayerNorm": "norm", "RMSNorm": "norm",
    "GroupNorm": "norm", "InstanceNorm": "norm", "Normalize": "norm",
}  # fmt: skip
_ELEMENTWISE: dict[int, NodeOp] = {0: "add", 2: "multiply"}


def sniff(head: bytes, _file: ModelFile) -> bool:
    """Tell whether a file is an ncnn model, text or binary.

    Parameters
    ----------
    head
        The first bytes.

    Returns
    -------
    bool
        True where its first line, or first number, is ncnn's magic number.
    """
    return is_binary(head) or head[:16].split(b"\n", 1)[0].strip() == MAGIC.encode()


def companions(file: ModelFile) -> tuple[str, ...]:
    """Name the file the weights are in.

    Parameters
    ----------
    file
        The ``.param`` or ``.param.bin`` file.

    Returns
    -------
    tuple of str
        Its name with ``.bin`` for either.
    """
    name = file.name or file.path.name
    stem = name.removesuffix(".bin") if name.endswith(".param.bin") else name
    return (Path(stem).with_suffix(".bin").name,)


def read(file: ModelFile) -> RawModel:
    """List the layers of an ncnn model and the arrays they read.

    Parameters
    ----------
    file
        The ``.param`` file, with the ``.bin`` as companion (or beside it).

    Returns
    -------
    RawModel
        Tensors are named ``layer.role``.

    Raises
    ------
    SourceError
        If text and weights do not fit together to the last byte.
    """
    where = file.name or file.path.name
    with map_file(file.path) as data:
        if len(data) > _MAX_TEXT:
            raise UnsafeCheckpointError(
                f"{where} is {len(data)} bytes long, {_MAX_TEXT} is the most"
            )
        binary = is_binary(bytes(data[:12]))
        text = "" if binary else bytes(data).decode("utf-8", "replace")
        layers = parse_binary(data, where) if binary else parse_param(text, where)
    weights_path = _weights_path(file)
    reader = _Reader(weights_path, where)
    with map_file(weights_path) as data:
        reader.walk(layers, data)
    return RawModel(
        format="ncnn",
        tensors=tuple(reader.tensors),
        nodes=tuple(reader.nodes),
        has_edges=True,
        default_layout="OIHW",
        notes=(f"ncnn {'binary' if binary else 'text'} model of {len(layers)} layers",),
    )


def _weights_path(file: ModelFile) -> Path:
    name = companions(file)[0]
    path = file.companions.get(name) or file.path.parent / name
    if not path.is_file():
        raise MissingCompanionError(
            f"{file.name or file.path.name} keeps its weights in {name!r}, which is not there",
            tip="fetch it too, into the same folder, or name it under companions",
        )
    return path


class _Reader:
    """Walks layers and weights side by side.

    Parameters
    ----------
    path
        The ``.bin``.
    where
        The model's name, for messages.
    """

    def __init__(self, path: Path, where: str) -> None:
        self.path = path
        self.where = where
        self.tensors: list[Tensor] = []
        self.nodes: list[Node] = []
        self._names: set[str] = set()
        #: Blobs that are stored arrays: blob → (tensor, shape).
        self._constants: dict[str, tuple[str, Shape]] = {}

    def walk(self, layers: list[LayerRecord], data: ByteSource) -> None:
        """Translate every layer.

        Parameters
        ----------
        layers
            In file order.
        data
            The ``.bin``, which they must use up.
        """
        position = 0
        unknown: dict[str, None] = {}
        try:
            for layer in layers:
                if layer.kind not in WEIGHTED and layer.kind not in WEIGHTLESS:
                    unknown[layer.kind] = None
                position = self._layer(layer, data, position)
            if position != len(data):
                raise MalformedFileError(
                    f"{self.where}: its layers read {position} bytes of weights, the file has "
                    f"{len(data)}"
                )
        except MalformedFileError as error:
            if unknown:
                kinds = ", ".join(list(unknown)[:8])
                error.tip = f"layer types filterdb does not know may read weights: {kinds}"
            raise

    def _layer(self, layer: LayerRecord, data: ByteSource, position: int) -> int:
        blocks = WEIGHTED[layer.kind](layer) if layer.kind in WEIGHTED else []
        found: dict[str, Stored] = {}
        for block in blocks:
            what = f"{self.where}, layer {layer.name!r} ({layer.kind}), {block.role}"
            found[block.role] = locate(data, position, block, what)
            position = found[block.role].end
        weights = {
            role: self._tensor(layer, role, found, len(data))
            for role in found
            if not role.endswith("_scale") or layer.kind == "Quantize"
        }
        for role in found:
            if role not in weights:
                self._tensor(layer, role, found, len(data))
        if layer.kind == "MemoryData":
            for blob in layer.outputs:
                if "data" in found:
                    self._constants[blob] = (weights["data"], found["data"].shape)
        elif layer.kind != "Input":
            self._nodes(layer, weights)
        return position

    def _tensor(
        self, layer: LayerRecord, role: str, found: dict[str, Stored], file_size: int
    ) -> str:
        stored = found[role]
        scale = found.get("weight_scale") if role == "weight" else None
        name, n = f"{layer.name}.{role}", 2
        while name in self._names:
            name, n = f"{layer.name}#{n}.{role}", n + 1
        self._names.add(name)
        skip: tuple[SkipReason, str] | None = None
        if "scale" in role and layer.kind != "Scale":
            skip = ("buffer", "scale of quantised values")
        elif stored.encoding == "int8" and scale is None:
            skip = ("missing_scale", "int8 values without a scale")
        self.tensors.append(
            Tensor(
                name=name,
                shape=stored.shape,
                dtype=stored.dtype,
                load=partial(load_stored, self.path, stored, scale, file_size),
                quantised=stored.encoding == "table" or scale is not None,
                storage=("bin", stored.offset),
                skip=skip,
            )
        )
        return name

    def _nodes(self, layer: LayerRecord, weights: dict[str, str]) -> None:
        kind = layer.kind
        inputs = tuple(blob for blob in layer.inputs if blob not in self._constants)
        if kind == "Scale" and weights:
            self._scale_nodes(layer, weights, inputs)
            return
        op: NodeOp = _OPS.get(kind, "identity" if kind in _IDENTITY else "other")
        attributes, dynamic = None, None
        if ("onvolution" in kind and kind in WEIGHTED) or kind == "DeformableConv2D":
            op = "conv_transpose" if kind.startswith("De") and kind[2:3] == "c" else "conv"
            attributes = _attributes(layer)
            dynamic = layer.inputs[1] if "weight" not in weights and len(layer.inputs) > 1 else None
        elif kind == "Bias":
            op, weights = "add", {"constant": weights["bias"]}
        elif kind == "BinaryOp":
            op, weights = self._elementwise(layer)
        elif op == "linear" and "weight" not in weights and not kind.startswith("Multi"):
            op = "other"
        self.nodes.append(
            Node(
                name=layer.name,
                op=op,
                inputs=inputs,
                outputs=layer.outputs,
                weights=weights,
                conv=attributes,
                epsilon=layer.real(1, 0.0) if kind == "BatchNorm" else None,
                dynamic_weight=dynamic,
                source_op=kind,
            )
        )

    def _scale_nodes(
        self, layer: LayerRecord, weights: dict[str, str], inputs: tuple[str, ...]
    ) -> None:
        """Add a Scale layer: a product, and a sum where it has a bias."""
        product = layer.outputs
        if "bias" in weights:
            product = (f"{layer.name}/product",)
            added = {"constant": weights["bias"]}
            last = Node(
                f"{layer.name}/bias", "add", product, layer.outputs, added, source_op="Scale"
            )
        scaled = {"constant": weights["scale"]}
        self.nodes.append(Node(layer.name, "multiply", inputs, product, scaled, source_op="Scale"))
        if "bias" in weights:
            self.nodes.append(last)

    def _elementwise(self, layer: LayerRecord) -> tuple[NodeOp, dict[str, str]]:
        stored = [self._constants[blob] for blob in layer.inputs if blob in self._constants]
        op = _ELEMENTWISE.get(layer.integer(0))
        # One number per channel; scalars and feature maps are something else.
        if op is None or len(stored) != 1 or sum(n != 1 for n in stored[0][1]) != 1:
            return "other", {}
        return op, {"constant": stored[0][0]}


def _attributes(layer: LayerRecord) -> ConvAttributes:
    rank = spatial_rank(layer.kind)
    return ConvAttributes(
        layout="OI" + SPATIAL_LETTERS[rank],
        groups=layer.integer(7, 1) if "DepthWise" in layer.kind else 1,
        stride=per_axis(layer, 3, 1),
        dilation=per_axis(layer, 2, 1),
        padding=_padding(layer, rank),
    )


def _padding(layer: LayerRecord, rank: int) -> tuple[int, ...] | None:
    left = layer.integer(4)
    if left in (-233, -234):
        # SAME, which depends on the input's extent.
        return None
    begin = {"W": left, "H": layer.integer(14, left), "D": layer.integer(24, left)}
    end = {
        "W": layer.integer(15, left),
        "H": layer.integer(16, begin["H"]),
        "D": layer.integer(17, begin["D"]),
    }
    axes = SPATIAL_LETTERS[rank]
    before, after = tuple(begin[a] for a in axes), tuple(end[a] for a in axes)
    return before if before == after else before + after


READER = FormatReader(
    name="ncnn",
    title="ncnn",
    suffixes=(".param",),
    sniff=sniff,
    read=read,
    companions=companions,
)
