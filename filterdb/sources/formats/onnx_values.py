"""Values of ONNX tensors: every encoding of TensorProto as a numpy array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.errors import (
    MalformedFileError,
    MissingCompanionError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.formats.file_view import (
    check_expansion,
    check_shape,
    read_array,
    unpack_nibbles,
    unpack_pairs,
)
from filterdb.sources.formats.protobuf_wire import decode_varints

if TYPE_CHECKING:
    from collections.abc import Callable

    from filterdb.sources.formats.base import ModelFile
    from filterdb.sources.formats.onnx_records import TensorRecord
    from filterdb.types import AnyArray


@dataclass(frozen=True)
class ElementType:
    """How one ``TensorProto.DataType`` is stored.

    Parameters
    ----------
    name
        In numpy's words.
    stored
        Type of the raw bytes; None where filterdb does not read it.
    bits
        Per element.
    typed
        The payload field used beside raw_data.
    """

    name: str
    stored: str | None
    bits: int
    typed: str = ""


_INT32 = "int32_data"
#: Values of the sixteen 4-bit floats (one sign, two exponent bits, one mantissa bit).
_FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
ELEMENT_TYPES = {
    1: ElementType("float32", "<f4", 32, "float_data"),
    2: ElementType("uint8", "<u1", 8, _INT32),
    3: ElementType("int8", "<i1", 8, _INT32),
    4: ElementType("uint16", "<u2", 16, _INT32),
    5: ElementType("int16", "<i2", 16, _INT32),
    6: ElementType("int32", "<i4", 32, _INT32),
    7: ElementType("int64", "<i8", 64, "int64_data"),
    8: ElementType("string", None, 0),
    9: ElementType("bool", "<u1", 8, _INT32),
    10: ElementType("float16", "<f2", 16, _INT32),
    11: ElementType("float64", "<f8", 64, "double_data"),
    12: ElementType("uint32", "<u4", 32, "uint64_data"),
    13: ElementType("uint64", "<u8", 64, "uint64_data"),
    14: ElementType("complex64", None, 64),
    15: ElementType("complex128", None, 128),
    16: ElementType("bfloat16", "<u2", 16, _INT32),
    17: ElementType("float8_e4m3fn", "<u1", 8, _INT32),
    18: ElementType("float8_e4m3fnuz", "<u1", 8, _INT32),
    19: ElementType("float8_e5m2", "<u1", 8, _INT32),
    20: ElementType("float8_e5m2fnuz", "<u1", 8, _INT32),
    21: ElementType("uint4", "<u1", 4, _INT32),
    22: ElementType("int4", "<u1", 4, _INT32),
    23: ElementType("float4_e2m1fn", "<u1", 4, _INT32),
    24: ElementType("float8_e8m0", "<u1", 8, _INT32),
    25: ElementType("uint2", "<u1", 2, _INT32),
    26: ElementType("int2", "<u1", 2, _INT32),
}


def element_type(record: TensorRecord) -> ElementType:
    """Return how a tensor's elements are stored.

    Parameters
    ----------
    record
        The tensor.

    Returns
    -------
    ElementType
        With ``stored`` None where filterdb does not read it.
    """
    known = ELEMENT_TYPES.get(record.data_type)
    return known or ElementType(f"onnx_type_{record.data_type}", None, 0)


@dataclass(frozen=True)
class ExternalRange:
    """Where an external tensor lies."""

    location: str
    path: Path
    offset: int


class TensorValues:
    """Checks tensor records against the file and makes loaders of them.

    Parameters
    ----------
    file
        The model and its companions.
    size
        Bytes of the model file.
    """

    def __init__(self, file: ModelFile, size: int) -> None:
        self.file = file
        self.size = size
        self._sizes: dict[Path, int] = {}

    def loader(
        self, record: TensorRecord, name: str
    ) -> tuple[Callable[[], AnyArray], tuple[Any, ...] | None]:
        """Check a tensor's extent and return how to read it.

        Parameters
        ----------
        record
            The tensor.
        name
            What to call it in messages.

        Returns
        -------
        tuple
            A function that reads the values, and a storage key.

        Raises
        ------
        MalformedFileError
            If bytes and shape do not agree.
        MissingCompanionError, UnsafeCheckpointError
            If external data is absent or outside the model's folder.
        """
        count = check_shape(record.shape, what=f"tensor {name!r} in {self.file.name}")
        kind = element_type(record)
        if record.sparse is not None:
            return self._sparse(record, count, name), None
        if kind.stored is None or record.segmented:
            return _refusal(name, kind.name), None
        if record.external is not None:
            place = external_range(self.file, record.external, name)
            n_bytes = _raw_bytes(count, kind)
            self._check_external(place, n_bytes, record, name)
            key = ("external", place.location, place.offset, n_bytes, kind.name)
            return _reader(place.path, [(place.offset, place.offset + n_bytes)], record, name), key
        if record.inline is not None:
            self._check_payload(record, kind, name)
            values = np.array(record.inline)
            return _inline_reader(values, record, name), None
        got = sum(end - start for start, end in record.ranges)
        expected = self._expected(record, kind, count, got, name)
        if got != expected:
            raise MalformedFileError(
                f"tensor {name!r} in {self.file.name} of shape {list(record.shape)} and type "
                f"{kind.name} needs {expected} bytes of {record.payload or 'values'}, got {got}"
            )
        reader = _reader(self.file.path, list(record.ranges), record, name)
        return reader, ("file", record.ranges[0][0]) if record.ranges else None

    def _sparse(self, record: TensorRecord, count: int, name: str) -> Callable[[], AnyArray]:
        """Return how to expand a tensor that names its non-zero elements."""
        values, indices = record.sparse or (record, record)
        load_values, _key = self.loader(values, f"{name} (values)")
        load_indices, _key = self.loader(indices, f"{name} (indices)")

        def load() -> AnyArray:
            stored, places = load_values().reshape(-1), load_indices()
            if places.ndim == 2 and places.shape[1] == len(record.shape):
                outside = bool(((places < 0) | (places >= record.shape)).any())
                weights = [int(np.prod(record.shape[i + 1 :])) for i in range(len(record.shape))]
                places = places @ np.array(weights, np.int64)
            else:
                outside = bool(((places < 0) | (places >= count)).any())
            if places.shape != stored.shape or outside:
                raise MalformedFileError(
                    f"sparse tensor {name!r} in {self.file.name} of shape {list(record.shape)} has "
                    f"{stored.size} values and indices of shape {list(places.shape)} that do not "
                    "fit it"
                )
            check_expansion(count * stored.itemsize, self.size, what=f"sparse tensor {name!r}")
            dense = np.zeros(count, stored.dtype)
            dense[places] = stored
            return dense.reshape(record.shape)

        return load

    def _expected(
        self, record: TensorRecord, kind: ElementType, count: int, got: int, name: str
    ) -> int:
        """Bytes the payload must have; varints have no fixed width, at most ten bytes each."""
        if record.payload in ("", "raw_data"):
            return _raw_bytes(count, kind)
        self._check_payload(record, kind, name)
        if record.payload == "float_data":
            return 4 * count
        if record.payload == "double_data":
            return 8 * count
        elements = -(-count * kind.bits // 8) if kind.bits < 8 else count
        return got if elements <= got <= 10 * elements else elements

    def _check_payload(self, record: TensorRecord, kind: ElementType, name: str) -> None:
        if record.payload not in ("raw_data", kind.typed):
            raise MalformedFileError(
                f"tensor {name!r} in {self.file.name} of type {kind.name} keeps its values in "
                f"{record.payload}, expected raw_data or {kind.typed}"
            )

    def _check_external(
        self, place: ExternalRange, n_bytes: int, record: TensorRecord, name: str
    ) -> None:
        if place.path not in self._sizes:
            try:
                self._sizes[place.path] = place.path.stat().st_size
            except OSError:
                raise MissingCompanionError(
                    f"{self.file.name} keeps tensor {name!r} in {place.location!r}, which is not "
                    "there",
                    tip="fetch it too, into the same folder, or name it under companions",
                ) from None
        stated = _integer((record.external or {}).get("length", str(n_bytes)), name)
        if stated != n_bytes or place.offset + n_bytes > self._sizes[place.path]:
            raise MalformedFileError(
                f"tensor {name!r} in {self.file.name} needs {n_bytes} bytes at byte {place.offset} "
                f"of {place.location!r}, which states {stated} and is {self._sizes[place.path]} "
                "bytes long"
            )


def external_range(file: ModelFile, external: Any, name: str) -> ExternalRange:
    """Find the file an external tensor lies in.

    Parameters
    ----------
    file
        The model and its companions.
    external
        The tensor's ``external_data``.
    name
        What to call it in messages.

    Returns
    -------
    ExternalRange
        Its path (not yet known to exist) and offset.

    Raises
    ------
    UnsafeCheckpointError
        If the location leaves the model's own folder.
    """
    location = external.get("location", "")
    member = PurePosixPath(location)
    unsafe = not location or "\\" in location or "\0" in location or ":" in location
    if unsafe or member.is_absolute() or ".." in member.parts:
        raise UnsafeCheckpointError(
            f"{file.name} keeps tensor {name!r} in {location!r}, which is not inside its own folder"
        )
    given = file.companions.get(location) or file.companions.get(str(member))
    path = given or file.path.parent / member
    if given is None and not path.resolve().is_relative_to(file.path.parent.resolve()):
        raise UnsafeCheckpointError(
            f"{file.name} keeps tensor {name!r} in {location!r}, a link out of its own folder"
        )
    return ExternalRange(str(member), path, _integer(external.get("offset", "0"), name))


def _integer(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise MalformedFileError(f"external data of tensor {name!r}: {text!r} is no byte count")
    return int(text)


def _raw_bytes(count: int, kind: ElementType) -> int:
    return -(-count * kind.bits // 8)


def _refusal(name: str, type_name: str) -> Callable[[], AnyArray]:
    def load() -> AnyArray:
        raise UnsupportedFormatError(f"tensor {name!r} has elements of type {type_name}")

    return load


def _reader(
    path: Path, ranges: list[tuple[int, int]], record: TensorRecord, name: str
) -> Callable[[], AnyArray]:
    kind = element_type(record)

    def load() -> AnyArray:
        if record.payload in (_INT32, "int64_data", "uint64_data"):
            pieces = [read_array(path, a, b - a, np.uint8) for a, b in ranges]
            values = decode_varints(np.concatenate(pieces))
            return _interpret(_narrow(values, kind), record, name)
        wide = {"float_data": "<f4", "double_data": "<f8"}
        stored = np.dtype(wide.get(record.payload, kind.stored))
        pieces = [read_array(path, a, (b - a) // stored.itemsize, stored) for a, b in ranges]
        values = pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.zeros(0, stored)])
        return _interpret(values, record, name)

    return load


def _inline_reader(values: AnyArray, record: TensorRecord, name: str) -> Callable[[], AnyArray]:
    kind = element_type(record)

    def load() -> AnyArray:
        wrapped = values if values.dtype.kind == "f" else _narrow(values, kind)
        return _interpret(wrapped, record, name)

    return load


def _narrow(values: AnyArray, kind: ElementType) -> AnyArray:
    """Low bits of 64-bit varints as the stored type (negative numbers are sign-extended there)."""
    stored = np.dtype(kind.stored)
    unsigned = values.astype(np.uint64).astype(f"u{stored.itemsize}")
    return unsigned.view(stored.newbyteorder("="))


def _interpret(values: AnyArray, record: TensorRecord, name: str) -> AnyArray:
    """Turn stored elements into numbers of the tensor's shape."""
    kind = element_type(record)
    count = int(np.prod(record.shape, dtype=np.int64))
    if kind.bits == 4:
        values = unpack_nibbles(values, count, signed=kind.name == "int4")
    elif kind.bits == 2:
        values = unpack_pairs(values, count, signed=kind.name == "int2")
    if values.size != count:
        raise MalformedFileError(
            f"tensor {name!r} of shape {list(record.shape)} holds {values.size} values"
        )
    if kind.name == "bfloat16":
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif kind.name == "float4_e2m1fn":
        values = _FLOAT4[values]
    elif kind.name == "float8_e8m0":
        powers = np.ldexp(np.float32(1), values.astype(np.int32) - 127)
        values = np.where(values == 255, np.float32(np.nan), powers)
    elif kind.name.startswith("float8"):
        import ml_dtypes

        values = values.view(getattr(ml_dtypes, kind.name)).astype(np.float32)
    elif kind.name == "bool":
        values = values != 0
    elif kind.name in ("float32", "float64"):
        values = values.astype(kind.name, copy=False)
    return values.reshape(record.shape)
