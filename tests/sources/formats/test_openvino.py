"""OpenVINO networks built from the public schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filterdb.errors import (
    MalformedFileError,
    MissingCompanionError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import FORMATS, ModelFile, detect, read_model
from tests.sources.formats.inference_files import OpenVino, check_damage

PLAIN = 'strides="1, 2" dilations="1, 1" pads_begin="1, 0" pads_end="1, 0" auto_pad="explicit"'


def ramp(*shape: int) -> Any:
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


def start(version: int = 11) -> OpenVino:
    network = OpenVino(version)
    network.layer("x", "Parameter", 'shape="1,3,9,9"', [], (1, 3, 9, 9))
    return network


def layers_of(network: OpenVino, folder: Path) -> dict[str, Any]:
    return {la.name: la for la in find_layers(read_model(ModelFile(network.write(folder)))).layers}


def test_orientation_of_every_kind_of_convolution(tmp_path: Path) -> None:
    plain, grouped = ramp(4, 3, 2, 3), ramp(2, 3, 2, 3, 2)
    back, back_grouped = ramp(6, 5, 3, 2), ramp(5, 1, 2, 2, 3)
    line = ramp(3, 10, 4)
    network = start()
    n = network.layer("plain", "Convolution", PLAIN, [0, network.constant("a", plain, "f32")])
    n = network.layer(
        "groups", "GroupConvolution", PLAIN, [n, network.constant("b", grouped, "f32")]
    )
    n = network.layer(
        "back", "ConvolutionBackpropData", PLAIN, [n, network.constant("c", back, "f32")]
    )
    n = network.layer(
        "back_groups", "GroupConvolutionBackpropData", PLAIN,
        [n, network.constant("d", back_grouped, "f32")],
    )  # fmt: skip
    single = 'strides="2" dilations="3" pads_begin="1" pads_end="0"'
    network.layer("line", "Convolution", single, [n, network.constant("e", line, "f32")])
    found = layers_of(network, tmp_path)
    np.testing.assert_array_equal(found["plain"].weights(), plain)
    np.testing.assert_array_equal(found["groups"].weights(), grouped.reshape(6, 2, 3, 2))
    np.testing.assert_array_equal(found["back"].weights(), back.swapaxes(0, 1))
    expected = back_grouped.swapaxes(1, 2).reshape(10, 1, 2, 3)
    np.testing.assert_array_equal(found["back_groups"].weights(), expected)
    np.testing.assert_array_equal(found["line"].weights(), line)
    assert (found["plain"].stride, found["plain"].padding) == ((1, 2), (1, 0))
    assert (found["line"].stride, found["line"].dilation) == ((2,), (3,))
    assert found["line"].padding == (1, 0)
    assert {name: la.groups for name, la in found.items()} == {
        "plain": 1, "groups": 2, "back": 1, "back_groups": 5, "line": 1,
    }  # fmt: skip
    assert [la.conv_depth for la in found.values()] == [0, 1, 2, 3, 4]


def test_integers_come_by_the_graphs_own_scales(tmp_path: Path) -> None:
    network = start()
    codes = np.array([0x21, 0xF3, 0x84], np.uint8)
    stored = network.constant("w", codes, "i4", (2, 1, 3, 1))
    wide = network.layer("wide", "Convert", 'destination_type="f32"', [stored], (2, 1, 3, 1))
    zero = network.constant("zero", np.array([1, 2], np.float32).reshape(2, 1, 1, 1), "f32")
    shifted = network.layer("shifted", "Subtract", "", [wide, zero], (2, 1, 3, 1))
    scale = network.constant("scale", np.array([0.5, 2], np.float16).reshape(2, 1, 1, 1), "f16")
    scaled = network.layer("scaled", "Multiply", "", [shifted, scale], (2, 1, 3, 1))
    network.layer("conv", "Convolution", PLAIN, [0, scaled])
    raw = read_model(ModelFile(network.write(tmp_path)))
    (layer,) = find_layers(raw).layers
    assert (layer.quantised, layer.source_dtype, layer.tensor) == (True, "int4", "w")
    expected = np.array([[1 - 1, 2 - 1, 3 - 1], [-1 - 2, 4 - 2, -8 - 2]], np.float32)
    expected *= np.array([[0.5], [2]], np.float32)
    np.testing.assert_array_equal(layer.weights().reshape(2, 3), expected)
    skipped = {t.name: t.skip[0] for t in raw.tensors if t.skip}
    assert skipped == {"zero": "buffer", "scale": "buffer"}


def test_weights_quantised_on_the_way_are_as_the_network_applies_them(tmp_path: Path) -> None:
    network = start()
    values = np.array([-3, -0.9, 0.1, 0.3, 0.6, 5], np.float32).reshape(1, 1, 2, 3)
    inputs = [network.constant("w", values, "f32")]
    for name, number in (("il", -1), ("ih", 1), ("ol", -2), ("oh", 2)):
        inputs.append(network.constant(name, np.array([number], np.float32), "f32"))
    fake = network.layer("fake", "FakeQuantize", 'levels="5"', inputs, (1, 1, 2, 3))
    network.layer("conv", "Convolution", PLAIN, [0, fake])
    (layer,) = layers_of(network, tmp_path).values()
    expected = np.array([-2, -2, 0, 1, 1, 2], np.float32).reshape(1, 1, 2, 3)
    np.testing.assert_array_equal(layer.weights(), expected)


@pytest.mark.parametrize("version", [2, 7])
def test_blobs_of_older_versions(version: int, tmp_path: Path) -> None:
    network = start(version)
    kernel, deconv = ramp(4, 3, 2, 3), ramp(4, 3, 3, 2)
    size = {
        2: 'kernel-x="3" kernel-y="2" stride-x="2" stride-y="1" pad-x="0" pad-y="1"',
        7: 'kernel="2,3" strides="1,2" pads_begin="1,0" pads_end="1,0" dilations="1,1"',
    }[version]
    blob = '<blobs><weights offset="0" size="{}"/><biases offset="{}" size="16"/></blobs>'
    network.data += kernel.tobytes() + np.arange(4, dtype=np.float32).tobytes() + deconv.tobytes()
    n = network.layer(
        "conv", "Convolution", f'{size} output="4" group="1"', [0],
        inside=blob.format(kernel.nbytes, kernel.nbytes),
    )  # fmt: skip
    network.layer(
        "back", "Deconvolution", 'kernel="3,2" strides="2,2" output="6" group="2"', [n],
        inside=f'<blobs><weights offset="{kernel.nbytes + 16}" size="{deconv.nbytes}"/></blobs>',
    )  # fmt: skip
    found = layers_of(network, tmp_path)
    np.testing.assert_array_equal(found["conv"].weights(), kernel)
    assert (found["conv"].stride, found["conv"].padding) == ((1, 2), (1, 0))
    expected = deconv.reshape(2, 2, 3, 3, 2).swapaxes(1, 2).reshape(6, 2, 3, 2)
    np.testing.assert_array_equal(found["back"].weights(), expected)
    assert found["back"].groups == 2


def test_bodies_of_loops_see_what_is_around_them(tmp_path: Path) -> None:
    network = start()
    weight = network.constant("w", ramp(3, 3, 3, 3), "f32")
    body = OpenVino()
    body.layer("inner x", "Parameter", "", [], (1, 3, 9, 9))
    body.layer("inner w", "Parameter", "", [], (3, 3, 3, 3))
    body.layer("result", "Result", "", [body.layer("conv", "Convolution", PLAIN, [0, 1])])
    inside = (
        f"<port_map><input external_port_id='0' internal_layer_id='0'/>"
        f"<input external_port_id='1' internal_layer_id='1'/>"
        f"<output external_port_id='2' internal_layer_id='3'/></port_map>"
        f"<body><layers>{''.join(body.layers)}</layers><edges>{''.join(body.edges)}</edges></body>"
    )
    loop = network.layer("loop", "TensorIterator", "", [0, weight], (1, 3, 9, 9), inside)
    last = network.constant("v", ramp(2, 3, 1, 1), "f32")
    network.layer("after", "Convolution", PLAIN, [loop, last])
    found = layers_of(network, tmp_path)
    assert {name: la.conv_depth for name, la in found.items()} == {"conv": 0, "after": 1}


def test_a_kernel_the_network_computes_is_no_kernel_of_the_file(tmp_path: Path) -> None:
    network = start()
    network.layer("conv", "Convolution", PLAIN, [0, network.layer("style", "Sigmoid", "", [0])])
    model = find_layers(read_model(ModelFile(network.write(tmp_path))))
    assert not model.layers
    assert [s.reason for s in model.skipped] == ["dynamic_weight"]


BOMB = b"""<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>
<net name="&b;" version="11"><layers/></net>"""
OUTSIDE = b"""<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<net name="m" version="11"><layers/>&a;</net>"""


@pytest.mark.parametrize("text", [BOMB, OUTSIDE], ids=["bomb", "outside"])
def test_entities_are_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_bytes(text)
    with pytest.raises(UnsafeCheckpointError, match="document type"):
        read_model(ModelFile(tmp_path / "m.xml"), "openvino")


def test_bounds_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "m.xml"
    path.write_bytes(b'<net version="11">' + b"<a>" * 100)
    with pytest.raises(UnsafeCheckpointError, match="nests"):
        read_model(ModelFile(path))
    path.write_bytes(b'<net version="11"><layers>' + b'<layer id="1"/>' * 100_000)
    with pytest.raises(UnsafeCheckpointError, match="describes more"):
        read_model(ModelFile(path))
    path.write_bytes(b'<net version="11"><layers><layer id="1"></layers></net>')
    with pytest.raises(MalformedFileError, match="well-formed"):
        read_model(ModelFile(path))
    path.write_bytes(b"<rss><layers/></rss>")
    with pytest.raises(UnsupportedFormatError, match="no OpenVINO network"):
        read_model(ModelFile(path), "openvino")
    with pytest.raises(UnsupportedFormatError):
        detect(ModelFile(path))


def test_the_constants_must_be_there(tmp_path: Path) -> None:
    network = start()
    weight = network.constant("w", ramp(4, 3, 2, 3), "f32")
    network.layer("conv", "Convolution", PLAIN, [0, weight])
    file = ModelFile(network.write(tmp_path))
    assert detect(file) == "openvino"
    assert FORMATS["openvino"].companions(file) == ("m.bin",)
    (tmp_path / "m.bin").write_bytes(network.data[:-1])
    with pytest.raises(MalformedFileError, match="lies at bytes"):
        read_model(file)
    (tmp_path / "m.bin").unlink()
    with pytest.raises(MissingCompanionError, match=r"m\.bin"):
        read_model(file)
    (tmp_path / "m.bin").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeCheckpointError, match="not inside"):
        read_model(file)


def test_types_nobody_knows_are_left_out_with_the_reason(tmp_path: Path) -> None:
    network = start()
    weight = network.constant("w", ramp(4, 3, 2, 3), "f7")
    network.layer("conv", "Convolution", PLAIN, [0, weight])
    raw = read_model(ModelFile(network.write(tmp_path)))
    assert [s.reason for s in find_layers(raw).skipped] == ["unsupported_dtype"]
    with pytest.raises(UnsupportedFormatError, match="f7"):
        raw.tensors[0].load()


def test_constants_that_wait_for_one_another_have_no_value(tmp_path: Path) -> None:
    network = start()
    a = network.layer("a", "Convert", "", [0])
    b = network.layer("b", "Convert", "", [a])
    network.edges = [e.replace('from-layer="0"', f'from-layer="{b}"') for e in network.edges]
    network.layer("conv", "Convolution", PLAIN, [0, b])
    assert not find_layers(read_model(ModelFile(network.write(tmp_path)))).layers


def test_damage_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    network = start()
    weight = network.constant("w", ramp(4, 3, 2, 3), "f32")
    wide = network.layer("wide", "Convert", 'destination_type="f32"', [weight], (4, 3, 2, 3))
    network.layer("conv", "Convolution", PLAIN, [0, wide])
    assert check_damage(tmp_path, "m.xml", {"m.bin": network.data}, network.text()) > 50
