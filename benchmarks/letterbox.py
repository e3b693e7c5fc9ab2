"""Accuracy of the three values of `shvit train --fit` on long images whose classes show only at both ends.

Each image is 256 x 64 pixels of random texture. Near each end there is one of three marks: a disc, a ring or a cross.
The class is the pair of marks, regardless of their order, so that flips do not change it: six classes, chance 1/6. The
center crop contains no mark, and a random square crop contains at most one. Position, size and brightness of the
marks vary, and the texture has the same distribution for all classes.

The runs of a seed use the same images and, apart from `--fit`, the same settings: `shvit train` with its defaults, from
random weights. Only the last epoch is evaluated. Images and runs are kept in --runs: a stopped run is resumed.

    python benchmarks/letterbox.py --runs ../runs/letterbox
"""

import argparse
import json
import statistics
from collections.abc import Callable
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shvit.bench.report import hardware_name
from shvit.provenance import facts
from shvit.requests.train import TrainRequest
from shvit.train.run import train

HEIGHT, WIDTH = 64, 256
MARKS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda x, y: x**2 + y**2 < 1,
    "ring": lambda x, y: (x**2 + y**2 < 1) & (x**2 + y**2 > 0.4),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1),
}
"""Marks of radius 1 around the origin, as functions of coordinates."""
FITS = ("crop", "letterbox", "stretch")


def draw(marks: tuple[str, str], random: np.random.Generator) -> Image.Image:
    """An image with these marks near its ends, in random order."""
    coarse = random.integers(60, 180, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(float)
    pixels += random.normal(0, 12, pixels.shape)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for end, name in enumerate(random.permutation(marks)):
        radius = random.uniform(18, 24)
        inward = random.uniform(radius, 32)
        x = (columns - (WIDTH - inward if end else inward)) / radius
        y = (rows - random.uniform(radius, HEIGHT - radius)) / radius
        pixels[MARKS[name](x, y)] = random.uniform(200, 255)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_images(folder: Path, seed: int, train_images: int, val_images: int) -> None:
    """Write train/<class>/… and val/<class>/… with this many images per class."""
    random = np.random.default_rng(seed)
    for split, count in (("train", train_images), ("val", val_images)):
        for marks in combinations_with_replacement(MARKS, 2):
            place = folder / split / "-".join(marks)
            place.mkdir(parents=True)
            for number in range(count):
                draw(marks, random).save(place / f"{number:04}.png")


def top1(data: Path, out: Path, fit: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Train once, or resume a run. Returns the accuracy after the last epoch, and the recipe."""
    chosen = {**settings, "fit": fit, "eval_every": settings["epochs"]}
    begun = (out / "recipe.json").exists()
    request = TrainRequest(str(data), out=out, resume=begun, model="shvit_s1", device="cpu", workers=1, settings=chosen)
    result = train(request)
    recipe = json.loads((out / "recipe.json").read_text())["recipe"]
    return {"fit": fit, "seed": settings["seed"], "top1": result.best["top1"], "recipe": recipe}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for images and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--train-images", type=int, default=200, help="training images per class")
    parser.add_argument("--val-images", type=int, default=50, help="validation images per class")
    parser.add_argument("--hardware", help="short name of the machine, for the result's file name")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    about, runs = facts(), []
    for seed in args.seeds:
        settings = {"epochs": args.epochs, "image_size": args.image_size, "seed": seed}
        data = args.runs / f"data-{seed}"
        if not data.exists():
            write_images(data, seed, args.train_images, args.val_images)
        for fit in FITS:
            runs.append(top1(data, args.runs / f"{fit}-{seed}", fit, settings))
            print(f"seed {seed}, {fit}: top-1 {runs[-1]['top1']:.1%}", flush=True)
    means = {fit: statistics.mean(run["top1"] for run in runs if run["fit"] == fit) for fit in FITS}
    result = {
        "what": f"shvit_s1 on {WIDTH}x{HEIGHT} images whose classes show at both ends, at {args.image_size} pixels",
        "value": means["letterbox"],
        "unit": "top-1 with --fit letterbox, share of the validation images, mean over seeds",
        "top1": means,
        "chance": 1 / len(list(combinations_with_replacement(MARKS, 2))),
        "images_per_class": {"train": args.train_images, "val": args.val_images},
        "runs": runs,
        "threads": torch.get_num_threads(),
        **about,
    }
    name = args.hardware or hardware_name(about["hardware"])
    path = args.results / f"letterbox_{name}_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=2))


if __name__ == "__main__":
    main()
