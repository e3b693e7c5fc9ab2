"""Evaluate a model on labelled images with any engine, and write a report."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .data.coco import CocoDataset
from .data.dataset import Dataset
from .data.loader import Loader, worker_death_as_failure
from .engines import Runnable
from .engines.base import Engine
from .errors import InputError
from .files import write_csv, write_json
from .tasks import kind_of, task_of
from .tasks.base import Evaluation
from .tasks.labelled_data import Which, choose_split, relabel_for


@dataclass(frozen=True)
class Report:
    """An evaluation, and the images it was made on."""

    evaluation: Any
    """An `Evaluation` of the model's task."""
    split: str
    names: tuple[str, ...]
    """Names of the images, in the order of the indices in `evaluation.bad`."""
    seconds: float
    left_out: int = 0
    """Number of images of the split that were left out because the model was trained on them."""
    trained_on: int = 0
    """Number of evaluated images that the model was trained on. 0 unless the split is `train` or `all`."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: shares from 0 to 1, numbers of images, and images per second including decoding."""
        evaluation: Evaluation = self.evaluation
        return {
            **evaluation.metrics(),
            "per_class": {name: value for name, value in evaluation.per_class().items() if value is not None},
            "split": self.split,
            "left_out": self.left_out,
            "trained_on": self.trained_on,
            "images_per_second": evaluation.images / self.seconds,
        }


def with_fit(model: Runnable, fit: str | None) -> Runnable:
    """The model with another `Preprocess.fit`, or unchanged if None. Raises InputError for a task without this fit."""
    if fit is None:
        return model
    if fit not in (fits := kind_of(model.task).fits):
        raise InputError(f"models of task {model.task} have fit {' or '.join(fits)}, not {fit}: remove --fit")
    return replace(model, preprocess=replace(model.preprocess, fit=fit))


def evaluate(
    model_file: Runnable,
    engine: Engine,
    source: Dataset | CocoDataset,
    which: Which = "auto",
    batch_size: int = 64,
    workers: int = 0,
) -> Report:
    """Evaluate a model on labelled images.

    Args:
        model_file: Gives task, classes and preprocessing.
        engine: Runs the network.
        source: Labelled images, opened by the model's task. Their classes are matched by name; see `match_classes`.
        which: Images to use; see `choose_split`.
        batch_size: Images per batch.
        workers: Worker processes that decode images; 0 decodes in this process.

    Raises:
        InputError: The model does not know a class, or there are no images in the split.
        Failure: No image can be used.
    """
    chosen = choose_split(model_file, source, which)
    split = relabel_for(model_file, source, chosen.images)
    task = task_of(model_file)
    loader = Loader(split, task.eval_reader(model_file.preprocess), batch_size, workers)
    started = time.perf_counter()
    with worker_death_as_failure():
        evaluation = task.evaluate(engine, loader)
    seconds = time.perf_counter() - started
    return Report(evaluation, chosen.split, tuple(split.names), seconds, chosen.left_out, chosen.trained_on)


def write_report(report: Report, out: Path, raw_cells: bool = False) -> list[Path]:
    """Write metrics.json, the files of the task, and bad_images.csv if there are bad images.

    Args:
        report: The evaluation.
        out: A folder.
        raw_cells: Do not escape CSV cells that a spreadsheet would run as a formula; see `files.to_cell`.

    Returns:
        The paths.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", report.to_dict())
    files = [out / "metrics.json", *report.evaluation.write(out, raw_cells)]
    if report.evaluation.bad:
        bad = [[report.names[index], reason] for index, reason in sorted(report.evaluation.bad.items())]
        write_csv(out / "bad_images.csv", ["image", "reason"], bad, raw_cells)
        files.append(out / "bad_images.csv")
    return files
