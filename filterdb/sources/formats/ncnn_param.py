"""ncnn's ``.param`` text: one layer a line, parameters as ``id=value``."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from filterdb.errors import MalformedFileError, UnsafeCheckpointError, UnsupportedFormatError
from filterdb.sources.formats.base import MAX_TENSORS
from filterdb.sources.formats.memory_room import Room

if TYPE_CHECKING:
    from collections.abc import Mapping

#: First line of every text file since 2017.
MAGIC = "7767517"
_MAX_BLOBS = 100_000
#: Array parameters carry their id as −23300 − id.
ARRAY = -23300
#: Bytes of memory that may be taken for layers, beside as many as the file has; and what a layer
#: takes, with its node and tensors, and a parameter or blob name.
ROOM, LAYER_BYTES, PARAMETER_BYTES = 160 * 1024**2, 2500, 120

Parameter: TypeAlias = float | int | tuple[float | int, ...]


@dataclass(frozen=True)
class LayerRecord:
    """One line of the file.

    Parameters
    ----------
    kind
        ncnn's layer type.
    name
        Its name.
    inputs, outputs
        Blob names.
    parameters
        By id.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[int, Parameter]

    def integer(self, key: int, default: int = 0) -> int:
        """Return an integer parameter.

        Parameters
        ----------
        key
            Its id.
        default
            ncnn's default.

        Returns
        -------
        int
            Its value.

        Raises
        ------
        MalformedFileError
            If it is not finite or has more than 32 bits.
        """
        value = self.parameters.get(key, default)
        if isinstance(value, tuple):
            return default
        if not abs(value) < 1 << 31:
            raise MalformedFileError(
                f"ncnn layer {self.name!r} ({self.kind}): parameter {key} is no integer: {value}"
            )
        return int(value)

    def real(self, key: int, default: float) -> float:
        """Return a float parameter.

        Parameters
        ----------
        key
            Its id.
        default
            ncnn's default.

        Returns
        -------
        float
            Its value.
        """
        value = self.parameters.get(key, default)
        return default if isinstance(value, tuple) else float(value)


def parse_param(text: str, where: str) -> list[LayerRecord]:
    """Parse a ``.param`` file.

    Parameters
    ----------
    text
        Its content.
    where
        Its name, for messages.

    Returns
    -------
    list of LayerRecord
        In file order.

    Raises
    ------
    UnsupportedFormatError
        If it does not begin with ncnn's magic number.
    MalformedFileError
        If a line breaks the rules, or lines are missing.
    UnsafeCheckpointError
        If it states more layers than any network has.
    """
    lines = iter(io.StringIO(text))
    if next(lines, "").strip() != MAGIC:
        raise UnsupportedFormatError(
            f"{where} is no ncnn text model: expected {MAGIC} in its first line",
        )
    counts = next(lines, "")[:100].split()
    if len(counts) != 2 or not all(c.isascii() and c.isdigit() and len(c) < 10 for c in counts):
        raise MalformedFileError(f"{where}, line 2: expected the numbers of layers and blobs")
    n_layers = int(counts[0])
    if n_layers > MAX_TENSORS:
        raise UnsafeCheckpointError(f"{where} announces {n_layers} layers")
    room = Room(len(text), flat=ROOM, where=where)
    layers: list[LayerRecord] = []
    for number, line in enumerate(lines, start=3):
        if line.strip():
            words = line.split()
            room.take(LAYER_BYTES + PARAMETER_BYTES * len(words))
            layers.append(_layer(words, where, number))
    if len(layers) != n_layers:
        raise MalformedFileError(
            f"{where} announces {n_layers} layers and holds {len(layers)}",
            tip="was the download cut short?",
        )
    return layers


def _layer(words: list[str], where: str, number: int) -> LayerRecord:
    broken = MalformedFileError(f"{where}, line {number}: not an ncnn layer: {words[:6]}")
    if len(words) < 4:
        raise broken
    kind, name = words[:2]
    n_inputs, n_outputs = _number(words[2], broken), _number(words[3], broken)
    if not isinstance(n_inputs, int) or not isinstance(n_outputs, int):
        raise broken
    blobs = 4 + n_inputs + n_outputs
    if min(n_inputs, n_outputs) < 0 or blobs > min(len(words), _MAX_BLOBS):
        raise broken
    parameters: dict[int, Parameter] = {}
    for word in words[blobs:]:
        key_text, equals, value = word.partition("=")
        key = _number(key_text, broken)
        if not equals or not isinstance(key, int):
            raise broken
        if key <= ARRAY:
            items = value.split(",")
            parameters[ARRAY - key] = tuple(_number(item, None) for item in items[1:])
        else:
            parameters[key] = _number(value, None)
    inputs, outputs = words[4 : 4 + n_inputs], words[4 + n_inputs : blobs]
    return LayerRecord(kind, name, tuple(inputs), tuple(outputs), parameters)


def _number(text: str, broken: MalformedFileError | None) -> float | int:
    """Read a number; text parameters, which no weight depends on, count as 0."""
    try:
        return int(text) if len(text) < 12 and text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        if broken is not None:
            raise broken from None
        return 0
