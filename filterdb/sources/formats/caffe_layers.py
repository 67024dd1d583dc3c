"""What Caffe's layer types keep in their blobs, and which layers belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from filterdb.layers.raw import ConvAttributes, Node

if TYPE_CHECKING:
    from filterdb.sources.formats.caffe_proto import LayerRecord

#: A DenseBlock's blobs: as many of each as it has transitions, with a bottleneck five more.
_DENSE = (
    "weight", "gamma", "beta", "mean", "var",
    "bottleneck_weight", "bottleneck_gamma", "bottleneck_beta", "bottleneck_mean", "bottleneck_var",
)  # fmt: skip


def is_convolution(layer: LayerRecord) -> bool:
    """Tell whether a layer's first blob is a kernel.

    Parameters
    ----------
    layer
        Any layer.

    Returns
    -------
    bool
        True for Caffe's own convolutions, and those of forks that carry their parameters.
    """
    kind = layer.kind.lower()
    if "convolution" not in kind and not (layer.has_parameters and layer.blobs):
        return False
    return not layer.blobs or len(layer.blobs[0].shape) > 2


def roles_of(layer: LayerRecord) -> list[str]:
    """Name a layer's blobs in order.

    Parameters
    ----------
    layer
        Any layer.

    Returns
    -------
    list of str
        One role per blob; "blob2" where nobody knows.
    """
    named: dict[str, tuple[str, ...]] = {
        "InnerProduct": ("weight", "bias"),
        "Embed": ("weight", "bias"),
        "PReLU": ("gamma",),
        "Normalize": ("gamma",),
        "LayerNorm": ("gamma", "bias"),
        "Bias": ("bias",),
        "Scale": ("scale", "bias"),
        "LSTM": ("weight", "bias", "recurrent"),
        "RNN": ("weight", "bias", "recurrent", "output_weight", "output_bias"),
        "Lstm": ("weight", "recurrent", "bias"),
        # The two last are NVCaffe's and cuDNN's, which scale in the same layer.
        "BatchNorm": ("mean", "var", "scale_factor", "gamma", "beta"),
        "CuDNNBatchNorm": ("gamma", "beta", "mean", "var"),
        "SyncBN": ("gamma", "beta", "mean", "var"),
        "BN": ("gamma", "beta", "mean", "var"),
    }
    roles: tuple[str, ...] = named.get(layer.kind, ())
    if layer.kind == "Scale" and len(layer.bottoms) > 1:
        # The factor comes from another layer; the only blob is the bias.
        roles = ("bias",)
    elif is_convolution(layer):
        roles = ("weight", "bias")
    elif transitions := n_transitions(layer):
        kinds = _DENSE[: (len(layer.blobs) - 1) // transitions]
        roles = tuple(f"{i}/{role}" for role in kinds for i in range(transitions))
    extra = [f"blob{i}" for i in range(len(roles), len(layer.blobs))]
    return [*roles[: len(layer.blobs)], *extra]


def scaled_norms(layers: list[LayerRecord]) -> dict[int, int]:
    """Find the Scale that is the only reader of a BatchNorm.

    Parameters
    ----------
    layers
        In file order.

    Returns
    -------
    dict
        Place of the norm → place of its scale.
    """
    writer: dict[str, int] = {}
    readers: dict[int, list[int]] = {}
    for i, layer in enumerate(layers):
        for blob in dict.fromkeys(layer.bottoms):
            if blob in writer:
                readers.setdefault(writer[blob], []).append(i)
        writer.update(dict.fromkeys(layer.tops, i))
    found: dict[int, int] = {}
    for norm, after in readers.items():
        scale = layers[after[0]]
        if (
            len(after) == 1
            and layers[norm].kind == "BatchNorm"
            and len(layers[norm].blobs) == 3
            and scale.kind == "Scale"
            and len(scale.bottoms) == 1
            and scale.axis == 1
            and 1 <= len(scale.blobs) <= 2
        ):
            found[norm] = after[0]
    return found


def n_transitions(layer: LayerRecord) -> int:
    """Count the convolutions in a DenseBlock, the layer that holds a whole block of a DenseNet.

    Parameters
    ----------
    layer
        Any layer.

    Returns
    -------
    int
        0 where the blobs are not those of such a layer.
    """
    count, rest = divmod(len(layer.blobs) - 1, 5)
    if layer.kind != "DenseBlock" or rest or count < 1:
        return 0

    def is_kernel(i: int) -> bool:
        return len(layer.blobs[i].shape) == 4 and max(layer.blobs[i].shape[2:]) > 1

    for transitions in (count, count // 2):
        kernels = range(transitions)
        if transitions and all(is_kernel(i) for i in kernels) and not is_kernel(transitions):
            return transitions
    return 0


def dense_block_nodes(layer: LayerRecord, weights: dict[str, str]) -> list[Node]:
    """Take a DenseBlock apart: norm, convolution and concatenation per transition.

    Parameters
    ----------
    layer
        A layer with :func:`n_transitions`.
    weights
        Its tensors by role.

    Returns
    -------
    list of Node
        In order of execution.
    """
    transitions = n_transitions(layer)
    nodes: list[Node] = []
    joined = tuple(layer.bottoms)
    # What is joined has one height and width, so nothing strides.
    attributes = ConvAttributes(layout="OIHW", groups=1, stride=(1, 1))

    def add(i: int, prefix: str, source: tuple[str, ...]) -> tuple[str, ...]:
        label = f"{layer.name}/{prefix}{i}"
        affine = {role: weights[f"{i}/{prefix}{role}"] for role in ("gamma", "beta")}
        normed, found = (f"{label}/norm",), (f"{label}/conv",)
        kernel = {"weight": weights[f"{i}/{prefix}weight"]}
        nodes.append(Node(normed[0], "norm", source, normed, affine, source_op=layer.kind))
        nodes.append(
            Node(label, "conv", normed, found, kernel, conv=attributes, source_op=layer.kind)
        )
        return found

    for i in range(transitions):
        found = joined
        if f"{i}/bottleneck_weight" in weights:
            found = add(i, "bottleneck_", found)
        found = add(i, "", found)
        after = tuple(layer.tops) if i == transitions - 1 else (f"{layer.name}/{i}/joined",)
        nodes.append(
            Node(f"{layer.name}/{i}/join", "other", (*joined, *found), after, source_op=layer.kind)
        )
        joined = after
    return nodes
