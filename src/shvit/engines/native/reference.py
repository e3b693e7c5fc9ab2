"""The int8 network in NumPy: what the compiled kernels compute, to the last bit.

Sums of products are integers. Other operations are elementwise or in a fixed order, in fp32, without fused
multiply-adds.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8

from .quantization import IntegerLayer, IntegerNetwork

Bytes = UInt8[np.ndarray, "b h w c"]
_QUERIES = 16
"""Channels of queries, and of keys."""


def run_reference(network: IntegerNetwork, images: UInt8[np.ndarray, "b 3 h w"]) -> Float[np.ndarray, "b classes"]:
    """The logits of decoded pixels."""
    *_, logits = reference_maps(network, images)
    return logits


def reference_maps(network: IntegerNetwork, images: UInt8[np.ndarray, "b 3 h w"]) -> Iterator[np.ndarray]:
    """What each layer computes: maps of bytes, (b, h, w, c), and in the end the logits."""
    x = images.transpose(0, 2, 3, 1)
    border = np.array(network.border, np.uint8)
    slots: dict[int, Bytes] = {}
    for layer in network.layers:
        x = slots.get(layer.source, x)
        match layer.kind:
            case "convolve":
                x = _to_bytes(_scaled(_windows(x, 2, border) @ _rows(layer), layer))
                border = np.uint8(0)
            case "depthwise":
                x = _depthwise(layer, x)
            case "pointwise":
                x = _pointwise(layer, x, slots[layer.residual] if layer.residual >= 0 else None)
            case "attend":
                x = np.stack([_attend(layer, image) for image in x])
            case "excite":
                x = _excite(layer, x)
            case "classify":
                x = _from_parts(_means(x) @ _rows(layer), layer.scale, layer.shift)
        slots[layer.target] = x
        yield x


def _floats(x: np.ndarray) -> np.ndarray:
    """In fp64, whose products and sums of such integers are exact."""
    return x.astype(np.float64)


def _rows(layer: IntegerLayer) -> np.ndarray:
    """The weights as (inputs, outputs)."""
    return _floats(layer.weight.reshape(len(layer.weight), -1).T)


def _scaled(sums: np.ndarray, layer: IntegerLayer) -> np.ndarray:
    return sums.astype(np.float32) * layer.scale + layer.shift


def _to_bytes(value: np.ndarray) -> np.ndarray:
    return np.rint(value).clip(0, 255).astype(np.uint8)


def _windows(x: Bytes, stride: int, border: np.ndarray | np.integer | int) -> np.ndarray:
    """The 3x3 windows around pixels, (b, h, w, 9 * c), in a map surrounded by this pixel."""
    b, height, width, c = x.shape
    padded = np.empty((b, height + 2, width + 2, c), np.uint8)
    padded[:] = border
    padded[:, 1:-1, 1:-1] = x
    parts = [padded[:, y : y + height : stride, i : i + width : stride] for y in range(3) for i in range(3)]
    return _floats(np.concatenate(parts, -1))


def _depthwise(layer: IntegerLayer, x: Bytes) -> Bytes:
    windows = _windows(x, layer.stride, layer.zero)
    windows = windows.reshape(*windows.shape[:3], 9, x.shape[-1]) - layer.zero
    weight = _floats(layer.weight.reshape(layer.outputs, 9).T)
    return _to_bytes(_scaled((windows * weight).sum(-2), layer))


def _pointwise(layer: IntegerLayer, x: Bytes, residual: Bytes | None) -> Bytes:
    value = _scaled((_floats(x) - layer.zero) @ _rows(layer), layer)
    if residual is not None:
        value = value + residual.astype(np.float32) * np.float32(layer.residual_scale)
    return _to_bytes(value)


def _means(x: Bytes) -> np.ndarray:
    """The mean of each channel in 1/256 of a step, (b, c)."""
    pixels = x.shape[1] * x.shape[2]
    sums = x.astype(np.int64).sum((1, 2)).astype(np.float32)
    return _floats(np.rint(sums * (np.float32(256) / np.float32(pixels))))


def _from_parts(sums: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return sums.astype(np.int64).astype(np.float32) * scale + shift


def _excite(layer: IntegerLayer, x: Bytes) -> Bytes:
    squeezed = _to_bytes(_from_parts(_means(x) @ _rows(layer), layer.scale, layer.shift))
    gates = (_floats(squeezed) @ _floats(layer.weight2.T)).astype(np.float32) * layer.scale2 + layer.shift2
    one = np.float32(1)
    gates = one / (one + _exponential(-gates)) * np.float32(layer.out_scale)
    return _to_bytes(x.astype(np.float32) * gates[:, None, None])


def _attend(layer: IntegerLayer, x: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    tokens = x.reshape(-1, x.shape[-1])
    qkv = _queries_keys_values(layer, tokens[:, : layer.inputs])
    query, key, value = np.split(qkv, [_QUERIES, 2 * _QUERIES], axis=1)
    scores = query[:, :1] * key[:, 0]
    for d in range(1, _QUERIES):
        scores = scores + query[:, d : d + 1] * key[:, d]
    padding = -len(tokens) % 16
    scores = np.pad(scores, ((0, 0), (0, padding)), constant_values=np.float32(-1e30))
    weights = _exponential(scores - scores.max(1, keepdims=True))
    lanes = _in_order(weights.reshape(len(tokens), -1, 16).transpose(1, 0, 2))
    factor = np.float32(layer.out_scale) / _in_order(lanes.T)
    mixed = np.zeros_like(value)
    for t in range(len(tokens)):
        mixed = mixed + weights[:, t : t + 1] * value[t]
    passed = np.maximum(tokens[:, layer.inputs :].astype(np.int32) - layer.zero, 0).astype(np.uint8)
    return np.concatenate([_to_bytes(mixed * factor[:, None]), passed], 1).reshape(x.shape)


def _queries_keys_values(layer: IntegerLayer, tokens: np.ndarray) -> np.ndarray:
    """The product, with GroupNorm as a factor and a summand that all channels share."""
    whole = tokens.astype(np.int64)
    count, step = float(tokens.size), float(np.float32(layer.in_step))
    mean = float(whole.sum()) / count
    variance = float((whole * whole).sum()) / count - mean * mean
    factor = step / np.sqrt(step * step * variance + float(np.float32(layer.epsilon)))
    sums = (_floats(tokens) @ _rows(layer)).astype(np.float32)
    moved = layer.scale * layer.weight.astype(np.int64).sum(1).astype(np.float32)
    return sums * (np.float32(factor) * layer.scale) + (layer.shift - np.float32(factor * mean) * moved)


def _in_order(x: np.ndarray) -> np.ndarray:
    """The sum over the first dimension, one after another."""
    total = x[0]
    for part in x[1:]:
        total = total + part
    return total


def _exponential(x: np.ndarray) -> np.ndarray:
    """exp(x) in fp32, for x between -87 and 87."""
    t = x.clip(np.float32(-87), np.float32(87)) * np.float32(1.44269504)
    n = np.rint(t)
    f = t - n
    y = f * np.float32(0.00133336) + np.float32(0.00961813)
    for coefficient in (0.05550411, 0.24022651, 0.69314718, 1):
        y = y * f + np.float32(coefficient)
    return y * ((n.astype(np.int32) + 127) << 23).view(np.float32)
