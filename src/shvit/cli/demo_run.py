"""The whole journey on data that ships with a dependency, as a user would walk it with their own."""

from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from .. import engines
from ..bench import report as bench_report
from ..bench.run import bench
from ..console import say
from ..data.sources import open_source
from ..evaluate import evaluate, write_report
from ..export.export import export
from ..predict.predictor import Predictor
from ..pretrained import load, load_model
from ..requests.bench import BenchRequest
from ..requests.train import TrainRequest
from ..tasks import kind_of
from ..train.progress import Reporter
from ..train.run import train
from .export import exported as export_lines

SETTINGS: dict[str, Any] = {
    "epochs": 8,
    "image_size": 64,
    "batch_size": 64,  # at this size a step costs by the weights, not by the images
    "flip": 0.0,  # makes other digits, or none
    "crop_min": 0.7,
}
"""Of the recipe: small images, few epochs."""
SHOWN = 6
"""Held-out digits that are written as pictures and labelled."""


EXPORTED = ("onnx", "torch")
"""Formats to show: the first whose libraries are here."""
ROUNDS = 3
"""Of timing the model file and the exported one in turn."""


def run_demo(out: Path, console: Console) -> dict[str, Any]:
    """Train on the digits, evaluate on those held out, export, compare speeds, label; say each command on the way.

    Returns:
        out, top1, images (held out), seconds (of training), export (its report), speeds (images/s of the model file and
        the exported one), predictions (true and predicted label).
    """
    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in SETTINGS.items())
    _command(console, f"shvit train digits --model shvit_s1 {flags} --out {out}")
    result = train(TrainRequest("digits", out=out, settings=SETTINGS, workers=0), Reporter(console))
    if result.interrupted:
        raise KeyboardInterrupt
    best = out / "best.safetensors"
    model_file = load_model(best)

    _command(console, f"shvit eval {best} digits --out {out / 'eval'}")
    source = open_source("digits")
    engine = engines.load(model_file, precision="fp32")
    report = evaluate(model_file, engine, source)
    write_report(report, out / "eval")
    top1 = report.evaluation.metrics()["top1"]
    say(
        console,
        f"top-1 {top1:.2%} on {report.evaluation.images} held-out digits; {out / 'eval' / 'confusion.png'} shows which",
    )

    kind = next(name for name in EXPORTED if not engines.ENGINES[name].absent())
    exported = out / f"best{engines.ENGINES[kind].suffix}"
    _command(console, f"shvit export {best} --format {kind} --calibrate digits")
    parity = export(model_file, kind, exported, source=source)
    for line in export_lines(parity, kind_of(model_file)):
        say(console, line)

    _command(console, f"shvit bench {best} {exported} --engine torch --precision fp32 --rounds {ROUNDS}")
    request = BenchRequest((str(best), str(exported)), engines=("torch",), precisions=("fp32",), rounds=ROUNDS)
    with bench_report.watching(console) as progress:
        speeds = bench(request, progress)
    bench_report.show(console, speeds)

    folder = out / "digits"
    _command(console, f"shvit predict {exported} {folder}")
    folder.mkdir()
    files = []
    for place, (pixels, label) in enumerate(zip(source.val.images[:SHOWN], source.val.labels, strict=False)):
        files.append(folder / f"{place}_is_a_{label}.png")
        Image.fromarray(pixels).save(files[-1])  # pyright: ignore[reportArgumentType]: digits are arrays
    predictions = Predictor(load(exported), top_k=1)(files)
    for prediction in predictions:
        say(console, f"{prediction.path}  {prediction.labels[0]}  {prediction.scores[0]:.1%}")

    for line in (
        "",
        "Now with your own images, in folders named by class:",
        "  shvit train my_images --model shvit_s1 --out runs/mine",
        "  shvit eval runs/mine/best.safetensors my_images",
        "  shvit predict runs/mine/best.safetensors new_image.jpg",
        "  shvit export runs/mine/best.safetensors --format onnx --calibrate my_images",
    ):
        say(console, line)
    return {
        "out": str(out),
        "top1": top1,
        "images": report.evaluation.images,
        "seconds": result.seconds,
        "export": parity,
        "speeds": {row.case.model: row.images_per_second for row in speeds.rows},
        "predictions": [
            {"path": p.path, "true": str(label), "label": p.labels[0]}
            for p, label in zip(predictions, source.val.labels, strict=False)
        ],
    }


def _command(console: Console, command: str) -> None:
    say(console, "")
    say(console, f"$ {command}", style="bold cyan")
