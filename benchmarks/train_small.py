"""Accuracy and wall time of `shvit train` with its defaults on 9,469 small images, compared with a plain training loop.

The plain loop uses timm's loader with two workers, its default training transform, its shvit_s1 in eager fp32, AdamW
at 1e-3, a cosine schedule, batch size 64, and an evaluation after every epoch. Half of its timed epochs run before
`shvit train`, and half after it. All epochs cost the same, so the time of a whole run is the median time of an epoch
times the number of epochs. The time of `shvit train` includes everything from the start of the command to the model
file, including compilation.

A training step costs as much as three forward passes, so 10 epochs of S1 at 160 pixels are 10 x 9,469 x 3 x 2 x 123 M
= 70 TFLOP. LOG.md compares this with the CPU's peak FLOP/s.

    python benchmarks/train_small.py ../shared/data/imagenette160 --plain-epochs 4
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from shvit.data.sources import open_source
from shvit.model.architecture import Architecture
from shvit.model.cost import cost
from shvit.provenance import facts

BATCH = 64


def plain_epochs(data: Path, size: int, epochs: int) -> Iterator[tuple[float, float]]:
    """Train epoch by epoch. Yields seconds (including evaluation) and top-1."""
    import timm
    from timm.data import create_dataset, create_loader
    from timm.scheduler.cosine_lr import CosineLRScheduler

    torch.manual_seed(0)
    options = {"input_size": (3, size, size), "batch_size": BATCH, "use_prefetcher": False, "num_workers": 2}
    train = create_loader(create_dataset("", str(data), split="train"), is_training=True, **options)
    val = create_loader(create_dataset("", str(data), split="val"), is_training=False, crop_pct=0.875, **options)
    model = timm.create_model("shvit_s1", num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = CosineLRScheduler(optimizer, epochs * len(train), warmup_t=len(train), t_in_epochs=False)
    step = 0
    for _ in range(epochs):
        started = time.perf_counter()
        model.train()
        for images, labels in train:
            loss = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            schedule.step_update(step)
        model.eval()
        correct = total = 0
        with torch.inference_mode():
            for images, labels in val:
                correct += int((model(images).argmax(1) == labels).sum())
                total += len(labels)
        yield time.perf_counter() - started, correct / total


def shvit_run(data: Path, size: int, epochs: int, out: Path) -> dict:
    """Run `shvit train` with its defaults and `shvit eval`. `seconds` is the time of the train command."""
    # an empty compilation cache, as in a user's first run
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(out / "inductor")}
    train = ["train", str(data), "--model", "shvit_s1", "--image-size", str(size), "--epochs", str(epochs)]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "shvit", *train, "--out", str(out / "run")], env=environment, check=True)
    return {**finished_run(data, out / "run"), "seconds": time.perf_counter() - started}


def finished_run(data: Path, run: Path) -> dict:
    """Run `shvit eval` on a finished run. `seconds` is the time that the run recorded, without the start of Python."""
    evaluate = ["eval", str(run / "best.safetensors"), str(data), "--json"]
    done = subprocess.run([sys.executable, "-m", "shvit", *evaluate], stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((run / "recipe.json").read_text())
    return {
        "seconds": rows[-1]["seconds"],
        "eval": json.loads(done.stdout),
        "recipe": record["recipe"],
        "run_commit": record["commit"],
        "run_date": record["date"],
        "top1_by_epoch": [row.get("top1", row.get("ema_top1")) for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--plain-epochs", type=int, default=10, help="number of epochs of the plain loop to time")
    parser.add_argument("--run", type=Path, help="use this finished run of `shvit train` instead of training")
    parser.add_argument("--hardware", default="cpu", help="short name of the machine, for the result's file name")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    about = facts()
    plain: list[tuple[float, float]] = []
    epochs = plain_epochs(args.data, args.image_size, args.epochs)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.plain_epochs // 2):
            plain.append(next(epochs))
            print("plain", plain[-1], flush=True)
        if args.run:
            ours = finished_run(args.data, args.run)
        else:
            ours = shvit_run(args.data, args.image_size, args.epochs, Path(folder))
        print("shvit", ours["seconds"], ours["eval"]["top1"], flush=True)
        for _ in range(args.plain_epochs - args.plain_epochs // 2):
            plain.append(next(epochs))
            print("plain", plain[-1], flush=True)

    plain_seconds = statistics.median(seconds for seconds, _ in plain) * args.epochs
    macs = cost(Architecture("shvit_s1", 10).build(), (args.image_size, args.image_size)).macs
    images = len(open_source(args.data).train) * args.epochs
    result = {
        "what": f"shvit_s1 from scratch on {args.data.name}, {args.epochs} epochs at {args.image_size} pixels",
        "value": ours["eval"]["top1"],
        "unit": "top-1, share of the validation images",
        **{key: ours["eval"][key] for key in ("images", "engine", "precision")},
        "seconds": ours["seconds"],
        "plain_seconds": plain_seconds,
        "plain_epochs_run": args.plain_epochs,
        "plain_epoch_seconds": [seconds for seconds, _ in plain],
        "plain_top1_by_epoch": [top1 for _, top1 in plain],
        "speed_ratio": plain_seconds / ours["seconds"],
        "arithmetic_tflop": images * 6 * macs / 1e12,
        **{key: ours[key] for key in ("recipe", "run_commit", "run_date", "top1_by_epoch")},
        "threads": torch.get_num_threads(),
        **about,
    }
    path = args.results / f"train_small_{args.hardware}_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
