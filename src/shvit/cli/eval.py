"""`shvit eval`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..console import say, show_table
from ..data.splits import SPLIT_ADJECTIVES
from ..errors import counted
from ..redact import redacted
from ..requests.eval import EvalRequest
from .app import Json, console_for, finish

if TYPE_CHECKING:
    from ..evaluate import Report

SHOWN_CLASSES = 20
"""Maximum number of rows of a table on the console. Larger tables are not printed, but written to --out."""


def evaluate(request: EvalRequest, *, json: Json = False) -> dict[str, Any]:
    """Measure the accuracy of a model on labelled images: top-1 for classifiers, COCO metrics for detectors."""
    from ..evaluate import evaluate as run

    report = run(request)
    show(console_for(json), report)
    about = {
        "model": request.model,
        "data": redacted(request.data),
        "engine": report.engine.name,
        "precision": report.engine.precision,
        "fit": report.model_file.preprocess.fit,
        "files": [str(path) for path in report.files],
    }
    return finish(json, {**report.to_dict(), **about})


def show(console: Console, report: "Report") -> None:
    """Print the accuracy, the tables of the task, and the paths of the written files."""
    evaluation, engine, speed = report.evaluation, report.engine, report.to_dict()["images_per_second"]
    images = counted(evaluation.images, f"{SPLIT_ADJECTIVES.get(report.chosen.split, '')} image".strip())
    say(console, f"{evaluation.summary()} on {images} ({engine.name}, {engine.precision}, {speed:.0f} images/s)")
    for line in confidence_lines(report):
        say(console, line)
    if evaluation.bad:
        listed = "" if report.files else "; --out saves a list"
        say(console, f"{counted(len(evaluation.bad), 'image')} could not be used{listed}")
    for header, rows in evaluation.tables():
        if len(rows) <= SHOWN_CLASSES:
            show_table(console, header, rows)
    for path in report.files:
        say(console, f"wrote {path}")


def confidence_lines(report: "Report") -> Iterator[str]:
    """Calibration error, threshold for the target accuracy, and what was stored in the model file."""
    from ..evaluate import unreached

    confidence, stored, threshold = report.confidence, report.stored, report.threshold
    if stored:
        yield (
            f"temperature {stored.temperature:.3f}, fitted on these images: expected calibration error "
            f"{stored.ece_before:.2%} before, {stored.ece_after:.2%} after (measured on the same images)"
        )
    elif confidence:
        temperature, line = report.model_file.calibration.temperature, f"{confidence['ece']:.2%}"
        if temperature != 1:
            line += f", {confidence['ece_uncalibrated']:.2%} without the temperature {temperature:.3f}"
        yield f"expected calibration error {line}"
    if threshold:
        (low, high), (least, most) = (threshold.to_dict()[f"{key}_interval"] for key in ("accuracy", "coverage"))
        yield (
            f"score {threshold.score:g} or more: accuracy {threshold.accuracy:.2%} ({low:.2%} to {high:.2%}) on "
            f"{threshold.coverage:.1%} of the images ({least:.1%} to {most:.1%}); with 95 % confidence, "
            f"the accuracy is at least {report.target_accuracy:.2%}"
        )
    elif report.target_accuracy is not None:
        yield unreached(report.target_accuracy, report.evaluation.images)
    if stored:
        yield "stored in the model file: temperature" + (" and threshold" if threshold else "")
