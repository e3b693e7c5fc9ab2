"""Train networks with the same recipe, to compare their accuracy."""

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
    """How a study trains its networks: all of them with the same recipe, from random weights."""

    data: str
    epochs: int
    seeds: int = 1
    image_size: int | None = None
    """In pixels. None: the size at which speed is measured. In `resolution`, None means the network's own size."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changes to fields of the recipe `scratch` that are not fields of this class."""
    device: str = "auto"
    workers: int = 2

    @classmethod
    def requested(cls, options: AccuracyOptions, device: str, seeds: int = 1) -> "Training | None":
        """Make the training that these options describe. Returns None if `--train DATA` is not given."""
        if options.train is None:
            return None
        return cls(options.train, options.epochs, seeds, options.train_size, {}, device, options.workers)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON data, without the credentials that a URL may contain."""
        return redacted(asdict(self))

    def like(self, model: str) -> "Training":
        """Return a copy that uses `model`'s weight decay for all networks. Other fields do not depend on the network.

        Raises:
            InputError: The data cannot be used for training, or a setting is not allowed.
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
        """Raise InputError if `run` cannot resume the run in this folder, because its settings are different."""
        if (folder / RECORD).exists():
            recorded(folder, {**self._settings(image_size, seed), "model": model})

    def run(self, model: str, folder: Path, image_size: int | None, seed: int, reporter: Reporter) -> float:
        """Train a network with this seed, or resume the run in `folder`. Returns the top-1 of the run's best epoch.

        If `image_size` is None, the network's own size is used.

        Raises:
            InputError: The run in the folder has different settings; see `check`.
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
