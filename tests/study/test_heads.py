"""Heads seen and switched off from outside are the network's own."""

import pytest
import timm
import torch
from timm.layers.config import set_fused_attn
from torch import nn

from conftest import randomize_norms, tiny_architecture
from shvit.errors import InputError
from shvit.study.heads import AttentionLayer, attention_layers, heads_off, record_attention

SIZES = {
    "vit": ("test_vit", 160),
    "swin": ("swin_tiny_patch4_window7_224", 224),
    "deit": ("deit_tiny_patch16_224", 224),
}


def of_timm(kind: str, fused: bool = True):
    """A network of two layers or so, in double precision, with lively attention; and images for it."""
    name, side = SIZES[kind]
    set_fused_attn(fused, experimental=fused)
    try:
        torch.manual_seed(0)
        depth = {"swin": {"depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}, "deit": {"depth": 2}}.get(kind, {})
        network = timm.create_model(name, num_classes=5, **depth).eval().double()
    finally:
        set_fused_attn(True, experimental=False)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
    return network, torch.randn(2, 3, side, side, dtype=torch.float64)


def seen(network, images) -> list[torch.Tensor]:
    maps = []
    with torch.no_grad(), record_attention(attention_layers(network), lambda layer, found: maps.append(found)):
        network(images)
    return maps


@pytest.mark.parametrize("kind", list(SIZES))
def test_fused_or_not_the_maps_are_those_that_the_network_multiplies_with(kind):
    network, images = of_timm(kind, fused=False)
    multiplied = []
    for layer in attention_layers(network):  # what timm itself computed, on its way through its dropout
        layer.module.attn_drop.register_forward_hook(lambda _, __, result: multiplied.append(result.detach()))
    apart = seen(network, images)
    assert len(apart) == len(multiplied) == len(attention_layers(network))
    fused, _ = of_timm(kind, fused=True)
    assert all(layer.module.fused_attn for layer in attention_layers(fused))
    fused.load_state_dict(network.state_dict())
    for one, other, own in zip(apart, seen(fused, images), multiplied, strict=True):
        torch.testing.assert_close(one, own, rtol=0, atol=1e-12)
        torch.testing.assert_close(other, own, rtol=0, atol=1e-6)
        torch.testing.assert_close(own.sum(-1), torch.ones_like(own[..., 0]))
    with torch.no_grad():
        torch.testing.assert_close(fused(images), network(images), rtol=1e-6, atol=1e-6)


def test_of_shvit():
    network = randomize_norms(tiny_architecture().build()).eval()
    layers = attention_layers(network)
    assert {layer.heads for layer in layers} == {1}
    maps = seen(network, torch.randn(2, 3, 96, 96))
    assert len(maps) == len(layers)
    assert all(found.shape[:2] == (2, 1) and found.shape[2] == found.shape[3] for found in maps)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_a_head_without_weights_in_the_projection_is_not_missed(kind):
    network, images = of_timm(kind)
    layer = attention_layers(network)[-1]
    share = layer.project.in_features // layer.heads
    layer.project.weight.data[:, share : 2 * share] = 0
    with torch.no_grad():
        whole = network(images)
        with heads_off({layer: [1]}):
            assert torch.equal(network(images), whole)
        with heads_off({layer: [0]}):
            assert not torch.allclose(network(images), whole)
        assert torch.equal(network(images), whole)


def test_heads_of_a_map_are_its_first_channels():
    network = randomize_norms(tiny_architecture().build()).eval()
    layer = attention_layers(network)[0]
    read = []
    layer.project.register_forward_hook(lambda _, inputs, __: read.append(inputs[0]))
    with torch.no_grad():
        network(images := torch.randn(2, 3, 64, 64))
        with heads_off({layer: [0]}):
            network(images)
    assert not read[1][:, : layer.channels].any()
    assert torch.equal(read[1][:, layer.channels :], read[0][:, layer.channels :])


def test_what_is_not_there_is_refused():
    network, _ = of_timm("vit")
    layer = attention_layers(network)[0]
    with pytest.raises(InputError, match=rf"has heads 0 to {layer.heads - 1}, got 7"), heads_off({layer: [0, 7]}):
        pass
    with pytest.raises(InputError, match="no attention layers found in Linear"):
        attention_layers(nn.Linear(2, 2))


def test_hooks_are_gone_afterwards_also_after_an_error():
    network, images = of_timm("vit")
    layers = attention_layers(network)
    with pytest.raises(RuntimeError), record_attention(layers, lambda *_: None), heads_off({layers[0]: [0]}):
        network(images[:, :2])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_an_adapter_lists_the_layers_of_any_network():
    class Own(nn.Module):
        def forward(self, x):
            return self.out(torch.softmax(x @ x.transpose(1, 2), -1) @ x)

        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, 4)

    network = Own()
    layer = AttentionLayer("only", network, 1, network.out)
    maps = []
    x = torch.randn(2, 3, 4)
    with record_attention([layer], lambda _, found: maps.append(found)):
        network(x)
    torch.testing.assert_close(maps[0][:, 0], torch.softmax(x @ x.transpose(1, 2), -1))
