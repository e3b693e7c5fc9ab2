"""Rejects settings that the user gave but that have no effect. Imports no torch."""

from collections.abc import Collection

from ..errors import InputError
from .recipe import Recipe


def refuse_idle(recipe: Recipe, named: Collection[str], drawn: bool = True) -> None:
    """Raises InputError if a field that the user set (`named`) has no effect in the final recipe.

    `drawn` says whether some of the training images are held out for validation.
    """
    evaluations = -(-recipe.epochs // recipe.eval_every)
    rules = (  # fields, whether they have no effect, and the reason
        ("min_lr cooldown_epochs schedule_by", recipe.schedule == "step", "with --schedule step"),
        ("min_lr", recipe.min_lr > recipe.effective_lr, "above the effective learning rate"),
        ("warmup_lr", recipe.warmup_lr > recipe.effective_lr, "above the effective learning rate"),
        ("warmup_lr", not recipe.warmup_epochs, "with --warmup-epochs 0"),
        ("distillation distillation_share temperature", recipe.teacher is None, "without --teacher"),
        ("temperature", recipe.distillation == "hard", "with --distillation hard"),
        ("layout", recipe.head == "light", "with --head light"),
        ("proposals", recipe.head == "light", "with --head light"),
        ("mosaic", recipe.mosaic and recipe.epochs == 1, "with --epochs 1, since the last epoch has no mosaics"),
        ("ema_warmup", not recipe.ema, "with --ema 0"),
        ("color_jitter", recipe.color_jitter and recipe.rand_augment, "with RandAugment: add --rand-augment 0"),
        (
            "patience",
            recipe.patience and recipe.patience + 1 >= evaluations,
            f"with at most {evaluations} evaluations",
        ),
        ("val_share", not drawn, "on a dataset with its own validation split"),
    )
    for names, is_idle, where in rules:
        if is_idle and (flags := [f"--{name.replace('_', '-')}" for name in named if name in names.split()]):
            raise InputError(f"{' and '.join(flags)} {'have' if flags[1:] else 'has'} no effect {where}")
