"""Prune attention layers to one head each, to measure what a single head saves."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from .heads import AttentionLayer
from .mixers import QUERY_CHANNELS, MultiHeadAttention

Network = TypeVar("Network", bound=nn.Module)
PRUNABLE = {"qkv", "proj", "q_norm", "k_norm", "relative_position_bias_table"}
"""Modules and parameters in the attention of timm's ViT and Swin. The norms are shared by all heads and not pruned."""


@torch.no_grad()
def with_single_heads(network: Network, kept: Mapping[AttentionLayer, int]) -> Network:
    """Return a smaller network in which some layers keep one head. Its outputs are those of `network` with the
    other heads off.

    Args:
        network: A network that is not fused. It is not changed.
        kept: The head to keep, by layer. Layers that are not listed keep all heads.

    Raises:
        InputError: A layer cannot be pruned. Supported: timm's ViT and Swin, and SHViT's multi-head mixer.
    """
    pruned, layers = copy.deepcopy((network, dict(kept)))
    for layer, head in layers.items():
        module: Any = layer.module
        if not can_prune(layer):
            raise InputError(f"{layer.name}: heads of {type(module).__name__} cannot be pruned")
        if isinstance(module, MultiHeadAttention):
            each = module.values // module.heads
            queries, values = _channels(head, QUERY_CHANNELS), _channels(head, each)
            before = module.heads * QUERY_CHANNELS  # query channels of all heads; as many key channels follow
            _select(module.qkv, torch.cat([queries, queries + before, values + 2 * before]))
            _select(module.project, inputs=values)
            module.heads, module.values = 1, each
        else:
            each = module.qkv.out_features // (3 * module.num_heads)
            _select(module.qkv, torch.cat([_channels(part * module.num_heads + head, each) for part in range(3)]))
            _select(module.proj, inputs=_channels(head, each))
            if hasattr(module, "relative_position_bias_table"):
                table = module.relative_position_bias_table
                module.relative_position_bias_table = nn.Parameter(table[:, head : head + 1].clone())
            module.num_heads, module.attn_dim = 1, each  # Swin does not use attn_dim
    return pruned


def can_prune(layer: AttentionLayer) -> bool:
    """Whether all weights of the layer can be pruned."""
    module: Any = layer.module
    if isinstance(module, MultiHeadAttention):
        return True
    parts = {name.partition(".")[0] for name, _ in module.named_parameters()}
    return {"qkv", "proj"} <= parts <= PRUNABLE and module.qkv.out_features % (3 * layer.heads) == 0


def _channels(head: int, each: int) -> Tensor:
    """Channel indices of one head in the concatenation of all heads, with `each` channels per head."""
    return torch.arange(head * each, (head + 1) * each)


def _select(module: nn.Module, outputs: Any = slice(None), inputs: Any = slice(None)) -> None:
    """Keep only these outputs and inputs of a linear layer, or of a 1x1 convolution and its norm."""
    for values in module.state_dict(keep_vars=True).values():
        if values.ndim == 1:  # a bias, or a parameter or statistic of the norm
            values.data = values[outputs].clone()
        elif values.ndim > 1:
            values.data = values[outputs][:, inputs].clone()
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.out_features, part.in_features = part.weight.shape
        elif isinstance(part, nn.Conv2d):
            part.out_channels, part.in_channels = part.weight.shape[:2]
        elif isinstance(part, nn.BatchNorm2d):
            part.num_features = len(part.weight)
