"""The training loop of every task. Seed, epoch and step number determine each step's images and random numbers."""

import contextlib
import math
import signal
import time
from dataclasses import replace
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
from ..engines.torch import DTYPES
from ..errors import counted
from ..files import sweep
from ..modelfile import ModelFile
from ..tasks.base import Task
from .bad_images import BadImages, TrainError
from .checkpoint import NEWEST, Checkpoint
from .clip import clip_adaptively
from .distributed import ProcessGroup
from .metrics import append_row, remove_rows_after
from .optim import make_optimizer, make_schedule, schedule_time
from .plan import faster_settings, plan_lines
from .precision import avoid_slow_gradients, check_norms, pick_training_precision, picks_compile
from .progress import Progress, Reporter, TrainResult
from .recipe import Recipe
from .remaining import TimeLeft
from .selection import Selection
from .signals import on_stop_signal
from .validation import Validator

SAVE_SECONDS = 10
"""After an epoch without evaluation, a checkpoint is written only if the last one is older than this."""
LOSSES_KEPT = 20
"""Number of steps between checks of the loss on GPUs. Checking every step would make the GPU wait for the CPU."""


class Trainer:
    """Trains the network of `start` on `source`, and writes all files to the folder `out`.

    Args:
        recipe: The recipe, adapted to the dataset by `fit`.
        workers: Data-loading workers per training process.
        facts: Added to the provenance of the model files.
        group: The training processes. Each process has its own trainer; only the main process writes files.
        save_every: Steps between checkpoints.
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
        group: ProcessGroup | None = None,
        save_every: int = 500,
    ) -> None:
        self.task, self.source, self.recipe, self.out = task, source, recipe, out
        self.device, self.start, self.save_every = torch.device(device), start, save_every
        self.reporter, self.facts, self.group = reporter or Reporter(), facts or {}, group or ProcessGroup()
        self.precision = pick_training_precision(recipe, device, start)
        self.autocast = torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")  # pyright: ignore
        self.compiled = picks_compile(recipe, self.device, start, len(source.train) * recipe.epochs)
        self.model = start.model.to(self.device, memory_format=torch.channels_last)  # pyright: ignore
        if self.precision == "bf16" and self.device.type == "cpu":
            avoid_slow_gradients(self.model)
        task.ready(self.model.train())  # may freeze weights, so it must run before DDP and the optimizer are created
        check_norms(self.model, recipe, start.preprocess.image_size, self.group.size)
        self.normalize = Normalize(start.preprocess).to(self.device)
        unused = start.architecture.detector is not None  # timm backbones have layers after the last used feature map
        self.wrapped = self.group.wrap(self.model, unused)
        self.network = torch.compile(self.wrapped, dynamic=False) if self.compiled else self.wrapped
        self.ema = ModelEmaV3(self.model, decay=recipe.ema, use_warmup=recipe.ema_warmup) if recipe.ema else None
        self.optimizer = make_optimizer(self.model, recipe)
        self.schedule = make_schedule(self.optimizer, recipe, self.steps_per_epoch)
        self.train_loader, val_loader = self._loaders(workers)
        self.bad = BadImages(source, out, recipe.max_bad_share, self.group.is_main)
        self.validate = Validator(task, val_loader, self.normalize, self.autocast, self.group, self.bad)
        self.epoch = self.step = 0
        self.selection = Selection(task, recipe)
        self.loss_sum = self.seconds = self._saved_at = 0.0
        self._losses: list[torch.Tensor] = []
        self.stopped_by: signal.Signals | None = None
        self._exclude(set(self.bad.train))

    def _loaders(self, workers: int) -> tuple[Loader, Loader]:
        recipe, preprocess, group = self.recipe, self.start.preprocess, self.group
        train = Loader(
            self.source.train,
            self.task.train_reader(preprocess, recipe),
            recipe.batch_size,
            workers,
            shuffle=True,
            seed=recipe.seed,
            share=Share(group.rank, group.size, recipe.accumulate),
            repeats=recipe.repeats,
            views=recipe.views,
            strata=self.task.strata(self.source.train),
            pinned=self.device.type == "cuda",
        )
        val = Loader(
            self.source.val,
            self.task.eval_reader(preprocess, recipe.max_pixels),
            self.task.eval_batch(recipe.batch_size, group.size),
            workers,
            share=Share(group.rank, group.size),
        )
        return train, val

    def run(self, resume: bool = False) -> TrainResult:
        """Train to the end, or until Ctrl-C or SIGTERM.

        Args:
            resume: Resume from the last intact checkpoint in `out`, or from the beginning if `out` has no checkpoint.

        Raises:
            TrainError: The loss or the weights are not finite, or too many images cannot be used.
            CheckpointError: `resume` is set, but all checkpoints are damaged.
        """
        if not (resume and self._restore()):
            self.bad.train, self.bad.val = self.group.on_main(self._probe)
            self._exclude(set(self.bad.train))
            self._save_checkpoint()
        if self.selection.ends(self.epoch):
            return self._result(None, 0.0)
        if len(self.train_loader) == 0:
            usable = counted(self.train_loader.images, "usable training image")
            raise TrainError(f"batch_size {self.recipe.batch_size} is more than the {usable}")
        images_done, train_seconds = 0, 0.0
        eval_steps = len(self.source.val) / self.recipe.batch_size / 3  # a step costs three forward passes
        left = TimeLeft(self.recipe.epochs, len(self.train_loader), self.recipe.evaluates, eval_steps, self.compiled)
        watched = self.reporter.training(self._plan(), self.progress(), left, self._faster())
        with worker_death_as_failure(), on_stop_signal(self._stop), watched:
            while not self.selection.ends(self.epoch):
                done, seconds, wait = self._train_epoch()
                images_done, train_seconds = images_done + done, train_seconds + seconds
                if self.step < len(self.train_loader):
                    self._save_checkpoint()
                    break
                self._end_epoch(done / seconds, wait / seconds)
        speed = images_done / train_seconds if train_seconds else 0.0
        stopped_by = self.stopped_by or signal.SIGTERM  # another process may have received it
        return self._result(None if self.selection.ends(self.epoch) else stopped_by, speed)

    def _result(self, stopped_by: signal.Signals | None, speed: float) -> TrainResult:
        early = stopped_by is None and self.epoch < self.recipe.epochs
        metric, best = self.selection.metrics[0], self.selection.best
        if early:
            self.reporter.stopped_early(metric, self.recipe.patience, best["epoch"])
        return TrainResult(self.out, self.epoch, best, stopped_by, self.seconds, speed, metric, early)

    def _train_epoch(self) -> tuple[int, float, float]:
        """Run the remaining steps of this epoch. Returns image count, seconds, and seconds spent waiting for data."""
        self.task.ready(self.model.train())
        self.train_loader.sampler.start = self.step
        batches = self.train_loader.epoch(self.epoch)
        steps, images, wait = len(self.train_loader), 0, 0.0
        started = last = time.perf_counter()
        while self.step < steps:
            before = time.perf_counter()
            pieces = list(islice(batches, self.recipe.accumulate))
            wait += time.perf_counter() - before
            for piece in pieces:
                self.bad.train |= piece.bad
            stop, empty = self.group.sum(self.stopped_by is not None, not all(map(len, pieces)))
            if stop:
                break
            if not empty:
                done = self.step / steps
                self.schedule.step_update(schedule_time(self.recipe, self.epoch, done, self.steps_per_epoch))
                key = (self.recipe.seed, self.epoch, len(self.source.train) + self.step, self.group.rank)
                with seeded(*key, device=self.device):
                    self.train_step(pieces)
                images += self.recipe.batch_size
            self.step += 1
            now = time.perf_counter()
            self.seconds, last = self.seconds + now - last, now
            if self.step % self.save_every == 0 and self.step < steps:
                self._save_checkpoint()
            self.reporter.step(self.progress(images / (now - started), wait / (now - started)))
        self._add_losses()
        return images, max(time.perf_counter() - started, 1e-9), wait

    def train_step(self, pieces: list[Batch]) -> None:
        """Run the forward passes, backward passes and optimizer step of one batch, given as its micro-batches."""
        size = self.recipe.batch_size // (self.group.size * len(pieces))
        loss = torch.zeros((), device=self.device)
        for number, piece in enumerate(pieces, 1):
            with contextlib.nullcontext() if number == len(pieces) else self.group.without_sync(self.wrapped):
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
            self.ema.update(self.model, step=step if self.recipe.ema_warmup else None)  # None: no warm-up

    def _add_gradients(self, batch: Batch) -> torch.Tensor:
        """Accumulate the gradients of a micro-batch. Returns its loss."""
        inputs, targets = self.task.augment(self.normalize(batch.images), batch)
        with self.autocast:
            loss = self.task.loss(self.network, inputs, targets)
        self.scaler.scale(loss / self.recipe.accumulate).backward()
        return loss.detach()

    def _add_losses(self) -> None:
        """Add the mean of each stored loss over all processes to the sum. Raises TrainError if a loss is not finite."""
        if not self._losses:
            return
        for loss in self.group.sum(*torch.stack(self._losses).tolist()):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss became {loss}")
            self.loss_sum += loss / self.group.size
        self._losses.clear()

    def _diverged(self, what: str) -> TrainError:
        kept = f"{self.out / 'last.safetensors'} has the weights of epoch {self.epoch}; " if self.epoch else ""
        where = f"epoch {self.epoch + 1}, step {self.step + 1}"
        return TrainError(f"{what} in {where}; {kept}try an --lr below {self.recipe.lr:g}")

    def _end_epoch(self, speed: float, wait_share: float) -> None:
        """Evaluate, write the files, and prepare the next epoch."""
        started = time.perf_counter()
        if not all(value.isfinite().all() for value in self.model.state_dict().values()):
            raise self._diverged("the weights became infinite or NaN")
        self._gather_bad()
        self.bad.check("train")
        row: dict[str, Any] = {"epoch": self.epoch + 1, "train_loss": self.mean_loss, "lr": self._lr}
        candidates = self._candidates()
        self.group.share_buffers(*candidates.values())
        due = self.recipe.evaluates(self.epoch + 1)
        scores = {name: self.validate(network) if due else {} for name, network in candidates.items()}
        for key in self.selection.metrics:
            row |= {f"{name}_{key}": metrics[key] for name, metrics in scores.items() if metrics}
        better = self.selection.better(scores)
        saved = {**scores[better], "weights": better, "epoch": self.epoch + 1}
        self._save_model("last", candidates[better], saved)
        if due and self.selection.improves(saved):
            self._save_model("best", candidates[better], saved)
        self.seconds += time.perf_counter() - started
        saves = due or self.group.on_main(lambda: time.perf_counter() - self._saved_at > SAVE_SECONDS)
        row |= {**saved, "images_per_second": speed, "data_wait": wait_share, "seconds": self.seconds}
        if self.group.is_main:
            self.bad.write()
            append_row(self.out, row, self.selection.metrics[0] if saves else None)
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        self._exclude(set(self.bad.train))
        if saves:
            self._save_checkpoint()
        self.reporter.epoch(self.progress(), row, *self.selection.metrics)

    def _candidates(self) -> dict[str, torch.nn.Module]:
        """The weights to evaluate.

        With an EMA, these are the EMA weights. The model's own weights are evaluated as well if the run may end after
        this epoch and, if evaluation is cheap, in every epoch.
        """
        if self.ema is None:
            return {"model": self.model}
        both = {"ema": self.ema.module, "model": self.model}
        forward_share = len(self.source.val) / (3 * len(self.source.train))  # a step costs three forward passes
        last = self.selection.ends(self.epoch + 1)
        return both if last or forward_share < 0.1 else {"ema": self.ema.module}

    def _save_model(self, name: str, network: Any, metrics: dict[str, Any]) -> None:
        if not self.group.is_main:
            return
        provenance = {"recipe": self.recipe.to_dict(), "data_fingerprint": self.source.fingerprint, **self.facts}
        trained = replace(self.start, model=network, metrics=metrics, provenance=provenance)
        modelfile.save(trained, self.out / f"{name}.safetensors")

    def _save_checkpoint(self) -> None:
        """Write a checkpoint. All processes must call this method, but only the main process writes."""
        self._add_losses()
        self._gather_bad()
        if not self.group.is_main:
            return
        Checkpoint(
            epoch=self.epoch,
            step=self.step,
            processes=self.group.size,
            precision=self.precision,
            model=self.model.state_dict(),
            ema=self.ema.module.state_dict() if self.ema is not None else None,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            best_metrics=self.selection.best,
            bad_images=self.bad.train,
            bad_val=self.bad.val,
            excluded=sorted(self.bad.excluded),
            loss_sum=self.loss_sum,
            seconds=self.seconds,
            fingerprint=self.source.fingerprint,
        ).save(self.out)
        self._saved_at = time.perf_counter()

    def _restore(self) -> bool:
        """Load the last intact checkpoint. Returns False if there is none."""
        checkpoint, problems = self.group.on_main(lambda: Checkpoint.load(self.out))
        if self.group.is_main:
            sweep(self.out)
        if checkpoint is None:
            return False
        if checkpoint.fingerprint != self.source.fingerprint:
            raise TrainError(
                f"dataset {self.source.name} is not the data that the run in {self.out} began with: give another --out"
            )
        warnings = [f"{problem}; resuming from the previous checkpoint" for problem in problems]
        for warning in [*warnings, *checkpoint.differences(self.group.size, self.precision)]:
            self.reporter.warn(warning)
        self.model.load_state_dict(checkpoint.model)
        if self.ema is not None and checkpoint.ema is not None:
            self.ema.module.load_state_dict(checkpoint.ema)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if checkpoint.scaler:
            self.scaler.load_state_dict(checkpoint.scaler)
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.selection.best = checkpoint.best_metrics
        self.bad.train, self.bad.val = checkpoint.bad_images, checkpoint.bad_val
        self.loss_sum, self.seconds = checkpoint.loss_sum, checkpoint.seconds
        self._exclude(set(checkpoint.excluded))
        if self.group.is_main:
            if problems:  # so that the next checkpoint replaces the damaged one, not the intact one
                (self.out / NEWEST).unlink()
            remove_rows_after(self.out, self.epoch)
        return True

    def _probe(self) -> tuple[dict[int, str], dict[int, str]]:
        self.bad.probe(self.recipe.seed, self.recipe.max_pixels)
        self.bad.write()
        return self.bad.train, self.bad.val

    def _exclude(self, bad: set[int]) -> None:
        self.bad.excluded = bad
        self.train_loader.sampler.exclude(bad)
        self.task.weigh(self.source.train, self.train_loader.sampler.allowed)

    def _gather_bad(self) -> None:
        for known in self.group.gather(self.bad.train):
            self.bad.train |= known

    def _plan(self) -> list[str]:
        source, bad, group = self.source, len(self.bad), self.group.size
        images = f"{counted(len(source.train), 'training image')}, {counted(len(source.val), 'validation image')}"
        unusable = f"; {counted(bad, 'bad image')} so far, see bad_images.csv" if bad else ""
        about = f"{images}, {counted(len(source.classes), 'class', 'classes')}{unusable}"
        where = f"{self.device}, {group} processes" if group > 1 else str(self.device)
        steps = len(self.train_loader)
        return plan_lines(self.start, self.recipe, about, steps, where, self.precision, self.compiled)

    def _faster(self) -> list[str]:
        """On CPUs, settings that would shorten the run."""
        if self.device.type != "cpu":
            return []
        return faster_settings(self.recipe, self.start.preprocess.image_size, self.task.recipe_family)

    def progress(self, images_per_second: float = 0.0, data_wait: float = 0.0) -> Progress:
        """The current position in the run."""
        epochs, steps = self.recipe.epochs, len(self.train_loader)
        position = self.epoch, self.step, epochs, steps, self.mean_loss, self._lr, len(self.bad)
        return Progress(*position, images_per_second, data_wait)

    @property
    def _lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    @property
    def mean_loss(self) -> float:
        """Mean loss of this epoch, over the steps whose losses were checked."""
        return self.loss_sum / max(1, self.step - len(self._losses))

    @property
    def steps_per_epoch(self) -> int:
        """The planned number of steps per epoch. Bad images that are found later do not change it."""
        return max(1, len(self.source.train) // self.recipe.batch_size)

    def _stop(self, by: signal.Signals) -> None:
        self.stopped_by = by
