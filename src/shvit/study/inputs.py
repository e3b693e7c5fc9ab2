"""Inputs of `shvit study redundancy`: labelled images, and a model or your own network (FILE.py:FUNCTION)."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
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
    """A classifier with known attention layers."""

    network: nn.Module
    """Takes normalised images, returns logits."""
    layers: tuple[AttentionLayer, ...]
    classes: tuple[str, ...]
    preprocess: Preprocess
    provenance: dict[str, Any]
    device: str
    """Device of the network."""
    model_file: ModelFile | None = None
    """None for your own network, which runs in PyTorch."""


def open_study_model(name: str, device: str = "cpu") -> StudyModel:
    """Open a model file, published weights, or your own network.

    `FILE.py:FUNCTION` calls a function without arguments. It returns (network, layers, classes, preprocess): an
    `nn.Module`, a list of its `AttentionLayer`s, the class names and a `Preprocess`.

    Raises:
        InputError: No such model, it has no attention or is no classifier, or the function returns something else.
    """
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        return _from_file(Path(path), function, device)
    model_file = load_model(name)
    need_classifier(model_file, "study redundancy")
    network: Any = model_file.model
    return StudyModel(
        network.eval().to(device),
        tuple(attention_layers(network)),
        model_file.classes,
        model_file.preprocess,
        dict(model_file.provenance),
        device,
        model_file,
    )


def _from_file(path: Path, function: str, device: str) -> StudyModel:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    spec = spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, function, None)
    if not callable(make):
        raise InputError(f"{path} has no function {function!r}")
    made: Any = make()
    shape = "(network, layers, classes, preprocess)"
    if not isinstance(made, tuple) or len(made) != 4:
        raise InputError(f"{path}:{function} must return {shape}, got {type(made).__name__}")
    network, layers, classes, preprocess = made
    if not isinstance(network, nn.Module) or not isinstance(preprocess, Preprocess):
        kinds = ", ".join(type(part).__name__ for part in made)
        raise InputError(f"{path}:{function} must return {shape}, got ({kinds})")
    if not layers or not all(isinstance(layer, AttentionLayer) for layer in layers):
        raise InputError(f"{path}:{function}: layers must be a list of shvit.study.heads.AttentionLayer")
    return StudyModel(network.eval().to(device), tuple(layers), tuple(map(str, classes)), preprocess, {}, device)


class StudyImages:
    """Labelled images, decoded once and kept in memory as uint8, because every variant of the network runs on them.

    Args:
        model: Gives preprocessing and classes.
        source: Labelled images.
        which: Which split, as for `shvit eval`.
        count: Maximum number of images. They are drawn at random with a fixed seed.
        batch_size: Images per batch.
        workers: Data-loading worker processes.
        seed: For drawing the images.

    Raises:
        InputError: The model does not know a class, or there are no images.
        Failure: No image could be read.
    """

    def __init__(
        self, model: StudyModel, source: Dataset, which: Which, count: int, batch_size: int, workers: int, seed: int = 0
    ) -> None:
        chosen = choose_split(model, source, which)
        self.split = chosen.split
        split: Any = relabel_for(model, source, chosen.images)  # pyright: ignore[reportArgumentType]
        images = split.subset(sorted(draw_some(split, count, seed)))
        reader = EvalReader(model.preprocess)
        with worker_death_as_failure():
            batches = [
                (batch.images, batch.targets, batch.bad) for batch in Loader(images, reader, batch_size, workers)
            ]
        self.bad = {images.names[index]: why for _, _, bad in batches for index, why in bad.items()}
        self._batches = [(pixels, labels) for pixels, labels, _ in batches if len(pixels)]
        self.count = sum(len(pixels) for pixels, _ in self._batches)
        self._normalize, self._device = Normalize(model.preprocess), model.device
        if not self.count:
            raise Failure(f"could not read any of {len(images)} images. First error: {next(iter(self.bad.values()))}")

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"]]]:
        for pixels, labels in self._batches:
            yield self._normalize(pixels).to(self._device), labels

    def first(self, count: int) -> "list[tuple[Float[Tensor, 'b 3 h w'], Int64[Tensor, ' b']]]":
        """The first `count` images, in batches."""
        batches, left = [], count
        for images, labels in self:
            if left > 0:
                batches.append((images[:left], labels[:left]))
                left -= len(images)
        return batches

    def pictures(self, count: int) -> UInt8[np.ndarray, "n h w 3"]:
        """`count` images from as many classes as possible."""
        images = [image for pixels, _ in self._batches for image in pixels]  # views
        turns: Counter[int] = Counter()
        order = []
        for index, label in enumerate(int(label) for _, labels in self._batches for label in labels):
            order.append((turns[label], label, index))
            turns[label] += 1
        return torch.stack([images[index] for *_, index in sorted(order)[:count]]).permute(0, 2, 3, 1).numpy()


def read_pictures(paths: tuple[str, ...], preprocess: Preprocess) -> UInt8[np.ndarray, "n h w 3"]:
    """Read and resize photographs for the network. Raises InputError for one that cannot be read."""
    read = EvalReader(preprocess)
    pictures = []
    for path in paths:
        try:
            pictures.append(read(Path(path)).permute(1, 2, 0).numpy())
        except BadImage as error:
            raise InputError(f"{path}: {error}") from None
    return np.stack(pictures)
