"""The published recipes, and ours for small datasets. Imports no torch.

Each docstring gives the recipe's cost and outcome, and the flags to add to a command of docs/training.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from ..errors import InputError
from .recipe import OBJECT_TASKS, Recipe

WEIGHT_DECAY = {"shvit_s1": 0.025, "shvit_s2": 0.032, "shvit_s3": 0.035, "shvit_s4": 0.03}
"""The paper's weight decay for each variant."""
COCO_IMAGES = 117_266
"""Training images of COCO 2017 with at least one object."""


def scratch(model: str = "shvit_s1") -> Recipe:
    """The paper's training from new weights on ImageNet-1K: 300 epochs, AdamW, DeiT's augmentation.

    Flags: `--model shvit_s1`. On 8 GPUs, each step takes 256 images per GPU.

    The authors' code multiplies the paper's learning rate of 1e-3 by batch / 512, so the published networks were
    trained with 4e-3 at batch 2048. This recipe does the same. It has no cool-down: the authors' code defines one but
    never reaches it. docs/training.md lists the other settings.

    Published top-1: 72.8, 75.2, 77.4, 79.4 % for S1 to S4. Not yet run here at that scale.
    """
    return Recipe(weight_decay=WEIGHT_DECAY.get(model, Recipe.weight_decay), repeats=3)


def distill(model: str = "shvit_s1") -> Recipe:
    """`scratch` with a teacher: DeiT's hard distillation from RegNetY-160, as half of the loss.

    Flags: `--model shvit_s1 --recipe distill`. `--teacher` takes any model file or timm/NAME. `--distillation soft`
    uses the teacher's probabilities instead of its top class.

    Cost: `scratch` plus a forward pass of the teacher per image. Published top-1: 74.0, 76.2, 78.3, 80.2 % for S1 to
    S4. Not yet run here at that scale; 5 epochs on imagenette160 gained 1.6 points (docs/training.md).
    """
    return replace(scratch(model), name="distill", teacher="timm/regnety_160.deit_in1k")


def highres(model: str = "shvit_s1") -> Recipe:
    """Fine-tuning at 384 pixels, from weights trained at 224 or 256: 30 epochs with almost no weight decay.

    Flags: `--model runs/s4/best.safetensors --recipe highres --image-size 512`.

    The authors published two sets of settings. This recipe uses the arguments that they posted with their network for
    512 pixels. The posted learning rates are used as effective ones. The schedule is that of `scratch`, over 30 epochs.
    `highres_paper` uses the other set. Evaluation resizes the whole image to a square (`--fit stretch`), but training
    uses crops in their own aspect ratio, as in the authors' code (`--train-fit crop`).

    Published top-1: 82.0 % for S4 at 512. Not yet run here at that scale. On imagenette160, an S1 trained at 160
    pixels gained 1.0 points when evaluated at 224 pixels, with or without fine-tuning (docs/benchmarks.md).
    """
    return replace(
        highres_paper(model), name="highres", batch_size=256, lr=4e-5, lr_batch=256, min_lr=2e-7, warmup_lr=2e-8
    )


def highres_paper(model: str = "shvit_s1") -> Recipe:
    """`highres` as the paper's text describes it: learning rate 0.004, 100 times the learning rate of `highres`.

    Flags: `--model runs/s4/best.safetensors --recipe highres-paper --image-size 512`.

    The text gives no batch size. This recipe takes 0.004 as the effective learning rate at batch 2048, as in `scratch`.
    It is not known which of the two recipes the authors used. Cost and outcome: see `highres`. Not yet run here.
    """
    return replace(
        scratch(model),
        name="highres-paper",
        epochs=30,
        image_size=384,
        weight_decay=1e-8,
        fit="stretch",
        train_fit="crop",
    )


def finetune(model: str = "shvit_s1") -> Recipe:
    """Fine-tuning of trained weights on new classes: fewer epochs, half of the learning rate, lighter augmentation.

    Flags: none, or `--model shvit_s4.in1k`. It is the default for trained weights. This recipe is ours, not the
    authors'. The head starts at zero. `budget.fit` sets more epochs for up to 322 images, and fewer for
    69,000 and more.

    Cost and outcome: minutes on a CPU for hundreds of images (docs/benchmarks.md). Not yet run here at scale.
    """
    return replace(
        scratch(model),
        name="finetune",
        epochs=15,
        lr=5e-4,
        schedule_by="step",
        warmup_epochs=1.0,
        ema_warmup=True,
        mixup=0.0,
        cutmix=0.0,
        repeats=1,
    )


def coco_1x(model: str = "shvit_s1") -> Recipe:
    """The authors' training on COCO: 12 epochs from ImageNet weights, shorter side 800, flips, batch 16.

    Flags: `--task detect --recipe coco_1x --model shvit_s4.in1k` for boxes (RetinaNet), `--task segment` for masks
    (Mask R-CNN). On 8 GPUs, each step takes 2 images per GPU. docs/detection.md compares each setting to the authors'.

    Published AP of S4: 38.8 for boxes (RetinaNet); 39.0 for boxes and 35.9 for masks (Mask R-CNN). Not yet run here at
    that scale.
    """
    return replace(
        _object_recipe("coco_1x"),
        epochs=12,
        image_size=800,
        shorter_side=True,
        lr=1e-4,
        schedule="step",
        min_lr=0.0,
        warmup_lr=1e-7,
        warmup_epochs=500 * 16 / COCO_IMAGES,
        decay_all=True,
        ema=0.0,
        frozen_norms="statistics",
        layout="paper",
    )


def small(model: str = "shvit_s1") -> Recipe:
    """Detection on tens to thousands of images: mosaics, random scale and colors, a slower backbone.

    Flags: `--task detect --model shvit_s1.in1k`. `budget.fit` sets more epochs for fewer images.

    Cost and outcome: minutes on a CPU for hundreds of images (docs/benchmarks.md).
    """
    return replace(
        _object_recipe("small"),
        head="light",
        epochs=60,
        image_size=320,
        lr=6e-3,
        warmup_epochs=3.0,
        hsv=0.5,
        mosaic=0.5,
        scale_min=0.5,
        scale_max=1.5,
        backbone_lr=0.5,
        ema=0.998,
        eval_every=5,
    )


def small_with_anchors(model: str = "shvit_s1") -> Recipe:
    """`small` for the heads retinanet and mask_rcnn: a lower learning rate, and no mosaics.

    Flags: `--task segment --model shvit_s1.in1k`, or `--task detect --head retinanet`. Not yet run to the end here;
    LOG.md has the experiments.
    """
    return replace(
        _object_recipe("small"),
        epochs=60,
        image_size=320,
        lr=3e-4,
        warmup_epochs=2.0,
        color_jitter=0.2,
        scale_min=0.6,
        scale_max=1.4,
        ema=0.998,
        proposals=64,
    )


def _object_recipe(name: str) -> Recipe:
    """The settings that all recipes for detection and segmentation share."""
    return Recipe(
        name=name,
        batch_size=16,
        lr_batch=16,
        schedule_by="step",
        weight_decay=0.05,
        ema_warmup=True,
        clip=0.0,
        color_jitter=0.0,
        rand_augment=0,
        mixup=0.0,
        cutmix=0.0,
        label_smoothing=0.0,
        random_erasing=0.0,
    )


RECIPES = {recipe().name: recipe for recipe in (scratch, finetune, distill, highres, highres_paper, coco_1x, small)}
TASK_RECIPES = {
    "classify": ("scratch", "finetune", "distill", "highres", "highres-paper"),
    **dict.fromkeys(OBJECT_TASKS, ("small", "coco_1x")),
}
"""The recipes of each task. The first one is the default for a network with random weights."""

DEFAULT_MODEL = "shvit_s1"
FROM_TRAINED = {"classify": "finetune"}
"""The default recipe for a network with trained weights, where it is not the first of `TASK_RECIPES`. For these tasks,
a run without --model and --recipe starts from the published weights of `DEFAULT_MODEL`."""

PAPER_HEADS = {"detect": "retinanet", "segment": "mask_rcnn"}
"""The detectors of the paper, by task."""
HEADS = {"detect": ("light", "retinanet"), "segment": ("mask_rcnn", "light")}
"""The values of `--head` for each task, the default first."""

NEEDS_TRAINED_WEIGHTS = ("finetune", "highres", "highres-paper")
"""Recipes that start from trained weights."""


def default_head(name: str, task: str) -> str | None:
    """The `--head` of a recipe for this task; None for classifiers."""
    return None if task not in HEADS else PAPER_HEADS[task] if name == "coco_1x" else HEADS[task][0]


def recipe_for(name: str, head: str | None) -> Callable[[str], Recipe]:
    """The function that makes a recipe for networks with this head."""
    return small_with_anchors if name == "small" and head != "light" else RECIPES[name]


def make_recipe(name: str, variant: str, settings: Mapping[str, Any], task: str = "classify") -> Recipe:
    """The recipe of this name for a network variant, with the fields in `settings` replaced.

    Raises:
        InputError: The task has no such recipe or field, or a value is out of range.
    """
    if name not in TASK_RECIPES[task]:
        raise InputError(f"unknown recipe {name!r} for task {task}: choose from {', '.join(TASK_RECIPES[task])}")
    allowed = sorted(
        entry.name
        for entry in fields(Recipe)
        if entry.name != "name" and task in (entry.metadata["tasks"] or TASK_RECIPES)
    )
    if unknown := sorted(set(settings) - set(allowed)):
        raise InputError(f"recipes for task {task} have no {', '.join(unknown)}: choose from {', '.join(allowed)}")
    head = settings.get("head") or default_head(name, task)
    if head is not None and head not in HEADS[task]:
        raise InputError(f"head of task {task} must be one of {', '.join(HEADS[task])}, got {head!r}")
    if name != "small" and head is not None and head != default_head(name, task):
        raise InputError(f"recipe {name} trains the head {default_head(name, task)}, not {head}: try recipe small")
    base = replace(recipe_for(name, head)(variant), head=head)
    shorter = {}
    if "epochs" in settings:  # warm-up and cool-down shrink with the number of epochs
        share = min(1.0, settings["epochs"] / base.epochs)
        shorter = {key: getattr(base, key) * share for key in ("warmup_epochs", "cooldown_epochs")}
    plain = {"mosaic": 0.0} if settings.get("shorter_side") else {}
    draft = replace(base, **{**shorter, **plain, **settings})
    if draft.fit != base.fit and "train_fit" not in settings:
        draft = replace(draft, train_fit=None)
    if "lr_batch" in settings and "lr" not in settings:  # keep the effective learning rate
        return replace(draft, lr=base.lr * draft.lr_batch / base.lr_batch)
    return draft
