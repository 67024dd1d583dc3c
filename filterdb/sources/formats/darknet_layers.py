"""Darknet's layers: the extent of what each emits, and the arrays it keeps, in file order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError, UnsupportedFormatError
from filterdb.sources.formats.darknet_extents import (
    Extent,
    image,
    pooled,
    positive,
    reorganised,
    upsampled,
)

if TYPE_CHECKING:
    from filterdb.sources.formats.darknet_cfg import Section
    from filterdb.types import Shape

#: Sections that hand on what they get, and keep nothing.
_SAME = frozenset(
    {
        "dropout", "softmax", "cost", "activation", "logistic", "l2norm", "normalization", "yolo",
        "region", "detection", "iseg", "contrastive", "empty", "sam", "blank",
    }
)  # fmt: skip
_LIMIT = 1 << 31


@dataclass(frozen=True)
class Part:
    """One convolution, matrix or norm within a layer.

    Parameters
    ----------
    kind
        conv, conv_transpose, linear, batch_norm, local, scale.
    shape
        Of its weight; of its vectors for batch_norm and scale.
    outputs
        Length of its vectors.
    has_norm
        A BatchNorm of its own.
    suffix
        Told apart by this in layers of several parts.
    groups, stride, dilation, padding
        Of a convolution.
    is_flipped
        The weight is stored transposed.
    shared
        Number of the layer whose weights it uses; it stores none.
    """

    kind: str
    shape: Shape
    outputs: int
    has_norm: bool = False
    suffix: str = ""
    groups: int = 1
    stride: Shape = (1, 1)
    dilation: int = 1
    padding: int = 0
    is_flipped: bool = False
    shared: int | None = None


@dataclass
class Layer:
    """A section, understood.

    Parameters
    ----------
    section
        The section.
    sources
        Numbers of the layers it reads; -1 is the network's input.
    emits
        What it emits.
    parts
        What it keeps.
    """

    section: Section
    sources: tuple[int, ...]
    emits: Extent
    parts: list[Part] = field(default_factory=list)


def understand(sections: list[Section], where: str) -> list[Layer]:
    """Follow the extents through the network.

    Parameters
    ----------
    sections
        [net] first.
    where
        The file's name, for messages.

    Returns
    -------
    list of Layer
        One per section behind [net].

    Raises
    ------
    SourceError
        If a section is unknown or does not fit what it reads.
    """
    net = sections[0]
    entry = image(net.integer("channels"), net.integer("height"), net.integer("width"))
    entry = replace(entry, outputs=net.integer("inputs", entry.outputs))
    layers: list[Layer] = []
    for section in sections[1:]:
        before = layers[-1].emits if layers else entry
        try:
            layer = _layer(section, before, layers)
        except MalformedFileError as error:
            raise MalformedFileError(f"{where}: {error.message}", tip=error.tip) from error
        emits = layer.emits
        if max(emits.channels, emits.height, emits.width, emits.outputs >> 16) >= _LIMIT:
            raise MalformedFileError(f"{where}: [{section.kind}] emits absurdly much")
        layers.append(layer)
    return layers


def _layer(section: Section, before: Extent, layers: list[Layer]) -> Layer:
    kind = section.kind
    layer = Layer(section, (section.index - 1,), before)
    if kind in _WEIGHTED:
        _WEIGHTED[kind](section, before, layer)
    elif kind in ("maxpool", "local_avgpool"):
        layer.emits = pooled(section, before)
    elif kind == "avgpool":
        layer.emits = image(before.channels, 1, 1)
    elif kind == "upsample":
        layer.emits = upsampled(section, before)
    elif kind in ("reorg", "reorg3d", "reorg_old"):
        layer.emits = reorganised(section, before)
    elif kind == "crop":
        layer.emits = image(
            before.channels, section.integer("crop_height", 1), section.integer("crop_width", 1)
        )
    elif kind == "route":
        _route(section, layer, layers)
    elif kind in ("shortcut", "scale_channels", "sam"):
        _shortcut(section, before, layer, layers)
    elif kind not in _SAME:
        raise UnsupportedFormatError(
            f"Darknet layer {section.index} (line {section.line}) is of a kind filterdb does not "
            f"know: [{kind[:40]}]",
            tip="whether it keeps weights decides where those of the next layer begin",
        )
    return layer


def _channels(section: Section, before: Extent) -> int:
    if before.channels < 1:
        raise MalformedFileError(
            f"layer {section.index} ([{section.kind}], line {section.line}): the layer before "
            f"emits {before.channels} channels"
        )
    return before.channels


def _inputs(section: Section, before: Extent) -> int:
    if before.outputs < 1:
        raise MalformedFileError(
            f"layer {section.index} ([{section.kind}], line {section.line}): its inputs are "
            f"{before.channels} x {before.height} x {before.width}",
            tip="do width, height and channels stand in [net]?",
        )
    return before.outputs


def _kernel(section: Section, into: int, out: int, **fields: object) -> Part:
    """Return a convolution with the options all convolutions share."""
    size, groups = positive(section, "size", 1), positive(section, "groups", 1)
    if into % groups or out % groups:
        raise MalformedFileError(
            f"layer {section.index} ([{section.kind}], line {section.line}): {into} and {out} "
            f"channels do not divide into {groups} groups"
        )
    stride = positive(section, "stride", 1)
    across, down = section.integer("stride_x", -1), section.integer("stride_y", -1)
    dilation = positive(section, "dilation", 1) if size > 1 else 1
    padding = size // 2 if section.integer("pad") else section.integer("padding")
    part = Part(
        "conv",
        (out, into // groups, size, size),
        out,
        has_norm=bool(section.integer("batch_normalize") or section.integer("cbn")),
        groups=groups,
        stride=(down if down > 0 else stride, across if across > 0 else stride),
        dilation=dilation,
        padding=padding * dilation,
    )
    return replace(part, **fields)  # type: ignore[arg-type]  # fields of Part


def _convolutional(section: Section, before: Extent, layer: Layer) -> None:
    out = positive(section, "filters", 1)
    shared = section.integer("share_index", -1_000_000_000 + 1)
    part = _kernel(section, _channels(section, before), out)
    if "share_index" in section.options:
        shared = shared if shared >= 0 else section.index + shared
        if not 0 <= shared < section.index:
            raise MalformedFileError(f"layer {section.index} shares the weights of layer {shared}")
        part = replace(part, shared=shared)
    layer.parts = [replace(part, is_flipped=bool(section.integer("flipped")))]
    size, pad = part.shape[2], part.padding // part.dilation
    height = (before.height + 2 * pad - size) // part.stride[0] + 1
    width = (before.width + 2 * pad - size) // part.stride[1] + 1
    layer.emits = image(out, height, width)


def _deconvolutional(section: Section, before: Extent, layer: Layer) -> None:
    out, into = positive(section, "filters", 1), _channels(section, before)
    part = _kernel(section, into, out)
    size = part.shape[2]
    layer.parts = [
        replace(part, kind="conv_transpose", shape=(into, out, size, size), groups=1, dilation=1)
    ]
    stride, pad = part.stride[0], part.padding // part.dilation
    height = (before.height - 1) * stride + size - 2 * pad
    width = (before.width - 1) * stride + size - 2 * pad
    layer.emits = image(out, height, width)


def _matrix(section: Section, into: int, out: int, suffix: str = "") -> Part:
    has_norm = bool(section.integer("batch_normalize"))
    return Part("linear", (out, into), out, has_norm=has_norm, suffix=suffix)


def _connected(section: Section, before: Extent, layer: Layer) -> None:
    out = positive(section, "output", 1)
    layer.parts = [_matrix(section, _inputs(section, before), out)]
    layer.emits = image(out, 1, 1)


def _recurrent(section: Section, before: Extent, layer: Layer) -> None:
    into, out = _inputs(section, before), positive(section, "output", 1)
    if section.kind == "rnn":
        hidden = positive(section, "hidden", 1)
        layer.parts = [
            _matrix(section, into, hidden, ".input"),
            _matrix(section, hidden, hidden, ".self"),
            _matrix(section, hidden, out, ".output"),
        ]
    else:
        gates = "zrh" if section.kind == "gru" else "figo"
        layer.parts = [_matrix(section, into, out, f".w{gate}") for gate in gates]
        layer.parts += [_matrix(section, out, out, f".u{gate}") for gate in gates]
    layer.emits = image(out, 1, 1)


def _convolutional_recurrent(section: Section, before: Extent, layer: Layer) -> None:
    into, out = _channels(section, before), positive(section, "output", 1)
    options = {"size": "3", **section.options}
    section = replace(section, options=options)
    if section.kind == "crnn":
        hidden = positive(section, "hidden", 1)
        sizes = [(into, hidden, ".input"), (hidden, hidden, ".self"), (hidden, out, ".output")]
    else:
        sizes = [(out, out, f".v{gate}") for gate in "fio" if section.integer("peephole")]
        sizes += [(into, out, f".w{gate}") for gate in "figo"]
        sizes += [(out, out, f".u{gate}") for gate in "figo"]
    layer.parts = [_kernel(section, a, b, suffix=suffix) for a, b, suffix in sizes]
    layer.emits = image(out, before.height, before.width)


def _local(section: Section, before: Extent, layer: Layer) -> None:
    out, size = positive(section, "filters", 1), positive(section, "size", 1)
    stride, into = positive(section, "stride", 1), _channels(section, before)
    inset = 1 if section.integer("pad") else size
    height, width = (before.height - inset) // stride + 1, (before.width - inset) // stride + 1
    layer.emits = image(out, height, width)
    if layer.emits.outputs < 1:
        _inputs(section, layer.emits)
    layer.parts = [Part("local", (height * width, out, into, size, size), layer.emits.outputs)]


def _batch_norm(section: Section, before: Extent, layer: Layer) -> None:
    channels = _channels(section, before)
    layer.parts = [Part("batch_norm", (channels,), channels)]


def _implicit(section: Section, _before: Extent, layer: Layer) -> None:
    filters, atoms = positive(section, "filters", 128), positive(section, "atoms", 1)
    layer.parts = [Part("scale", (atoms, filters), filters)]
    layer.emits, layer.sources = image(filters, atoms, 1), ()


_WEIGHTED: Mapping[str, Callable[[Section, Extent, Layer], None]] = {
    "convolutional": _convolutional,
    "deconvolutional": _deconvolutional,
    "connected": _connected,
    "rnn": _recurrent,
    "gru": _recurrent,
    "lstm": _recurrent,
    "crnn": _convolutional_recurrent,
    "conv_lstm": _convolutional_recurrent,
    "local": _local,
    "batchnorm": _batch_norm,
    "implicit": _implicit,
}


def _absolute(section: Section, number: int) -> int:
    place = number if number >= 0 else section.index + number
    if not 0 <= place < section.index:
        raise MalformedFileError(
            f"layer {section.index} ([{section.kind}], line {section.line}) reads layer {number}, "
            f"which is not before it"
        )
    return place


def _route(section: Section, layer: Layer, layers: list[Layer]) -> None:
    sources = tuple(_absolute(section, number) for number in section.integers("layers"))
    if not sources:
        raise MalformedFileError(f"layer {section.index} ([route]) names no layers")
    found = [layers[i].emits for i in sources]
    groups = positive(section, "groups", 1)
    layer.sources = sources
    layer.emits = Extent(
        sum(extent.channels for extent in found) // groups,
        found[0].height,
        found[0].width,
        sum(extent.outputs for extent in found) // groups,
    )


def _shortcut(section: Section, before: Extent, layer: Layer, layers: list[Layer]) -> None:
    others = tuple(_absolute(section, number) for number in section.integers("from"))
    layer.sources = (section.index - 1, *others)
    if section.kind != "shortcut":
        # Each channel (or position) of the other layer is scaled by this one's output.
        layer.emits = layers[others[0]].emits if others else before
        return
    weights = {"per_feature": 1, "per_layer": 1, "per_channel": before.channels}
    each = weights.get(section.options.get("weights_type", "none"), 0)
    if each:
        layer.parts = [Part("scale", (len(others) + 1, each), each)]
