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
from .tasks.labelled_data import Chosen, Which, choose_split, relabel_for


@dataclass(frozen=True)
class Report:
    """An evaluation, and the images that were evaluated."""

    evaluation: Evaluation
    chosen: Chosen
    """The evaluated images. The keys of `evaluation.bad` are indices of these images."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data: metrics, numbers of images, and throughput in images/s, which includes decoding."""
        return {
            **self.evaluation.metrics(),
            "per_class": {name: value for name, value in self.evaluation.per_class().items() if value is not None},
            "split": self.chosen.split,
            "left_out": self.chosen.left_out,
            "trained_on": self.chosen.trained_on,
            "images_per_second": self.evaluation.images / self.seconds,
        }


def with_fit(model: Runnable, fit: str | None) -> Runnable:
    """The model with this `Preprocess.fit`, or unchanged for None. Raises InputError if its task does not allow it."""
    if fit is None:
        return model
    if fit not in (fits := kind_of(model.task).fits):
        raise InputError(f"for task {model.task}, fit must be {' or '.join(fits)}, got {fit}: change or remove --fit")
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
        model_file: Model that determines the task, classes and preprocessing.
        source: Labelled images, opened with the model's task. Classes are matched by name; see `match_classes`.
        which: Images to use; see `choose_split`.
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
    return Report(evaluation, chosen, time.perf_counter() - started)


def write_report(report: Report, out: Path, raw_cells: bool = False) -> list[Path]:
    """Write metrics.json, the files of the task, and bad_images.csv if there are bad images; return the paths.

    For `raw_cells`, see `raw` in `files.to_cell`.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", report.to_dict())
    files = [out / "metrics.json", *report.evaluation.write(out, raw_cells)]
    if report.evaluation.bad:
        bad = [[report.chosen.images.names[index], reason] for index, reason in sorted(report.evaluation.bad.items())]
        write_csv(out / "bad_images.csv", ["image", "reason"], bad, raw_cells)
        files.append(out / "bad_images.csv")
    return files
