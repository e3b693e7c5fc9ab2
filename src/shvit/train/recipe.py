"""Recipes: all that decides how a network is trained, as data. This module imports no torch, so that help is instant.

A recipe is written for the budget it was published with; `budget.fit` changes what a smaller one needs otherwise.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ..errors import InputError

OBJECT_TASKS = ("detect", "segment")


def _documented(default: Any, text: str, tasks: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text, "tasks": tasks})


def _for_labels(default: Any, text: str) -> Any:
    return _documented(default, text, ("classify",))


def _for_objects(default: Any, text: str) -> Any:
    return _documented(default, f"{text} (detect, segment)", OBJECT_TASKS)


@dataclass(frozen=True)
class Recipe:
    """How to train. Every field is a flag of `shvit train`.

    Raises:
        InputError: A value is out of its range; the message names field, value and what is allowed.
    """

    name: str = "scratch"
    epochs: int = _documented(300, "Passes over the training images.")
    image_size: int | None = _documented(None, "Side of the square images, in pixels; default: the network's own.")
    shorter_side: bool = _for_objects(False, "Images are not made square: --image-size is their shorter side.")
    batch_size: int = _documented(2048, "Images a step, over all processes.")
    accumulate: int = _documented(1, "Pieces that each process takes its part of a batch in, where memory is short.")
    rate: float = _documented(1e-3, "Learning rate for --rate-batch images.")
    rate_batch: int = _documented(
        512,
        "Images that --rate is for: the effective learning rate is rate x batch size / this. Given without --rate, it "
        "leaves the effective learning rate as it is.",
    )
    schedule: Literal["cosine", "linear", "step"] = _documented(
        "cosine", "How the rate falls after the warm-up; step: tenfold after 2/3 and 11/12 of the epochs."
    )
    schedule_by: Literal["epoch", "step"] = _documented(
        "epoch",
        "How often cosine and linear schedules change the rate. epoch: as in the authors' code, epochs 1 and 2 run at "
        "--warmup-rate and each later one at the schedule's value for the epoch before it.",
    )
    min_rate: float = _documented(1e-5, "Effective learning rate at the end of the schedule.")
    warmup_rate: float = _documented(1e-6, "Effective learning rate at the first step.")
    warmup_epochs: float = _documented(5.0, "Epochs in which the rate rises linearly.")
    cooldown_epochs: float = _documented(0.0, "Epochs at the end, within --epochs, at the least rate.")
    optimizer: str = _documented("adamw", "muon, or any other optimiser of timm by its name.")
    beta2: float | None = _documented(None, "Decay of the second moment; default: the optimiser's own.")
    weight_decay: float = _documented(0.025, "Decay of weights; of biases and norms with --decay-all.")
    decay_all: bool = _documented(False, "Weight decay on biases and norms, too.")
    clip: float = _documented(0.02, "Adaptive gradient clipping, as a share of each weight's norm; 0: none.")
    ema: float = _documented(0.99996, "Decay of the averaged weights at each step; 0: no averaging.")
    ema_warmup: bool = _documented(
        False,
        "Start with a lower decay: at step n it is at most 1 - n^(-2/3). Otherwise it is --ema from the first step. On "
        "where a small budget is fitted; --ema-warmup=false turns it off.",
    )
    eval_fit: Literal["crop", "squash"] | None = _for_labels(
        None,
        "What the network sees of an image outside training. crop: the centre. squash: the whole image, resized to a "
        "square. Default: as the starting weights, and crop for fresh ones.",
    )
    crop_min: float = _for_labels(0.08, "Least share of an image's area that a training crop shows.")
    interpolation: Literal["random", "bilinear", "bicubic"] = _for_labels(
        "bicubic", "Of training crops and RandAugment; random: bilinear or bicubic, drawn anew for each."
    )
    flip: float = _documented(0.5, "Probability of mirroring an image.")
    color_jitter: float = _documented(0.4, "Strength of colour changes; without RandAugment only, as in DeiT.")
    rand_augment: int = _for_labels(9, "Magnitude of RandAugment; 0: none.")
    mixup: float = _for_labels(0.8, "Strength of mixing two images; 0: none.")
    cutmix: float = _for_labels(1.0, "Strength of pasting one image's part into another; 0: none.")
    label_smoothing: float = _for_labels(0.1, "Share of a target spread over all classes.")
    random_erasing: float = _for_labels(0.25, "Probability of filling a rectangle with noise.")
    repeats: int = _for_labels(1, "How often an image comes in an epoch, of as many times fewer images.")
    views: int | None = _for_labels(None, "Augmented versions of each image; default: a new one every epoch.")
    teacher: str | None = _for_labels(None, "Distillation: a model file, or published weights such as timm/NAME.")
    distillation: Literal["hard", "soft"] = _for_labels("hard", "The teacher's first class, or its probabilities.")
    distillation_share: float = _for_labels(0.5, "Share of the loss that is the teacher's; the rest is the labels'.")
    temperature: float = _for_labels(1.0, "Of soft distillation: divides both sides' logits.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _documented(
        "auto", "auto: bf16 where the processor computes in it, fp16 on other GPUs."
    )
    compile: Literal["auto", "on", "off"] = _documented(
        "auto", "torch.compile; auto: where it saves more than it costs."
    )
    seed: int = _documented(0, "Of weights, order, augmentation and of the held-out split.")
    val_share: float = _documented(0.2, "Share held out for validation, where the data comes as one pile.")
    eval_every: int = _documented(1, "Epochs from one evaluation to the next; there is also one after the last epoch.")
    max_bad_share: float = _documented(0.2, "Stop where more than this share of the images cannot be used.")
    max_pixels: int = _documented(89_478_485, "Images with more pixels are not decoded.")
    scale_min: float = _for_objects(1.0, "Least size of a training image, as a share of its usual size.")
    scale_max: float = _for_objects(1.0, "Greatest size of a training image; what is too large is cut off.")
    frozen_norms: Literal["none", "statistics", "all"] = _for_objects(
        "none", "What the backbone's BatchNorms keep as it is, for small batches: statistics, or weights as well (all)."
    )
    layout: Literal["torchvision", "paper"] = _for_objects(
        "torchvision", "Details of the detector: torchvision's, or those of the authors (docs/detection.md)."
    )
    regions: int = _documented(512, "Regions of an image that Mask R-CNN learns from. (segment)", ("segment",))

    def __post_init__(self) -> None:
        least = {
            "epochs": 1,
            "batch_size": 1,
            "accumulate": 1,
            "repeats": 1,
            "views": 1,
            "regions": 1,
            "eval_every": 1,
            "rate_batch": 1,
            "max_pixels": 1,
            "image_size": 32,
            "rand_augment": 0,
            "seed": 0,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < smallest):
                raise InputError(f"{name} must be a whole number of at least {smallest}, got {value}")
        for name in ("rate", "min_rate", "warmup_rate", "warmup_epochs", "cooldown_epochs", "weight_decay", "clip"):
            _check_range(self, name, 0.0, math.inf)
        for name in (
            "ema",
            "flip",
            "label_smoothing",
            "random_erasing",
            "max_bad_share",
            "beta2",
            "crop_min",
            "distillation_share",
            "val_share",
        ):
            _check_range(self, name, 0.0, 1.0)
        for name in ("color_jitter", "mixup", "cutmix"):
            _check_range(self, name, 0.0, 10.0)
        _check_range(self, "temperature", 0.01, 100.0)
        _check_range(self, "scale_min", 0.1, 10.0)
        _check_range(self, "scale_max", self.scale_min, 10.0)
        for name, allowed in (
            ("precision", ("auto", "fp32", "bf16", "fp16")),
            ("distillation", ("hard", "soft")),
            ("compile", ("auto", "on", "off")),
            ("schedule", ("cosine", "linear", "step")),
            ("schedule_by", ("epoch", "step")),
            ("frozen_norms", ("none", "statistics", "all")),
            ("layout", ("torchvision", "paper")),
            ("interpolation", ("random", "bilinear", "bicubic")),
            ("eval_fit", (None, "crop", "squash")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} must be one of {', '.join(filter(None, allowed))}, got {getattr(self, name)!r}"
                )
        if self.warmup_epochs + self.cooldown_epochs > self.epochs:
            raise InputError(
                f"warmup_epochs {self.warmup_epochs} and cooldown_epochs {self.cooldown_epochs} "
                f"are more than the {self.epochs} epochs"
            )

    def check_divisible(self, processes: int) -> None:
        """Raises InputError where a batch cannot be dealt out to so many processes, in equal pieces of whole pairs."""
        pieces = processes * self.accumulate
        if self.batch_size % pieces:
            raise InputError(
                f"batch_size {self.batch_size} cannot be divided among {processes} processes "
                f"in {self.accumulate} pieces each: it must be a multiple of {pieces}"
            )
        each = self.batch_size // pieces
        if each % 2 and (self.mixup or self.cutmix):
            raise InputError(f"mixup and cutmix mix pairs: the batch size must be even, got {each}{_each(pieces)}")

    @property
    def effective_rate(self) -> float:
        """The learning rate that the optimiser is given."""
        return self.rate * self.batch_size / self.rate_batch

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "effective_rate": self.effective_rate}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Recipe":
        """Inverse of `to_dict`. A run begun before a field existed goes on as it was begun (`BEFORE`)."""
        known = BEFORE | {key: value for key, value in data.items() if key != "effective_rate"}
        if isinstance(frozen := known.get("frozen_norms"), bool):
            known["frozen_norms"] = "all" if frozen else "none"
        return cls(**known)


BEFORE = {"schedule_by": "step", "ema_warmup": True, "interpolation": "random"}
"""What every run did before these fields existed, whose recipe.json lacks them."""


def _each(pieces: int) -> str:
    return " for each process and piece" if pieces > 1 else ""


def _check_range(recipe: Recipe, name: str, low: float, high: float) -> None:
    value = getattr(recipe, name)
    if value is not None and (not isinstance(value, int | float) or not low <= value <= high):
        raise InputError(f"{name} must lie between {low:g} and {high:g}, got {value}")


WEIGHT_DECAY = {"shvit_s1": 0.025, "shvit_s2": 0.032, "shvit_s3": 0.035, "shvit_s4": 0.03}
"""The paper's, by variant."""


def scratch(model: str = "shvit_s1") -> Recipe:
    """The paper's training from fresh weights, on ImageNet-1K: 300 epochs, AdamW, DeiT's augmentation.

    One machine of 8 GPUs (256 images each a step), for any of shvit_s1 to shvit_s4:

        torchrun --nproc-per-node 8 -m shvit train imagenet --model shvit_s1 --out runs/s1 --workers 12

    Several machines, here 2 of 8 GPUs: the same on each, which must all see the folders `imagenet` and `runs`:

        torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d \\
            --rdzv-endpoint FIRST_MACHINE:29500 -m shvit train imagenet --model shvit_s1 --out runs/s1 --workers 12

    Where a GPU's memory is short: `--accumulate 2`. The batch of 2048 stays what it is, however it is divided.

    The authors' code multiplies the paper's 1e-3 by batch / 512, so the published networks had 4e-3 at batch 2048:
    that is what `effective_rate` says, and what is used. The learning rate is theirs in every epoch: it changes once
    an epoch, epochs 1 and 2 run at the warm-up rate, and there is no cool-down, which their code names and never
    reaches. The decay of the averaged weights is constant, and crops and RandAugment resample bicubically.

    Cost: docs/training.md estimates it. Published outcome: top-1 72.8, 75.2, 77.4, 79.4 % for S1 to S4.
    Not yet run here at that scale.

    On a small budget (see `fit`): `shvit train imagenette160 --image-size 160 --epochs 10` gave 80.05 % in 27 minutes
    on two cores of a CPU; LOG.md has what else was tried.
    """
    return Recipe(weight_decay=WEIGHT_DECAY.get(model, Recipe.weight_decay), repeats=3)


def distill(model: str = "shvit_s1") -> Recipe:
    """`scratch`, taught by another network as well: DeiT's hard distillation, by RegNetY-160, half of the loss.

        torchrun --nproc-per-node 8 -m shvit train imagenet --model shvit_s1 --recipe distill --out runs/s1-distilled \\
            --workers 12

    Two machines of 8 GPUs, on each of them:

        torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d \\
            --rdzv-endpoint FIRST_MACHINE:29500 -m shvit train imagenet --model shvit_s1 --recipe distill \\
            --out runs/s1-distilled --workers 12

    The student's second head learns from the teacher, its first one from the labels; their mean is the network's
    answer, and `shvit.fuse` makes them one. `--teacher` takes any model file or timm/NAME, `--distillation soft` the
    teacher's probabilities instead of its first class.

    Cost: `scratch` and a forward pass of the teacher for each image. Published outcome: top-1 74.0, 76.2, 78.3, 80.2 %
    for S1 to S4. Not yet run here at that scale; 5 epochs on imagenette160 gained 1.6 points (docs/training.md).
    """
    return replace(scratch(model), name="distill", teacher="timm/regnety_160.deit_in1k")


def highres(model: str = "shvit_s1") -> Recipe:
    """From weights trained at 224 or 256 to images of 384 (or `--image-size 512`): 30 epochs, hardly any weight decay.

        torchrun --nproc-per-node 8 -m shvit train imagenet --model runs/s4/best.safetensors --recipe highres \\
            --image-size 512 --out runs/s4-512 --workers 12

    Two machines of 8 GPUs, on each of them:

        torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d \\
            --rdzv-endpoint FIRST_MACHINE:29500 -m shvit train imagenet --model runs/s4/best.safetensors \\
            --recipe highres --image-size 512 --out runs/s4-512 --workers 12

    Two settings were published. These are the arguments that the authors posted with their network for 512: batch 256,
    rate 4e-5, warm-up from 2e-8, least rate 2e-7, taken as effective rates; the schedule is that of `scratch`, in 30
    epochs. The other setting, which the paper's text gives, is `highres_paper`. As in the authors' code, such a
    network is judged on whole images, resized to a square (`--eval-fit squash`), others on the centre. The model file
    says which, so that every verb and every export reads images alike.

    Cost: docs/training.md. Published outcome: top-1 82.0 % for S4 at 512. Not yet run here at that scale; S1 on
    imagenette160 gained 1.0 points from 160 to 224 pixels in 2 epochs, all of it by the pixels (docs/training.md).
    """
    return replace(
        scratch(model),
        name="highres",
        epochs=30,
        image_size=384,
        batch_size=256,
        rate=4e-5,
        rate_batch=256,
        min_rate=2e-7,
        warmup_rate=2e-8,
        weight_decay=1e-8,
        eval_fit="squash",
    )


def highres_paper(model: str = "shvit_s1") -> Recipe:
    """`highres` as the paper's text has it: rate 0.004, a hundred times that of the arguments that the authors posted.

        torchrun --nproc-per-node 8 -m shvit train imagenet --model runs/s4/best.safetensors --recipe highres-paper \\
            --image-size 512 --out runs/s4-512 --workers 12

    Two machines of 8 GPUs, on each of them:

        torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d \\
            --rdzv-endpoint FIRST_MACHINE:29500 -m shvit train imagenet --model runs/s4/best.safetensors \\
            --recipe highres-paper --image-size 512 --out runs/s4-512 --workers 12

    The text names no batch; it is taken for the effective rate at 2048, as in `scratch`, which 0.004 equals: then the
    network is trained anew rather than tuned. Which of the two made the published network is not known. Cost and
    outcome as `highres`; not yet run here at that scale.
    """
    return replace(
        scratch(model), name="highres-paper", epochs=30, image_size=384, weight_decay=1e-8, eval_fit="squash"
    )


def finetune(model: str = "shvit_s1") -> Recipe:
    """From trained weights to new classes: fewer epochs, a tenth of the rate.

        torchrun --nproc-per-node 8 -m shvit train my_images --model shvit_s1.in1k --recipe finetune --out runs/mine

    Two machines of 8 GPUs, on each of them:

        torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d \\
            --rdzv-endpoint FIRST_MACHINE:29500 -m shvit train my_images --model shvit_s1.in1k --recipe finetune \\
            --out runs/mine

    Most data sets need one GPU, or none. Not yet run here at scale. It is ours, not the authors': the learning rate
    changes at each step, and the decay of the averaged weights rises to its value.
    """
    return replace(
        scratch(model),
        name="finetune",
        epochs=20,
        rate=1e-4,
        schedule_by="step",
        warmup_epochs=1.0,
        ema_warmup=True,
        mixup=0.0,
        cutmix=0.0,
        repeats=1,
    )


def coco_1x(model: str = "shvit_s1") -> Recipe:
    """The authors' training on COCO: 12 epochs from ImageNet weights, shorter side 800, mirroring, batch 16.

    One machine of 8 GPUs (2 images each a step), boxes by RetinaNet:

        torchrun --nproc-per-node 8 -m shvit train coco --task detect --recipe coco_1x --model shvit_s4.in1k \\
            --out runs/s4-coco --workers 4

    and masks by Mask R-CNN, on two machines, on each of them:

        torchrun --nnodes 2 --nproc-per-node 4 --max-restarts 3 --rdzv-backend c10d \\
            --rdzv-endpoint FIRST_MACHINE:29500 -m shvit train coco --task segment --recipe coco_1x \\
            --model shvit_s4.in1k --out runs/s4-coco-masks --workers 4

    The authors' configuration: AdamW at 1e-4, tenfold less after epochs 8 and 11, warm-up from 1e-7 in 500 steps (on
    COCO), weight decay 0.05 on everything. BatchNorms keep their statistics and learn their weights. docs/detection.md
    has every setting of theirs beside ours, and what differs.

    Published outcome, S4: AP 38.8 of boxes by RetinaNet; 39.0 of boxes and 35.9 of masks by Mask R-CNN. Not yet run
    here at that scale.
    """
    return replace(
        _plain("coco_1x"),
        epochs=12,
        image_size=800,
        shorter_side=True,
        rate=1e-4,
        schedule="step",
        min_rate=0.0,
        warmup_rate=1e-7,
        warmup_epochs=500 * 16 / COCO_IMAGES,
        decay_all=True,
        ema=0.0,
        frozen_norms="statistics",
        layout="paper",
    )


def small(model: str = "shvit_s1") -> Recipe:
    """Detection and segmentation on tens to thousands of images: smaller images, of random size and place.

        shvit train my_boxes --task detect --model shvit_s1.in1k --out runs/mine

    Any machine will do. Not yet run to its end here: LOG.md has what was tried.
    """
    return replace(
        _plain("small"),
        epochs=60,
        image_size=320,
        rate=3e-4,
        warmup_epochs=2.0,
        color_jitter=0.2,
        scale_min=0.6,
        scale_max=1.4,
        ema=0.998,
        regions=64,
    )


COCO_IMAGES = 117_266
"""Training images of COCO 2017 that have an object."""


def _plain(name: str) -> Recipe:
    """What recipes for objects have in common."""
    return Recipe(
        name=name,
        batch_size=16,
        rate_batch=16,
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


RECIPES = {
    "scratch": scratch,
    "finetune": finetune,
    "distill": distill,
    "highres": highres,
    "highres-paper": highres_paper,
    "coco_1x": coco_1x,
    "small": small,
}
TASK_RECIPES = {
    "classify": ("scratch", "finetune", "distill", "highres", "highres-paper"),
    **dict.fromkeys(OBJECT_TASKS, ("small", "coco_1x")),
}
"""Of each task; the first is its default."""

TUNES = ("finetune", "highres", "highres-paper")
"""Recipes for weights that were trained before."""
