"""Live torch networks: what their state dicts and registered modules are taken for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.layers.raw import ConvAttributes, Node, RawModel, Tensor

if TYPE_CHECKING:
    from filterdb.layers.model import ConvLayer

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
nn = torch.nn


def _double(into: int, out: int) -> Any:
    return nn.Sequential(
        nn.Conv2d(into, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
        nn.Conv2d(out, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down = _double(3, 8), _double(8, 16)
        self.up, self.conv = nn.ConvTranspose2d(16, 8, 2, stride=2), _double(16, 8)
        self.outc = nn.Conv2d(8, 2, 1)

    def forward(self, x: Any) -> Any:
        first = self.inc(x)
        up = self.up(self.down(nn.functional.max_pool2d(first, 2)))
        return self.outc(self.conv(torch.cat([first, up], 1)))


class PreActivation(nn.Module):
    """Normalises before it convolves, so that ``bn1`` is not ``conv1``'s."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x))))


class AllNormsLast(nn.Module):
    """Registers the norms behind all convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Any) -> Any:
        return self.bn2(self.conv2(self.bn1(self.conv1(x))))


def _other_ranks() -> Any:
    return nn.ModuleDict(
        {
            "a": nn.Sequential(nn.Conv1d(2, 4, 5), nn.BatchNorm1d(4), nn.ConvTranspose1d(4, 2, 4)),
            "b": nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ConvTranspose3d(4, 2, 2)),
        }
    )


def _torchvision(name: str) -> Callable[[], Any]:
    def make() -> Any:
        models = pytest.importorskip("torchvision.models")
        return getattr(models, name)(weights=None)

    return make


def _vgg() -> Any:
    vgg = pytest.importorskip("torchvision.models.vgg")
    return vgg.make_layers(vgg.cfgs["A"], batch_norm=True)


NETWORKS = {
    "resnet18": _torchvision("resnet18"),
    "regnet": _torchvision("regnet_y_400mf"),
    "mobilenet_v2": _torchvision("mobilenet_v2"),
    "vgg11_bn": _vgg,
    "convnext_tiny": _torchvision("convnext_tiny"),
    "densenet121": _torchvision("densenet121"),
    "unet": UNet,
    "preactivation": PreActivation,
    "norms_last": AllNormsLast,
    "ranks": _other_ranks,
}


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    made: dict[str, Any] = {}
    return made


def _network(networks: dict[str, Any], name: str) -> Any:
    if name not in networks:
        networks[name] = NETWORKS[name]().eval()
    return networks[name]


def _tensors(network: Any, *, by_alphabet: bool = False) -> tuple[Tensor, ...]:
    state = network.state_dict()
    names = sorted(state) if by_alphabet else list(state)
    return tuple(
        Tensor(n, tuple(state[n].shape), str(state[n].dtype)[6:], state[n].detach().numpy)
        for n in names
    )


def _modules(network: Any) -> Iterator[Node]:
    """The registered modules, as readers of pickled networks and init twins list them."""
    for name, module in network.named_modules():
        own = [n for n, _ in [*module.named_parameters(recurse=False)]]
        weights = {n: f"{name}.{n}" for n in own}
        if isinstance(module, nn.modules.conv._ConvNd):
            axes = "DHW"[3 - len(module.kernel_size) :]
            yield Node(
                name,
                "conv_transpose" if module.transposed else "conv",
                weights=weights,
                conv=ConvAttributes(
                    ("IO" if module.transposed else "OI") + axes,
                    module.groups,
                    module.stride,
                    module.dilation,
                    module.padding,
                ),
            )
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            roles = {
                "gamma": "weight",
                "beta": "bias",
                "mean": "running_mean",
                "var": "running_var",
            }
            weights = {role: f"{name}.{leaf}" for role, leaf in roles.items()}
            yield Node(name, "batch_norm", weights=weights, epsilon=module.eps)
        elif isinstance(module, nn.Linear):
            yield Node(name, "linear", weights=weights)


def _truth(network: Any) -> dict[str, tuple[Any, ...]]:
    return {
        name: (m.transposed, m.in_channels, m.out_channels, m.groups, tuple(m.kernel_size))
        for name, m in network.named_modules()
        if isinstance(m, nn.modules.conv._ConvNd)
    }


def _found(layers: tuple[ConvLayer, ...]) -> dict[str, tuple[Any, ...]]:
    return {
        r.name: (r.op == "conv_transpose", r.in_channels, r.out_channels, r.groups, r.kernel)
        for r in layers
    }


def _applied_norms(network: Any) -> dict[str, str]:
    """Run the network; say which BatchNorm read each convolution's output."""
    names = {m: n for n, m in network.named_modules()}
    written: dict[int, str] = {}
    pairs: dict[str, str] = {}
    kept = []

    def convolved(module: Any, _: Any, output: Any) -> None:
        written[id(output)] = names[module]
        kept.append(output)

    def normalised(module: Any, inputs: Any) -> None:
        if id(inputs[0]) in written:
            pairs[written[id(inputs[0])]] = names[module]

    hooks = []
    for module in names:
        if isinstance(module, nn.modules.conv._ConvNd):
            hooks.append(module.register_forward_hook(convolved))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            hooks.append(module.register_forward_pre_hook(normalised))
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    return pairs


@pytest.mark.parametrize("by_alphabet", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_state_dicts_give_the_convolutions_of_the_network(networks, name, by_alphabet) -> None:
    network = _network(networks, name)
    raw = RawModel("torch", _tensors(network, by_alphabet=by_alphabet), default_layout="OIHW")
    found = find_layers(raw)
    assert _found(found.layers) == _truth(network)
    assert found.n_parameters == sum(p.numel() for p in network.parameters())
    assert len(found.layers) + len(found.skipped) == len(raw.tensors)


@pytest.mark.parametrize("name", NETWORKS)
def test_registered_modules_give_the_same_with_strides(networks, name) -> None:
    network = _network(networks, name)
    raw = RawModel("torch", _tensors(network), tuple(_modules(network)))
    found = find_layers(raw)
    assert _found(found.layers) == _truth(network)
    assert found.n_parameters == sum(p.numel() for p in network.parameters())
    strides = {n: m.stride for n, m in network.named_modules() if n in _truth(network)}
    assert {r.name: r.stride for r in found.layers} == strides


@pytest.mark.parametrize("by_alphabet", [False, True])
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"ranks"}))
def test_only_batch_norms_that_are_applied_are_paired(networks, name, by_alphabet) -> None:
    network = _network(networks, name)
    applied = _applied_norms(network)
    modules = dict(network.named_modules())
    found = find_layers(
        RawModel("torch", _tensors(network, by_alphabet=by_alphabet), default_layout="OIHW")
    )
    for layer in found.layers:
        norm = modules[applied[layer.name]] if layer.name in applied else None
        if layer.batch_norm_status == "separate":
            assert norm is not None, f"{layer.name} has none"
            read = layer.read_batch_norm()
            np.testing.assert_allclose(read.var, norm.running_var.numpy())
            assert read.epsilon == norm.eps
        elif norm is not None:
            assert layer.batch_norm_status == "unknown", layer.name
    paired = {r.name for r in found.layers if r.batch_norm_status == "separate"}
    # What order shows is lost in a file sorted by the alphabet where norms come first.
    if not by_alphabet or name not in ("densenet121", "preactivation"):
        assert paired == applied.keys()


def test_folded_weights_compute_what_convolution_and_norm_compute() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    norm = network[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    (layer,) = find_layers(RawModel("torch", _tensors(network.eval()))).layers
    read = layer.read_batch_norm()
    folded = torch.tensor(layer.weights() * read.scale.reshape(-1, 1, 1, 1), dtype=torch.float32)
    bias = (network[0].bias.detach().numpy() - read.mean) * read.scale + read.beta
    image = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        expected = network(image)
        got = nn.functional.conv2d(image, folded, torch.tensor(bias, dtype=torch.float32))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {"stem": 1, "spatial": 16, "downsample": 3}),
        ("mobilenet_v2", {"stem": 1, "depthwise": 17, "pointwise": 34}),
        ("vgg11_bn", {"stem": 1, "spatial": 6, "head": 1}),
        ("convnext_tiny", {"patch_embed": 1, "depthwise": 18, "downsample": 3}),
        ("unet", {"stem": 1, "spatial": 6, "head": 1}),
    ],
)
def test_roles_of_registered_modules(networks, name: str, expected: dict[str, int]) -> None:
    network = _network(networks, name)
    found = find_layers(RawModel("torch", _tensors(network), tuple(_modules(network))))
    counts: dict[str, int] = {}
    for layer in found.layers:
        counts[layer.role] = counts.get(layer.role, 0) + 1
    assert counts == expected


def test_vggs_first_fully_connected_layer_as_a_convolution() -> None:
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    network = nn.ModuleDict(
        {"features": features, "fc1": nn.Conv2d(8, 64, 7), "fc2": nn.Conv2d(64, 64, 1)}
    )
    network["classifier"] = nn.Linear(64, 10)
    found = find_layers(RawModel("torch", _tensors(network)))
    assert [r.role for r in found.layers] == ["stem", "spatial", "fc_as_conv", "pointwise"]


def test_reparametrised_weights_are_what_torch_applies() -> None:
    parametrizations = torch.nn.utils.parametrizations
    network = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
        parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)),
        parametrizations.spectral_norm(nn.ConvTranspose2d(8, 4, 3)),
    ).eval()
    found = find_layers(RawModel("torch", _tensors(network), default_layout="OIHW"))
    for layer, module in zip(found.layers, network, strict=True):
        expected = module.weight.detach().numpy()
        if layer.op == "conv_transpose":
            expected = expected.swapaxes(0, 1)
        np.testing.assert_allclose(layer.weights(), expected, rtol=1e-4, atol=1e-6)
