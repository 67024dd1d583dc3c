"""Model file formats: which there are, what a file is, and reading it.

Built-in readers stand in one table and are imported when first used. Others join by an entry point
of the group ``filterdb.formats`` that names a :class:`~filterdb.sources.formats.base.FormatReader`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from filterdb.errors import (
    FetchError,
    MalformedFileError,
    SourceError,
    UnknownNameError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.formats.base import FormatReader, ModelFile

if TYPE_CHECKING:
    from filterdb.layers.raw import RawModel

__all__ = ["FORMATS", "FormatReader", "ModelFile", "detect", "read_model"]

#: Format → module that holds its ``READER``. In the order in which files are tried: formats with an
#: unmistakable beginning first.
_BUILT_IN = {
    "safetensors": "filterdb.sources.formats.safetensors",
    "mediapipe_task": "filterdb.sources.formats.mediapipe_task",
    "torch": "filterdb.sources.formats.torch_file",
    "npz": "filterdb.sources.formats.npz",
    "pickle": "filterdb.sources.formats.pickles",
    "keras_v3": "filterdb.sources.formats.keras_v3",
    "keras_h5": "filterdb.sources.formats.keras_h5",
    "torch7": "filterdb.sources.formats.torch7",
    "tza": "filterdb.sources.formats.tza",
    "tflite": "filterdb.sources.formats.tflite",
    "tfjs": "filterdb.sources.formats.tfjs",
    "ncnn": "filterdb.sources.formats.ncnn",
    "darknet": "filterdb.sources.formats.darknet",
    "tf_checkpoint": "filterdb.sources.formats.tf_checkpoint",
    "tf_saved_model": "filterdb.sources.formats.tf_saved_model",
    "tf_graph": "filterdb.sources.formats.tf_frozen",
    "paddle": "filterdb.sources.formats.paddle",
    "openvino": "filterdb.sources.formats.openvino",
    "coreml": "filterdb.sources.formats.coreml",
    "onnx": "filterdb.sources.formats.onnx",
    "caffe": "filterdb.sources.formats.caffe",
}
_GROUP = "filterdb.formats"
_HEAD_BYTES = 4096
#: Characters of a name; the longest real ones, of nodes in loops, have some hundreds.
_MAX_NAME = 8192

#: What foreign files look like, for the error message. (offset, bytes, words.)
_FAMILIAR = (
    (0, b"PK\3\4", "a zip archive"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"BZh", "bzip2 data"),
    (0, b"\xfd7zXZ", "xz data"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file without Keras weights"),
    (0, b"\x93NUMPY", "a single numpy array"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
    (0, b"%PDF", "a PDF document"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file it stands for"),
    (0, b"<", "XML"),
    (0, b"{", "JSON of no known model format"),
)


class _Formats(Mapping[str, FormatReader]):
    """The readers by name; each is imported when it is first asked for."""

    def __getitem__(self, name: str) -> FormatReader:
        if name not in _BUILT_IN and name not in _foreign():
            raise UnknownNameError("format", name, self)
        return _load(name)

    def __iter__(self) -> Iterator[str]:
        yield from _BUILT_IN
        yield from _foreign()

    def __len__(self) -> int:
        return len(_BUILT_IN) + len(_foreign())

    def __contains__(self, name: object) -> bool:
        return name in _BUILT_IN or name in _foreign()


#: Name → reader. Looking at the names imports none of them.
FORMATS: Mapping[str, FormatReader] = _Formats()


@functools.cache
def _foreign() -> dict[str, EntryPoint]:
    found = {point.name: point for point in entry_points(group=_GROUP)}
    return {name: point for name, point in found.items() if name not in _BUILT_IN}


@functools.cache
def _load(name: str) -> FormatReader:
    built_in = _BUILT_IN.get(name)
    reader = import_module(built_in).READER if built_in else _foreign()[name].load()
    if not isinstance(reader, FormatReader):
        raise UnsupportedFormatError(
            f"format {name!r} is registered as a {type(reader).__name__}, expected a FormatReader",
            tip=f"the entry point of the group {_GROUP} must name a FormatReader",
        )
    return reader


def detect(file: ModelFile) -> str:
    """Tell what a file is from its first bytes; its suffix decides where several would fit.

    Parameters
    ----------
    file
        The file.

    Returns
    -------
    str
        A name in :data:`FORMATS`.

    Raises
    ------
    UnsupportedFormatError
        No reader knows it; the message says what it looks like.
    FetchError
        It cannot be read.
    """
    head = _head(file)
    label = file.name or file.path.name
    fitting = [name for name in FORMATS if FORMATS[name].sniff(head, file)]
    for name in fitting:
        if file.suffix in FORMATS[name].suffixes:
            return name
    if fitting:
        return fitting[0]
    raise UnsupportedFormatError(
        f"{label}: no reader knows this file; it looks like {_looks_like(head)}",
        tip=f"formats: {', '.join(FORMATS)}",
    )


def read_model(file: ModelFile, format: str = "auto") -> RawModel:  # noqa: A002  the public word
    """Open a model file.

    Parameters
    ----------
    file
        The file and its companions.
    format
        A name in :data:`FORMATS`, or "auto" to tell from the bytes.

    Returns
    -------
    RawModel
        Its tensors, not loaded, and its graph as far as there is one.

    Raises
    ------
    SourceError
        It cannot be read: unknown format, malformed, unsafe, a companion missing.
    UnknownNameError
        There is no such format.
    """
    label = file.name or file.path.name
    if not _head(file):
        raise MalformedFileError(
            f"{label} is an empty file: expected a model, got 0 bytes",
            tip="fetch it or write it again",
        )
    name = detect(file) if format == "auto" else format
    reader = FORMATS[name]
    try:
        raw = reader.read(file)
        _check_names(raw, label)
        return raw
    except MalformedFileError as error:
        raise _explained(error, file, name) from error
    except SourceError:
        raise
    except OSError as error:
        raise FetchError(f"cannot read {label}: {error.strerror or error}") from error


def _check_names(raw: RawModel, label: str) -> None:
    """Refuse names nobody gives: rules of naming are matched against each of them."""
    for kind, things in (("tensor", raw.tensors), ("operation", raw.nodes)):
        longest = max((len(thing.name) for thing in things), default=0)
        if longest > _MAX_NAME:
            raise UnsafeCheckpointError(
                f"{label}: the name of one {kind} takes {longest:,} characters, expected "
                f"{_MAX_NAME:,} at most",
                tip="no network names its parts like that: the file is damaged or hostile",
            )


def _explained(error: MalformedFileError, file: ModelFile, name: str) -> MalformedFileError:
    """Say which file it is, and what to do where the reader itself does not know."""
    label = file.name or file.path.name
    message = error.message if label in error.message else f"{label}: {error.message}"
    try:
        other = detect(file)
    except SourceError:
        other = name
    if other != name:
        tip = f"it was read as {name}, and its bytes look like {other}"
    else:
        tip = error.tip or "it is cut short or damaged: fetch it or write it again"
    return MalformedFileError(message, tip=tip)


def _head(file: ModelFile) -> bytes:
    try:
        with file.path.open("rb") as handle:
            return handle.read(_HEAD_BYTES)
    except OSError as error:
        label = file.name or file.path.name
        raise FetchError(
            f"cannot read {label}: {error.strerror or error}",
            tip="a folder is no model file" if file.path.is_dir() else None,
        ) from error


def _looks_like(head: bytes) -> str:
    if not head:
        return "an empty file"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for offset, magic, words in _FAMILIAR:
        if head[offset:].startswith(magic) or (not offset and text.startswith(magic)):
            return words
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return "a plain Python pickle"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "plain text"
    return f"nothing familiar (it begins with {head[:8].hex(' ')})"
