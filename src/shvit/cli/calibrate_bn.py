"""`shvit calibrate-bn`."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..console import say
from ..requests import Device, Workers
from .app import Json, console_for, finish
from .export import beside_model

if TYPE_CHECKING:
    from ..calibrate import Calibration


def calibrate_bn(
    model: str,
    data: str,
    *,
    image_size: int,
    out: Path | None = None,
    images: int = 4096,
    batch_size: int = 64,
    device: Device = "auto",
    workers: Workers = 2,
    json: Json = False,
) -> None:
    """Adapt a model to another image size without training: measure the statistics of its BatchNorms anew.

    Parameters
    ----------
    model
        A model file, or published weights such as shvit_s1.in1k.
    data
        As for train; statistics come from training images, the top-1 before and after from validation images.
    image_size
        Side of the images in pixels.
    out
        The new model file; default: beside the old one, its name with the size.
    images
        Training images used at most.
    """
    from ..calibrate import calibrate_bn as run
    from ..evaluate import open_as_trained
    from ..modelfile import save
    from ..pretrained import load_model

    console = console_for(json)
    model_file = load_model(model)
    source = open_as_trained(data, model_file)
    result = run(model_file, source, image_size, images, batch_size, workers, device)
    target = out or beside_model(model, ".safetensors", str(image_size))
    save(result.model_file, target)
    calibrated(console, result, target)
    finish(json, {"out": str(target), **result.to_dict()})


def calibrated(console: Console, result: "Calibration", path: Path) -> None:
    """What it brought."""
    before, after = result.before["top1"], result.after["top1"]
    say(
        console,
        f"top-1 at {result.model_file.preprocess.image_size} pixels: {before:.2%} before, {after:.2%} after, on "
        f"{result.after['images']} images; statistics of {result.images} training images",
    )
    say(console, f"wrote {path}")
