"""npz: a zip file of numpy arrays (Chainer's model files among them)."""

from __future__ import annotations

import ast
import re
import struct
from dataclasses import replace
from typing import Any

from filterdb.errors import MalformedFileError, UnsafeCheckpointError
from filterdb.layers.raw import RawModel, Tensor
from filterdb.sources.formats.base import MAX_SHARING, SHARING_SLACK, FormatReader, ModelFile
from filterdb.sources.formats.file_view import check_shape
from filterdb.sources.formats.stored_array import StoredArray, StoredBytes, c_strides
from filterdb.sources.formats.zip_entries import ZipEntries, open_zip

_MAGIC = b"\x93NUMPY"
#: numpy's own bound for headers that are evaluated as a literal.
_MAX_HEADER = 10_000
_SIMPLE_TYPE = re.compile(r"([<>=|]?)([fiub])([1248])")
_KINDS = {"f": "float", "i": "int", "u": "uint", "b": "bool"}
_PYTHON2_LONG = re.compile(r"(?<=\d)L\b")


def _sniff(head: bytes, _file: ModelFile) -> bool:
    if not head.startswith(b"PK\3\4"):
        return False
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].endswith(b".npy")


def _read(file: ModelFile) -> RawModel:
    label = file.name or file.path.name
    entries = open_zip(file.path, label)
    tensors = []
    total = 0
    for member, source in entries.members.items():
        if not member.endswith(".npy"):
            continue
        tensor = _tensor(entries, member, source)
        total += source.size
        if total > MAX_SHARING * file.path.stat().st_size + SHARING_SLACK:
            raise UnsafeCheckpointError(f"{label}: its arrays take many times the file's own size")
        tensors.append(tensor)
    if not tensors:
        raise MalformedFileError(f"{label}: a zip file without any .npy array")
    # Chainer and numpy exports of torch models keep kernels as (out, in, height, width).
    return RawModel(format="npz", tensors=tuple(tensors), default_layout="OIHW")


def _tensor(entries: ZipEntries, member: str, source: StoredBytes) -> Tensor:
    where = f"{entries.label}: array {member!r}"
    found = npy_array(entries.head(member), source, where)
    name = member.removesuffix(".npy")
    if isinstance(found, int):
        return Tensor(name, (), "object", _no_numbers, skip=("unsupported_dtype", "objects"))
    return replace(found, name=name, storage=(member,) if found.skip is None else None)


def npy_array(head: bytes, source: StoredBytes, where: str) -> Tensor | int:
    """Read the header of an ``.npy`` array.

    Parameters
    ----------
    head
        The array's first bytes, 64 KiB or all of it.
    source
        All of its bytes.
    where
        Its name for messages.

    Returns
    -------
    Tensor or int
        Without a name; for an array of objects the offset of the pickle behind its header.

    Raises
    ------
    MalformedFileError
        It is no such array, or its bytes do not fit its shape.
    """
    descr, fortran, shape, start = parse_npy_header(head, where)
    count = check_shape(shape, what=where)
    match = _SIMPLE_TYPE.fullmatch(descr) if isinstance(descr, str) else None
    dtype = _type_name(match)
    if descr == "|O":
        return start
    if match is None or not dtype:
        shown = descr if isinstance(descr, str) else "a record"
        return Tensor("", shape, shown[:40], _no_numbers, skip=("unsupported_dtype", shown[:200]))
    nbytes = count * int(match[3])
    if source.size - start != nbytes:
        raise MalformedFileError(
            f"{where} of type {dtype} and shape {shape} takes {nbytes} bytes, "
            f"{source.size - start} follow its header"
        )
    strides = c_strides(shape[::-1])[::-1] if fortran else c_strides(shape)
    return Tensor(
        "", shape, dtype, StoredArray(source, start, shape, strides, dtype, match[1] == ">")
    )


def _type_name(match: re.Match[str] | None) -> str:
    if match is None:
        return ""
    _, letter, size = match.groups()
    if (letter == "b") != (size == "1" and letter not in "iu") or letter + size == "f1":
        return ""
    return "bool" if letter == "b" else f"{_KINDS[letter]}{8 * int(size)}"


def _no_numbers() -> Any:
    raise MalformedFileError("an array of objects was to be loaded; such arrays are never read")


def parse_npy_header(head: bytes, where: str) -> tuple[Any, bool, tuple[int, ...], int]:
    """Parse the header of an ``.npy`` array (versions 1 to 3).

    Parameters
    ----------
    head
        The array's first bytes, 64 KiB or all of it.
    where
        The array's name for messages.

    Returns
    -------
    tuple
        Type description, whether in Fortran order, shape, offset of the first element.

    Raises
    ------
    MalformedFileError
        It is no such header.
    """
    if not head.startswith(_MAGIC) or len(head) < 12 or head[6] not in (1, 2, 3):
        raise MalformedFileError(f"{where} is no .npy array of version 1 to 3")
    layout = struct.Struct("<H") if head[6] == 1 else struct.Struct("<I")
    (length,) = layout.unpack_from(head, 8)
    start = 8 + layout.size + int(length)
    if length > _MAX_HEADER or start > len(head):
        raise MalformedFileError(f"{where} has a header of {length} bytes, {len(head)} are there")
    encoding = "utf-8" if head[6] == 3 else "latin-1"
    try:
        text = head[8 + layout.size : start].decode(encoding)
        header = ast.literal_eval(_PYTHON2_LONG.sub("", text).strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise MalformedFileError(f"{where} has an unreadable header: {error}") from error
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise MalformedFileError(f"{where} has a header without type, order and shape")
    shape, fortran = header["shape"], header["fortran_order"]
    if not isinstance(shape, tuple) or not all(type(size) is int for size in shape):
        raise MalformedFileError(f"{where} has a shape that is none")
    return header["descr"], fortran is True, shape, start


READER = FormatReader(
    name="npz", title="NumPy archive", suffixes=(".npz",), sniff=_sniff, read=_read
)
