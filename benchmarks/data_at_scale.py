"""Memory and time for a folder of 1.28 million images: this project's loader, and torchvision's ImageFolder.

    python benchmarks/data_at_scale.py FOLDER --workers 8

FOLDER is created if it does not exist: 1,000 classes of small JPEGs, which are links to one file per class. Each loader
runs in its own process. It opens the folder, starts its workers, and passes once over all images in random order.
Images are not decoded, so that only the memory for the list of images is measured. It is measured for each process
after the pass, in MiB: `private` is memory that no other process shares; `all_processes` counts shared memory once.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader

from shvit.bench.report import hardware_name
from shvit.data.loader import Loader
from shvit.data.sources import open_source
from shvit.files import write_json
from shvit.provenance import facts

CLASSES = 1000
BATCH = 256


def make(folder: Path, images: int) -> None:
    for split, count in (("train", images), ("val", CLASSES)):
        for label in range(CLASSES):
            place = folder / split / f"n{label:08}"
            place.mkdir(parents=True)
            first = place / f"n{label:08}_0.JPEG"
            Image.new("RGB", (32, 32), (label % 256, label // 256, 9 if split == "val" else 200)).save(first)
            for number in range(1, (count - label - 1) // CLASSES + 1):
                os.link(first, place / f"n{label:08}_{number}.JPEG")


def unread(_: Any) -> torch.Tensor:
    return torch.zeros(3, 1, 1, dtype=torch.uint8)


def shvit_loader(folder: Path, workers: int) -> Any:
    return Loader(open_source(folder).train, unread, BATCH, workers, shuffle=True)


def torchvision_loader(folder: Path, workers: int) -> Any:
    from torchvision.datasets import ImageFolder

    return DataLoader(
        ImageFolder(str(folder / "train"), loader=unread), BATCH, shuffle=True, num_workers=workers,
        persistent_workers=True,
    )  # fmt: skip


LOADERS = {"shvit": shvit_loader, "torchvision": torchvision_loader}


def memory(pid: int) -> dict[str, float]:
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {key: int(value.split()[0]) for key, _, value in (row.partition(":") for row in rows)}
    return {"private": (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024, "share": kib["Pss"] / 1024}


def measure(kind: str, folder: Path, workers: int) -> dict[str, Any]:
    started = time.perf_counter()
    loader = LOADERS[kind](folder, workers)
    opened = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    images = sum(len(batch.images if kind == "shvit" else batch[0]) for batch in loader)
    each = [memory(child.pid) for child in multiprocessing.active_children() if child.pid]
    return {
        "loader": kind,
        "images": images,
        "seconds_to_open": opened,
        "peak_of_main_while_opening": peak,
        "private_per_worker": mean(one["private"] for one in each),
        "all_processes": sum(one["share"] for one in each) + memory(os.getpid())["share"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--only", choices=LOADERS, help="print the measurement of one loader")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    if not args.folder.exists():
        make(args.folder, args.images)
    if args.only:
        print(json.dumps(measure(args.only, args.folder, args.workers)))
        return
    rows = []
    for kind in LOADERS:
        command = [sys.executable, __file__, str(args.folder), "--workers", str(args.workers), "--only", kind]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        print(json.dumps(rows[-1]))
    ours, theirs = rows
    result = {
        "what": f"memory of {args.workers} data-loading workers for {ours['images']:,} images in a folder",
        "value": theirs["private_per_worker"] / ours["private_per_worker"],
        "unit": "private memory per worker of torchvision's ImageFolder / that of shvit",
        "command": f"python benchmarks/data_at_scale.py FOLDER --workers {args.workers}",
        "threads": torch.get_num_threads(),
        "rows": rows,
        **facts(),
    }
    date = result["date"][:10]
    write_json(args.results / f"data-at-scale_{hardware_name(result['hardware'])}_{date}.json", result)


if __name__ == "__main__":
    main()
