"""Top-1 and time of fine-tuning with the defaults of `shvit train`, compared with random weights and timm's train.py.

    python benchmarks/finetune.py ../shared/data/ants_bees --start s1.safetensors --timm TIMM/train.py --name s1

Each seed runs `shvit train DATA --model START` with its defaults; `shvit train DATA --model shvit_s1` for as many
epochs at the same image size (if START is a SHViT: the same network, so the same time per step); and timm's train.py
from the same weights for as many epochs (AdamW, learning rate 5e-4, cosine schedule, one epoch of warm-up, batch size
32, and otherwise its defaults). For each, the top-1 of the best epoch on the validation images is taken, as the
programs report it. TIMM is a checkout of timm.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from shvit.files import write_json
from shvit.model.architecture import TIMM_PREFIX
from shvit.pretrained import load_model, to_timm
from shvit.provenance import facts

BATCH = 32


def shvit_run(data: Path, model: str, seed: int, out: Path, *flags: object) -> dict:
    """Run `shvit train`. Returns top-1 of the best epoch, wall seconds, epochs and image size."""
    command = [sys.executable, "-m", "shvit", "train", data, "--model", model, "--seed", seed, "--out", out, *flags]
    started = time.perf_counter()
    done = subprocess.run([str(part) for part in [*command, "--json"]], stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    record = json.loads((out / "recipe.json").read_text())
    return {
        "top1": json.loads(done.stdout)["top1"],
        "seconds": seconds,
        "epochs": record["recipe"]["epochs"],
        "image_size": record["preprocess"]["image_size"],
        "recipe": record["recipe"],
    }


def timm_run(program: Path, data: Path, start: Path, epochs: int, size: int, seed: int, out: Path) -> dict:
    """Run timm's train.py from the same weights. Returns top-1 of its best epoch and wall seconds."""
    model = load_model(start)
    name, weights = model.architecture.name, model.model.state_dict()
    if name.startswith(TIMM_PREFIX):
        weights = {key.removeprefix("network."): value for key, value in weights.items()}
    else:
        weights = to_timm(weights)
    torch.save(weights, out / "start.pth")
    options = {
        "--data-dir": data, "--model": name.removeprefix(TIMM_PREFIX), "--pretrained-path": out / "start.pth",
        "--num-classes": sum(each.is_dir() for each in (data / "train").iterdir()), "--img-size": size,
        "--opt": "adamw", "--lr": 5e-4, "--sched": "cosine", "--epochs": epochs, "--warmup-epochs": 1,
        "--batch-size": BATCH, "--workers": 2, "--seed": seed, "--device": "cpu", "--output": out,
        "--experiment": "timm",
    }  # fmt: skip
    flags = [str(part) for pair in options.items() for part in pair]
    started = time.perf_counter()
    subprocess.run([sys.executable, program, "--pretrained", *flags], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    with (out / "timm" / "summary.csv").open() as file:
        return {"top1": max(float(row["eval_top1"]) for row in csv.DictReader(file)) / 100, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--start", type=Path, required=True, help="model file to fine-tune")
    parser.add_argument("--name", required=True, help="short name of the start, for the result's file name")
    parser.add_argument("--timm", type=Path, help="train.py in a checkout of timm")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hardware", default="cpu", help="short name of the machine, for the result's file name")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    ours_is_shvit = load_model(args.start).architecture.config is not None
    runs: dict[str, list[dict]] = {"finetune": [], "fresh": [], "timm": []}
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            tuned = shvit_run(args.data, str(args.start), seed, Path(folder) / "tuned")
            runs["finetune"].append(tuned)
            if ours_is_shvit:
                name = load_model(args.start).architecture.name
                same = "--epochs", tuned["epochs"], "--image-size", tuned["image_size"]
                runs["fresh"].append(shvit_run(args.data, name, seed, Path(folder) / "fresh", *same))
            if args.timm:
                same = tuned["epochs"], tuned["image_size"]
                runs["timm"].append(timm_run(args.timm, args.data, args.start, *same, seed, Path(folder)))
        print(seed, {kind: [round(run["top1"], 4) for run in each] for kind, each in runs.items()}, flush=True)

    def summary(each: list[dict]) -> dict:
        top1 = [run["top1"] for run in each]
        return {
            "top1": statistics.mean(top1),
            "top1_by_seed": top1,
            "seconds": statistics.median(run["seconds"] for run in each),
            **({"recipe": each[0]["recipe"]} if "recipe" in each[0] else {}),
        }

    about = facts()
    result = {
        "what": f"fine-tuning of {args.name} on {args.data.name} with the defaults, mean of {args.seeds} seeds",
        "value": statistics.mean(run["top1"] for run in runs["finetune"]),
        "unit": "top-1, share of the validation images",
        **{kind: summary(each) for kind, each in runs.items() if each},
        "threads": torch.get_num_threads(),
        **about,
    }
    write_json(args.results / f"finetune_{args.name}_{args.hardware}_{about['date'][:10]}.json", result)
    print(json.dumps({kind: summary(each)["top1"] for kind, each in runs.items() if each}))


if __name__ == "__main__":
    main()
