"""Random initial weights: the same bytes each time, in a file others can read."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from filterdb.errors import UnknownNameError
from filterdb.sources import Cache, fetch, open_raw, read_layers
from filterdb.sources.origins.random_init import MODULES_KEY

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.torch, pytest.mark.slow]
ARCH = "test_resnet"


def test_the_file_is_timm_s_model(cache: Cache, tmp_path: Path) -> None:
    import timm
    import torch

    before = torch.random.get_rng_state()
    fetched = fetch(f"init:timm/{ARCH}?seed=3", cache=cache)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (fetched.init_of, fetched.seed, fetched.archive_sha256) == (f"timm/{ARCH}", 3, None)
    assert fetched.file.name == f"{ARCH}.seed3.safetensors"
    torch.manual_seed(3)
    model = timm.create_model(ARCH, pretrained=False)
    state = model.state_dict()
    stored = load_file(fetched.file.path)
    assert set(stored) == set(state)
    assert all((stored[name] == tensor.numpy()).all() for name, tensor in state.items())
    raw = open_raw(fetched)
    assert [tensor.name for tensor in raw.tensors] == list(state)


def test_the_modules_say_what_a_state_dict_cannot(cache: Cache) -> None:
    import timm

    fetched = fetch(f"init:timm/{ARCH}", cache=cache)
    assert fetched.seed == 0
    assert fetched.uri == f"init:timm/{ARCH}?seed=0"
    with safe_open(fetched.file.path, "numpy") as file:
        listed = json.loads(file.metadata()[MODULES_KEY])
    modules = dict(timm.create_model(ARCH).named_modules())
    convolutions = [record for record in listed if record["type"] == "Conv2d"]
    assert len(convolutions) > 5
    for record in convolutions:
        module = modules[record["name"]]
        assert record["stride"] == list(module.stride)
        assert record["groups"] == module.groups
        assert record["weight"] == f"{record['name']}.weight"
    norms = [record for record in listed if "running_mean" in record.get("mean", "")]
    assert norms
    assert all(record["eps"] == modules[record["name"]].eps for record in norms)
    layers = read_layers(fetched.file.path, cache=cache)
    strides = {layer.name: layer.stride for layer in layers}
    assert strides == {r["name"]: tuple(r["stride"]) for r in convolutions}
    assert "separate" in {layer.batch_norm_status for layer in layers}


def test_seeds_differ_and_the_same_seed_does_not(cache: Cache, tmp_path: Path) -> None:
    first = fetch(f"init:timm/{ARCH}?seed=1", cache=cache)
    again = fetch(f"init:timm/{ARCH}?seed=1", cache=Cache(tmp_path / "other"))
    other = fetch(f"init:timm/{ARCH}?seed=2", cache=cache)
    assert first.member_sha256 == again.member_sha256 != other.member_sha256
    assert first.file.path != again.file.path


def test_twins_made_at_the_same_time_are_those_made_one_by_one(tmp_path: Path) -> None:
    uris = [f"init:timm/{ARCH}?seed={seed}" for seed in range(6)]

    def hashes(name: str, workers: int) -> list[str]:
        cache = Cache(tmp_path / name)
        with ThreadPoolExecutor(workers) as pool:
            return [f.member_sha256 for f in pool.map(lambda u: fetch(u, cache=cache), uris)]

    assert hashes("together", 6) == hashes("alone", 1)


def test_an_unknown_architecture_names_the_nearest(cache: Cache) -> None:
    with pytest.raises(UnknownNameError, match=r"'resnet81' in timm \(nearest: resn"):
        fetch("init:timm/resnet81", cache=cache)
