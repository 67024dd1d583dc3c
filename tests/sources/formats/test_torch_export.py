"""Programs that torch.export writes: layers, graph and weights without torch."""

from __future__ import annotations

import json
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.errors import SourceError
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import ModelFile, detect, read_model

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, (3, 5), stride=2, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8, eps=1e-3)
        self.grouped = torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.shortcut = torch.nn.Conv2d(8, 8, 1).half().float()
        self.up = torch.nn.ConvTranspose2d(8, 4, (2, 3), stride=2)
        self.head = torch.nn.Linear(4, 2)
        for parameter in self.parameters():
            count = parameter.numel()
            parameter.data = torch.arange(float(count)).reshape(parameter.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.up(self.grouped(x) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("export") / "small.pt2"
    model = Small().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 16, 16),)), path)
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("_weights_config.json") for name in archive.namelist()):
            pytest.skip("this torch writes an older kind of exported program")
    return path, model


def test_layers_orientation_and_graph(exported: tuple[Path, Any]) -> None:
    path, model = exported
    assert detect(ModelFile(path)) == "torch"
    raw = read_model(ModelFile(path))
    assert raw.has_edges
    for name, values in model.state_dict().items():
        (tensor,) = (t for t in raw.tensors if t.name == name)
        np.testing.assert_array_equal(tensor.load(), values.numpy())
    layers = {layer.name: layer for layer in find_layers(raw).layers}
    assert set(layers) == {"stem", "grouped", "shortcut", "up"}
    for name, layer in layers.items():
        module = getattr(model, name)
        assert (layer.stride, layer.dilation) == (module.stride, module.dilation)
        assert (layer.groups, layer.kernel) == (module.groups, module.kernel_size)
        assert layer.out_channels == module.out_channels
        if not module.transposed:
            np.testing.assert_array_equal(layer.weights(), module.weight.detach().numpy())
    assert layers["up"].op == "conv_transpose"
    assert [layers[n].conv_depth for n in ("stem", "grouped", "shortcut", "up")] == [0, 1, 1, 2]
    assert layers["stem"].batch_norm_status == "separate"
    read_norm = layers["stem"].read_batch_norm
    assert read_norm is not None
    assert read_norm().epsilon == pytest.approx(1e-3)


CHANGES: dict[str, Any] = {
    "no weights": {"weights_config": {}},
    "nothing": {"weights_config": []},
    "large": {"sizes": [{"as_int": 1 << 40}]},
    "negative": {"sizes": [{"as_int": -1}, {"as_int": 3}]},
    "beyond": {"storage_offset": {"as_int": 4000}},
    "pickled": {"use_pickle": True},
    "elsewhere": {"path_name": "../../../../etc/passwd"},
    "unknown type": {"dtype": 99},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_does_not_fit_is_a_source_error(
    exported: tuple[Path, Any], tmp_path: Path, change: dict[str, Any]
) -> None:
    made = tmp_path / "changed.pt2"
    with zipfile.ZipFile(exported[0]) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("_weights_config.json"):
                config = json.loads(content)
                entry = config["config"]["stem.weight"]
                if "weights_config" in change:
                    config = {"config": change["weights_config"]}
                entry.update({k: v for k, v in change.items() if k in entry})
                meta = entry["tensor_meta"]
                meta.update({k: v for k, v in change.items() if k in meta})
                content = json.dumps(config).encode()
            new.writestr(name, content)
    with pytest.raises(SourceError, match=r"changed\.pt2"):
        read_model(ModelFile(made), "torch")


def test_odd_graphs_are_read_or_refused(exported: tuple[Path, Any], tmp_path: Path) -> None:
    for number, graph in enumerate(([], {"nodes": 3}, {"nodes": [{"target": 1}, None, {}]}, None)):
        made = tmp_path / f"{number}.pt2"
        with zipfile.ZipFile(exported[0]) as old, zipfile.ZipFile(made, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith("models/small.json"):
                    content = json.dumps({"graph_module": {"graph": graph}}).encode()
                new.writestr(name, content)
        assert len(read_model(ModelFile(made)).tensors) > 5
