"""From layers in fp32 to integers: value ranges from calibration images, weights in int8, and slots of memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from .layers import AttendLayer, ConvolutionLayer, ExciteLayer, FloatLayer, FloatLayers, HeadLayer

Vector = Float[np.ndarray, " c"]
ARRAYS = "weight", "scale", "shift", "weight2", "scale2", "shift2"
"""Fields of `IntegerLayer` that are arrays."""
_LARGEST = 127
"""Largest absolute value of a weight."""
_MEAN_STEPS = 256
"""Means over a map are stored in this fraction of its steps."""


@dataclass(frozen=True)
class IntegerLayer:
    """One layer of the int8 network. The fields are those of `ShvitLayer` in network.hpp, which describes them."""

    kind: str
    source: int
    target: int
    inputs: int
    outputs: int
    weight: Int8[np.ndarray, "..."]
    scale: Vector
    shift: Vector
    residual: int = -1
    hidden: int = 0
    stride: int = 1
    zero: int = 0
    in_step: float = 1.0
    out_scale: float = 1.0
    residual_scale: float = 0.0
    epsilon: float = 0.0
    weight2: Int8[np.ndarray, "..."] = field(default_factory=lambda: np.zeros(0, np.int8))
    scale2: Vector = field(default_factory=lambda: np.zeros(0, np.float32))
    shift2: Vector = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class IntegerNetwork:
    """The int8 network."""

    layers: tuple[IntegerLayer, ...]
    slots: int
    """Memory for maps: layers name a slot for each map that they read or write."""
    border: tuple[int, ...]
    """The pixel around images: red, green, blue."""

    @property
    def classes(self) -> int:
        return self.layers[-1].outputs


@dataclass
class MapRange:
    """What calibration knows of a map."""

    mean: Tensor
    """Of each channel."""
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class ByteGrid:
    """How bytes represent the values of a map: `step * (byte - zero)`."""

    step: Tensor
    """Of each channel."""
    zero: int

    @property
    def one_step(self) -> float:
        """The step of maps whose channels all have the same."""
        return float(self.step[0])


def quantize_layers(layers: FloatLayers, calibration: Sequence[Tensor]) -> IntegerNetwork:
    """Quantize all layers, with the value ranges of calibration images, (b, 3, h, w) uint8."""
    return LayerQuantizer(layers, measure_ranges(layers, calibration)).network()


@torch.inference_mode()
def measure_ranges(layers: FloatLayers, calibration: Sequence[Tensor]) -> dict[Any, MapRange]:
    """The ranges of all maps, by number. Attention and squeeze-excite have a second one, ("inner", number).

    The limits of a range are the means of the images' smallest and largest values, so a single image cannot make the
    steps coarse.
    """
    ranges: dict[Any, MapRange] = {}
    images = 0

    def record(key: Any, x: Tensor) -> None:
        flat = x.flatten(1)
        found = ranges.setdefault(key, MapRange(torch.zeros(x.shape[1])))
        found.low += float(flat.amin(1).sum())
        found.high += float(flat.amax(1).sum())
        found.mean += x.flatten(2).mean(2).sum(0) if x.ndim == 4 else x.sum(0)

    for batch in calibration:
        images += len(batch)
        maps = layers(batch.float() - layers.mean[:, None, None])
        for number, x in maps.items():
            record(number, x)
        for layer in layers.all:
            if isinstance(layer, AttendLayer):
                record(("inner", layer.target), maps[layer.target][:, : layer.attended])
            elif isinstance(layer, ExciteLayer):
                record(("inner", layer.target), layer.hidden(maps[layer.source]))
    for found in ranges.values():
        found.low, found.high, found.mean = found.low / images, found.high / images, found.mean / images
    return ranges


def empty_network(layers: FloatLayers) -> IntegerNetwork:
    """The int8 network of these layers, with zeros as numbers. The layers may be on the meta device."""
    slots = _slots(layers.all)
    rows = tuple(_empty(layer, slots.get(layer.source, -1), slots.get(layer.target, -1), slots) for layer in layers.all)
    return IntegerNetwork(rows, max(slots.values()) + 1, (0, 0, 0))


def _empty(layer: FloatLayer, source: int, target: int, slots: Mapping[int, int]) -> IntegerLayer:
    def row(kind: str, inputs: int, outputs: int, *shape: int, scales: int = 0, **more: Any) -> IntegerLayer:
        scale, shift = np.zeros((2, scales or outputs), np.float32)
        return IntegerLayer(kind, source, target, inputs, outputs, np.zeros(shape, np.int8), scale, shift, **more)

    if isinstance(layer, ConvolutionLayer):
        outputs, inputs, side, _ = layer.weight.shape
        residual = -1 if layer.residual is None else slots[layer.residual]
        more = {"stride": layer.stride, "residual": residual}
        if layer.groups > 1:
            return row("depthwise", outputs, outputs, outputs, side, side, 1, **more)
        return row("convolve" if side == 3 else "pointwise", inputs, outputs, outputs, side, side, inputs, **more)
    if isinstance(layer, AttendLayer):
        outputs, inputs = layer.weight.shape
        return row("attend", inputs, outputs, outputs, inputs, hidden=layer.width)
    if isinstance(layer, ExciteLayer):
        hidden, width = layer.reduce.weight.shape
        scale2, shift2 = np.zeros((2, width), np.float32)
        second = {"weight2": np.zeros((width, hidden), np.int8), "scale2": scale2, "shift2": shift2}
        return row("excite", width, width, hidden, width, scales=hidden, hidden=hidden, **second)
    assert isinstance(layer, HeadLayer)
    outputs, inputs = layer.linear.weight.shape
    return row("classify", inputs, outputs, outputs, inputs)


class LayerQuantizer:
    """Quantizes layers whose value ranges are known."""

    def __init__(self, layers: FloatLayers, ranges: dict[Any, MapRange]) -> None:
        self._float, self._ranges = layers, ranges
        self.grids = {0: ByteGrid(torch.ones(3), 0)}
        """How bytes represent each map, filled in by `network`."""

    def network(self) -> IntegerNetwork:
        """The int8 network."""
        empty = empty_network(self._float)
        pairs = zip(self._float.all, empty.layers, strict=True)
        layers = tuple(replace(row, **self._numbers(layer)) for layer, row in pairs)
        return replace(empty, layers=layers, border=tuple(int(value) for value in self._float.mean.round()))

    def _numbers(self, layer: FloatLayer) -> dict[str, Any]:
        if isinstance(layer, ConvolutionLayer):
            return self._convolution(layer)
        if isinstance(layer, AttendLayer):
            return self._attend(layer)
        if isinstance(layer, ExciteLayer):
            return self._excite(layer)
        assert isinstance(layer, HeadLayer)
        return self._classify(layer)

    def _grid(self, key: Any, channels: int, relu: bool) -> ByteGrid:
        found = self._ranges[key]
        low = 0.0 if relu else min(found.low, 0.0)
        step = max(found.high - low, 1e-8) / 255
        return ByteGrid(torch.full((channels,), step), round(-low / step))

    def _convolution(self, layer: ConvolutionLayer) -> dict[str, Any]:
        source = self.grids[layer.source]
        grid = self.grids[layer.target] = self._grid(layer.target, len(layer.weight), layer.relu)
        depthwise = layer.groups > 1
        exact = layer.weight * (source.step[:, None, None, None] if depthwise else source.step[None, :, None, None])
        weight, step = _to_int8(exact)
        scale, shift = step / grid.one_step, layer.bias / grid.one_step + grid.zero
        # on average, the rounding of the weights adds this to each output
        mean = self._ranges[layer.source].mean / source.step
        lost = (exact - weight.float() * step[:, None, None, None]).sum((2, 3))
        shift = shift + (lost[:, 0] * mean if depthwise else lost @ mean) / grid.one_step
        residual_scale = 0.0
        if layer.residual is not None:
            added = self.grids[layer.residual]
            residual_scale = added.one_step / grid.one_step
            shift = shift - added.zero * residual_scale
        if layer.source == 0:  # the bytes are pixels, from which nothing was subtracted
            shift = shift - (weight.float().sum((2, 3)) @ self._float.mean) * scale
        rows = weight.permute(0, 2, 3, 1)  # outputs, height, width, inputs
        return _arrays(weight=rows, scale=scale, shift=shift) | {
            "zero": source.zero,
            "residual_scale": residual_scale,
        }

    def _attend(self, layer: AttendLayer) -> dict[str, Any]:
        source = self.grids[layer.source]
        mixed = self._grid(("inner", layer.target), layer.attended, relu=True)
        self.grids[layer.target] = ByteGrid(torch.cat([mixed.step, source.step[layer.attended :]]), 0)
        weight, scale = _to_int8(layer.weight)
        return _arrays(weight=weight, scale=scale, shift=layer.bias) | {
            "zero": source.zero,
            "in_step": source.one_step,
            "out_scale": 1 / mixed.one_step,
            "epsilon": layer.epsilon,
        }

    def _excite(self, layer: ExciteLayer) -> dict[str, Any]:
        source, channels = self.grids[layer.source], layer.expand.out_features
        grid = self.grids[layer.target] = self._grid(layer.target, channels, relu=True)
        inner = self._grid(("inner", layer.target), layer.reduce.out_features, relu=True).one_step
        reduce, first = _to_int8(layer.reduce.weight)
        expand, second = _to_int8(layer.expand.weight)
        scale = first * source.one_step / _MEAN_STEPS / inner
        return _arrays(
            weight=reduce, scale=scale, shift=layer.reduce.bias / inner,
            weight2=expand, scale2=second * inner, shift2=layer.expand.bias,
        ) | {"out_scale": source.one_step / grid.one_step}  # fmt: skip

    def _classify(self, layer: HeadLayer) -> dict[str, Any]:
        source = self.grids[layer.source]
        weight, step = _to_int8(layer.linear.weight)
        scale = step * source.one_step
        shift = layer.linear.bias - scale * source.zero * weight.sum(1)
        return _arrays(weight=weight, scale=scale / _MEAN_STEPS, shift=shift)


def _to_int8(weight: Tensor) -> tuple[Int8[Tensor, "outputs ..."], Float[Tensor, " outputs"]]:
    """Weights as integers, and the step of each output channel."""
    step = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / _LARGEST
    scaled = weight / step.reshape(-1, *[1] * (weight.ndim - 1))
    return scaled.round().to(torch.int8), step


def _slots(layers: Sequence[FloatLayer]) -> dict[int, int]:
    """A slot of memory for each map; a slot is used again when its map is not read any more."""
    last_read: dict[int, int] = {}
    for index, layer in enumerate(layers):
        for number in (layer.source, getattr(layer, "residual", None)):
            if number is not None:
                last_read[number] = index
    slots: dict[int, int] = {}
    stem = sum(
        isinstance(layer, ConvolutionLayer) and layer.weight.shape[-1] == 3 and layer.groups == 1 for layer in layers
    )
    for index, layer in enumerate(layers[:-1]):
        if layer.target < stem:
            continue  # maps of the stem have memory of their own, with borders
        used = {slots[number] for number in slots if last_read[number] >= index}
        slots[layer.target] = next(slot for slot in range(len(layers)) if slot not in used)
    return slots


def _arrays(**tensors: Tensor) -> dict[str, Any]:
    """Contiguous copies as arrays, floats in fp32."""
    detached = {name: x.detach() for name, x in tensors.items()}
    return {
        name: np.ascontiguousarray((x.float() if x.is_floating_point() else x).numpy()) for name, x in detached.items()
    }
