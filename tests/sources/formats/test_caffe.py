"""Caffe: every generation of layers, every way to store numbers, norms with their scale."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filterdb.errors import MalformedFileError, SourceError, UnsafeCheckpointError
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import ModelFile, detect, read_model
from tests.sources.formats import caffe_files as caffe

if TYPE_CHECKING:
    from filterdb.layers.model import ModelLayers
    from filterdb.layers.raw import RawModel


def known(*shape: int) -> np.ndarray:
    """1, 2, 3, …: no kernel equals itself turned or mirrored."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


def write(folder: Path, raw: bytes) -> ModelFile:
    path = folder / "net.caffemodel"
    path.write_bytes(raw)
    return ModelFile(path)


def read(folder: Path, raw: bytes) -> RawModel:
    file = write(folder, raw)
    assert detect(file) == "caffe"
    return read_model(file)


def layers(folder: Path, raw: bytes) -> ModelLayers:
    return find_layers(read(folder, raw))


def test_orientation_of_every_kind_of_kernel(tmp_path: Path) -> None:
    plain, grouped, deep = known(4, 3, 3, 2), known(4, 2, 1, 3), known(4, 1, 3, 3)
    up, up_grouped = known(4, 6, 3, 2), known(6, 2, 2, 3)
    one, three = known(2, 4, 5), known(2, 4, 3, 2, 1)
    found = layers(
        tmp_path,
        caffe.net(
            caffe.convolution("plain", "data", "a", plain, stride=2, pad_h=1, pad_w=0),
            caffe.convolution("grouped", "a", "b", grouped, group=2, dilation=[2, 3]),
            caffe.convolution("deep", "b", "c", deep, kind="ConvolutionDepthwise"),
            caffe.convolution("up", "c", "d", up, kind="Deconvolution", stride=2),
            caffe.convolution("up_grouped", "d", "e", up_grouped, kind="Deconvolution", group=3),
            caffe.layer(
                "one", "Convolution", ["s"], ["f"], [caffe.blob(one)],
                extra=caffe.chunk(106, caffe.convolution_param(num_output=2, kernel_size=5)),
            ),
            caffe.layer(
                "three", "Convolution", ["v"], ["g"], [caffe.blob(three)],
                extra=caffe.chunk(
                    106,
                    caffe.convolution_param(num_output=2, kernel_size=[3, 2, 1], stride=[1, 2, 1]),
                ),
            ),
        ),
    )  # fmt: skip
    by_name = {la.name: la for la in found.layers}
    for name, weight in (("plain", plain), ("grouped", grouped), ("deep", deep), ("one", one),
                         ("three", three)):  # fmt: skip
        np.testing.assert_array_equal(by_name[name].weights(), weight)
    # Transposed: the file keeps (in, out / groups, ...).
    np.testing.assert_array_equal(by_name["up"].weights(), up.swapaxes(0, 1))
    got = by_name["up_grouped"].weights()
    assert got.shape == (6, 2, 2, 3)
    for group in range(3):
        part = up_grouped[2 * group : 2 * group + 2].swapaxes(0, 1)
        np.testing.assert_array_equal(got[2 * group : 2 * group + 2], part)
    assert by_name["plain"].stride == (2, 2)
    assert by_name["plain"].padding == (1, 0)
    assert by_name["grouped"].dilation == (2, 3)
    assert (by_name["grouped"].groups, by_name["deep"].groups) == (2, 4)
    assert by_name["deep"].role == "depthwise"
    assert by_name["up"].op == "conv_transpose"
    assert by_name["three"].stride == (1, 2, 1)
    assert [by_name[n].conv_depth for n in ("plain", "grouped", "deep", "up")] == [0, 1, 2, 3]


@pytest.mark.parametrize("how", ["float", "double", "legacy", "unpacked", "raw16", "half"])
def test_every_way_to_store_numbers(tmp_path: Path, how: str) -> None:
    weight, bias = known(2, 3, 3, 3), known(2)
    raw = read(tmp_path, caffe.net(caffe.convolution("c", "data", "c", weight, how=how, bias=bias)))
    dtype = {"double": "float64", "raw16": "float16", "half": "float16"}.get(how, "float32")
    for tensor, values in zip(raw.tensors, (weight, bias), strict=True):
        assert (tensor.dtype, tensor.shape) == (dtype, values.shape)
        loaded = tensor.load()
        assert loaded.dtype == dtype
        np.testing.assert_array_equal(loaded, values)


def test_values_in_several_pieces_are_joined(tmp_path: Path) -> None:
    weight = known(2, 3, 3, 3)
    flat = weight.reshape(-1).astype("<f4")
    shape = caffe.blob(weight)[-8:]
    pieces = caffe.chunk(5, flat[:20].tobytes()) + caffe.chunk(5, flat[20:].tobytes())
    whole = caffe.layer("c", "Convolution", ["data"], ["c"], [pieces + shape])
    np.testing.assert_array_equal(layers(tmp_path, caffe.net(whole)).layers[0].weights(), weight)


def test_batch_norm_takes_its_scale_and_divides_by_its_factor(tmp_path: Path) -> None:
    weight = known(4, 3, 3, 3)
    mean, var = known(4) / 7, known(4) / 3
    gamma, beta = known(4) + 1, known(4) - 2
    found = layers(
        tmp_path,
        caffe.net(
            caffe.convolution("c", "data", "c", weight),
            caffe.batch_norm("n", "c", "c", mean, var, 250.0, 1e-3),
            caffe.scale("s", "c", "c", gamma, beta),
            caffe.layer("r", "ReLU", ["c"], ["c"]),
            caffe.convolution("d", "c", "d", known(2, 4, 1, 1)),
        ),
    )
    first, second = found.layers
    assert first.read_batch_norm is not None
    norm = first.read_batch_norm()
    np.testing.assert_allclose(norm.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(norm.var, var, rtol=1e-6)
    np.testing.assert_array_equal(norm.gamma, gamma)
    np.testing.assert_array_equal(norm.beta, beta)
    assert norm.epsilon == pytest.approx(1e-3)
    assert (second.batch_norm_status, second.conv_depth) == ("none", 1)
    assert {s.tensor: s.reason for s in found.skipped}["n.scale_factor"] == "buffer"


def test_a_scale_two_layers_read_stays_a_layer_of_its_own(tmp_path: Path) -> None:
    raw = read(
        tmp_path,
        caffe.net(
            caffe.convolution("c", "data", "c", known(4, 3, 3, 3)),
            caffe.batch_norm("n", "c", "n", known(4), known(4), 1.0, 1e-5),
            caffe.scale("s", "n", "s", known(4), known(4)),
            caffe.layer("other", "ReLU", ["n"], ["o"]),
        ),
    )
    assert [n.op for n in raw.nodes] == ["conv", "batch_norm", "multiply", "add", "other"]


def test_the_older_generations_of_layers(tmp_path: Path) -> None:
    weight, matrix = known(4, 2, 3, 3), known(5, 36)
    v1 = caffe.net(
        caffe.layer_v1(
            "c", caffe.V1_CONVOLUTION, ["data"], ["c"], [caffe.blob(weight, "legacy")],
            extra=caffe.chunk(10, caffe.convolution_param(num_output=4, kernel_size=3, group=2)),
        ),
        caffe.layer_v1("r", caffe.V1_RELU, ["c"], ["c"]),
        caffe.layer_v1("f", caffe.V1_INNER_PRODUCT, ["c"], ["f"], [caffe.blob(matrix, "legacy")]),
    )  # fmt: skip
    inner = caffe.number(8, 3) + caffe.number(9, 2) + caffe.number(10, 2)
    v0 = caffe.net(
        caffe.layer_v0(
            "c", "conv", ["data"], ["c"], inner + caffe.chunk(50, caffe.blob(weight, "legacy"))
        ),
        caffe.layer_v0("r", "relu", ["c"], ["c"]),
    )
    for raw, stride in ((v1, (1, 1)), (v0, (2, 2))):
        found = layers(tmp_path, raw)
        (only,) = found.layers
        np.testing.assert_array_equal(only.weights(), weight)
        assert (only.groups, only.stride, only.conv_depth) == (2, stride, 0)
    tensors = {t.name: t for t in read(tmp_path, v1).tensors}
    assert tensors["f.weight"].shape == (5, 36)


@pytest.mark.parametrize("n", [1, 3])
def test_a_dense_block_is_taken_apart(tmp_path: Path, n: int) -> None:
    growth, start = 2, 4
    kernels = [known(growth, start + growth * i, 3, 3) for i in range(n)]
    vectors = [known(1, start + growth * i, 1, 1) for _ in range(4) for i in range(n)]
    blobs = [caffe.blob(b) for b in [*kernels, *vectors, np.zeros(1)]]
    found = layers(
        tmp_path,
        caffe.net(
            caffe.convolution("c", "data", "c", known(start, 3, 5, 5)),
            caffe.layer("block", "DenseBlock", ["c"], ["block"], blobs),
            caffe.convolution("d", "block", "d", known(2, start + growth * n, 1, 1)),
        ),
    )
    assert [la.conv_depth for la in found.layers] == [*range(n + 2)]
    for la, kernel in zip(found.layers[1:-1], kernels, strict=True):
        np.testing.assert_array_equal(la.weights(), kernel)


@pytest.mark.parametrize(
    ("raw", "error", "match"),
    [
        (caffe.net(), MalformedFileError, "no Caffe network"),
        (
            caffe.net(caffe.convolution("c", "a", "b", known(2, 3, 3, 3), kernel_h=5)),
            MalformedFileError,
            "kernel",
        ),
        (
            caffe.net(
                caffe.layer(
                    "c", "Convolution", ["a"], ["b"],
                    [caffe.chunk(7, caffe.chunk(1, b"\x04\x04")) + caffe.chunk(5, bytes(60))],
                )
            ),
            MalformedFileError,
            "holds 15 values, expected 16",
        ),
        (
            caffe.net(
                caffe.layer(
                    "c", "ReLU", ["a"], ["b"],
                    [caffe.chunk(7, caffe.chunk(1, caffe.varint(1 << 40)))
                     + caffe.chunk(10, b"\x01")],
                )
            ),
            UnsafeCheckpointError,
            "bytes in memory",
        ),
        (
            caffe.net(
                caffe.layer(
                    "c", "ReLU", ["a"], ["b"], [caffe.chunk(5, b"123") + caffe.number(4, 1)]
                )
            ),
            MalformedFileError,
            "3 bytes of float32",
        ),
        (
            caffe.net(caffe.batch_norm("n", "a", "b", known(2), known(2), 1.0, 1e-5)).replace(
                caffe.blob(np.array([1.0])), caffe.blob(np.array([1.0]))[:-1] + b"\x02"
            ),
            MalformedFileError,
            "holds 1 values",
        ),
    ],
)  # fmt: skip
def test_files_that_lie(tmp_path: Path, raw: bytes, error: type[SourceError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        read_model(write(tmp_path, raw), "caffe")
    assert "net.caffemodel" in str(caught.value)


def whole() -> bytes:
    return caffe.net(
        caffe.convolution("c", "data", "c", known(4, 1, 3, 2), how="raw16", bias=known(4)),
        caffe.batch_norm("n", "c", "c", known(4), known(4), 2.0, 1e-3),
        caffe.scale("s", "c", "c", known(4), known(4)),
        caffe.convolution("u", "c", "u", known(4, 2, 2, 2), kind="Deconvolution", how="half"),
        caffe.layer_v1("f", 14, ["u"], ["f"], [caffe.blob(known(2, 3), "unpacked")]),
    )


def everything(file: ModelFile) -> None:
    for tensor in read_model(file, "caffe").tensors:
        assert tensor.load().shape == tensor.shape


def test_cut_short_at_any_byte(tmp_path: Path) -> None:
    raw = whole()
    everything(write(tmp_path, raw))
    for length in range(1, len(raw)):
        with contextlib.suppress(SourceError):
            everything(write(tmp_path, raw[:length]))


@given(data=st.data())
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_files_give_values_or_source_errors(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(whole())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SourceError):
        everything(write(tmp_path, bytes(raw)))
