"""The training precision of a network on a machine."""

import copy

import pytest
import torch
from timm.layers.create_conv2d import create_conv2d

import shvit
from conftest import tiny_architecture
from shvit.data.transforms import Preprocess
from shvit.errors import InputError
from shvit.model.architecture import Architecture
from shvit.modelfile import ModelFile
from shvit.train import precision
from shvit.train.recipe import Recipe


@pytest.mark.parametrize(
    ("detector", "size", "narrow"),
    [(None, 32, True), (None, 64, False), ("retinanet", 64, True), ("retinanet", 128, False), ("mask_rcnn", 64, False)],
)
def test_maps_narrower_than_a_stride_are_found(detector, size, narrow):
    model = tiny_architecture(detector=detector).build().train()
    assert precision.steps_over_maps(model, size) is narrow
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_network_without_strided_convolutions():
    assert not precision.steps_over_maps(shvit.create_model("timm/test_vit", 2), 160)


def test_a_cpu_learns_in_bf16_only_where_its_gradients_are_right(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)

    def start(size: int, fit: str = "crop") -> ModelFile:
        return ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(size, fit=fit))

    assert precision.pick_training_precision(Recipe(), "cpu", start(64)) == "bf16"
    assert precision.pick_training_precision(Recipe(), "cpu", start(32)) == "fp32"
    assert precision.pick_training_precision(Recipe(), "cpu", start(90, "shorter")) == "bf16"
    assert precision.pick_training_precision(Recipe(precision="fp32"), "cpu", start(64)) == "fp32"
    with pytest.raises(InputError, match="bf16 training on a CPU gives wrong gradients with images of 32 pixels"):
        precision.pick_training_precision(Recipe(precision="bf16"), "cpu", start(32))


@pytest.mark.parametrize("size", [64, 96])
def test_other_gradients_in_bf16_are_finite_whatever_was_in_memory(size):
    model = Architecture("shvit_s1", 4).build().train().to(memory_format=torch.channels_last)
    assert not precision.steps_over_maps(model, size)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
    images = torch.randn(4, 3, size, size).contiguous(memory_format=torch.channels_last)
    noise = [torch.full((2**power,), torch.nan) for power in range(2, 18) for _ in range(20)]
    del noise
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images).float().logsumexp(1).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_slow_gradients_are_computed_in_fp32():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(8, 8, 3, 2, 1, groups=8), create_conv2d(8, 8, 5, padding="same", depthwise=True)
    )
    plain, images = copy.deepcopy(network), torch.randn(2, 8, 9, 9)
    exact = torch.autograd.grad(plain(images).square().sum(), list(plain.parameters()))
    precision.avoid_slow_gradients(network)
    assert network(images).equal(plain(images))
    network = copy.deepcopy(network)  # as for the EMA
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(images).dtype == torch.bfloat16
        assert network(images).dtype == torch.float32
        assert network(images.bfloat16()).dtype == torch.bfloat16
        found = torch.autograd.grad(network(images).square().sum(), list(network.parameters()))
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(network.bfloat16()(images.bfloat16()), plain.bfloat16()(images.bfloat16()))


def test_fast_gradients_stay_in_bf16():
    model = shvit.create_model("shvit_s1", 4)
    precision.avoid_slow_gradients(model)
    changed = [part for part in model.modules() if isinstance(part, precision._Fp32Conv)]
    assert {(part.groups, part.stride) for part in changed} == {(512, (2, 2)), (896, (2, 2))}
    assert shvit.fuse(model.eval())(torch.rand(1, 3, 64, 64)).isfinite().all()
