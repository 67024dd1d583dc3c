"""What an ONNX file says, as records of byte ranges, whichever encoding it was read from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from filterdb.sources.formats.base import MAX_RANK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from filterdb.types import Shape

#: Graphs inside attributes of nodes of graphs …; the deepest real ones have three levels.
MAX_DEPTH = 16

#: Payload fields of TensorProto → their name there.
PAYLOADS = {
    4: "float_data",
    5: "int32_data",
    7: "int64_data",
    9: "raw_data",
    10: "double_data",
    11: "uint64_data",
}


@dataclass(frozen=True)
class TensorRecord:
    """A TensorProto, its values left in the file.

    Parameters
    ----------
    name
        As stored; may be empty (attributes).
    shape
        ``dims``.
    data_type
        ``TensorProto.DataType``.
    payload
        Which field holds the values, "" where none does.
    ranges
        Byte ranges of the payload, to be read one after the other.
    inline
        The values themselves, where they are few or stored unpacked (one tag each).
    external
        ``external_data`` as key → value; None where the values are in this file.
    sparse
        Values and indices of a tensor that names only its non-zero elements.
    segmented
        The tensor is one piece of a larger one (never seen in practice).
    """

    name: str
    shape: Shape
    data_type: int
    payload: str = ""
    ranges: tuple[tuple[int, int], ...] = ()
    inline: tuple[float | int, ...] | None = None
    external: Mapping[str, str] | None = None
    segmented: bool = False
    sparse: tuple[TensorRecord, TensorRecord] | None = None


def sparse_record(values: TensorRecord, indices: TensorRecord, dims: Shape) -> TensorRecord:
    """Return the record of a sparse tensor, which has the name and type of its values.

    Parameters
    ----------
    values
        (n,) the elements that are stored.
    indices
        (n,) their places in the flat tensor, or (n, rank) their coordinates.
    dims
        Dense shape.

    Returns
    -------
    TensorRecord
        Of the dense shape.
    """
    return TensorRecord(
        values.name, dims[: MAX_RANK + 1], values.data_type, sparse=(values, indices)
    )


@dataclass(frozen=True)
class Attribute:
    """An AttributeProto.

    Parameters
    ----------
    name
        Its name.
    number
        ``i`` or ``f``.
    text
        ``s``.
    numbers
        ``ints`` or ``floats``.
    tensor
        ``t`` or ``sparse_tensor``.
    graphs
        ``g`` and ``graphs``.
    reference
        ``ref_attr_name`` inside a function.
    """

    name: str = ""
    number: float | int | None = None
    text: str = ""
    numbers: tuple[float | int, ...] = ()
    tensor: TensorRecord | None = None
    graphs: tuple[GraphRecord, ...] = ()
    reference: str = ""


@dataclass(frozen=True)
class NodeRecord:
    """A NodeProto."""

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class GraphRecord:
    """A GraphProto, or the body of a FunctionProto."""

    nodes: tuple[NodeRecord, ...] = ()
    initializers: tuple[TensorRecord, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelRecord:
    """A ModelProto; functions by (domain, name)."""

    graph: GraphRecord
    ir_version: int = 0
    producer: str = ""
    opsets: tuple[tuple[str, int], ...] = ()
    functions: Mapping[tuple[str, str], GraphRecord] = field(default_factory=dict)
