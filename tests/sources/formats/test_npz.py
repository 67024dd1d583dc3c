"""npz: equal to numpy.load without pickles, whatever the archive claims."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filterdb.errors import (
    FetchError,
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.formats import ModelFile, read_model
from filterdb.sources.formats.npz import parse_npy_header

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.layers.raw import RawModel


def read(path: Path) -> RawModel:
    return read_model(ModelFile(path))


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    kinds = ["<f8", "<f4", "<f2", ">f4", ">i2", "<i8", "|i1", "|u1", "<u4"]
    found: dict[str, Any] = {kind[1:] + "be" * (kind[0] == ">"): (
        rng.standard_normal((2, 3, 4)) * 50).astype(kind) for kind in kinds}  # fmt: skip
    found["conv_pre/W"] = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    found["fortran"] = np.asfortranarray(rng.standard_normal((3, 4)))
    found["bool"] = np.array([True, False])
    found["scalar"] = np.array(3.0)
    found["empty"] = np.zeros((0, 2), np.float32)
    return found


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_array_equals_numpy(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "m.npz"
    save(path, **arrays())
    model = read(path)
    with np.load(path) as expected:
        assert [t.name for t in model.tensors] == expected.files
        for tensor in model.tensors:
            values = expected[tensor.name]
            loaded = tensor.load()
            assert loaded.dtype.isnative
            assert loaded.dtype == values.dtype.newbyteorder("=")
            assert tensor.dtype == str(loaded.dtype)
            assert loaded.flags.c_contiguous
            assert loaded.shape == tensor.shape == values.shape
            np.testing.assert_array_equal(loaded, values)
    assert model.default_layout == "OIHW"


def test_objects_records_and_complex_numbers_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    record = np.zeros(2, dtype=[("a", "f4"), ("b", "i4")])
    objects, text = np.array([{"a": 1}], dtype=object), np.array(["ab"])
    np.savez(path, o=objects, r=record, c=np.zeros(2, np.complex64), t=text, good=np.ones(1))
    model = read(path)
    skips = {t.name: t.skip for t in model.tensors}
    assert skips.pop("good") is None
    assert {name: skip[0] for name, skip in skips.items() if skip} == dict.fromkeys(
        "orct", "unsupported_dtype"
    )
    with pytest.raises(MalformedFileError):
        model.tensors[0].load()


def npy(header: str | bytes, data: bytes = b"", *, version: int = 1) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    length = struct.pack("<H" if version == 1 else "<I", len(raw))
    return b"\x93NUMPY" + bytes((version, 0)) + length + raw + data


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        for name, data in members.items():
            target.writestr(name, data)
    return path


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_header_versions_and_python_2(tmp_path: Path, version: int) -> None:
    for header in (GOOD, GOOD.replace("(2,)", "(2L,)")):
        path = archive(tmp_path / "m.npz", {"a.npy": npy(header, b"\0" * 8, version=version)})
        assert read(path).tensors[0].shape == (2,)


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        npy(GOOD, version=9),
        npy(GOOD, b"\0" * 7),
        npy(GOOD, b"\0" * 9),
        npy(GOOD.replace("(2,)", "(1 << 60,)"), b"\0" * 8),
        npy(GOOD.replace("(2,)", f"({1 << 60},)"), b"\0" * 8),
        npy(GOOD.replace("(2,)", "(-2,)"), b"\0" * 8),
        npy(GOOD.replace("(2,)", "(True,)"), b"\0" * 8),
        npy(GOOD.replace("(2,)", "2"), b"\0" * 8),
        npy("{'descr': '<f4'}", b"\0" * 8),
        npy("__import__('os').system('true')", b"\0" * 8),
        npy("(" * 5000, b"\0" * 8),
        npy("{**{}}", b"\0" * 8),
        npy(GOOD + " " * 20_000, b"\0" * 8),
        npy(b"{\xff\xfe}", b"\0" * 8, version=3),
    ],
)
def test_arrays_that_lie(tmp_path: Path, member: bytes) -> None:
    path = archive(tmp_path / "m.npz", {"a.npy": member})
    with pytest.raises(MalformedFileError, match=r"a\.npy"):
        read(path)


def test_header_parser_equals_numpys() -> None:
    for array in arrays().values():
        stream = io.BytesIO()
        np.save(stream, array)
        raw = stream.getvalue()
        descr, fortran, shape, start = parse_npy_header(raw, "x")
        assert np.dtype(descr) == array.dtype
        assert shape == array.shape
        assert fortran == (array.flags.f_contiguous and not array.flags.c_contiguous)
        assert len(raw) - start == array.nbytes


def test_bombs_overlaps_and_other_containers(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez_compressed(path, a=np.zeros(20_000_000))
    with pytest.raises(UnsafeCheckpointError, match="inflate"):
        read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as target:
        target.writestr("a.npy", npy(GOOD, b"\0" * 8))
    with pytest.raises(UnsupportedFormatError, match="method 14"):
        read(path)
    with pytest.raises(MalformedFileError, match="without any"):
        read_model(ModelFile(archive(path, {"a.txt": b"x"})), "npz")
    with pytest.raises(FetchError):
        read_model(ModelFile(tmp_path / "nowhere.npz"), "npz")


def test_a_deflated_array_whose_checksum_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez_compressed(path, a=np.arange(500.0))
    raw = bytearray(path.read_bytes())
    directory = raw.rindex(b"PK\1\2")
    raw[directory + 16] ^= 1
    path.write_bytes(raw)
    with pytest.raises(MalformedFileError, match="checksum"):
        read(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_cut_short_at_any_byte(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "m.npz", a=np.ones(3))
    raw = (tmp_path / "m.npz").read_bytes()
    cut = tmp_path / "cut.npz"
    for length in range(len(raw)):
        cut.write_bytes(raw[:length])
        with pytest.raises(SourceError):
            read_model(ModelFile(cut), "npz")


@given(data=st.data())
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_files_give_values_or_source_errors(tmp_path: Path, data: st.DataObject) -> None:
    packed = data.draw(st.booleans())
    stream = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(stream, a=np.ones((2, 3)), b=np.arange(4))
    raw = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    mutant = tmp_path / "mutant.npz"
    mutant.write_bytes(raw)
    with contextlib.suppress(SourceError):
        for tensor in read_model(ModelFile(mutant), "npz").tensors:
            if not tensor.skip:
                assert tensor.load().shape == tensor.shape
