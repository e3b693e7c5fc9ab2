"""Top-1 and time of fine-tuning with the defaults of `shvit train`, compared with random weights and timm's train.py.

    python benchmarks/finetune.py DATA --start s1.safetensors --timm TIMM/train.py --name s1 --runs RUNS

Each seed runs `shvit train DATA --model START` with its defaults; `shvit train DATA --model shvit_s1` for as many
epochs at the same image size (if START is a SHViT: the same network, so the same time per step); and timm's train.py
from the same weights for as many epochs (AdamW, learning rate 5e-4, cosine schedule, one epoch of warm-up, batch size
32, the same precision, and otherwise its defaults). For each, the top-1 of the best epoch on the validation images is
taken, as the programs report it. TIMM is a checkout of timm.

Each result is kept in RUNS: a stopped benchmark goes on, and `--only` runs one of the three, as for timing it alone.
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

from shvit.data.sources import open_source
from shvit.engines.torch import has_bf16
from shvit.files import write_json
from shvit.model.architecture import TIMM_PREFIX
from shvit.pretrained import load_model, to_timm
from shvit.provenance import facts
from shvit.train.budget import fit
from shvit.train.recipes import finetune

BATCH = 32


def shvit_run(data: Path, model: str, seed: int, out: Path, *flags: object) -> dict:
    """Run `shvit train`. Returns top-1 of the best epoch, wall seconds, recipe and image size."""
    command = [sys.executable, "-m", "shvit", "train", data, "--model", model, "--seed", seed, "--out", out, *flags]
    started = time.perf_counter()
    done = subprocess.run([str(part) for part in [*command, "--json"]], stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    record = json.loads((out / "recipe.json").read_text())
    return {
        "top1": json.loads(done.stdout)["top1"],
        "seconds": seconds,
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
    flags = ["--pretrained", *(str(part) for pair in options.items() for part in pair)]
    if has_bf16("cpu"):
        flags += ["--amp", "--amp-dtype", "bfloat16", "--channels-last"]
    started = time.perf_counter()
    subprocess.run([sys.executable, program, *flags], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    with (out / "timm" / "summary.csv").open() as file:
        return {"top1": max(float(row["eval_top1"]) for row in csv.DictReader(file)) / 100, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--start", type=Path, required=True, help="model file to fine-tune")
    parser.add_argument("--name", required=True, help="short name of the start, for the result's file name")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the result of each run")
    parser.add_argument("--timm", type=Path, help="train.py in a checkout of timm")
    parser.add_argument("--only", choices=["finetune", "fresh", "timm"], help="run one of the three")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hardware", default="cpu", help="short name of the machine, for the result's file name")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()
    if args.only == "timm" and not args.timm:
        parser.error("--only timm needs --timm")

    start = load_model(args.start)
    recipe = fit(finetune(), len(open_source(args.data).train), image_size=start.preprocess.image_size)
    equal = recipe.epochs, start.preprocess.image_size

    def one(kind: str, seed: int, folder: Path) -> dict:
        if kind == "finetune":
            return shvit_run(args.data, str(args.start), seed, folder / "run")
        if kind == "fresh":
            same = "--epochs", equal[0], "--image-size", equal[1]
            return shvit_run(args.data, start.architecture.name, seed, folder / "run", *same)
        return timm_run(args.timm, args.data, args.start, *equal, seed, folder)

    fresh = ["fresh"] if start.architecture.config is not None else []
    kinds = [args.only] if args.only else ["finetune", *fresh, *(["timm"] if args.timm else [])]
    args.runs.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for kind in kinds:
            if (kept := args.runs / f"{kind}-{seed}.json").exists():
                continue
            with tempfile.TemporaryDirectory() as folder:
                write_json(kept, one(kind, seed, Path(folder)))
            print(kind, seed, json.loads(kept.read_text())["top1"], flush=True)
    if args.only:
        return
    runs = {kind: [json.loads(path.read_text()) for path in sorted(args.runs.glob(f"{kind}-*.json"))] for kind in kinds}

    def summary(each: list[dict]) -> dict:
        top1 = [run["top1"] for run in each]
        return {
            "top1": statistics.mean(top1),
            "top1_by_seed": top1,
            "seeds": len(top1),
            "seconds": statistics.median(run["seconds"] for run in each),
            **({"recipe": each[0]["recipe"]} if "recipe" in each[0] else {}),
        }

    about = facts()
    result = {
        "what": f"fine-tuning of {args.name} on {args.data.name} with the defaults, mean over seeds",
        "value": statistics.mean(run["top1"] for run in runs["finetune"]),
        "unit": "top-1, share of the validation images",
        **{kind: summary(each) for kind, each in runs.items()},
        "threads": torch.get_num_threads(),
        **about,
    }
    write_json(args.results / f"finetune_{args.name}_{args.hardware}_{about['date'][:10]}.json", result)
    print(json.dumps({kind: summary(each)["top1"] for kind, each in runs.items()}))


if __name__ == "__main__":
    main()
