"""The ncnn reader: weight order per layer (against ncnn itself), encodings, damaged files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filterdb.errors import (
    MalformedFileError,
    MissingCompanionError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.ncnn import READER
from filterdb.sources.formats.ncnn_param import parse_param
from filterdb.sources.formats.ncnn_weights import WEIGHTED

if TYPE_CHECKING:
    from filterdb.layers.raw import RawModel, Tensor

RNG = np.random.default_rng(40)
F16, I8, F32, RAW32 = 0x01306B47, 0x000D4B38, 0, 0x0002C056


def text(*layers: str, blobs: int = 9) -> str:
    return "\n".join(["7767517", f"{len(layers)} {blobs}", *layers]) + "\n"


def flagged(values: Any, tag: int = F32) -> bytes:
    data = np.ascontiguousarray(values).tobytes()
    return struct.pack("<I", tag) + data + bytes(-len(data) % 4)


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def write(path: Path, param: str, weights: bytes) -> ModelFile:
    (path / "m.param").write_text(param)
    (path / "m.bin").write_bytes(weights)
    return ModelFile(path / "m.param")


def read(path: Path, param: str, weights: bytes) -> RawModel:
    raw = READER.read(write(path, param, weights))
    assert len({t.name for t in raw.tensors}) == len(raw.tensors)
    return raw


def tensor(raw: RawModel, name: str) -> Tensor:
    return next(t for t in raw.tensors if t.name == name)


INPUT = "Input data 0 1 data"


def test_convolution(tmp_path: Path) -> None:
    w = RNG.standard_normal((4, 3, 2, 5)).astype(np.float32)
    line = "Convolution conv 1 1 data out 0=4 1=5 11=2 2=2 12=3 3=1 13=2 4=2 14=1 5=1 6=120"
    raw = read(tmp_path, text(INPUT, line), flagged(w) + floats(1, 2, 3, 4))
    (node,) = raw.nodes
    assert node.conv is not None
    assert (node.name, node.op, node.source_op) == ("conv", "conv", "Convolution")
    assert (node.conv.layout, node.conv.groups) == ("OIHW", 1)
    assert (node.conv.stride, node.conv.dilation) == ((2, 1), (3, 2))
    assert node.conv.padding == (1, 2)
    assert dict(node.weights) == {"weight": "conv.weight", "bias": "conv.bias"}
    assert (node.inputs, node.outputs) == (("data",), ("out",))
    assert raw.has_edges
    np.testing.assert_array_equal(tensor(raw, "conv.weight").load(), w)
    assert tensor(raw, "conv.bias").load().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("parameters", "padding"),
    [
        ("", (0, 0)),
        ("4=1", (1, 1)),
        ("4=1 15=2", (1, 1, 1, 2)),
        ("4=1 14=0 16=3", (0, 1, 3, 1)),
        ("4=-233", None),
        ("4=-234", None),
    ],
)
def test_padding(tmp_path: Path, parameters: str, padding: Any) -> None:
    line = f"Convolution c 1 1 data out 0=1 1=3 6=9 {parameters}"
    (node,) = read(tmp_path, text(INPUT, line), flagged(np.zeros(9, "<f4"))).nodes
    assert node.conv is not None
    assert node.conv.padding == padding


@pytest.mark.parametrize(
    ("line", "shape", "layout", "groups", "op"),
    [
        ("ConvolutionDepthWise c 1 1 data out 0=4 1=3 6=36 7=4", (4, 1, 3, 3), "OIHW", 4, "conv"),
        ("ConvolutionDepthWise c 1 1 data out 0=4 1=3 6=72 7=2", (4, 2, 3, 3), "OIHW", 2, "conv"),
        ("Deconvolution c 1 1 data out 0=2 1=2 6=24 3=2", (2, 3, 2, 2), "OIHW", 1,
         "conv_transpose"),
        ("DeconvolutionDepthWise c 1 1 data out 0=4 1=2 6=16 7=4", (4, 1, 2, 2), "OIHW", 4,
         "conv_transpose"),
        ("Convolution1D c 1 1 data out 0=2 1=5 6=20", (2, 2, 5), "OIW", 1, "conv"),
        ("Convolution3D c 1 1 data out 0=2 1=4 11=3 21=2 6=48", (2, 1, 2, 3, 4), "OIDHW", 1,
         "conv"),
        ("DeconvolutionDepthWise3D c 1 1 data out 0=2 1=2 6=16 7=2", (2, 1, 2, 2, 2), "OIDHW", 2,
         "conv_transpose"),
    ],
)  # fmt: skip
def test_kinds_of_convolution(
    tmp_path: Path, line: str, shape: tuple[int, ...], layout: str, groups: int, op: str
) -> None:
    w = RNG.standard_normal(shape).astype(np.float32)
    raw = read(tmp_path, text(INPUT, line), flagged(w))
    (node,) = raw.nodes
    assert node.conv is not None
    assert (node.op, node.conv.layout, node.conv.groups) == (op, layout, groups)
    np.testing.assert_array_equal(tensor(raw, "c.weight").load(), w)


def test_weight_that_is_computed(tmp_path: Path) -> None:
    line = "Convolution c 2 1 data w out 0=1 1=3 6=9 19=1"
    raw = read(tmp_path, text(INPUT, "Input w 0 1 w", line), b"")
    (node,) = raw.nodes
    assert node.dynamic_weight == "w"
    assert raw.tensors == ()


# --- encodings -----------------------------------------------------------------------------------

CONV = "Convolution c 1 1 data out 0=3 1=1 6=3"


@pytest.mark.parametrize(
    ("tag", "dtype"), [(F32, np.float32), (RAW32, np.float32), (F16, np.float16)]
)
def test_floats(tmp_path: Path, tag: int, dtype: Any) -> None:
    w = RNG.standard_normal(3).astype(dtype)
    loaded = tensor(read(tmp_path, text(INPUT, CONV), flagged(w, tag)), "c.weight")
    assert (loaded.dtype, loaded.quantised) == (np.dtype(dtype).name, False)
    assert loaded.load().dtype == dtype
    assert loaded.load().tobytes() == w.tobytes()


def test_table_of_values(tmp_path: Path) -> None:
    table = RNG.standard_normal(256).astype("<f4")
    data = struct.pack("<I", 1) + table.tobytes() + bytes([7, 0, 255, 0])
    loaded = tensor(read(tmp_path, text(INPUT, CONV), data), "c.weight")
    assert (loaded.dtype, loaded.quantised) == ("uint8", True)
    assert loaded.load().ravel().tolist() == table[[7, 0, 255]].tolist()


@pytest.mark.parametrize(
    ("line", "scales", "factor"),
    [
        (f"{CONV} 8=2", (2.0, 4.0, 8.0, 100.0), (2.0, 4.0, 8.0)),
        (f"{CONV} 8=102", (2.0, 4.0, 8.0, 100.0, 50.0), (2.0, 4.0, 8.0)),
        ("ConvolutionDepthWise c 1 1 data out 0=3 1=1 6=3 7=3 8=1", (2.0, 4.0, 8.0, 100.0),
         (2.0, 4.0, 8.0)),
        ("ConvolutionDepthWise c 1 1 data out 0=3 1=1 6=3 7=3 8=2", (2.0, 100.0), (2.0,) * 3),
        ("InnerProduct c 1 1 data out 0=3 2=3 8=1", (2.0, 4.0, 8.0, 100.0), (2.0, 4.0, 8.0)),
    ],
)  # fmt: skip
def test_int8(tmp_path: Path, line: str, scales: Any, factor: Any) -> None:
    q = np.array([100, -50, 7], np.int8)
    raw = read(tmp_path, text(INPUT, line), flagged(q, I8) + floats(*scales))
    loaded = tensor(raw, "c.weight")
    assert (loaded.dtype, loaded.quantised, loaded.skip) == ("int8", True, None)
    expected = q / np.array(factor)
    assert loaded.load().ravel().tolist() == expected.tolist()
    assert all(t.skip and t.skip[0] == "buffer" for t in raw.tensors if "scale" in t.name)


def test_int8_scales_divide_as_in_ncnn(tmp_path: Path) -> None:
    ncnn = pytest.importorskip("ncnn", reason="the ncnn package is absent")
    q = RNG.integers(-127, 128, (4, 2, 3, 3)).astype(np.int8)
    scale = RNG.uniform(20, 60, 4).astype(np.float32)
    line = "Convolution c 1 1 data out 0=4 1=3 6=72 8=2"
    file = write(tmp_path, text(INPUT, line, blobs=2), flagged(q, I8) + floats(*scale, 127.0))
    weights = tensor(READER.read(file), "c.weight").load()
    net = ncnn.Net()
    net.opt.num_threads = 1
    assert net.load_param(str(file.path)) == 0
    assert net.load_model(str(tmp_path / "m.bin")) == 0
    x = RNG.uniform(-1, 1, (2, 5, 5)).astype(np.float32)
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(x).clone())
    status, found = extractor.extract("out")
    assert status == 0
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    expected = np.einsum("chwij,ocij->ohw", windows, weights)
    # The input is rounded to eight bits on the way.
    np.testing.assert_allclose(np.array(found), expected, atol=0.02 * np.abs(expected).max())


# --- every layer's own arrays, counted by ncnn itself --------------------------------------------

LINES = {
    "Convolution": "0=4 1=3 5=1 6=72",
    "ConvolutionDepthWise": "0=4 1=3 5=1 6=36 7=4",
    "Convolution1D": "0=4 1=3 5=1 6=24",
    "ConvolutionDepthWise1D": "0=4 1=3 5=1 6=12 7=4",
    "Convolution3D": "0=4 1=3 5=1 6=216",
    "ConvolutionDepthWise3D": "0=4 1=3 5=1 6=108 7=4",
    "Deconvolution": "0=4 1=3 5=1 6=72",
    "DeconvolutionDepthWise": "0=4 1=3 5=1 6=36 7=4",
    "Deconvolution1D": "0=4 1=3 5=1 6=24",
    "DeconvolutionDepthWise1D": "0=4 1=3 5=1 6=12 7=4",
    "Deconvolution3D": "0=4 1=3 5=1 6=216",
    "DeconvolutionDepthWise3D": "0=4 1=3 5=1 6=108 7=4",
    "DeformableConv2D": "0=4 1=3 5=1 6=72",
    "InnerProduct": "0=4 1=1 2=24",
    "Embed": "0=4 1=5 2=1 3=20",
    "BatchNorm": "0=6 1=1e-3",
    "Scale": "0=6 1=1",
    "Bias": "0=6",
    "PReLU": "0=6",
    "LayerNorm": "0=6 1=1e-5 2=1",
    "RMSNorm": "0=6 1=1e-5 2=1",
    "GroupNorm": "0=2 1=6 2=1e-5 3=1",
    "InstanceNorm": "0=6 1=1e-5 2=1",
    "Normalize": "0=0 1=0 2=1e-4 3=6 4=1",
    "MemoryData": "0=3 1=4 2=2",
    "LSTM": "0=4 1=96 2=2 3=4",
    "GRU": "0=4 1=72 2=2",
    "RNN": "0=4 1=24 2=2",
    "MultiHeadAttention": "0=8 1=2 2=64",
    "Gemm": "2=0 3=1 4=0 5=1 6=1 7=0 8=6 9=4 10=4",
    "Quantize": "0=6",
    "Dequantize": "0=6 1=6",
    "Requantize": "0=6 1=6 2=6",
}


def test_every_layer_type_is_tried() -> None:
    assert set(LINES) == set(WEIGHTED)


@pytest.mark.parametrize("kind", sorted(LINES))
def test_ncnn_takes_exactly_these_bytes(tmp_path: Path, kind: str) -> None:
    ncnn = pytest.importorskip("ncnn", reason="the ncnn package is absent")
    if not ncnn.layer_to_index(kind) >= 0:
        pytest.skip(f"this ncnn was built without {kind}")
    memory = kind == "MemoryData"
    line = f"{kind} layer {'0 1' if memory else '1 1 data'} out {LINES[kind]}"
    param = text(INPUT, line, blobs=2)
    (layer,) = parse_param(text(line), "m")
    blocks = WEIGHTED[kind](layer)
    size = sum(4 * int(np.prod(b.shape)) + (4 if b.flagged else 0) for b in blocks)
    assert size > 0
    weights = b"".join(
        (bytes(4) if b.flagged else b"") + RNG.uniform(0.5, 1, b.shape).astype("<f4").tobytes()
        for b in blocks
    )
    for cut, expected in ((0, True), (4, False)):
        file = write(tmp_path, param, weights[: size - cut])
        net = ncnn.Net()
        net.opt.num_threads = 1
        assert net.load_param(str(file.path)) == 0
        assert (net.load_model(str(tmp_path / "m.bin")) == 0) is expected
    assert len(read(tmp_path, param, weights).tensors) == len(blocks)


# --- nodes ---------------------------------------------------------------------------------------


def test_norms_scales_and_constants(tmp_path: Path) -> None:
    param = text(
        INPUT,
        "BatchNorm bn 1 1 data a 0=2 1=1e-3",
        "Scale scale 1 1 a b 0=2 1=1",
        "Split split 1 2 b b1 b2",
        "PReLU act 1 1 b1 c 0=2",
        "MemoryData mem 0 1 m 0=1 1=1 2=2",
        "BinaryOp mul 2 1 c m d 0=2",
        "InnerProduct fc 1 1 d e 0=3 1=0 2=12",
        "BinaryOp plus 2 1 e b2 f 0=0",
        blobs=12,
    )
    weights = floats(*range(8), *range(4), 0.1, 0.2, 3, 4) + flagged(np.zeros(12, "<f4"))
    raw = read(tmp_path, param, weights)
    assert [(n.name, n.op) for n in raw.nodes] == [
        ("bn", "batch_norm"), ("scale", "multiply"), ("scale/bias", "add"), ("split", "identity"),
        ("act", "norm"), ("mul", "multiply"), ("fc", "linear"), ("plus", "other"),
    ]  # fmt: skip
    norm = raw.nodes[0]
    assert norm.epsilon == pytest.approx(1e-3)
    loaded = {role: tensor(raw, name).load().tolist() for role, name in norm.weights.items()}
    assert loaded == {"gamma": [0, 1], "mean": [2, 3], "var": [4, 5], "beta": [6, 7]}
    assert raw.nodes[1].outputs == raw.nodes[2].inputs == ("scale/product",)
    assert raw.nodes[2].outputs == ("b",)
    assert dict(raw.nodes[5].weights) == {"constant": "mem.data"}
    assert raw.nodes[5].inputs == ("c",)
    assert tensor(raw, "mem.data").shape == (2, 1, 1)


def test_array_parameters_and_texts_are_passed_over(tmp_path: Path) -> None:
    line = 'Convolution c 1 1 data out 0=1 1=1 6=1 9=2 -23310=1,2.0e-01 30="name"'
    assert len(read(tmp_path, text(INPUT, line), flagged(np.zeros(1, "<f4"))).tensors) == 1


# --- damaged and hostile files -------------------------------------------------------------------


def test_unknown_layers_without_weights_are_fine(tmp_path: Path) -> None:
    param = text(INPUT, "rife.Warp warp 1 1 data a", CONV)
    raw = read(tmp_path, param, flagged(np.zeros(3, "<f4")))
    assert [n.op for n in raw.nodes] == ["other", "conv"]


def test_unknown_layers_that_may_have_weights_are_named(tmp_path: Path) -> None:
    param = text(INPUT, "MyNorm n 1 1 data a 0=2", CONV)
    weights = floats(5, 6) + flagged(np.zeros(3, "<f4"))
    with pytest.raises(MalformedFileError, match="MyNorm"):
        read(tmp_path, param, weights)


def test_weights_must_be_used_up(tmp_path: Path) -> None:
    with pytest.raises(MalformedFileError, match="read 16 bytes of weights, the file has 20"):
        read(tmp_path, text(INPUT, CONV), flagged(np.zeros(4, "<f4")))


def test_missing_weights(tmp_path: Path) -> None:
    file = write(tmp_path, text(INPUT, CONV), b"")
    (tmp_path / "m.bin").unlink()
    with pytest.raises(MissingCompanionError, match=r"m\.bin"):
        READER.read(file)
    assert READER.companions(ModelFile(tmp_path / "0abc", name="x/net.param")) == ("net.bin",)
    (tmp_path / "elsewhere").write_bytes(flagged(np.zeros(3, "<f4")))
    given = ModelFile(file.path, {"net.bin": tmp_path / "elsewhere"}, "net.param")
    assert len(READER.read(given).tensors) == 1


@pytest.mark.parametrize(
    ("param", "error", "message"),
    [
        ("", UnsupportedFormatError, "7767517"),
        ("layer conv\n", UnsupportedFormatError, "7767517"),
        ("7767517\n", MalformedFileError, "line 2"),
        ("7767517\n-1 3\n", MalformedFileError, "line 2"),
        ("7767517\n999999999 3\n", UnsafeCheckpointError, "announces"),
        ("7767517\n2 3\n" + INPUT, MalformedFileError, "holds 1"),
        (text("Convolution c 1 1 data"), MalformedFileError, "line 3"),
        (text("Convolution c -1 1 data out"), MalformedFileError, "line 3"),
        (text("Convolution c 99999999 1 data out"), MalformedFileError, "line 3"),
        (text("Convolution c x 1 data out"), MalformedFileError, "line 3"),
        (text("Convolution c 1 1 data out 0"), MalformedFileError, "line 3"),
        (text("Convolution c 1 1 data out 0=0 6=4"), MalformedFileError, "0 outputs"),
        (text("Convolution c 1 1 data out 0=3 1=3 6=28"), MalformedFileError, "28 weights"),
        (text("Convolution c 1 1 data out 0=1 1=1 6=999999999"), MalformedFileError, "needs"),
        (text("Convolution c 1 1 data out 0=1e300 1=1 6=9"), MalformedFileError, "no integer"),
        (text("Convolution c 1 1 data out 0=nan 1=1 6=9"), MalformedFileError, "no integer"),
        (text("Scale s 1 1 data out 0=-5"), MalformedFileError, "negative"),
        (text("LSTM l 1 1 data out 0=0 1=5"), MalformedFileError, "LSTM"),
        (text("Gemm g 1 1 data out 4=1 7=99999999 9=99999999"), MalformedFileError, "absurd|needs"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, param: str, error: type[SourceError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(tmp_path, param, bytes(64))


PARAM = text(
    INPUT,
    "Convolution c 1 1 data a 0=2 1=3 4=1 5=1 6=18",
    "BatchNorm bn 1 1 a b 0=2",
    "InnerProduct fc 1 1 b c 0=3 1=1 2=6 8=1",
    "MemoryData mem 0 1 m 0=2",
)
WEIGHTS = (
    flagged(np.ones(18, "<f2"), F16) + floats(1, 2) + floats(*range(8))
    + flagged(np.ones(6, "i1"), I8) + floats(*range(9))
)  # fmt: skip


def read_everything(file: ModelFile) -> None:
    """Open a file and read all its tensors; anything but a SourceError is a failure."""
    try:
        raw = READER.read(file)
    except SourceError:
        return
    for found in raw.tensors:
        try:
            values = found.load()
        except SourceError:
            continue
        assert values.shape == found.shape


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    raw = read(tmp_path, PARAM, WEIGHTS)
    assert len(raw.tensors) == 11
    for size in range(len(WEIGHTS)):
        with pytest.raises(MalformedFileError):
            read(tmp_path, PARAM, WEIGHTS[:size])
    for size in range(len(PARAM)):
        read_everything(write(tmp_path, PARAM[:size], WEIGHTS))


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, len(PARAM) - 1), st.characters(codec="utf-8")), max_size=4),
    st.lists(st.tuples(st.integers(0, len(WEIGHTS) - 1), st.integers(0, 255)), max_size=2),
)
def test_changed_bytes(tmp_path_factory: pytest.TempPathFactory, words: Any, values: Any) -> None:
    letters, data = list(PARAM), bytearray(WEIGHTS)
    for position, letter in words:
        letters[position] = letter
    for position, byte in values:
        data[position] = byte
    folder = tmp_path_factory.getbasetemp()
    (folder / "m.param").write_bytes("".join(letters).encode())
    (folder / "m.bin").write_bytes(data)
    read_everything(ModelFile(folder / "m.param"))


def test_sniffing(tmp_path: Path) -> None:
    file = ModelFile(tmp_path / "m")
    assert READER.sniff(PARAM.encode(), file)
    assert READER.sniff(b"7767517\r\n3 3\r\n", file)
    for foreign in (b"", b"77675170\n", b"\xdd\x85\x76\x00", b"{}"):
        assert not READER.sniff(foreign, file)
