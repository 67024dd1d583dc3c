"""TorchScript archives: layers and graph from the code's text, weights by the file's own scales."""

from __future__ import annotations

import ast
import tracemalloc
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from filterdb.errors import SourceError
from filterdb.layers.detect import find_layers
from filterdb.sources.formats import ModelFile, read_model
from filterdb.sources.formats.torchscript_code import MAX_CODE_MEMORY, CodeError, scan

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.layers.model import ConvLayer

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def save(module: Any, path: Path, how: str = "script", example: Any = None) -> Path:
    """Script, trace or freeze a module; torch.jit says that it is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = module.eval()
        made = torch.jit.trace(module, example) if how == "trace" else torch.jit.script(module)
        torch.jit.save(torch.jit.freeze(made) if how == "freeze" else made, path)
    return path


def layers_of(path: Path) -> dict[str, ConvLayer]:
    return {layer.name: layer for layer in find_layers(read_model(ModelFile(path))).layers}


def numbered(*shape: int) -> Any:
    return torch.arange(1.0, 1.0 + int(np.prod(shape))).reshape(shape)


class Every(torch.nn.Module):
    """Each kind of convolution, with a shortcut and a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2), bias=False)
        self.norm = torch.nn.BatchNorm2d(8, eps=1e-3)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.shortcut = torch.nn.Conv2d(8, 8, 1)
        self.up = torch.nn.ConvTranspose2d(8, 4, (2, 4), stride=(2, 4), groups=2)
        self.line = torch.nn.Conv1d(4, 2, 5, padding="same")
        self.volume = torch.nn.Conv3d(1, 2, (1, 2, 3))
        for parameter in self.parameters():
            parameter.data = numbered(*parameter.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.grouped(torch.relu(self.depthwise(x))) + self.shortcut(x)
        x = self.up(x)
        y = self.line(x.mean(3))
        return self.volume(x.mean(1, keepdim=True).unsqueeze(1)).sum() + y.sum()


@pytest.mark.parametrize("how", ["script", "trace"])
def test_layers_and_orientation_are_those_of_the_modules(tmp_path: Path, how: str) -> None:
    model = Every()
    layers = layers_of(save(model, tmp_path / "every.pt", how, torch.zeros(1, 3, 16, 16)))
    modules = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.modules.conv._ConvNd)
    }
    assert set(layers) == set(modules)
    for name, module in modules.items():
        layer = layers[name]
        assert layer.stride == module.stride
        assert layer.dilation == module.dilation
        assert layer.groups == module.groups
        assert layer.in_channels == module.in_channels
        assert layer.out_channels == module.out_channels
        assert layer.kernel == module.kernel_size
        assert layer.op == ("conv_transpose" if module.transposed else "conv")
        weight = module.weight.detach().numpy()
        if not module.transposed:
            np.testing.assert_array_equal(layer.weights(), weight)
    assert layers["stem"].padding == (1, 2)
    # Transposed weights are (in, out per group, …): the filters of a group come out (out, in, …).
    up = model.up.weight.detach().numpy().reshape(2, 4, 2, 2, 4).swapaxes(1, 2)
    np.testing.assert_array_equal(layers["up"].weights(), up.reshape(4, 4, 2, 4))


@pytest.mark.parametrize("how", ["script", "trace"])
def test_depth_role_and_batch_norm_follow_the_graph(tmp_path: Path, how: str) -> None:
    layers = layers_of(save(Every(), tmp_path / "every.pt", how, torch.zeros(1, 3, 16, 16)))
    assert {layer.depth_source for layer in layers.values()} == {"graph"}
    depth = {name: layer.conv_depth for name, layer in layers.items()}
    # The shortcut reads what the depthwise convolution reads, the two last read one tensor.
    assert depth["stem"] == 0
    assert depth["depthwise"] == depth["shortcut"] == 1
    assert depth["stem"] < depth["depthwise"] < depth["grouped"] < depth["up"]
    assert depth["up"] < min(depth["line"], depth["volume"])
    assert layers["stem"].role == "stem"
    assert layers["depthwise"].role == "depthwise"
    assert layers["stem"].batch_norm_status == "separate"
    norm = layers["stem"].read_batch_norm
    assert norm is not None
    assert norm().epsilon == pytest.approx(1e-3)


def test_frozen_weights_lie_among_the_constants(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 1))
    path = save(model, tmp_path / "frozen.pt", "freeze")
    raw = read_model(ModelFile(path))
    layers = find_layers(raw).layers
    assert raw.has_edges
    assert [layer.conv_depth for layer in layers] == [0, 1]
    for layer, module in zip(layers, (model[0], model[2]), strict=True):
        assert layer.tensor.startswith("constants.")
        np.testing.assert_array_equal(layer.weights(), module.weight.detach().numpy())


class Choosing(torch.nn.Module):
    """Branches known and unknown, loops, a list of results, a shared and an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)])
        self.left = torch.nn.Conv2d(4, 4, 1)
        self.right = torch.nn.Conv2d(4, 4, (1, 3))
        self.shared = torch.nn.Conv2d(4, 4, (3, 1))
        self.unused = torch.nn.Conv2d(4, 4, 5)
        self.flag = True

    def forward(self, x: torch.Tensor, n: int = 3) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        if x.dim() != 4:
            raise ValueError("four axes")
        y = self.left(x) if x.sum() > 0 else self.right(x)
        parts = [y]
        for _ in range(n):
            y = self.shared(y)
            parts.append(y)
        if self.flag:
            y = torch.cat(parts, 1)
        return self.shared(y)


def test_branches_loops_and_shared_weights(tmp_path: Path) -> None:
    raw = read_model(ModelFile(save(Choosing(), tmp_path / "choosing.pt")))
    layers = find_layers(raw).layers
    depth = {(layer.name, layer.use): layer.conv_depth for layer in layers}
    assert depth[("left", 0)] == depth[("right", 0)] == 2
    assert depth[("shared", 0)] == 3
    assert depth[("shared", 1)] == 4
    assert [layer.shared_with for layer in layers if layer.use] == ["shared.weight"]
    # What forward never calls stands behind, with what its attributes say.
    assert layers[-1].name == "unused"
    assert "never calls" in raw.notes[0]


class Reparametrised(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.conv = torch.nn.utils.weight_norm(torch.nn.Conv1d(3, 4, 5))
        self.scale = torch.nn.Parameter(torch.full((4, 1, 1), 2.0))
        self.last = torch.nn.Conv1d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return torch.conv1d(x, self.last.weight * self.scale, self.last.bias)


def test_weights_that_the_code_computes(tmp_path: Path) -> None:
    model = Reparametrised()
    layers = layers_of(save(model, tmp_path / "norm.pt", "trace", torch.zeros(1, 3, 16)))
    assert set(layers) == {"conv", "last"}
    with torch.no_grad():
        v, g = model.conv.weight_v, model.conv.weight_g
        applied = g * v / v.norm(dim=(1, 2), keepdim=True)
    np.testing.assert_allclose(layers["conv"].weights(), applied.numpy(), rtol=1e-6)


# -- quantised -------------------------------------------------------------------------------------


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quantise = torch.ao.quantization.QuantStub()
        self.conv = torch.nn.Conv2d(4, 8, (3, 5), groups=2, stride=2, padding=1)
        self.relu = torch.nn.ReLU()
        self.head = torch.nn.Conv2d(8, 2, 1)
        self.dequantise = torch.ao.quantization.DeQuantStub()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequantise(self.head(self.relu(self.conv(self.quantise(x)))))


def quantised(engine: str) -> Any:
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch is built without {engine}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = Small().eval()
        # fbgemm scales weights per channel, qnnpack per tensor.
        model.qconfig = torch.ao.quantization.get_default_qconfig(engine)
        torch.ao.quantization.fuse_modules(model, [["conv", "relu"]], inplace=True)
        torch.ao.quantization.prepare(model, inplace=True)
        model(torch.randn(2, 4, 8, 8))
        return torch.ao.quantization.convert(model)


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("how", ["script", "trace", "freeze"])
def test_packed_weights_by_their_own_scales(tmp_path: Path, engine: str, how: str) -> None:
    model = quantised(engine)
    path = save(model, tmp_path / "packed.pt", how, torch.zeros(1, 4, 8, 8))
    raw = read_model(ModelFile(path))
    conv, head = find_layers(raw).layers
    assert raw.has_edges
    assert (conv.groups, conv.stride, conv.padding) == (2, (2, 2), (1, 1))
    assert (conv.role, head.conv_depth) == ("stem", 1)
    if how != "freeze":
        assert (conv.tensor, head.tensor) == ("conv.weight", "head.weight")
    for layer, module in ((conv, model.conv), (head, model.head)):
        assert layer.quantised
        assert layer.source_dtype == "int8"
        np.testing.assert_array_equal(layer.weights(), module.weight().dequantize().numpy())


# -- code that is not what TorchScript writes ------------------------------------------------------


def rewritten(path: Path, change: dict[str, bytes]) -> Path:
    """Copy an archive with other code in it."""
    made = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, change.get(name.partition("/")[2], old.read(name)))
    return made


def plain(tmp_path: Path) -> tuple[Path, str]:
    path = save(torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3)), tmp_path / "plain.pt")
    with zipfile.ZipFile(path) as archive:
        codes = [name for name in archive.namelist() if name.endswith(".py")]
        (name,) = (n for n in codes if b"class Sequential" in archive.read(n))
    return path, name.partition("/")[2]


_HEAD = b"class Sequential(Module):\n  def forward(self: X,\n    x: Tensor) -> Tensor:\n"
_CALLS = b"".join(
    b"  def f%d(self: X, x: Tensor) -> Tensor:\n" % i
    + b"    return torch.add((self).f%d(x), (self).f%d(x))\n" % (i + 1, i + 1)
    for i in range(40)
)
ODD = {
    "nothing": b"",
    "no forward": b"class Sequential(Module):\n  pass\n",
    "not Python": b"class Sequential(Module:\n",
    "deep brackets": _HEAD + b"    return " + b"(" * 150 + b"x" + b")" * 150 + b"\n",
    "absurdly deep brackets": _HEAD + b"    return " + b"(" * 90_000 + b"\n",
    "deep operators": _HEAD + b"    return " + b"-" * 90_000 + b"x\n",
    "deep dots": _HEAD + b"    return x" + b".x" * 90_000 + b"\n",
    "deep calls": _HEAD + b"    return x" + b"(x)" * 90_000 + b"\n",
    "deep choices": _HEAD + b"    return " + b"x if x else " * 90_000 + b"x\n",
    "calls itself": _HEAD + b"    return (self).forward(x)\n",
    "calls that double": _HEAD + b"    return (self).f0(x)\n" + _CALLS,
    "always fails": _HEAD + b'    ops.prim.RaiseException("")\n',
    "a comment": _HEAD + b"    # x\n    return x\n",
    "a long string": _HEAD + b'    return """x"""\n',
    "a lambda": _HEAD + b"    return lambda: x\n",
    "an import": b"import os\n" + _HEAD + b"    return x\n",
    "numbers without end": _HEAD + b"    return torch.mul(9" + b"9" * 5000 + b", x)\n",
    "lists that grow": _HEAD
    + b"    y = [x]\n"
    + b"    y = torch.add(y, y)\n" * 60
    + b"    return torch.cat(y)\n",
    "not text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("code", ODD.values(), ids=ODD.keys())
def test_odd_code_leaves_the_modules(tmp_path: Path, code: bytes) -> None:
    path, name = plain(tmp_path)
    raw = read_model(ModelFile(rewritten(path, {name: code})))
    layers = find_layers(raw).layers
    assert not raw.has_edges
    assert [(layer.name, layer.kernel) for layer in layers] == [("0", (3, 3))]
    assert "TorchScript" in raw.notes[0]


def test_damaged_code_is_left_aside_and_damaged_weights_are_an_error(tmp_path: Path) -> None:
    path, _ = plain(tmp_path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :])
        try:
            raw = read_model(ModelFile(path))
            for tensor in raw.tensors:
                tensor.load()
        except SourceError:
            continue
        assert [t.shape for t in raw.tensors if len(t.shape) > 1] in ([], [(2, 2, 3, 3)])


@pytest.mark.parametrize(
    "line", ["    x\n", "    x.y\n", "    x = y\n", "    x = [" + "x, " * 50 + "]\n"]
)
def test_parsed_code_takes_no_more_memory_than_the_scanner_says(line: str) -> None:
    text = _HEAD.decode() + line * (6000 // len(line.split()))
    tracemalloc.start()
    try:
        ast.parse(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < scan(text)
    with pytest.raises(CodeError, match="more code"):
        scan(text * (MAX_CODE_MEMORY // scan(text) + 2))


def test_the_scanner_takes_what_the_printer_writes() -> None:
    text = (
        'class X(Module):\n  __annotations__["0"] = __torch__.Y\n  eps : Final[float] = 1.0e-05\n'
        '  def forward(self: X, x: Tensor) -> Tensor:\n    _0 = "a \\" b {}"\n'
        "    a, b, = torch.split(x, [1, -2], 1.5000000000000001e-08)\n    return a\n"
    )
    assert scan(text) > 50
    for wrong in ("'x'", 'f"x"', "x \\\n", "`x`", ")"):
        with pytest.raises(CodeError):
            scan(wrong)
