"""The sample of an export: an image and its expected results, with which any reader of the file can check itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..data.letterbox import Letterbox
from ..engines.base import Engine
from ..engines.exported import ExpectedSample
from ..modelfile import ModelFile
from ..tasks.base import Results, Task

SAMPLE_SIDE = 480
"""Maximum side of the sample of an end-to-end export, in pixels."""
SAMPLE_SIZE = 5
"""Number of classes or objects in a sample."""
TELLING = 0.7
"""The sample is the photograph whose highest score is closest to this. If a reader resizes or normalizes differently,
such a score changes more than one close to 1."""


@dataclass(frozen=True)
class SampleImage:
    """The sample of an export before the file has run: its image, and what PyTorch finds in it."""

    pixels: UInt8[np.ndarray, "h w 3"]
    sample: ExpectedSample
    """Without scores."""
    expected: Results


def choose_sample(
    model_file: ModelFile,
    task: Task,
    photos: Sequence[UInt8[np.ndarray, "h w 3"]],
    name: str,
    end_to_end: bool,
    reference: Engine,
) -> SampleImage:
    """Choose one of these photographs.

    Args:
        name: Name of the file that the image will be written to.
        end_to_end: Whether the export takes the photograph itself, rather than the pixels of the network's input.
        reference: PyTorch's engine for the model.
    """
    read = task.fast_reader(model_file.preprocess)
    found: list[tuple[float, np.ndarray, Results]] = []
    for photo in photos:
        shown = reduced(photo) if end_to_end else photo
        pixels, letterbox = read(shown)
        if not end_to_end:
            shown = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
            letterbox = None if letterbox is None else Letterbox(pixels.shape[1], pixels.shape[2], 1.0, 1.0)
        outputs = reference(pixels[None].contiguous()) / model_file.calibration.temperature
        results = task.to_results(outputs, letterbox)
        found.append((abs(float(results["scores"].max(initial=0)) - TELLING), shown, results))
    _, shown, expected = min(found, key=lambda one: one[0])
    classes, boxes = task.best(expected, SAMPLE_SIZE)
    return SampleImage(shown, ExpectedSample(name, classes, None, boxes), expected)


def reduced(photo: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The photograph with sides of at most `SAMPLE_SIDE` pixels."""
    image = Image.fromarray(photo)
    image.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE))
    return np.array(image)


def with_scores(sample: ExpectedSample, task: Task, found: Results) -> ExpectedSample:
    """The sample with the scores that its export found."""
    scores = task.scores_of(found, sample.classes, sample.boxes)
    return replace(sample, scores=tuple(round(score, 6) for score in scores))
