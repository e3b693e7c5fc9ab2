"""The inputs of `shvit study redundancy`: labelled images, and a model or your own network (FILE.py:FUNCTION)."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from ..data.dataset import Dataset
from ..data.decode import BadImage
from ..data.loader import Loader, draw_some, worker_death_as_failure
from ..data.transforms import EvalReader, Normalize, Preprocess
from ..errors import Failure, InputError
from ..modelfile import ModelFile
from ..pretrained import load_model
from ..tasks import need_classifier
from ..tasks.labelled_data import Which, choose_split, relabel_for
from .heads import AttentionLayer, attention_layers


@dataclass(frozen=True)
class StudyModel:
    """A classifier and its attention layers."""

    name: str
    network: nn.Module
    """Maps normalized images to logits."""
    layers: tuple[AttentionLayer, ...]
    classes: tuple[str, ...]
    preprocess: Preprocess
    provenance: dict[str, Any]
    device: str
    """Device of the network."""
    model_file: ModelFile | None = None
    """None for a network from FILE.py:FUNCTION, which runs in PyTorch only."""
    task: str = "classify"


def open_study_model(name: str, device: str = "cpu") -> StudyModel:
    """Open a model file, published weights, or your own network.

    For `FILE.py:FUNCTION`, the function is called without arguments. It returns (network, layers, classes, preprocess):
    an `nn.Module`, a list of its `AttentionLayer`s, the class names and a `Preprocess`.

    Raises:
        InputError: The model does not exist, is not a classifier or has no attention layers. Or the function does not
            return these four values.
    """
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        network, layers, classes, preprocess = _call(Path(path), function)
        classes = tuple(map(str, classes))
        return StudyModel(name, network.eval().to(device), tuple(layers), classes, preprocess, {}, device)
    file = load_model(name)
    need_classifier(file, "study redundancy")
    network = file.model.eval().to(device)
    layers = tuple(attention_layers(network))
    known = file.classes, file.preprocess, dict(file.provenance)
    return StudyModel(file.architecture.name, network, layers, *known, device, file)


def _call(path: Path, function: str) -> Any:
    """Call the function in the file, check the types of the values that it returns, and return the values."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    make = run_path(str(path)).get(function)
    if not callable(make):
        raise InputError(f"{path} has no function {function!r}")
    made: Any = make()
    match made:
        case (nn.Module(), layers, _, Preprocess()):
            if not layers or not all(isinstance(layer, AttentionLayer) for layer in layers):
                raise InputError(f"{path}:{function}: layers must be a list of shvit.study.heads.AttentionLayer")
            return made
    got = f"({', '.join(type(part).__name__ for part in made)})" if isinstance(made, tuple) else type(made).__name__
    raise InputError(f"{path}:{function} must return (network, layers, classes, preprocess), got {got}")


class StudyImages:
    """Labelled images, decoded once and kept in memory as uint8, because the network runs on them many times.

    `which` chooses the split, as in `shvit eval`. Up to `count` of its images are drawn at random, with a fixed seed.

    Raises:
        InputError: The data has a class that the model does not know, or the split has no images.
        Failure: No image could be read.
    """

    def __init__(
        self, model: StudyModel, source: Dataset, which: Which, count: int, batch_size: int, workers: int
    ) -> None:
        chosen = choose_split(model, source, which)
        self.split = chosen.split
        split: Any = relabel_for(model, source, chosen.images)
        images = split.subset(draw_some(split, count, seed=0))
        self.bad: dict[str, str] = {}
        self._batches: list[tuple[UInt8[Tensor, "b 3 h w"], Int64[Tensor, " b"]]] = []
        with worker_death_as_failure():
            for batch in Loader(images, EvalReader(model.preprocess), batch_size, workers):
                self.bad |= {images.names[index]: why for index, why in batch.bad.items()}
                if len(batch.images):
                    self._batches.append((batch.images, batch.targets))
        self._normalize, self._device = Normalize(model.preprocess), model.device
        if not self._batches:
            raise Failure(f"could not read any of {len(images)} images. First error: {next(iter(self.bad.values()))}")

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"]]]:
        for pixels, labels in self._batches:
            yield self._normalize(pixels).to(self._device), labels

    def first(self, count: int) -> "list[tuple[Float[Tensor, 'b 3 h w'], Int64[Tensor, ' b']]]":
        """The first `count` images, in batches."""
        batches = []
        for images, labels in self:
            if count <= 0:
                break
            batches.append((images[:count], labels[:count]))
            count -= len(images)
        return batches

    def pictures(self, count: int) -> UInt8[np.ndarray, "n h w 3"]:
        """Up to `count` images, from as many classes as possible."""
        by_class: dict[int, list[Tensor]] = defaultdict(list)
        for pixels, labels in self._batches:
            for image, label in zip(pixels, labels.tolist(), strict=True):
                by_class[label].append(image)
        turns = zip_longest(*(by_class[label] for label in sorted(by_class)))
        order = (image for turn in turns for image in turn if image is not None)
        return torch.stack(list(islice(order, count))).permute(0, 2, 3, 1).numpy()


def read_pictures(paths: tuple[str, ...], preprocess: Preprocess) -> UInt8[np.ndarray, "n h w 3"]:
    """Read photographs and resize them for the network. Raises InputError if a photograph cannot be read."""
    read = EvalReader(preprocess)
    pictures = []
    for path in paths:
        try:
            pictures.append(read(Path(path)).permute(1, 2, 0).numpy())
        except BadImage as error:
            raise InputError(f"{path}: {error}") from None
    return np.stack(pictures)
