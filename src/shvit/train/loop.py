"""One training loop for every task. What happens at a step follows from the recipe's seed, the epoch and the step."""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils.agc import adaptive_clip_grad
from timm.utils.model_ema import ModelEmaV3

from .. import modelfile
from ..data.loader import Batch, Loader, probe, seeded
from ..data.sources import Source
from ..data.transforms import Decoded, Normalize, TrainReader, eval_transform
from ..errors import Failure
from ..files import write_csv
from ..model.fuse import fuse
from ..modelfile import ModelFile
from ..tasks.base import Task
from .recipe import Recipe
from .report import Reporter, draw_curves
from .setup import make_optimizer, make_schedule, picks_bf16, picks_compile, rand_augment
from .state import State

PROBED = 512
"""Images of each split that are decoded before the first step, so that hopeless data is refused at once."""


class TrainError(Failure):
    """Training cannot go on; the message says why, and what is kept."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    out: Path
    epochs: int
    """Epochs done, those of earlier sittings included."""
    best: dict[str, Any]
    """Metrics of best.safetensors; empty before the first evaluation."""
    interrupted: bool
    seconds: float
    images_per_second: float
    """Of the training steps of this sitting, waiting for data included."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the folder."""
        return {**self.best, **{key: value for key, value in vars(self).items() if key not in ("out", "best")}}


class Trainer:
    """Trains the network of `start` on `source`, writing everything into the folder `out`.

    Args:
        task: What is learnt.
        start: The network to begin with, its classes and its preprocessing.
        source: The images.
        recipe: How, as `fit` gave it.
        out: The run's folder.
        device: Where to train.
        workers: Processes that decode.
        reporter: Told of what happens.
        facts: Goes into the provenance of the model files.
    """

    def __init__(
        self,
        task: Task,
        start: ModelFile,
        source: Source,
        recipe: Recipe,
        out: Path,
        device: str = "cpu",
        workers: int = 0,
        reporter: Reporter | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.task, self.source, self.recipe, self.out = task, source, recipe, out
        self.device = torch.device(device)
        self.reporter = reporter or Reporter()
        self.start = start
        self.facts = facts or {}
        self.bf16 = picks_bf16(recipe, device)
        size = start.preprocess.image_size
        self.compiled = picks_compile(recipe, self.device, start, len(source.train) * recipe.epochs)
        self.model = start.model.to(self.device, memory_format=torch.channels_last)  # pyright: ignore
        self.normalize = Normalize(start.preprocess).to(self.device)
        self.network = torch.compile(self.model, dynamic=False) if self.compiled else self.model
        self.ema = ModelEmaV3(self.model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        self.optimizer = make_optimizer(self.model, recipe)
        crop = recipe.crop_min, 1.0
        self.train_loader = Loader(
            source.train,
            TrainReader(size, crop, recipe.flip, recipe.color_jitter, rand_augment(recipe), recipe.max_pixels),
            recipe.batch_size,
            workers,
            shuffle=True,
            seed=recipe.seed,
        )
        self.val_loader = Loader(
            source.val,
            Decoded(eval_transform(start.preprocess), recipe.max_pixels),
            2 * min(recipe.batch_size, 128),
            workers,
        )
        self.excluded: set[int] = set()
        self.bad_images: dict[int, str] = {}
        self.bad_val: dict[int, str] = {}
        self.epoch = self.step = 0
        self.best = -1.0
        self.best_metrics: dict[str, Any] = {}
        self.loss_sum = self.seconds = 0.0
        self.stop_asked = False

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self, resume: bool = False) -> Result:
        """Train to the end, or until Ctrl-C.

        Raises:
            TrainError: The loss is no number any more, or too many images cannot be used.
            StateError: `resume`, and there is nothing to continue from.
        """
        if resume:
            self._restore()
        else:
            self._probe()
            self._save_state()
        if len(self.train_loader) == 0:
            raise TrainError(
                f"{self.train_loader.images} usable training images do not fill one batch of {self.recipe.batch_size}"
            )
        schedule = make_schedule(self.optimizer, self.recipe, self.steps_per_epoch)
        images_done, train_seconds = 0, 0.0
        with self._stops_on_ctrl_c(), self.reporter.training(self):
            while self.epoch < self.recipe.epochs:
                done, seconds, wait = self._train_epoch(schedule)
                images_done, train_seconds = images_done + done, train_seconds + seconds
                if self.stop_asked:
                    break
                self._end_epoch(done / seconds, wait / seconds)
        self._save_state()
        speed = images_done / train_seconds if train_seconds else 0.0
        return Result(self.out, self.epoch, self.best_metrics, self.epoch < self.recipe.epochs, self.seconds, speed)

    def _train_epoch(self, schedule: Scheduler) -> tuple[int, float, float]:
        """The steps of this epoch that are left. Returns images, seconds, and seconds spent waiting for data."""
        self.model.train()
        images, wait = 0, 0.0
        self.train_loader.sampler.start = self.step
        batches = self.train_loader.epoch(self.epoch)
        steps = len(self.train_loader)
        started = last = time.perf_counter()
        while self.step < steps and not self.stop_asked:
            asked = time.perf_counter()
            batch = next(batches)
            wait += time.perf_counter() - asked
            self.bad_images |= batch.bad
            if len(batch):
                progress = self.epoch + self.step / steps
                schedule.step_update(round(progress * self.steps_per_epoch))
                key = (self.recipe.seed, self.epoch, len(self.source.train) + self.step)
                with seeded(*key, device=self.device):
                    self._train_step(batch)
                images += len(batch)
            self.step += 1
            now = time.perf_counter()
            self.seconds, last = self.seconds + now - last, now
            self.reporter.step(self, images / (now - started))
        return images, max(time.perf_counter() - started, 1e-9), wait

    def _train_step(self, batch: Batch) -> None:
        images = _fill(batch, self.recipe.batch_size)
        inputs, targets = self.task.augment(self.normalize(images.images), images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self.network(inputs)
        loss = self.task.loss(outputs, targets)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value}")
        loss.backward()
        if self.recipe.clip:
            adaptive_clip_grad(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model, step=self.epoch * self.steps_per_epoch + self.step)
        self.loss_sum += value

    def _diverged(self, what: str) -> TrainError:
        kept = f"the weights of epoch {self.epoch} are kept in {self.out / 'last.safetensors'}"
        return TrainError(
            f"{what} in epoch {self.epoch + 1}, step {self.step + 1}; "
            f"{kept if self.epoch else 'no epoch was complete'}; a rate below {self.recipe.rate:g} may help"
        )

    def _end_epoch(self, speed: float, wait_share: float) -> None:
        """Evaluate, write, and get ready for the next epoch."""
        started = time.perf_counter()
        if not all(value.isfinite().all() for value in self.model.state_dict().values()):
            raise self._diverged("the weights became infinite")
        self._check_bad_share(len(self.bad_images), self.train_loader.images + len(self.excluded), "training")
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "train_loss": self.loss_sum / max(1, self.step),
            "rate": self.optimizer.param_groups[0]["lr"],
        }
        candidates = self._candidates()
        judged = {}
        for name, network in candidates.items():
            evaluation = self.task.evaluate(self._predictor(network), self.val_loader)
            self.bad_val |= evaluation.bad
            judged[name] = evaluation.metrics()
            row[f"{name}_{self.task.headline}"] = judged[name][self.task.headline]
        which = max(judged, key=lambda name: judged[name][self.task.headline])
        metrics, network = judged[which], candidates[which]
        score = metrics[self.task.headline]
        self._check_bad_share(len(self.bad_val), len(self.source.val), "validation")
        self._write_bad_images()
        saved = {**metrics, "weights": which, "epoch": self.epoch + 1}
        self._save_model("last", network, saved)
        if score > self.best:
            self.best, self.best_metrics = score, saved
            self._save_model("best", network, saved)
        self.seconds += time.perf_counter() - started
        row |= {**saved, "images_per_second": speed, "data_wait": wait_share, "seconds": self.seconds}
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        draw_curves(self.out, self.task.headline)
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        self.excluded |= set(self.bad_images)
        self.train_loader.sampler.exclude(self.excluded)
        self._save_state()
        self.reporter.epoch(self, row)

    def _candidates(self) -> dict[str, torch.nn.Module]:
        """What to evaluate. The last epoch judges weights and their average; others both only where that is cheap."""
        if self.ema is None:
            return {"model": self.model}
        both = {"ema": self.ema.module, "model": self.model}
        forward_share = len(self.source.val) / (3 * len(self.source.train))  # a training step costs three forwards
        last = self.epoch + 1 == self.recipe.epochs
        return both if last or forward_share < 0.1 else {"ema": self.ema.module}

    def _predictor(self, network: Any) -> Any:
        folded = fuse(network).to(memory_format=torch.channels_last)  # pyright: ignore

        @torch.inference_mode()
        def predict(images: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                return folded(self.normalize(images))

        return predict

    # -- what is written ----------------------------------------------------------------------------------------------

    def _save_model(self, name: str, network: Any, metrics: dict[str, Any]) -> None:
        provenance = {"recipe": self.recipe.to_dict(), "data_fingerprint": self.source.fingerprint, **self.facts}
        trained = replace(self.start, model=network, metrics=metrics, provenance=provenance)
        modelfile.save(trained, self.out / f"{name}.safetensors")

    def _save_state(self) -> None:
        State(
            epoch=self.epoch,
            step=self.step,
            model=self.model.state_dict(),
            ema=self.ema.module.state_dict() if self.ema is not None else None,
            optimizer=self.optimizer.state_dict(),
            best=self.best,
            best_metrics=self.best_metrics,
            bad_images=self.bad_images,
            bad_val=self.bad_val,
            excluded=sorted(self.excluded),
            loss_sum=self.loss_sum,
            seconds=self.seconds,
            fingerprint=self.source.fingerprint,
        ).save(self.out / "state.pt")

    def _restore(self) -> None:
        state = State.load(self.out / "state.pt")
        if state.fingerprint != self.source.fingerprint:
            raise TrainError(
                f"{self.source.name} is not the data that {self.out} was trained on; a new run needs another --out"
            )
        self.model.load_state_dict(state.model)
        if self.ema is not None and state.ema is not None:
            self.ema.module.load_state_dict(state.ema)
        self.optimizer.load_state_dict(state.optimizer)
        self.epoch, self.step = state.epoch, state.step
        self.best, self.best_metrics = state.best, state.best_metrics
        self.bad_images, self.bad_val = state.bad_images, state.bad_val
        self.loss_sum, self.seconds = state.loss_sum, state.seconds
        self.excluded = set(state.excluded)
        self.train_loader.sampler.exclude(self.excluded)

    # -- bad images ---------------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Decode some images of each split before the first step; all of them where there are few."""
        for which, split in (("training", self.source.train), ("validation", self.source.val)):
            bad = probe(split, PROBED, self.recipe.seed, self.recipe.max_pixels)
            (self.bad_images if which == "training" else self.bad_val).update(bad)
            self._write_bad_images()
            self._check_bad_share(len(bad), min(PROBED, len(split)), which)
        self.excluded = set(self.bad_images)
        self.train_loader.sampler.exclude(self.excluded)

    def _check_bad_share(self, bad: int, seen: int, which: str) -> None:
        if bad > self.recipe.max_bad_share * seen:
            raise TrainError(
                f"{bad} of {seen} {which} images cannot be used, "
                f"more than --max-bad-share {self.recipe.max_bad_share:g}; "
                f"{self.out / 'bad_images.csv'} lists them with reasons"
            )

    def _write_bad_images(self) -> None:
        if not self.bad_images and not self.bad_val:
            return
        splits = (("train", self.source.train, self.bad_images), ("val", self.source.val, self.bad_val))
        rows = [[name, split.names[i], bad[i]] for name, split, bad in splits for i in sorted(bad)]
        write_csv(self.out / "bad_images.csv", ["split", "image", "reason"], rows)

    # -- helpers of the run -------------------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        """As planned, before any image turned out to be bad."""
        return max(1, len(self.source.train) // self.recipe.batch_size)

    @contextlib.contextmanager
    def _stops_on_ctrl_c(self) -> Iterator[None]:
        """The first Ctrl-C ends training after the step in progress; the second ends the program."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(signum: int, frame: Any) -> None:
            self.stop_asked = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _fill(batch: Batch, batch_size: int) -> Batch:
    """A batch that bad images made smaller, filled up with its own first images, so that all steps are alike."""
    if len(batch) == batch_size:
        return batch
    picked = torch.arange(batch_size) % len(batch)
    return Batch(batch.images[picked], batch.labels[picked], [batch.indices[i] for i in picked.tolist()], batch.bad)
