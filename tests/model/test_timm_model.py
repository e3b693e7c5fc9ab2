"""timm's models are folded: branches by timm's code, then every norm after a convolution."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

import shvit
from conftest import randomize_norms
from shvit.model.timm_model import fold_norms

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("mobilenetv3_small_100", 0),
        ("mobilenetv4_conv_small", 0),
        pytest.param("efficientvit_m5", 0, marks=pytest.mark.slow),
        pytest.param("levit_128s", 0, marks=pytest.mark.slow),
        pytest.param("levit_192", 0, marks=pytest.mark.slow),
        pytest.param("repvit_m0_9", 0, marks=pytest.mark.slow),
        pytest.param("fastvit_t8", 0, marks=pytest.mark.slow),
        pytest.param("starnet_s4", 1, marks=pytest.mark.slow),  # the norm before its head follows no convolution
        pytest.param("mobilevitv2_100", 0, marks=pytest.mark.slow),
    ],
)
def test_the_peers_of_the_benchmark_fold(name, left):
    model = randomize_norms(shvit.create_model(f"timm/{name}")).eval()
    folded = shvit.fuse(model)
    assert sum(isinstance(module, NORMS) for module in folded.modules()) == left
    size = model.image_size
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = model(images)
        assert (folded(images) - expected).abs().max() < 1e-3 * expected.abs().max()


class Forked(nn.Module):
    """A convolution whose output is used twice, one that runs twice, a norm with an activation, and a simple pair."""

    def __init__(self):
        super().__init__()
        self.read_twice, self.read_twice_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.run_twice, self.run_twice_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.activated, self.activated_norm = nn.Conv2d(3, 3, 1), BatchNormAct2d(3)
        self.pair = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x):
        y = self.read_twice(x)
        x = y + self.read_twice_norm(y)
        x = self.run_twice(self.run_twice_norm(self.run_twice(x)))
        x = self.activated_norm(self.activated(x))
        return self.pair(x)


def test_only_norms_that_alone_read_a_convolution_fold():
    model = randomize_norms(Forked()).eval()
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(images)
        fold_norms(model, images)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    left = {name for name, module in model.named_modules() if isinstance(module, NORMS)}
    assert left == {"read_twice_norm", "run_twice_norm"}
    assert isinstance(model.activated_norm, nn.ReLU)
    assert isinstance(model.pair[1], nn.Identity)
