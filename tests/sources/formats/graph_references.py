"""Real model files of public packages, and a plain convolution, for the tests of graph readers."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from filterdb.layers.raw import ConvAttributes, RawModel

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RealFile:
    """A file inside a package, and how many convolution kernels it is known to hold."""

    format: str
    uri: str
    archive_sha256: str
    n_layers: int
    n_filters_3x3: int

    @property
    def name(self) -> str:
        return self.uri.rpartition("/")[2]


def real_files(format_name: str) -> list[RealFile]:
    table = Path(__file__).with_name("graph_references.csv")
    with table.open(newline="") as lines:
        rows = csv.reader(lines)
        next(rows)
        found = [RealFile(f, uri, sha, int(n), int(k)) for f, uri, sha, n, k in rows]
    return [file for file in found if file.format == format_name]


def count_kernels(raw: RawModel) -> tuple[int, int]:
    """Distinct convolution weights, and their 3×3 slices (out × in / groups)."""
    shapes = {t.name: t.shape for t in raw.tensors}
    seen: set[str] = set()
    n_filters = 0
    for node in raw.nodes:
        if node.conv is None or "weight" not in node.weights or node.weights["weight"] in seen:
            continue
        seen.add(node.weights["weight"])
        assert node.conv.layout is not None
        size = dict(zip(node.conv.layout, shapes[node.weights["weight"]], strict=True))
        kernel = [size[a] for a in "DHW" if a in size]
        if kernel == [3, 3]:
            n_filters += size["O"] * size.get("I", 1)
    return len(seen), n_filters


def _padding(x: Array, kernel: tuple[int, ...], conv: ConvAttributes) -> list[tuple[int, int]]:
    assert conv.stride is not None
    assert conv.dilation is not None
    if conv.padding is not None:
        n = len(kernel)
        ends = conv.padding[n:] or conv.padding
        return list(zip(conv.padding[:n], ends, strict=True))
    pairs = []
    for axis, extent in enumerate(kernel):
        reach = (extent - 1) * conv.dilation[axis] + 1
        outputs = -(-x.shape[2 + axis] // conv.stride[axis])
        total = max((outputs - 1) * conv.stride[axis] + reach - x.shape[2 + axis], 0)
        pairs.append((total // 2, total - total // 2))
    return pairs


def convolve(x: Array, weights: Array, bias: Array | None, conv: ConvAttributes) -> Array:
    """A 2-D convolution by its definition.

    `x` is (channels, height, width), `weights` (out, in / groups, kh, kw); float64.
    """
    assert conv.stride is not None
    assert conv.dilation is not None
    batch = x.astype(np.float64)[None]
    pairs = _padding(batch, weights.shape[2:], conv)
    batch = np.pad(batch, [(0, 0), (0, 0), *pairs])
    groups = conv.groups or 1
    reach = [(k - 1) * d + 1 for k, d in zip(weights.shape[2:], conv.dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(batch[0], reach, axis=(1, 2))
    windows = windows[:, :: conv.stride[0], :: conv.stride[1]]
    windows = windows[..., :: conv.dilation[0], :: conv.dilation[1]]
    grouped = windows.reshape(groups, -1, *windows.shape[1:])
    kernels = weights.astype(np.float64).reshape(groups, -1, *weights.shape[1:])
    result = np.concatenate(
        [
            np.tensordot(k, w, axes=([1, 2, 3], [0, 3, 4]))
            for k, w in zip(kernels, grouped, strict=True)
        ]
    )
    return result if bias is None else result + bias.astype(np.float64)[:, None, None]


def convolve_transposed(
    x: Array, weights: Array, bias: Array | None, conv: ConvAttributes
) -> Array:
    """A transposed 2-D convolution by its definition, `weights` (out, in, kh, kw), one group."""
    assert conv.stride is not None
    sh, sw = conv.stride
    kh, kw = weights.shape[2:]
    height, width = x.shape[1:]
    result = np.zeros((weights.shape[0], (height - 1) * sh + kh, (width - 1) * sw + kw))
    spread = np.tensordot(weights.astype(np.float64), x.astype(np.float64), axes=(1, 0))
    for i in range(kh):
        for j in range(kw):
            result[:, i : i + height * sh : sh, j : j + width * sw : sw] += spread[:, i, j]
    if bias is not None:
        result += bias.astype(np.float64)[:, None, None]
    if conv.padding:
        top, left = conv.padding[:2]
        bottom, right = conv.padding[-2:]
        result = result[:, top : result.shape[1] - bottom, left : result.shape[2] - right]
    return result
