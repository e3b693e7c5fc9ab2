"""`shvit eval`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..console import say, show_table
from ..errors import InputError, counted
from ..redact import redacted
from ..requests.eval import EvalRequest
from .app import Json, console_for, finish

if TYPE_CHECKING:
    from ..engines.base import Engine
    from ..evaluate import Report

SHOWN_CLASSES = 20
"""Maximum number of rows of a table on the console. Larger tables are only written to --out."""


def evaluate(request: EvalRequest, *, json: Json = False) -> dict[str, Any]:
    """Measure the accuracy of a model on labelled images: top-1 for classifiers, COCO metrics for detectors."""
    from .. import engines
    from ..evaluate import evaluate as run
    from ..evaluate import with_fit, write_report
    from ..files import check_folder
    from ..pretrained import load
    from ..tasks import kind_of
    from ..tasks.labelled_data import open_as_trained

    if request.out:
        check_folder(request.out)
    elif request.raw_cells:
        raise InputError("--raw-cells has no effect without --out: remove it")
    model_file = with_fit(load(request.model), request.fit)
    source = open_as_trained(request.data, model_file)
    precision = request.precision or ("auto" if isinstance(model_file, engines.Exported) else "fp32")
    engine = engines.load(model_file, request.engine, precision, request.device, request.threads)
    batch_size = kind_of(model_file).eval_batch_size if request.batch_size is None else request.batch_size
    report = run(model_file, engine, source, request.split, batch_size, request.workers)
    files = write_report(report, request.out, request.raw_cells) if request.out else []
    show(console_for(json), report, engine, files)
    about = {
        "model": request.model,
        "data": redacted(request.data),
        "engine": engine.name,
        "precision": engine.precision,
        "fit": model_file.preprocess.fit,
        "files": [str(path) for path in files],
    }
    return finish(json, {**report.to_dict(), **about})


def show(console: Console, report: "Report", engine: "Engine", files: Sequence[Path]) -> None:
    """Print the accuracy, the tables of the task, and the paths of the written files."""
    evaluation, speed = report.evaluation, report.to_dict()["images_per_second"]
    of_split = {"val": "validation ", "train": "training "}.get(report.chosen.split, "")
    images = counted(evaluation.images, f"{of_split}image")
    say(console, f"{evaluation.summary()} on {images} ({engine.name}, {engine.precision}, {speed:.0f} images/s)")
    if evaluation.bad:
        say(
            console,
            f"{counted(len(evaluation.bad), 'image')} could not be used" + ("" if files else "; --out saves a list"),
        )
    for header, rows in evaluation.tables():
        if len(rows) <= SHOWN_CLASSES:
            show_table(console, header, rows)
    for path in files:
        say(console, f"wrote {path}")
