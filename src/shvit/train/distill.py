"""Knowledge distillation: training on a teacher's logits as well as on the labels."""

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
    """A trained network that computes logits for the student's training images.

    Args:
        trained: Any network whose classes include the student's classes.
        classes: The student's classes.
        preprocess: The student's image size and normalization.
        dtype: Data type of the teacher's forward pass.
        cache: Stores logits, so that they are computed only once. None: compute them every time.

    Raises:
        InputError: The teacher lacks a class of the student, or does not support the student's image size.
    """

    def __init__(
        self,
        trained: ModelFile,
        classes: tuple[str, ...],
        preprocess: Preprocess,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        cache: "LogitsCache | None" = None,
    ) -> None:
        size = preprocess.image_size
        try:
            self._columns = torch.tensor(match_classes(classes, trained.classes), device=device)
            cost(trained.model, (size, size))
        except InputError as error:
            raise InputError(f"the teacher {trained.architecture.name} cannot teach this student: {error}") from None
        self._network: Any = fuse(trained.model).to(device, memory_format=torch.channels_last)  # pyright: ignore
        own, other = (
            tuple(per_channel(values).to(device) for values in (each.mean, each.std))
            for each in (preprocess, trained.preprocess)
        )
        self._scale, self._shift = own[1] / other[1], (own[0] - other[0]) / other[1]
        self._device, self._dtype, self._cache = torch.device(device), dtype, cache

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> Float[Tensor, "b classes"]:
        """Compute the teacher's logits for the student's classes. `images` have the student's normalization."""
        known = self._cache.get(batch) if self._cache else None
        if known is not None:
            return known.to(self._device)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits = self._network(images * self._scale + self._shift)
        logits = logits.float()[:, self._columns]
        return self._cache.put(batch, logits) if self._cache else logits


CHANGES_IMAGES = "seed val_share views repeats crop_min flip color_jitter rand_augment interpolation max_pixels"
"""Recipe fields that determine the training images and the augmentation of each view."""


class LogitsCache:
    """A teacher's logits on disk, in fp16. A file holds one view: an augmented version of every image.

    Args:
        folder: Cache folder, kept after the run. It has a subfolder per combination of settings that affect the logits.
        recipe: The student's recipe.
        preprocess: The student's preprocessing.
        about: Other values that the logits depend on: the teacher, the dataset and its classes.
        images: Number of training images.

    Raises:
        InputError: The recipe repeats images or changes them after loading, so cached logits would not match them.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, preprocess: Preprocess, about: dict[str, Any], images: int
    ) -> None:
        required = {"mixup": 0, "cutmix": 0, "random_erasing": 0, "repeats": 1, "balance": "none"}
        if changing := [name for name, value in required.items() if getattr(recipe, name) != value]:
            flags = " ".join(f"--{name.replace('_', '-')} {required[name]}" for name in changing)
            raise InputError(f"--teacher-cache requires {flags}: otherwise every step sees different images")
        fields = {name: getattr(recipe, name) for name in CHANGES_IMAGES.split()}
        fields |= {**preprocess.to_dict(), "fit": recipe.train_fit or preprocess.fit}
        text = json.dumps({**fields, **about, "images": images}, indent=2, sort_keys=True)
        self._folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._shape = images, len(about["classes"])
        self._view, self._logits = -1, np.empty((0, 0), np.float16)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._folder / ".lock")
        with self._lock, replacing(self._folder / "about.json") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def get(self, batch: Batch) -> Float[Tensor, "b classes"] | None:
        """The cached logits of a batch. None if any of them are missing."""
        logits = torch.from_numpy(self._of(batch.view)[batch.indices])
        return logits.float() if len(batch) and not logits.isnan().any() else None

    def put(self, batch: Batch, logits: Float[Tensor, "b classes"]) -> Float[Tensor, "b classes"]:
        """Store logits, and return them rounded to fp16, so that new and cached logits are identical."""
        rounded = logits.half()
        self._of(batch.view)[batch.indices] = rounded.cpu().numpy()
        return rounded.float()

    def _of(self, view: int) -> np.ndarray:
        """The memory-mapped logits of a view. Missing logits are NaN."""
        if view != self._view:
            path = self._folder / f"view-{view:04}.npy"
            with self._lock:  # other processes of this run use the same file
                if not path.exists():
                    with replacing(path) as temporary, temporary.open("wb") as file:
                        np.save(file, np.full(self._shape, np.nan, np.float16))
            self._view, self._logits = view, np.load(path, mmap_mode="r+")
        return self._logits


class Distill(Classify):
    """Classification with a teacher. If the student has a second head, that head learns from the teacher.

    The loss is (1 - share) x the task's loss + share x the distillation loss. The hard distillation loss is the
    cross-entropy with the teacher's top class. The soft distillation loss is temperature^2 x the Kullback-Leibler
    divergence from the teacher's softened probabilities, averaged over images.

    Source: H. Touvron et al., "Training data-efficient image transformers & distillation through attention", 2021,
    section 4. The paper's code also divides the soft loss by the number of classes, which makes it almost zero.
    """

    def __init__(
        self, task: Classify, teacher: Teacher, kind: str = "hard", share: float = 0.5, temperature: float = 1.0
    ) -> None:
        vars(self).update(vars(task))
        self._teacher, self._kind, self._share, self._temperature = teacher, kind, share, temperature

    def augment(self, images: Tensor, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return augmented images and a pair of targets: the task's targets and the teacher's logits."""
        inputs, targets = super().augment(images, batch)
        return inputs, (targets, self._teacher(inputs, batch))

    def loss(self, network: Any, images: Tensor, targets: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
        """The weighted sum of the task's loss and the distillation loss."""
        outputs = network(images)
        own, taught = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        labels, logits = targets
        from_teacher = self._teacher_loss(taught.float(), logits)
        return (1 - self._share) * cross_entropy(own, labels) + self._share * from_teacher

    def _teacher_loss(
        self, outputs: Float[Tensor, "b classes"], logits: Float[Tensor, "b classes"]
    ) -> Float[Tensor, ""]:
        if self._kind == "hard":
            return F.cross_entropy(outputs, logits.argmax(1))
        student, teacher = ((each / self._temperature).log_softmax(1) for each in (outputs, logits))
        return self._temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
