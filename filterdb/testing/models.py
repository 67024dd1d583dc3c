"""Models that exist nowhere: catalogue entries, layers, stages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from filterdb.catalog.model import Entry
from filterdb.layers.model import BatchNorm, ConvLayer
from filterdb.store.rows import entry_columns, staged_layers
from filterdb.store.staging import StagedLayer, StagedModel

if TYPE_CHECKING:
    from filterdb.types import AnyArray, FloatArray, ModelId, Op, Role, Shape

TASKS = ("classification", "segmentation", "ocr", "super_resolution")
VISUAL_CATEGORIES = ("natural", "documents", "medical")
#: Small enough that a handful of models fill several shards.
TEST_SHARD_BYTES = 2_000_000
TEST_MODEL_BYTES = 900_000


@dataclass(frozen=True)
class LayerSpec:
    """Shape of a random layer.

    Parameters
    ----------
    name
        Module name.
    out_channels, in_channels, groups, kernel, stride
        As of a convolution.
    role
        Of the closed set.
    op
        conv or conv_transpose.
    folded
        Also make a state with BatchNorm folded in.
    shares
        Name of the layer whose weights this one uses again.
    """

    name: str
    out_channels: int
    in_channels: int
    kernel: Shape
    role: Role
    groups: int = 1
    stride: int = 1
    op: Op = "conv"
    folded: bool = True
    shares: str | None = None


#: Every case the format knows, in a network of eight convolutions.
LAYER_SPECS = (
    LayerSpec("stem", 8, 3, (7, 7), "stem", stride=2),
    LayerSpec("block1.conv1", 16, 8, (3, 3), "spatial"),
    LayerSpec("block1.depthwise", 16, 16, (3, 3), "depthwise", groups=16),
    LayerSpec("block1.pointwise", 16, 16, (1, 1), "pointwise"),
    LayerSpec("block2.conv1", 24, 16, (3, 3), "downsample", stride=2),
    LayerSpec("block2.conv2", 24, 16, (3, 3), "spatial", shares="block2.conv1"),
    LayerSpec("wide", 6, 24, (5, 5), "spatial", folded=False),
    LayerSpec("up", 8, 6, (3, 3), "head", op="conv_transpose", folded=False),
)


def make_entries(
    n_models: int, *, seed: int = 0, tasks: Sequence[str] = TASKS
) -> tuple[Entry, ...]:
    """Make catalogue entries of models that exist nowhere.

    Parameters
    ----------
    n_models
        How many.
    seed
        Of the stated sizes.
    tasks
        Labels, used in turn.

    Returns
    -------
    tuple of Entry
        Ids "model-000", "model-001", …
    """
    rng = np.random.default_rng(seed)
    return tuple(
        Entry(
            id=f"model-{i:03d}",
            uri=f"file:models/model-{i:03d}.npz",
            catalogue="testing",
            format="npz",
            bytes=int(rng.integers(TEST_MODEL_BYTES // 2, TEST_MODEL_BYTES)),
            name=f"Model {i}",
            architecture=("resnet", "unet", "vgg")[i % 3],
            family=("resnet", "unet", "vgg")[i % 3],
            task=tasks[i % len(tasks)],
            visual_category=VISUAL_CATEGORIES[i % len(VISUAL_CATEGORIES)],
            training_dataset=("imagenet",) if i % 2 else ("coco", "imagenet"),
            licence_package="Apache-2.0",
            label_source="made by filterdb.testing",
        )
        for i in range(n_models)
    )


def random_weights(
    rng: np.random.Generator, shape: Shape, *, dtype: str = "float32", smoothness: float = 0.0
) -> AnyArray:
    """Make weights of a convolution.

    Parameters
    ----------
    rng
        Source of randomness.
    shape
        (out_channels, in_channels / groups, *kernel).
    dtype
        float16, float32 or float64.
    smoothness
        0 for independent coefficients; towards 1 a kernel's coefficients become alike.

    Returns
    -------
    ndarray
        Gaussian, scaled by fan-in; about one filter in ten nearly zero, as trained networks have.
    """
    weights = rng.standard_normal(shape)
    axes = tuple(range(2, len(shape)))
    common = weights.mean(axis=axes, keepdims=True) * np.sqrt(np.prod(shape[2:]))
    weights = (1 - smoothness) * weights + smoothness * common
    weak = rng.random(shape[:2]) < 0.1
    weights[weak] *= 1e-4
    fan_in = float(np.prod(shape[1:]))
    return np.ascontiguousarray((weights * np.sqrt(2 / fan_in)).astype(dtype))


def random_layers(
    model_id: ModelId,
    rng: np.random.Generator,
    *,
    specs: Sequence[LayerSpec] = LAYER_SPECS,
    dtype: str = "float32",
    smoothness: float = 0.0,
) -> list[StagedLayer]:
    """Make layers ready to be staged.

    Parameters
    ----------
    model_id
        The model they belong to.
    rng
        Source of randomness.
    specs
        Their shapes.
    dtype
        Stored element type.
    smoothness
        See :func:`random_weights`.

    Returns
    -------
    list of StagedLayer
        With raw and, where the spec says so, folded states.
    """
    made: dict[str, AnyArray] = {}
    layers = []
    for index, spec in enumerate(specs):
        if spec.shares is not None:
            weights = made[spec.shares]
        else:
            shape = (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel)
            weights = random_weights(rng, shape, dtype=dtype, smoothness=smoothness)
        made[spec.name] = weights
        scale = rng.uniform(0.5, 2.0, spec.out_channels) if spec.folded else None
        norm = index / max(1, len(specs) - 1)
        layers.append(_layer(spec, weights, scale, index=index, depth_norm=norm))
    return list(staged_layers(model_id, layers))


def _layer(
    spec: LayerSpec,
    weights: AnyArray,
    scale: FloatArray | None,
    *,
    index: int,
    depth_norm: float,
) -> ConvLayer:
    rank = len(spec.kernel)
    none = np.zeros(spec.out_channels)
    norm = None if scale is None else BatchNorm(scale, none, none, none + 1.0, epsilon=0.0)
    return ConvLayer(
        index=index,
        name=spec.name,
        tensor=f"{spec.name}.weight",
        use=0,
        op=spec.op,
        kernel=spec.kernel,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        groups=spec.groups,
        stride=(spec.stride,) * rank,
        dilation=(1,) * rank,
        padding=tuple(k // 2 for k in spec.kernel),
        role=spec.role,
        conv_depth=index,
        conv_depth_norm=depth_norm,
        depth_decile=min(9, int(10 * depth_norm)),
        depth_source="registration",
        batch_norm_status="none" if norm is None else "separate",
        source_dtype="float32",
        quantised=False,
        shared_with=None if spec.shares is None else f"{spec.shares}.weight",
        read=lambda: weights,
        read_batch_norm=None if norm is None else lambda: norm,
    )


def model_row(entry: Entry, layers: Sequence[StagedLayer], *, n_skipped: int = 0) -> dict[str, Any]:
    """Make the row of `models` for a model whose layers are given.

    Parameters
    ----------
    entry
        Its catalogue entry.
    layers
        Its layers.
    n_skipped
        Rows it has in `skipped`.

    Returns
    -------
    dict
        All columns. An entry whose address begins with ``init:`` is a random initialisation.
    """
    is_twin = entry.uri.startswith("init:")
    own = [layer for layer in layers if layer.row["shared_with"] is None]
    return {
        **entry_columns(entry),
        "uri": entry.uri,
        "format": entry.format,
        "archive_sha256": entry.archive_sha256,
        "member_sha256": hashlib.sha256(entry.id.encode()).hexdigest(),
        "bytes": entry.bytes or 0,
        "init_of": entry.uri.split("?")[0].removeprefix("init:") if is_twin else None,
        "seed": 0 if is_twin else None,
        "n_parameters": sum(int(layer.weights.size) for layer in own),
        "n_conv_layers": len(layers),
        "n_filters": sum(_n_filters(layer) for layer in own),
        "n_filters_3x3": sum(_n_filters(x) for x in own if x.row["kernel"] == "3x3"),
        "n_skipped": n_skipped,
        "status": "ok" if layers else "no_convolutions",
    }


def _n_filters(layer: StagedLayer) -> int:
    return int(layer.weights.shape[0] * layer.weights.shape[1])


def failed_model(entry: Entry, *, retryable: bool = False) -> StagedModel:
    """Make the stage of a model that could not be read.

    Parameters
    ----------
    entry
        Its catalogue entry.
    retryable
        Whether the next run tries again by itself.

    Returns
    -------
    StagedModel
        A failure.
    """
    return StagedModel(
        failure={
            "model_id": entry.id,
            "uri": entry.uri,
            "stage": "fetch" if retryable else "parse",
            "error": "FetchError" if retryable else "MalformedFileError",
            "message": "made by filterdb.testing",
            "retryable": retryable,
            "attempts": 1,
        },
        key=entry.id,
    )


def make_model(
    entry: Entry, *, seed: int = 0, specs: Sequence[LayerSpec] = LAYER_SPECS
) -> StagedModel:
    """Make a model ready to be staged.

    Parameters
    ----------
    entry
        Its catalogue entry. Its task sets how smooth its filters are, so that tasks differ.
    seed
        With the entry's id, decides the weights.
    specs
        Its layers.

    Returns
    -------
    StagedModel
        Every third model is float16, every seventh float64. The second model's stem is the
        first's, a duplicate.
    """
    number = int(hashlib.sha256(entry.id.encode()).hexdigest()[:8], 16)
    digits = "".join(c for c in entry.id if c.isdigit())
    index = int(digits) if digits else number
    dtype = "float64" if index % 7 == 6 else "float16" if index % 3 == 2 else "float32"
    smoothness = 0.15 * (TASKS.index(entry.task) if entry.task in TASKS else 0)
    rng = np.random.default_rng([seed, number])
    layers = random_layers(entry.id, rng, specs=specs, dtype=dtype, smoothness=smoothness)
    if index in (0, 1) and layers:
        layers[0] = random_layers(entry.id, np.random.default_rng(seed), specs=specs[:1])[0]
    skipped = [
        {
            "model_id": entry.id,
            "tensor": "fc.weight",
            "shape": [10, 24],
            "dtype": "float32",
            "reason": "fully_connected",
            "detail": "two axes",
        }
    ]
    return StagedModel(
        model=model_row(entry, layers, n_skipped=1), layers=layers, skipped=skipped, key=entry.id
    )
