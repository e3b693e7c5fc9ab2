"""The Predictor: files in; labels, boxes and masks out. A bad image becomes a result with its reason and stops nothing.

Threads decode images into batches while others run the engine: decoding and engines leave Python's lock to others.
"""

import copy
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from .. import engines
from ..data.decode import BadImage
from ..data.images import Skipped
from ..data.letterbox import Letterbox
from ..data.loader import stack
from ..data.walk import exists, is_hidden
from ..engines import Exported, Runnable
from ..errors import InputError
from ..pretrained import load
from ..tasks import task_of
from ..tasks.classify import Classify
from ..tasks.objects import RunLengths

Picture = str | Path | Image.Image | np.ndarray
Decoded = tuple[Letterbox | None, UInt8[Tensor, "3 h w"] | None]
"""Where in the network's input a detector's image lies; and the input, where it has no place in its batch yet."""
MAX_AT_ONCE = 8
"""Batches that CPUs run at once: with more, each keeps memory of its own for little gain."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    path: str
    """As given; empty for an image that came from memory."""
    labels: tuple[str, ...]
    """The most probable classes, best first; of a detector, the class of each object. Empty for an image that could
    not be used."""
    scores: tuple[float, ...]
    """Their probabilities, from 0 to 1."""
    error: str | None = None
    """Why the image could not be used."""
    boxes: tuple[tuple[float, ...], ...] | None = None
    """Of each object: left, top, right, bottom in pixels of the upright image; None of a classifier."""
    masks: tuple[RunLengths, ...] | None = None
    """Of each object, in COCO's packed run-length code; None where the model gives no masks."""

    def to_dict(self) -> dict[str, Any]:
        """path, labels, scores, error; boxes and masks where there can be any."""
        return {key: value for key, value in asdict(self).items() if value is not None or key == "error"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Prediction":
        """Inverse of `to_dict`, also after JSON."""
        boxes, masks = data.get("boxes"), data.get("masks")
        return cls(
            data["path"],
            tuple(data["labels"]),
            tuple(data["scores"]),
            data["error"],
            None if boxes is None else tuple(tuple(box) for box in boxes),
            None if masks is None else tuple(masks),
        )


class Predictor:
    """Predicts labels, or objects, of images, given as paths, PIL images or arrays (height, width, 3) in uint8 RGB.

    Args:
        model_file: What to predict with; a path or a published name is loaded first.
        engine, precision, device: As `shvit.engines.load` takes them.
        batch_size: Images that run at once.
        top_k: Labels that a classifier gives each image.
        threshold: Least score of the objects that a detector gives; exported files of Mask R-CNN have none below 0.05.
        threads: CPU threads that the engine runs one batch with; None for several batches at once on few threads each,
            where the engine can do that.
        workers: Threads that decode; None for one a core.

    Whether an image takes longer to decode or to run depends on both, so the cores are not divided between the two:
    each has a thread that decodes until enough lies ready, and another that runs the engine on what lies ready.
    Threads that share one batch would wait for each other at every layer, and for whoever else has a core meanwhile.

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
        threshold: float = 0.3,
        threads: int | None = None,
        workers: int | None = None,
    ) -> None:
        for name, number in (("batch_size", batch_size), ("top_k", top_k), ("workers", workers)):
            if number is not None and number < 1:
                raise InputError(f"{name} must be at least 1, got {number}")
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold must lie between 0 and 1, got {threshold}")
        if isinstance(model_file, str | Path):
            model_file = load(model_file)
        self.batch_size = batch_size
        self.top_k = top_k
        self.workers = workers or cores()
        self.at_once = 1
        self._side = None if model_file.preprocess.fit == "shorter" else model_file.preprocess.input_size
        engine, precision, self.device = engines.choose(model_file, engine, precision, device)
        if threads is None and self._side and self.device == "cpu" and engines.kinds_for(model_file)[engine].concurrent:
            self.at_once = min(cores(), MAX_AT_ONCE)
            threads = cores() // self.at_once
        self._task = task_of(model_file)
        self.engine = engines.load(self._finding_from(model_file, threshold), engine, precision, self.device, threads)
        self.threshold = threshold
        self._read = self._task.fast_reader(model_file.preprocess)

    def _finding_from(self, model: Runnable, threshold: float) -> Runnable:
        """The model, or a copy that gives objects of lower scores than usual. Raises InputError for exported files."""
        if isinstance(self._task, Classify) or threshold >= self._task.least_score:
            return model
        if isinstance(model, Exported):
            least = self._task.least_score
            raise InputError(
                f"threshold must be at least {least} for {model.path}, which holds none below: got {threshold}"
            )
        network: Any = copy.deepcopy(model.model)
        network.find_from(threshold)
        return replace(model, model=network)

    def __call__(self, pictures: Picture | Iterable[Picture]) -> list[Prediction]:
        """One prediction for each image, in order; a single image gives a list of one."""
        return list(self.stream(pictures))

    def stream(self, pictures: Picture | Iterable[Picture], size: int = 0) -> Generator[Prediction]:
        """As calling it, but for any number of images at the memory of a few batches: see `batches_ahead`.

        Closing the iterator stops the threads as soon as each has finished the image or batch it is at.

        Args:
            pictures: What to predict for.
            size: Images in the batches that the engine is given; default: as many as in the first one.
        """
        single = isinstance(pictures, str | Path | Image.Image | np.ndarray)
        queue = iter([pictures] if single else pictures)
        ahead: deque[Future[list[Prediction]]] = deque()
        decoding = ThreadPoolExecutor(self.workers, "shvit-decode")
        running = ThreadPoolExecutor(self.at_once, "shvit-engine")
        try:
            while True:
                while len(ahead) < self.batches_ahead and (batch := list(islice(queue, self.batch_size))):
                    size = size or len(batch)
                    images = np.zeros((size, self._side, self._side, 3), np.uint8) if self._side else None
                    places = [None] * len(batch) if images is None else images
                    decoded = [decoding.submit(self._decode, *pair) for pair in zip(batch, places, strict=False)]
                    ahead.append(running.submit(self._finish, batch, images, decoded))
                if not ahead:
                    return
                yield from ahead.popleft().result()
        finally:
            decoding.shutdown(wait=False, cancel_futures=True)
            running.shutdown(cancel_futures=True)
            decoding.shutdown()

    @property
    def batches_ahead(self) -> int:
        """The most batches that `stream` takes before it gives the first one's results.

        Those that run at once, one for the caller, and as many as the decoding threads need to have two images each.
        """
        return self.at_once + 1 + -(-2 * self.workers // self.batch_size)

    def _decode(self, picture: Picture, place: UInt8[np.ndarray, "h w 3"] | None) -> Decoded | BadImage:
        """Fills the picture's place in its batch, where all are of one size; or why it cannot."""
        try:
            pixels, frame = self._read(picture)
        except BadImage as error:
            return error
        if place is None:
            return frame, pixels
        place[:] = pixels.permute(1, 2, 0).numpy()
        return frame, None

    def _finish(
        self,
        batch: list[Picture],
        images: UInt8[np.ndarray, "b h w 3"] | None,
        decoded: list[Future[Decoded | BadImage]],
    ) -> list[Prediction]:
        """Waits for the decoding threads and runs the engine.

        On as many images as in the first batch, though some be bad or missing: engines compile for the sizes they meet.
        Images of many sizes run as evaluation has them: the good ones, with margins up to the largest.
        """
        read = [future.result() for future in decoded]
        paths = [str(picture) if isinstance(picture, str | Path) else "" for picture in batch]
        good = {place: one for place, one in enumerate(read) if not isinstance(one, BadImage)}
        predictions = [Prediction(path, (), (), str(one)) for path, one in zip(paths, read, strict=True)]
        if good:
            if images is None:
                outputs = self.engine(stack([pixels for _, pixels in good.values() if pixels is not None]))
            else:
                outputs = self.engine(torch.from_numpy(images).permute(0, 3, 1, 2))
                outputs = outputs if len(good) == len(outputs) else outputs[list(good)]
            found = self._found(outputs, [frame for frame, _ in good.values()])
            for place, result in zip(good, found, strict=True):
                predictions[place] = replace(result, path=paths[place])
        return predictions

    def _found(self, outputs: Tensor, frames: list[Any]) -> Iterator[Prediction]:
        if isinstance(self._task, Classify):
            for result in self._task.decode(outputs, self.top_k):
                yield Prediction("", result.labels, result.scores)
            return
        for found in self._task.decode(outputs, frames, self.threshold):
            labels = tuple(self._task.classes[label] for label in found.labels.tolist())
            boxes = tuple(tuple(box) for box in found.boxes.tolist())
            masks = None if found.masks is None else tuple(found.masks)
            yield Prediction("", labels, tuple(found.scores.tolist()), None, boxes, masks)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_images(patterns: Iterable[str], passed: Skipped | None = None) -> list[Path]:
    """Files named by paths, folders (searched to any depth) and globs, in order, each once.

    Files that are named are tried whatever their suffix; of a folder, `images.is_image` says which are images, and the
    others are counted in `passed`. A path that does not exist is kept, so that it becomes a result with its reason.
    """
    passed = passed or Skipped()
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        matches = [path] if exists(path) else sorted(_matches(Path(path.anchor), path.relative_to(path.anchor).parts))
        for match in matches or [path]:
            found |= dict.fromkeys(passed.images_below(match) if match.is_dir() else [match])
    return list(found)


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """What a glob's parts name below a folder; a part that is the name of something means that. Hidden as in shells."""
    if not parts:
        yield folder
    elif exists(folder / parts[0]):
        yield from _matches(folder / parts[0], parts[1:])
    elif any(mark in parts[0] for mark in "*?["):
        steps = len(parts) if parts[0] == "**" else 1
        for match in folder.glob(str(Path(*parts[:steps]))):
            if parts[0].startswith(".") or not any(map(is_hidden, match.relative_to(folder).parts)):
                yield from _matches(match, parts[steps:])
