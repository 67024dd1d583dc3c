"""TFLite models as records (public schema ``schema.fbs``, version 3; field numbers as there)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from filterdb.errors import UnsafeCheckpointError, UnsupportedFormatError
from filterdb.sources.formats.base import MAX_TENSORS
from filterdb.sources.formats.file_view import check_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from filterdb.sources.formats.flatbuffer import FlatBuffer, Table
    from filterdb.types import AnyArray, Shape

#: Bytes of a buffer: [start, end).
ByteRange: TypeAlias = tuple[int, int]

#: Tensor types → (numpy name, stored numpy type or None where filterdb does not read it, bits).
TENSOR_TYPES: Mapping[int, tuple[str, str | None, int]] = {
    0: ("float32", "<f4", 32),
    1: ("float16", "<f2", 16),
    2: ("int32", "<i4", 32),
    3: ("uint8", "<u1", 8),
    4: ("int64", "<i8", 64),
    5: ("string", None, 0),
    6: ("bool", "<u1", 8),
    7: ("int16", "<i2", 16),
    8: ("complex64", None, 64),
    9: ("int8", "<i1", 8),
    10: ("float64", "<f8", 64),
    11: ("complex128", None, 128),
    12: ("uint64", "<u8", 64),
    15: ("uint32", "<u4", 32),
    16: ("uint16", "<u2", 16),
    17: ("int4", "<u1", 4),
    18: ("bfloat16", "<u2", 16),
    19: ("int2", "<u1", 2),
    20: ("uint4", "<u1", 4),
    21: ("float8_e4m3fn", "<u1", 8),
    22: ("float8_e5m2", "<u1", 8),
}

#: Operators filterdb tells apart; the others are kept as "builtin_N".
BUILTIN_OPERATORS: Mapping[int, str] = {
    0: "ADD",
    3: "CONV_2D",
    4: "DEPTHWISE_CONV_2D",
    6: "DEQUANTIZE",
    7: "EMBEDDING_LOOKUP",
    9: "FULLY_CONNECTED",
    16: "LSTM",
    18: "MUL",
    24: "RNN",
    27: "SVDF",
    31: "CALL",
    32: "CUSTOM",
    35: "UNIDIRECTIONAL_SEQUENCE_RNN",
    36: "GATHER",
    44: "UNIDIRECTIONAL_SEQUENCE_LSTM",
    46: "BIDIRECTIONAL_SEQUENCE_RNN",
    52: "BIDIRECTIONAL_SEQUENCE_LSTM",
    53: "CAST",
    54: "PRELU",
    67: "TRANSPOSE_CONV",
    114: "QUANTIZE",
    118: "IF",
    119: "WHILE",
    124: "DENSIFY",
    126: "BATCH_MATMUL",
    132: "CONV_3D",
    141: "CONV_3D_TRANSPOSE",
    171: "STABLEHLO_CONVOLUTION",
    206: "STABLEHLO_COMPOSITE",
}


@dataclass(frozen=True)
class Dimension:
    """One level of a sparse tensor: dense of `size`, or compressed by segments and indices."""

    size: int
    segments: AnyArray | None = None
    indices: AnyArray | None = None


@dataclass(frozen=True)
class Sparsity:
    """``SparsityParameters``: the order of the levels, blocked axes, and the levels."""

    order: tuple[int, ...]
    block_map: tuple[int, ...]
    dimensions: tuple[Dimension, ...]


@dataclass(frozen=True)
class External:
    """Where values outside the file lie.

    Parameters
    ----------
    file
        Name of the file, as the model gives it.
    start, size
        Bytes in it.
    packing
        How they are packed there; "" and "unpacked" are plain values.
    """

    file: str
    start: int
    size: int
    packing: str


@dataclass(frozen=True)
class TensorRecord:
    """A tensor of a subgraph.

    Parameters
    ----------
    name
        Unique in the file.
    shape
        As stored (-1 and unknown extents of activations as they are).
    type_code
        ``TensorType``.
    buffer
        Index of its buffer.
    data
        Byte range of its values; None for activations.
    scale, zero_point
        Quantisation parameters, empty where there are none.
    axis
        ``quantized_dimension``.
    details
        Number of a quantisation scheme beyond scale and zero point; 0 is none.
    sparsity
        Where it is stored sparse.
    external
        Where the values lie, if in another file.
    """

    name: str
    shape: Shape
    type_code: int
    buffer: int
    data: ByteRange | None
    scale: AnyArray
    zero_point: AnyArray
    axis: int
    details: int
    sparsity: Sparsity | None
    external: External | None

    @property
    def constant(self) -> bool:
        """Whether the file stores its values."""
        return self.data is not None or self.external is not None

    @property
    def dtype(self) -> str:
        """Stored element type in numpy's words."""
        return TENSOR_TYPES.get(self.type_code, (f"tflite_type_{self.type_code}", None, 0))[0]

    @property
    def real(self) -> bool:
        """Whether it stores floating point numbers."""
        return self.dtype.startswith(("float", "bfloat"))


@dataclass(frozen=True)
class OperatorRecord:
    """An operator: its name, tensor indices (-1: absent), and its options still packed."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Table | None
    custom_options: bytes


@dataclass(frozen=True)
class SubgraphRecord:
    """A subgraph; operators in execution order."""

    tensors: tuple[TensorRecord, ...]
    operators: tuple[OperatorRecord, ...]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelRecord:
    """A model."""

    version: int
    description: str
    subgraphs: tuple[SubgraphRecord, ...]


def parse_model(buffer: FlatBuffer) -> ModelRecord:
    """Parse a TFLite file.

    Parameters
    ----------
    buffer
        The whole model (what follows the flatbuffer, as packed metadata does, is ignored).

    Returns
    -------
    ModelRecord
        Its subgraphs.

    Raises
    ------
    MalformedFileError
        If the bytes break the rules of flatbuffers.
    UnsupportedFormatError
        If it is of another schema version.
    UnsafeCheckpointError
        If it holds more tensors than any network has.
    """
    model = buffer.root()
    version = model.integer(0, "u4")
    if version != 3:
        raise UnsupportedFormatError(
            f"{buffer.where} is of TFLite schema version {version}, expected 3"
        )
    codes = [_operator_name(table) for table in model.tables(1)]
    buffers = [_buffer_range(buffer, table) for table in model.tables(4)]
    outside = _external_buffers(model)
    names: set[str] = set()
    subgraphs = []
    for number, table in enumerate(model.tables(2)):
        tensors = tuple(
            _tensor(buffer, t, (buffers, outside), names, (number, i))
            for i, t in enumerate(table.tables(0))
        )
        operators = tuple(_operator(buffer, t, codes, len(tensors)) for t in table.tables(3))
        ends = tuple(_tensor_indices(buffer, table, field, len(tensors)) for field in (1, 2))
        subgraphs.append(SubgraphRecord(tensors, operators, *ends))
        if len(names) > MAX_TENSORS:
            raise UnsafeCheckpointError(f"{buffer.where} holds more than {MAX_TENSORS} tensors")
    return ModelRecord(version, model.text(3, limit=80), tuple(subgraphs))


def _operator_name(code: Table) -> str:
    # Codes above 126 live in a later field; writers fill both, old files only the first.
    number = max(code.integer(0, "i1"), code.integer(3, "i4"))
    name = BUILTIN_OPERATORS.get(number, f"builtin_{number}")
    return f"custom:{code.text(1, limit=200)}" if name == "CUSTOM" else name


def _external_buffers(model: Table) -> dict[int, External]:
    groups = [table.text(0) for table in model.tables(8)]
    found: dict[int, External] = {}
    for table in model.tables(9):
        group = table.integer(1, "u4")
        if group >= len(groups):
            raise model.buffer.malformed(
                f"external buffer group {group} of {len(groups)}", table.position
            )
        place = (table.integer(2, "u8"), table.integer(3, "u8"))
        found[table.integer(0, "u4")] = External(groups[group], *place, table.text(4, limit=80))
    return found


def external_files(buffer: FlatBuffer) -> tuple[str, ...]:
    """Name the files a model keeps values in.

    Parameters
    ----------
    buffer
        The whole model.

    Returns
    -------
    tuple of str
        Of those its external buffers lie in.
    """
    places = _external_buffers(buffer.root()).values()
    return tuple(dict.fromkeys(place.file for place in places if place.file))


def _buffer_range(buffer: FlatBuffer, table: Table) -> ByteRange | None:
    offset, size = table.integer(1, "u8"), table.integer(2, "u8")
    if offset > 1:
        if offset + size > buffer.size:
            raise buffer.malformed(f"a buffer of {size} bytes leaves the file", offset)
        start, count = offset, size
    else:
        start, count = table.extent(0, 1) or (0, 0)
    start += buffer.start
    return (start, start + count) if count else None


def _tensor(
    buffer: FlatBuffer,
    table: Table,
    places: tuple[list[ByteRange | None], dict[int, External]],
    names: set[str],
    place: tuple[int, int],
) -> TensorRecord:
    index = table.integer(2, "u4")
    buffers, outside = places
    external = table.integer(10, "u4")
    # One the model does not describe may still be known to whoever runs it.
    unknown = External(f"external buffer {external}", 0, 0, "")
    if index >= len(buffers):
        raise buffer.malformed(f"buffer {index} of {len(buffers)}", table.position)
    name = table.text(3) or f"tensor_{place[1]}"
    if name in names:
        name = f"{name}#{place[1]}" if place[0] == 0 else f"{name}#{place[0]}.{place[1]}"
    while name in names:
        name += "'"
    names.add(name)
    shape = table.integers(0)
    data = buffers[index]
    if data is not None:
        check_shape(shape, what=f"tensor {name!r} in {buffer.where}")
    quantisation = table.table(4)
    sparsity = table.table(6)
    return TensorRecord(
        name=name,
        shape=shape,
        type_code=table.integer(1, "i1"),
        buffer=index,
        data=data,
        scale=_array(quantisation, 2, "f4"),
        zero_point=_array(quantisation, 3, "i8"),
        axis=0 if quantisation is None else quantisation.integer(6, "i4"),
        details=0 if quantisation is None else quantisation.integer(4, "u1"),
        sparsity=None if sparsity is None else _sparsity(sparsity),
        external=outside.get(external, unknown) if external and data is None else None,
    )


def _array(table: Table | None, field: int, dtype: str) -> AnyArray:
    import numpy as np

    return np.zeros(0, dtype) if table is None else table.array(field, dtype)


def _sparsity(table: Table) -> Sparsity:
    dimensions = []
    for level in table.tables(2):
        compressed = level.integer(0, "i1") == 1
        dimensions.append(
            Dimension(
                level.integer(1, "i4"),
                _indices(level, 2) if compressed else None,
                _indices(level, 4) if compressed else None,
            )
        )
    return Sparsity(
        table.integers(0),
        table.integers(1),
        tuple(dimensions),
    )


def _indices(level: Table, field: int) -> AnyArray:
    """Read a union of index vectors: its kind in `field`, the vector's table in the next."""
    kinds = {1: "i4", 2: "u2", 3: "u1"}
    kind, vector = level.integer(field, "u1"), level.table(field + 1)
    if vector is None or kind not in kinds:
        raise level.buffer.malformed("a sparse tensor without its indices", level.position)
    return vector.array(0, kinds[kind]).astype("i8")


def _operator(buffer: FlatBuffer, table: Table, codes: list[str], n_tensors: int) -> OperatorRecord:
    code = table.integer(0, "u4")
    if code >= len(codes):
        raise buffer.malformed(f"operator code {code} of {len(codes)}", table.position)
    inputs, outputs = (_tensor_indices(buffer, table, field, n_tensors) for field in (1, 2))
    start, count = table.extent(5, 1) or (0, 0)
    custom = buffer.bytes(start, start + min(count, 64))
    # Operators of later schemas have their options in a field of their own.
    options = table.table(4) or table.table(12)
    return OperatorRecord(codes[code], inputs, outputs, options, custom)


def _tensor_indices(
    buffer: FlatBuffer, table: Table, field: int, n_tensors: int
) -> tuple[int, ...]:
    indices = table.integers(field)
    for index in indices:
        if not -1 <= index < n_tensors:
            raise buffer.malformed(f"tensor {index} of {n_tensors}", table.position)
    return indices
