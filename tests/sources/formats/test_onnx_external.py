"""The ONNX reader: values in files beside the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from filterdb.errors import MalformedFileError, MissingCompanionError, UnsafeCheckpointError
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.onnx import READER
from tests.sources.formats.onnx_files import array, conv, model_of, save, tensor


def external_model(path: Path, location: str = "model.data", **entries: str) -> ModelFile:
    w = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    proto = array(w, "w")
    proto.ClearField("raw_data")
    proto.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "16", "length": "36", **entries}.items():
        proto.external_data.add(key=key, value=value)
    folder = path / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "model.data").write_bytes(bytes(16) + w.tobytes())
    (path / "outside.data").write_bytes(bytes(16) + w.tobytes())
    return save(folder, model_of([conv()], [proto]))


def test_external_data_beside_the_file(tmp_path: Path) -> None:
    file = external_model(tmp_path)
    assert READER.companions(file) == ("model.data",)
    loaded = tensor(READER.read(file), "w")
    assert loaded.load().ravel().tolist() == list(range(9))
    assert loaded.storage == ("external", "model.data", 16, 36, "float32")


def test_external_data_as_companion(tmp_path: Path) -> None:
    file = external_model(tmp_path)
    (file.path.parent / "model.data").rename(tmp_path / "0123abcd")
    with pytest.raises(MissingCompanionError, match=r"model\.data"):
        READER.read(file)
    given = ModelFile(file.path, {"model.data": tmp_path / "0123abcd"}, "model.onnx")
    assert tensor(READER.read(given), "w").load().ravel().tolist() == list(range(9))


@pytest.mark.parametrize(
    "location",
    ["../outside.data", "a/../../outside.data", "/etc/passwd", "..\\outside.data", "C:x", "",
     "link.data"],
)  # fmt: skip
def test_external_data_never_leaves_the_folder(tmp_path: Path, location: str) -> None:
    file = external_model(tmp_path, location)
    (file.path.parent / "link.data").symlink_to(tmp_path / "outside.data")
    with pytest.raises(UnsafeCheckpointError, match="folder"):
        READER.read(file)


@pytest.mark.parametrize(
    "entries",
    [{"offset": "20"}, {"length": "40"}, {"offset": "-4"}, {"offset": "9" * 30}, {"length": "x"}],
)
def test_external_data_must_fit(tmp_path: Path, entries: dict[str, str]) -> None:
    with pytest.raises(MalformedFileError, match="'w'"):
        READER.read(external_model(tmp_path, **entries))


def test_external_file_cut_short_after_listing(tmp_path: Path) -> None:
    file = external_model(tmp_path)
    loaded = tensor(READER.read(file), "w")
    (file.path.parent / "model.data").write_bytes(bytes(20))
    with pytest.raises(MalformedFileError, match="ends early"):
        loaded.load()
