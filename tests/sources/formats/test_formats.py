"""The table of formats: lazy, extensible, and clear about what it does not know."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filterdb.errors import (
    FetchError,
    MalformedFileError,
    UnknownNameError,
    UnsupportedFormatError,
)
from filterdb.layers.raw import RawModel
from filterdb.sources import formats
from filterdb.sources.formats import FORMATS, FormatReader, ModelFile, detect, read_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUILT_IN = {"safetensors", "torch", "npz", "keras_h5", "tflite", "tfjs", "ncnn", "onnx"}


def test_every_built_in_format_has_its_reader() -> None:
    assert set(FORMATS) >= BUILT_IN
    assert len(FORMATS) == len(set(FORMATS))
    for name, reader in FORMATS.items():
        assert reader.name == name
        assert reader.title
        assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in reader.suffixes)


def test_the_table_is_read_without_importing_readers() -> None:
    code = (
        "import sys, filterdb.sources.formats as f; assert 'torch' in f.FORMATS; list(f.FORMATS)\n"
        "print([m for m in sys.modules if m.startswith('filterdb.sources.formats.')])\n"
        "[f.FORMATS[name] for name in f.FORMATS]\n"
        "print(sorted({'torch', 'onnx', 'h5py', 'safetensors', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['filterdb.sources.formats.base']", "[]"]


@given(head=st.binary(max_size=400))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_sniffer_raises_on_foreign_bytes(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(head)
    for reader in FORMATS.values():
        assert reader.sniff(head, ModelFile(path)) in (True, False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x04N.", "a plain Python pickle"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"  \n<html>", "a web page"),
        (b"hello world\n", "plain text"),
        (b'{"a": 1}', "JSON"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\xfe\xed\xfa\xce\x01", "nothing familiar .*fe ed fa ce"),
    ],
)
def test_unknown_files_are_described(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "0123"
    path.write_bytes(content)
    with pytest.raises(UnsupportedFormatError, match=words) as caught:
        read_model(ModelFile(path, name="weights.bin"))
    assert "weights.bin" in str(caught.value)
    assert "safetensors" in (caught.value.tip or "")


@pytest.mark.parametrize("format_name", ["auto", *FORMATS])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, format_name: str) -> None:
    (tmp_path / "0123").touch()
    with pytest.raises(MalformedFileError, match=r"weights\.bin is an empty file"):
        read_model(ModelFile(tmp_path / "0123", name="weights.bin"), format_name)


def test_a_file_of_another_format_than_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones(3))
    with pytest.raises(MalformedFileError, match=r"a\.npz") as caught:
        read_model(ModelFile(tmp_path / "a.npz"), "safetensors")
    assert caught.value.tip == "it was read as safetensors, and its bytes look like npz"


def test_archives_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(UnsupportedFormatError, match="zip archive"):
        detect(ModelFile(path))
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("other"))
    with pytest.raises(UnsupportedFormatError, match="tar archive"):
        detect(ModelFile(path))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="nowhere"):
        detect(ModelFile(tmp_path / "nowhere.pt"))
    with pytest.raises(FetchError, match="folder"):
        read_model(ModelFile(tmp_path))


def test_unknown_formats_name_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, a=np.ones(1))
    with pytest.raises(UnknownNameError, match="safetensors"):
        read_model(ModelFile(path), "safetensor")
    assert read_model(ModelFile(path), "npz").format == "npz"
    assert detect(ModelFile(path, name="renamed.pt")) == "npz"


READER = FormatReader(
    name="mine",
    title="My format",
    suffixes=(".mine",),
    sniff=lambda head, _: head.startswith(b"MINE"),
    read=lambda _: RawModel("mine", ()),
)
NO_READER = "something else"


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    points = [
        EntryPoint("mine", f"{__name__}:READER", "filterdb.formats"),
        EntryPoint("torch", f"{__name__}:READER", "filterdb.formats"),
    ]
    monkeypatch.setattr(formats, "entry_points", lambda group: points if group else [])
    formats._foreign.cache_clear()
    formats._load.cache_clear()
    yield
    formats._foreign.cache_clear()
    formats._load.cache_clear()


@pytest.mark.usefixtures("_installed")
def test_entry_points_add_formats_and_replace_none(tmp_path: Path) -> None:
    path = tmp_path / "x.mine"
    path.write_bytes(b"MINE")
    assert set(FORMATS) >= BUILT_IN | {"mine"}
    assert detect(ModelFile(path)) == "mine"
    assert read_model(ModelFile(path)).format == "mine"
    assert FORMATS["torch"].title == "PyTorch checkpoint"


def test_an_entry_point_that_names_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("bad", f"{__name__}:NO_READER", "filterdb.formats")]
    monkeypatch.setattr(formats, "entry_points", lambda group: points if group else [])
    formats._foreign.cache_clear()
    try:
        with pytest.raises(UnsupportedFormatError, match="a str, expected a FormatReader"):
            FORMATS["bad"]
    finally:
        formats._foreign.cache_clear()
