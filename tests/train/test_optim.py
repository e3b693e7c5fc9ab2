"""The optimizer of a recipe."""

import pytest

from conftest import tiny_architecture
from shvit.train.optim import make_optimizer
from shvit.train.recipe import Recipe


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("everything", [False, True])
def test_weight_decay_on_everything(optimizer, everything):
    model = tiny_architecture().build()
    recipe = Recipe(optimizer=optimizer, weight_decay=0.05, decay_all=everything)
    groups = make_optimizer(model, recipe).param_groups
    decayed = {id(weight) for group in groups if group["weight_decay"] for weight in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
    assert norms
    assert all((id(weight) in decayed) is everything for weight in norms)
    assert {group["weight_decay"] for group in groups} == ({0.05} if everything else {0.0, 0.05})
