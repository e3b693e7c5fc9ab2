"""`shvit eval`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from ..console import say, show_table
from ..errors import InputError
from ..redact import redacted
from ..requests import Device, Engine, RawCells, Workers
from .app import Json, console_for, finish

if TYPE_CHECKING:
    from ..engines.base import Engine as Runner
    from ..evaluate import Report


SHOWN_CLASSES = 20
"""Where there are more, the table of classes is left to --out."""
SPLITS = {"val": "validation ", "train": "training "}
"""What the images of a split are called."""


def evaluate(
    model: str,
    data: str,
    *,
    engine: Engine = "auto",
    precision: str | None = None,
    device: Device = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    workers: Workers = 2,
    split: Literal["auto", "train", "val", "all"] = "auto",
    fit: Literal["crop", "squash"] | None = None,
    out: Path | None = None,
    raw_cells: RawCells = False,
    json: Json = False,
) -> None:
    """Measure a model's accuracy on labelled images: top-1, or COCO's numbers for boxes and masks.

    Parameters
    ----------
    model
        A model file, or published weights such as shvit_s1.in1k.
    data
        As for train: folder, CSV, shards, hf://NAME or digits; for detectors a COCO folder. Classes are matched with
        the model's by name: the exact name first, then synonyms in any case. A name that fits two classes is an error.
    precision
        fp32, bf16, fp16, or auto for the fastest that loses nothing to speak of; default: fp32, and of an exported file
        its own.
    threads
        CPU threads of the engine.
    batch_size
        Images that run at once; default: 64, and 8 of a detector.
    split
        auto: the validation images, or all where the data has no splits and is not what the model was trained on.
        auto and val leave out the images that the model was trained on, which are recognised by their content.
    fit
        What a classifier sees of an image. crop: the centre. squash: the whole image, resized to a square, as the
        authors evaluate fine-tuned networks. Default: what the model file says.
    out
        A folder for metrics.json, per_class.csv and, of classifiers, confusion.csv and confusion.png.
    """
    from .. import engines
    from ..evaluate import evaluate as run
    from ..evaluate import open_as_trained, seen_as, write_report
    from ..files import check_folder
    from ..pretrained import load

    console = console_for(json)
    if out:
        check_folder(out)
    elif raw_cells:
        raise InputError("--raw-cells has no effect without --out: leave it out")
    model_file = seen_as(load(model), fit)
    source = open_as_trained(data, model_file)
    precision = precision or ("auto" if isinstance(model_file, engines.Exported) else "fp32")
    runner = engines.load(model_file, engine, precision, device, threads)
    at_once = (64 if model_file.task == "classify" else 8) if batch_size is None else batch_size
    report = run(model_file, runner, source, split, at_once, workers)
    files = write_report(report, out, raw_cells) if out else []
    evaluated(console, report, runner, files)
    about = {
        "model": model,
        "data": redacted(data),
        "engine": runner.name,
        "precision": runner.precision,
        "fit": model_file.preprocess.fit,
        "files": [str(path) for path in files],
    }
    finish(json, {**report.to_dict(), **about})


def evaluated(console: Console, report: "Report", engine: "Runner", files: Sequence[Path]) -> None:
    """Accuracy, in all and of each class where they are few; what was left out, and what was written."""
    result = report.to_dict()
    of_objects = "bbox" in result
    if of_objects:
        accuracy, more = f"AP {_share(result['AP'])}, AP50 {_share(result['AP50'])}", ""
    else:
        accuracy, more = f"top-1 {result['top1']:.2%}", f"top-5 {result['top5']:.2%} · "
    images = f"{result['images']:,} {SPLITS.get(report.split, '')}images"
    say(console, f"{accuracy} of {images} ({engine.name}, {engine.precision})")
    say(console, f"{more}{result['images_per_second']:.0f} images/s")
    if of_objects:
        _show_objects(console, result)
    if result["bad_images"]:
        say(console, f"{result['bad_images']} images could not be used" + ("" if files else "; --out lists them"))
    if not of_objects and len(result["per_class"]) <= SHOWN_CLASSES:
        rows = [[name, f"{share:.1%}"] for name, share in result["per_class"].items()]
        show_table(console, ["class", "top-1"], rows)
    for path in files:
        say(console, f"wrote {path}")


def _show_objects(console: Console, result: dict[str, Any]) -> None:
    """COCO's numbers, a row for boxes and one for masks."""
    rows = [
        [name, *map(_share, result[kind].values())]
        for kind, name in (("bbox", "boxes"), ("segm", "masks"))
        if kind in result
    ]
    show_table(console, ["", *result["bbox"]], rows)


def _share(value: float) -> str:
    """Of COCO's numbers, which are -1 where there is no such object."""
    return "–" if value < 0 else f"{value:.1%}"
