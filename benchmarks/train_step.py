"""Throughput of a training step, compared with timm's.

Our step is that of `shvit train` with the recipe `scratch`: mixup and CutMix, bf16 if the device supports it,
compiled, channels_last, adaptive clipping, EMA. timm's step is that of its train.py with the same settings, with
timm's network, mixup, optimizer, clipping and EMA, in eager mode: on GPUs with automatic mixed precision (fp16 and a
gradient scaler), on CPUs in fp32. Both get uint8 images on the device; decoding is not included. Runs are
interleaved, and the result is the ratio of the medians.

The minimum time of a step is the time of three forward passes at the device's peak matmul FLOP/s, which is measured
in the same run.

    python benchmarks/train_step.py --model shvit_s1 --image-size 224 --batch-size 1024 --device cuda
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils.agc import adaptive_clip_grad
from timm.utils.cuda import NativeScaler
from timm.utils.model_ema import ModelEmaV3

import shvit
from shvit.bench.machine import measure_machine, synchronize
from shvit.bench.report import hardware_name
from shvit.bench.run import about
from shvit.bench.timing import interleave, sample, warm_up
from shvit.data.loader import Batch
from shvit.data.sources import open_source
from shvit.model.cost import cost
from shvit.tasks.classify import Classify
from shvit.train.loop import Trainer
from shvit.train.recipe import Recipe
from shvit.train.recipes import make_recipe
from shvit.train.start import starting_point


class Ours:
    """The training step of `shvit train`."""

    def __init__(self, recipe: Recipe, model: str, batch: Batch, device: str, folder: Path) -> None:
        source = open_source("digits", 0, recipe.val_share)
        start = starting_point(model, source, recipe)
        mixing = recipe.label_smoothing, recipe.mixup, recipe.cutmix, recipe.random_erasing
        task = Classify(source.classes, *mixing, device)
        self._trainer = Trainer(task, start, source, recipe, folder, device)
        self._trainer.model.train()
        self.precision, self.compiled = self._trainer.precision, self._trainer.compiled
        self._batch, self._device = batch, device
        self._repetitions = warm_up(self._step)

    def _step(self) -> None:
        self._trainer.train_step([self._batch])
        synchronize(self._device)

    def time(self) -> list[float]:
        return sample(self._step, self._repetitions)


class Plain:
    """The training step of timm's train.py."""

    def __init__(self, recipe: Recipe, model: str, batch: Batch, device: str, classes: int) -> None:
        self._model = timm.create_model(model, num_classes=classes).to(device).train()
        self._optimizer = create_optimizer_v2(
            self._model, recipe.optimizer, lr=recipe.effective_lr, weight_decay=recipe.weight_decay
        )
        self._mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)
        self._erase = RandomErasing(recipe.random_erasing, mode="pixel", device=device)
        self._loss = SoftTargetCrossEntropy()
        self._ema = ModelEmaV3(self._model, decay=recipe.ema) if recipe.ema else None
        self._scaler = NativeScaler() if device.startswith("cuda") else None
        self._clip = recipe.clip
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=device).mul(255).view(shape)
        self._std = torch.tensor(IMAGENET_DEFAULT_STD, device=device).mul(255).view(shape)
        self._batch, self._device = batch, device
        self._repetitions = warm_up(self._step)

    def _step(self) -> None:
        images = self._batch.images.float().sub_(self._mean).div_(self._std)
        images, targets = self._mixup(self._erase(images), self._batch.targets)
        with torch.autocast(torch.device(self._device).type, torch.float16, enabled=self._scaler is not None):
            loss = self._loss(self._model(images), targets)
        self._optimizer.zero_grad()
        if self._scaler:
            self._scaler(
                loss,
                self._optimizer,
                clip_grad=self._clip or None,
                clip_mode="agc",
                parameters=self._model.parameters(),
            )
        else:
            loss.backward()
            if self._clip:
                adaptive_clip_grad(self._model.parameters(), self._clip)
            self._optimizer.step()
        if self._ema:
            self._ema.update(self._model)
        synchronize(self._device)

    def time(self) -> list[float]:
        return sample(self._step, self._repetitions)


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time both steps. Returns throughput, ratio, and the share of the device's peak matmul FLOP/s."""
    recipe = make_recipe("scratch", args.model, {"batch_size": args.batch_size, "image_size": args.image_size})
    recipe = replace(recipe, compile="on")
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=args.device)
    labels = torch.randint(0, 10, (args.batch_size,), device=args.device)
    batch = Batch(images, labels, list(range(args.batch_size)), {})
    machine = measure_machine(None, args.device)
    ours = Ours(recipe, args.model, batch, args.device, folder)
    plain = Plain(recipe, args.model, batch, args.device, 10)
    timings, failed = interleave({"ours": ours, "timm": plain}, args.rounds)
    assert not failed, failed
    side = (args.image_size, args.image_size)
    macs = cost(shvit.create_model(args.model, 10), side).macs
    seconds = timings["ours"].median
    return {
        "value": timings["timm"].median / seconds,
        "images_per_second": {name: args.batch_size / timing.median for name, timing in timings.items()},
        "seconds": {name: timing.median for name, timing in timings.items()},
        "spread": {name: timing.spread for name, timing in timings.items()},
        "round_seconds": {name: timing.rounds for name, timing in timings.items()},
        "precision": ours.precision,
        "compiled": ours.compiled,
        "share_of_ceiling": machine.share(ours.precision, 6 * macs * args.batch_size / seconds),
        "machine": asdict(machine),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shvit_s1")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        measured = compare(args, Path(folder))
    facts = about(args.device)
    result = {
        "what": f"a training step of {args.model}, batch {args.batch_size}, {args.image_size} pixels, {args.device}",
        "unit": "times the images/s of timm's eager step",
        **measured,
        "threads": torch.get_num_threads(),
        **facts,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"train-step_{hardware_name(facts['hardware'])}_{facts['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    rates = ", ".join(f"{name} {rate:,.0f} images/s" for name, rate in measured["images_per_second"].items())
    print(f"{rates}: {measured['value']:.2f} times, {measured['precision']}", file=sys.stderr)


if __name__ == "__main__":
    main()
