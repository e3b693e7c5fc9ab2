"""Attention heads of any network: found, looked at and switched off from outside, fused attention or not.

A layer's attention maps are seen where its softmax is computed, or derived from the arguments of PyTorch's fused
attention, in the very call that the network makes. A head is switched off where the projection reads it: its channels
are zeroed.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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
Maps = Float[Tensor, "b heads queries keys"]


@dataclass(frozen=True)
class Grid:
    """Tokens are the places of a square map, row by row, after some that stand for no place."""

    prefix: int = 0

    def seen_from(self, maps: Maps, x: float, y: float) -> Float[np.ndarray, "heads h w"]:
        """Where a place looks, by one image's maps (1, heads, queries, keys); x and y are shares of the image.

        Raises:
            InputError: The tokens are no square maps.
        """
        queries, keys = (isqrt(max(0, size - self.prefix)) for size in maps.shape[-2:])
        if tuple(maps.shape[-2:]) != (self.prefix + queries**2, self.prefix + keys**2):
            raise InputError(f"{tuple(maps.shape[-2:])} tokens are no square maps after {self.prefix} others")
        query = self.prefix + int(y * queries) * queries + int(x * queries)
        return maps[0, :, query, self.prefix :].unflatten(1, (keys, keys)).float().numpy()


@dataclass(frozen=True)
class Windows:
    """Tokens are the places of windows of a map that was moved up and to the left, round and round, as in Swin."""

    size: tuple[int, int]
    shift: tuple[int, int]
    map_size: tuple[int, int]

    def seen_from(self, maps: Maps, x: float, y: float) -> Float[np.ndarray, "heads h w"]:
        """As of `Grid`; NaN outside of the place's window."""
        (high, wide), (down, right), (rows, columns) = self.size, self.shift, self.map_size
        row, column = (int(y * rows) - down) % rows, (int(x * columns) - right) % columns
        across = -(-columns // wide)
        window = row // high * across + column // wide
        looks = maps[window, :, row % high * wide + column % wide].unflatten(1, self.size)
        seen = torch.full((len(looks), -(-rows // high) * high, across * wide), torch.nan)
        top, left = row // high * high, column // wide * wide
        seen[:, top : top + high, left : left + wide] = looks.float()
        return seen[:, :rows, :columns].roll(self.shift, (1, 2)).numpy()


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """One attention layer of a network.

    Args:
        name: For people.
        module: In whose `forward` the attention is computed, by softmax or by scaled_dot_product_attention;
            nn.MultiheadAttention does so where nothing can look in, and needs a module of your own in its place.
        heads: How many it has.
        project: The part that reads the heads' outputs, side by side along `axis`, equally many channels each.
        axis: Of the channels in what `project` reads: -1 for tokens, 1 for maps.
        channels: How many of these channels are the heads'; the others pass by. None: all.
        layout: How the maps' tokens lie in the image, for pictures.
    """

    name: str
    module: nn.Module
    heads: int
    project: nn.Module
    axis: int = -1
    channels: int | None = None
    layout: Grid | Windows = Grid()


def attention_layers(network: nn.Module) -> list[AttentionLayer]:
    """The layers of SHViT with any mixer, of timm's vision transformers and Swin, and modules with `num_heads`, `proj`.

    Raises:
        InputError: The network has none that is known here.
    """
    layers = []
    prefix = max((getattr(module, "num_prefix_tokens", 0) for module in network.modules()), default=0)
    windows: dict[Any, Windows] = {}
    for name, module in network.named_modules():
        heads, project = getattr(module, "num_heads", None), getattr(module, "proj", None)
        short = name.removeprefix("network.").replace(".branch", "")
        if isinstance(module, SingleHeadAttention):
            layers.append(AttentionLayer(short, module, 1, module.project, 1, module.attended))
        elif isinstance(module, MultiHeadAttention):
            layers.append(AttentionLayer(short, module, module.heads, module.project, 1))
        elif isinstance(module, BottleneckAttention):
            layers.append(AttentionLayer(short, module, 1, module.project, 1))
        elif hasattr(module, "attn") and hasattr(module, "shift_size") and hasattr(module, "input_resolution"):
            swin: Any = module
            windows[swin.attn] = Windows(tuple(swin.window_size), tuple(swin.shift_size), tuple(swin.input_resolution))
        elif isinstance(heads, int) and isinstance(project, nn.Linear):
            layers.append(AttentionLayer(short, module, heads, project, layout=windows.get(module, Grid(prefix))))
    if not layers:
        raise InputError(
            f"no attention layers found in {type(network).__name__}: known are SHViT's, and modules with num_heads and "
            "proj as in timm's ViT and Swin; for others give an adapter that lists the layers"
        )
    return layers


@contextmanager
def watching(layers: Collection[AttentionLayer], see: Callable[[AttentionLayer, Maps], None]) -> Iterator[None]:
    """While the network runs in here, `see` is told each layer's attention maps, which sum to 1 over the keys.

    Windows are told as further images: (images x windows, heads, queries, keys).
    """
    with ExitStack() as stack:
        mode = _Maps(see)
        for layer in layers:
            before = layer.module.register_forward_pre_hook(partial(mode.enter, layer))
            after = layer.module.register_forward_hook(mode.leave, always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(mode)
        yield


@contextmanager
def without(nullified: Mapping[AttentionLayer, Collection[int]]) -> Iterator[None]:
    """While the network runs in here, the outputs of these heads are zeros where their layer's projection reads them.

    Raises:
        InputError: A layer has no such head.
    """
    with ExitStack() as stack:
        for layer, heads in nullified.items():
            wrong = [head for head in heads if not 0 <= head < layer.heads]
            if wrong:
                raise InputError(f"{layer.name} has heads 0 to {layer.heads - 1}, got {', '.join(map(str, wrong))}")
            hook = layer.project.register_forward_pre_hook(partial(_nullify, layer, tuple(heads)))
            stack.callback(hook.remove)
        yield


def _nullify(layer: AttentionLayer, heads: Sequence[int], _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    x = inputs[0].clone()
    share = (layer.channels or x.shape[layer.axis]) // layer.heads
    for head in heads:
        x.narrow(layer.axis, head * share, share).zero_()
    return (x, *inputs[1:])


@dataclass
class _Maps(TorchFunctionMode):
    """Tells the attention maps of the layer that runs."""

    see: Callable[[AttentionLayer, Maps], None]
    running: list[AttentionLayer] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def enter(self, layer: AttentionLayer, *_: Any) -> None:
        self.running.append(layer)

    def leave(self, *_: Any) -> None:
        self.running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.running:
            layer = self.running[-1]
            if func is functional.scaled_dot_product_attention:
                self.see(layer, fused_maps(*args, **(kwargs or {})))
            elif func in SOFTMAXES and result.ndim >= 3:
                self.see(layer, result.unsqueeze(1) if result.ndim == 3 else result)
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
) -> Maps:
    """The attention maps in PyTorch's scaled_dot_product_attention of these arguments, which keeps none."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = (query * (1 / sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)
