"""`shvit eval`."""

from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..console import say, show_table
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
    of_split = {"val": "validation ", "train": "training ", "test": "test "}.get(report.chosen.split, "")
    images = counted(evaluation.images, f"{of_split}image")
    say(console, f"{evaluation.summary()} on {images} ({engine.name}, {engine.precision}, {speed:.0f} images/s)")
    if evaluation.bad:
        listed = "" if report.files else "; --out saves a list"
        say(console, f"{counted(len(evaluation.bad), 'image')} could not be used{listed}")
    for header, rows in evaluation.tables():
        if len(rows) <= SHOWN_CLASSES:
            show_table(console, header, rows)
    for path in report.files:
        say(console, f"wrote {path}")
