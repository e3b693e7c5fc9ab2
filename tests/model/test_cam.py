"""The map finds the part of an image that decides."""

import pytest
import torch
from torch import nn

from conftest import tiny_architecture
from shvit import create_model
from shvit.model.cam import activation_maps


class Patches(nn.Module):
    """Class 0 is red light, class 1 green light: two maps of local means, and a mean over all places."""

    feature_info = ({"module": "fine"}, {"module": "coarse"})

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.AvgPool2d(8), nn.AvgPool2d(2)

    def forward(self, x):
        return self.coarse(self.fine(x)).mean((2, 3))[:, :2]


@pytest.mark.parametrize(("row", "column"), [(1, 6), (6, 2), (0, 0)])
def test_the_maximum_lies_in_the_patch_of_the_class(row, column):
    images = torch.zeros(1, 3, 64, 64)
    images[:, 0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1
    images[:, 1, 24:32, 24:32] = 5  # brighter, but of the other class
    [heat] = activation_maps(Patches(), images, torch.tensor([0]))
    assert heat.shape == (8, 8)
    assert divmod(int(heat.argmax()), 8) == (row, column)
    assert float(heat.max()) == pytest.approx(1)
    [heat] = activation_maps(Patches(), images, torch.tensor([1]))
    assert divmod(int(heat.argmax()), 8) == (3, 3)


def test_a_trained_shvit_looks_at_the_planted_patch():
    """The class is the color of a patch at a random place. A few steps suffice to learn it."""
    network = tiny_architecture(3).build()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)

    def batch(count):
        images, labels = 0.1 * torch.randn(count, 3, 128, 128, generator=generator), torch.arange(count) % 3
        places = torch.randint(0, 2, (count, 2), generator=generator)
        for image, label, (row, column) in zip(images, labels, places.tolist(), strict=True):
            image[label, 64 * row : 64 * row + 64, 64 * column : 64 * column + 64] += 2
        return images, labels, places

    for _ in range(40):
        images, labels, _ = batch(16)
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    for module in network.modules():  # statistics of the final weights, which a short training does not reach
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    images, labels, places = batch(64)
    with torch.no_grad():
        network(images)
        assert (network.eval()(images).argmax(1) == labels).float().mean() > 0.9
    heat = activation_maps(network, images, labels)
    assert heat is not None
    _, height, width = heat.shape
    peaks = heat.flatten(1).argmax(1)
    rows, columns = peaks // width * 2 // height, peaks % width * 2 // width
    hits = (rows == places[:, 0]) & (columns == places[:, 1])
    assert hits.float().mean() > 0.6  # by chance: 0.25


@pytest.mark.parametrize("name", ["timm/mobilenetv3_small_050", "timm/resnet10t"])
def test_timms_networks_have_maps(name):
    network = create_model(name, num_classes=3).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    heat = activation_maps(network, torch.randn(2, 3, 64, 64), torch.tensor([0, 2]))
    assert heat is not None
    assert heat.shape[0] == 2
    assert heat.shape[1] >= 2
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_a_plain_transformer_has_none():
    network = create_model("timm/vit_tiny_patch16_224:img_size=64:depth=2", num_classes=3).eval()
    assert activation_maps(network, torch.randn(1, 3, 64, 64), torch.tensor([0])) is None


def test_a_network_in_training_stays_in_training():
    network = tiny_architecture().build().train()
    activation_maps(network, torch.randn(1, 3, 32, 32), torch.tensor([0]))
    assert network.training
