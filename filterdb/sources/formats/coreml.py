"""Core ML models: neural networks, pipelines of them, and ML Programs with their weight file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from filterdb.errors import SourceError, UnsafeCheckpointError
from filterdb.layers.raw import RawModel
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.coreml_fields import Fields
from filterdb.sources.formats.coreml_mil import Operation, ProgramParser
from filterdb.sources.formats.coreml_network import Contents, NetworkReader
from filterdb.sources.formats.coreml_program import ProgramTranslator
from filterdb.sources.formats.coreml_values import blob_name
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.protobuf_wire import BYTES, VARINT, WireReader

if TYPE_CHECKING:
    from filterdb.sources.formats.file_view import ByteSource

_NETWORKS = frozenset({303, 403, 500})
_PIPELINES = frozenset({200, 201, 202})
_PROGRAM = 502
#: Other kinds of models: trees, linear models, Apple's own.
_OTHERS = frozenset(
    {300, 301, 302, 304, 400, 401, 402, 404, 501, 555, 556, 560, 600, 601, 602, 603, 604, 606, 607,
     609, 610, 900, 2000, 2001, 2002, 2003, 2004, 2005, 2006, 3000}
)  # fmt: skip
_KINDS = _NETWORKS | _PIPELINES | _OTHERS | {_PROGRAM}
_MAX_VERSION = 64
_MAX_PIPELINE_DEPTH = 8
_MAX_PARTS = 1000


def sniff(head: bytes, file: ModelFile) -> bool:
    """Tell whether a file begins like a Core ML model.

    Parameters
    ----------
    head
        The first bytes.
    file
        The file; a description longer than `head` is passed over.

    Returns
    -------
    bool
        True where a version, a description and a kind of model follow one another.
    """
    if head[:1] != b"\x08":
        return False
    try:
        if len(head) < 4096:
            return _begins(head)
        with map_file(file.path) as data:
            return _begins(data)
    except (SourceError, ValueError):
        return False


def _begins(data: ByteSource) -> bool:
    wire = WireReader(data, where="head")
    seen: set[int] = set()
    for number, kind, value, end in wire.fields(0, len(data)):
        if number == 1 and (kind != VARINT or not 0 < value <= _MAX_VERSION):
            return False
        if number == 2 and (kind != BYTES or (end > value and not _describes(data[value]))):
            return False
        if number in _KINDS:
            return kind == BYTES and 1 in seen
        if number not in (1, 2, 10) or number in seen:
            return False
        seen.add(number)
    return False


def _describes(tag: int) -> bool:
    # Inputs, outputs, names of features, states, metadata: fields of a ModelDescription.
    return (tag & 7 == BYTES and tag >> 3 in (1, 10, 11, 12, 13)) or tag >= 0x80


def read(file: ModelFile) -> RawModel:
    """List the weights and layers of a Core ML model.

    Parameters
    ----------
    file
        The ``.mlmodel``, with the weight file of an ML Program as companion (or beside it).

    Returns
    -------
    RawModel
        ``has_edges`` is True; the parts of a pipeline are joined by the features they hand on.

    Raises
    ------
    SourceError
        If the file is damaged or unsafe, or its weight file absent.
    """
    with map_file(file.path) as data:
        model = _Model(WireReader(data, where=file.name or file.path.name), file)
        model.read(0, len(data), "", {}, 0)
    contents = model.contents
    return RawModel(
        format="coreml",
        tensors=tuple(contents.tensors),
        nodes=tuple(contents.nodes),
        has_edges=True,
        # The converter to ML Programs multiplies BatchNorm into the convolution before it.
        folds_batch_norm=model.programs > 0,
        default_layout="OIHW",
        notes=(f"Core ML specification version {model.version}", *model.notes),
    )


def companions(file: ModelFile) -> tuple[str, ...]:
    """Name the weight files of an ML Program.

    Parameters
    ----------
    file
        The ``.mlmodel``.

    Returns
    -------
    tuple of str
        Relative to the model's folder, in order of first use; empty for neural networks.

    Raises
    ------
    SourceError
        If the file is damaged, or names a place outside its folder.
    """
    label = file.name or file.path.name
    with map_file(file.path) as data:
        model = _Model(WireReader(data, where=label), file)
        return tuple(dict.fromkeys(blob_name(n, label) for n in model.blobs(0, len(data), 0)))


@dataclass
class _Model:
    """One ``Model`` message, or the file's outermost and what lies in it."""

    wire: WireReader
    file: ModelFile
    contents: Contents = field(default_factory=Contents)
    version: int = 0
    programs: int = 0
    notes: list[str] = field(default_factory=list)

    def read(self, start: int, end: int, prefix: str, features: dict[str, str], depth: int) -> None:
        """Read a model; `features` maps the names of features to the values that carry them."""
        fields = Fields(self.wire, start, end)
        self.version = max(self.version, fields.integer(1))
        described = fields.message(2)
        inputs = _features(described, 1)
        carried = {name: features.get(name, name) for name in inputs}

        def value(name: str) -> str:
            return carried.get(name, f"{prefix}{name}")

        kind, model = next(((n, m) for n, m in fields.messages() if n in _KINDS), (0, None))
        if model is None:
            return
        if kind in _PIPELINES:
            self._pipeline(model, kind, prefix, features, depth)
            return
        if kind in _NETWORKS:
            NetworkReader(
                self.wire, self.file.path, self.contents, prefix=prefix, value=value
            ).network(model.start, model.end)
        elif kind == _PROGRAM:
            self._program(model, prefix, value)
        else:
            self.notes.append(f"a model of kind {kind} has no layers")
        features.update((name, value(name)) for name in _features(described, 10))

    def _program(self, model: Fields, prefix: str, value: Callable[[str], str]) -> None:
        self.programs += 1
        functions = ProgramParser(self.wire).functions(model.start, model.end)
        for name, operations in functions.items():
            inner = prefix if len(functions) == 1 else f"{prefix}{name}/"
            ProgramTranslator(
                self.wire, self.file, self.contents, prefix=inner, value=value
            ).function(operations)

    def _pipeline(
        self, model: Fields, kind: int, prefix: str, features: dict[str, str], depth: int
    ) -> None:
        if depth >= _MAX_PIPELINE_DEPTH:
            raise UnsafeCheckpointError(
                f"{self.wire.where} nests more than {_MAX_PIPELINE_DEPTH} pipelines"
            )
        for i, part in enumerate(_parts(model, kind)):
            self.read(part.start, part.end, f"{prefix}{i}/", features, depth + 1)

    def blobs(self, start: int, end: int, depth: int) -> list[str]:
        """Name the weight files, as the programs name them."""
        if depth > _MAX_PIPELINE_DEPTH:
            raise UnsafeCheckpointError(f"{self.wire.where} nests too many pipelines")
        found: list[str] = []
        for number, model in Fields(self.wire, start, end).messages():
            if number == _PROGRAM:
                functions = ProgramParser(self.wire).functions(model.start, model.end)
                for operations in functions.values():
                    found += _blobs(operations)
            elif number in _PIPELINES:
                for part in _parts(model, number):
                    found += self.blobs(part.start, part.end, depth + 1)
        return found


def _parts(model: Fields, kind: int) -> list[Fields]:
    pipeline = model if kind == 202 else model.message(1)
    parts: list[Fields] = []
    for number, part in () if pipeline is None else pipeline.messages():
        if number == 1:
            parts.append(part)
        if len(parts) > _MAX_PARTS:
            raise UnsafeCheckpointError(
                f"{model.wire.where} joins more than {_MAX_PARTS:,} models in a pipeline"
            )
    return parts


def _features(described: Fields | None, number: int) -> list[str]:
    if described is None:
        return []
    return [part.text(1) for n, part in described.messages() if n == number]


def _blobs(operations: list[Operation]) -> list[str]:
    found: list[str] = []
    for operation in operations:
        values = [v for bound in operation.inputs.values() for v in bound]
        constants = [v for v in values if not isinstance(v, str)]
        constants += operation.attributes.values()
        found += [value.blob[0] for value in constants if value.blob is not None]
        for block in operation.blocks:
            found += _blobs(block)
    return found


READER = FormatReader(
    name="coreml",
    title="Core ML",
    suffixes=(".mlmodel",),
    sniff=sniff,
    read=read,
    companions=companions,
)
