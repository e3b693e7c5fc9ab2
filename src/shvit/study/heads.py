"""Find the attention heads of any network, record their attention maps, and switch heads off.

During the network's own forward pass, attention maps are taken from the output of softmax, or computed from the
arguments of PyTorch's fused attention. A head is switched off by zeroing its channels in the input of the projection.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import isqrt, sqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..model.attention import SingleHeadAttention
from .mixers import BottleneckAttention, MultiHeadAttention

SOFTMAXES = (functional.softmax, torch.softmax, Tensor.softmax)
HeadMaps = Float[Tensor, "b heads queries keys"]


@dataclass(frozen=True)
class Grid:
    """The tokens form a square grid, in row-major order. `prefix` tokens without a position come before the grid."""

    prefix: int = 0

    def attention_from(self, maps: HeadMaps, x: float, y: float) -> Float[np.ndarray, "heads h w"]:
        """Attention from the query at (x, y), in fractions of width and height. `maps` are (1, heads, queries, keys).

        Raises:
            InputError: The tokens are not a square grid.
        """
        queries, keys = (isqrt(max(0, size - self.prefix)) for size in maps.shape[-2:])
        if tuple(maps.shape[-2:]) != (self.prefix + queries**2, self.prefix + keys**2):
            raise InputError(
                f"(queries, keys) = {tuple(maps.shape[-2:])} are not a square grid after {self.prefix} prefix tokens"
            )
        query = self.prefix + int(y * queries) * queries + int(x * queries)
        return maps[0, :, query, self.prefix :].unflatten(1, (keys, keys)).float().numpy()


@dataclass(frozen=True)
class Windows:
    """The tokens form windows of a grid that was rolled up and to the left, as in Swin. All fields: (height, width)."""

    size: tuple[int, int]
    shift: tuple[int, int]
    map_size: tuple[int, int]

    def attention_from(self, maps: HeadMaps, x: float, y: float) -> Float[np.ndarray, "heads h w"]:
        """Like `Grid.attention_from`, with NaN outside the window of the query."""
        (high, wide), (down, right), (rows, columns) = self.size, self.shift, self.map_size
        row, column = (int(y * rows) - down) % rows, (int(x * columns) - right) % columns
        across = -(-columns // wide)
        window = row // high * across + column // wide
        seen = maps[window, :, row % high * wide + column % wide].unflatten(1, self.size)
        full = torch.full((len(seen), -(-rows // high) * high, across * wide), torch.nan)
        top, left = row // high * high, column // wide * wide
        full[:, top : top + high, left : left + wide] = seen.float()
        return full[:, :rows, :columns].roll(self.shift, (1, 2)).numpy()


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """One attention layer of a network.

    Args:
        name: Name of the layer in the report.
        module: The module whose `forward` calls softmax or scaled_dot_product_attention. nn.MultiheadAttention is
            not supported, because it computes attention in C++. Replace it with your own module.
        heads: Number of heads.
        project: The module whose input is the concatenated outputs of the heads. All heads have equally many channels.
        axis: Channel axis of that input: -1 for tokens, 1 for feature maps.
        channels: How many channels of that input come from the heads. These channels are the first ones; the remaining
            channels bypass attention. None: all channels come from the heads.
        layout: How the tokens are arranged in the image, for drawing attention maps.
    """

    name: str
    module: nn.Module
    heads: int
    project: nn.Module
    axis: int = -1
    channels: int | None = None
    layout: Grid | Windows = Grid()


def attention_layers(network: nn.Module) -> list[AttentionLayer]:
    """Find the attention layers: those of SHViT, timm's ViT and Swin, and other modules with `num_heads` and `proj`.

    Raises:
        InputError: No attention layers were found.
    """
    layers = []
    prefix = max((getattr(module, "num_prefix_tokens", 0) for module in network.modules()), default=0)
    windows: dict[Any, Windows] = {}
    for name, module in network.named_modules():
        heads, project = getattr(module, "num_heads", None), getattr(module, "proj", None)
        short = name.removeprefix("network.").replace(".branch", "")
        if isinstance(module, SingleHeadAttention | BottleneckAttention):
            layers.append(AttentionLayer(short, module, 1, module.project, 1, module.attended))
        elif isinstance(module, MultiHeadAttention):
            layers.append(AttentionLayer(short, module, module.heads, module.project, 1))
        elif hasattr(module, "attn") and hasattr(module, "shift_size") and hasattr(module, "input_resolution"):
            swin: Any = module
            windows[swin.attn] = Windows(tuple(swin.window_size), tuple(swin.shift_size), tuple(swin.input_resolution))
        elif isinstance(heads, int) and isinstance(project, nn.Linear):
            layers.append(AttentionLayer(short, module, heads, project, layout=windows.get(module, Grid(prefix))))
    if not layers:
        raise InputError(
            f"no attention layers found in {type(network).__name__}. Supported: SHViT, and modules with num_heads and "
            "proj as in timm's ViT and Swin. For other networks, give FILE.py:FUNCTION, which returns the layers"
        )
    return layers


@contextmanager
def record_attention(
    layers: Collection[AttentionLayer], on_map: Callable[[AttentionLayer, HeadMaps], None]
) -> Iterator[None]:
    """While the network runs inside the `with` block, call `on_map` with the attention maps of each layer.

    The maps sum to 1 over the keys. If attention is computed in windows, the first dimension is images x windows.
    """
    with ExitStack() as stack:
        mode = _MapRecorder(on_map)
        for layer in layers:
            before = layer.module.register_forward_pre_hook(lambda *_, layer=layer: mode.running.append(layer))
            after = layer.module.register_forward_hook(mode.leave, always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(mode)
        yield


@contextmanager
def heads_off(off: Mapping[AttentionLayer, Collection[int]]) -> Iterator[None]:
    """Switch off heads inside the `with` block: zero their outputs in the input of the layer's projection.

    Raises:
        InputError: A listed head does not exist in its layer.
    """
    with ExitStack() as stack:
        for layer, heads in off.items():
            wrong = [head for head in heads if not 0 <= head < layer.heads]
            if wrong:
                raise InputError(f"{layer.name} has heads 0 to {layer.heads - 1}, got {', '.join(map(str, wrong))}")
            hook = layer.project.register_forward_pre_hook(partial(_zero, layer, tuple(heads)))
            stack.callback(hook.remove)
        yield


def _zero(layer: AttentionLayer, heads: Sequence[int], _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    x = inputs[0].clone()
    share = (layer.channels or x.shape[layer.axis]) // layer.heads
    for head in heads:
        x.narrow(layer.axis, head * share, share).zero_()
    return (x, *inputs[1:])


class _MapRecorder(TorchFunctionMode):
    """Passes the attention maps of the running layer to `on_map`."""

    def __init__(self, on_map: Callable[[AttentionLayer, HeadMaps], None]) -> None:
        super().__init__()
        self.on_map = on_map
        self.running: list[AttentionLayer] = []

    def leave(self, *_: Any) -> None:
        self.running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.running:
            layer = self.running[-1]
            if func is functional.scaled_dot_product_attention:
                self.on_map(layer, fused_maps(*args, **(kwargs or {})))
            elif func in SOFTMAXES and result.ndim >= 3:
                self.on_map(layer, result.unsqueeze(1) if result.ndim == 3 else result)
        return result


def fused_maps(
    query: Float[Tensor, "b heads queries c"],
    key: Float[Tensor, "b heads keys c"],
    value: Float[Tensor, "b heads keys c2"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> HeadMaps:
    """Compute the attention maps of PyTorch's scaled_dot_product_attention, which does not return them."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = (query * (1 / sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)
