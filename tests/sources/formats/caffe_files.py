"""Writes Caffe networks: protocol buffers by the field numbers of the public ``caffe.proto``."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

V1_CONVOLUTION, V1_INNER_PRODUCT, V1_RELU, V1_DECONVOLUTION = 4, 14, 18, 39


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def chunk(field: int, payload: bytes | str) -> bytes:
    raw = payload.encode() if isinstance(payload, str) else payload
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def real(field: int, value: float) -> bytes:
    return varint(field << 3 | 5) + struct.pack("<f", value)


def blob(values: np.ndarray, how: str = "float") -> bytes:
    """One BlobProto; `how` is float, double, legacy, unpacked, raw16 or half."""
    shape = chunk(7, chunk(1, b"".join(map(varint, values.shape))))
    if how == "legacy":
        extents = (1,) * (4 - values.ndim) + values.shape
        head = b"".join(number(i, n) for i, n in enumerate(extents, start=1))
        return head + chunk(5, values.astype("<f4").tobytes())
    if how == "double":
        return chunk(8, values.astype("<f8").tobytes()) + shape
    if how == "unpacked":
        return b"".join(real(5, float(v)) for v in values.reshape(-1)) + shape
    if how == "raw16":
        return shape + number(10, 2) + chunk(12, values.astype("<f2").tobytes())
    if how == "half":
        bits = values.astype(np.float16).view(np.uint16).reshape(-1)
        return shape + chunk(10, b"".join(varint(int(b)) for b in bits))
    return chunk(5, values.astype("<f4").tobytes()) + shape


def convolution_param(**options: Any) -> bytes:
    """ConvolutionParameter: lists are repeated fields, the rest single ones."""
    numbers = {
        "num_output": 1, "bias_term": 2, "pad": 3, "kernel_size": 4, "group": 5, "stride": 6,
        "pad_h": 9, "pad_w": 10, "kernel_h": 11, "kernel_w": 12, "stride_h": 13, "stride_w": 14,
        "dilation": 18,
    }  # fmt: skip
    out = b""
    for key, value in options.items():
        for each in value if isinstance(value, Sequence) else (value,):
            out += number(numbers[key], int(each))
    return out


def layer(
    name: str,
    kind: str,
    bottoms: Sequence[str],
    tops: Sequence[str],
    blobs: Sequence[bytes] = (),
    *,
    extra: bytes = b"",
) -> bytes:
    """One LayerParameter as a field of the network."""
    body = chunk(1, name) + chunk(2, kind)
    body += b"".join(chunk(3, b) for b in bottoms) + b"".join(chunk(4, t) for t in tops)
    body += b"".join(chunk(7, b) for b in blobs)
    return chunk(100, body + extra)


def convolution(
    name: str,
    bottom: str,
    top: str,
    weight: np.ndarray,
    *,
    how: str = "float",
    kind: str = "Convolution",
    bias: np.ndarray | None = None,
    **options: Any,
) -> bytes:
    """A convolution with its parameters."""
    height, width = weight.shape[2:]
    if weight.ndim == 4 and "kernel_size" not in options:
        options = {"kernel_h": height, "kernel_w": width, **options}
    outputs = weight.shape[0]
    if kind == "Deconvolution":
        outputs = weight.shape[1] * options.get("group", 1)
    blobs = [blob(weight, how)] + ([] if bias is None else [blob(bias, how)])
    options = {"num_output": outputs, "bias_term": int(bias is not None), **options}
    extra = chunk(106, convolution_param(**options))
    return layer(name, kind, [bottom], [top], blobs, extra=extra)


def batch_norm(
    name: str, bottom: str, top: str, mean: np.ndarray, var: np.ndarray, factor: float, eps: float
) -> bytes:
    """A BatchNorm as Caffe keeps it: sums, and the weight they are to be divided by."""
    blobs = [blob(mean * factor), blob(var * factor), blob(np.array([factor]))]
    return layer(name, "BatchNorm", [bottom], [top], blobs, extra=chunk(139, real(3, eps)))


def scale(name: str, bottom: str, top: str, gamma: np.ndarray, beta: np.ndarray) -> bytes:
    """A Scale with a bias."""
    blobs = [blob(gamma), blob(beta)]
    return layer(name, "Scale", [bottom], [top], blobs, extra=chunk(142, number(4, 1)))


def layer_v1(
    name: str, kind: int, bottoms: Sequence[str], tops: Sequence[str], blobs: Sequence[bytes] = (),
    *, extra: bytes = b"",
) -> bytes:  # fmt: skip
    """One V1LayerParameter as a field of the network."""
    body = b"".join(chunk(2, b) for b in bottoms) + b"".join(chunk(3, t) for t in tops)
    body += chunk(4, name) + number(5, kind) + b"".join(chunk(6, b) for b in blobs)
    return chunk(2, body + extra)


def layer_v0(
    name: str, kind: str, bottoms: Sequence[str], tops: Sequence[str], inner: bytes = b""
) -> bytes:
    """A V1 layer that only wraps a V0LayerParameter."""
    body = b"".join(chunk(2, b) for b in bottoms) + b"".join(chunk(3, t) for t in tops)
    return chunk(2, chunk(1, chunk(1, name) + chunk(2, kind) + inner) + body)


def net(*layers: bytes, name: str = "net") -> bytes:
    """A NetParameter."""
    return (chunk(1, name) if name else b"") + b"".join(layers)
