"""Keras 3 archives made here: whose each numbered weight is, and archives that are none."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from filterdb.errors import (
    MalformedFileError,
    MissingCompanionError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import FORMATS, detect, read_model
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.keras_v3 import read
from tests.sources.formats.keras_files import (
    functional,
    kernel,
    layer,
    norm,
    sequential,
    write_keras,
    write_keras_v3,
)

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"layers/conv2d/vars/0": kernel(3, 3, 2, 4), "layers/conv2d/vars/1": kernel(4)}


def small(path: Path, **options: Any) -> ModelFile:
    config = sequential("s", [layer("InputLayer", "i"), layer("Conv2D", "c", strides=[2, 2])])
    return write_keras_v3(path, config, SMALL, **options)


def vectors(group: str, channels: int) -> dict[str, Any]:
    return {f"{group}/vars/{i}": v for i, v in enumerate(norm("n", channels).values())}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archive_is_read_in_place(tmp_path: Path, compression: int) -> None:
    file = small(tmp_path / "m.keras", compression=compression)
    before = sorted(tmp_path.iterdir())
    assert detect(file) == "keras_v3"
    raw = read_model(file)
    (found,) = find_layers(raw).layers
    assert (found.name, found.stride, found.depth_source) == ("c", (2, 2), "graph")
    assert np.array_equal(found.weights(), kernel(3, 3, 2, 4).transpose(3, 2, 0, 1))
    assert raw.notes == ("keras 3.15.1",)
    assert sorted(tmp_path.iterdir()) == before


def test_chunked_weights_inside_archives(tmp_path: Path) -> None:
    values = kernel(8, 8, 4, 16)
    inner = io.BytesIO()
    with h5py.File(inner, "w") as root:
        root.create_dataset("layers/conv2d/vars/0", data=values, compression="gzip", shuffle=True)
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        extra = {"model.weights.h5": inner.getvalue()}
        file = small(tmp_path / "m.keras", compression=compression, extra=extra)
        (tensor,) = read(file).tensors
        assert np.array_equal(tensor.load(), values)


def test_hdf5_under_the_new_name(tmp_path: Path) -> None:
    groups = {"c": {"c/kernel:0": kernel(3, 3, 1, 1)}}
    file = write_keras(tmp_path / "old.keras", groups, config=sequential("s", []))
    assert detect(file) == "keras_h5"


def test_orientation(tmp_path: Path) -> None:
    flat = np.arange(1, 13, dtype=np.float32)
    image = flat[:6].reshape(2, 3)  # rows are y
    kinds: list[tuple[str, dict[str, Any], Any, Any]] = [
        ("Conv2D", {}, image[:, :, None, None], image),
        ("Conv2D", {"groups": 2}, image[:, :, None, None].repeat(2, 3), image),
        ("DepthwiseConv2D", {}, image[:, :, None, None].repeat(2, 2), image),
        ("Conv2DTranspose", {}, image[:, :, None, None], image),
        ("SeparableConv2D", {}, image[:, :, None, None], image),
        ("Conv1D", {}, flat[:5, None, None], flat[:5]),
        ("Conv1DTranspose", {}, flat[:5, None, None], flat[:5]),
        ("Conv3D", {}, flat.reshape(1, 3, 4, 1, 1), flat.reshape(1, 3, 4)),
        ("Conv3DTranspose", {}, flat.reshape(1, 3, 4, 1, 1), flat.reshape(1, 3, 4)),
    ]
    for i, (kind, options, stored, upright) in enumerate(kinds):
        group = {
            "Conv2DTranspose": "conv2d_transpose", "Conv1DTranspose": "conv1d_transpose",
            "Conv3DTranspose": "conv3d_transpose", "DepthwiseConv2D": "depthwise_conv2d",
            "SeparableConv2D": "separable_conv2d",
        }.get(kind, kind.lower())  # fmt: skip
        stores = {f"layers/{group}/vars/0": stored}
        if kind == "SeparableConv2D":
            stores[f"layers/{group}/vars/1"] = np.ones((1, 1, 1, 1), np.float32)
        config = sequential("s", [layer(kind, "k", **options)])
        first = find_layers(read(write_keras_v3(tmp_path / f"{i}.keras", config, stores))).layers[0]
        assert np.array_equal(first.weights()[-1, 0], upright), kind


def test_groups_are_counted_by_class(tmp_path: Path) -> None:
    layers = [
        layer("Conv2D", "z"), layer("Add", "sum"), layer("BatchNormalization", "n", scale=False),
        layer("Custom>Conv2D", "own"), layer("Conv2DTranspose", "up"), layer("Conv2D", "a"),
    ]  # fmt: skip
    layers[1]["module"] = "keras.src.ops.numpy"
    stores = {
        "layers/conv2d_1/vars/0": kernel(3, 3, 4, 5),
        "layers/conv2d_2/vars/0": kernel(3, 3, 6, 7),
        "layers/conv2d/vars/0": kernel(3, 3, 3, 4),
        "layers/conv2d_transpose/vars/0": kernel(3, 3, 6, 5),
        **{f"layers/batch_normalization/vars/{i}": kernel(4) for i in range(3)},
    }
    raw = read(write_keras_v3(tmp_path / "m.keras", sequential("s", layers), stores))
    found = find_layers(raw).layers
    assert [(la.name, la.in_channels, la.out_channels) for la in found] == [
        ("z", 3, 4), ("own", 4, 5), ("up", 5, 6), ("a", 6, 7),
    ]  # fmt: skip
    (batch_norm,) = (n for n in raw.nodes if n.op == "batch_norm")
    assert {role: name[-1] for role, name in batch_norm.weights.items()} == {
        "beta": "0", "mean": "1", "var": "2",
    }  # fmt: skip


def test_names_in_the_store_decide(tmp_path: Path) -> None:
    config = sequential("s", [layer("Conv2D", "first"), layer("Conv2D", "second")])
    stores = {f"layers/{g}/vars/0": kernel(3, 3, n, n) for g, n in (("conv2d", 1), ("other", 2))}
    names = {"layers/conv2d": "second", "layers/other": "first"}
    raw = read(write_keras_v3(tmp_path / "m.keras", config, stores, names=names))
    assert [(la.name, la.in_channels) for la in find_layers(raw).layers] == [
        ("first", 2), ("second", 1),
    ]  # fmt: skip


def test_counting_of_tensorflow_2_12(tmp_path: Path) -> None:
    config = sequential("s", [layer("Conv2D", n) for n in "abc"])
    place = "_layer_checkpoint_dependencies"
    stores = {f"{place}\\conv2d{n}\\vars\\0": kernel(3, 3, c, c)
              for n, c in (("", 1), ("_4", 3), ("_2", 2))}  # fmt: skip
    raw = read(write_keras_v3(tmp_path / "m.keras", config, stores))
    assert [(la.name, la.in_channels) for la in find_layers(raw).layers] == [
        ("a", 1), ("b", 2), ("c", 3),
    ]  # fmt: skip


def test_models_wrappers_and_layers_in_layers(tmp_path: Path) -> None:
    inner = functional(
        "inner", [layer("InputLayer", "x"), layer("Conv2D", "shared", "x")], ["x"], ["shared"]
    )
    inner["inbound_nodes"] = [[["i", 0, 0, {}]]]
    layers = [
        layer("InputLayer", "i"),
        inner,
        layer("Conv2D", "shared", "inner"),
        layer("TimeDistributed", "td", "shared", layer=layer("Conv2D", "c")),
        layer("mine>Block", "block", "td"),
    ]
    stores = {
        "layers/functional/layers/conv2d/vars/0": kernel(3, 3, 2, 2),
        "layers/time_distributed/layer/vars/0": kernel(3, 3, 2, 3),
        "layers/block/first/vars/0": kernel(3, 3, 3, 5),
        **vectors("layers/block/norm", 5),
        "layers/block/project/vars/0": kernel(5, 2, 4),
        "beside/vars/0": kernel(5, 5, 1, 1),
        "optimizer/vars/1": kernel(3, 3, 2, 2),
    }
    config = functional("m", layers, ["i"], ["block"])
    raw = read(write_keras_v3(tmp_path / "m.keras", config, stores))
    found = find_layers(raw)
    assert [(la.name, la.conv_depth, la.batch_norm_status) for la in found.layers] == [
        ("inner/shared", 0, "none"), ("shared", 1, "none"), ("td", 2, "none"),
        ("block/first", 3, "separate"), ("beside", 0, "none"),
    ]  # fmt: skip
    assert found.layers[1].shared_with == "layers/functional/layers/conv2d/vars/0"
    reasons = {s.tensor: s.reason for s in found.skipped}
    assert reasons["optimizer/vars/1"] == "optimizer_state"
    assert reasons["layers/block/project/vars/0"] == "buffer"


def test_convolutional_lstm_is_two_convolutions(tmp_path: Path) -> None:
    stores = {
        "layers/conv_lstm2d/cell/vars/0": kernel(3, 3, 2, 16),
        "layers/conv_lstm2d/cell/vars/1": kernel(3, 3, 4, 16),
        "layers/conv_lstm2d/cell/vars/2": kernel(16),
    }
    config = sequential("s", [layer("ConvLSTM2D", "lstm", strides=[2, 2])])
    found = find_layers(read(write_keras_v3(tmp_path / "m.keras", config, stores))).layers
    assert [(la.name, la.in_channels, la.stride) for la in found] == [
        ("lstm.input", 2, (2, 2)), ("lstm.state", 4, (1, 1)),
    ]  # fmt: skip


def test_model_written_as_a_class(tmp_path: Path) -> None:
    config = {"module": "os", "class_name": "system", "config": {"name": "m"}}
    raw = read(write_keras_v3(tmp_path / "m.keras", config, {"conv/vars/0": kernel(3, 3, 2, 2)}))
    assert not raw.has_edges
    assert [la.name for la in find_layers(raw).layers] == ["conv"]


def test_configuration_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = layer("Lambda", "l", function={"class_name": "__lambda__", "config": {"code": "4wEA"}})
    config = sequential("s", [evil, layer("Conv2D", "c")])
    config["module"] = f"posix;open({str(marker)!r},'w')"
    read(write_keras_v3(tmp_path / "m.keras", config, SMALL))
    assert not marker.exists()


def test_weights_in_several_files(tmp_path: Path) -> None:
    stores = []
    for name, shape in (("conv2d", (3, 3, 1, 2)), ("conv2d_1", (3, 3, 2, 3))):
        inner = io.BytesIO()
        with h5py.File(inner, "w") as root:
            root[f"layers/{name}/vars/0"] = kernel(*shape)
        stores.append(inner.getvalue())
    names = ["model_00000.weights.h5", "model_00001.weights.h5"]
    listed = {"weight_map": {"/layers/conv2d/vars": names[0], "/layers/conv2d_1/vars": [names[1]]}}
    extra = {"model.weights.h5": b"", "model.weights.json": json.dumps(listed).encode()}
    config = sequential("s", [layer("Conv2D", "a"), layer("Conv2D", "b")])
    parts = dict(zip(names, stores, strict=True))
    file = write_keras_v3(tmp_path / "m.keras", config, {}, extra={**extra, **parts})
    found = find_layers(read(file)).layers
    assert [(la.name, la.out_channels) for la in found] == [("a", 2), ("b", 3)]
    assert np.array_equal(found[1].weights(), kernel(3, 3, 2, 3).transpose(3, 2, 0, 1))
    extra["model.weights.json"] = b'{"weight_map": {"/x": "../../secret.h5"}}'
    with pytest.raises(MalformedFileError, match="secret"):
        read(write_keras_v3(tmp_path / "m.keras", config, {}, extra=extra))


def test_weights_files_with_a_list(tmp_path: Path) -> None:
    for number in range(2):
        with h5py.File(tmp_path / f"m_{number}.weights.h5", "w") as root:
            root["layers/conv2d_1/vars/1" if number else "layers/conv2d/vars/0"] = (
                kernel(4) if number else kernel(3, 3, 2, 4)
            )
            root[f"optimizer/vars/{number}"] = kernel(2)
    main = tmp_path / "m.weights.json"
    listed = {"/layers/conv2d/vars": "m_0.weights.h5", "/x/vars": ["m_1.weights.h5"]}
    main.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": listed}))
    alone = ModelFile(main, name=main.name)
    assert detect(alone) == "keras_h5"
    names = FORMATS["keras_h5"].companions(alone)
    assert names == ("m_0.weights.h5", "m_1.weights.h5")
    raw = read_model(ModelFile(main, {n: tmp_path / n for n in names}, main.name))
    assert [la.name for la in find_layers(raw).layers] == ["layers/conv2d"]
    assert len(raw.tensors) == 4
    (tmp_path / "m_1.weights.h5").unlink()
    with pytest.raises(MissingCompanionError, match=r"m_1\.weights"):
        read_model(alone)
    for name in ("../m_0.weights.h5", "/etc/m_0.weights.h5"):
        main.write_text(json.dumps({"weight_map": {"/layers/conv2d/vars": name}}))
        with pytest.raises(UnsafeCheckpointError, match="lead out"):
            FORMATS["keras_h5"].companions(alone)


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({"config.json": b""}, MalformedFileError, "no config.json"),
        ({"config.json": b"[]"}, MalformedFileError, "no JSON object"),
        ({"config.json": b"{" + b" " * 11_000_000 + b"}"}, MalformedFileError, "the most"),
        ({"model.weights.h5": b""}, UnsupportedFormatError, "weights are read from"),
        ({"model.weights.h5": b"PK not HDF5"}, MalformedFileError, "no HDF5"),
        ({"model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(90)}, MalformedFileError, "HDF5"),
    ],
)  # fmt: skip
def test_archives_that_are_none(
    tmp_path: Path, extra: dict[str, bytes], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(small(tmp_path / "m.keras", extra=extra))


def test_links_out_of_the_archive(tmp_path: Path) -> None:
    for link in (h5py.ExternalLink("/etc/passwd", "x"), None):
        inner = io.BytesIO()
        with h5py.File(inner, "w") as root:
            if link is None:
                root.create_dataset("k", (4,), "f4", external=[("/etc/passwd", 0, 16)])
            else:
                root["layers"] = link
        with pytest.raises(UnsafeCheckpointError, match="another file"):
            read(small(tmp_path / "m.keras", extra={"model.weights.h5": inner.getvalue()}))


def test_archive_cut_short_or_bent(tmp_path: Path) -> None:
    file = small(tmp_path / "m.keras")
    data = file.path.read_bytes()
    for cut in range(0, len(data), len(data) // 20):
        file.path.write_bytes(data[:cut])
        with pytest.raises(MalformedFileError):
            read_model(file, "keras_v3")
    small(tmp_path / "m.keras", compression=zipfile.ZIP_DEFLATED)
    packed = bytearray(file.path.read_bytes())
    middle = packed.rindex(b"model.weights.h5", 0, packed.index(b"PK\1\2")) + 200
    packed[middle : middle + 8] = bytes(8)
    file.path.write_bytes(packed)
    with pytest.raises(MalformedFileError):
        [tensor.load() for tensor in read(file).tensors]


def test_member_that_inflates_to_more(tmp_path: Path) -> None:
    file = small(tmp_path / "m.keras", compression=zipfile.ZIP_DEFLATED)
    bomb = zlib.compress(bytes(1 << 22))[2:-4]
    data = file.path.read_bytes()
    with zipfile.ZipFile(file.path) as archive:
        info = archive.getinfo("model.weights.h5")
    start = info.header_offset + 30 + len(info.filename)
    assert len(bomb) > 0
    file.path.write_bytes(data[:start] + bomb[: info.compress_size].ljust(info.compress_size, b"\0")
                          + data[start + info.compress_size :])  # fmt: skip
    with pytest.raises(MalformedFileError):
        read(file)


def test_half_characters(tmp_path: Path) -> None:
    config = sequential("s", [layer("\ud800", "l"), layer("Conv2D", "\udfff")])
    extra = {"metadata.json": b'{"keras_version": "\\ud800"}'}
    raw = read(write_keras_v3(tmp_path / "m.keras", config, SMALL, extra=extra))
    assert "".join([*raw.notes, *(n.name + n.source_op for n in raw.nodes)]).encode()


def test_short_configuration_that_grows(tmp_path: Path) -> None:
    config: Any = layer("Conv2D", "c")
    for i in range(20):
        twice = [[["x", 0, 0, {}]], [["x", 0, 0, {}]]]
        inner = {**config, "inbound_nodes": twice}
        name = config["config"]["name"]
        config = functional(f"m{i}", [layer("InputLayer", "x"), inner], ["x"], [name])
    with pytest.raises(UnsafeCheckpointError, match="grows"):
        read(write_keras_v3(tmp_path / "m.keras", config, SMALL))
