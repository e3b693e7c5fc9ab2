"""Selects the precision, decides whether to compile, and rejects batches that are too small for BatchNorm."""

import shutil
import sys
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.transforms import COARSEST
from ..engines.torch import has_bf16
from ..errors import InputError
from ..model.architecture import Model
from ..model.cost import cost
from ..modelfile import ModelFile
from .recipe import Recipe

COMPILE_PAYS = {"cpu": 6e12, "cuda": 2e15}
"""Compiling saves time if all forward passes of a run together need more multiply-accumulates than this."""


def pick_precision(recipe: Recipe, device: str) -> str:
    """The precision of forward and backward passes: fp32, bf16 or fp16. Weights and optimizer are always fp32."""
    if recipe.precision != "auto":
        return recipe.precision
    if has_bf16(device):
        return "bf16"
    return "fp16" if torch.device(device).type == "cuda" else "fp32"


def pick_training_precision(recipe: Recipe, device: str, start: ModelFile) -> str:
    """Like `pick_precision`, but fp32 on CPUs if bf16 gradients would be wrong (see `steps_over_maps`).

    Raises:
        InputError: The recipe asks for bf16, but bf16 gradients would be wrong.
    """
    precision, size = pick_precision(recipe, device), start.preprocess.image_size
    if start.preprocess.fit == "shorter":
        size = COARSEST  # a very long image is resized to a strip that can be as narrow as this
    if precision != "bf16" or torch.device(device).type != "cpu" or not steps_over_maps(start.model, size):
        return precision
    if recipe.precision == "bf16":
        raise InputError(
            f"bf16 training on a CPU gives wrong gradients with images of {size} pixels: a convolution's stride is "
            "larger than its input. Use --precision auto or fp32, or larger images"
        )
    return "fp32"


def steps_over_maps(model: Model, image_size: int) -> bool:
    """Whether a convolution's stride is larger than the width of its input.

    In this case, oneDNN's gradients of bf16 weights contain uninitialized memory (torch 2.15; LOG.md).
    """
    return any(shape[-1] < part.stride[-1] for part, shape in _inputs(model, image_size, torch.nn.Conv2d))


class _Fp32Conv(torch.nn.Conv2d):
    """A convolution that computes in fp32 under autocast. Input and output keep their data type."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).to(input.dtype)


def avoid_slow_gradients(model: Model) -> None:
    """Make depthwise convolutions with a stride or a kernel above 3x3 compute in fp32, in place.

    For bf16 training on CPUs: oneDNN has no fast bf16 gradients for these layers. They took a quarter of the training
    step of SHViT-S1, and half of that of EfficientNet-Lite0; in fp32 they take up to 100 times less (LOG.md).
    """
    for part in model.modules():
        if not isinstance(part, torch.nn.Conv2d) or part.groups == 1 or part.groups != part.in_channels:
            continue
        if max(part.stride) > 1 or max(part.kernel_size) > 3:
            kind = type(part)  # may have its own forward, such as timm's Conv2dSame
            part.__class__ = type(f"Fp32{kind.__name__}", (_Fp32Conv, kind), {})


def check_norms(model: Model, recipe: Recipe, image_size: int, processes: int) -> None:
    """Raises InputError if a trained BatchNorm would see a single value per channel, which has no variance.

    With one image per micro-batch and process, this happens in the head of every classifier. If the image is also
    small, it happens in earlier layers, too.
    """
    pieces = processes * recipe.accumulate
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm) and part.training]
    if recipe.batch_size > pieces or not norms:
        return
    single = [part for part, shape in _inputs(model, image_size, _BatchNorm) if shape.numel() == shape[1]]
    if not set(norms).isdisjoint(single):
        each = f" for each of {pieces} micro-batches (processes x accumulate)" if pieces > 1 else ""
        raise InputError(
            f"BatchNorm needs at least two images, but batch_size {recipe.batch_size} gives one{each}: "
            f"batch_size must be at least {2 * pieces}"
        )


def _inputs(model: Model, image_size: int, kind: type[torch.nn.Module]) -> list[tuple[Any, torch.Size]]:
    """Return each module of class `kind`, with its input shape for one image. Keeps training and eval modes."""
    result: list[tuple[Any, torch.Size]] = []
    training = {part: part.training for part in model.modules()}

    def record(part: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        result.append((part, inputs[0].shape))

    hooks = [part.register_forward_pre_hook(record) for part in training if isinstance(part, kind)]
    cost(model, (image_size, image_size))  # runs the model
    for hook in hooks:
        hook.remove()
    for part, mode in training.items():
        part.training = mode
    return result


def picks_compile(recipe: Recipe, device: torch.device, start: ModelFile, images: int) -> bool:
    """Whether to compile. Does not depend on measured times, so that a command always trains the same network.

    Raises:
        InputError: The recipe enables compiling for a detector, whose targets change in size at every step.
    """
    if start.architecture.detector is not None:
        if recipe.compile == "on":
            raise InputError("compile must be auto or off for detectors: their training cannot be compiled yet")
        return False
    if recipe.compile != "auto":
        return recipe.compile == "on"
    if sys.platform == "win32" or device.type not in COMPILE_PAYS or not shutil.which("g++"):
        return False
    if device.type == "cpu" and start.architecture.config is None:
        return False  # compiled timm models can be slower: regnety_004 (grouped convolutions) by 50 % (LOG.md)
    size = start.preprocess.image_size
    return cost(start.model, (size, size)).macs * images > COMPILE_PAYS[device.type]
