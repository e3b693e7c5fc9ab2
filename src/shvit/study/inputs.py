"""What `shvit study redundancy` looks at: a model and labelled images; a user's own network by FILE.py:FUNCTION."""

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

from ..data.decode import BadImage, decode
from ..data.loader import Loader, draw_some, worker_death_as_failure
from ..data.sources import Dataset
from ..data.transforms import Decoded, Normalize, Preprocess, eval_transform
from ..errors import Failure, InputError
from ..modelfile import ModelFile
from ..pretrained import load_model
from ..tasks import need_classifier
from ..tasks.labelled_data import Which, choose_split, relabel_for
from .heads import AttentionLayer, attention_layers


@dataclass(frozen=True)
class Subject:
    """A classifier whose heads can be looked at."""

    network: nn.Module
    """From normalised images to logits."""
    layers: tuple[AttentionLayer, ...]
    classes: tuple[str, ...]
    preprocess: Preprocess
    provenance: dict[str, Any]
    device: str
    """Where the network is."""
    model_file: ModelFile | None = None
    """None of a user's own network, which runs in PyTorch as it is."""


def open_subject(name: str, device: str = "cpu") -> Subject:
    """A model file, published weights, or what a function without arguments in a user's file returns.

    That function, `FILE.py:FUNCTION`, returns (network, layers, classes, preprocess): an `nn.Module`, the list of its
    `AttentionLayer`s, the names of its classes and a `Preprocess`.

    Raises:
        InputError: No such model, one without attention, or not a classifier; the file's function returns something
            else.
    """
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        return _from_file(Path(path), function, device)
    model_file = load_model(name)
    need_classifier(model_file, "study redundancy")
    network: Any = model_file.model
    return Subject(
        network.eval().to(device),
        tuple(attention_layers(network)),
        model_file.classes,
        model_file.preprocess,
        dict(model_file.provenance),
        device,
        model_file,
    )


def _from_file(path: Path, function: str, device: str) -> Subject:
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
    return Subject(network.eval().to(device), tuple(layers), tuple(map(str, classes)), preprocess, {}, device)


class Images:
    """Decoded once and held in memory, since every variant of the network sees them all; 8 bits a value.

    Args:
        subject: Gives preprocessing and classes.
        source: Labelled images.
        which: As for `shvit eval`.
        count: At most so many are drawn, by seed.

    Raises:
        InputError: Classes that the model does not know, or no images.
        Failure: None could be read.
    """

    def __init__(
        self, subject: Subject, source: Dataset, which: Which, count: int, batch_size: int, workers: int, seed: int = 0
    ) -> None:
        judged = choose_split(subject, source, which)
        self.split = judged.split
        split: Any = relabel_for(subject, source, judged.images)  # pyright: ignore[reportArgumentType]
        drawn = sorted(draw_some(split, count, seed))
        chosen = split.subset(drawn)
        reader = Decoded(eval_transform(subject.preprocess))
        with worker_death_as_failure():
            self._batches = [
                (batch.images, batch.targets, batch.bad) for batch in Loader(chosen, reader, batch_size, workers)
            ]
        self.bad = {chosen.names[index]: why for _, _, bad in self._batches for index, why in bad.items()}
        self._batches = [row for row in self._batches if len(row[0])]
        self.count = sum(len(images) for images, _, _ in self._batches)
        self._normalize, self._device = Normalize(subject.preprocess), subject.device
        if not self.count:
            raise Failure(
                f"none of {len(chosen)} images could be read, the first because: {next(iter(self.bad.values()))}"
            )

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"]]]:
        for images, labels, _ in self._batches:
            yield self._normalize(images).to(self._device), labels

    def first(self, count: int) -> "list[tuple[Float[Tensor, 'b 3 h w'], Int64[Tensor, ' b']]]":
        """The first so many of them, which are drawn, too."""
        found, left = [], count
        for images, labels in self:
            if left > 0:
                found.append((images[:left], labels[:left]))
                left -= len(images)
        return found

    def pictures(self, count: int) -> UInt8[np.ndarray, "n h w 3"]:
        """Of as many classes as there are, one after another."""
        images = [image for images, _, _ in self._batches for image in images]  # views
        turns: Counter[int] = Counter()
        order = []
        for place, label in enumerate(int(label) for _, labels, _ in self._batches for label in labels):
            order.append((turns[label], label, place))
            turns[label] += 1
        return torch.stack([images[place] for *_, place in sorted(order)[:count]]).permute(0, 2, 3, 1).numpy()


def read_pictures(paths: tuple[str, ...], preprocess: Preprocess) -> UInt8[np.ndarray, "n h w 3"]:
    """Photographs as the network sees them. Raises InputError for one that cannot be read."""
    to_pixels = eval_transform(preprocess)
    found = []
    for path in paths:
        try:
            found.append(to_pixels(decode(Path(path))).permute(1, 2, 0).numpy())
        except BadImage as error:
            raise InputError(f"{path}: {error}") from None
    return np.stack(found)
