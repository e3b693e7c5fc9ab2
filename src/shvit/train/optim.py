"""What a recipe means for this network on this machine."""

import shutil
import sys
from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.transforms import COARSEST
from ..engines.torch import has_bf16
from ..errors import InputError
from ..model.architecture import Model
from ..model.cost import cost
from ..modelfile import ModelFile
from .muon import Muon
from .recipe import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay for weights, and with `decay_all` for biases and norms.

    Raises InputError for what timm does not have or the optimiser does not take."""
    known = sorted({"muon", *map(str, list_optimizers())})
    if recipe.optimizer not in known:
        raise InputError(f"optimizer must be one of {', '.join(known)}, got {recipe.optimizer!r}")
    options: dict[str, Any] = {} if recipe.beta2 is None else {"betas": (0.9, recipe.beta2)}
    rate, decay = recipe.effective_rate, recipe.weight_decay
    if recipe.optimizer == "muon":
        everything = [
            {"params": [weight for weight in model.parameters() if weight.requires_grad], "weight_decay": decay}
        ]
        groups = everything if recipe.decay_all else param_groups_weight_decay(model, decay)
        device = str(next(model.parameters()).device)
        dtype = torch.bfloat16 if picks_precision(recipe, device) == "bf16" else None
        return Muon(groups, rate, dtype=dtype, **options)
    if recipe.optimizer == "adamw":
        options["fused"] = next(model.parameters()).device.type in ("cpu", "cuda")  # one pass instead of ten
    try:
        optimizer = create_optimizer_v2(
            model, recipe.optimizer, lr=rate, weight_decay=decay, filter_bias_and_bn=not recipe.decay_all, **options
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer {recipe.optimizer} does not take these settings: {error}") from None
    if recipe.beta2 is not None and "betas" not in optimizer.defaults:  # timm drops it
        raise InputError(f"beta2 has no effect with optimizer {recipe.optimizer}, which has no second moment")
    return optimizer


def picks_precision(recipe: Recipe, device: str) -> str:
    """What networks compute in: fp32, bf16 or fp16. Weights and optimiser are in fp32 always."""
    if recipe.precision != "auto":
        return recipe.precision
    if has_bf16(device):
        return "bf16"
    return "fp16" if torch.device(device).type == "cuda" else "fp32"


def picks_training_precision(recipe: Recipe, device: str, start: ModelFile) -> str:
    """What a network learns in: bf16 not where a CPU's gradients would be noise.

    Raises:
        InputError: The recipe says bf16 all the same.
    """
    precision, size = picks_precision(recipe, device), start.preprocess.image_size
    if start.preprocess.fit == "shorter":
        size = COARSEST  # the longest strip of an image may be as narrow
    if precision != "bf16" or torch.device(device).type != "cpu" or not steps_over_maps(start.model, size):
        return precision
    if recipe.precision == "bf16":
        raise InputError(
            f"with images of {size} pixels this network has a map that is narrower than the stride of the convolution "
            "on it, whose gradients PyTorch gets wrong in bf16 on a CPU: precision must be auto or fp32, or the "
            "images larger"
        )
    return "fp32"


def steps_over_maps(model: Model, image_size: int) -> bool:
    """Whether a convolution's stride is larger than the width of the map it reads.

    There oneDNN's gradients of bf16 weights hold what was in memory before (torch 2.15; LOG.md).
    """
    return any(shape[-1] < part.stride[-1] for part, shape in _inputs(model, image_size, torch.nn.Conv2d))


def check_norms(model: Model, recipe: Recipe, image_size: int, processes: int) -> None:
    """Refuses pieces of one image where a BatchNorm that learns reads one value a channel of it: that has no variance.

    The BatchNorm of a classifier's head always does, those before it where the image is small.
    """
    pieces = processes * recipe.accumulate
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm) and part.training]
    if recipe.batch_size > pieces or not norms:
        return
    single = [part for part, shape in _inputs(model, image_size, _BatchNorm) if shape.numel() == shape[1]]
    if not set(norms).isdisjoint(single):
        each = f" for each of {pieces} pieces (processes x accumulate)" if pieces > 1 else ""
        raise InputError(
            f"BatchNorm needs two images at once, and batch_size {recipe.batch_size} gives one{each}: "
            f"it must be at least {2 * pieces}"
        )


def _inputs(model: Model, image_size: int, kind: type[torch.nn.Module]) -> list[tuple[Any, torch.Size]]:
    """Each module of this kind, and the shape of what it reads of one image. Every module stays in its mode."""
    found: list[tuple[Any, torch.Size]] = []
    training = {part: part.training for part in model.modules()}

    def look(part: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append((part, inputs[0].shape))

    hooks = [part.register_forward_pre_hook(look) for part in training if isinstance(part, kind)]
    cost(model, (image_size, image_size))  # runs it
    for hook in hooks:
        hook.remove()
    for part, mode in training.items():
        part.training = mode
    return found


COMPILE_PAYS = {"cpu": 6e12, "cuda": 2e15}
"""Multiply-accumulates of a run's forward passes from which compiling saves more than the minutes it costs."""


def picks_compile(recipe: Recipe, device: torch.device, start: ModelFile, images: int) -> bool:
    """Whether to compile. By counting, never by the clock, so that the same command trains the same network.

    Raises:
        InputError: It is asked for where there is no way yet: a detector's targets differ in size from step to step.
    """
    if start.architecture.detector is not None:
        if recipe.compile == "on":
            raise InputError("detectors are not compiled in training: compile must be auto or off")
        return False
    if recipe.compile != "auto":
        return recipe.compile == "on"
    if sys.platform == "win32" or device.type not in COMPILE_PAYS or not shutil.which("g++"):
        return False
    if device.type == "cpu" and start.architecture.config is None:
        return False  # timm's may get slower: regnety_004's grouped convolutions do, by a half (LOG.md)
    size = start.preprocess.image_size
    return cost(start.model, (size, size)).macs * images > COMPILE_PAYS[device.type]


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> Scheduler:
    """A function of `schedule_time`: linear warm-up, then falling, then cool-down at the least rate.

    Raises:
        InputError: A cool-down of a part of an epoch, where the rate changes only between epochs.
    """
    if recipe.schedule_by == "epoch" and recipe.cooldown_epochs % 1:
        raise InputError(
            f"cooldown_epochs must be a whole number with schedule_by epoch, got {recipe.cooldown_epochs:g}; "
            "with schedule_by step it may be a part of an epoch"
        )
    warmup, cooldown = (round(epochs * steps_per_epoch) for epochs in (recipe.warmup_epochs, recipe.cooldown_epochs))
    if recipe.schedule == "step":
        return MultiStepLRScheduler(
            optimizer,
            decay_t=[round(share * recipe.epochs * steps_per_epoch) for share in (2 / 3, 11 / 12)],
            decay_rate=0.1,
            warmup_t=warmup,
            warmup_lr_init=min(recipe.warmup_rate, recipe.effective_rate),
            t_in_epochs=False,
        )
    kind = CosineLRScheduler if recipe.schedule == "cosine" else partial(PolyLRScheduler, power=1.0)
    lag = steps_per_epoch if cooldown and recipe.schedule_by == "epoch" else 0  # the cool-down begins with its epoch
    return kind(
        optimizer,
        t_initial=max(1, recipe.epochs * steps_per_epoch - cooldown - lag),
        lr_min=min(recipe.min_rate, recipe.effective_rate),
        warmup_t=warmup,
        warmup_lr_init=min(recipe.warmup_rate, recipe.effective_rate),
        t_in_epochs=False,
    )


def schedule_time(recipe: Recipe, epoch: int, share: float, steps_per_epoch: int) -> int:
    """Where the schedule stands, in steps, when this share of an epoch (from 0) is done.

    By epoch it is where the authors' code has it, which steps the schedule at the end of an epoch, to that epoch's
    number: in epochs 0 and 1 it stands at 0, in epoch 2 at 1.
    """
    if recipe.schedule_by == "epoch" and recipe.schedule != "step":
        return max(0, epoch - 1) * steps_per_epoch
    return round((epoch + share) * steps_per_epoch)
