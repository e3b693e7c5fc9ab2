"""Fits a recipe to the data: a budget smaller than the published one needs other settings. Imports no torch."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from .recipe import RECIPES, TASK_RECIPES, Recipe, small

PUBLISHED_IMAGES, PUBLISHED_SHARE = 1_281_167, 0.5
"""Training images of ImageNet-1K, and the share of its budget from which a recipe stays as it was published."""
LIGHT_EPOCHS, FULL_EPOCHS = 30, 150
"""Up to the first, an image is seen too seldom for strong augmentation to pay; from the second on, it pays in full."""
ENOUGH_STEPS, LEAST_BATCH, LEAST_OBJECTS = 1400, 32, 4
"""With fewer optimizer steps than the first a smaller batch learns more, down to the second, or the third of a
detector; below, only for want of images."""
MUON_EPOCHS, MUON_SIDE = 30, 128
"""Muon learns more than AdamW in at most so many epochs. Its steps cost the same at every image size, so images need at
least so many pixels a side."""
AVERAGED_SHARE = 0.02
"""Share of the run over which the weights are averaged."""


def fit(recipe: Recipe, images: int, named: frozenset[str] = frozenset(), image_size: int | None = None) -> Recipe:
    """The recipe for this many training images; `choices` lists what it changes, and why.

    `rate_batch` stays the recipe's, so that a learning rate means the same whether it was fitted or named.

    Args:
        recipe: Written for the budget it was published with: for classifiers, ImageNet-1K's 1.28 million images.
        images: Training images there are.
        named: Fields that the user set, which stay as they are.
        image_size: Side of the images in pixels, for a recipe that has none. Default: at least 128.
    """
    if recipe.name in TASK_RECIPES["detect"]:
        changes = _fit_objects(recipe, images, named)
    else:
        changes = _fit_labels(recipe, images, named, recipe.image_size or image_size or MUON_SIDE)
    return replace(recipe, **{key: value for key, value in changes.items() if key not in named})


def _fit_labels(recipe: Recipe, images: int, named: frozenset[str], image_size: int) -> dict[str, Any]:
    """What a small budget changes; nothing from half of the published budget on."""
    published = RECIPES[recipe.name]()
    if images * recipe.epochs >= PUBLISHED_SHARE * PUBLISHED_IMAGES * published.epochs:
        return {}
    batch = recipe.batch_size if "batch_size" in named else _batch(recipe, images, LEAST_BATCH, 2)
    changes: dict[str, Any] = {"batch_size": batch}
    muon = batch < published.batch_size and _takes_muon(recipe, named, image_size)
    if muon:
        changes |= {"optimizer": "muon", "schedule": "linear"}
    if batch < published.batch_size:
        # the learning rate goes with the root of the batch; the values at 64 are what was run to the end (LOG.md)
        at_64 = 4e-3 if muon else 3e-3
        share = published.effective_rate / Recipe().effective_rate
        changes |= {
            **_rate(recipe, min(4e-3, at_64 * math.sqrt(batch / 64)) * share, batch),
            **_average(recipe, images, batch),
            "weight_decay": 2 * recipe.weight_decay,
            "clip": 0.0,
        }
    tenth = 0.1 * recipe.epochs
    changes["warmup_epochs"] = tenth if muon else min(recipe.warmup_epochs, tenth)
    if published.schedule_by == "epoch" and ("schedule_by" not in named or recipe.schedule_by == "step"):
        changes["schedule_by"] = "step"
    strength = min(1.0, max(0.0, (recipe.epochs - LIGHT_EPOCHS) / (FULL_EPOCHS - LIGHT_EPOCHS)))
    if strength < 1:
        changes |= {
            "repeats": 1,
            "crop_min": recipe.crop_min * strength + 0.35 * (1 - strength),
            "interpolation": "random",
            "rand_augment": round(recipe.rand_augment * strength),
            **{
                name: getattr(recipe, name) * strength for name in ("color_jitter", "mixup", "cutmix", "random_erasing")
            },
        }
    return changes


def _takes_muon(recipe: Recipe, named: frozenset[str], image_size: int) -> bool:
    """Whether Muon is named or pays: it was measured for networks that start from fresh weights."""
    if recipe.name != "scratch":
        return False
    if "optimizer" in named:
        return recipe.optimizer == "muon"
    return recipe.epochs <= MUON_EPOCHS and image_size >= MUON_SIDE


def _fit_objects(recipe: Recipe, images: int, named: frozenset[str]) -> dict[str, Any]:
    """`small` with smaller batches where there would be few steps; `coco_1x` stays as it was published."""
    if recipe.name != "small":
        return {}
    batch = recipe.batch_size if "batch_size" in named else _batch(recipe, images, LEAST_OBJECTS, 1)
    published = small()
    return {
        "batch_size": batch,
        **_rate(recipe, published.effective_rate * math.sqrt(batch / published.batch_size), batch),
        **_average(recipe, images, batch),
        "warmup_epochs": min(recipe.warmup_epochs, 0.1 * recipe.epochs),
    }


def _batch(recipe: Recipe, images: int, least: int, batches: int) -> int:
    """Halved for the sake of steps, down to `least`; below, until an epoch has so many batches."""
    batch = recipe.batch_size
    while batch > least and images * recipe.epochs < ENOUGH_STEPS * batch:
        batch //= 2
    while batch > batches and images < batches * batch:
        batch //= 2
    return batch


def _rate(recipe: Recipe, effective: float, batch: int) -> dict[str, Any]:
    return {"rate": effective * recipe.rate_batch / batch}


def _average(recipe: Recipe, images: int, batch: int) -> dict[str, Any]:
    if not recipe.ema:
        return {}
    steps = AVERAGED_SHARE * max(1, images // batch) * recipe.epochs
    return {"ema": min(recipe.ema, 1 - 1 / max(10.0, steps)), "ema_warmup": True}


@dataclass(frozen=True)
class Choice:
    """A setting that is not the published one because of the data or the number of epochs."""

    field: str
    """Of the recipe; the learning rate comes as `effective_rate`."""
    published: Any
    used: Any
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choices(published: Recipe, fitted: Recipe, images: int, named: Iterable[str] = ()) -> tuple[Choice, ...]:
    """What `fit` chose, and why; settings of one reason follow one another.

    Args:
        published: The recipe as it was published, for the same network.
        fitted: What became of it.
        images: Training images there are.
        named: Fields that the user set, which nobody chose.
    """
    before, after = published.to_dict(), fitted.to_dict()
    hidden = {*named, *(["effective_rate"] if "rate" in named else [])}
    return tuple(
        Choice(name, before[name], after[name], reason)
        for names, reason in _reasons(published, fitted, images)
        for name in names
        if name not in hidden and before[name] != after[name]
    )


def _reasons(published: Recipe, fitted: Recipe, images: int) -> list[tuple[tuple[str, ...], str]]:
    """Fields, and why `fit` changes them."""
    passes = f"{images:,} images x {fitted.epochs} epochs"
    steps = images * fitted.epochs // published.batch_size
    least = LEAST_OBJECTS if published.name == "small" else LEAST_BATCH
    halved = f"halved until there are {ENOUGH_STEPS:,}, but not below {least}"
    if fitted.batch_size < least:
        halved = f"halved until {images:,} images fill a batch"
    averaged = round(1 / (1 - fitted.ema)) if fitted.ema < 1 else 0
    return [
        (("batch_size",), f"{passes} give only {steps:,} steps of {published.batch_size:,}; {halved}"),
        (
            ("optimizer", "schedule"),
            f"Muon with a linear schedule learns more than AdamW in up to {MUON_EPOCHS} epochs from fresh weights",
        ),
        (("effective_rate",), f"goes with the root of the batch size; --rate is for {fitted.rate_batch} images"),
        (("weight_decay", "clip"), "twice the decay and no clipping with smaller batches"),
        (("ema", "ema_warmup"), f"the average covers about {averaged} steps, {AVERAGED_SHARE:.0%} of the run"),
        (
            ("warmup_epochs",),
            "a tenth of the epochs"
            if fitted.optimizer == "muon"
            else "as many times fewer as the epochs, and a tenth of them at most",
        ),
        (("schedule_by",), "few epochs: the learning rate changes at each step"),
        (
            (
                "repeats",
                "crop_min",
                "interpolation",
                "rand_augment",
                "color_jitter",
                "mixup",
                "cutmix",
                "random_erasing",
            ),
            f"{fitted.epochs} epochs show an image too seldom for the full augmentation, which takes {FULL_EPOCHS}",
        ),
    ]
