"""One training loop for every task. What happens at a step follows from the recipe's seed, the epoch and the step."""

import contextlib
import json
import math
import signal
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3

from .. import modelfile
from ..data.coco import CocoDataset
from ..data.dataset import Dataset
from ..data.loader import Batch, Loader, Share, seeded, worker_death_as_failure
from ..data.transforms import Normalize
from ..files import replacing, sweep, writing
from ..model.fuse import fuse
from ..modelfile import ModelFile
from ..tasks.base import Task
from .bad_images import BadImages, TrainError
from .budget import Choice
from .checkpoint import NEWEST, State
from .clip import clip_adaptively
from .distributed import World
from .optim import (
    DTYPES,
    check_norms,
    make_optimizer,
    make_schedule,
    picks_compile,
    picks_training_precision,
    schedule_time,
)
from .recipe import Recipe
from .report import Reporter, draw_curves, read_metrics
from .signals import on_stop_signal

SAVE_EVERY = 500
"""Steps from one state on disk to the next."""
LOSSES_KEPT = 20
"""Steps for which a GPU's losses wait to be looked at, so that the GPU need not wait for whoever looks."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    out: Path
    epochs: int
    """Epochs done, those of earlier sittings included."""
    best: dict[str, Any]
    """Metrics of best.safetensors; empty before the first evaluation."""
    stopped_by: signal.Signals | None
    """SIGINT (Ctrl-C) or SIGTERM, where one of them ended the run before its time."""
    seconds: float
    images_per_second: float
    """Of the training steps of this sitting, waiting for data included, over all processes."""
    choices: tuple[Choice, ...] = ()
    """Settings that the data or the number of epochs decided, and why."""

    @property
    def interrupted(self) -> bool:
        """Whether there is something left to resume."""
        return self.stopped_by is not None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the folder."""
        return {
            **self.best,
            "epochs": self.epochs,
            "interrupted": self.interrupted,
            "stopped_by": self.stopped_by and self.stopped_by.name,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "choices": [choice.to_dict() for choice in self.choices],
        }


class Trainer:
    """Trains the network of `start` on `source`, writing everything into the folder `out`.

    Args:
        task: What is learnt.
        start: The network to begin with, its classes and its preprocessing.
        source: The images.
        recipe: How, as `fit` gave it.
        out: The run's folder.
        device: Where to train.
        workers: Processes that decode, for each process that trains.
        reporter: Told of what happens.
        facts: Goes into the provenance of the model files.
        world: The processes that train together; each has a trainer, and the first one's writes.
        save_every: Steps from one state on disk to the next.
    """

    def __init__(
        self,
        task: Task,
        start: ModelFile,
        source: Dataset | CocoDataset,
        recipe: Recipe,
        out: Path,
        device: str = "cpu",
        workers: int = 0,
        reporter: Reporter | None = None,
        facts: dict[str, Any] | None = None,
        world: World | None = None,
        save_every: int = SAVE_EVERY,
    ) -> None:
        self.task, self.source, self.recipe, self.out = task, source, recipe, out
        self.device = torch.device(device)
        self.reporter = reporter or Reporter()
        self.start = start
        self.facts = facts or {}
        self.world = world or World()
        self.save_every = save_every
        self.precision = picks_training_precision(recipe, device, start)
        self.autocast = torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")  # pyright: ignore
        self.compiled = picks_compile(recipe, self.device, start, len(source.train) * recipe.epochs)
        self.model = start.model.to(self.device, memory_format=torch.channels_last)  # pyright: ignore
        task.ready(self.model.train())  # before what asks which weights learn: DDP, the optimiser
        check_norms(self.model, recipe, start.preprocess.image_size, self.world.size)
        self.normalize = Normalize(start.preprocess).to(self.device)
        self.wrapped = self.world.wrap(self.model)
        self.network = torch.compile(self.wrapped, dynamic=False) if self.compiled else self.wrapped
        self.ema = ModelEmaV3(self.model, decay=recipe.ema, use_warmup=recipe.ema_warmup) if recipe.ema else None
        self.optimizer = make_optimizer(self.model, recipe)
        self.schedule = make_schedule(self.optimizer, recipe, self.steps_per_epoch)
        self.train_loader, self.val_loader = self._loaders(workers)
        self.bad = BadImages(source, out, recipe.max_bad_share, self.world.leads)
        self.epoch = self.step = 0
        self.best = -1.0
        self.best_metrics: dict[str, Any] = {}
        self.loss_sum = self.seconds = 0.0
        self._losses: list[torch.Tensor] = []
        self.stopped_by: signal.Signals | None = None

    def _loaders(self, workers: int) -> tuple[Loader, Loader]:
        recipe, preprocess, world = self.recipe, self.start.preprocess, self.world
        train = Loader(
            self.source.train,
            self.task.train_reader(preprocess, recipe),
            recipe.batch_size,
            workers,
            shuffle=True,
            seed=recipe.seed,
            share=Share(world.rank, world.size, recipe.accumulate),
            repeats=recipe.repeats,
            views=recipe.views,
            pinned=self.device.type == "cuda",
        )
        val = Loader(
            self.source.val,
            self.task.eval_reader(preprocess, recipe.max_pixels),
            self.task.eval_batch(recipe.batch_size, world.size),
            workers,
            share=Share(world.rank, world.size),
        )
        return train, val

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self, resume: bool = False) -> Result:
        """Train to the end, or until Ctrl-C or SIGTERM.

        Args:
            resume: Go on from the last sound state in `out`; from the beginning where none was written yet.

        Raises:
            TrainError: The loss is no number any more, or too many images cannot be used.
            StateError: `resume`, and there are states but no sound one.
        """
        if not (resume and self._restore()):
            self.bad.train, self.bad.val = self.world.first(self._probe)
            self._exclude(set(self.bad.train))
            self._save_state()
        if self.epoch == self.recipe.epochs:
            self.reporter.finished(self)
            return Result(self.out, self.epoch, self.best_metrics, None, self.seconds, 0.0)
        if len(self.train_loader) == 0:
            raise TrainError(
                f"{self.train_loader.images} usable training images do not fill one batch of {self.recipe.batch_size}"
            )
        images_done, train_seconds = 0, 0.0
        with worker_death_as_failure(), on_stop_signal(self._stop), self.reporter.training(self):
            while self.epoch < self.recipe.epochs:
                done, seconds, wait = self._train_epoch()
                images_done, train_seconds = images_done + done, train_seconds + seconds
                if self.step < len(self.train_loader):
                    self._save_state()
                    break
                self._end_epoch(done / seconds, wait / seconds)
        speed = images_done / train_seconds if train_seconds else 0.0
        finished = self.epoch == self.recipe.epochs
        stopped_by = None if finished else self.stopped_by or signal.SIGTERM  # by another process's, perhaps
        return Result(self.out, self.epoch, self.best_metrics, stopped_by, self.seconds, speed)

    def _train_epoch(self) -> tuple[int, float, float]:
        """The steps of this epoch that are left. Returns images, seconds, and seconds spent waiting for data."""
        self.task.ready(self.model.train())
        self.train_loader.sampler.start = self.step
        batches = self.train_loader.epoch(self.epoch)
        steps, images, wait = len(self.train_loader), 0, 0.0
        started = last = time.perf_counter()
        while self.step < steps:
            asked = time.perf_counter()
            pieces = list(islice(batches, self.recipe.accumulate))
            wait += time.perf_counter() - asked
            for piece in pieces:
                self.bad.train |= piece.bad
            stop, empty = self.world.sum(self.stopped_by is not None, not all(map(len, pieces)))
            if stop:
                break
            if not empty:
                done = self.step / steps
                self.schedule.step_update(schedule_time(self.recipe, self.epoch, done, self.steps_per_epoch))
                key = (self.recipe.seed, self.epoch, len(self.source.train) + self.step, self.world.rank)
                with seeded(*key, device=self.device):
                    self.train_step(pieces)
                images += self.recipe.batch_size
            self.step += 1
            now = time.perf_counter()
            self.seconds, last = self.seconds + now - last, now
            if self.step % self.save_every == 0 and self.step < steps:
                self._save_state()
            self.reporter.step(self, images / (now - started), wait / (now - started))
        self._add_losses()
        return images, max(time.perf_counter() - started, 1e-9), wait

    def train_step(self, pieces: list[Batch]) -> None:
        """Learn from one batch, in its pieces."""
        size = self.recipe.batch_size // (self.world.size * len(pieces))
        loss = torch.zeros((), device=self.device)
        for number, piece in enumerate(pieces, 1):
            with contextlib.nullcontext() if number == len(pieces) else self.world.without_sync(self.wrapped):
                loss += self._add_gradients(piece.filled(size)) / len(pieces)
        self._losses.append(loss)
        if len(self._losses) >= LOSSES_KEPT or self.device.type == "cpu":
            self._add_losses()
        if self.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            clip_adaptively(self.model.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            step = self.epoch * self.steps_per_epoch + self.step
            self.ema.update(self.model, step=step if self.recipe.ema_warmup else None)  # None: constant from the start

    def _add_gradients(self, batch: Batch) -> torch.Tensor:
        """Of a piece of a batch. Returns its loss."""
        inputs, targets = self.task.augment(self.normalize(batch.images), batch)
        with self.autocast:
            loss = self.task.loss(self.network, inputs, targets)
        self.scaler.scale(loss / self.recipe.accumulate).backward()
        return loss.detach()

    def _add_losses(self) -> None:
        """Adds up the losses that were not looked at yet, each the mean of all processes; all must be numbers."""
        if not self._losses:
            return
        for loss in self.world.sum(*torch.stack(self._losses).tolist()):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss became {loss}")
            self.loss_sum += loss / self.world.size
        self._losses.clear()

    def _diverged(self, what: str) -> TrainError:
        kept = f"the weights of epoch {self.epoch} are kept in {self.out / 'last.safetensors'}"
        return TrainError(
            f"{what} in epoch {self.epoch + 1}, step {self.step + 1}; "
            f"{kept if self.epoch else 'no epoch was complete'}; a rate below {self.recipe.rate:g} may help"
        )

    def _end_epoch(self, speed: float, wait_share: float) -> None:
        """Evaluate, write, and get ready for the next epoch."""
        started, headline = time.perf_counter(), self.task.headline
        if not all(value.isfinite().all() for value in self.model.state_dict().values()):
            raise self._diverged("the weights became infinite")
        self._gather_bad()
        self.bad.check("train")
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "train_loss": self.mean_loss,
            "rate": self.optimizer.param_groups[0]["lr"],
        }
        candidates = self._candidates()
        self.world.share_buffers(*candidates.values())
        due = (self.epoch + 1) % self.recipe.eval_every == 0 or self.epoch + 1 == self.recipe.epochs
        judged = {name: self._evaluate(network) if due else {} for name, network in candidates.items()}
        row |= {f"{name}_{headline}": metrics[headline] for name, metrics in judged.items() if metrics}
        which = max(judged, key=lambda name: judged[name].get(headline, 0.0))
        saved = {**judged[which], "weights": which, "epoch": self.epoch + 1}
        self._save_model("last", candidates[which], saved)
        if due and saved[headline] > self.best:
            self.best, self.best_metrics = saved[headline], saved
            self._save_model("best", candidates[which], saved)
        self.seconds += time.perf_counter() - started
        row |= {**saved, "images_per_second": speed, "data_wait": wait_share, "seconds": self.seconds}
        self._write_row(row)
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        self._exclude(set(self.bad.train))
        self._save_state()
        self.reporter.epoch(self, row)

    def _evaluate(self, network: torch.nn.Module) -> dict[str, Any]:
        evaluation = self.task.evaluate(self._predictor(network), self.val_loader, self.world.gather)
        self.bad.val |= evaluation.bad
        self.bad.check("val")
        return evaluation.metrics()

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
            with self.autocast:
                return folded(self.normalize(images))

        return predict

    # -- what is written ----------------------------------------------------------------------------------------------

    def _save_model(self, name: str, network: Any, metrics: dict[str, Any]) -> None:
        if not self.world.leads:
            return
        provenance = {"recipe": self.recipe.to_dict(), "data_fingerprint": self.source.fingerprint, **self.facts}
        trained = replace(self.start, model=network, metrics=metrics, provenance=provenance)
        modelfile.save(trained, self.out / f"{name}.safetensors")

    def _write_row(self, row: dict[str, Any]) -> None:
        if self.world.leads:
            self.bad.write()
            path = self.out / "metrics.jsonl"
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            draw_curves(self.out, self.task.headline)

    def _save_state(self) -> None:
        """All processes must come here; the first one writes."""
        self._add_losses()
        self._gather_bad()
        if not self.world.leads:
            return
        State(
            epoch=self.epoch,
            step=self.step,
            processes=self.world.size,
            precision=self.precision,
            model=self.model.state_dict(),
            ema=self.ema.module.state_dict() if self.ema is not None else None,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            best=self.best,
            best_metrics=self.best_metrics,
            bad_images=self.bad.train,
            bad_val=self.bad.val,
            excluded=sorted(self.bad.excluded),
            loss_sum=self.loss_sum,
            seconds=self.seconds,
            fingerprint=self.source.fingerprint,
        ).save(self.out)

    def _restore(self) -> bool:
        """Whether there was a state to go on from."""
        state, problems = self.world.first(lambda: State.load(self.out))
        if self.world.leads:
            sweep(self.out)
        if state is None:
            return False
        for problem in problems:
            self.reporter.warn(f"{problem}; going on from the state before it")
        if state.fingerprint != self.source.fingerprint:
            raise TrainError(
                f"{self.source.name} is not the data that {self.out} was trained on; a new run needs another --out"
            )
        if state.processes != self.world.size:
            self.reporter.warn(
                f"{self.world.size} processes go on where {state.processes} stopped: the images of each step are the "
                "same; how they are mixed, and what each norm sees of them, is not"
            )
        if state.precision != self.precision:
            self.reporter.warn(f"begun in {state.precision}, the run goes on in {self.precision}")
        self.model.load_state_dict(state.model)
        if self.ema is not None and state.ema is not None:
            self.ema.module.load_state_dict(state.ema)
        self.optimizer.load_state_dict(state.optimizer)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        self.epoch, self.step = state.epoch, state.step
        self.best, self.best_metrics = state.best, state.best_metrics
        self.bad.train, self.bad.val = state.bad_images, state.bad_val
        self.loss_sum, self.seconds = state.loss_sum, state.seconds
        self._exclude(set(state.excluded))
        if self.world.leads:
            if problems:  # so that the sound state is the newest, and the next one takes its place
                (self.out / NEWEST).unlink()
            self._forget_rows()
        return True

    def _forget_rows(self) -> None:
        """Rows of epochs that a killed process ended without writing its state: they come again."""
        path = self.out / "metrics.jsonl"
        if path.exists():
            rows = [row for row in read_metrics(self.out) if row["epoch"] <= self.epoch]
            with replacing(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    # -- helpers of the run -------------------------------------------------------------------------------------------

    def _probe(self) -> tuple[dict[int, str], dict[int, str]]:
        self.bad.probe(self.recipe.seed, self.recipe.max_pixels)
        self.bad.write()
        return self.bad.train, self.bad.val

    def _exclude(self, bad: set[int]) -> None:
        self.bad.excluded = bad
        self.train_loader.sampler.exclude(bad)

    def _gather_bad(self) -> None:
        for known in self.world.gather(self.bad.train):
            self.bad.train |= known

    @property
    def mean_loss(self) -> float:
        """Over the steps of the epoch in progress whose losses were looked at."""
        return self.loss_sum / max(1, self.step - len(self._losses))

    @property
    def steps_done(self) -> int:
        """Since the beginning of the run."""
        return self.epoch * len(self.train_loader) + self.step

    @property
    def steps_per_epoch(self) -> int:
        """As planned, before any image turned out to be bad."""
        return max(1, len(self.source.train) // self.recipe.batch_size)

    def _stop(self, by: signal.Signals) -> None:
        self.stopped_by = by
