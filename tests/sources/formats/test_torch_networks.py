"""The torch reader: which tensors of a checkpoint are the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sources.formats.torch_files import _Odd, assert_equal, names, read, save, small

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


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


@pytest.mark.parametrize("form", ["a list", "names without dots", "another list"])
def test_averages_without_the_networks_names_stand_under_them(tmp_path: Path, form: str) -> None:
    raw, average = small(1), small(2)
    raw["bn.running_mean"] = torch.zeros(2)
    if form == "names without dots":
        content = {"net." + n: v for n, v in raw.items()}
        content |= {"net_ema." + n.replace(".", ""): v for n, v in average.items()}
        named = {"net." + n: v for n, v in average.items()}
    else:
        shadow = list(average.values())
        content = {"model": raw, "ema": {"decay": 0.9, "shadow_params": shadow}}
        named = average
        if form == "another list":
            # One more than the network has parameters: which is which cannot be told.
            shadow.insert(0, torch.ones(2))
            named = small(1)
    model = read(save(content, tmp_path / "model.pt"))
    tensors = {t.name: t for t in model.tensors}
    for name, values in named.items():
        np.testing.assert_array_equal(tensors[name].load(), values.numpy())
        assert tensors[name].skip is None
    left = [t for t in model.tensors if t.skip]
    assert {t.skip[0] for t in left} == {"ema_copy"}
    if form != "another list":
        kernel = next(t for t in left if len(t.shape) == 4)
        np.testing.assert_array_equal(kernel.load(), raw["conv.weight"].numpy())
