"""TFLite models: constants behind their dequantising operators, convolutions with their layout."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from filterdb.errors import MalformedFileError
from filterdb.layers.raw import RawModel, Tensor
from filterdb.sources.formats.base import FormatReader, ModelFile
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.flatbuffer import FlatBuffer
from filterdb.sources.formats.tflite_nodes import translate
from filterdb.sources.formats.tflite_schema import external_files, parse_model
from filterdb.sources.formats.tflite_values import (
    check_values,
    is_quantised,
    load_values,
    refusal,
)

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.sources.formats.tflite_schema import TensorRecord


def sniff(head: bytes, _file: ModelFile) -> bool:
    """Tell whether a file is a TFLite flatbuffer.

    Parameters
    ----------
    head
        The first bytes.

    Returns
    -------
    bool
        True where the file identifier is TFLite's.
    """
    return head[4:8] == b"TFL3"


def read(file: ModelFile) -> RawModel:
    """List the tensors and operators of a TFLite model.

    Parameters
    ----------
    file
        The model.

    Returns
    -------
    RawModel
        Constants under their own names, dequantised; activations by the names of their tensors.

    Raises
    ------
    SourceError
        If the file is damaged or of another schema version.
    """
    with map_file(file.path) as data:
        return read_part(file, FlatBuffer(data, where=file.name or file.path.name))


def read_part(file: ModelFile, buffer: FlatBuffer) -> RawModel:
    """List the tensors and operators of a TFLite model that may lie inside another file.

    Parameters
    ----------
    file
        The file it lies in.
    buffer
        The model's bytes, mapped.

    Returns
    -------
    RawModel
        As for :func:`read`.

    Raises
    ------
    SourceError
        If it is damaged or of another schema version.
    """
    model = parse_model(buffer)
    nodes, unscaled = translate(model.subgraphs)
    tensors = [
        _tensor(file, record, buffer, unscaled=record.name in unscaled)
        for subgraph in model.subgraphs
        for record in subgraph.tensors
        if record.constant
    ]
    description = f" ({model.description})" if model.description else ""
    return RawModel(
        format="tflite",
        tensors=tuple(tensors),
        nodes=tuple(nodes),
        has_edges=True,
        folds_batch_norm=True,
        default_layout="OHWI",
        notes=(f"TFLite schema {model.version}{description}",),
    )


def companions(file: ModelFile) -> tuple[str, ...]:
    """Name the files a model keeps its external buffers in.

    Parameters
    ----------
    file
        The model.

    Returns
    -------
    tuple of str
        As the model names them.

    Raises
    ------
    SourceError
        If the file is damaged.
    """
    with map_file(file.path) as data:
        return external_files(FlatBuffer(data, where=file.name or file.path.name))


def _tensor(file: ModelFile, record: TensorRecord, buffer: FlatBuffer, *, unscaled: bool) -> Tensor:
    path, record, size = _located(file, record, buffer.size)
    check_values(record, buffer.where)
    skip = refusal(record)
    if skip is None and unscaled:
        skip = ("missing_scale", f"{record.dtype} weights without a scale")
    return Tensor(
        name=record.name,
        shape=record.shape,
        dtype=record.dtype,
        load=partial(load_values, path, record, size),
        quantised=is_quantised(record),
        storage=(path.name, record.data[0]) if record.data is not None else None,
        skip=skip,
    )


def _located(file: ModelFile, record: TensorRecord, size: int) -> tuple[Path, TensorRecord, int]:
    """Find out in which file a tensor's values lie, and how large that is."""
    outside = record.external
    path = file.companions.get(outside.file) if outside is not None else None
    if outside is None or path is None or outside.packing not in ("", "unpacked"):
        return file.path, record, size
    place, size = (outside.start, outside.start + outside.size), path.stat().st_size
    if place[1] > size:
        raise MalformedFileError(
            f"tensor {record.name!r} lies at bytes {place[0]} to {place[1]} of {outside.file!r}, "
            f"which is {size} bytes long"
        )
    return path, replace(record, data=place, external=None), size


READER = FormatReader(
    name="tflite",
    title="TensorFlow Lite",
    suffixes=(".tflite", ".lite"),
    sniff=sniff,
    read=read,
    companions=companions,
)
