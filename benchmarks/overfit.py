"""Whether a detector learns a few photographs by heart: the whole path from annotations to metrics, on real images.

Of a COCO folder, the first --images training photographs without crowds, all of whose objects are at least an eighth of
the photograph's longer side wide (the root of width times height), are trained and judged on, with the classes that
occur on them. No augmentation.

    python benchmarks/overfit.py ../shared/data/coco421 --runs ../runs --start ../runs/s1/best.safetensors
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from shvit.bench.report import hardware_name
from shvit.provenance import facts

LEAST_SIDE = 1 / 8
PLAIN = ["--scale-min", "1", "--scale-max", "1", "--flip", "0", "--color-jitter", "0", "--ema", "0"]
FLAGS = {
    "detect": ["--epochs", "60", "--image-size", "256", "--batch-size", "4", "--rate", "1e-3", "--rate-batch", "4"],
    "segment": ["--epochs", "40", "--image-size", "256", "--batch-size", "4", "--rate", "5e-4", "--rate-batch", "4"],
}


def choose(coco: Path, images: int) -> dict[str, Any]:
    """The annotations of the photographs to be learnt."""
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
    """A COCO folder whose training and validation images are the same."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
        (out / split).mkdir()
        for image in document["images"]:
            shutil.copy(coco / "train2017" / image["file_name"], out / split)


def shvit(*arguments: str) -> dict[str, Any]:
    """The JSON document that a command prints."""
    command = [sys.executable, "-m", "shvit", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="COCO folder")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the data and the runs, made anew")
    parser.add_argument("--start", required=True, help="a trained classifier")
    parser.add_argument("--tasks", nargs="+", default=list(FLAGS), choices=list(FLAGS))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    about = facts()
    document = choose(args.data, args.images)
    data = args.runs / "overfit"
    write(args.data, document, data)
    runs = {}
    for task in args.tasks:
        out = args.runs / f"overfit-{task}"
        shutil.rmtree(out, ignore_errors=True)
        command = ["train", str(data), "--task", task, "--model", args.start, *FLAGS[task], *PLAIN, "--workers", "0"]
        started = time.perf_counter()
        shvit(*command, "--out", str(out))
        seconds = time.perf_counter() - started
        judged = shvit("eval", str(out / "best.safetensors"), str(data), "--workers", "0")
        metrics = {kind: judged[kind] for kind in ("bbox", "segm") if kind in judged}
        runs[task] = {"command": " ".join(["shvit", *command]), "seconds": seconds, **metrics}
    result = {
        "what": f"shvit_s1 on {args.images} photographs of {args.data.name}, learnt by heart",
        "value": min(run[kind]["AP50"] for run in runs.values() for kind in ("bbox", "segm") if kind in run),
        "unit": "AP50 on the training images, the least of boxes and masks",
        "objects": len(document["annotations"]),
        "classes": len(document["categories"]),
        "photographs": [image["file_name"] for image in document["images"]],
        "runs": runs,
        "threads": torch.get_num_threads(),
        **about,
    }
    path = args.results / f"overfit_{hardware_name(about['hardware'])}_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({task: {k: run[k]["AP50"] for k in ("bbox", "segm") if k in run} for task, run in runs.items()}))


if __name__ == "__main__":
    main()
