"""Adapt a model to another image size without training, by measuring its BatchNorm statistics again."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import engines
from .data.dataset import Dataset
from .data.identity import TrainedOn
from .data.loader import Batch, Loader, worker_death_as_failure
from .data.transforms import EvalReader, Normalize, Preprocess
from .errors import InputError, check_at_least
from .evaluate import evaluate_model
from .model.architecture import Model
from .model.cost import cost
from .modelfile import ModelFile, beside_model, save
from .pretrained import load_model
from .requests.calibrate_bn import CalibrateRequest
from .tasks import need_classifier
from .tasks.labelled_data import open_as_trained

MIN_NORM_BATCH = 2
"""Smallest batch size for which a variance can be computed."""


@dataclass(frozen=True)
class CalibratedNorms:
    """A model calibrated for a new image size, and its metrics before and after."""

    model_file: ModelFile
    before: dict[str, Any]
    """Metrics at the new image size with the original statistics."""
    after: dict[str, Any]
    images: int
    """Number of images that the statistics were measured on."""
    out: Path | None = None
    """The written model file; see `calibrate_bn`."""

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, for JSON."""
        size = self.model_file.preprocess.image_size
        return {"image_size": size, "images": self.images, "before": self.before, "after": self.after}


def calibrate_bn(request: CalibrateRequest) -> CalibratedNorms:
    """Adapt a model to the requested image size, and write the new model file. Raises like `calibrate_model`."""
    model_file = load_model(request.model)
    source, size = open_as_trained(request.data, model_file), request.image_size
    result = calibrate_model(
        model_file, source, size, request.images, request.batch_size, request.workers, request.device
    )
    out = request.out or beside_model(request.model, ".safetensors", str(size))
    save(result.model_file, out)
    return replace(result, out=out)


def calibrate_model(
    model_file: ModelFile,
    source: Dataset,
    image_size: int,
    images: int = 4096,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    seed: int = 0,
) -> CalibratedNorms:
    """Measure the BatchNorm statistics of a trained network at another image size.

    Training images are processed as in evaluation, except that each BatchNorm uses the statistics of its batch. The new
    statistics are the mean and variance over all images, so a smaller last batch has less weight. The weights and
    `model_file` are not changed.

    Args:
        source: Labelled images. Statistics are measured on training images, metrics on validation images.
        image_size: Side of the square images, in pixels.
        images: Number of training images to draw at random with `seed`. If the dataset has fewer, all are used.
        workers: Worker processes that decode images; 0 decodes in this process.

    Raises:
        InputError: The model is not a classifier, has no BatchNorm, or does not accept this size. Or the dataset has
            no training images, or has a class that the model does not know.
    """
    need_classifier(model_file, "calibrate-bn")
    check_at_least(MIN_NORM_BATCH, images=images, batch_size=batch_size)
    if not len(source.train):
        raise InputError(f"{source.name} has no training images to measure statistics on")
    picked = engines.pick_device(device)
    resized = replace(model_file, preprocess=replace(model_file.preprocess, image_size=image_size))
    cost(model_file.model, (image_size, image_size))
    drawn = source.train.subset(np.random.default_rng(seed).permutation(len(source.train))[:images].tolist())
    reader = EvalReader(resized.preprocess)
    loader = Loader(drawn, reader, batch_size, workers)
    with worker_death_as_failure():
        network, seen = with_statistics_of(model_file.model, resized.preprocess, loader, picked)
    calibrated = replace(resized, model=network)
    before, after = (
        evaluate_model(each, engines.load(each, "torch", "fp32", picked), source, "val", batch_size, workers).to_dict()
        for each in (resized, calibrated)
    )
    provenance = {
        **model_file.provenance,
        "trained_on": (TrainedOn.of(drawn.images) | TrainedOn.recorded(model_file.provenance)).to_dict(),
        "calibrated": {"from_image_size": model_file.preprocess.image_size, "images": seen, "seed": seed},
    }
    metrics = {key: after[key] for key in ("top1", "top5", "loss", "images")}
    return CalibratedNorms(replace(calibrated, metrics=metrics, provenance=provenance), before, after, seen)


@torch.no_grad()
def with_statistics_of(
    model: Model, preprocess: Preprocess, batches: Iterable[Batch], device: str = "cpu"
) -> tuple[Model, int]:
    """Return a copy of the network with BatchNorm statistics from these images, and the number of images used.

    Raises:
        InputError: The network has no BatchNorm, or no batch has two usable images.
    """
    network: Any = copy.deepcopy(model).eval().to(device, memory_format=torch.channels_last)  # pyright: ignore
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise InputError(f"{model.architecture.name} has no BatchNorm to calibrate")
    pools, momenta = [_Pool(norm) for norm in norms], [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # sets the running statistics to the statistics of the last batch
        norm.train()
    normalize, seen = Normalize(preprocess).to(device), 0
    for batch in batches:
        if len(batch) >= MIN_NORM_BATCH:
            network(normalize(batch.images))
            seen += len(batch)
    if not seen:
        raise InputError(f"no batch has {MIN_NORM_BATCH} usable images")
    for norm, pool, momentum in zip(norms, pools, momenta, strict=True):
        pool.finish()
        norm.momentum = momentum
    return network.eval().cpu(), seen


class _Pool:
    """Computes the mean and variance of all inputs of a norm from the mean and variance of each batch.

    The variance includes the differences between the means of the batches. It is unbiased, like PyTorch's running
    variance.

    Source: T. Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    def __init__(self, norm: Any) -> None:
        self._norm, self._count = norm, 0
        self._mean, self._squares = (torch.zeros(norm.num_features, dtype=torch.float64) for _ in range(2))
        self._hook = norm.register_forward_hook(self._add)

    def _add(self, norm: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        count = inputs[0].numel() // norm.num_features
        total = self._count + count
        apart = norm.running_mean.cpu().double() - self._mean
        self._mean += apart * count / total
        self._squares += norm.running_var.cpu().double() * (count - 1) + apart.square() * self._count * count / total
        self._count = total

    def finish(self) -> None:
        """Set the running statistics of the norm to the computed mean and variance."""
        self._hook.remove()
        self._norm.running_mean.copy_(self._mean)
        self._norm.running_var.copy_(self._squares / (self._count - 1))
