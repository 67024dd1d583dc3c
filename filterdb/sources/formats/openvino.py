"""OpenVINO IR: an ``.xml`` of layers and edges, and the ``.bin`` its constants lie in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError
from filterdb.layers.raw import RawModel
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.companion_files import companion_path, file_size
from filterdb.sources.formats.constant_pool import unique_name
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.openvino_graph import NetworkTranslator
from filterdb.sources.formats.openvino_old import blob_shape, blob_type
from filterdb.sources.formats.openvino_values import element_type, stored_constant
from filterdb.sources.formats.openvino_xml import parse_network

if TYPE_CHECKING:
    from filterdb.sources.formats.graph_constants import Constant
    from filterdb.sources.formats.openvino_xml import Layer, Network
    from filterdb.types import Shape

_BEGINNING = re.compile(
    rb"\A(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,200}\?>\s*)?(?:<!--.{0,2000}?-->\s*)?<net[\s>]",
    re.DOTALL | re.IGNORECASE,
)


def sniff(head: bytes, _file: ModelFile) -> bool:
    """Tell whether a file is a network in XML.

    Parameters
    ----------
    head
        The first bytes.

    Returns
    -------
    bool
        True where the first element is ``<net>``.
    """
    return _BEGINNING.match(head) is not None


def companions(file: ModelFile) -> tuple[str, ...]:
    """Name the file the constants are in.

    Parameters
    ----------
    file
        The ``.xml``.

    Returns
    -------
    tuple of str
        Its name with ``.bin`` for ``.xml``.
    """
    return (Path(file.name or file.path.name).with_suffix(".bin").name,)


def read(file: ModelFile) -> RawModel:
    """List the constants and layers of an OpenVINO network.

    Parameters
    ----------
    file
        The ``.xml``, with the ``.bin`` as companion (or beside it).

    Returns
    -------
    RawModel
        Constants carry their layer's name; weights kept in integers come dequantised as the graph
        does it.

    Raises
    ------
    SourceError
        If the network is damaged or unsafe, or its ``.bin`` absent or too short.
    """
    where = file.name or file.path.name
    with map_file(file.path) as data:
        network = parse_network(data, where)
    translator = NetworkTranslator(network, _stored(file, network), where)
    return RawModel(
        format="openvino",
        tensors=translator.tensors(),
        nodes=tuple(translator.nodes),
        has_edges=True,
        # The converter multiplies BatchNorm into the convolution before it.
        folds_batch_norm=True,
        default_layout="OIHW",
        notes=(f"OpenVINO IR version {network.version}, {len(network.layers)} layers",),
    )


def _stored(file: ModelFile, network: Network) -> dict[int, dict[str, Constant]]:
    """Find every range of the ``.bin``: index of the layer → role → constant."""
    ranges = {i: found for i, layer in enumerate(network.layers) if (found := _ranges(layer))}
    if not any(size for roles in ranges.values() for *_, size in roles.values()):
        return {}
    name = next(iter(file.companions), companions(file)[0])
    path = companion_path(file, name, holds="its constants")
    available = file_size(path)
    names: dict[str, int] = {}
    stored: dict[int, dict[str, Constant]] = {}
    for i, roles in ranges.items():
        layer = network.layers[i]
        for role, (element, shape, start, size) in roles.items():
            wanted = layer.name if layer.kind == "Const" else f"{layer.name}.{role}"
            stored.setdefault(i, {})[role] = stored_constant(
                unique_name(wanted, names), element, shape,
                path=path, available=available, start=start, size=size,
            )  # fmt: skip
    return stored


def _ranges(layer: Layer) -> dict[str, tuple[str, Shape, int, int]]:
    found: dict[str, tuple[str, Shape, int, int]] = {}
    if layer.kind == "Const" and "offset" in layer.data:
        data = layer.data
        start, size = (_bytes(layer, data.get(key, "")) for key in ("offset", "size"))
        shape = tuple(_bytes(layer, n) for n in data.get("shape", "").split(",") if n.strip())
        found["value"] = (element_type(data.get("element_type", "")), shape, start, size)
    for role, blob in layer.blobs.items():
        start, size = _bytes(layer, blob.offset), _bytes(layer, blob.size)
        found[role] = (blob_type(layer, blob), blob_shape(layer, blob), start, size)
    return found


def _bytes(layer: Layer, text: str) -> int:
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise MalformedFileError(
            f"layer {layer.name!r}: {text[:32]!r} is no number of bytes or elements"
        )
    return int(text)


READER = FormatReader(
    name="openvino",
    title="OpenVINO IR",
    suffixes=(".xml",),
    sniff=sniff,
    read=read,
    companions=companions,
)
