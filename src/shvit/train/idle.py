"""Settings that have no effect beside others: refused where the user names them. Imports no torch."""

from collections.abc import Callable, Iterable

from ..errors import InputError
from .recipe import Recipe

IDLE: tuple[tuple[tuple[str, ...], Callable[[Recipe, bool], bool], str], ...] = (
    (
        ("min_rate", "cooldown_epochs", "schedule_by"),
        lambda recipe, _: recipe.schedule == "step",
        "with --schedule step",
    ),
    (("min_rate",), lambda recipe, _: recipe.min_rate > recipe.effective_rate, "above the effective learning rate"),
    (
        ("warmup_rate",),
        lambda recipe, _: recipe.warmup_rate > recipe.effective_rate,
        "above the effective learning rate",
    ),
    (("warmup_rate",), lambda recipe, _: not recipe.warmup_epochs, "with --warmup-epochs 0"),
    (
        ("distillation", "distillation_share", "temperature"),
        lambda recipe, _: recipe.teacher is None,
        "without a --teacher",
    ),
    (("temperature",), lambda recipe, _: recipe.distillation == "hard", "with --distillation hard"),
    (("ema_warmup",), lambda recipe, _: not recipe.ema, "with --ema 0"),
    (
        ("color_jitter",),
        lambda recipe, _: bool(recipe.color_jitter and recipe.rand_augment),
        "with RandAugment: give --rand-augment 0 as well",
    ),
    (("val_share",), lambda _, drawn: not drawn, "on data that has validation images of its own"),
)
"""Fields; whether none of them has an effect, of a recipe and of data whose validation images are drawn or not; and how
to say so."""


def refuse_idle(recipe: Recipe, named: Iterable[str], drawn: bool = True) -> None:
    """Raises InputError where a field that the user named has no effect.

    Args:
        recipe: As it will be used.
        named: Fields that the user set.
        drawn: Whether the validation images are drawn from the training images.
    """
    given = list(named)
    for names, is_idle, where in IDLE:
        if (idle := [name for name in given if name in names]) and is_idle(recipe, drawn):
            flags = [f"--{name.replace('_', '-')}" for name in idle]
            raise InputError(f"{' and '.join(flags)} {'have' if idle[1:] else 'has'} no effect {where}")
