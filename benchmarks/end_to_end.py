"""Whether end-to-end exports give the labels and scores of `shvit predict`, on images of all sizes.

Each export is compared with `shvit predict` for the same network and precision without the preprocessing: the model
file for fp32, the int8 export for int8. Three sets of images: photographs, the images of a dataset, and random crops of
the photographs, enlarged or reduced to random sizes (1 to 3,000 pixels).

    python benchmarks/end_to_end.py runs/s1/best.safetensors my_images --photos photos --images my_images/val
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shvit import provenance
from shvit.bench.report import hardware_name
from shvit.data.decode import decode
from shvit.export.export import export_model
from shvit.predict.predictor import Predictor, find_images
from shvit.pretrained import load_model
from shvit.tasks import task_of
from shvit.tasks.base import Prediction

ROWS = [("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8")]
CROPS, LONGEST = 300, 3000


def crops(photos: Sequence[Path], folder: Path) -> list[Path]:
    """Random crops of the photographs, at random sizes and aspect ratios, as PNG files."""
    random, paths = np.random.default_rng(0), []
    decoded = [decode(path) for path in photos]
    for index in range(CROPS):
        image = decoded[random.integers(len(decoded))]
        width, height = (int(random.uniform(0.2, 1) * side) for side in image.size)
        left, top = (
            int(random.integers(whole - part + 1)) for whole, part in zip(image.size, (width, height), strict=True)
        )
        size = tuple(int(LONGEST ** random.uniform(0.45, 1)) for _ in range(2))
        if index % 30 == 0:
            size = (size[0], 1 + index // 60)  # very thin
        path = folder / f"{index}.png"
        image.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


def agreement(found: Iterable[Prediction], expected: Iterable[Prediction]) -> dict[str, Any]:
    """How often the first label is the same, and by how much the score of that label differs."""
    pairs = [(one, other) for one, other in zip(found, expected, strict=True) if one.error is None]
    scores = [dict(zip(one.labels, one.scores, strict=True)) for one, _ in pairs]
    differences = [
        abs(given[other.labels[0]] - other.scores[0]) for given, (_, other) in zip(scores, pairs, strict=True)
    ]
    return {
        "images": len(pairs),
        "same_label": sum(one.labels[0] == other.labels[0] for one, other in pairs) / len(pairs),
        "score_difference": {
            "median": float(np.median(differences)),
            "p99": float(np.percentile(differences, 99)),
            "max": max(differences),
            "within_0.01": float(np.mean(np.array(differences) <= 0.01)),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", help="labelled images for int8")
    parser.add_argument("--photos", required=True, help="folder of photographs")
    parser.add_argument("--images", required=True, help="folder of the dataset's images to compare on")
    parser.add_argument("--out", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    model_file = load_model(arguments.model)
    source, photos = task_of(model_file).open(arguments.data), find_images([arguments.photos])
    everything = {"top_k": len(model_file.classes)}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "crops").mkdir()
        sets = {"photos": photos, "dataset": find_images([arguments.images]), "crops": crops(photos, folder / "crops")}
        exact = Predictor(model_file, "onnx", "fp32", "cpu", **everything)
        expected = {key: exact(paths) for key, paths in sets.items()}
        for engine, precision in ROWS:
            suffix = ".xml" if engine == "openvino" else ".onnx"
            whole, plain = folder / f"whole_{precision}{suffix}", folder / f"plain_{precision}{suffix}"
            report = export_model(model_file, engine, whole, precision, source=source, end_to_end=True)
            reference = None
            if precision == "int8":
                export_model(model_file, engine, plain, precision, source=source)
                reference = Predictor(plain, **everything)
            predictor = Predictor(whole, **everything)
            for key, paths in sets.items():
                same = expected[key] if reference is None else reference(paths)
                row = {"engine": engine, "precision": precision, "set": key, **agreement(predictor(paths), same)}
                row["latency_ms"], row["floor"] = report["parity"]["latency_ms"], report.get("floor", {}).get("drop")
                rows.append(row)
                print(json.dumps(row), flush=True)
    facts = provenance.facts()
    result = {
        "what": "Agreement of end-to-end exports with shvit predict for the same network and precision.",
        "value": min(row["same_label"] for row in rows),
        "unit": "share of images with the same first label, lowest of all rows",
        "threads": None,
        "rows": rows,
        **facts,
    }
    path = arguments.out / f"end-to-end_{hardware_name(facts['hardware'])}_{facts['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
