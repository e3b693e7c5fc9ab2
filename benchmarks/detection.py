"""RetinaNet and Mask R-CNN: overfit a few photographs, and compare a trained backbone with random weights.

`by-heart`: overfit the first --images training photographs of a COCO folder, without augmentation, and evaluate on
the same photographs. Photographs with crowds or small objects are left out. An object is small if the square root
of its box's area is less than a quarter of the photograph's longer side.

`learn`: train on the whole folder with the recipe `small` at 192 pixels, once with the backbone of --start and once
from random weights, and evaluate on the validation images.

    python benchmarks/detection.py ../shared/data/coco421 --runs ../runs --start ../runs/s1/best.safetensors
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from shvit.bench.report import hardware_name
from shvit.provenance import facts

LEAST_SIDE = 1 / 4
BY_HEART = [
    *("--image-size", "128", "--batch-size", "2", "--lr", "1e-4", "--lr-batch", "2", "--frozen-norms", "all"),
    *("--scale-min", "1", "--scale-max", "1", "--flip", "0", "--color-jitter", "0", "--ema", "0"),
]
EPOCHS = {
    "detect": ["--head", "retinanet", "--epochs", "40", "--eval-every", "20"],
    "segment": ["--epochs", "66", "--eval-every", "33", "--proposals", "32"],
}
LEARN = ["--task", "detect", "--head", "retinanet", "--image-size", "192", "--epochs", "12", "--eval-every", "12"]


def choose(coco: Path, images: int) -> dict[str, Any]:
    """The annotations of the photographs to overfit."""
    known = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    objects: dict[int, list[dict[str, Any]]] = {}
    for row in known["annotations"]:
        objects.setdefault(row["image_id"], []).append(row)

    def fits(image: dict[str, Any]) -> bool:
        least = (LEAST_SIDE * max(image["width"], image["height"])) ** 2
        rows = objects.get(image["id"], [])
        return bool(rows) and all(not r["iscrowd"] and r["bbox"][2] * r["bbox"][3] >= least for r in rows)

    chosen = [image for image in known["images"] if fits(image)][:images]
    rows = [row for image in chosen for row in objects[image["id"]]]
    present = {row["category_id"] for row in rows}
    classes = [row for row in known["categories"] if row["id"] in present]
    return {"images": chosen, "annotations": rows, "categories": classes}


def write(coco: Path, document: dict[str, Any], out: Path) -> None:
    """Write a COCO folder with the same images for training and validation."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
        (out / split).mkdir()
        for image in document["images"]:
            shutil.copy(coco / "train2017" / image["file_name"], out / split)


def shvit(*arguments: str) -> dict[str, Any]:
    """Run a command. Returns its JSON document."""
    command = [sys.executable, "-m", "shvit", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def run(data: Path, out: Path, start: str, flags: list[str]) -> dict[str, Any]:
    """Train into a new folder `out` and evaluate. Returns command, seconds and COCO metrics of the best weights."""
    shutil.rmtree(out, ignore_errors=True)
    command = ["train", str(data), "--model", start, *flags, "--workers", "0"]
    started = time.perf_counter()
    shvit(*command, "--out", str(out))
    seconds = time.perf_counter() - started
    judged = shvit("eval", str(out / "best.safetensors"), str(data), "--engine", "torch", "--workers", "0")
    metrics = {kind: judged[kind] for kind in ("bbox", "segm") if kind in judged}
    return {"command": " ".join(["shvit", *command]), "seconds": seconds, **metrics}


def by_heart(args: argparse.Namespace) -> dict[str, Any]:
    document = choose(args.data, args.images)
    data = args.runs / "by-heart"
    write(args.data, document, data)
    runs = {
        task: run(data, args.runs / f"by-heart-{task}", args.start, ["--task", task, *EPOCHS[task], *BY_HEART])
        for task in EPOCHS
    }
    return {
        "what": f"shvit_s1 overfits {args.images} photographs of {args.data.name}",
        "value": min(one[kind]["AP50"] for one in runs.values() for kind in ("bbox", "segm") if kind in one),
        "unit": "AP50 on the training images, minimum over boxes and masks",
        "objects": len(document["annotations"]),
        "classes": len(document["categories"]),
        "photographs": [image["file_name"] for image in document["images"]],
        "runs": runs,
    }


def learn(args: argparse.Namespace) -> dict[str, Any]:
    pairs = []
    for seed in args.seeds:
        trained, fresh = (
            run(args.data, args.runs / f"learn-{name}-{seed}", start, [*LEARN, "--seed", str(seed)])
            for name, start in (("trained", args.start), ("fresh", "shvit_s1"))
        )
        pairs.append({"seed": seed, "trained": trained, "fresh": fresh})
    gains = [100 * (pair["trained"]["bbox"]["AP50"] - pair["fresh"]["bbox"]["AP50"]) for pair in pairs]
    return {
        "what": f"RetinaNet on shvit_s1 and {args.data.name}: with a trained backbone, and from scratch",
        "value": mean(gains),
        "unit": "difference in AP50 on the validation images, in points, mean over seeds",
        "pairs": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="COCO folder")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the data and the runs")
    parser.add_argument("--start", required=True, help="a trained classifier, whose backbone is used")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", choices=("by-heart", "learn"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    about = facts()
    for name, measure in (("by-heart", by_heart), ("learn", learn)):
        if args.only in (None, name):
            result = {**measure(args), "threads": torch.get_num_threads(), **about}
            path = args.results / f"{name}_{hardware_name(about['hardware'])}_{about['date'][:10]}.json"
            path.write_text(json.dumps(result, indent=2) + "\n")
            print(json.dumps({key: result[key] for key in ("what", "value", "unit")}))


if __name__ == "__main__":
    main()
