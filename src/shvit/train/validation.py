"""Evaluates networks on the validation images during training."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from ..data.loader import Loader
from ..data.transforms import Normalize
from ..model.fuse import fuse
from ..tasks.base import Predict, Task
from .bad_images import BadImages
from .distributed import ProcessGroup


class Validator:
    """Measures the metrics of a network on the validation images of all processes.

    Args:
        task: The task that is trained.
        loader: Loads this process's share of the validation images.
        normalize: Converts uint8 images to the network's inputs.
        autocast: Sets the precision of the forward pass.
        group: The training processes.
        bad: Collects the validation images that cannot be used.
    """

    def __init__(
        self,
        task: Task,
        loader: Loader,
        normalize: Normalize,
        autocast: AbstractContextManager[Any],
        group: ProcessGroup,
        bad: BadImages,
    ) -> None:
        self._task, self._loader, self._normalize = task, loader, normalize
        self._autocast, self._group, self._bad = autocast, group, bad

    def __call__(self, network: nn.Module) -> dict[str, Any]:
        """The metrics of a network, which stays as it is. Raises TrainError if too many images cannot be used."""
        evaluation = self._task.evaluate(self.predict(network), self._loader, self._group.gather)
        self._bad.val |= evaluation.bad
        self._bad.check("val")
        return evaluation.metrics()

    def predict(self, network: nn.Module) -> Predict:
        """A function from uint8 images to the raw outputs of a network, fused and in the precision of training."""
        fused: Any = fuse(network).to(self._normalize.mean.device, memory_format=torch.channels_last)  # pyright: ignore

        @torch.inference_mode()
        def run(images: UInt8[Tensor, "b 3 h w"]) -> Any:
            with self._autocast:
                return fused(self._normalize(images))

        return run
