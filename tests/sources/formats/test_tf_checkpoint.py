"""TensorFlow checkpoints made here: tables, slices, slots, averages, numbered variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filterdb.errors import (
    MalformedFileError,
    MissingCompanionError,
    SourceError,
    UnsafeCheckpointError,
)
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import detect
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.formats.tf_checkpoint import companions, read
from filterdb.sources.formats.tf_slices import encode_slice
from filterdb.sources.formats.tf_table import Table, decompress_snappy
from tests.sources.formats.tf_files import checkpoint, entry, field, shape, squeeze, table, varint

if TYPE_CHECKING:
    from pathlib import Path


def numbers(*extents: int, dtype: Any = np.float32) -> Any:
    return np.arange(1, 1 + np.prod(extents, dtype=int)).reshape(extents).astype(dtype)


@pytest.mark.parametrize("snappy", [False, True])
def test_orientation_of_kernels_by_name(tmp_path: Path, snappy: bool) -> None:
    kernel = numbers(3, 2, 4, 5)
    file = checkpoint(
        tmp_path, {"net/conv/kernel": kernel, "net/conv/bias": numbers(5)}, snappy=snappy
    )
    assert detect(file) == "tf_checkpoint"
    assert companions(ModelFile(file.path, name=file.name)) == ("model.data-00000-of-00001",)
    (layer,) = find_layers(read(file)).layers
    assert layer.name == "net/conv"
    assert np.array_equal(layer.weights(), kernel.transpose(3, 2, 0, 1))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_element_types(tmp_path: Path, dtype: str) -> None:
    values = numbers(2, 3, dtype=dtype)
    (tensor,) = read(checkpoint(tmp_path, {"a/kernel": values})).tensors
    assert (tensor.dtype, tensor.shape) == (dtype, (2, 3))
    assert np.array_equal(tensor.load(), values)


def test_what_is_no_network(tmp_path: Path) -> None:
    kernel, step = numbers(3, 3, 1, 2), np.array(7, np.int64)
    names = {
        "conv/kernel": None, "conv/kernel/Adam": "optimizer_state",
        "conv/kernel/Adam_1": "optimizer_state", "train/Adam/conv/kernel/m": "optimizer_state",
        "beta1_power": "optimizer_state", "global_step": None,
        "b/kernel": "ema_copy", "b/kernel/ExponentialMovingAverage": None,
        "c/kernel/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE": "optimizer_state",
        "optimizer/iter/.ATTRIBUTES/VARIABLE_VALUE": "optimizer_state",
    }  # fmt: skip
    scalars = ("beta1_power", "global_step", "optimizer/iter/.ATTRIBUTES/VARIABLE_VALUE")
    raw = read(checkpoint(tmp_path, {n: step if n in scalars else kernel for n in names}))
    assert {t.name: t.skip and t.skip[0] for t in raw.tensors} == names
    found = find_layers(raw).layers
    assert {la.tensor for la in found} == {"conv/kernel", "b/kernel/ExponentialMovingAverage"}


def test_partitioned_variables_are_put_together(tmp_path: Path) -> None:
    whole = numbers(3, 3, 70, 4)
    parts = {((0, -1), (0, -1), (0, 64), (0, -1)): whole[:, :, :64],
             ((0, -1), (0, -1), (64, 6), (0, -1)): whole[:, :, 64:]}  # fmt: skip
    slices = b"".join(
        field(7, b"".join(
            field(1, b"" if n < 0 else field(1, s) + field(2, n)) for s, n in where
        )) for where in parts
    )  # fmt: skip
    file = checkpoint(tmp_path, {})
    entries = {
        b"": field(1, 1),
        b"conv/kernel": field(1, 1) + field(2, shape(whole.shape)) + slices,
    }
    data = b""
    for where, part in parts.items():
        entries[encode_slice(b"conv/kernel", where)] = entry(part, len(data))
        data += np.ascontiguousarray(part).tobytes()
    file.path.write_bytes(table(entries))
    next(iter(file.companions.values())).write_bytes(data)
    (tensor,) = read(file).tensors
    assert np.array_equal(tensor.load(), whole)
    del entries[encode_slice(b"conv/kernel", next(iter(parts)))]
    file.path.write_bytes(table(entries))
    with pytest.raises(MalformedFileError, match="slice"):
        read(file)


def test_numbered_variables(tmp_path: Path) -> None:
    vectors = {f"m/variables/{i}": numbers(8) + i for i in (1, 2, 3, 4, 7)}
    raw = read(checkpoint(tmp_path, {
        "m/variables/0": numbers(3, 3, 3, 8), **vectors,
        "m/variables/5": numbers(5, 5, 8, 1), "m/variables/6": numbers(1, 1, 8, 8),
    }))  # fmt: skip
    layers = find_layers(raw).layers
    assert [(la.tensor, la.groups, la.batch_norm_status) for la in layers] == [
        ("m/variables/0", 1, "separate"), ("m/variables/5", 8, "none"),
        ("m/variables/6", 1, "none"),
    ]  # fmt: skip


def test_variables_called_anything(tmp_path: Path) -> None:
    raw = read(checkpoint(tmp_path, {"DW": numbers(3, 3, 3, 6), "alpha": numbers(1, 1, 1, 9)}))
    assert [la.tensor for la in find_layers(raw).layers] == ["DW"]


def test_missing_and_short_data(tmp_path: Path) -> None:
    file = checkpoint(tmp_path, {"a/kernel": numbers(3, 3, 1, 2)})
    with pytest.raises(MissingCompanionError, match="data-00000"):
        read(ModelFile(file.path, name=file.name))
    with pytest.raises(MalformedFileError, match="index"):
        companions(ModelFile(file.path, name="renamed"))
    next(iter(file.companions.values())).write_bytes(b"1234")
    with pytest.raises(MalformedFileError, match="ends early"):
        read(file)


def test_snappy() -> None:
    # A literal, a copy that reaches into itself, copies with one and with four bytes of offset.
    code = varint(16) + b"\x08abc" + b"\x05\x03" + b"\x0a\x01\x00" + b"\x13\x05\0\0\0"
    assert decompress_snappy(code, where="x") == b"abc" + b"abcab" + b"bbb" + b"abbbb"
    assert decompress_snappy(squeeze(bytes(1000) + b"end"), where="x") == bytes(1000) + b"end"


@pytest.mark.parametrize(
    ("code", "error"),
    [(b"", MalformedFileError), (b"\xff" * 6, MalformedFileError),
     (b"\x05\x00a", MalformedFileError),
     (b"\x04\x05\x09", MalformedFileError), (b"\xff\xff\xff\xff\x07\x00a", UnsafeCheckpointError),
     (b"\x02\xf4\xff\xff", MalformedFileError)],
)  # fmt: skip
def test_broken_snappy(code: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        decompress_snappy(code, where="x")


def test_long_names_do_not_multiply() -> None:
    # Each entry of four bytes repeats a name of 16 thousand.
    name = b"n" * 16000
    code = varint(0) + varint(len(name)) + varint(0) + name
    code += b"".join(varint(len(name)) + varint(0) + varint(0) for _ in range(20_000))
    data = code + bytes(8)
    index = varint(0) + varint(1) + varint(len(varint(0) + varint(len(data)))) + b"z"
    index += varint(0) + varint(len(data)) + bytes(8)
    place = varint(0) + varint(0) + varint(len(data) + 5) + varint(len(index))
    whole = data + bytes(5) + index + bytes(5) + place.ljust(40, b"\0")
    whole += table({})[-8:]
    with pytest.raises(UnsafeCheckpointError, match="names"):
        list(Table(whole, where="x").entries())


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    file = checkpoint(tmp_path, {"a/kernel": numbers(3, 3, 1, 2), "a/bias": numbers(2)})
    whole = file.path.read_bytes()
    for end in range(len(whole)):
        file.path.write_bytes(whole[:end])
        with pytest.raises(SourceError):
            read(file)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_damage_is_an_error_or_nothing(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damage", numbered=True)
    file = checkpoint(folder, {"a/kernel": numbers(3, 3, 1, 2), "a/bias": numbers(2)})
    whole = bytearray(file.path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file.path.write_bytes(whole)
    try:
        for tensor in read(file).tensors:
            if tensor.skip is None:
                assert tensor.load().shape == tuple(tensor.shape)
    except SourceError:
        pass
