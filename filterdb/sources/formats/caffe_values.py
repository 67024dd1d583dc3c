"""Caffe's arrays: their shape by their role, their values when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from filterdb.errors import MalformedFileError
from filterdb.sources.formats.file_view import check_expansion, check_shape
from filterdb.sources.formats.protobuf_wire import decode_varints
from filterdb.sources.formats.stored_array import FileBytes, StoredArray, c_strides

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.sources.formats.caffe_proto import BlobRecord
    from filterdb.types import AnyArray, Shape

_HALF = "half_varints"


@dataclass(frozen=True, slots=True)
class BlobValues:
    """One blob. Calling it loads the array.

    Parameters
    ----------
    path
        The file.
    blob
        Where its values lie.
    shape
        The shape to give them.
    what
        Its name, for messages.
    """

    path: Path
    blob: BlobRecord
    shape: Shape
    what: str

    @property
    def dtype(self) -> str:
        """Numpy's name of the stored type."""
        return "float16" if self.blob.dtype == _HALF else self.blob.dtype

    def __call__(self) -> AnyArray:
        """Load the array."""
        blob = self.blob
        if blob.dtype == _HALF:
            return self._halves()
        size = np.dtype(blob.dtype).itemsize
        if len(blob.parts) == 1 and blob.step == size:
            start, end = blob.parts[0]
            source = FileBytes(self.path, start, end - start)
            return StoredArray(source, 0, self.shape, c_strides(self.shape), blob.dtype)()
        values = np.empty(blob.n_values, np.dtype(blob.dtype).newbyteorder("<"))
        into, filled = values.view(np.uint8).reshape(-1, size), 0
        for start, end in blob.parts:
            raw = FileBytes(self.path, start, end - start).view(0, end - start)
            count = (raw.size + blob.step - size) // blob.step
            for byte in range(size):
                into[filled : filled + count, byte] = raw[byte :: blob.step]
            filled += count
        return values.astype(blob.dtype, copy=False).reshape(self.shape)

    def _halves(self) -> AnyArray:
        # NVCaffe 0.14: the 16 bits of each number as an integer.
        pieces = [
            decode_varints(FileBytes(self.path, start, end - start).view(0, end - start))
            for start, end in self.blob.parts
        ]
        bits = np.concatenate(pieces) if pieces else np.zeros(0, np.uint64)
        if bits.size != np.prod(self.shape, dtype=np.int64):
            raise MalformedFileError(
                f"{self.what} holds {bits.size} values, expected {list(self.shape)}"
            )
        return (bits & np.uint64(0xFFFF)).astype(np.uint16).view(np.float16).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class AveragedValues:
    """Statistics of a BatchNorm, which Caffe stores as a sum beside the sum of its weights.

    Parameters
    ----------
    values
        The sums.
    factor
        One number: the weight of all batches.
    """

    values: BlobValues
    factor: BlobValues

    def __call__(self) -> AnyArray:
        """Load the mean: the sums over the factor, zeros where the factor is zero."""
        factor = float(self.factor().reshape(-1)[0])
        sums = self.values()
        # As caffe's BatchNormLayer does.
        scale = 0.0 if factor == 0 else 1.0 / factor
        with np.errstate(all="ignore"):
            mean: AnyArray = (sums * sums.dtype.type(scale)).astype(sums.dtype, copy=False)
        return mean


def values_of(path: Path, blob: BlobRecord, role: str, *, what: str, file_size: int) -> BlobValues:
    """Check one blob and give it its shape.

    Parameters
    ----------
    path
        The file.
    blob
        The blob.
    role
        weight of a kernel keeps its axes; "matrix" has two; everything else is one vector.
    what
        Its name, for messages.
    file_size
        Bytes of the file.

    Returns
    -------
    BlobValues
        Its loader.

    Raises
    ------
    MalformedFileError
        If it holds more or fewer values than its shape.
    UnsafeCheckpointError
        If it would take far more memory than the file.
    """
    count = check_shape(blob.shape, what=what)
    if blob.n_values >= 0 and blob.n_values != count:
        raise MalformedFileError(
            f"{what} holds {blob.n_values} values, expected {count} by its shape {list(blob.shape)}"
        )
    dtype = "float16" if blob.dtype == _HALF else blob.dtype
    check_expansion(count * np.dtype(dtype).itemsize, file_size, what=what)
    values = BlobValues(path, blob, blob.shape, what)
    if role == "matrix" and len(blob.shape) > 2:
        # The old form writes (1, 1, outputs, inputs).
        return replace(values, shape=(count // max(blob.shape[-1], 1), blob.shape[-1]))
    if role == "vector":
        return replace(values, shape=(count,))
    return values
