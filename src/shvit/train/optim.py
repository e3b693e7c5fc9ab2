"""Optimizer and learning-rate schedule of a recipe."""

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler

from ..errors import InputError
from .muon import Muon
from .precision import pick_precision
from .recipe import Recipe


def make_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer. Biases and norms have no weight decay unless `decay_all` is set.

    Raises:
        InputError: timm does not have the optimizer, or the optimizer does not accept these settings.
    """
    known = sorted({"muon", *map(str, list_optimizers())})
    if recipe.optimizer not in known:
        raise InputError(f"optimizer must be one of {', '.join(known)}, got {recipe.optimizer!r}")
    slow = {id(weight) for weight in model.backbone.parameters()} if recipe.backbone_lr != 1 else set()  # pyright: ignore
    options: dict[str, Any] = {} if recipe.beta2 is None else {"betas": (0.9, recipe.beta2)}
    lr, decay = recipe.effective_lr, recipe.weight_decay
    if recipe.optimizer == "muon":
        groups = _groups(model, recipe)
        groups = slowed(groups, slow, recipe.backbone_lr)
        device = str(next(model.parameters()).device)
        dtype = torch.bfloat16 if pick_precision(recipe, device) == "bf16" else None
        return Muon(groups, lr, decay, dtype=dtype, **options)
    if recipe.optimizer == "adamw":
        options["fused"] = next(model.parameters()).device.type in ("cpu", "cuda")  # one pass over memory, not ten
    weights: Any = model
    if slow:
        weights = slowed(_groups(model, recipe), slow, recipe.backbone_lr)
    try:
        optimizer = create_optimizer_v2(
            weights, recipe.optimizer, lr=lr, weight_decay=decay, filter_bias_and_bn=not recipe.decay_all, **options
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer {recipe.optimizer} does not take these settings: {error}") from None
    if recipe.beta2 is not None and "betas" not in optimizer.defaults:  # timm has ignored beta2
        raise InputError(f"beta2 has no effect with optimizer {recipe.optimizer}, which has no second moment")
    return optimizer


def _groups(model: torch.nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The trained parameters, those without weight decay in a group of their own."""
    if recipe.decay_all:
        return [{"params": [weight for weight in model.parameters() if weight.requires_grad]}]
    return param_groups_weight_decay(model, recipe.weight_decay)


def slowed(groups: list[dict[str, Any]], slow: Collection[int], scale: float) -> list[dict[str, Any]]:
    """Divide parameter groups: parameters whose `id` is in `slow` get `scale` times the learning rate."""
    parts = [
        {**group, "params": [weight for weight in group["params"] if (id(weight) in slow) == is_slow]}
        | ({"lr_scale": scale} if is_slow else {})
        for is_slow in (False, True)
        for group in groups
    ]
    return [part for part in parts if part["params"]]


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> Scheduler:
    """The learning rate over `schedule_time`: linear warm-up, then decay, then cool-down at the minimum.

    Raises:
        InputError: `schedule_by` is epoch, but the cool-down is not a whole number of epochs.
    """
    if recipe.schedule_by == "epoch" and recipe.cooldown_epochs % 1:
        raise InputError(
            f"cooldown_epochs must be a whole number with schedule_by epoch, got {recipe.cooldown_epochs:g}; "
            "schedule_by step allows fractions"
        )
    warmup, cooldown = (round(epochs * steps_per_epoch) for epochs in (recipe.warmup_epochs, recipe.cooldown_epochs))
    warmup_lr = min(recipe.warmup_lr, recipe.effective_lr)
    if recipe.schedule == "step":
        return MultiStepLRScheduler(
            optimizer,
            decay_t=[round(share * recipe.epochs * steps_per_epoch) for share in (2 / 3, 11 / 12)],
            decay_rate=0.1,
            warmup_t=warmup,
            warmup_lr_init=warmup_lr,
            t_in_epochs=False,
        )
    kind = CosineLRScheduler if recipe.schedule == "cosine" else partial(PolyLRScheduler, power=1.0)
    lag = steps_per_epoch if cooldown and recipe.schedule_by == "epoch" else 0  # see `schedule_time`: one epoch late
    return kind(
        optimizer,
        t_initial=max(1, recipe.epochs * steps_per_epoch - cooldown - lag),
        lr_min=min(recipe.min_lr, recipe.effective_lr),
        warmup_t=warmup,
        warmup_lr_init=warmup_lr,
        t_in_epochs=False,
    )


def schedule_time(recipe: Recipe, epoch: int, share: float, steps_per_epoch: int) -> int:
    """The position in the schedule, in steps, after `epoch` epochs and the fraction `share` of the next epoch.

    With `schedule_by` epoch, the position is 0 in epochs 0 and 1, and `steps_per_epoch` in epoch 2. The reason is that
    the authors' code updates the schedule at the end of each epoch, with the number of the epoch that has ended.
    """
    if recipe.schedule_by == "epoch" and recipe.schedule != "step":
        return max(0, epoch - 1) * steps_per_epoch
    return round((epoch + share) * steps_per_epoch)
