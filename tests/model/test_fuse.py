"""Folding keeps the outputs and does not change its argument."""

import copy

import pytest
import torch

import shvit
from conftest import randomize_norms, tiny_architecture
from shvit.model.config import VARIANTS
from shvit.model.fuse import fold


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_parity(name, distilled):
    model = randomize_norms(shvit.create_model(name, num_classes=10, distilled=distilled)).double().eval()
    images = torch.randn(2, 3, 97, 161, dtype=torch.float64)
    expected = model(images)
    error = (shvit.fuse(model)(images) - expected).abs().max() / expected.abs().max()
    assert error < 1e-9


def test_everything_foldable_is_folded():
    folded = shvit.fuse(shvit.create_model("shvit_s1", distilled=True))
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    assert folded.distillation_head is None
    assert isinstance(folded.head, torch.nn.Linear)
    assert isinstance(folded.stages[0].blocks[0].local, torch.nn.Conv2d)
    assert folded.stages[1].blocks[0].mixer.branch.scale == 1.0


def test_the_argument_is_untouched():
    model = randomize_norms(tiny_architecture(3, distilled=True).build())
    before = copy.deepcopy(model.state_dict())
    folded = shvit.fuse(model)
    assert folded is not model
    assert model.training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


def test_folding_twice_changes_nothing():
    once = shvit.fuse(randomize_norms(tiny_architecture(3).build()))
    twice = shvit.fuse(once)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(twice(images), once(images))


def test_type_and_other_channels_are_kept():
    folded = shvit.fuse(tiny_architecture(in_channels=5).build().to(torch.bfloat16))
    assert next(folded.parameters()).dtype == torch.bfloat16
    assert folded.in_channels == 5


def test_a_wrong_fold_is_caught(monkeypatch):
    model = randomize_norms(tiny_architecture(3).build())
    right = type(model.head).fold

    def wrong(self):
        folded = right(self)
        folded.bias.data[0] += 1e-6
        return folded

    monkeypatch.setattr(type(model.head), "fold", wrong)
    with pytest.raises(shvit.FuseError, match="changed the outputs"):
        shvit.fuse(model)


def test_broken_weights_are_caught():
    model = tiny_architecture(3).build()
    model.head.linear.weight.data[0, 0] = torch.nan
    with pytest.raises(shvit.FuseError):
        shvit.fuse(model)


def test_a_residual_around_anything_else_stays():
    model = tiny_architecture(3).build().eval()
    folded = fold(copy.deepcopy(model))
    assert type(folded.stages[0].blocks[0].feed_forward).__name__ == "Residual"


def test_timm_models_fold_by_their_own_code():
    model = randomize_norms(shvit.create_model("timm/repvit_m0_9", num_classes=4)).eval()
    images = torch.randn(1, 3, 96, 96)
    folded = shvit.fuse(model)
    expected = model(images)
    assert (folded(images) - expected).abs().max() < 1e-3 * expected.abs().max()
    assert sum(1 for _ in folded.modules()) < sum(1 for _ in model.modules())
