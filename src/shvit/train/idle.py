"""Settings without effect. They are rejected if the user gives them. Imports no torch."""

from collections.abc import Callable, Iterable

from ..errors import InputError
from .recipe import Recipe

IDLE: tuple[tuple[tuple[str, ...], Callable[[Recipe, bool], bool], str], ...] = (
    (
        ("min_lr", "cooldown_epochs", "schedule_by"),
        lambda recipe, _: recipe.schedule == "step",
        "with --schedule step",
    ),
    (("min_lr",), lambda recipe, _: recipe.min_lr > recipe.effective_lr, "above the effective learning rate"),
    (("warmup_lr",), lambda recipe, _: recipe.warmup_lr > recipe.effective_lr, "above the effective learning rate"),
    (("warmup_lr",), lambda recipe, _: not recipe.warmup_epochs, "with --warmup-epochs 0"),
    (
        ("distillation", "distillation_share", "temperature"),
        lambda recipe, _: recipe.teacher is None,
        "without --teacher",
    ),
    (("temperature",), lambda recipe, _: recipe.distillation == "hard", "with --distillation hard"),
    (("ema_warmup",), lambda recipe, _: not recipe.ema, "with --ema 0"),
    (
        ("color_jitter",),
        lambda recipe, _: bool(recipe.color_jitter and recipe.rand_augment),
        "with RandAugment: add --rand-augment 0",
    ),
    (("val_share",), lambda _, drawn: not drawn, "on a dataset with its own validation split"),
)
"""Groups of fields, a function that returns whether they have no effect, and the reason.

The function takes the recipe and whether the validation split is drawn from the training images.
"""


def refuse_idle(recipe: Recipe, named: Iterable[str], drawn: bool = True) -> None:
    """Raises InputError if a setting that the user gave has no effect.

    Args:
        recipe: The final recipe.
        named: Fields that the user set.
        drawn: Whether the validation images are drawn from the training images.
    """
    given = list(named)
    for names, is_idle, where in IDLE:
        if (idle := [name for name in given if name in names]) and is_idle(recipe, drawn):
            flags = [f"--{name.replace('_', '-')}" for name in idle]
            raise InputError(f"{' and '.join(flags)} {'have' if idle[1:] else 'has'} no effect {where}")
