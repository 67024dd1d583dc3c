"""Networks of our own in torch: a 3-D U-Net and a VAE, as saved in the ways people save them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.sources.formats import read_model
from filterdb.sources.formats.base import ModelFile
from filterdb.sources.origins.random_init import write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from filterdb.layers.model import ModelLayers

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
nn = torch.nn
functional = torch.nn.functional


class Separable3d(nn.Module):
    """A depthwise 3×3×3 kernel and a pointwise one, as memory-efficient U-Nets have them."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(into, into, 3, padding=1, groups=into, bias=False)
        self.pointwise = nn.Conv3d(into, out, 1, bias=False)
        self.norm = nn.BatchNorm3d(out)

    def forward(self, x: Any) -> Any:
        return functional.relu(self.norm(self.pointwise(self.depthwise(x))))


class UNet3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 8, (1, 3, 3), padding=(0, 1, 1))
        self.enc1 = Separable3d(8, 16)
        self.down = nn.Conv3d(16, 16, 2, stride=2)
        self.enc2 = Separable3d(16, 32)
        self.dilated = nn.Conv3d(32, 32, 3, padding=2, dilation=2, groups=4)
        self.up = nn.ConvTranspose3d(32, 16, 2, stride=2)
        self.dec1 = Separable3d(32, 16)
        self.outc = nn.Conv3d(16, 3, 1)

    def forward(self, x: Any) -> Any:
        first = self.enc1(self.stem(x))
        deep = self.dilated(self.enc2(self.down(first)))
        return self.outc(self.dec1(torch.cat([first, self.up(deep)], 1)))


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.fc_mu, self.fc_var = nn.Linear(32 * 64, 12), nn.Linear(32 * 64, 12)
        self.fc_decode = nn.Linear(12, 32 * 64)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 8, (3, 4), stride=(1, 2), padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, x: Any) -> Any:
        code = self.encoder(x).flatten(1)
        code = self.fc_mu(code) + self.fc_var(code).exp()
        return self.decoder(self.fc_decode(code).reshape(-1, 32, 8, 8))


NETWORKS: dict[str, Callable[[], Any]] = {"unet3d": UNet3d, "vae": Vae}


def _saved(content: Any, path: Path) -> ModelLayers:
    if path.suffix == ".safetensors":
        save_file = pytest.importorskip("safetensors.torch").save_file
        save_file({n: t.contiguous() for n, t in sorted(content.items())}, path)
    else:
        torch.save(content, path)
    return find_layers(read_model(ModelFile(path, path.name)))


def _kernels(network: Any) -> dict[str, Any]:
    return {n: m for n, m in network.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}


def _applied(layer: Any, module: Any) -> None:
    """The extracted kernel, handed to torch, gives what the live layer gives."""
    weight = torch.tensor(layer.weights())
    x = torch.randn(1, module.in_channels, *(7,) * layer.rank)
    bias = module.bias
    with torch.no_grad():
        expected = module(x)
        if layer.op == "conv":
            function = getattr(functional, f"conv{layer.rank}d")
            got = function(
                x, weight, bias, module.stride, module.padding, module.dilation, layer.groups
            )
        else:
            assert layer.groups == 1
            function = getattr(functional, f"conv_transpose{layer.rank}d")
            got = function(x, weight.transpose(0, 1), bias, module.stride, module.padding)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "twin"])
@pytest.mark.parametrize("name", NETWORKS)
def test_extracted_kernels_compute_what_the_layers_compute(name, suffix, tmp_path) -> None:
    torch.manual_seed(1)
    network = NETWORKS[name]().eval()
    path = tmp_path / f"{name}.{suffix}"
    if suffix == "twin":
        with path.open("wb") as stream:
            write_safetensors(network, stream)  # A stream is sink enough.
        found = find_layers(read_model(ModelFile(path, "twin.safetensors")))
    else:
        found = _saved(network.state_dict(), path)
    live = _kernels(network)
    assert {r.name for r in found.layers} == live.keys()
    for layer in found.layers:
        module = live[layer.name]
        if layer.name == "dilated" and suffix != "twin":
            # One kernel of four groups in a whole file: no shape tells it from a split.
            assert layer.groups == 1
            np.testing.assert_array_equal(layer.weights(), module.weight.detach().numpy())
            continue
        assert layer.groups == module.groups, layer.name
        assert (layer.op == "conv_transpose") == module.transposed
        assert layer.kernel == tuple(module.kernel_size)
        _applied(layer, module)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "unet3d",
            {
                "stem": "stem",
                "enc1.depthwise": "depthwise",
                "enc1.pointwise": "pointwise",
                "down": "spatial",
                "up": "spatial",
                "dec1.depthwise": "depthwise",
                "outc": "head",
            },
        ),
        (
            "vae",
            {
                "encoder.0": "stem",
                "encoder.2": "spatial",
                "decoder.0": "spatial",
                "decoder.5": "head",
            },
        ),
    ],
)
def test_roles_in_three_dimensions_and_without_a_graph(name, expected, tmp_path) -> None:
    network = NETWORKS[name]()
    found = _saved(network.state_dict(), tmp_path / "state.pt")
    roles = {r.name: r.role for r in found.layers}
    assert {n: roles[n] for n in expected} == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exponential_moving_average_is_taken_and_the_raw_weights_are_rows(
    name, tmp_path
) -> None:
    torch.manual_seed(2)
    network = NETWORKS[name]()
    average = {n: t * 0.5 for n, t in network.state_dict().items()}
    content = {"state_dict": network.state_dict(), "state_dict_ema": average, "epoch": 3}
    found = _saved(content, tmp_path / "checkpoint.pt")
    live = _kernels(network)
    assert len(found.layers) == len(live)
    for layer in found.layers:
        module = next(m for n, m in live.items() if layer.name.endswith(n))
        half = module.weight.detach().numpy() * 0.5
        expected = half.swapaxes(0, 1) if module.transposed else half
        np.testing.assert_array_equal(layer.weights(), expected)
    copies = {s.tensor for s in found.skipped if s.reason == "ema_copy"}
    assert len(copies) >= len(live)


def _generated() -> Any:
    class Generated(nn.Module):
        """An MLP makes the kernel: no file holds it (HyperZ·Z·W)."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.kernel_net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 64))

        def forward(self, x: Any) -> Any:
            places = torch.stack(torch.meshgrid(torch.arange(3.0), torch.arange(3.0)), -1)
            kernel = self.kernel_net(places).permute(2, 0, 1).reshape(8, 8, 3, 3)
            return functional.conv2d(self.stem(x), kernel)

    return Generated()


def test_generated_kernels_are_no_layers_of_a_state_dict(tmp_path) -> None:
    found = _saved(_generated().state_dict(), tmp_path / "state.pt")
    assert [r.name for r in found.layers] == ["stem"]
    assert {s.reason for s in found.skipped} == {"fully_connected", "bias"}


def test_generated_kernels_are_rows_where_a_graph_shows_them(tmp_path) -> None:
    pytest.importorskip("onnx")
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> Any:
        values = rng.normal(size=shape).astype(np.float32)
        return onnx.numpy_helper.from_array(values, name)

    nodes = [
        helper.make_node("Conv", ["x", "stem.w"], ["a"], name="stem"),
        helper.make_node("MatMul", ["places", "mlp.w"], ["k"], name="mlp"),
        helper.make_node("Reshape", ["k", "shape"], ["kernel"], name="reshape"),
        helper.make_node("Conv", ["a", "kernel"], ["y"], name="generated"),
    ]
    shape = onnx.numpy_helper.from_array(np.array([4, 8, 3, 3]), "shape")
    graph = helper.make_graph(
        nodes,
        "hyper",
        [helper.make_tensor_value_info("x", kind, [1, 3, 9, 9])],
        [helper.make_tensor_value_info("y", kind, None)],
        [constant("stem.w", 8, 3, 3, 3), constant("places", 9, 2), constant("mlp.w", 2, 32), shape],
    )
    path = tmp_path / "hyper.onnx"
    onnx.save(helper.make_model(graph), path)
    found = find_layers(read_model(ModelFile(path, path.name)))
    assert [r.name for r in found.layers] == ["stem"]
    assert found.layers[0].conv_depth == 0
    rows = [s for s in found.skipped if s.reason == "dynamic_weight"]
    assert [s.tensor for s in rows] == ["generated"]
