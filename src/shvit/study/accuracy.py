"""How well networks learn, all by the same recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..requests.train import TrainRequest
from ..tasks.classify import Classify
from ..train.budget import fit
from ..train.progress import Reporter
from ..train.recipes import make_recipe
from ..train.run import RECORD, recorded
from ..train.run import train as run_training
from ..train.start import variant_of


@dataclass(frozen=True)
class Training:
    """How accuracy is measured: every network alike, from fresh weights."""

    data: str
    epochs: int
    seeds: int = 1
    image_size: int | None = None
    """None: as speed is measured."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the recipe `scratch`."""
    device: str = "auto"
    workers: int = 2

    def like(self, model: str) -> "Training":
        """With the weight decay of this network's recipe for all: it is the only field that differs by network.

        Raises:
            InputError: Data that cannot be trained on, or settings that are not allowed.
        """
        if self.seeds < 1:
            raise InputError(f"--seeds must be at least 1, got {self.seeds}")
        named = {"epochs": self.epochs, **self.settings}
        recipe = make_recipe("scratch", variant_of(model), named, "classify")
        source = Classify.open(self.data, recipe.seed, recipe.val_share)
        source.check_trainable()
        decay = fit(recipe, len(source.train), frozenset(named)).weight_decay
        return replace(self, settings={**self.settings, "weight_decay": decay})

    def _settings(self, image_size: int | None, seed: int) -> dict[str, Any]:
        size = {"image_size": image_size} if image_size else {}
        return {**self.settings, "epochs": self.epochs, "seed": seed, **size}

    def check(self, model: str, folder: Path, image_size: int | None, seed: int) -> None:
        """Raises InputError where `run` would not go on with what is in the folder: it was begun otherwise."""
        if (folder / RECORD).exists():
            recorded(folder, {**self._settings(image_size, seed), "model": model})

    def run(self, model: str, folder: Path, image_size: int | None, seed: int, reporter: Reporter) -> float:
        """Top-1 of best.safetensors of a run: begun, gone on with, or only looked at.

        Args:
            model: Name of a network.
            folder: The run's.
            image_size: Side of the images in pixels; None: the network's own.
            seed: Of the run.
            reporter: Told of what happens.

        Raises:
            InputError: The run in the folder was begun otherwise; see `check`.
            Failure: Training cannot go on.
            KeyboardInterrupt: The run was stopped; it goes on another time.
        """
        settings = self._settings(image_size, seed)
        request = TrainRequest(
            self.data,
            out=folder,
            model=model,
            resume=(folder / RECORD).exists(),
            device=self.device,
            workers=self.workers,
            settings=settings,
        )
        result = run_training(request, reporter)
        if result.interrupted:
            raise KeyboardInterrupt
        if "top1" not in result.best:
            raise InputError(f"{folder} has no evaluation")
        return float(result.best["top1"])
