"""ncnn's binary models: as the text says, and as ncnn itself reads them."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest

from filterdb.errors import (
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import ModelFile, detect
from filterdb.sources.formats.ncnn import READER
from filterdb.sources.formats.ncnn_binary import LAYER_TYPES

RNG = np.random.default_rng(41)
MAGIC = 7767517


def to_binary(text: str) -> bytes:
    """What ncnn2mem writes for a text model whose float parameters have a point."""
    lines = [line.split() for line in text.splitlines()[1:]]
    numbers = bytearray(struct.pack("<3i", MAGIC, *map(int, lines[0])))
    blobs: dict[str, int] = {}
    for kind, _name, n_in, n_out, *rest in lines[1:]:
        n_blobs = int(n_in) + int(n_out)
        places = [blobs.setdefault(blob, len(blobs)) for blob in rest[:n_blobs]]
        numbers += struct.pack(
            f"<{3 + n_blobs}i", LAYER_TYPES.index(kind), int(n_in), int(n_out), *places
        )
        for word in rest[n_blobs:]:
            key, _, value = word.partition("=")
            numbers += struct.pack("<i", int(key))
            for item in value.split(","):
                numbers += (
                    struct.pack("<f", float(item)) if "." in item else struct.pack("<i", int(item))
                )
        numbers += struct.pack("<i", -233)
    return bytes(numbers)


TEXT = """7767517
5 5
Input data 0 1 data
Convolution conv 1 1 data a 0=4 1=3 11=2 2=1 3=2 13=1 4=1 14=0 5=1 6=72
BatchNorm bn 1 1 a b 0=4 1=0.25
ConvolutionDepthWise dw 1 1 b c 0=4 1=3 6=36 7=4 -23310=2,0.5,1.5
Deconvolution up 1 1 c d 0=2 1=2 6=32 3=2
"""
KERNELS = [
    RNG.standard_normal(shape).astype("<f4") for shape in ((4, 3, 2, 3), (4, 1, 3, 3), (2, 4, 2, 2))
]


def weights() -> bytes:
    tag = struct.pack("<I", 0)
    bias = RNG.standard_normal(4).astype("<f4").tobytes()
    norm = RNG.random((4, 4)).astype("<f4").tobytes()
    first, second, third = (kernel.tobytes() for kernel in KERNELS)
    return tag + first + bias + norm + tag + second + tag + third


def write(folder: Path, param: bytes, data: bytes) -> ModelFile:
    (folder / "net.param.bin").write_bytes(param)
    (folder / "net.bin").write_bytes(data)
    return ModelFile(folder / "net.param.bin")


def test_a_binary_model_says_what_its_text_says(tmp_path: Path) -> None:
    data = weights()
    file = write(tmp_path, to_binary(TEXT), data)
    assert detect(file) == "ncnn"
    assert READER.companions(file) == ("net.bin",)
    raw = READER.read(file)
    (tmp_path / "net.param").write_text(TEXT)
    text = READER.read(ModelFile(tmp_path / "net.param"))
    assert [t.shape for t in raw.tensors] == [t.shape for t in text.tensors]
    for one, other in zip(raw.tensors, text.tensors, strict=True):
        assert one.load().tobytes() == other.load().tobytes()
    assert [n.conv for n in raw.nodes] == [n.conv for n in text.nodes]
    assert [n.epsilon for n in raw.nodes] == [n.epsilon for n in text.nodes]
    assert raw.nodes[1].epsilon == 0.25
    assert [layer.conv_depth for layer in find_layers(raw).layers] == [
        layer.conv_depth for layer in find_layers(text).layers
    ]


def test_orientation_of_a_binary_model(tmp_path: Path) -> None:
    """Our kernels, convolved, are what ncnn computes from the same binary file."""
    ncnn = pytest.importorskip("ncnn", reason="the ncnn package is absent")
    kernel = np.arange(1, 7, dtype="<f4").reshape(1, 1, 2, 3)
    text = "7767517\n2 2\nInput data 0 1 data\nConvolution c 1 1 data out 0=1 1=3 11=2 6=6\n"
    file = write(tmp_path, to_binary(text), struct.pack("<I", 0) + kernel.tobytes())
    (layer,) = find_layers(READER.read(file)).layers
    np.testing.assert_array_equal(layer.weights(), kernel)
    net = ncnn.Net()
    assert net.load_param_bin(str(file.path)) == 0
    assert net.load_model(str(tmp_path / "net.bin")) == 0
    # An impulse comes out as the kernel turned round: cross-correlation.
    x = np.zeros((1, 3, 5), np.float32)
    x[0, 1, 2] = 1
    extractor = net.create_extractor()
    extractor.input(0, ncnn.Mat(x).clone())
    status, found = extractor.extract(1)
    assert status == 0
    np.testing.assert_allclose(np.array(found)[0], kernel[0, 0, ::-1, ::-1], atol=1e-2)


def test_layer_types_are_those_of_ncnn() -> None:
    ncnn = pytest.importorskip("ncnn", reason="the ncnn package is absent")
    assert [ncnn.layer_to_index(name) for name in LAYER_TYPES] == list(range(len(LAYER_TYPES)))


def test_ncnn_loads_the_same_binary_file(tmp_path: Path) -> None:
    ncnn = pytest.importorskip("ncnn", reason="the ncnn package is absent")
    file = write(tmp_path, to_binary(TEXT), weights())
    net = ncnn.Net()
    assert net.load_param_bin(str(file.path)) == 0
    assert net.load_model(str(tmp_path / "net.bin")) == 0


@pytest.mark.parametrize(
    ("numbers", "error", "match"),
    [
        ([MAGIC, 2, 1, 16, 0, 1, 0, -233], MalformedFileError, "ends early"),
        ([MAGIC, 1, 1, 16, 0, 1, 0, -233, 7], MalformedFileError, "the file has 36"),
        ([MAGIC, 1, 1, 500, 0, 1, 0, -233], UnsupportedFormatError, "type 500"),
        ([MAGIC, 1, 1, 16, 0, 1, 0, 40, 1, -233], MalformedFileError, "parameter 40"),
        ([MAGIC, 1, 1, 16, 0, 1, 0, -300, 1, -233], MalformedFileError, "parameter -300"),
        ([MAGIC, 1, 1, 16, -1, 1, 0, -233], MalformedFileError, "ends early"),
        ([MAGIC, 1, 1, 16, 0, 1 << 30, 0], UnsafeCheckpointError, "describes more"),
        ([MAGIC, 1, 1, 16, 0, 1, 0, -23301, 1 << 30], UnsafeCheckpointError, "describes more"),
        ([MAGIC, 1 << 30, 1, 16], MalformedFileError, "ends early"),
    ],
)  # fmt: skip
def test_damaged_binary_models_are_refused(
    tmp_path: Path, numbers: list[int], error: type[SourceError], match: str
) -> None:
    file = write(tmp_path, struct.pack(f"<{len(numbers)}i", *numbers), b"")
    with pytest.raises(error, match=match):
        READER.read(file)


def test_any_damage_ends_in_one_error(tmp_path: Path) -> None:
    param, data = to_binary(TEXT), weights()
    rng = np.random.default_rng(1)
    contents = [param[:cut] for cut in range(len(param))]
    for place in rng.integers(0, len(param), 300):
        damaged = bytearray(param)
        damaged[place] ^= int(rng.integers(1, 256))
        contents.append(bytes(damaged))
    for content in contents:
        file = write(tmp_path, content, data)
        READER.sniff(content[:4096], file)
        with contextlib.suppress(SourceError):
            for tensor in READER.read(file).tensors:
                tensor.load()


def test_many_layers_have_a_bound(tmp_path: Path) -> None:
    layer = struct.pack("<5i", 26, 1, 1, 0, 0) + struct.pack("<i", -233)
    param = struct.pack("<3i", MAGIC, 200_000, 1) + layer * 200_000
    with pytest.raises(UnsafeCheckpointError, match="describes more"):
        READER.read(write(tmp_path, param, b""))
