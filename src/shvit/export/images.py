"""The images that an export needs: for calibration, for the accuracy of int8, and for comparison with PyTorch."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from ..data.coco import CocoDataset, CocoSplit
from ..data.dataset import Dataset, Split
from ..data.decode import BadImage, decode
from ..data.loader import Batch, Loader, worker_death_as_failure
from ..data.transforms import Preprocess
from ..engines.base import need_calibration
from ..engines.mixed import CALIBRATION_IMAGES
from ..errors import Failure
from ..modelfile import ModelFile
from ..tasks.base import Task
from ..tasks.labelled_data import choose_split, relabel_for

KEPT_BYTES = 2 << 30
"""Maximum size of decoded validation images to keep in memory. Larger splits are decoded again for each evaluation."""


@dataclass(frozen=True)
class ExportImages:
    """The images that an export needs."""

    parity: UInt8[Tensor, "n 3 h w"]
    """Images for comparing the file with PyTorch."""
    calibration: Sequence[UInt8[Tensor, "b 3 h w"]] = ()
    """Images for measuring the value ranges for int8."""
    validation: Iterable[Batch] = ()
    """Batches of labelled images for evaluating int8."""
    photos: Sequence[UInt8[np.ndarray, "h w 3"]] = ()
    """Upright images of different sizes."""


def export_images(
    model_file: ModelFile, task: Task, source: Dataset | CocoDataset | None, quantized: bool
) -> ExportImages:
    """The images for an export. Without a source, crops of two photographs, which cannot calibrate int8.

    Args:
        source: Labelled images.
        quantized: Whether the export is in int8.

    Raises:
        EngineError: int8 needs a source.
        Failure: No image can be used.
    """
    preprocess = model_file.preprocess
    calibration = _calibration(task, preprocess, source) if quantized and source else ()
    if quantized:
        need_calibration(calibration)
    if source is None:
        photos = sample_photos(task.parity_images)
        read = task.fast_reader(preprocess)
        return ExportImages(torch.stack([read(photo)[0] for photo in photos]), photos=photos)
    split = choose_split(model_file, source).images
    validation = _validation(task, preprocess, relabel_for(model_file, source, split)) if quantized else ()
    compared = _spread(split, task.parity_images)
    return ExportImages(_images(task, preprocess, compared), calibration, validation, _photos(compared))


def _calibration(task: Task, preprocess: Preprocess, source: Dataset | CocoDataset) -> list[Tensor]:
    """Up to 300 randomly chosen training images, in batches of 10. Bad images are left out."""
    split = _spread(source.train if len(source.train) else source.val, CALIBRATION_IMAGES)
    return [images for images in _images(task, preprocess, split).split(10) if len(images) == min(10, len(split))]


def _validation(task: Task, preprocess: Preprocess, split: Split | CocoSplit) -> Iterable[Batch]:
    """Batches of the labelled images. If all images take at most `KEPT_BYTES`, they are kept in memory."""
    loader = Loader(split, task.eval_reader(preprocess), task.eval_batch(25, 1), workers=2)
    kept = 3 * preprocess.input_size**2 * len(split) <= KEPT_BYTES
    with worker_death_as_failure():
        return list(loader) if kept else loader


def _images(task: Task, preprocess: Preprocess, split: Split | CocoSplit) -> UInt8[Tensor, "n 3 h w"]:
    batches = [batch.images for batch in Loader(split, task.eval_reader(preprocess), 50) if len(batch)]
    if not batches:
        raise Failure(f"none of the {len(split)} images could be used")
    return torch.cat(batches)


def _spread(split: Split | CocoSplit, count: int) -> Split | CocoSplit:
    """Up to `count` images in their original order, chosen at random with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(split))[:count]
    return split.subset(sorted(int(index) for index in order))


def _photos(split: Split | CocoSplit) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The images of a split that can be decoded, upright and at full size."""
    photos = []
    for index in range(len(split)):
        with suppress(BadImage):
            photos.append(np.asarray(decode(split.source(index))))
    return photos


def sample_photos(count: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Crops of scikit-learn's two sample photographs, at several scales and shapes."""
    from sklearn.datasets import load_sample_images

    crops = [
        np.ascontiguousarray(photograph[y : y + height, x : x + width])
        for photograph in load_sample_images().images
        for height, width in ((160, 160), (240, 320), (320, 240))
        for x in range(0, 320, 80)
        for y in (0, 60, 100)
    ]
    return [crops[index * len(crops) // count] for index in range(count)]
