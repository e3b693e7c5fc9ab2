"""Detectors that learn from few photographs: the light detector beside RetinaNet and torchvision's SSDLite320.

    python benchmarks/detectors.py --bccd ../shared/data/bccd --coco ../shared/data/coco421 --start s1.safetensors \\
        --peer mobilenetv3.safetensors --runs RUNS

START is a SHViT classifier, PEER is timm/mobilenetv3_large_100, trained as long on the same images. Measured are:

- `light`: BCCD with the defaults of `shvit train --task detect`, and the loss of AP without NMS;
- `few`: the same from 50 of its images;
- `retinanet` and `ssdlite`: the other detectors on BCCD at the same image size, for about as long;
- `coco`: 215 photographs of COCO, for as long as RetinaNet was trained before (7 minutes);
- `overfit`: 16 photographs, evaluated on themselves.

The validation images judge once, after the last epoch. Results are kept in RUNS, so that a stopped benchmark continues;
`--only` runs some of the measurements. Times are those of the training loop. With `taskset` and OMP_NUM_THREADS=1, two
runs can share two cores.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import ssdlite
from detection import choose, write
from shvit.bench.report import hardware_name
from shvit.data.coco import open_coco
from shvit.data.loader import Loader
from shvit.data.transforms import Normalize, Preprocess
from shvit.files import write_json
from shvit.modelfile import load
from shvit.pretrained import load_model
from shvit.provenance import facts
from shvit.tasks.detect import Detect
from shvit.train.budget import fit
from shvit.train.recipes import make_recipe

LAST_ONLY = "--eval-every", "1000000"
FEW = 50
RETINANET_EPOCHS = "12"
COCO_FLAGS = ["--epochs", "52", "--image-size", "192", "--mosaic", "0", "--scale-min", "0.75", "--scale-max", "1.25"]
OVERFIT = [
    *("--epochs", "150", "--image-size", "128", "--mosaic", "0", "--hsv", "0", "--flip", "0"),
    *("--scale-min", "1", "--scale-max", "1"),
]


class Suppressed(Detect):
    """Detection with non-maximum suppression, otherwise as by the light detector."""

    suppresses = True


def trained(data: Path, out: Path, start: str, *flags: str) -> dict[str, Any]:
    """Run `shvit train --task detect`. Returns command, seconds of training, images per second and COCO metrics."""
    shutil.rmtree(out, ignore_errors=True)
    command = ["train", str(data), "--task", "detect", "--model", start, *flags]
    whole = [sys.executable, "-m", "shvit", *command, "--out", str(out), "--json"]
    found = json.loads(subprocess.run(whole, check=True, stdout=subprocess.PIPE).stdout)
    return {
        "command": " ".join(["shvit", *command]),
        "seconds": found["seconds"],
        "images_per_second": found["images_per_second"],
        "epochs": found["epochs"],
        **found["bbox"],
    }


@torch.inference_mode()
def branches(path: Path, data: Path) -> dict[str, float]:
    """AP and AP50 of the outputs, and of the one-to-many scores with NMS."""
    model, source = load(path), open_coco(data)
    normalize, network = Normalize(model.preprocess), model.model
    network.eval()
    metrics = {}
    for name, task, run in (
        ("one_to_one", Detect(source.classes), network),
        ("one_to_many_nms", Suppressed(source.classes), network.one_to_many),
    ):
        batches = Loader(source.val, task.eval_reader(model.preprocess), 8)
        found = task.evaluate(lambda images, run=run: run(normalize(images)), batches).metrics()
        metrics |= {f"{name}_AP": found["AP"], f"{name}_AP50": found["AP50"]}
    return metrics


def few_images(data: Path, out: Path, seed: int) -> Path:
    """BCCD with only some of its training images."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "annotations").mkdir(parents=True)
    shutil.copytree(data / "images", out / "images")
    shutil.copy(data / "annotations" / "instances_val.json", out / "annotations")
    document = json.loads((data / "annotations" / "instances_train.json").read_text())
    kept = sorted(random.Random(seed).sample(document["images"], FEW), key=lambda image: image["id"])
    ids = {image["id"] for image in kept}
    rows = [row for row in document["annotations"] if row["image_id"] in ids]
    path = out / "annotations" / "instances_train.json"
    path.write_text(json.dumps({**document, "images": kept, "annotations": rows}))
    return out


def peer(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """torchvision's SSDLite320 with the recipe of the light detector."""
    source = open_coco(args.bccd)
    recipe = fit(make_recipe("small", "", {"seed": seed}, "detect"), len(source.train))
    preprocess = Preprocess(ssdlite.SIDE, fit="whole", crop=1.0, interpolation="bilinear")
    network, seconds = ssdlite.train(source, recipe, preprocess, args.peer)
    return {"seconds": seconds, "epochs": recipe.epochs, **ssdlite.judge(network, source, preprocess)}


def measure(kind: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    out, named = args.runs / f"{kind}-{seed}", ("--seed", str(seed), *LAST_ONLY)
    if kind == "ssdlite":
        return peer(args, seed)
    if kind == "retinanet":
        return trained(args.bccd, out, args.start, "--head", "retinanet", "--epochs", RETINANET_EPOCHS, *named)
    if kind == "coco":
        return trained(args.coco, out, args.start, *COCO_FLAGS, *named)
    if kind == "overfit":
        data = args.runs / "overfit-data"
        write(args.coco, choose(args.coco, 16), data)
        return trained(data, out, args.start, *OVERFIT, *named)
    data = args.bccd if kind == "light" else few_images(args.bccd, args.runs / "few-data", seed)
    return {**trained(data, out, args.start, *named), **branches(out / "last.safetensors", data)}


def main() -> None:
    kinds = ("light", "few", "retinanet", "ssdlite", "coco", "overfit")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", type=Path, required=True)
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--start", required=True)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--kept-only", action="store_true", help="train nothing: write the result of what is in RUNS")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    args.runs.mkdir(parents=True, exist_ok=True)
    about, rows = facts(), []
    for kind in args.only:
        for seed in args.seeds:
            kept = args.runs / f"{kind}-{seed}.json"
            if args.kept_only and not kept.exists():
                continue
            if not kept.exists():
                write_json(
                    kept,
                    {"kind": kind, "seed": seed, "cores": len(os.sched_getaffinity(0)), **measure(kind, seed, args)},
                )
            rows.append(json.loads(kept.read_text()))
            print(json.dumps(rows[-1]))
    starts = [args.start, *([args.peer] if any(row["kind"] == "ssdlite" for row in rows) else [])]
    light = [row["AP50"] for row in rows if row["kind"] == "light"]
    result = {
        "what": "detectors trained on few photographs, judged on the validation images",
        "value": min(light, default=None),
        "unit": "AP50 of the light detector on BCCD, minimum over the seeds",
        "command": "python benchmarks/detectors.py --bccd BCCD --coco COCO421 --start S1 --peer MNV3 --runs RUNS",
        "threads": max(row["cores"] for row in rows),
        "starts": {str(path): load_model(path).metrics.get("top1") for path in starts},
        "rows": rows,
        **about,
    }
    write_json(args.results / f"detectors_{hardware_name(about['hardware'])}_{about['date'][:10]}.json", result)


if __name__ == "__main__":
    main()
