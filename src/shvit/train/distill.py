"""Learning from another network: its answers beside the labels, as one more kind of task."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..classnames import match_classes
from ..data.loader import Batch
from ..data.transforms import Preprocess, per_channel
from ..errors import InputError
from ..files import replacing
from ..model.cost import cost
from ..model.fuse import fuse
from ..modelfile import ModelFile
from ..tasks.classify import Classify, cross_entropy
from .recipe import Recipe


class Teacher:
    """A trained network that is asked about the student's own training images.

    Args:
        trained: Any network that knows the student's classes; it may know more.
        classes: The student's.
        preprocess: How the student's images are normalised, and their size.
        device: Where the student is.
        dtype: What it computes in.
        cache: Keeps answers, so that none is asked for twice; None asks each time.

    Raises:
        InputError: The teacher does not know a class, or cannot take images of this size.
    """

    def __init__(
        self,
        trained: ModelFile,
        classes: tuple[str, ...],
        preprocess: Preprocess,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        cache: "AnswerCache | None" = None,
    ) -> None:
        size = preprocess.image_size
        try:
            self._places = torch.tensor(match_classes(classes, trained.classes), device=device)
            cost(trained.model, (size, size))
        except InputError as error:
            raise InputError(f"the teacher {trained.architecture.name} cannot teach this student: {error}") from None
        self._network: Any = fuse(trained.model).to(device, memory_format=torch.channels_last)  # pyright: ignore
        mine, theirs = (
            tuple(per_channel(values).to(device) for values in (each.mean, each.std))
            for each in (preprocess, trained.preprocess)
        )
        self._scale, self._shift = mine[1] / theirs[1], (mine[0] - theirs[0]) / theirs[1]
        self._device, self._dtype, self._cache = torch.device(device), dtype, cache

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> Float[Tensor, "b classes"]:
        """Logits of the student's classes for images that are normalised as the student's."""
        known = self._cache.get(batch) if self._cache else None
        if known is not None:
            return known.to(self._device)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits = self._network(images * self._scale + self._shift)
        logits = logits.float()[:, self._places]
        return self._cache.put(batch, logits) if self._cache else logits


CHANGES_IMAGES = (
    "seed",
    "val_share",
    "views",
    "repeats",
    "crop_min",
    "flip",
    "color_jitter",
    "rand_augment",
    "interpolation",
    "max_pixels",
)
"""Fields of a recipe that decide which images there are, and what a view of one looks like."""


class AnswerCache:
    """A teacher's answers on disk, in fp16: one file for each view of the images. Files outlive the run.

    Args:
        folder: Holds a folder for each combination of all that answers depend on.
        recipe: How images are augmented.
        preprocess: Of the student.
        about: What else answers depend on: the teacher, the data, its classes.
        images: Training images.

    Raises:
        InputError: The recipe changes images after they were loaded, or repeats them, so no two steps see the same.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, preprocess: Preprocess, about: dict[str, Any], images: int
    ) -> None:
        changing = [name for name in ("mixup", "cutmix", "random_erasing") if getattr(recipe, name)]
        changing += ["repeats"] if recipe.repeats > 1 else []
        if changing:
            raise InputError(
                f"a teacher's answers can be kept only without {', '.join(changing)}: set to 0 (repeats: 1)"
            )
        described = {name: getattr(recipe, name) for name in CHANGES_IMAGES} | preprocess.to_dict() | about
        described["images"] = images
        text = json.dumps(described, indent=2, sort_keys=True)
        self._folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._shape = images, len(about["classes"])
        self._view, self._answers = -1, np.empty((0, 0), np.float16)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._folder / ".lock")
        with self._lock, replacing(self._folder / "about.json") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def get(self, batch: Batch) -> Float[Tensor, "b classes"] | None:
        """None unless all of the batch are known."""
        answers = torch.from_numpy(self._of(batch.view)[batch.indices])
        return answers.float() if len(batch) and not answers.isnan().any() else None

    def put(self, batch: Batch, logits: Float[Tensor, "b classes"]) -> Float[Tensor, "b classes"]:
        """Returns them as `get` will, so that a run that asks and one that remembers are the same."""
        rounded = logits.half()
        self._of(batch.view)[batch.indices] = rounded.cpu().numpy()
        return rounded.float()

    def _of(self, view: int) -> np.ndarray:
        """Mapped from the view's file; what is not known is not a number, and so is not mistaken for known."""
        if view != self._view:
            path = self._folder / f"view-{view:04}.npy"
            with self._lock:  # another process of this run may be here, too
                if not path.exists():
                    with replacing(path) as temporary, temporary.open("wb") as file:
                        np.save(file, np.full(self._shape, np.nan, np.float16))
            self._view, self._answers = view, np.load(path, mmap_mode="r+")
        return self._answers


class Distill(Classify):
    """Classification by a network that also learns what a teacher says: in its second head where it has one.

    The loss is (1 - share) x the task's own + share x the teacher's: cross-entropy with its first class (hard), or
    temperature^2 x the Kullback-Leibler divergence from its softened probabilities, a mean over images (soft).

    Source: H. Touvron et al., "Training data-efficient image transformers & distillation through attention", 2021,
    section 4; whose code divides the soft term by the number of classes as well, so that it hardly counts.
    """

    def __init__(
        self, task: Classify, teacher: Teacher, kind: str = "hard", share: float = 0.5, temperature: float = 1.0
    ) -> None:
        vars(self).update(vars(task))
        self._task, self._teacher, self._kind = task, teacher, kind
        self._share, self._temperature = share, temperature

    def augment(self, images: Tensor, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        inputs, targets = self._task.augment(images, batch)
        return inputs, (targets, self._teacher(inputs, batch))

    def loss(self, network: Any, images: Tensor, targets: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
        outputs = network(images)
        own, taught = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        labels, answers = targets
        from_teacher = self._from_teacher(taught.float(), answers)
        return (1 - self._share) * cross_entropy(own, labels) + self._share * from_teacher

    def _from_teacher(
        self, outputs: Float[Tensor, "b classes"], answers: Float[Tensor, "b classes"]
    ) -> Float[Tensor, ""]:
        if self._kind == "hard":
            return F.cross_entropy(outputs, answers.argmax(1))
        student, teacher = ((logits / self._temperature).log_softmax(1) for logits in (outputs, answers))
        return self._temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
