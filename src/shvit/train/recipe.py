"""The recipe: every setting that decides how a network is trained, as data. Imports no torch.

`recipes.py` has the published recipes. `budget.fit` adapts a recipe to less data or fewer epochs.
"""

import math
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from types import NoneType
from typing import Any, Literal, get_args

from ..errors import InputError, counted
from ..requests import OLD_FITS

CLASSIFY, OBJECT_TASKS = ("classify",), ("detect", "segment")


def _setting(
    default: Any, help: str, low: float | None = None, high: float = math.inf, tasks: tuple[str, ...] = ()
) -> Any:
    """A dataclass field with its flag's help, the range of its values, and the tasks that use it (default: all)."""
    if tasks and "classify" not in tasks:
        help += f" ({', '.join(tasks)})"
    return field(default=default, metadata={"help": help, "range": (low, high), "tasks": tasks})


@dataclass(frozen=True)
class Recipe:
    """How to train. Every field except `name` is a flag of `shvit train`.

    Raises:
        InputError: A value is out of range. The message gives the field, the value and the allowed range.
    """

    name: str = "scratch"
    epochs: int = _setting(300, "Number of passes over the training images.", 1)
    image_size: int | None = _setting(
        None, "Height and width of the images, in pixels. Default: the network's own.", 32
    )
    shorter_side: bool = _setting(
        False, "Keep the aspect ratio: --image-size is the length of the shorter side.", tasks=OBJECT_TASKS
    )
    batch_size: int = _setting(2048, "Images per step, over all processes.", 1)
    accumulate: int = _setting(1, "Gradient accumulation: number of micro-batches per step in each process.", 1)
    lr: float = _setting(1e-3, "Learning rate for a batch of --lr-batch images.", 0)
    lr_batch: int = _setting(
        512,
        "Batch size that --lr refers to: the effective learning rate is lr x batch_size / lr_batch. If only --lr-batch "
        "is given, lr is scaled with it, and the effective learning rate stays the same.",
        1,
    )
    schedule: Literal["cosine", "linear", "step"] = _setting(
        "cosine",
        "Learning-rate schedule after the warm-up. step divides the learning rate by 10 after 2/3 and after 11/12 of "
        "the epochs.",
    )
    schedule_by: Literal["epoch", "step"] = _setting(
        "epoch",
        "When the cosine and linear schedules update the learning rate. step: at every step. epoch: once per epoch, as "
        "in the authors' code. In this case, epochs 1 and 2 use --warmup-lr, and each later epoch uses the schedule's "
        "value for the previous epoch.",
    )
    min_lr: float = _setting(1e-5, "Effective learning rate at the end of the schedule.", 0)
    warmup_lr: float = _setting(1e-6, "Effective learning rate at the first step.", 0)
    warmup_epochs: float = _setting(5.0, "Number of epochs of linear warm-up.", 0)
    cooldown_epochs: float = _setting(0.0, "Number of final epochs at --min-lr. --epochs includes them.", 0)
    optimizer: str = _setting("adamw", "muon, or the name of any timm optimizer.")
    beta2: float | None = _setting(None, "Decay rate of the second moment. Default: the optimizer's own.", 0, 1)
    weight_decay: float = _setting(0.025, "Weight decay. Biases and norms are exempt unless --decay-all is set.", 0)
    decay_all: bool = _setting(False, "Apply weight decay to biases and norms, too.")
    clip: float = _setting(
        0.02, "Adaptive gradient clipping: largest gradient norm as a fraction of the weight norm. 0 disables it.", 0
    )
    ema: float = _setting(0.99996, "Decay of the EMA weights per step. 0 disables the EMA.", 0, 1)
    ema_warmup: bool = _setting(
        False,
        "Warm up the EMA: at step n the decay is at most 1 - n^(-2/3). Without the warm-up, the decay is --ema from "
        "the first step. On by default for small datasets; --ema-warmup=false turns it off.",
    )
    fit: Literal["crop", "letterbox", "stretch"] | None = _setting(
        None,
        "How images fit the square input. crop: center crop. letterbox: the whole image in its aspect ratio, padded. "
        "stretch: the whole image, resized to the square. Default: the setting of the starting weights, or crop for "
        "random weights.",
        tasks=CLASSIFY,
    )
    train_fit: Literal["crop", "letterbox", "stretch"] | None = _setting(
        None, "How training images fit the square. Default: the same as --fit. See docs/training.md.", tasks=CLASSIFY
    )
    crop_min: float = _setting(
        0.08,
        "Smallest area of a training crop, as a fraction of the image. letterbox crops nothing, but makes the whole "
        "image smaller, down to this fraction of its letterboxed area.",
        0,
        1,
        CLASSIFY,
    )
    interpolation: Literal["random", "bilinear", "bicubic"] = _setting(
        "bicubic",
        "Interpolation of training crops and RandAugment. random: bilinear or bicubic, chosen anew for each image.",
        tasks=CLASSIFY,
    )
    flip: float = _setting(0.5, "Probability of a horizontal flip.", 0, 1)
    color_jitter: float = _setting(0.4, "Strength of color jitter. Used only without RandAugment, as in DeiT.", 0, 10)
    rand_augment: int = _setting(9, "RandAugment magnitude. 0 disables it.", 0, tasks=CLASSIFY)
    mixup: float = _setting(0.8, "Mixup alpha. 0 disables it.", 0, 10, CLASSIFY)
    cutmix: float = _setting(1.0, "CutMix alpha. 0 disables it.", 0, 10, CLASSIFY)
    label_smoothing: float = _setting(0.1, "Label smoothing.", 0, 1, CLASSIFY)
    random_erasing: float = _setting(0.25, "Probability of random erasing.", 0, 1, CLASSIFY)
    repeats: int = _setting(1, "Repeated augmentation: each epoch uses 1/N of the images, N times.", 1, tasks=CLASSIFY)
    views: int | None = _setting(
        None,
        "Number of augmented versions per image. Epochs cycle through them. Default: a new version in every epoch.",
        1,
        tasks=CLASSIFY,
    )
    balance: Literal["none", "sampling", "loss"] = _setting(
        "none",
        "How to compensate for classes of different sizes. sampling: draw each class equally often; an epoch keeps its "
        "number of steps. loss: weight each image's loss by the inverse of the size of its class.",
        tasks=CLASSIFY,
    )
    teacher: str | None = _setting(
        None, "Teacher for distillation: a model file, or published weights such as timm/NAME.", tasks=CLASSIFY
    )
    distillation: Literal["hard", "soft"] = _setting(
        "hard",
        "What the student learns. hard: the teacher's top class. soft: the teacher's probabilities.",
        tasks=CLASSIFY,
    )
    distillation_share: float = _setting(
        0.5, "Weight of the distillation loss. The weight of the label loss is 1 minus this value.", 0, 1, CLASSIFY
    )
    temperature: float = _setting(1.0, "Temperature of student and teacher for soft distillation.", 0.01, 100, CLASSIFY)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _setting(
        "auto", "Training precision. auto: bf16 if the processor supports it, otherwise fp16 on GPUs and fp32 on CPUs."
    )
    compile: Literal["auto", "on", "off"] = _setting(
        "auto", "Use torch.compile. auto: compile if the run is so long that compiling saves time."
    )
    seed: int = _setting(0, "Random seed for weight initialization, image order, augmentation and validation split.", 0)
    val_share: float = _setting(
        0.2, "Fraction of the images held out for validation, if the dataset has no validation split.", 0, 1
    )
    eval_every: int = _setting(1, "Epochs between evaluations. The last epoch is always evaluated.", 1)
    select_by: Literal["top1", "balanced", "loss"] | None = _setting(
        None,
        "Validation metric that decides which epoch is the best: top-1, balanced accuracy or loss. Default: top1.",
        tasks=CLASSIFY,
    )
    patience: int = _setting(
        0, "Stop after this many evaluations without a new best epoch. 0: train for all epochs.", 0
    )
    max_bad_share: float = _setting(0.2, "Stop if more than this fraction of a split's images cannot be used.", 0, 1)
    max_pixels: int = _setting(89_478_485, "Do not decode images with more pixels than this.", 1)
    scale_min: float = _setting(1.0, "Smallest random scale factor of training images.", 0.1, 10, OBJECT_TASKS)
    scale_max: float = _setting(
        1.0, "Largest random scale factor of training images. Larger images are cropped.", 0.1, 10, OBJECT_TASKS
    )
    hsv: float = _setting(
        0.0,
        "Strength of random changes of hue, saturation and value. 1: up to 1.5 % of the color circle, 70 % and 40 %.",
        0,
        10,
        OBJECT_TASKS,
    )
    mosaic: float = _setting(
        0.0,
        "Probability that a training image is a mosaic of four images. The last tenth of the epochs has no mosaics. "
        "Default with --shorter-side: 0.",
        0,
        1,
        OBJECT_TASKS,
    )
    head: Literal["light", "retinanet", "mask_rcnn"] | None = _setting(
        None,
        "Kind of detector. light: fast, finds each object once. retinanet (detect) and mask_rcnn (segment): those of "
        "the paper. Default: light for detect, mask_rcnn for segment; with recipe coco_1x, those of the paper.",
        tasks=OBJECT_TASKS,
    )
    backbone_lr: float = _setting(1.0, "Learning rate of the backbone, as a fraction of --lr.", 0, 1, OBJECT_TASKS)
    frozen_norms: Literal["none", "statistics", "all"] = _setting(
        "none",
        "What to freeze in the backbone's BatchNorms. statistics: the running statistics. all: statistics and weights.",
        tasks=OBJECT_TASKS,
    )
    layout: Literal["torchvision", "paper"] = _setting(
        "torchvision",
        "Detector settings. torchvision: torchvision's settings. paper: those of the paper (docs/detection.md).",
        tasks=OBJECT_TASKS,
    )
    proposals: int = _setting(512, "Proposals per image for training Mask R-CNN's second stage.", 1, tasks=("segment",))

    def __post_init__(self) -> None:
        for entry in fields(self):
            _check(entry, getattr(self, entry.name))
        if self.scale_max < self.scale_min:
            raise InputError(f"scale_max must be at least scale_min {self.scale_min:g}, got {self.scale_max:g}")
        if self.warmup_epochs + self.cooldown_epochs > self.epochs:
            raise InputError(
                f"warmup_epochs {self.warmup_epochs:g} plus cooldown_epochs {self.cooldown_epochs:g} must be at most "
                f"epochs {self.epochs}"
            )
        if self.mosaic and self.shorter_side:
            raise InputError("mosaics need square images: give mosaic 0, or shorter_side false")
        if self.head == "light" and self.layout == "paper":
            raise InputError("layout paper is a variant of retinanet and mask_rcnn: give one of them as head")
        if self.teacher is not None and self.balance == "loss":
            raise InputError(
                "balance loss does not weight the teacher's part of the loss: use --balance sampling, or remove "
                "--teacher"
            )

    def check_divisible(self, processes: int) -> None:
        """Raises InputError if a batch cannot be split evenly. With mixup or CutMix, each part must also be even."""
        pieces = processes * self.accumulate
        if self.batch_size % pieces:
            raise InputError(
                f"batch_size must be a multiple of {pieces} ({counted(processes, 'process', 'processes')} x accumulate "
                f"{self.accumulate}), got {self.batch_size}"
            )
        each = self.batch_size // pieces
        if each % 2 and (self.mixup or self.cutmix):
            where = " per process and micro-batch" if pieces > 1 else ""
            raise InputError(f"mixup and cutmix mix pairs of images: the batch size must be even, got {each}{where}")

    def evaluates(self, epoch: int) -> bool:
        """Whether the network is evaluated after this epoch, counted from 1."""
        return epoch % self.eval_every == 0 or epoch == self.epochs

    @property
    def effective_lr(self) -> float:
        """The learning rate that the optimizer uses."""
        return self.lr * self.batch_size / self.lr_batch

    def to_dict(self) -> dict[str, Any]:
        """All fields and `effective_lr`, for JSON."""
        return {**asdict(self), "effective_lr": self.effective_lr}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Recipe":
        """Inverse of `to_dict`. Also accepts old names (`OLD_NAMES`) and recipes without newer fields (`BEFORE`)."""
        known = BEFORE | with_current_names(data)
        known.pop("effective_lr", None)
        if isinstance(frozen := known.get("frozen_norms"), bool):
            known["frozen_norms"] = "all" if frozen else "none"
        if (old := known.get("fit")) in OLD_FITS:
            known["fit"] = OLD_FITS[old]
        return cls(**known)


BEFORE = {"schedule_by": "step", "ema_warmup": True, "interpolation": "random", "train_fit": "crop"}
"""Values for fields that recipe.json lacks because the run began before the fields existed."""

OLD_NAMES = {
    "rate": "lr",
    "rate_batch": "lr_batch",
    "min_rate": "min_lr",
    "warmup_rate": "warmup_lr",
    "regions": "proposals",
    "eval_fit": "fit",
    "effective_rate": "effective_lr",
}
"""Former names of flags and of fields in files, with the current names."""


def with_current_names(data: Mapping[str, Any]) -> dict[str, Any]:
    """Replace former names of settings in a recipe, or in a row of metrics.jsonl."""
    return {OLD_NAMES.get(key, key): value for key, value in data.items()}


def _check(entry: Field[Any], value: Any) -> None:
    """Raises InputError if a value does not fit the field's type or range."""
    kinds = get_args(entry.type) or (entry.type,)
    if value is None and NoneType in kinds:
        return
    low, high = entry.metadata.get("range", (None, math.inf))
    if low is None:
        allowed = [name for kind in kinds for name in (get_args(kind) or [kind]) if isinstance(name, str)]
        if allowed and value not in allowed:
            raise InputError(f"{entry.name} must be one of {', '.join(allowed)}, got {value!r}")
    elif int in kinds:
        if not isinstance(value, int) or value < low:
            raise InputError(f"{entry.name} must be a whole number of at least {low}, got {value}")
    elif not isinstance(value, int | float) or not low <= value <= high:
        limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise InputError(f"{entry.name} must be {limits}, got {value}")
