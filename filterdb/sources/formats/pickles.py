"""Plain pickles of NumPy arrays, Paddle's ``.pdparams`` and ``.npy`` files among them.

Dictionaries of arrays (Detectron's model zoo, ``paddle.save``, ``np.save`` of a dictionary, weights
converted by hand) are interpreted by :mod:`filterdb.sources.formats.pickle_reader`; nothing is
unpickled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from filterdb.errors import UnsupportedFormatError
from filterdb.layers.raw import RawModel
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.npz import npy_array
from filterdb.sources.formats.pickle_reader import Unpickled, read_pickle
from filterdb.sources.formats.pickle_values import Table
from filterdb.sources.formats.stored_array import FileBytes
from filterdb.sources.formats.torch_groups import collect
from filterdb.sources.formats.torch_model import notes_of, raw_model
from filterdb.sources.formats.torch_parts import Part
from filterdb.sources.formats.torch_tensors import TensorTable
from filterdb.sources.formats.torch_walk import Walker

if TYPE_CHECKING:
    from filterdb.sources.formats.file_view import ByteSource
    from filterdb.sources.formats.stored_array import StoredBytes

_NUMPY = b"\x93NUMPY"
_SUFFIXES = (".pkl", ".pickle", ".pdparams", ".pdopt", ".p", ".npy")
#: What a pickle of protocol 2 and later goes on with, and what one of 0 and 1 begins with.
_BINARY = re.compile(rb"\x80[\x02-\x05][\x95}\](cXK\x8c)]")
_TEXT = re.compile(rb"[(](?:[dl]p?\d*\n|i\w)|c\w[\w.]*\n\w|[}\]]q.")
#: Paddle maps names of parameters to names of variables beside the parameters.
_PADDLE = "StructuredToParameterName@@"


@dataclass(frozen=True)
class _NoStorages:
    label: str
    big_endian: bool = False

    def find(self, key: str, nbytes: int) -> StoredBytes:
        del key, nbytes
        _fail(self.label)


def _fail(label: str) -> NoReturn:
    raise UnsupportedFormatError(
        f"{label}: a plain pickle of torch tensors, whose values are not in the file",
        tip="save the state dict with torch.save or as safetensors",
    )


def _sniff(head: bytes, file: ModelFile) -> bool:
    if head.startswith(_NUMPY) or _BINARY.match(head):
        return True
    return file.suffix in _SUFFIXES and _TEXT.match(head) is not None


def _read(file: ModelFile) -> RawModel:
    label = file.name or file.path.name
    with map_file(file.path) as data:
        if data[:6] == _NUMPY:
            return _read_npy(file, label, data)
        return _model(label, read_pickle(data, where=label), len(data))


def _read_npy(file: ModelFile, label: str, data: ByteSource) -> RawModel:
    source = FileBytes(file.path, 0, len(data))
    array = npy_array(bytes(data[: 64 * 1024]), source, label)
    if isinstance(array, int):
        # An array of objects is a pickle behind the header: of one dictionary, as a rule.
        return _model(label, read_pickle(data, array, where=label), len(data))
    name = label.removesuffix(".npy")
    return RawModel("pickle", (replace(array, name=name),), notes=("a single array",))


def _model(label: str, pickle: Unpickled, size: int) -> RawModel:
    table = TensorTable(label, _NoStorages(label))
    part = collect(Walker(table, label, pickle.n_opcodes, size), pickle.value)
    if not part.tensors:
        names = ", ".join(g.path[:60] for g in pickle.globals[:5])
        raise UnsupportedFormatError(
            f"{label}: a pickle without arrays" + (f"; it is made of {names}" if names else ""),
            tip="pickled models are read where their weights are arrays or torch tensors",
        )
    paddle = isinstance(pickle.value, Table) and _PADDLE in pickle.value.named()
    part = _plain_names(part)
    notes = notes_of(pickle, "paddle" if paddle else "plain pickle")
    # torch and Paddle call their kernels "weight", Caffe 2 "_w": out, in, height, width.
    born = any(found.name.endswith((".weight", "_w")) for found in part.tensors)
    return raw_model(part, notes, format="pickle", layout="OIHW" if born else None)


def _plain_names(part: Part) -> Part:
    """Drop what every name ends with: pairs of a name and an array, states of object arrays."""
    for ending in (r"\.1$", r"^state\.4\.0\.", r"^state\.3\.0\."):
        names = [re.sub(ending, "", found.name) for found in part.tensors]
        changed = all(n != f.name for n, f in zip(names, part.tensors, strict=True))
        if changed and len(set(names)) == len(names):
            found = [replace(f, name=n) for f, n in zip(part.tensors, names, strict=True)]
            part = Part(found, part.nodes)
    return part


READER = FormatReader(
    name="pickle", title="Pickled NumPy arrays", suffixes=_SUFFIXES, sniff=_sniff, read=_read
)
