"""Effect of distillation and of fine-tuning at a higher resolution, with `shvit train` on real images.

Distillation: two runs with the same network, epochs, image size and seed; one learns only from labels, the other one
also from a teacher trained by `shvit train`. Resolution: a network trained at a lower resolution, before and after
fine-tuning with the recipe `highres`. Runs are kept in --runs: a stopped run is resumed, and the results of a
finished run are read.

    python benchmarks/recipes.py ../shared/data/imagenette160 --runs ../runs \\
        --teacher ../runs/teacher/best.safetensors --start ../runs/s1/best.safetensors
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from shvit import engines
from shvit.bench.report import hardware_name
from shvit.data.sources import open_source
from shvit.evaluate import evaluate_model
from shvit.modelfile import load
from shvit.provenance import facts
from shvit.train.recipe import with_current_names

STUDENT = ["--model", "shvit_s1", "--image-size", "128", "--epochs", "5"]
SOFT = ["--recipe", "distill", "--distillation", "soft", "--temperature", "2"]
HIGHRES = ["--recipe", "highres", "--image-size", "224", "--epochs", "2", "--fit", "crop"]


def train(data: str, out: Path, flags: list[str]) -> dict[str, Any]:
    """Start, resume or read the run in `out`. Returns its command and results."""
    command = ["train", data, *flags, "--out", str(out)]
    begun = recorded(out)
    if begun and begun["command"].split()[1:] != command:
        sys.exit(f"{out} was started by {begun['command']}, not by {' '.join(command)}: give another --runs folder")
    if not begun or len(rows(out)) < begun["recipe"]["epochs"]:
        subprocess.run([sys.executable, "-m", "shvit", *command, *(["--resume"] if begun else [])], check=True)
    record = recorded(out)
    top1 = [row["top1"] for row in rows(out)]
    seconds = rows(out)[-1]["seconds"]
    return {
        "command": " ".join(["shvit", *command]),
        "commit": record["commit"],
        "top1": top1,
        "seconds": seconds,
        "recipe": record["recipe"],
    }


def recorded(out: Path) -> dict[str, Any]:
    """The content of recipe.json, or an empty dictionary."""
    path = out / "recipe.json"
    return json.loads(path.read_text()) if path.exists() else {}


def rows(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def described(path: str) -> dict[str, Any]:
    """Describe how a teacher or starting network was trained."""
    file = load(path)
    recipe = with_current_names(file.provenance["recipe"])
    kept = ("name", "epochs", "image_size", "batch_size", "optimizer", "schedule", "effective_lr", "seed")
    return {
        "model": file.architecture.name,
        "image_size": file.preprocess.image_size,
        "top1": file.metrics["top1"],
        "recipe": {key: recipe[key] for key in kept if key in recipe},
    }


def untrained(path: str, data: str, size: int) -> float:
    """Top-1 of a network at another image size, without fine-tuning."""
    file = load(path)
    file = replace(file, preprocess=replace(file.preprocess, image_size=size))
    return evaluate_model(file, engines.load(file, "torch"), open_source(data), "val", workers=2).evaluation.top1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--start", required=True, help="a network trained at a lower resolution, to fine-tune")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    about = facts()
    pairs = []
    for seed in args.seeds:
        flags = [*STUDENT, "--seed", str(seed)]
        plain = train(args.data, args.runs / f"plain-{seed}", flags)
        taught = train(args.data, args.runs / f"distilled-{seed}", [*flags, *SOFT, "--teacher", args.teacher])
        gain = 100 * (max(taught["top1"]) - max(plain["top1"]))
        pairs.append({"seed": seed, "plain": plain, "distilled": taught, "gain": gain})
    start = described(args.start)
    tuned = train(args.data, args.runs / "highres", [*HIGHRES, "--model", args.start])
    result = {
        "what": f"shvit_s1 on {Path(args.data).name}: distillation, and fine-tuning at a higher resolution",
        "value": mean(pair["gain"] for pair in pairs),
        "unit": "gain of distillation in points of top-1, mean over seeds; best epoch of each run",
        "teacher": described(args.teacher),
        "pairs": pairs,
        "highres": {
            "start": start,
            "as_it_is": untrained(args.start, args.data, tuned["recipe"]["image_size"]),
            "tuned": tuned,
            "gain": 100 * (max(tuned["top1"]) - start["top1"]),
        },
        "threads": torch.get_num_threads(),
        **about,
    }
    path = args.results / f"recipes_{hardware_name(about['hardware'])}_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({"distilled": [pair["gain"] for pair in pairs], "highres": result["highres"]["gain"]}))


if __name__ == "__main__":
    main()
