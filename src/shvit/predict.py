"""The Predictor: files in, labels out. A bad image becomes a result with its reason and stops nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import engines
from .data.decode import BadImage, decode
from .data.transforms import eval_transform
from .engines import Runnable
from .errors import InputError
from .pretrained import load
from .tasks import task_of

Picture = str | Path | Image.Image | np.ndarray
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jpe", ".ppm"}
"""What is taken from a folder. Files given by name are tried whatever their suffix."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    path: str
    """As given; empty for an image that came from memory."""
    labels: tuple[str, ...]
    """The most probable classes, best first; empty for an image that could not be used."""
    scores: tuple[float, ...]
    """Their probabilities, from 0 to 1."""
    error: str | None = None
    """Why the image could not be used."""

    def to_dict(self) -> dict[str, Any]:
        """path, labels, scores, error."""
        return asdict(self)


class Predictor:
    """Predicts labels of images, given as paths, PIL images or arrays (height, width, 3) in uint8 RGB.

    Args:
        model_file: What to predict with; a path or a published name is loaded first.
        engine, precision, device: As `shvit.engines.load` takes them.
        batch_size: Images that run at once.
        top_k: Labels for each image.
        threads: CPU threads of the engine.

    Raises:
        EngineError: The engine cannot run here.
    """

    def __init__(
        self,
        model_file: Runnable | str | Path,
        engine: str = "auto",
        precision: str = "auto",
        device: str = "auto",
        *,
        batch_size: int = 16,
        top_k: int = 5,
        threads: int | None = None,
    ) -> None:
        if batch_size < 1 or top_k < 1:
            raise InputError(f"batch_size and top_k must be at least 1, got {batch_size} and {top_k}")
        if isinstance(model_file, str | Path):
            model_file = load(model_file)
        self.engine = engines.load(model_file, engine, precision, device, threads)
        self.batch_size = batch_size
        self.top_k = top_k
        self._task = task_of(model_file)
        self._transform = eval_transform(model_file.preprocess)

    def __call__(self, pictures: Picture | Iterable[Picture]) -> list[Prediction]:
        """One prediction for each image, in order; a single image gives a list of one."""
        return list(self.stream(pictures))

    def stream(self, pictures: Picture | Iterable[Picture]) -> Iterator[Prediction]:
        """As calling it, but one batch at a time: for any number of images at the memory of one batch."""
        single = isinstance(pictures, str | Path | Image.Image | np.ndarray)
        queue = iter([pictures] if single else pictures)
        while batch := list(islice(queue, self.batch_size)):
            yield from self._batch(batch)  # pyright: ignore[reportArgumentType]

    def _batch(self, pictures: list[Picture]) -> Iterator[Prediction]:
        tensors, errors = [], {}
        for index, picture in enumerate(pictures):
            try:
                tensors.append(self._transform(decode(picture)))
            except BadImage as error:
                errors[index] = str(error)
        results = iter(self._task.decode(self.engine(torch.stack(tensors)), self.top_k) if tensors else [])
        for index, picture in enumerate(pictures):
            path = str(picture) if isinstance(picture, str | Path) else ""
            if index in errors:
                yield Prediction(path, (), (), errors[index])
            else:
                result = next(results)
                yield Prediction(path, result.labels, result.scores)


def find_images(patterns: Iterable[str]) -> list[Path]:
    """Files named by paths, folders (searched to any depth) and globs, in order, each once.

    A path that does not exist is kept, so that it becomes a result with its reason.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found |= dict.fromkeys(_images_below(path))
        elif path.exists() or not any(mark in pattern for mark in "*?["):
            found[path] = None
        else:
            root = Path(path.anchor) if path.is_absolute() else Path()
            matches = sorted(root.glob(str(path.relative_to(root))))
            for match in matches:
                found |= dict.fromkeys(_images_below(match) if match.is_dir() else [match])
            if not matches:
                found[path] = None
    return list(found)


def _images_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
