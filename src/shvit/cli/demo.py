"""`shvit demo`: every step from training to prediction, on a dataset that scikit-learn brings along."""

from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..console import say
from .app import Json, console_for, finish

if TYPE_CHECKING:
    from ..bench.run import Result
    from ..data.dataset import Dataset
    from ..modelfile import ModelFile
    from ..predict.predictor import Prediction

SETTINGS: dict[str, Any] = {
    "epochs": 8,
    "image_size": 64,
    "batch_size": 64,  # at this size the time of a step depends on the weights, not on the number of images
    "flip": 0.0,  # a mirrored digit is another digit, or none
    "crop_min": 0.7,
}
"""Recipe settings: small images, few epochs."""
DEMO_FORMATS = ("onnx", "torch")
"""Formats to export to: the first whose libraries are installed."""
BENCH_ROUNDS = 3
LABELLED = 6
"""Number of held-out digits that are written as image files and labelled."""
NEXT_STEPS = """
Now with your own images, in folders named by class:
  shvit train my_images --model shvit_s1 --out runs/mine
  shvit eval runs/mine/best.safetensors my_images
  shvit predict runs/mine/best.safetensors new_image.jpg
  shvit export runs/mine/best.safetensors --format onnx --calibrate my_images"""


def demo(*, out: Path = Path("runs/demo"), json: Json = False) -> None:
    """Train, evaluate, export, time and use a model on 1,797 handwritten digits. Needs no network.

    Parameters
    ----------
    out
        A new folder for the run. If it exists, a number is added to its name.
    """
    console = console_for(json)
    finish(json, run_demo(_free_folder(out), console))


def run_demo(out: Path, console: Console) -> dict[str, Any]:
    """Run the demo and print each command before its output.

    Returns:
        out, top1, images (held out), seconds (of training), export (its report), speeds (images/s of the model file and
        of the exported file), predictions (true and predicted label).
    """
    from .. import engines
    from ..data.sources import open_source
    from ..evaluate import evaluate, write_report
    from ..pretrained import load_model
    from ..requests.train import TrainRequest
    from ..train.progress import Reporter
    from ..train.run import train

    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in SETTINGS.items())
    _announce(console, f"shvit train digits --model shvit_s1 {flags} --out {out}")
    result = train(TrainRequest("digits", out=out, settings=SETTINGS, workers=0), Reporter(console))
    if result.interrupted:
        raise KeyboardInterrupt
    best = out / "best.safetensors"
    model_file, source = load_model(best), open_source("digits")

    _announce(console, f"shvit eval {best} digits --out {out / 'eval'}")
    report = evaluate(model_file, engines.load(model_file, precision="fp32"), source)
    write_report(report, out / "eval")
    top1, images = report.evaluation.metrics()["top1"], report.evaluation.images
    say(console, f"top-1 {top1:.2%} on {images} held-out digits; {out / 'eval' / 'confusion.png'} shows the mistakes")

    exported, parity = _export(console, model_file, best, source)
    speeds = _bench(console, best, exported)
    predictions = _predict(console, exported, source, out / "digits")
    for line in NEXT_STEPS.splitlines():
        say(console, line)
    return {
        "out": str(out),
        "top1": top1,
        "images": images,
        "seconds": result.seconds,
        "export": parity,
        "speeds": {row.case.model: row.images_per_second for row in speeds.rows},
        "predictions": [
            {"path": p.path, "true": str(label), "label": p.labels[0]}
            for p, label in zip(predictions, source.val.labels, strict=False)
        ],
    }


def _export(console: Console, model_file: "ModelFile", best: Path, source: "Dataset") -> tuple[Path, dict[str, Any]]:
    """Returns the exported file and the report of the export."""
    from .. import engines
    from ..export.export import export
    from ..tasks import kind_of
    from .export import exported as export_lines

    kind = next(name for name in DEMO_FORMATS if not engines.ENGINES[name].absent())
    exported = best.with_suffix(engines.ENGINES[kind].suffix)
    _announce(console, f"shvit export {best} --format {kind} --calibrate digits")
    parity = export(model_file, kind, exported, source=source)
    for line in export_lines(parity, kind_of(model_file)):
        say(console, line)
    return exported, parity


def _bench(console: Console, *models: Path) -> "Result":
    from ..bench import report
    from ..bench.run import bench
    from ..requests.bench import BenchRequest

    names = tuple(map(str, models))
    _announce(console, f"shvit bench {' '.join(names)} --engine torch --precision fp32 --rounds {BENCH_ROUNDS}")
    request = BenchRequest(names, engines=("torch",), precisions=("fp32",), rounds=BENCH_ROUNDS)
    with report.watching(console) as progress:
        speeds = bench(request, progress)
    report.show(console, speeds)
    return speeds


def _predict(console: Console, exported: Path, source: "Dataset", folder: Path) -> "list[Prediction]":
    """Write digits as image files and label them."""
    from PIL import Image

    from ..predict.predictor import Predictor
    from ..pretrained import load

    _announce(console, f"shvit predict {exported} {folder}")
    folder.mkdir()
    files = []
    for index, (pixels, label) in enumerate(zip(source.val.images[:LABELLED], source.val.labels, strict=False)):
        files.append(folder / f"{index}_is_a_{label}.png")
        Image.fromarray(pixels).save(files[-1])  # pyright: ignore[reportArgumentType]: digits are arrays
    predictions = Predictor(load(exported), top_k=1)(files)
    for prediction in predictions:
        say(console, f"{prediction.path}  {prediction.labels[0]}  {prediction.scores[0]:.1%}")
    return predictions


def _announce(console: Console, command: str) -> None:
    say(console, "")
    say(console, f"$ {command}", style="bold cyan")


def _free_folder(path: Path) -> Path:
    """The path, with the first free number appended if it exists."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(free for free in chain([path], numbered) if not free.exists())
