"""Darknet: the text decides where every number lies, to the last byte of the weights."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filterdb.errors import (
    MalformedFileError,
    MissingCompanionError,
    SourceError,
    UnsupportedFormatError,
)
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import FORMATS, ModelFile, detect, read_model
from tests.sources.formats.darknet_files import NET, header, numbers, write


def known(*shape: int) -> np.ndarray:
    """1, 2, 3, …: no kernel equals itself turned or mirrored."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


NORMED = "[convolutional]\nbatch_normalize=1\nfilters=4\nsize=3\nstride=2\npad=1\n\n"
PLAIN = "[conv]\nfilters=2\nsize = 1 # the head\n"


def test_orientation_and_order_of_the_arrays(tmp_path: Path) -> None:
    weight, head = known(4, 3, 3, 3), known(2, 4, 1, 1)
    vectors = [known(4) + i for i in range(4)]
    file = write(
        tmp_path,
        NET + NORMED + PLAIN,
        header() + numbers(*vectors, weight) + numbers(known(2), head),
    )
    assert detect(file) == "darknet"
    raw = read_model(file)
    first, second = find_layers(raw).layers
    np.testing.assert_array_equal(first.weights(), weight)
    np.testing.assert_array_equal(second.weights(), head)
    assert (first.name, second.name) == ("convolutional_0", "convolutional_1")
    assert (first.stride, first.padding, first.conv_depth) == ((2, 2), (1, 1), 0)
    assert (second.conv_depth, second.batch_norm_status) == (1, "none")
    assert first.read_batch_norm is not None
    norm = first.read_batch_norm()
    for values, expected in zip((norm.beta, norm.gamma, norm.mean, norm.var), vectors, strict=True):
        np.testing.assert_array_equal(values, expected)


def test_orientation_of_grouped_transposed_and_flipped_kernels(tmp_path: Path) -> None:
    grouped, up, turned = known(6, 1, 3, 3), known(6, 2, 2, 2), known(3, 2, 3, 3)
    cfg = NET + (
        "[convolutional]\nfilters=6\nsize=3\ngroups=3\ndilation=2\npadding=1\n"
        "stride_x=2\nstride_y=1\n"
        "[deconvolutional]\nfilters=2\nsize=2\nstride=2\n"
        "[convolutional]\nfilters=3\nsize=3\nflipped=1\n"
    )
    stored = turned.reshape(3, -1).T
    file = write(
        tmp_path,
        cfg,
        header() + numbers(known(6), grouped, known(2), up, known(3), stored),
    )
    layers = find_layers(read_model(file)).layers
    np.testing.assert_array_equal(layers[0].weights(), grouped)
    np.testing.assert_array_equal(layers[1].weights(), up.swapaxes(0, 1))
    np.testing.assert_array_equal(layers[2].weights(), turned)
    assert (layers[0].groups, layers[0].dilation, layers[0].stride) == (3, (2, 2), (1, 2))
    assert layers[0].padding == (2, 2)
    assert layers[1].op == "conv_transpose"


@pytest.mark.parametrize("version", [(0, 1, 0), (0, 2, 0), (0, 2, 5), (1, 0, 0)])
def test_versions_count_images_in_32_or_64_bits(
    tmp_path: Path, version: tuple[int, int, int]
) -> None:
    head = known(2, 3, 1, 1)
    file = write(tmp_path, NET + PLAIN, header(version) + numbers(known(2), head))
    np.testing.assert_array_equal(find_layers(read_model(file)).layers[0].weights(), head)


def test_routes_shortcuts_and_matrices(tmp_path: Path) -> None:
    """Extents flow through everything that keeps nothing, up to a matrix that needs them."""
    cfg = NET + (
        "[convolutional]\nfilters=8\nsize=3\npad=1\n"  # 0: 8 x 6 x 8
        "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n"  # 1: 4 channels
        "[convolutional]\nfilters=4\nsize=3\npad=1\n"  # 2
        "[shortcut]\nfrom=-2\nactivation=linear\n"  # 3
        "[route]\nlayers=-1,0\n"  # 4: 12 channels
        "[maxpool]\nsize=2\nstride=2\n"  # 5: 3 x 4
        "[upsample]\nstride=2\n"  # 6: 6 x 8
        "[reorg]\nstride=2\n"  # 7: 48 channels, 3 x 4
        "[dropout]\n[connected]\noutput=5\nbatch_normalize=1\n[softmax]\n"
    )
    first, second, matrix = known(8, 3, 3, 3), known(4, 4, 3, 3), known(5, 48 * 3 * 4)
    file = write(
        tmp_path,
        cfg,
        header()
        + numbers(known(8), first, known(4), second)
        + numbers(known(5), matrix, known(5), known(5), known(5)),
    )
    raw = read_model(file)
    tensors = {t.name: t for t in raw.tensors}
    np.testing.assert_array_equal(tensors["connected_9.weight"].load(), matrix)
    layers = find_layers(raw).layers
    assert [la.conv_depth for la in layers] == [0, 1]
    np.testing.assert_array_equal(layers[1].weights(), second)


def test_matrices_of_transposed_files_and_shared_kernels(tmp_path: Path) -> None:
    weight, matrix = known(3, 3, 1, 1), known(2, 3 * 48)
    cfg = NET + (
        "[convolutional]\nfilters=3\nsize=1\n[convolutional]\nfilters=3\nsize=1\nshare_index=-1\n"
        "[connected]\noutput=2\n"
    )
    file = write(
        tmp_path,
        cfg,
        header((0, 1002, 0)) + numbers(known(3), weight, known(2), matrix.T),
    )
    raw = read_model(file)
    tensors = {t.name: t for t in raw.tensors}
    np.testing.assert_array_equal(tensors["connected_2.weight"].load(), matrix)
    layers = find_layers(raw).layers
    assert [(la.tensor, la.use) for la in layers] == [
        ("convolutional_0.weight", 0),
        ("convolutional_0.weight", 1),
    ]


@pytest.mark.parametrize("vectors", [3, 4])
def test_norms_with_and_without_a_bias(tmp_path: Path, vectors: int) -> None:
    cfg = NET + "[batchnorm]\n" + PLAIN
    file = write(
        tmp_path,
        cfg,
        header() + numbers(*[known(3)] * vectors, known(2), known(2, 3, 1, 1)),
    )
    (layer,) = find_layers(read_model(file)).layers
    np.testing.assert_array_equal(layer.weights(), known(2, 3, 1, 1))


def test_recurrent_layers_keep_their_place(tmp_path: Path) -> None:
    cfg = NET + "[crnn]\nhidden=2\noutput=4\nsize=3\npad=1\n[avgpool]\n[gru]\noutput=2\n"
    kernels = [known(2, 3, 3, 3), known(2, 2, 3, 3), known(4, 2, 3, 3)]
    parts = [p for kernel in kernels for p in (known(kernel.shape[0]), kernel)]
    parts += [p for into in (4, 4, 4, 2, 2, 2) for p in (known(2), known(2, into))]
    layers = find_layers(read_model(write(tmp_path, cfg, header() + numbers(*parts)))).layers
    assert [la.name for la in layers] == ["crnn_0.input", "crnn_0.self", "crnn_0.output"]
    for layer, kernel in zip(layers, kernels, strict=True):
        np.testing.assert_array_equal(layer.weights(), kernel)


def test_the_first_layers_alone(tmp_path: Path) -> None:
    """Weights to begin training with: darknet53.conv.74 holds the first 74 layers."""
    file = write(tmp_path, NET + PLAIN + NORMED, header() + numbers(known(2), known(2, 3, 1, 1)))
    with pytest.raises(MalformedFileError, match=r"ends behind layer 0.*conv\.1"):
        read_model(file)
    partial = (tmp_path / "net.weights").rename(tmp_path / "net.conv.1")
    (layer,) = find_layers(
        read_model(ModelFile(file.path, {"net.conv.1": partial}, "net.cfg"))
    ).layers
    np.testing.assert_array_equal(layer.weights(), known(2, 3, 1, 1))


def test_either_half_finds_the_other(tmp_path: Path) -> None:
    file = write(tmp_path, NET + PLAIN, header() + numbers(known(2), known(2, 3, 1, 1)))
    companions = FORMATS["darknet"].companions
    assert companions(file) == ("net.weights",)
    weights = ModelFile(tmp_path / "net.weights")
    assert detect(weights) == "darknet"
    assert companions(weights) == ("net.cfg",)
    assert len(find_layers(read_model(weights)).layers) == 1
    best = ModelFile((tmp_path / "net.weights").rename(tmp_path / "net_best.weights"))
    assert companions(file) == ("net_best.weights",)
    assert companions(best) == ("net.cfg",)
    assert len(find_layers(read_model(best)).layers) == 1
    assert len(find_layers(read_model(file)).layers) == 1
    (tmp_path / "net_best.weights").rename(tmp_path / "other.weights")
    with pytest.raises(MissingCompanionError, match=r"net\.weights") as caught:
        read_model(file)
    assert "companions" in str(caught.value.tip)
    with pytest.raises(MissingCompanionError, match=r"other\.cfg"):
        read_model(ModelFile(tmp_path / "other.weights"))


@pytest.mark.parametrize(
    ("cfg", "error", "match"),
    [
        ("[net]\n[convolutional]\nfilters=-1\n", MalformedFileError, "filters"),
        (NET + "[convolutional]\nfilters=x\n", MalformedFileError, "integer"),
        (NET + "[convolutional]\nsize=99999999999\n", MalformedFileError, "integer"),
        (NET + "[convolutional]\nfilters=4\ngroups=3\n", MalformedFileError, "divide"),
        (NET + "[route]\nlayers=-1\n", MalformedFileError, "not before"),
        (NET + "[route]\n", MalformedFileError, "no layers"),
        (NET + "[shortcut]\nfrom=5\n", MalformedFileError, "not before"),
        (NET + "[attention]\n", UnsupportedFormatError, "attention"),
        (NET + "[upsample]\nstride=999999999\n" * 9, MalformedFileError, "absurdly"),
        (NET + "[convolutional\n", MalformedFileError, "expected ']'"),
        ("[net]\n[connected]\noutput=3\n", MalformedFileError, "inputs"),
        (NET + PLAIN + PLAIN, MalformedFileError, "is it the .weights"),
        (
            NET + "[convolutional]\nfilters=999999999\nsize=999999999\n",
            MalformedFileError,
            "absurd",
        ),
    ],
)
def test_texts_that_lie(tmp_path: Path, cfg: str, error: type[SourceError], match: str) -> None:
    file = write(tmp_path, cfg, header() + bytes(400))
    with pytest.raises(error, match=match):
        read_model(file, "darknet")


def test_a_configuration_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "setup.cfg"
    path.write_text("[metadata]\nname = x\n")
    with pytest.raises(UnsupportedFormatError):
        detect(ModelFile(path))
    write(tmp_path, "", header())
    with pytest.raises(MalformedFileError, match=r"\[metadata\]"):
        read_model(ModelFile(path, {"net.weights": tmp_path / "net.weights"}), "darknet")


@given(data=st.data())
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_files_give_values_or_source_errors(tmp_path: Path, data: st.DataObject) -> None:
    cfg = bytearray((NET + NORMED + "[route]\nlayers=-1,0\n" + PLAIN).encode())
    weights = header() + numbers(*[known(4)] * 4, known(4, 3, 3, 3), known(2), known(2, 8, 1, 1))
    for _ in range(data.draw(st.integers(1, 3))):
        cfg[data.draw(st.integers(0, len(cfg) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "net.weights").write_bytes(weights[: data.draw(st.integers(0, len(weights)))])
    (tmp_path / "net.cfg").write_bytes(bytes(cfg))
    with contextlib.suppress(SourceError):
        for tensor in read_model(ModelFile(tmp_path / "net.cfg"), "darknet").tensors:
            assert tensor.load().shape == tensor.shape
