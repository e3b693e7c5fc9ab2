"""`shvit demo`: run the commands from training to prediction on a dataset that is part of scikit-learn."""

import sys
from contextlib import nullcontext, redirect_stdout
from itertools import chain, count
from json import loads
from pathlib import Path
from shlex import join
from typing import Any

from rich.console import Console

from ..console import say
from .app import Json, call, console_for, finish

SETTINGS = "--epochs 8 --image-size 64 --batch-size 64 --flip 0 --crop-min 0.7 --workers 0"
"""Training flags: small images and few epochs. No flips, because most mirrored digits are not valid digits."""
DEMO_FORMATS = ("onnx", "torch")
"""Export formats. The demo uses the first one whose libraries are installed."""
LABELLED = 6
"""Number of held-out digits whose labels are predicted. They are first written as image files."""
NEXT_STEPS = """
To use your own images, put them in one folder per class and run:
  shvit train my_images --out runs/mine
  shvit eval runs/mine/best.safetensors my_images
  shvit predict runs/mine/best.safetensors new_image.jpg
  shvit export runs/mine/best.safetensors --format onnx --calibrate my_images"""


def demo(*, out: Path = Path("runs/demo"), json: Json = False) -> None:
    """Train, evaluate, export, time and use a model on 1,797 handwritten digits. Works without internet access.

    Parameters
    ----------
    out
        Folder for the run. If it exists, a number is appended to its name.
    """
    numbered = (out.with_name(f"{out.name}-{number}") for number in count(2))
    free = next(folder for folder in chain([out], numbered) if not folder.exists())
    with redirect_stdout(sys.stderr) if json else nullcontext():
        document = _run_commands(free, console_for(json))
    finish(json, document)


def _run_commands(out: Path, console: Console) -> dict[str, Any]:
    """Run the commands.

    Returns:
        A dictionary with out, top1, images (held-out images), seconds (training time), export (report), speeds
        (images/s of the model file and the exported file) and predictions (path, true label and predicted label).
    """
    from .. import engines

    best = out / "best.safetensors"
    kind = next(name for name in DEMO_FORMATS if not engines.ENGINES[name].absent())
    exported = best.with_suffix(engines.ENGINES[kind].suffix)

    _run(console, "train", "digits", "--model", "shvit_s1", *SETTINGS.split(), "--out", out)
    accuracy = _run(console, "eval", best, "digits", "--out", out / "eval")
    report = _run(console, "export", best, "--format", kind, "--calibrate", "digits")
    speeds = _run(console, "bench", best, exported, "--engine", "torch", "--precision", "fp32", "--rounds", 3)
    predictions = _predict(console, exported, out / "digits")
    for line in NEXT_STEPS.splitlines():
        say(console, line)
    last_epoch = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return {
        "out": str(out),
        "top1": accuracy["top1"],
        "images": accuracy["images"],
        "seconds": loads(last_epoch)["seconds"],
        "export": report,
        "speeds": {row["model"]: row["images_per_second"] for row in speeds["rows"]},
        "predictions": predictions,
    }


def _run(console: Console, *arguments: object) -> Any:
    """Print a command and run it. Returns its JSON document."""
    return call(_announce(console, *arguments))


def _predict(console: Console, exported: Path, folder: Path) -> list[dict[str, str]]:
    """Write digits as image files and predict their labels. Returns path, true label and predicted label per digit."""
    from PIL import Image

    from ..data.sources import open_source
    from ..predict.predictor import Predictor
    from ..pretrained import load

    digits = open_source("digits").val
    labels = [str(label) for label in digits.labels[:LABELLED]]
    files = [folder / f"{index}_is_a_{label}.png" for index, label in enumerate(labels)]
    folder.mkdir()
    for pixels, file in zip(digits.images, files, strict=False):
        Image.fromarray(pixels).save(file)  # pyright: ignore[reportArgumentType]: digits are arrays
    _announce(console, "predict", exported, folder, "--top-k", 1)
    predictions = Predictor(load(exported), top_k=1)(files)
    for prediction in predictions:
        say(console, f"{prediction.path}  {prediction.labels[0]}  {prediction.scores[0]:.1%}")
    return [{"path": p.path, "true": label, "label": p.labels[0]} for p, label in zip(predictions, labels, strict=True)]


def _announce(console: Console, *arguments: object) -> list[str]:
    command = [str(argument) for argument in arguments]
    say(console, "")
    say(console, f"$ shvit {join(command)}", style="bold cyan")
    return command
