"""Effect of `shvit train --balance` on a part of a dataset in which half of the classes are 50 times smaller.

For each seed, half of the classes are drawn at random. Each of them keeps `--images` / `--ratio` training images, each
other class `--images`. The same network is trained with --balance none, sampling and loss: the same start, the same
seed, the same number of steps. The last weights are measured, without EMA, so no epoch is chosen.

Each run is measured on `--held-out` other training images of each class. Settings are chosen by these numbers. With
--judge, the finished runs are also measured on the dataset's validation images, once, and the results are written.
Runs are kept in --runs: finished runs are read, stopped runs are resumed.

    python benchmarks/imbalance.py ../shared/data/imagenette160 --runs ../runs/imbalance --judge
"""

import argparse
import json
import random
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from shvit import engines
from shvit.data.sources import open_source
from shvit.evaluate import evaluate_model
from shvit.modelfile import load
from shvit.provenance import facts
from shvit.requests.train import TrainRequest
from shvit.train.run import train

BALANCES = ("none", "sampling", "loss")


def draw(data: Path, out: Path, sizes: tuple[int, int], held_out: int, seed: int) -> list[str]:
    """Create links to a part of the training images. Returns the names of the rare classes.

    Args:
        sizes: Training images of a frequent class and of a rare class.
        held_out: Validation images of each class, taken from the dataset's training images.
    """
    generator = random.Random(seed)
    classes = sorted(folder.name for folder in (data / "train").iterdir())
    rare = sorted(generator.sample(classes, len(classes) // 2))
    for name in classes:
        files = sorted((data / "train" / name).iterdir())
        picked = generator.sample(files, held_out + sizes[name in rare])
        for split, images in (("val", picked[:held_out]), ("train", picked[held_out:])):
            (out / split / name).mkdir(parents=True, exist_ok=True)
            for image in images:
                link = out / split / name / image.name
                if not link.is_symlink():
                    link.symlink_to(image.resolve())
    return rare


def recalls(model: Path, data: Path, rare: list[str], workers: int) -> dict[str, float]:
    """Metrics on validation images, in percent, with the mean recall of rare and of frequent classes."""
    trained = load(str(model))
    engine = engines.load(trained, "torch", "fp32", "cpu")
    evaluation = evaluate_model(trained, engine, open_source(data), "val", workers=workers).evaluation
    numbers, by_class = evaluation.metrics(), evaluation.per_class()
    return {
        **{key: 100 * numbers[key] for key in ("balanced_accuracy", "macro_f1", "top1")},
        "rare": 100 * mean(share for name, share in by_class.items() if name in rare),
        "frequent": 100 * mean(share for name, share in by_class.items() if name not in rare),
    }


def measured(path: Path, model: Path, *where: Any) -> dict[str, float]:
    """The metrics in the file `path`. If there is no such file, measure and write them."""
    if not path.exists():
        path.write_text(json.dumps(recalls(model, *where)))
    return json.loads(path.read_text())


def run(args: argparse.Namespace, seed: int, balance: str) -> dict[str, Any]:
    """Train one network, or read its finished run, and measure it."""
    part, out = args.runs / f"data-{seed}", args.runs / f"{balance}-{seed}"
    rare = draw(args.data, part, (args.images, args.images // args.ratio), args.held_out, seed)
    settings = {
        **{
            key: getattr(args, key)
            for key in ("epochs", "image_size", "batch_size", "lr", "optimizer")
            if getattr(args, key)
        },
        **{"balance": balance, "seed": seed, "ema": 0.0, "eval_every": 10_000, "compile": args.compile},
    }
    resume = (out / "recipe.json").exists()
    options = {"device": "cpu", "workers": args.workers, "resume": resume, "settings": settings}
    result = train(TrainRequest(str(part), out=out, model=args.model, recipe=args.recipe, **options))
    if result.interrupted:
        sys.exit(f"stopped in {out}: repeat the command to continue")
    last = out / "last.safetensors"
    found = {
        "seed": seed,
        "balance": balance,
        "rare_classes": rare,
        "seconds": result.seconds,
        "held_out": measured(out / "held_out.json", last, part, rare, args.workers),
    }
    if args.judge:
        found["validation"] = measured(out / "validation.json", last, args.data, rare, args.workers)
    print(json.dumps(found), flush=True)
    return found


def gain(rows: list[dict[str, Any]], balance: str, images: str) -> dict[str, Any]:
    """Points of balanced accuracy above --balance none."""
    by_seed = {(row["seed"], row["balance"]): row[images]["balanced_accuracy"] for row in rows}
    gains = [by_seed[seed, balance] - by_seed[seed, "none"] for seed, name in by_seed if name == balance]
    return {"mean": mean(gains), "standard_deviation": stdev(gains) if len(gains) > 1 else None, "by_seed": gains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--model", default="shvit_s1", help="a network, or a model file to start from")
    parser.add_argument("--recipe", default="scratch")
    parser.add_argument("--images", type=int, default=800, help="training images of each frequent class")
    parser.add_argument("--ratio", type=int, default=50)
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--optimizer")
    parser.add_argument("--compile", default="off")
    parser.add_argument("--balances", nargs="+", default=BALANCES, choices=BALANCES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--name", default="amd-epyc", help="the machine, in the name of the results file")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    about = facts()
    rows = [run(args, seed, balance) for seed in args.seeds for balance in args.balances]
    if not args.judge:
        return
    recipe = json.loads((args.runs / f"sampling-{args.seeds[0]}" / "recipe.json").read_text())["recipe"]
    gains = {balance: gain(rows, balance, "validation") for balance in args.balances if balance != "none"}
    result = {
        "what": f"{Path(args.model).stem}, {args.recipe}, on {args.data.name} with {args.images} or "
        f"{args.images // args.ratio} training images per class: --balance {' and '.join(gains)} against none",
        "value": gains["sampling"]["mean"],
        "unit": "gain of --balance sampling in points of balanced accuracy on the validation images, mean over seeds",
        "gains": gains,
        "runs": rows,
        "recipe": recipe,
        "threads": torch.get_num_threads(),
        **about,
    }
    path = args.results / f"imbalance_{args.name}_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(gains))


if __name__ == "__main__":
    main()
