"""OpenVINO's ``.xml``: layers, ports and edges, read as a stream with every part bounded.

No document type is allowed, so there are no entities to expand and nothing outside to fetch; what
no reader needs (run-time information, conversion parameters) is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.parsers import expat

from filterdb.errors import MalformedFileError, UnsafeCheckpointError, UnsupportedFormatError
from filterdb.sources.formats.memory_room import Room

if TYPE_CHECKING:
    from filterdb.sources.formats.file_view import ByteSource
    from filterdb.types import Shape

#: The text of the largest real networks is below ten megabytes.
MAX_TEXT = 64 * 1024 * 1024
_MAX_DEPTH = 64
#: Memory for what is made of the text; a layer with its node takes two or three kilobytes.
_FLAT = 128 * 1024 * 1024
_LAYER, _LINK, _TEXT = 3000, 500, 2
_MAX_EXTENTS = 32
_MAX_DIGITS = 20
_CHUNK = 1 << 16
_IGNORED = frozenset(
    {
        "rt_info",
        "meta_data",
        "quantization_parameters",
        "statistics",
        "cli_parameters",
        "pre-process",
    }
)
_BODIES = frozenset({"body", "then_body", "else_body"})


@dataclass(frozen=True)
class Blob:
    """A range of the ``.bin``, as old versions state it."""

    offset: str
    size: str
    precision: str


@dataclass(frozen=True)
class PortMap:
    """A port of a loop or branch, and the layer of its body that stands for it."""

    body: str
    is_input: bool
    external: str
    internal: str
    #: A loop hands on one slice at a time.
    sliced: bool


@dataclass
class Layer:
    """One layer; ports are known by their ids, outputs by their extents, too."""

    scope: int
    identity: str
    name: str
    kind: str
    version: str
    precision: str
    data: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: dict[str, Shape] = field(default_factory=dict)
    #: Extents of the inputs, which old versions need.
    input_shapes: list[Shape] = field(default_factory=list)
    blobs: dict[str, Blob] = field(default_factory=dict)
    #: How the ports of a loop or branch meet the layers of its bodies.
    maps: list[PortMap] = field(default_factory=list)
    #: Which body ("then", "else", "" of a loop), and the scope of its layers.
    bodies: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Network:
    """A network; scope 0 is its own, others are bodies of loops and branches."""

    name: str = ""
    version: int = 0
    layers: list[Layer] = field(default_factory=list)
    #: (scope, layer, input port) → (layer, output port).
    edges: dict[tuple[int, str, str], tuple[str, str]] = field(default_factory=dict)


def parse_network(data: ByteSource, where: str) -> Network:
    """Parse an ``.xml``.

    Parameters
    ----------
    data
        Its bytes.
    where
        Its name, for messages.

    Returns
    -------
    Network
        Layers in file order.

    Raises
    ------
    MalformedFileError
        If it is no well-formed XML, or breaks the rules of an IR.
    UnsafeCheckpointError
        If it declares a document type, or breaks a bound.
    UnsupportedFormatError
        If it is something else in XML.
    """
    if len(data) > MAX_TEXT:
        raise UnsafeCheckpointError(f"{where} holds {len(data):,} bytes of XML")
    builder = _Builder(where, Room(len(data), flat=_FLAT, where=where))
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.refuse
    parser.EntityDeclHandler = builder.refuse
    parser.ExternalEntityRefHandler = builder.refuse
    try:
        for start in range(0, len(data), _CHUNK):
            parser.Parse(bytes(data[start : start + _CHUNK]), False)
        parser.Parse(b"", True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        if isinstance(error, MalformedFileError | UnsafeCheckpointError | UnsupportedFormatError):
            raise
        raise MalformedFileError(
            f"{where} is no well-formed XML: {error}", tip="was the download cut short?"
        ) from error
    return builder.network


class _Builder:
    """Collects a network from the parser's events."""

    def __init__(self, where: str, room: Room) -> None:
        self.where = where
        self.room = room
        self.network = Network()
        self._tags: list[str] = []
        self._ignored = 0
        self._scopes = [0]
        self._n_scopes = 1
        self._open: list[Layer] = []
        self._extents: list[int] = []
        self._text: str | None = None

    def refuse(self, *_arguments: object) -> int:
        """Refuse document types and entities."""
        raise UnsafeCheckpointError(
            f"{self.where} declares a document type or entities, which no network needs"
        )

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Begin an element."""
        if self._ignored:
            self._ignored += 1
            return
        if len(self._tags) >= _MAX_DEPTH:
            raise UnsafeCheckpointError(f"{self.where} nests more than {_MAX_DEPTH} elements")
        parent = self._tags[-1] if self._tags else ""
        self._tags.append(tag)
        if not parent:
            self._root(tag, attributes)
        elif tag in _IGNORED:
            self._tags.pop()
            self._ignored = 1
        elif tag == "layer" and parent == "layers":
            self._layer(attributes)
        elif tag == "edge" and parent == "edges":
            self._edge(attributes)
        elif self._open:
            self._inside(tag, parent, attributes)

    def end(self, tag: str) -> None:
        """End an element."""
        if self._ignored:
            self._ignored -= 1
            return
        self._tags.pop()
        if tag == "layer" and self._tags[-1:] == ["layers"]:
            self._open.pop()
        elif tag in _BODIES and self._tags[-1:] == ["layer"]:
            self._scopes.pop()
        elif tag == "dim" and self._text is not None:
            self._extents.append(self._integer(self._text))
            self._text = None
            if len(self._extents) > _MAX_EXTENTS:
                raise MalformedFileError(f"{self.where}: a port of more than {_MAX_EXTENTS} axes")
        elif tag == "port" and self._open:
            self._port_ends()

    def text(self, text: str) -> None:
        """Collect the digits of an extent."""
        if self._text is not None and not self._ignored:
            self._text += text
            if len(self._text) > 256:
                raise MalformedFileError(f"{self.where}: an extent of {len(self._text)} characters")

    def _root(self, tag: str, attributes: dict[str, str]) -> None:
        if tag.lower() != "net":
            raise UnsupportedFormatError(
                f"{self.where} is XML and no OpenVINO network: expected <net>, got <{tag[:64]}>"
            )
        self.network.name = attributes.get("name", "")[:256]
        version = attributes.get("version", "")
        self.network.version = int(version) if version.isdigit() and len(version) < 4 else 0

    def _layer(self, attributes: dict[str, str]) -> None:
        self.room.take(_LAYER)
        identity = attributes.get("id", "")[:_MAX_DIGITS]
        layer = Layer(
            scope=self._scopes[-1],
            identity=identity,
            name=attributes.get("name", "")[:4096] or f"layer {identity}",
            kind=attributes.get("type", "")[:128],
            version=attributes.get("version", "")[:32],
            precision=attributes.get("precision", "")[:32],
        )
        self.network.layers.append(layer)
        self._open.append(layer)

    def _edge(self, attributes: dict[str, str]) -> None:
        self.room.take(_LINK)
        names = ("from-layer", "from-port", "to-layer", "to-port")
        source, source_port, target, target_port = (
            attributes.get(name, "")[:_MAX_DIGITS] for name in names
        )
        key = (self._scopes[-1], target, target_port)
        if key in self.network.edges:
            raise MalformedFileError(
                f"{self.where}: two edges end at port {target_port!r} of layer {target!r}"
            )
        self.network.edges[key] = (source, source_port)

    def _inside(self, tag: str, parent: str, attributes: dict[str, str]) -> None:
        """Handle an element inside of a layer."""
        layer = self._open[-1]
        if parent == "layer":
            if tag in _BODIES:
                self._scopes.append(self._n_scopes)
                layer.bodies.append((tag.removesuffix("body").rstrip("_"), self._n_scopes))
                self._n_scopes += 1
            elif tag == "data" or tag.endswith("_data"):
                self.room.take(sum(_LINK + _TEXT * len(v) for v in attributes.values()))
                layer.data.update({k: v for k, v in attributes.items() if len(v) <= 4096})
            elif tag in ("weights", "biases"):
                self._blob(layer, tag, attributes)
        elif parent == "blobs":
            self._blob(layer, tag, attributes)
        elif tag == "port" and parent in ("input", "output"):
            self.room.take(_LINK)
            identity = attributes.get("id", "")[:_MAX_DIGITS]
            if parent == "input":
                layer.inputs.append(identity)
            else:
                layer.outputs[identity] = ()
            self._extents = []
        elif tag == "dim" and parent == "port":
            self._text = ""
        elif parent.endswith("port_map") and tag in ("input", "output"):
            self.room.take(_LINK)
            layer.maps.append(
                PortMap(
                    body=parent.removesuffix("port_map").rstrip("_"),
                    is_input=tag == "input",
                    external=attributes.get("external_port_id", "")[:_MAX_DIGITS],
                    internal=attributes.get("internal_layer_id", "")[:_MAX_DIGITS],
                    sliced="axis" in attributes,
                )
            )

    def _port_ends(self) -> None:
        layer = self._open[-1]
        shape = tuple(self._extents)
        if self._tags[-1:] == ["input"]:
            layer.input_shapes.append(shape)
        elif self._tags[-1:] == ["output"] and layer.outputs:
            layer.outputs[next(reversed(layer.outputs))] = shape

    def _blob(self, layer: Layer, role: str, attributes: dict[str, str]) -> None:
        self.room.take(_LINK)
        values = [attributes.get(key, "")[:_MAX_DIGITS] for key in ("offset", "size", "precision")]
        layer.blobs[role[:64]] = Blob(*values)

    def _integer(self, text: str) -> int:
        text = text.strip()
        digits = text.removeprefix("-")
        if not digits.isascii() or not digits.isdigit() or len(digits) > _MAX_DIGITS:
            raise MalformedFileError(f"{self.where}: {text[:32]!r} is no extent of a port")
        return int(text)
