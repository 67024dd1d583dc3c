"""Run by Keras itself: builds a network of every kind of layer and saves it in every way.

Arguments: a folder to save into, and the ``.npz`` to write: ``W|layer|attribute`` holds kernels
as the framework has them, ``X|layer`` and ``Y|layer`` what a layer (without bias) reads and gives.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers

FOLDER = Path(sys.argv[1])
rng = np.random.default_rng(0)


@keras.saving.register_keras_serializable(package="zoo")
class Block(layers.Layer):
    """A layer of somebody's own, with layers as attributes."""

    def __init__(self, **options):
        super().__init__(**options)
        self.second = layers.Conv2D(5, (2, 3), use_bias=False, name="block_second")
        self.first = layers.Conv2D(6, 3, use_bias=False, name="block_first")
        self.bn = layers.BatchNormalization(name="block_bn")

    def build(self, shape):
        """Build in the order of calling, which the attributes' names do not follow."""
        self.first.build(shape)
        shape = self.first.compute_output_shape(shape)
        self.bn.build(shape)
        self.second.build(shape)

    def call(self, x):
        """Apply the three."""
        return self.second(self.bn(self.first(x)))


def network():
    """Every kind of convolution, each on an input of its own or in a chain."""
    one, two = keras.Input((20, 4), name="one"), keras.Input((13, 11, 4), name="two")
    three, clip = keras.Input((7, 8, 9, 2), name="three"), keras.Input((3, 9, 8, 4), name="clip")
    bare = {"use_bias": False}
    outputs = [
        layers.Conv1D(6, 5, dilation_rate=2, name="c1", **bare)(one),
        layers.Conv1DTranspose(3, 4, strides=2, name="t1", **bare)(one),
        layers.DepthwiseConv1D(5, depth_multiplier=3, name="d1", **bare)(one),
        layers.SeparableConv1D(7, 3, name="s1", **bare)(one),
        layers.Conv2D(6, (3, 2), strides=(2, 1), name="c2", **bare)(two),
        layers.Conv2D(6, (3, 2), groups=2, name="g2", **bare)(two),
        layers.Conv2DTranspose(3, (3, 2), strides=2, name="t2", **bare)(two),
        layers.DepthwiseConv2D((3, 2), depth_multiplier=2, name="d2", **bare)(two),
        layers.SeparableConv2D(5, (3, 2), depth_multiplier=2, name="s2", **bare)(two),
        layers.Conv3D(4, (2, 3, 4), name="c3", **bare)(three),
        layers.Conv3DTranspose(3, (2, 3, 4), name="t3", **bare)(three),
        layers.TimeDistributed(layers.Conv2D(5, (2, 3), **bare), name="td")(clip),
        layers.ConvLSTM2D(3, (3, 2), name="lstm")(clip),
        layers.Bidirectional(layers.ConvLSTM2D(2, (3, 2)), name="both")(clip),
        layers.SpectralNormalization(layers.Conv2D(4, (3, 2), **bare), name="sn")(two),
        layers.Conv2D(4, (3, 2), dtype="bfloat16", name="brain", **bare)(two),
        layers.Conv2D(4, (3, 2), dtype="float16", name="half", **bare)(two),
        Block(name="block")(two),
    ]
    return keras.Model([one, two, three, clip], [*outputs, *branches(two)], name="zoo")


def branches(two):
    """A layer called twice, models in models, operations and norms in between."""
    shared = layers.Conv2D(4, (3, 2), padding="same", name="shared")
    twice = shared(layers.ReLU()(shared(two)))
    stem = keras.Input((13, 11, 4))
    inner = keras.Model(stem, shared(layers.Conv2D(4, 3, padding="same", name="in2")(stem)))
    tail = keras.Sequential([layers.Conv2D(3, (1, 4), name="q1"), layers.Conv2D(2, 2, name="q2")])
    x = layers.BatchNormalization(scale=False, name="n1")(inner(two)) * 2.0
    x = layers.Conv2D(5, (2, 3), name="after")(keras.ops.relu(x))
    x = layers.BatchNormalization(center=False, name="n2")(x)
    x = layers.MultiHeadAttention(2, 3, name="mha")(x, x)
    return [tail(twice), layers.PReLU()(layers.LayerNormalization()(x))]


def kernels(model):
    """Name → kernel of every layer that convolves."""
    found = {}
    for layer in model.layers:
        if hasattr(layer, "layers"):
            found.update(kernels(layer))
            continue
        target = layer
        while hasattr(target, "layer") and not hasattr(target, "forward_layer"):
            target = target.layer
        parts = {layer.name: target}
        if layer.name == "block":
            parts = {f"block_{n}": getattr(layer, n) for n in ("first", "second")}
        if layer.name == "both":
            parts = {"forward": layer.forward_layer, "backward": layer.backward_layer}
        for name, part in parts.items():
            owner = getattr(part, "cell", part)
            if "Conv" in type(part).__name__:
                for key in ("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel"):
                    if getattr(owner, key, None) is not None:
                        array = keras.ops.convert_to_numpy(getattr(owner, key))
                        found[f"W|{name}|{key}"] = array.astype("float32")
    return found


def main():
    """Build, train one step, save, write."""
    model = network()
    for variable in model.weights:
        if "moving_variance" not in variable.path and "seed" not in variable.path:
            variable.assign(rng.normal(size=variable.shape).astype("float32"))
    model.compile("adam", ["mse"] * len(model.outputs))
    model.save(FOLDER / "zoo.keras")
    model.save_weights(FOLDER / "zoo.weights.h5")
    model.save_weights(FOLDER / "parts.weights.json", max_shard_size=1e-5)
    model.save(FOLDER / "zoo.h5")
    found = kernels(model)
    for name in ("c1", "t1", "d1", "s1", "c2", "g2", "t2", "d2", "s2", "c3", "t3"):
        layer = model.get_layer(name)
        x = rng.normal(size=(1, *layer.input.shape[1:])).astype("float32")
        found[f"X|{name}"], found[f"Y|{name}"] = x, keras.ops.convert_to_numpy(layer(x))
    np.savez(sys.argv[2], **found)


main()
