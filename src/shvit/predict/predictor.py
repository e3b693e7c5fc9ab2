"""The Predictor turns images into labels, boxes and masks. If an image cannot be used, its result gives the reason.

Some threads decode images into batches while others run the engine. Both decoding and inference release Python's GIL.
"""

import copy
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from .. import engines
from ..confidence import Calibration
from ..data.decode import BadImage, ImageInput
from ..data.images import Skipped
from ..data.letterbox import Letterbox
from ..data.loader import stack
from ..data.reduced import open_small
from ..data.walk import exists, is_hidden
from ..engines import Exported, Runnable
from ..errors import InputError, check_at_least
from ..pretrained import load
from ..tasks import detector_of, kind_of, need_classifier, task_of
from ..tasks.base import Prediction
from ..tasks.objects import THRESHOLD

DecodedImage = tuple[Letterbox | None, UInt8[Tensor, "3 h w"] | None]
"""The letterbox (None for classifiers), and the pixels (None if they are already in the batch)."""
MAX_AT_ONCE = 8
"""Maximum number of batches that run at once on a CPU. More batches need more memory and are hardly faster."""


class Predictor:
    """Predicts labels or objects for images. An image is a path, a PIL image, or a uint8 RGB array (height, width, 3).

    Args:
        model_file: The model, the path of its file, or the name of a published model.
        engine, precision, device: See `shvit.engines.load`.
        batch_size: Images per batch. End-to-end files always take one image.
        top_k: Labels per image of a classifier.
        threshold: Minimum score of a detector's objects. End-to-end files and exported Mask R-CNN files need at least
            0.05. None: see `Task.threshold`.
        min_score: For classifiers: images whose highest score is lower are `uncertain`. None: the threshold in the
            model file, if it has one. 0: no image is uncertain.
        threads: CPU threads per batch. None: run several batches at once on few threads each, if the engine can do so.
        workers: Threads that decode images. None: one per core.

    Each core has one thread for decoding and one for the engine. Depending on the images, either can take longer.
    Each batch runs on few threads, because threads that share a batch wait for each other at every layer.

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
        threshold: float | None = None,
        min_score: float | None = None,
        threads: int | None = None,
        workers: int | None = None,
    ) -> None:
        check_at_least(1, batch_size=batch_size, top_k=top_k, workers=workers)
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold must be between 0 and 1, got {threshold}")
        if isinstance(model_file, str | Path):
            model_file = load(model_file)
        self.threshold = kind_of(model_file).threshold(model_file.metrics) if threshold is None else threshold
        self.min_score = min_score_of(model_file, min_score)
        self._calibration = Calibration(model_file.calibration.temperature, threshold=self.min_score)
        self._end_to_end = isinstance(model_file, Exported) and model_file.end_to_end
        self.batch_size = 1 if self._end_to_end else batch_size
        self.top_k = top_k
        self.workers = workers or cores()
        self.at_once = 1
        self._side = None if model_file.preprocess.fit == "shorter" else model_file.preprocess.input_size
        engine, precision, self.device = engines.choose(model_file, engine, precision, device)
        if threads is None and self._side and self.device == "cpu" and engines.kinds_for(model_file)[engine].concurrent:
            self.at_once = min(cores(), MAX_AT_ONCE)
            threads = cores() // self.at_once
        self._task = task_of(model_file)
        model_file = self._with_threshold(model_file, self.threshold)
        self.engine = engines.load(model_file, engine, precision, self.device, threads)
        self._read = self._task.fast_reader(model_file.preprocess)

    def _with_threshold(self, model: Runnable, threshold: float) -> Runnable:
        """The model with scores down to `threshold`. Raises InputError if an exported file has no such low scores."""
        detects = detector_of(model) is not None
        least = max(self._task.min_score, THRESHOLD if detects and self._end_to_end else 0.0)
        if threshold >= least:
            return model
        if isinstance(model, Exported):
            raise InputError(
                f"threshold must be at least {least} for {model.path}, which returns no lower scores; got {threshold}"
            )
        network: Any = copy.deepcopy(model.model)
        network.set_min_score(threshold)
        return replace(model, model=network)

    def __call__(self, pictures: ImageInput | Iterable[ImageInput]) -> list[Prediction]:
        """One prediction per image, in order. For a single image, the list has one element."""
        return list(self.stream(pictures))

    def stream(self, pictures: ImageInput | Iterable[ImageInput], size: int = 0) -> Generator[Prediction]:
        """Predict any number of images. Only a few batches are in memory at once; see `batches_ahead`.

        The engine gets batches of `size` images (default: the size of the first batch). When the generator is
        closed, each thread stops after its current image or batch.
        """
        queue = iter([pictures] if isinstance(pictures, ImageInput) else pictures)
        ahead: deque[Future[list[Prediction]]] = deque()
        decoding = ThreadPoolExecutor(self.workers, "shvit-decode")
        running = ThreadPoolExecutor(self.at_once, "shvit-engine")
        try:
            while True:
                while len(ahead) < self.batches_ahead and (batch := list(islice(queue, self.batch_size))):
                    if self._end_to_end:
                        ahead.append(running.submit(self._results, batch[0]))
                        continue
                    size = size or len(batch)
                    images = np.zeros((size, self._side, self._side, 3), np.uint8) if self._side else None
                    buffers = [None] * len(batch) if images is None else images
                    decoded = [decoding.submit(self._decode, *pair) for pair in zip(batch, buffers, strict=False)]
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
        """Number of batches that `stream` reads before it returns the results of the first one.

        These are the batches that run at once, one for the caller, and enough to give each decoding thread two images.
        """
        return self.at_once + 1 + -(-2 * self.workers // self.batch_size)

    def _results(self, picture: ImageInput) -> list[Prediction]:
        """Run an end-to-end file on a whole image."""
        path = str(picture) if isinstance(picture, str | Path) else ""
        try:
            image = open_small(picture)
            with image.in_turn():
                pixels = image.decode(1).values
                results = self.engine.results(np.ascontiguousarray(pixels))
        except BadImage as error:
            return [Prediction(path, (), (), str(error))]
        size, scores = (image.height, image.width), (self.top_k, self.threshold, self._calibration)
        return [replace(self._task.from_results(results, *size, *scores), path=path)]

    def _decode(self, picture: ImageInput, buffer: UInt8[np.ndarray, "h w 3"] | None) -> DecodedImage | BadImage:
        """Decode an image. If all images have the same size, write the pixels to `buffer`, their place in the batch."""
        try:
            pixels, letterbox = self._read(picture)
        except BadImage as error:
            return error
        if buffer is None:
            return letterbox, pixels
        buffer[:] = pixels.permute(1, 2, 0).numpy()
        return letterbox, None

    def _finish(
        self,
        batch: list[ImageInput],
        images: UInt8[np.ndarray, "b h w 3"] | None,
        decoded: list[Future[DecodedImage | BadImage]],
    ) -> list[Prediction]:
        """Wait for the decoding threads and run the engine.

        Bad images stay in the batch, because engines compile the network for each batch size. But if the images differ
        in size, bad images are removed, and the rest are padded to the size of the largest, as in evaluation.
        """
        read = [future.result() for future in decoded]
        paths = [str(picture) if isinstance(picture, str | Path) else "" for picture in batch]
        good = {index: one for index, one in enumerate(read) if not isinstance(one, BadImage)}
        predictions = [Prediction(path, (), (), str(one)) for path, one in zip(paths, read, strict=True)]
        if good:
            if images is None:
                outputs = self.engine(stack([pixels for _, pixels in good.values() if pixels is not None]))
            else:
                outputs = self.engine(torch.from_numpy(images).permute(0, 3, 1, 2))
                outputs = outputs if len(good) == len(outputs) else outputs[list(good)]
            letterboxes = [letterbox for letterbox, _ in good.values()]
            results = self._task.predictions(outputs, letterboxes, self.top_k, self.threshold, self._calibration)
            for index, result in zip(good, results, strict=True):
                predictions[index] = replace(result, path=paths[index])
        return predictions


def min_score_of(model: Runnable, min_score: float | None) -> float | None:
    """The score below which an image is uncertain: `min_score`, or for None the threshold of the model. None: no image.

    Raises:
        InputError: The score is not between 0 and 1, or the model is a detector.
    """
    if min_score is None:
        return model.calibration.threshold if kind_of(model).labels_images else None
    need_classifier(model, "min_score")
    if not 0 <= min_score <= 1:
        raise InputError(f"min_score must be between 0 and 1, got {min_score}")
    return min_score or None


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_images(patterns: Iterable[str], passed: Skipped | None = None) -> list[Path]:
    """The files named by paths, folders (with their subfolders) and globs, in order and without duplicates.

    A named file counts as an image whatever its suffix. In a folder, files that fail `images.is_image` are left out
    and counted in `passed`. A path that does not exist is kept, so that its result can report the error.
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
    """The paths that the parts of a glob match below a folder. A part that names an existing file is taken literally.
    As in shells, hidden files match only patterns that start with a dot."""
    if not parts:
        yield folder
    elif exists(folder / parts[0]):
        yield from _matches(folder / parts[0], parts[1:])
    elif any(mark in parts[0] for mark in "*?["):
        steps = len(parts) if parts[0] == "**" else 1
        for match in folder.glob(str(Path(*parts[:steps]))):
            if parts[0].startswith(".") or not any(map(is_hidden, match.relative_to(folder).parts)):
                yield from _matches(match, parts[steps:])
