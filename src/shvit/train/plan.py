"""The plan of a run, printed before the first step, and settings that would make the run faster."""

from ..errors import counted
from ..modelfile import ModelFile
from .recipe import Recipe
from .recipes import DEFAULT_MODEL, FROM_TRAINED, make_recipe

SMALLEST = 96
"""Smaller images are not suggested."""


def plan_lines(
    start: ModelFile, recipe: Recipe, images: str, steps: int, where: str, precision: str, compiled: bool
) -> list[str]:
    """The lines of the plan.

    Args:
        start: The network to train.
        images: The dataset in words: numbers of images and classes.
        steps: Steps per epoch.
        where: The device and, if there are several, the number of processes.
        precision: Training precision.
        compiled: Whether the network is compiled.
    """
    teacher = f", teacher {recipe.teacher}" if recipe.teacher else ""
    compiling = "compiled (the first step takes minutes)" if compiled else "not compiled"
    return [
        f"plan: {images}",
        f"  {start.architecture.name} at {start.preprocess.image_size} pixels, recipe {recipe.name}{teacher}: "
        f"{counted(recipe.epochs, 'epoch')} of {counted(steps, 'step')}, batch size {recipe.batch_size}, effective "
        f"learning rate {recipe.effective_lr:.2g}, weight decay {recipe.weight_decay:g}",
        f"  {where}, {precision}, {compiling}",
    ]


def faster_settings(recipe: Recipe, image_size: int, task: str) -> list[str]:
    """Flags that would shorten the run, each with its effect on the time."""
    faster = []
    smaller = round(image_size * 0.7 / 32) * 32
    if smaller >= SMALLEST:
        faster.append(f"--image-size {smaller} (about {(smaller / image_size) ** 2:.0%} of the time)")
    if recipe.epochs > 1:
        fewer = recipe.epochs // 2
        faster.append(f"--epochs {fewer} ({fewer / recipe.epochs:.0%})")
    if (name := FROM_TRAINED.get(task)) and name != recipe.name:
        epochs = make_recipe(name, DEFAULT_MODEL, {}, task).epochs
        if epochs < recipe.epochs:
            share = f"{counted(epochs, 'epoch')}, {epochs / recipe.epochs:.0%}"
            faster.append(f"--model {DEFAULT_MODEL}.in1k, which is fine-tuned ({share})")
    return faster
