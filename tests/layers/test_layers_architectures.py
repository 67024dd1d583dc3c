"""timm's architectures, built here with random weights, against what is read of their files.

Every kernel is compared with its live module: values, operation, kernel, groups and channels; of
the random twin (``init:``), of a state dict saved by torch, and of one saved as safetensors in the
order of registration and in safetensors' own, which is the alphabet's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch, open_raw
from filterdb.sources.formats import read_model
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.origins.random_init import write_safetensors
from tests.layers import architectures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from filterdb.layers.model import ConvLayer

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

#: System of the coverage list → architectures of it that are built in a second or two.
QUICK = (
    "convit_tiny",
    "eca_halonext26ts",
    "inception_next_atto",
    "convnextv2_atto",
    "repvit_m0_9",
    "mambaout_femto",
    "efficientvim_m1",
    "test_efficientnet_evos",
    "resnest14d",
    "dpn48b",
    "fastvit_t8",
    "lambda_resnet26t",
)
SLOW = (
    "inception_v4",
    "inception_resnet_v2",
    "halonet26t",
    "halonet50ts",
    "sehalonet33ts",
    "haloregnetz_b",
    "lamhalobotnet50ts_256",
    "halo2botnet50ts_256",
    "resnetv2_50d_evos",
    "regnetz_b16_evos",
    "regnetz_c16_evos",
    "regnetz_d8_evos",
    "ese_vovnet39b_evos",
    "efficientnet_b0_g16_evos",
    "nasnetalarge",
    "pnasnet5large",
    "mixer_s32_224",
    "resmlp_12_224",
    "gmixer_12_224",
    "regnetz_b16",
    "resnest26d",
    "dpn68",
    "beit_base_patch16_224",
)
#: Sorted by the alphabet, nothing says that these depthwise kernels make two channels of one.
UNKNOWN_SORTED = {"fastvit_t8": r"\.(large_conv|small_conv)\.|final_conv\."}


def _build(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return timm.create_model(name, pretrained=False).eval()


def _twin(model: Any, path: Path) -> None:
    with path.open("wb") as stream:
        write_safetensors(model, stream)


def _torch(model: Any, path: Path) -> None:
    torch.save(model.state_dict(), path)


def _by_alphabet(model: Any, path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    state = model.state_dict()
    save_file({n: state[n].contiguous() for n in sorted(state)}, path, metadata={"format": "pt"})


FILES: dict[str, tuple[str, Callable[[Any, Path], None]]] = {
    "twin": ("twin.safetensors", _twin),
    "torch": ("state.pt", _torch),
    "sorted": ("sorted.safetensors", _by_alphabet),
}


def _read(model: Any, folder: Path) -> Iterator[tuple[str, tuple[ConvLayer, ...]]]:
    for kind, (name, write) in FILES.items():
        path = folder / name
        write(model, path)
        yield kind, find_layers(read_model(ModelFile(path, name))).layers
        path.unlink()


def _check(name: str, folder: Path) -> None:
    model = _build(name)
    truth = architectures.truth_of(model)
    modules = dict(model.named_modules())
    for kind, layers in _read(model, folder):
        assert {r.tensor for r in layers} == truth.keys(), kind
        for layer in layers:
            shape = (
                layer.op,
                layer.groups,
                layer.out_channels,
                layer.in_channels,
                layer.kernel,
            )
            unknown = kind == "sorted" and re.search(UNKNOWN_SORTED.get(name, r"\0"), layer.tensor)
            if not unknown:
                assert shape == truth[layer.tensor], f"{kind}: {layer.tensor}"
            module = modules[layer.name]
            assert not module.transposed
            np.testing.assert_array_equal(layer.weights(), module.weight.detach().numpy())
            assert _plausible(layer, module), f"{kind}: {layer.tensor} is {layer.role}"
            if kind == "twin":
                assert layer.stride == tuple(module.stride)
                assert layer.dilation == tuple(module.dilation)
        firsts = [r for r in layers if r.role in ("stem", "patch_embed")]
        assert firsts, kind
        assert all(r.in_channels == 3 for r in firsts) or kind == "sorted"


def _plausible(layer: ConvLayer, module: Any) -> bool:
    """Whether the role contradicts nothing the live module says."""
    size = tuple(module.kernel_size)
    strided = max(module.stride) > 1
    return {
        "stem": True,
        "patch_embed": size == tuple(module.stride),
        "depthwise": layer.groups == layer.in_channels > 1,
        "pointwise": max(size) == 1,
        "downsample": max(size) == 1 or size == tuple(module.stride) or strided,
        "spatial": max(size) > 1,
        "head": True,
        "fc_as_conv": max(size) > 1 and not strided,
    }[layer.role]


@pytest.mark.parametrize("name", QUICK)
def test_files_of_an_architecture_give_its_live_kernels(name: str, tmp_path: Path) -> None:
    _check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_files_of_a_large_architecture_give_its_live_kernels(name: str, tmp_path: Path) -> None:
    _check(name, tmp_path)


def test_init_uri_gives_the_kernels_timm_makes_with_that_seed(tmp_path: Path) -> None:
    fetched = fetch("init:timm/convnextv2_atto?seed=3", cache=Cache(tmp_path))
    model = _build("convnextv2_atto")
    modules = dict(model.named_modules())
    layers = find_layers(open_raw(fetched, "auto")).layers
    assert len(layers) == 40
    for layer in layers:
        expected = modules[layer.name].weight.detach().numpy()
        np.testing.assert_array_equal(layer.weights(), expected)


def test_counts_of_imagined_files_hold_for_a_family() -> None:
    """The published table's generator: a twin is exact, and so is what ResNet's names say."""
    rows = list(architectures.rows_of(["test_resnet", "test_efficientnet", "regnetx_002"]))
    assert {r.file for r in rows} == set(architectures.FILES)
    assert all(r.right == r.convolutions == r.found > 0 for r in rows)
    assert sum(t["architectures"] for t in architectures.summarise(rows)) == len(rows)


@pytest.mark.slow
def test_twins_of_all_that_timm_builds_are_exact() -> None:
    rows = list(architectures.rows_of(timm.list_models()))
    wrong = [r for r in rows if r.file == "twin" and not r.right == r.convolutions == r.found]
    assert wrong == []
    for file, least in (("registered", 0.995), ("sorted", 0.99)):
        these = [r for r in rows if r.file == file]
        assert all(r.found == r.convolutions and not r.missing for r in these), file
        assert sum(r.right for r in these) > least * sum(r.convolutions for r in these), file
