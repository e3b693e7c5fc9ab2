"""Prune attention layers to one head each, to measure what a single head saves."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..model.layers import ConvNorm
from .heads import AttentionLayer
from .mixers import QUERY_CHANNELS, MultiHeadAttention

Network = TypeVar("Network", bound=nn.Module)


def with_single_heads(network: Network, kept: Mapping[AttentionLayer, int]) -> Network:
    """Create a smaller network with the kept heads only. Its outputs equal those with the other heads switched off.

    Args:
        network: Not fused. It is not changed.
        kept: The head to keep in each layer. Other layers keep all heads.

    Raises:
        InputError: A layer cannot be pruned. Supported: timm's ViT and Swin, and SHViT's multi-head mixer.
    """
    pruned, layers = copy.deepcopy((network, dict(kept)))
    for layer, head in layers.items():
        _prune(layer, head)
    return pruned


@torch.no_grad()
def _prune(layer: AttentionLayer, head: int) -> None:
    module: Any = layer.module
    if isinstance(module, MultiHeadAttention):
        each = module.values // module.heads
        queries = _part(head, QUERY_CHANNELS)
        keys = queries + module.heads * QUERY_CHANNELS
        values = _part(head, each)
        module.qkv = _conv_norm(module.qkv, outputs=torch.cat([queries, keys, values + _keys_end(module)]))
        module.project = _conv_norm(module.project, inputs=values)
        module.heads, module.values = 1, each
    elif can_prune(layer):
        each = module.qkv.out_features // (3 * module.num_heads)
        outputs = torch.cat([_part(head, each) + third * each * module.num_heads for third in range(3)])
        module.qkv = _linear(module.qkv, outputs=outputs)
        module.proj = _linear(module.proj, inputs=_part(head, each))
        if hasattr(module, "relative_position_bias_table"):
            table = module.relative_position_bias_table
            module.relative_position_bias_table = nn.Parameter(table[:, head : head + 1].clone())
        module.num_heads = 1
        if hasattr(module, "attn_dim"):
            module.attn_dim = each
    else:
        raise InputError(f"{layer.name}: heads of {type(module).__name__} cannot be pruned")


def can_prune(layer: AttentionLayer) -> bool:
    """Whether the layer has only weights that can be pruned."""
    module: Any = layer.module
    if isinstance(module, MultiHeadAttention):
        return True
    parts = {name for name, part in module.named_children() if any(True for _ in part.parameters())}
    parts |= {name for name, _ in module.named_parameters(recurse=False)}
    return {"qkv", "proj"} <= parts <= KNOWN and module.qkv.out_features % (3 * layer.heads) == 0


KNOWN = {"qkv", "proj", "q_norm", "k_norm", "relative_position_bias_table"}
"""Weights in the attention of timm's ViT and Swin. All heads share the norms of queries and keys."""


def _keys_end(module: MultiHeadAttention) -> int:
    """Index of the first value channel in the output of `qkv`."""
    return 2 * module.heads * QUERY_CHANNELS


def _part(head: int, each: int) -> Tensor:
    """Channel indices of a head, with all heads concatenated."""
    return torch.arange(head * each, (head + 1) * each)


def _linear(linear: nn.Linear, outputs: Tensor | None = None, inputs: Tensor | None = None) -> nn.Linear:
    weight, bias = linear.weight, linear.bias
    if outputs is not None:
        weight, bias = weight[outputs], None if bias is None else bias[outputs]
    if inputs is not None:
        weight = weight[:, inputs]
    smaller = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype)
    smaller.weight.data = weight.clone()
    if bias is not None:
        smaller.bias.data = bias.clone()
    return smaller


def _conv_norm(part: ConvNorm, outputs: Tensor | None = None, inputs: Tensor | None = None) -> ConvNorm:
    """Select channels of a 1x1 convolution and its norm."""
    outputs = torch.arange(part.conv.out_channels) if outputs is None else outputs
    inputs = torch.arange(part.conv.in_channels) if inputs is None else inputs
    smaller = ConvNorm(len(inputs), len(outputs)).to(part.conv.weight.device, part.conv.weight.dtype)
    smaller.conv.weight.data = part.conv.weight[outputs][:, inputs].clone()
    for name, values in part.norm.state_dict().items():
        if values.ndim:
            getattr(smaller.norm, name).data.copy_(values[outputs])
    return smaller.train(part.training)
