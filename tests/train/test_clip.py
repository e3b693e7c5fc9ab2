"""Adaptive gradient clipping, compared with timm."""

import copy

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad

from conftest import tiny_architecture
from shvit.train.clip import clip_adaptively


@pytest.mark.parametrize("share", [0.005, 0.02, 1000.0])
def test_gradients_match_timm(share):
    ours = tiny_architecture().build()
    for parameter in ours.parameters():
        parameter.grad = torch.randn_like(parameter) * torch.rand(()) * 0.1
    ours.head.linear.weight.grad[0] = 0
    theirs, before = copy.deepcopy(ours), [parameter.grad.clone() for parameter in ours.parameters()]
    for parameter, gradient in zip(theirs.parameters(), before, strict=True):
        parameter.grad = gradient.clone()
    clip_adaptively(ours.parameters(), share)
    adaptive_clip_grad(theirs.parameters(), share)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    changed = [not torch.equal(p.grad, was) for p, was in zip(ours.parameters(), before, strict=True)]
    assert any(changed) == (share < 1)


def test_parameters_without_gradients_do_not_change():
    network = tiny_architecture().build()
    clip_adaptively(network.parameters(), 0.01)
    assert all(parameter.grad is None for parameter in network.parameters())
