"""Train networks with one recipe, to compare their accuracy."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import check_at_least
from ..redact import redacted
from ..requests.study import AccuracyOptions
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
    """How every network of a study is trained: with the same recipe, from random weights."""

    data: str
    epochs: int
    seeds: int = 1
    image_size: int | None = None
    """None: the size at which speed is measured."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of the recipe `scratch`."""
    device: str = "auto"
    workers: int = 2

    @classmethod
    def requested(cls, options: AccuracyOptions, device: str, seeds: int = 1) -> "Training | None":
        """The training that the options request. None without `--train DATA`."""
        if options.train is None:
            return None
        return cls(options.train, options.epochs, seeds, options.train_size, {}, device, options.workers)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without credentials."""
        return redacted(asdict(self))

    def like(self, model: str) -> "Training":
        """Use this network's weight decay for all networks. No other field of the recipe depends on the network.

        Raises:
            InputError: The data cannot be trained on, or a setting is not allowed.
        """
        check_at_least(1, seeds=self.seeds)
        named = {"epochs": self.epochs, **self.settings}
        recipe = make_recipe("scratch", variant_of(model), named, "classify")
        source = Classify.open(self.data, recipe.seed, recipe.val_share)
        source.check_trainable()
        decay = fit(recipe, len(source.train), frozenset(named)).weight_decay
        return replace(self, settings={**self.settings, "weight_decay": decay})

    def _settings(self, image_size: int | None, seed: int) -> dict[str, Any]:
        return {**self.settings, "epochs": self.epochs, "seed": seed, "image_size": image_size}

    def check(self, model: str, folder: Path, image_size: int | None, seed: int) -> None:
        """Raise InputError if `run` cannot resume the run in the folder because it has other settings."""
        if (folder / RECORD).exists():
            recorded(folder, {**self._settings(image_size, seed), "model": model})

    def run(self, model: str, folder: Path, image_size: int | None, seed: int, reporter: Reporter) -> float:
        """Train a network from a seed, or resume the run in the folder. Returns the top-1 of its best.safetensors.

        An image size of None is the network's own.

        Raises:
            InputError: The run in the folder has other settings; see `check`.
            Failure: Training failed.
            KeyboardInterrupt: The run was stopped and can be resumed.
        """
        request = TrainRequest(
            self.data,
            out=folder,
            model=model,
            resume=(folder / RECORD).exists(),
            device=self.device,
            workers=self.workers,
            settings=self._settings(image_size, seed),
        )
        result = run_training(request, reporter)
        if result.interrupted:
            raise KeyboardInterrupt
        return float(result.best["top1"])
