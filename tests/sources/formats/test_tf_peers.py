"""TensorFlow itself: models it writes are read as it computes them, public checkpoints as it does.

What a convolution is, is what it does: each one TensorFlow runs is run again by torch with the
weights, groups, stride and dilation that were read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from filterdb.layers.detect import find_layers
from filterdb.sources import Cache, fetch
from filterdb.sources.formats import read_model
from tests.peers import peer_arrays

if TYPE_CHECKING:
    from pathlib import Path

    from filterdb.layers.model import ConvLayer
    from filterdb.types import AnyArray

pytestmark = pytest.mark.peers

_WRITE = """
import sys
import numpy as np, tensorflow as tf
folder, out = sys.argv[1:]
def numbers(*shape):
    return (np.arange(np.prod(shape)) % 19 + 1).reshape(shape).astype("float32")
KERNELS = {
    "plain": (3, 2, 4, 6), "dilated": (3, 3, 4, 5), "depthwise": (3, 2, 4, 2),
    "grouped": (3, 3, 2, 6), "transposed": (3, 2, 5, 4), "line": (5, 4, 7),
    "volume": (2, 3, 1, 4, 3), "transposed_volume": (2, 3, 2, 5, 4), "batched": (3, 3, 4, 3),
}
found = {}
class Net(tf.Module):
    def __init__(self):
        for name, shape in KERNELS.items():
            setattr(self, name, tf.Variable(numbers(*shape), name=name + "/kernel"))
    @tf.function(input_signature=[tf.TensorSpec((1, 9, 10, 4)), tf.TensorSpec((1, 20, 4)),
                                  tf.TensorSpec((1, 5, 6, 4, 4))])
    def run(self, image, line, volume):
        nn = tf.nn
        return {
            "plain": nn.conv2d(image, self.plain, (2, 1), "VALID"),
            "dilated": nn.conv2d(image, self.dilated, 1, "VALID", dilations=(2, 1)),
            "depthwise": nn.depthwise_conv2d(image, self.depthwise, (1, 2, 2, 1), "VALID"),
            "grouped": nn.conv2d(image, self.grouped, 1, "VALID"),
            "transposed": nn.conv2d_transpose(image, self.transposed, (1, 19, 20, 5), 2, "VALID"),
            "line": nn.conv1d(line, self.line, 2, "VALID"),
            "volume": nn.conv3d(volume, self.volume, (1, 1, 2, 1, 1), "VALID"),
            "transposed_volume": nn.conv3d_transpose(
                volume, self.transposed_volume, (1, 6, 8, 5, 5), 1, "VALID"),
            "batched": tf.batch_to_space(
                nn.conv2d(tf.space_to_batch(image, (2, 2), [[0, 1], [0, 0]]), self.batched, 1,
                          "VALID"), (2, 2), [[0, 0]] * 2),
        }
net = Net()
inputs = {"image": numbers(1, 9, 10, 4), "line": numbers(1, 20, 4),
          "volume": numbers(1, 5, 6, 4, 4)}
for name, value in net.run(**inputs).items():
    found["out_" + name] = value.numpy()
found |= {"in_" + k: v for k, v in inputs.items()}
tf.saved_model.save(net, folder + "/signed", signatures=net.run)
tf.saved_model.save(net, folder + "/unsigned")
tf.train.Checkpoint(net=net).write(folder + "/objects")
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
frozen = convert_variables_to_constants_v2(net.run.get_concrete_function())
open(folder + "/frozen.pb", "wb").write(frozen.graph.as_graph_def().SerializeToString())
with tf.Graph().as_default():
    v1 = tf.compat.v1
    kernel = v1.get_variable("part/kernel", (3, 2, 70, 6), tf.float32,
                             v1.random_uniform_initializer(seed=1),
                             partitioner=v1.fixed_size_partitioner(3, axis=2))
    half = v1.get_variable("half/kernel", initializer=numbers(3, 2, 4, 5).astype("float16"))
    brain = v1.get_variable("brain/kernel", initializer=tf.cast(numbers(3, 2, 4, 5), tf.bfloat16))
    image = v1.placeholder("float32", (1, 8, 8, 70), "image")
    loss = tf.reduce_sum(v1.nn.conv2d(image, tf.convert_to_tensor(kernel), 1, "SAME") ** 2)
    average = tf.train.ExponentialMovingAverage(0.5)
    step = v1.train.AdamOptimizer().minimize(loss)
    with tf.control_dependencies([step]):
        step = average.apply(list(kernel))
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run(step, {image: np.ones((1, 8, 8, 70), "float32")})
        v1.train.Saver().save(session, folder + "/graph")
        older = [v for v in v1.global_variables() if v is not brain]
        v1.train.Saver(older, write_version=1).save(session, folder + "/old")
for path in ("graph", "old", "objects"):
    reader = tf.train.load_checkpoint(folder + "/" + path)
    for name, dtype in reader.get_variable_to_dtype_map().items():
        if dtype != tf.string and path == "old":
            value = tf.raw_ops.Restore(file_pattern=folder + "/old", tensor_name=name, dt=dtype)
        elif dtype != tf.string:
            (value,) = tf.raw_ops.RestoreV2(prefix=folder + "/" + path, tensor_names=[name],
                                            shape_and_slices=[""], dtypes=[dtype])
        else:
            continue
        found[path + "|" + name] = value.numpy().astype("float64")
np.savez(out, **found)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, AnyArray]]:
    folder = tmp_path_factory.mktemp("tensorflow")
    return folder, peer_arrays("tensorflow", _WRITE, folder, out=folder)


def layers_of(path: Path, tmp_path: Path) -> tuple[ConvLayer, ...]:
    return find_layers(read_model(fetch(path, cache=Cache(tmp_path)).file)).layers


def run_again(layer: ConvLayer, image: AnyArray) -> AnyArray:
    """Apply a layer by torch to an input with its channels last; return the same way."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rank = len(layer.kernel)
    apply = getattr(functional, f"{layer.op}{rank}d")
    weights = torch.from_numpy(np.array(layer.weights()))
    if layer.op == "conv_transpose":  # torch keeps the inputs first
        weights = weights.swapaxes(0, 1)
    stride, dilation = layer.stride or 1, layer.dilation or 1
    result = apply(
        torch.from_numpy(np.moveaxis(image, -1, 1).copy()), weights,
        stride=stride, dilation=dilation, groups=layer.groups,
    )  # fmt: skip
    return np.moveaxis(result.numpy(), 1, -1)


@pytest.mark.parametrize("path", ["signed/saved_model.pb", "unsigned/saved_model.pb", "frozen.pb"])
def test_orientation_is_what_tensorflow_computes(
    path: str, written: tuple[Path, dict[str, AnyArray]], tmp_path: Path
) -> None:
    folder, arrays = written
    layers = layers_of(folder / path, tmp_path)
    assert len(layers) == 9
    shapes = {a.shape: name for name, a in arrays.items() if name.startswith("out_")}
    seen = set()
    for layer in layers:
        image = arrays[{1: "in_line", 2: "in_image", 3: "in_volume"}[len(layer.kernel)]]
        again = run_again(layer, image)
        name = "out_batched" if layer.out_channels == 3 and again.ndim == 4 else shapes[again.shape]
        assert layer.depth_source == "graph"
        wanted = arrays[name]
        # The batched one spreads its input; what lies at the border it pads.
        again = again[tuple(slice(0, n) for n in wanted.shape)]
        wanted = wanted[tuple(slice(0, n) for n in again.shape)]
        assert np.abs(again - wanted).max() == 0
        seen.add(name)
    assert seen == set(shapes.values())


@pytest.mark.parametrize("name", ["graph.index", "old", "objects.index"])
def test_checkpoints_tensor_by_tensor(
    name: str, written: tuple[Path, dict[str, AnyArray]], tmp_path: Path
) -> None:
    folder, arrays = written
    raw = read_model(fetch(folder / name, cache=Cache(tmp_path)).file)
    stem = name.removesuffix(".index")
    known = {k.split("|")[1]: a for k, a in arrays.items() if k.startswith(f"{stem}|")}
    tensors = {t.name: t for t in raw.tensors}
    assert len(tensors) == len(known)
    for key, wanted in known.items():
        plain = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
        tensor = tensors.get(plain) or tensors[plain.removeprefix("net/") + "/kernel"]
        assert np.array_equal(np.asarray(tensor.load(), np.float64), wanted)
    if stem != "objects":
        reasons = {t.name: t.skip[0] for t in raw.tensors if t.skip}
        assert reasons["part/kernel"] == "ema_copy"
        assert {r for n, r in reasons.items() if "Adam" in n or "power" in n} == {"optimizer_state"}


def test_graph_of_a_checkpoint(written: tuple[Path, dict[str, AnyArray]], tmp_path: Path) -> None:
    folder, arrays = written
    (layer,) = layers_of(folder / "graph.meta", tmp_path)
    assert layer.name == "Conv2D"
    assert layer.stride == (1, 1)
    wanted = arrays["graph|part/kernel/ExponentialMovingAverage"].transpose(3, 2, 0, 1)
    assert np.array_equal(layer.weights(), wanted)
