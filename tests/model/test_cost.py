"""Parameters and multiply-accumulates match the paper's table."""

import pytest
import torch

import shvit
from conftest import tiny_architecture
from shvit.model.cost import cost, stage_costs

PAPER = {"shvit_s1": (6.3, 241), "shvit_s2": (11.4, 366), "shvit_s3": (14.2, 601), "shvit_s4": (16.5, 986)}
"""Parameters in millions, which the paper cuts off after one decimal, and MACs in millions."""


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_table(name):
    model = shvit.create_model(name)
    total = cost(model, (model.image_size, model.image_size))
    params, macs = PAPER[name]
    assert int(total.params / 1e5) / 10 == params
    assert total.macs / 1e6 == pytest.approx(macs, rel=0.002)


def test_stages_add_up():
    model = tiny_architecture(5).build()
    total, rows = cost(model, (64, 96)), stage_costs(model, (64, 96))
    assert [row.name for row in rows] == ["stem", "stage 1", "stage 2", "stage 3", "head"]
    for quantity in ("params", "macs", "activations"):
        assert sum(getattr(row, quantity) for row in rows) == getattr(total, quantity)


def test_known_layers_by_hand():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), torch.nn.Flatten(), torch.nn.Linear(32, 5)
    )
    model.in_channels = 3
    total = cost(model, (4, 4))
    assert (total.params, total.macs, total.activations) == (216 + 165, 4 * 216 + 160, 32 + 5)


def test_training_mode_is_kept():
    model = tiny_architecture().build()
    cost(model, (32, 32))
    assert model.training
