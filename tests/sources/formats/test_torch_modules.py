"""The torch reader: pickled modules and TorchScript."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.sources.formats.torch_files import Block, names, read, save

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


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
