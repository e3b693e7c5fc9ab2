"""The learning rate of every epoch and the EMA weights, compared with the authors' code."""

import math

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

from shvit.errors import InputError
from shvit.train.optim import make_schedule, schedule_time
from shvit.train.recipe import Recipe
from shvit.train.recipes import RECIPES

PUBLISHED = {
    "scratch": (300, 4e-3, 1e-5, 1e-6),
    "distill": (300, 4e-3, 1e-5, 1e-6),
    "highres": (30, 4e-5, 2e-7, 2e-8),
    "highres-paper": (30, 4e-3, 1e-5, 1e-6),
}
"""Epochs, learning rate, minimum and warm-up learning rate of the authors. All have 5 epochs of warm-up."""


def sgd(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)


def learning_rates(recipe: Recipe, steps: int = 3) -> list[list[float]]:
    """The learning rate of each step of each epoch."""
    optimizer = sgd(recipe.effective_lr)
    schedule = make_schedule(optimizer, recipe, steps)
    found = []
    for epoch in range(recipe.epochs):
        found.append([])
        for step in range(steps):
            schedule.step_update(schedule_time(recipe, epoch, step / steps, steps))
            found[-1].append(optimizer.param_groups[0]["lr"])
    return found


def by_hand(epochs: int, lr: float, least: float, first: float, epoch: int) -> float:
    """The schedule is updated at the end of an epoch, with the number of that epoch."""
    time = max(0, epoch - 1)
    if time < 5:
        return first + time * (lr - first) / 5
    return least + (lr - least) * (1 + math.cos(math.pi * time / epochs)) / 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_epoch_of_the_published_recipes_has_the_authors_learning_rate(name):
    epochs, lr, least, first = PUBLISHED[name]
    optimizer = sgd(lr)
    timms = CosineLRScheduler(optimizer, epochs, lr_min=least, warmup_t=5, warmup_lr_init=first)
    found = learning_rates(RECIPES[name]())
    assert len(found) == epochs
    for epoch, steps in enumerate(found):
        assert len(set(steps)) == 1
        assert steps[0] == pytest.approx(by_hand(epochs, lr, least, first, epoch), rel=1e-9)
        assert steps[0] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        timms.step(epoch)  # at the end of an epoch, as in the authors' code


def test_the_learning_rates_of_highres_as_numbers():
    found = learning_rates(RECIPES["highres"]())
    shown = [f"{found[epoch][0]:.3g}" for epoch in (0, 1, 10, 15, 20, 25, 29)]
    assert shown == ["2e-08", "2e-08", "3.18e-05", "2.22e-05", "1.2e-05", "4e-06", "6.35e-07"]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("by", ["epoch", "step"])
@pytest.mark.parametrize("cooldown", [1, 3])
def test_cooldown_epochs_use_the_minimum_learning_rate(schedule, by, cooldown):
    recipe = Recipe(epochs=12, schedule=schedule, schedule_by=by, cooldown_epochs=cooldown, warmup_epochs=2)
    found = [lr for epoch in learning_rates(recipe, 5) for lr in epoch]
    at_least = [lr == pytest.approx(recipe.min_lr) for lr in found]
    assert at_least == [False] * 5 * (12 - cooldown) + [True] * 5 * cooldown


def test_by_step_the_learning_rate_changes_at_every_step():
    recipe = Recipe(epochs=6, schedule_by="step", warmup_epochs=2)
    found = [lr for epoch in learning_rates(recipe, 4) for lr in epoch]
    assert found[0] == recipe.warmup_lr
    assert found[:8] == sorted(set(found[:8]))
    assert found[8:] == sorted(set(found[8:]), reverse=True)


def test_by_epoch_a_fractional_cooldown_is_refused():
    with pytest.raises(InputError, match="cooldown_epochs must be a whole number with schedule_by epoch"):
        make_schedule(sgd(1.0), Recipe(cooldown_epochs=0.5), 3)


@pytest.mark.parametrize("by", ["epoch", "step"])
def test_the_step_schedule_divides_by_10_at_its_epochs(by):
    found = learning_rates(Recipe(epochs=12, schedule="step", schedule_by=by, warmup_epochs=0), 4)
    first = found[0][0]
    assert [round(math.log10(first / epoch[1])) for epoch in found] == [0] * 8 + [1] * 3 + [2]
