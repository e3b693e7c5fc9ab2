"""Adapts a recipe to a smaller dataset or fewer epochs than in the published training. Imports no torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import counted
from .recipe import OBJECT_TASKS, Recipe
from .recipes import RECIPES, TASK_RECIPES, recipe_for

PUBLISHED_IMAGES, PUBLISHED_SHARE = 1_281_167, 0.5
"""Training images of ImageNet-1K, and the fraction of the published budget below which `fit` changes a recipe."""
LIGHT_EPOCHS, FULL_EPOCHS = 30, 150
"""Augmentation is light in runs of up to `LIGHT_EPOCHS` epochs, and full in runs of at least `FULL_EPOCHS` epochs."""
ENOUGH_STEPS, LIGHT_STEPS = 1400, 4000
"""Minimum number of optimizer steps. With fewer, the batch size is halved, down to the minimum of the recipe.
`LIGHT_STEPS` is the minimum for the light detector."""
MIN_BATCH = {"finetune": 16, "small": 4}
"""Minimum batch sizes. All other recipes: 32."""
MUON_EPOCHS, MUON_SIZE = 30, 128
"""Maximum number of epochs and minimum image size for which `fit` selects Muon.

The cost of a Muon step does not depend on the image size, so it is relatively high for small images.
"""
DETECTION_IMAGES, DETECTION_EPOCHS = 10_000, (20, 240)
"""Recipe `small` with the light detector: number of images in all epochs together, and the range of epochs."""
TUNING_IMAGES, TUNING_EPOCHS = (5_000, 1_000_000), (5, 40)
"""Fine-tuning: least and greatest number of images in all epochs together, and of epochs."""
EMA_SHARE = 0.02
"""Fraction of the run that the EMA averages over."""


def fit(recipe: Recipe, images: int, named: frozenset[str] = frozenset(), image_size: int | None = None) -> Recipe:
    """Adapt a recipe to a number of training images. `choices` lists the changes with their reasons.

    `lr_batch` is not changed, so `lr` has the same meaning whether it was fitted or set by the user.

    Args:
        recipe: The recipe, with settings for its published budget (for classifiers, 1.28 million images).
        images: Number of training images.
        named: Fields that the user set. These fields are not changed.
        image_size: Image size in pixels, used if the recipe has none. Default: 128.
    """
    if any(recipe.name in TASK_RECIPES[task] for task in OBJECT_TASKS):
        recipe = replace(recipe, **_detection_epochs(recipe, images, named))
        changes = _fit_objects(recipe, images, named)
    else:
        recipe = replace(recipe, **_epochs(recipe, images, named))
        changes = _fit_labels(recipe, images, named, recipe.image_size or image_size or MUON_SIZE)
    return replace(recipe, **{key: value for key, value in changes.items() if key not in named})


def _epochs(recipe: Recipe, images: int, named: frozenset[str]) -> dict[str, Any]:
    """More epochs for fine-tuning on few images, fewer on many images."""
    if recipe.name != "finetune" or "epochs" in named:
        return {}
    few, many = (round(total / max(1, images)) for total in TUNING_IMAGES)
    least, most = TUNING_EPOCHS
    epochs = min(max(recipe.epochs, min(few, most)), max(many, least))
    share = epochs / recipe.epochs
    changed = {key: getattr(recipe, key) * share for key in ("warmup_epochs", "cooldown_epochs") if key not in named}
    return {"epochs": epochs, **changed}


def _detection_epochs(recipe: Recipe, images: int, named: frozenset[str]) -> dict[str, Any]:
    """More epochs for the light detector on few images, fewer on many images."""
    if recipe.name != "small" or recipe.head != "light" or "epochs" in named:
        return {}
    least, most = DETECTION_EPOCHS
    return {"epochs": min(max(least, round(DETECTION_IMAGES / max(1, images))), most)}


def _fit_labels(recipe: Recipe, images: int, named: frozenset[str], image_size: int) -> dict[str, Any]:
    """Changes to a classifier's recipe if the budget is below half of the published budget. Otherwise empty."""
    published = RECIPES[recipe.name]()
    if images * recipe.epochs >= PUBLISHED_SHARE * PUBLISHED_IMAGES * published.epochs:
        return {}
    batch = recipe.batch_size if "batch_size" in named else _batch(recipe, images, 2)
    changes: dict[str, Any] = {"batch_size": batch}
    short = recipe.epochs <= MUON_EPOCHS and image_size >= MUON_SIZE
    wanted = recipe.optimizer == "muon" if "optimizer" in named else short
    muon = batch < published.batch_size and wanted and recipe.name == "scratch"  # measured only from random weights
    if muon:
        changes |= {"optimizer": "muon", "schedule": "linear"}
    if batch < published.batch_size:
        # proportional to the square root of the batch size; the values at 64 were measured in full runs (LOG.md)
        at_64 = 4e-3 if muon else 3e-3
        share = published.effective_lr / Recipe().effective_lr
        changes |= {
            "lr": min(4e-3, at_64 * math.sqrt(batch / 64)) * share * recipe.lr_batch / batch,
            **_ema(recipe, images, batch),
            "weight_decay": 2 * recipe.weight_decay,
            "clip": 0.0,
        }
    tenth = 0.1 * recipe.epochs
    changes["warmup_epochs"] = tenth if muon else min(recipe.warmup_epochs, tenth)
    if published.schedule_by == "epoch" and ("schedule_by" not in named or recipe.schedule_by == "step"):
        changes["schedule_by"] = "step"
    strength = min(1.0, max(0.0, (recipe.epochs - LIGHT_EPOCHS) / (FULL_EPOCHS - LIGHT_EPOCHS)))
    if strength < 1:
        scaled = "color_jitter", "mixup", "cutmix", "random_erasing"
        changes |= {
            "repeats": 1,
            "crop_min": recipe.crop_min * strength + 0.35 * (1 - strength),
            "interpolation": "random",
            "rand_augment": round(recipe.rand_augment * strength),
            **{name: getattr(recipe, name) * strength for name in scaled},
        }
    return changes


def _fit_objects(recipe: Recipe, images: int, named: frozenset[str]) -> dict[str, Any]:
    """The changes to a detector's recipe. With few steps, `small` gets smaller batches. `coco_1x` is not changed."""
    if recipe.name != "small":
        return {}
    batch = recipe.batch_size if "batch_size" in named else _batch(recipe, images, 1)
    published = recipe_for("small", recipe.head)("")
    return {
        "batch_size": batch,
        "lr": published.effective_lr * math.sqrt(batch / published.batch_size) * recipe.lr_batch / batch,
        **_ema(recipe, images, batch),
        "warmup_epochs": min(recipe.warmup_epochs, 0.1 * recipe.epochs),
    }


def _enough(recipe: Recipe) -> int:
    return LIGHT_STEPS if recipe.head == "light" else ENOUGH_STEPS


def _minimum(recipe: Recipe) -> int:
    return MIN_BATCH.get(recipe.name, 32)


def _batch(recipe: Recipe, images: int, batches: int) -> int:
    """Halve the batch size until the run has enough steps, but not below the recipe's minimum.

    Then halve it further, if necessary, until an epoch has at least `batches` batches.
    """
    batch, minimum = recipe.batch_size, _minimum(recipe)
    while batch > minimum and images * recipe.epochs < _enough(recipe) * batch:
        batch //= 2
    while batch > batches and images < batches * batch:
        batch //= 2
    return batch


def _ema(recipe: Recipe, images: int, batch: int) -> dict[str, Any]:
    if not recipe.ema:
        return {}
    steps = EMA_SHARE * max(1, images // batch) * recipe.epochs
    return {"ema": min(recipe.ema, 1 - 1 / max(10.0, steps)), "ema_warmup": True}


@dataclass(frozen=True)
class Choice:
    """A setting that differs from the published one because of the dataset or the number of epochs."""

    field: str
    """Name of the recipe's field. The learning rate is listed as `effective_lr`."""
    published: Any
    used: Any
    reason: str


def choices(published: Recipe, fitted: Recipe, images: int, named: Iterable[str] = ()) -> tuple[Choice, ...]:
    """The changes that `fit` made, and their reasons. Settings with the same reason are adjacent.

    Args:
        published: The published recipe for the same network.
        fitted: The result of `fit`.
        images: Number of training images.
        named: Fields that the user set. They are left out of the result.
    """
    before, after = published.to_dict(), fitted.to_dict()
    hidden = {*named, *(["effective_lr"] if "lr" in named else [])}
    return tuple(
        Choice(name, before[name], after[name], reason)
        for names, reason in _reasons(published, fitted, images).items()
        for name in names.split()
        if name not in hidden and before[name] != after[name]
    )


def _reasons(published: Recipe, fitted: Recipe, images: int) -> dict[str, str]:
    """Groups of fields, each with the reason why `fit` changes them."""
    budget = f"{counted(images, 'image')} x {counted(fitted.epochs, 'epoch')}"
    steps = images * fitted.epochs // published.batch_size
    minimum = _minimum(published)
    halved = f"until there are {_enough(fitted):,} steps, but not below {minimum}"
    if fitted.batch_size < minimum:
        halved = f"until {counted(images, 'image')} fill a batch"
    few, many = TUNING_IMAGES
    shown = f"{few:,} to {many:,} images" if fitted.head is None else f"{DETECTION_IMAGES:,} images"
    averaged = round(1 / (1 - fitted.ema)) if fitted.ema < 1 else 0
    warmup = "a tenth of the epochs"
    if fitted.optimizer != "muon":
        warmup = "shortened in proportion to the epochs, and to at most a tenth of them"
    muon = f"Muon with a linear schedule beats AdamW in runs of up to {MUON_EPOCHS} epochs from random weights"
    augmentation = "repeats crop_min interpolation rand_augment color_jitter mixup cutmix random_erasing"
    return {
        "epochs": f"few images need more epochs, many need fewer: {shown} in all epochs together",
        "batch_size": f"{budget} give {counted(steps, 'step')} of {published.batch_size:,} images; halved {halved}",
        "optimizer schedule": muon,
        "effective_lr": f"proportional to the square root of the batch size; --lr is for a batch of {fitted.lr_batch}",
        "weight_decay clip": "smaller batches use twice the weight decay and no gradient clipping",
        "ema ema_warmup": f"the EMA averages over about {averaged} steps, {EMA_SHARE:.0%} of the run",
        "warmup_epochs": warmup,
        "schedule_by": "with few epochs, the learning rate changes at every step",
        augmentation: f"too few epochs for the full augmentation, which needs {FULL_EPOCHS} epochs",
    }
