"""The torch reader against torch.load, and against files that mean harm."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filterdb.errors import (
    MalformedFileError,
    SourceError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from filterdb.sources.formats import ModelFile, read_model
from filterdb.sources.formats.stored_array import FileBytes

if TYPE_CHECKING:
    from filterdb.layers.raw import RawModel

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def save(value: Any, path: Path, *, legacy: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def read(path: Path) -> RawModel:
    return read_model(ModelFile(path))


def as_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def assert_equal(model: RawModel, expected: dict[str, Any]) -> None:
    assert [t.name for t in model.tensors] == list(expected)
    for tensor in model.tensors:
        values = as_numpy(expected[tensor.name])
        loaded = tensor.load()
        assert loaded.shape == tensor.shape == values.shape
        assert loaded.dtype == values.dtype
        assert loaded.dtype.isnative
        assert loaded.flags.c_contiguous
        assert loaded.flags.aligned
        np.testing.assert_array_equal(loaded, values)


def state_dict(seed: int = 0) -> dict[str, Any]:
    """Every dtype, and every awkward way in which a tensor can lie in its storage."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(6, 5, 4, generator=g)
    shared = torch.randn(3, 3, generator=g)
    return OrderedDict(
        {
            "float32": torch.randn(4, 3, 3, 3, generator=g),
            "float64": torch.randn(2, 3, generator=g, dtype=torch.float64),
            "float16": torch.randn(5, generator=g).half(),
            "bfloat16": torch.randn(7, 3, generator=g).bfloat16(),
            "int64": torch.randint(-9, 9, (3,), generator=g),
            "int32": torch.tensor([[-(2**31), 2**31 - 1]], dtype=torch.int32),
            "int16": torch.tensor([-5, 6], dtype=torch.int16),
            "int8": torch.tensor([-128, 127], dtype=torch.int8),
            "uint8": torch.tensor([0, 255], dtype=torch.uint8),
            "bool": torch.tensor([True, False, True]),
            "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
            "scalar": torch.tensor(3.5),
            "empty": torch.empty(0, 3),
            "whole": base,
            "row": base[2],
            "column": base[:, 1],
            "transposed": base.permute(2, 0, 1),
            "strided": base[::2, 1::2, ::3],
            "expanded": base[:1].expand(5, 5, 4),
            "channels_last": torch.randn(2, 3, 4, 5, generator=g).to(
                memory_format=torch.channels_last
            ),
            "tied": shared,
            "tied_too": shared,
            "parameter": torch.nn.Parameter(torch.randn(2, 2, generator=g)),
            "frozen": torch.nn.Parameter(torch.randn(2, generator=g), requires_grad=False),
            "buffer.num_batches_tracked": torch.tensor(7),
        }
    )


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_tensor_equals_torch(tmp_path: Path, legacy: bool) -> None:
    path = save(state_dict(), tmp_path / "model.pt", legacy=legacy)
    expected = torch.load(path, weights_only=True)
    model = read(path)
    assert_equal(model, expected)
    assert model.format == "torch"
    assert model.default_layout == "OIHW"
    assert not any(t.skip for t in model.tensors)
    by_name = {t.name: t for t in model.tensors}
    assert by_name["bfloat16"].dtype == "bfloat16"
    assert by_name["tied"].storage == by_name["tied_too"].storage
    assert by_name["row"].storage != by_name["whole"].storage


def test_newer_element_types(tmp_path: Path) -> None:
    value = {
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "uint32": torch.tensor([1, 2**32 - 1], dtype=torch.uint32),
        "uint64": torch.tensor([1, 2**63], dtype=torch.uint64),
    }
    path = save(value, tmp_path / "model.pt")
    assert_equal(read(path), torch.load(path, weights_only=True))


def test_types_without_a_numpy_equivalent_are_named_and_skipped(tmp_path: Path) -> None:
    value = {
        "complex": torch.zeros(2, dtype=torch.complex64),
        "float8": torch.zeros(3, dtype=torch.float8_e4m3fn),
        "meta": torch.empty(2, 3, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
        "good": torch.ones(1),
    }
    skips = {t.name: t.skip for t in read(save(value, tmp_path / "model.pt")).tensors}
    assert skips.pop("good") is None
    assert skips == {
        "complex": ("unsupported_dtype", "complex64"),
        "float8": ("unsupported_dtype", "float8_e4m3fn"),
        "meta": ("unsupported_dtype", "meta_tensor_no_storage"),
        "sparse": ("unsupported_dtype", "sparse_tensor"),
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors_are_multiplied_by_their_scales(tmp_path: Path, legacy: bool) -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    value = {
        "per_tensor": torch.quantize_per_tensor(weight, 0.03, 2, torch.qint8),
        "unsigned": torch.quantize_per_tensor(weight, 0.05, 128, torch.quint8),
        "per_channel": torch.quantize_per_channel(
            weight,
            torch.tensor([0.01, 0.02, 0.03, 0.04]),
            torch.tensor([0, 1, -2, 3]),
            0,
            torch.qint8,
        ),
        "axis_1": torch.quantize_per_channel(
            weight, torch.tensor([0.01, 0.02, 0.03]), torch.zeros(3), 1, torch.qint8
        ),
    }
    path = save(value, tmp_path / "model.pt", legacy=legacy)
    model = read(path)
    assert_equal(model, torch.load(path, weights_only=True))
    assert all(t.quantised for t in model.tensors)
    assert [t.dtype for t in model.tensors] == ["int8", "uint8", "int8", "int8"]


def test_big_endian_files(tmp_path: Path) -> None:
    little = save(state_dict(), tmp_path / "little.pt")
    big = tmp_path / "big.pt"
    sizes = {f"{t.storage[0]}": np.dtype(t.dtype.replace("bfloat16", "uint16")).itemsize
             for t in read(little).tensors if t.storage}  # fmt: skip
    with zipfile.ZipFile(little) as source, zipfile.ZipFile(big, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            folder, _, name = info.filename.rpartition("/")
            if folder.endswith("/data"):
                data = np.frombuffer(data, f"u{sizes[name]}").byteswap().tobytes()
            if name == "byteorder":
                data = b"big"
            target.writestr(info.filename, data)
    assert_equal(read(big), torch.load(big, weights_only=True))
    assert_equal(read(big), torch.load(little, weights_only=True))


def test_numpy_arrays_in_a_checkpoint(tmp_path: Path) -> None:
    value = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i2"),
        "empty": np.zeros((0, 2)),
    }
    model = read(save({**value, "objects": np.array([None])}, tmp_path / "model.pt"))
    assert [t.name for t in model.tensors] == list(value)
    for tensor in model.tensors:
        np.testing.assert_array_equal(tensor.load(), value[tensor.name])
        assert tensor.load().dtype.isnative


# -- which tensors are the network -----------------------------------------------------------------


class _Odd:
    """Stands for a class of a package that is not installed."""


def small(seed: int, prefix: str = "") -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}conv.weight": torch.randn(2, 2, 3, 3, generator=g),
        f"{prefix}conv.bias": torch.randn(2, generator=g),
    }


def names(model: RawModel, *, skipped: bool = False) -> list[str]:
    return [t.name for t in model.tensors if bool(t.skip) is skipped]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: {"state_dict": d},
        lambda d: {"model": d, "epoch": 3},
        lambda d: {"epoch": 1, "args": _Odd(), "checkpoint": {"model_state_dict": d}},
        lambda d: {"params_ema": d},
        lambda d: [{"net": d}][0],
    ],
)
def test_one_wrapper_is_not_part_of_the_names(tmp_path: Path, wrap: Any) -> None:
    assert_equal(read(save(wrap(small(1)), tmp_path / "model.pt")), small(1))


def test_several_networks_keep_their_keys(tmp_path: Path) -> None:
    model = read(save({"generator": small(1), "critic": small(2)}, tmp_path / "model.pt"))
    assert names(model) == [
        "generator.conv.weight", "generator.conv.bias", "critic.conv.weight", "critic.conv.bias",
    ]  # fmt: skip
    model = read(save({"model": small(1), "net": small(2)}, tmp_path / "model.pt"))
    assert names(model)[0] == "model.conv.weight"
    model = read(save({"model": small(1), "criterion": small(2)}, tmp_path / "model.pt"))
    assert names(model)[1:3] == ["conv.bias", "criterion.conv.weight"]


def test_optimizer_state_is_marked(tmp_path: Path) -> None:
    net = torch.nn.Conv2d(2, 2, 3)
    # As torch.optim.Adam writes it; importing torch.optim takes ten seconds.
    optimizer = {
        "state": {
            i: {"step": torch.tensor(1.0), "exp_avg": p * 0, "exp_avg_sq": p * 0}
            for i, p in enumerate(net.parameters())
        },
        "param_groups": [{"lr": 0.001, "params": [0, 1]}],
    }
    value = {
        "state_dict": net.state_dict(),
        "optimizer": optimizer,
        "something": optimizer,
        "loss": torch.tensor(0.5),
    }
    model = read(save(value, tmp_path / "model.pt"))
    assert names(model) == ["weight", "bias"]
    skips = {t.name: t.skip for t in model.tensors if t.skip}
    assert skips.pop("loss") == ("buffer", "beside the state dict")
    assert len(skips) == 12
    assert {reason for reason, _ in skips.values()} == {"optimizer_state"}
    assert "optimizer.state.0.exp_avg" in skips
    assert "something.state.1.exp_avg_sq" in skips


@pytest.mark.parametrize(
    ("raw", "ema"),
    [
        ("params", "params_ema"),
        ("model", "ema"),
        ("state_dict", "state_dict_ema"),
        ("net_g", "net_g_ema"),
        ("generator", "ema_generator"),
    ],
)
def test_of_raw_and_ema_weights_the_ema_copy_is_taken(tmp_path: Path, raw: str, ema: str) -> None:
    model = read(save({raw: small(1), ema: small(2)}, tmp_path / "model.pt"))
    taken = [t for t in model.tensors if not t.skip]
    assert [t.name for t in taken] == list(small(2))
    np.testing.assert_array_equal(taken[0].load(), small(2)["conv.weight"].numpy())
    left = {t.name: t.skip for t in model.tensors if t.skip}
    assert left == {f"{raw}.{name}": ("ema_copy", f"{ema!r} is taken instead") for name in small(1)}


def test_an_ema_of_something_else_displaces_nothing(tmp_path: Path) -> None:
    model = read(save({"model": small(1), "ema": {"loss": torch.ones(3, 2)}}, tmp_path / "m.pt"))
    assert not any(t.skip for t in model.tensors)
    nameless = {"model": small(1), "ema": {"shadow_params": list(small(2).values())}}
    model = read(save(nameless, tmp_path / "m.pt"))
    assert names(model) == list(small(1))
    assert {t.skip[0] for t in model.tensors if t.skip} == {"ema_copy"}


def test_ema_copies_inside_one_state_dict(tmp_path: Path) -> None:
    def under(prefix: str, seed: int) -> dict[str, Any]:
        return {f"{prefix}.{name}": value for name, value in small(seed).items()}

    model = read(save({"state_dict": under("net", 1) | under("ema_net", 2)}, tmp_path / "m.pt"))
    assert names(model) == ["ema_net.conv.weight", "ema_net.conv.bias"]
    assert [t.skip for t in model.tensors if t.skip] == [
        ("ema_copy", "'ema_net' is taken instead")
    ] * 2
    # LitEma drops the dots, and with them what the tensors are.
    dotless = {"model_ema." + n.replace(".", ""): v for n, v in small(2).items()}
    model = read(save({"state_dict": under("model", 1) | dotless}, tmp_path / "m.pt"))
    assert names(model) == ["model.conv.weight", "model.conv.bias"]
    # Different networks under such a name displace nothing.
    model = read(save(under("net", 1) | {"ema.weight": torch.ones(3, 3)}, tmp_path / "m.pt"))
    assert not any(t.skip for t in model.tensors)


def test_little_beside_much_is_no_network(tmp_path: Path) -> None:
    extra = {"state": {"example": torch.ones(2, 2)}}
    model = read(save({**small(1), **extra}, tmp_path / "m.pt"))
    assert not any(t.skip for t in model.tensors)
    model = read(save({"state_dict": small(1), "example": torch.ones(1, 3)}, tmp_path / "m.pt"))
    assert {t.name: t.skip for t in model.tensors if t.skip} == {
        "example": ("buffer", "beside the state dict")
    }


def test_subclasses_and_parameters_with_attributes(tmp_path: Path) -> None:
    class Marked(torch.Tensor):
        pass

    globals()["Marked"] = Marked
    Marked.__qualname__ = "Marked"
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "kept"
    value = {"subclass": torch.arange(3.0).as_subclass(Marked), "noted": parameter}
    value["buffer"] = torch.nn.Buffer(torch.zeros(1))
    model = read(save(value, tmp_path / "m.pt"))
    assert {t.name: t.load().tolist() for t in model.tensors} == {
        "subclass": [0, 1, 2], "noted": [1, 1], "buffer": [0],
    }  # fmt: skip


def test_a_tensor_alone_and_tensors_in_lists(tmp_path: Path) -> None:
    assert names(read(save(torch.ones(2), tmp_path / "m.pt"))) == ["tensor"]
    assert names(read(save([torch.ones(2), {"a": torch.ones(1)}], tmp_path / "m.pt"))) == [
        "0",
        "1.a",
    ]
    assert read(save({"epoch": 3}, tmp_path / "m.pt")).tensors == ()


def test_equal_names_stay_apart(tmp_path: Path) -> None:
    model = read(save({"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}, tmp_path / "m.pt"))
    assert len(set(names(model))) == 2


# -- pickled modules -------------------------------------------------------------------------------


class Block(torch.nn.Module):
    """Modules in a list, tied weights, buffers of both sorts, and attributes beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2), dilation=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8, eps=1e-3)
        self.layers = torch.nn.ModuleList(
            [torch.nn.Conv1d(8, 8, 3, groups=4, padding="same"), torch.nn.GroupNorm(2, 8)]
        )
        self.up = torch.nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.volume = torch.nn.Conv3d(2, 2, 3, padding="valid")
        self.head = torch.nn.Linear(4, 2)
        self.table = torch.nn.Embedding(5, 3)
        self.again = self.stem
        self.drop = torch.nn.Dropout()
        self.nothing = None
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("fleeting", torch.arange(4.0), persistent=False)
        self.scale = torch.nn.Parameter(torch.ones(2))
        self.anchors = torch.arange(5.0)
        self.hidden = [torch.nn.Conv2d(1, 1, 3, bias=False), self.up]


class StandardisedConv(torch.nn.Conv2d):
    """A convolution under another name."""


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickled_modules_give_the_names_of_their_state_dict(tmp_path: Path, legacy: bool) -> None:
    module = Block().eval()
    model = read(save(module, tmp_path / "model.pt", legacy=legacy))
    expected = module.state_dict()
    listed = {t.name: t for t in model.tensors}
    assert names(model) == [*expected, "hidden.0.weight"]
    for name, value in expected.items():
        np.testing.assert_array_equal(listed[name].load(), value.numpy())
    assert listed["stem.weight"].storage == listed["again.weight"].storage
    assert {t.name: t.skip[0] for t in model.tensors if t.skip} == {
        "fleeting": "buffer", "anchors": "buffer",
    }  # fmt: skip


def test_pickled_modules_become_nodes(tmp_path: Path) -> None:
    model = read(save({"model": Block()}, tmp_path / "model.pt"))
    nodes = {n.name: n for n in model.nodes}
    assert not model.has_edges
    assert [(n.name, n.op) for n in model.nodes] == [
        ("Block", "other"),
        ("stem", "conv"),
        ("norm", "batch_norm"),
        ("layers.0", "conv"),
        ("layers.1", "norm"),
        ("up", "conv_transpose"),
        ("volume", "conv"),
        ("head", "linear"),
        ("table", "embedding"),
        ("again", "conv"),
        ("drop", "identity"),
        ("hidden.0", "conv"),
    ]
    stem = nodes["stem"].conv
    assert stem is not None
    assert (stem.layout, stem.groups, stem.stride) == ("OIHW", 1, (2, 2))
    assert (stem.padding, stem.dilation) == ((1, 2), (1, 1))
    assert nodes["stem"].weights == {"weight": "stem.weight"}
    first, volume = nodes["layers.0"].conv, nodes["volume"].conv
    assert first is not None
    assert (first.layout, first.groups, first.padding) == ("OIW", 4, None)
    assert volume is not None
    assert (volume.layout, volume.padding) == ("OIDHW", (0, 0, 0))
    up = nodes["up"].conv
    assert up is not None
    assert up.layout == "IOHW"
    assert nodes["norm"].epsilon == 1e-3
    assert nodes["norm"].weights == {
        "gamma": "norm.weight", "beta": "norm.bias",
        "mean": "norm.running_mean", "var": "norm.running_var",
    }  # fmt: skip


def test_subclassed_convolutions_and_lone_modules(tmp_path: Path) -> None:
    model = read(save(StandardisedConv(3, 4, 3), tmp_path / "model.pt"))
    assert [(n.name, n.op, n.source_op) for n in model.nodes] == [
        ("StandardisedConv", "conv", "StandardisedConv")
    ]
    assert names(model) == ["weight", "bias"]
    model = read(save(torch.nn.BatchNorm2d(2, track_running_stats=False), tmp_path / "m.pt"))
    assert [n.op for n in model.nodes] == ["norm"]
    instance = torch.nn.InstanceNorm2d(2, affine=True, track_running_stats=True)
    assert [n.op for n in read(save(instance, tmp_path / "m.pt")).nodes] == ["norm"]


def test_checkpoints_like_those_of_ultralytics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    raw, ema = (
        torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)),
        torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)),
    )
    value = {
        "epoch": -1,
        "model": raw,
        "ema": ema.half(),
        "optimizer": None,
        "train_args": {"a": 1},
    }
    model = read(save(value, tmp_path / "model.pt"))
    taken = [t for t in model.tensors if not t.skip]
    assert [(t.name, t.dtype) for t in taken] == [("0.weight", "float16"), ("0.bias", "float16")]
    assert [(n.name, dict(n.weights)) for n in model.nodes] == [
        ("0", {"weight": "0.weight", "bias": "0.bias"})
    ]


@pytest.mark.filterwarnings("ignore")
def test_torchscript_archives_give_their_tensors(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ConvTranspose2d(2, 3, 2)).eval()
    path = tmp_path / "script.pt"
    torch.jit.script(net).save(str(path))
    model = read(path)
    assert {t.name for t in model.tensors} == set(net.state_dict())
    for tensor in model.tensors:
        np.testing.assert_array_equal(tensor.load(), net.state_dict()[tensor.name].numpy())
    assert [(n.name, n.op) for n in model.nodes] == [("0", "conv"), ("1", "conv_transpose")]
    assert "TorchScript" in model.notes[0]


# -- nothing is executed, torch is not needed ------------------------------------------------------


class _Attack:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_os_system_is_refused_and_never_called(tmp_path: Path, legacy: bool) -> None:
    marker = tmp_path / "marker"
    path = save({**small(1), "x": _Attack(f"touch {marker}")}, tmp_path / "bad.pt", legacy=legacy)
    with pytest.raises(UnsafeCheckpointError, match=r"(posix|nt)\.system"):
        read(path)
    assert not marker.exists()


def test_unknown_classes_are_placeholders_and_listed(tmp_path: Path) -> None:
    model = read(save({"model": small(1), "extra": _Odd()}, tmp_path / "model.pt"))
    assert names(model) == list(small(1))
    assert any("_Odd" in note for note in model.notes)


def test_reading_does_not_import_torch(tmp_path: Path) -> None:
    path = save(Block(), tmp_path / "model.pt")
    code = (
        "import sys, pathlib; from filterdb.sources.formats import ModelFile, read_model\n"
        f"m = read_model(ModelFile(pathlib.Path({str(path)!r})))\n"
        "[t.load() for t in m.tensors]\n"
        "print(len(m.tensors), sorted({'torch', 'pickle', 'onnx', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, imported = done.stdout.split(maxsplit=1)
    assert int(count) > 10
    assert "torch" not in imported


def test_loaders_survive_pickling_and_the_file_stays_closed(tmp_path: Path) -> None:
    path = save(small(1), tmp_path / "model.pt")
    tensor = pickle.loads(pickle.dumps(read(path).tensors[0]))
    np.testing.assert_array_equal(tensor.load(), small(1)["conv.weight"].numpy())


def test_listing_reads_no_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save({"a": torch.zeros(4_000_000), "b": torch.ones(3)}, tmp_path / "big.pt")
    viewed: list[int] = []
    view = FileBytes.view

    def counted(self: FileBytes, start: int, count: int) -> np.ndarray:
        viewed.append(count)
        return view(self, start, count)

    monkeypatch.setattr(FileBytes, "view", counted)
    model = read(path)
    assert 0 < sum(viewed) < 10_000
    assert model.tensors[1].load().tolist() == [1, 1, 1]
    assert viewed[-1] == 12


# -- harm ------------------------------------------------------------------------------------------


def rezip(source: Path, target: Path, change: Any) -> Path:
    """Copy a torch zip, passing every member (name, bytes) through `change`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return target


def craft(path: Path, content: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """Write a torch zip by hand."""
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("a/data.pkl", content)
        for key, data in (storages or {}).items():
            target.writestr(f"a/data/{key}", data)
    return path


def tensor_pickle(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...], numel: int = 4, times: int = 1
) -> bytes:
    """Return the pickle of a list of float32 tensors over storage "0"."""
    one = io.BytesIO()

    class Pickler(pickle._Pickler):  # the Python one lets globals be written that do not exist
        def persistent_id(self, obj: Any) -> Any:
            if obj == "STORAGE":
                return ("storage", torch.FloatStorage, "0", "cpu", numel)
            return None

    class Rebuild:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, ("STORAGE", offset, size, stride, False, None)

    Pickler(one, protocol=2).dump([Rebuild() for _ in range(times)])
    return one.getvalue()


def test_storages_may_be_views_of_enough_bytes_only(tmp_path: Path) -> None:
    data = {"0": np.arange(4, dtype="<f4").tobytes()}
    good = craft(tmp_path / "a.pt", tensor_pickle(1, (3,), (1,)), data)
    np.testing.assert_array_equal(read(good).tensors[0].load(), [1, 2, 3])
    for bad in (
        tensor_pickle(2, (3,), (1,)),
        tensor_pickle(0, (2, 3), (2, 1)),
        tensor_pickle(0, (1 << 40,), (1,)),
        tensor_pickle(-1, (1,), (1,)),
        tensor_pickle(0, (-1,), (1,)),
        tensor_pickle(0, (2,), (-1,)),
        tensor_pickle(0, (2,), (1, 1)),
        tensor_pickle(0, (1,) * 40, (1,) * 40),
        tensor_pickle(0, (4,), (1,), numel=1 << 47),
        tensor_pickle(0, (8,), (1,), numel=8),
    ):
        with pytest.raises(MalformedFileError):
            read(craft(tmp_path / "bad.pt", bad, data))
    with pytest.raises(MalformedFileError, match="not in the file"):
        read(craft(tmp_path / "bad.pt", tensor_pickle(0, (3,), (1,)), {"1": b"\0" * 16}))


def test_expanded_tensors_cannot_outgrow_the_file(tmp_path: Path) -> None:
    data = {"0": b"\0" * 16}
    with pytest.raises(UnsafeCheckpointError, match="many times"):
        read(craft(tmp_path / "bad.pt", tensor_pickle(0, (1 << 30,), (0,)), data))
    many = craft(tmp_path / "many.pt", tensor_pickle(0, (1 << 20,), (0,), times=200), data)
    with pytest.raises(UnsafeCheckpointError, match="many times"):
        read(many)


def test_lists_of_lists_of_one_tensor_are_bounded(tmp_path: Path) -> None:
    tensor = tensor_pickle(0, (1,), (1,))[:-1]
    laughs = tensor + b"".join(
        b"q%c0(%s" % (200 + i, b"h%c" % (200 + i) * 10) + b"l" for i in range(9)
    )
    with pytest.raises(UnsafeCheckpointError, match=r"unfold|many times|tensors"):
        read(craft(tmp_path / "bad.pt", laughs + b".", {"0": b"\0" * 16}))
    empty = b"]" + b"".join(b"q%c0(%sl" % (100 + i, b"h%c" % (100 + i) * 10) for i in range(12))
    with pytest.raises(UnsafeCheckpointError, match="unfold"):
        read(craft(tmp_path / "bad.pt", empty + b"."))


def test_deep_and_cyclic_graphs(tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpointError, match="levels deep"):
        read(craft(tmp_path / "bad.pt", b"N" + b"\x85" * 100_000 + b"."))
    loop = b"}q\x00X\x01\x00\x00\x00ah\x00s."
    assert read(craft(tmp_path / "loop.pt", loop)).tensors == ()


def test_modules_that_contain_themselves(tmp_path: Path) -> None:
    class Loop(torch.nn.Module):
        pass

    globals()["Loop"] = Loop
    Loop.__qualname__ = "Loop"
    outer = Loop()
    outer.weight = torch.nn.Parameter(torch.ones(1))
    outer._modules["inner"] = outer
    outer.parent = [outer]
    assert names(read(save(outer, tmp_path / "model.pt"))) == ["weight"]


def test_zip_bombs_and_overlaps(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a/data.pkl", b"}.")
        target.writestr("a/data/0", b"\0" * 100_000_000)
    with pytest.raises(UnsafeCheckpointError, match="inflate"):
        read(path)
    good = craft(tmp_path / "a.pt", tensor_pickle(0, (3,), (1,)), {"0": b"\0" * 16})
    raw = good.read_bytes()
    directory = raw.index(b"PK\1\2")
    second = raw.index(b"PK\1\2", directory + 1)
    # The second member claims the first one's place.
    forged = bytearray(raw)
    forged[second + 42 : second + 46] = raw[directory + 42 : directory + 46]
    (tmp_path / "overlap.pt").write_bytes(forged)
    with pytest.raises(MalformedFileError, match=r"overlap|name"):
        read(tmp_path / "overlap.pt")


def test_deflated_members_are_read(tmp_path: Path) -> None:
    source = save(state_dict(), tmp_path / "model.pt")
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    assert_equal(read(packed), torch.load(source, weights_only=True))


def test_other_containers_are_named(tmp_path: Path) -> None:
    tar = tmp_path / "old.pt"
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    with pytest.raises(UnsupportedFormatError, match=r"torch 0\.1"):
        read(tar)
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsupportedFormatError, match="plain Python pickle"):
        read(plain)
    with pytest.raises(MalformedFileError, match="neither"):
        read_model(ModelFile(plain), "torch")


def _read_all(path: Path) -> None:
    """Read and load everything; only SourceError may come out."""
    with contextlib.suppress(SourceError):
        for tensor in read_model(ModelFile(path), "torch").tensors:
            if not tensor.skip:
                assert tensor.load().shape == tensor.shape


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_cut_short_at_any_byte(tmp_path: Path, legacy: bool) -> None:
    raw = save({"w": torch.ones(1)}, tmp_path / "model.pt", legacy=legacy).read_bytes()
    cut = tmp_path / "cut.pt"
    for length in range(len(raw)):
        cut.write_bytes(raw[:length])
        with pytest.raises(SourceError):
            read_model(ModelFile(cut), "torch")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_files_give_values_or_source_errors(
    tmp_path: Path, legacy: bool, data: st.DataObject
) -> None:
    source = tmp_path / "source.pt"
    if not source.exists():
        save({"model": small(1), "ema": torch.nn.Conv2d(1, 2, 3)}, source, legacy=legacy)
    raw = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    mutant = tmp_path / "mutant.pt"
    mutant.write_bytes(raw)
    _read_all(mutant)


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_pickles_in_sound_zips(tmp_path: Path, data: st.DataObject) -> None:
    source = tmp_path / "source.pt"
    if not source.exists():
        save({"model": small(1), "ema": torch.nn.Conv2d(1, 2, 3)}, source)

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        raw = bytearray(content)
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        return bytes(raw)

    _read_all(rezip(source, tmp_path / "mutant.pt", change))


def test_legacy_storage_counts_are_checked(tmp_path: Path) -> None:
    raw = save({"a": torch.arange(4.0)}, tmp_path / "m.pt", legacy=True).read_bytes()
    place = raw.index(struct.pack("<q", 4), len(raw) - 30)
    bad = tmp_path / "bad.pt"
    for count in (5, -1, 1 << 62):
        bad.write_bytes(raw[:place] + struct.pack("<q", count) + raw[place + 8 :])
        with pytest.raises(MalformedFileError, match="elements"):
            read(bad)
