"""Throughput of data loading in training, compared with timm's `create_loader`.

Both loaders read the same files with two workers, use the same augmentation, and return normalized fp32 batches on
the CPU. Our workers return uint8 images, which the main process normalizes. timm's loader runs in two modes: without
prefetcher, the workers normalize; with prefetcher, the main process does. Augmentations: `paper` is that of the SHViT
paper at 224 pixels (crops of 8 to 100 % of the area, flips, RandAugment, random bilinear or bicubic interpolation);
`light` is crops of 35 to 100 % and flips at 160 pixels. The loaders alternate after each epoch; a ratio is the median
of the ratios of all rounds.

What limits the speed: JPEG data must be decoded from the start, even for a crop. Huffman decoding takes two thirds of
the decoding time (a photograph of 500x375 has 100 kB). The geometric operations of RandAugment take 1 to 3 ms each in
Pillow for 224x224 pixels, and occur once per three images; our loader runs them in OpenCV. The rest is memory
traffic: a normalized fp32 image of 224x224 has 602 kB, four times as much as in uint8. Batches of more than 32 MiB
are newly allocated each time, and the page faults of the new memory cost as much time again.

From version 13 on, Pillow refuses to posterize to 0 bits, which timm's RandAugment requests for one image in 700.
Both loaders return black pixels in this case.

    python benchmarks/loader.py ../shared/data/photos ../shared/data/imagenette160/train
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.data import auto_augment, create_dataset, create_loader

from shvit.data.augmentation import TrainReader, posterize_to_black
from shvit.data.loader import Loader
from shvit.data.reduced import SIMPLEJPEG
from shvit.data.sources import open_source
from shvit.data.transforms import Normalize, Preprocess
from shvit.provenance import facts

AUGMENTATIONS = {
    "paper": TrainReader(224, rand_augment="rand-m9-mstd0.5-inc1"),
    "light": TrainReader(160, crop_scale=(0.35, 1.0)),
}
WORKERS = 2
TIMMS = {"timm": False, "timm with prefetcher": True}

Epoch = Callable[[int], Iterable[torch.Tensor]]


def folder_of_links(source: Path, count: int, folder: Path) -> None:
    """Create `count` links in two class folders, to evenly spaced files of `source`, repeated if there are fewer."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for index in range(count):
        file = files[index * len(files) // count]
        place = folder / str(index % 2) / f"{index:06}{file.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file.resolve())


def ours(folder: Path, reader: TrainReader, batch_size: int) -> Epoch:
    """The data loading of `shvit train`."""
    source = open_source(folder)
    loader = Loader(source.whole(), reader, batch_size, WORKERS, shuffle=True)
    normalize = Normalize(Preprocess(reader.image_size))
    return lambda epoch: (normalize(batch.images) for batch in loader.epoch(epoch))


def timms(folder: Path, reader: TrainReader, batch_size: int, use_prefetcher: bool) -> Epoch:
    """The data loading of timm's train.py on a CPU."""
    loader = create_loader(
        create_dataset("", str(folder), is_training=True),
        (3, reader.image_size, reader.image_size),
        batch_size,
        is_training=True,
        use_prefetcher=use_prefetcher,
        device=torch.device("cpu"),
        scale=reader.crop_scale,
        hflip=reader.flip,
        color_jitter=None,  # pyright: ignore[reportArgumentType]: None turns it off
        auto_augment=reader.rand_augment,
        interpolation="random",
        num_workers=WORKERS,
    )
    return lambda _: (images for images, _ in loader)


def compare(folder: Path, reader: TrainReader, batch_size: int, rounds: int) -> dict[str, Any]:
    """Throughput of all loaders, in alternating epochs. The first round starts the workers and is not counted."""
    loaders = {
        **{name: timms(folder, reader, batch_size, use_prefetcher) for name, use_prefetcher in TIMMS.items()},
        "shvit": ours(folder, reader, batch_size),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for epoch in range(rounds + 1):
        for name, images in loaders.items():
            started = time.perf_counter()
            count = sum(len(batch) for batch in islice(images(epoch), None if epoch else 2))
            rate = count / (time.perf_counter() - started)
            if epoch:
                rates[name].append(rate)
                print(f"{name} {rate:.0f} images/s", flush=True)
    ratios = {
        name: statistics.median(ours / theirs for ours, theirs in zip(rates["shvit"], rates[name], strict=True))
        for name in TIMMS
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"images_per_second": medians, "rounds": rates, "ratio": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of photographs")
    parser.add_argument(
        "others", type=Path, nargs="*", help="folders of other images, which do not affect the result's main value"
    )
    parser.add_argument("--augmentations", nargs="*", default=list(AUGMENTATIONS), choices=AUGMENTATIONS)
    parser.add_argument("--images", type=int, default=2048, help="images per epoch")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hardware", default="cpu", help="short name of the machine, for the result's file name")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    about = facts()
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = posterize_to_black
    torch.set_num_threads(1)  # a second thread would take CPU time from the workers
    rows = []
    for source in (args.photos, *args.others):
        for name in args.augmentations:
            with tempfile.TemporaryDirectory() as folder:
                folder_of_links(source, args.images, Path(folder))
                measured = compare(Path(folder), AUGMENTATIONS[name], args.batch_size, args.rounds)
            rows.append({"data": f"{source.parent.name}/{source.name}", "augmentation": name, **measured})
            print(f"{rows[-1]['data']}, {name}: {measured['ratio']}", flush=True)
    result = {
        "what": "data loading from files to normalized batches with two workers, relative to timm's create_loader",
        "value": min(min(row["ratio"].values()) for row in rows[: len(args.augmentations)]),
        "unit": "times the images/s of timm's loader in its faster mode, minimum over the augmentations of photographs",
        "rows": rows,
        "images": args.images,
        "batch_size": args.batch_size,
        "simplejpeg": SIMPLEJPEG,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "workers": WORKERS,
        **about,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"loader_{args.hardware}_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
