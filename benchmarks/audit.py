"""Label errors and near-duplicates that `shvit audit` finds, among planted ones.

    python benchmarks/audit.py ../shared/data/imagenette160 --models lite0.safetensors s1.safetensors

Label errors: 5 % of the training labels are changed to another class at random, with several seeds. The value is the
share of these labels among as many suspects: those training images that the audit ranks first. Features do not depend
on labels, so they are computed once per model. EfficientNet-Lite0 (`benchmarks/lite0.py`) was trained on ImageNet-1K,
which contains the classes of Imagenette, so its features separate them well. A model that was trained on Imagenette
itself is biased: it has seen the true labels of these images.

Near-duplicates: each of some images is changed in every way of `CHANGES`, and the copies are compared with each other
and with all images of the dataset. A pair is false if its images do not come from the same image.
"""

import argparse
import io
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

import shvit
from shvit.audit.findings import AuditedImages
from shvit.audit.labels import assign_folds, estimated_errors, find_suspects, out_of_fold
from shvit.audit.near_duplicates import find_pairs
from shvit.audit.views import Views, view
from shvit.data.dataset import Split
from shvit.data.sources import open_source
from shvit.modelfile import ModelFile
from shvit.provenance import facts

SHARE, FOLDS = 0.05, 5


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image after compression."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def resized(image: Image.Image, factor: float) -> Image.Image:
    """The image with its sides multiplied by a factor, compressed with the usual quality."""
    size = max(8, round(factor * image.width)), max(8, round(factor * image.height))
    return as_jpeg(image.resize(size, Image.Resampling.BICUBIC), 85)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """The image without this share of each side."""
    left, top = round(share * image.width), round(share * image.height)
    return as_jpeg(image.crop((left, top, image.width - left, image.height - top)), 85)


CHANGES = {
    "recompressed": lambda image, chance: as_jpeg(image, chance.randint(30, 90)),
    "resized": lambda image, chance: resized(image, 2 ** chance.uniform(-1, 1)),
    "mirrored": lambda image, chance: as_jpeg(ImageOps.mirror(image), 85),
    "all three": lambda image, chance: as_jpeg(
        ImageOps.mirror(resized(image, 2 ** chance.uniform(-1, 1))), chance.randint(30, 90)
    ),
    "cropped by 2 %": lambda image, chance: cropped(image, 0.02),
    "cropped by 5 %": lambda image, chance: cropped(image, 0.05),
}
"""Changes to an image. The audit does not promise to find the cropped ones."""
PROMISED = ("recompressed", "resized", "mirrored", "all three")


def timed_view(images: Split, model_file: ModelFile | None, workers: int) -> tuple[Views, float]:
    """The views of the images, and the time that they took in seconds."""
    started = time.perf_counter()
    return view(images, model_file, workers=workers), time.perf_counter() - started


def label_errors(views: Views, audited: AuditedImages, groups: np.ndarray, seeds: int) -> list[dict[str, Any]]:
    """The results of each seed."""
    assert views.features is not None
    training = np.flatnonzero(np.asarray(audited.splits) == "train")
    rows = []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        changed = generator.choice(training, round(SHARE * len(training)), replace=False)
        labels = audited.labels.copy()
        labels[changed] += generator.integers(1, len(audited.classes), len(changed))
        labels %= len(audited.classes)
        started = time.perf_counter()
        folds = assign_folds(labels, groups, FOLDS, seed)
        probabilities = out_of_fold(views.features, labels, folds, len(audited.classes))
        suspects = find_suspects(probabilities, labels)
        seconds = time.perf_counter() - started
        ranked = suspects.indices[np.isin(suspects.indices, training)]
        right = suspects.suggested == audited.labels[suspects.indices]
        rows.append(
            {
                "seed": seed,
                "changed": len(changed),
                "found": float(np.isin(changed, ranked[: len(changed)]).mean()),
                "suspects": len(suspects.indices),
                "estimated": estimated_errors(probabilities, labels),
                "found_among_all_suspects": float(np.isin(changed, suspects.indices).mean()),
                "suggestion_is_the_true_label": float(right[np.isin(suspects.indices, changed)].mean()),
                "agreement_of_the_probe": float((probabilities.argmax(1) == audited.labels).mean()),
                "seconds": seconds,
            }
        )
    return rows


def near_duplicates(views: Views, audited: AuditedImages, count: int) -> dict[str, Any]:
    """Plant changed copies of some images, and count the pairs that are found."""
    chance = random.Random(0)
    originals = sorted(chance.sample(range(len(audited.images)), min(count, len(audited.images))))
    copies, of, kinds = [], [], []
    for index in originals:
        with Image.open(audited.images.images[index]) as file:
            image = file.convert("RGB")
        for kind, change in CHANGES.items():
            copies.append(np.asarray(change(image, chance).convert("RGB")))
            of.append(index)
            kinds.append(kind)
    planted = view(Split(copies, [0] * len(copies), kinds), None)
    source = np.array([*range(len(audited.images)), *of])
    thumbnails = np.concatenate([views.thumbnails, planted.thumbnails])
    started = time.perf_counter()
    pairs = find_pairs(thumbnails, np.ones(len(thumbnails), bool))
    seconds = time.perf_counter() - started
    same = source[pairs.first] == source[pairs.second]
    found = Counter(
        kinds[second - len(audited.images)] for second in pairs.second[same & (pairs.first < len(audited.images))]
    )
    wrong = sorted(
        {
            tuple(sorted((int(source[a]), int(source[b]))))
            for a, b in zip(pairs.first[~same], pairs.second[~same], strict=True)
        }
    )
    return {
        "originals": len(originals),
        "found": {kind: found[kind] / len(originals) for kind in CHANGES},
        "images": len(thumbnails),
        "pairs": len(pairs.first),
        "false_pairs": int((~same).sum()),
        "false_pairs_per_1000_pairs": 1000 * float((~same).mean()),
        "false_pairs_of": [[audited.images.names[index].rpartition("/")[2] for index in pair] for pair in wrong],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="an image folder, such as Imagenette")
    parser.add_argument("--models", nargs="*", default=[], help="model files whose features are used")
    parser.add_argument("--copied", type=int, default=2000, help="number of images to plant copies of")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()

    about = facts()
    audited = AuditedImages.of(open_source(args.data))
    views, read_seconds = timed_view(audited.images, None, args.workers)
    own = find_pairs(views.thumbnails, views.usable)
    copies = near_duplicates(views, audited, args.copied)
    print(copies, flush=True)
    models = {}
    for name in args.models:
        model_file = shvit.load(name)
        seen, seconds = timed_view(audited.images, model_file, args.workers)
        rows = label_errors(seen, audited, own.groups(len(audited.images)), args.seeds)
        models[Path(name).name] = {
            "found": float(np.mean([row["found"] for row in rows])),
            "image_size": model_file.preprocess.image_size,
            "seconds_for_features": seconds,
            "seeds": rows,
        }
        print(name, models[Path(name).name], flush=True)
    result = {
        "what": f"{SHARE:.0%} of the training labels of {args.data.name} changed: share found among as many suspects",
        "value": next(iter(models.values()))["found"] if models else None,
        "unit": "share",
        "images": len(audited.images),
        "models": models,
        "pairs_in_the_dataset_itself": len(own.first),
        "seconds_for_decoding": read_seconds,
        "near_duplicates": copies,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        **about,
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
