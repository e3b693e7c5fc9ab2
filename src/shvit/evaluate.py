"""Evaluate a model on labelled images with any engine, and write a report."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import engines
from .data.coco import CocoDataset, CocoSplit
from .data.dataset import Dataset, Split
from .data.loader import Loader, worker_death_as_failure
from .engines import Runnable
from .engines.base import Engine
from .errors import InputError
from .evaluation_report import write_evaluation_report
from .files import check_folder, write_csv, write_json
from .pretrained import load
from .requests.eval import EvalRequest
from .tasks import kind_of, task_of
from .tasks.base import Evaluation, ReportSubject
from .tasks.labelled_data import Chosen, Which, choose_split, open_as_trained, relabel_for


@dataclass(frozen=True)
class Report:
    """An evaluation, and the images that were evaluated."""

    evaluation: Evaluation
    chosen: Chosen
    """The evaluated images. The keys of `evaluation.bad` are indices of these images."""
    seconds: float
    model_file: Runnable
    engine: Engine
    images: Split | CocoSplit
    """The evaluated images, with labels that index the model's classes."""
    files: tuple[Path, ...] = ()
    """The written files; see `EvalRequest.out`."""

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
    """The model with this `Preprocess.fit`; unchanged for None. Raises InputError if the task forbids this fit."""
    if fit is None:
        return model
    if fit not in (fits := kind_of(model.task).fits):
        raise InputError(f"for task {model.task}, fit must be {' or '.join(fits)}, got {fit}: change or remove --fit")
    return replace(model, preprocess=replace(model.preprocess, fit=fit))


def evaluate(request: EvalRequest) -> Report:
    """Evaluate the model of a request. If the request sets `out`, write the report to that folder.

    Raises:
        InputError: A field of the request is wrong, or `evaluate_model` raises InputError.
        Failure: No image can be used.
    """
    if request.out:
        check_folder(request.out)
    elif request.raw_cells:
        raise InputError("--raw-cells has no effect without --out: remove it")
    model_file = with_fit(load(request.model), request.fit)
    source = open_as_trained(request.data, model_file)
    precision = request.precision or ("auto" if isinstance(model_file, engines.Exported) else "fp32")
    engine = engines.load(model_file, request.engine, precision, request.device, request.threads)
    batch_size = kind_of(model_file).eval_batch_size if request.batch_size is None else request.batch_size
    keep = request.out is not None
    report = evaluate_model(model_file, engine, source, request.split, batch_size, request.workers, keep)
    if request.out is None:
        return report
    return replace(report, files=write_report(report, request.out, request.raw_cells, request.model, source.name))


def evaluate_model(
    model_file: Runnable,
    engine: Engine,
    source: Dataset | CocoDataset,
    which: Which = "auto",
    batch_size: int = 64,
    workers: int = 0,
    keep: bool = False,
) -> Report:
    """Evaluate a model on labelled images.

    Args:
        model_file: Model that determines the task, classes and preprocessing.
        source: Labelled images, opened with the model's task. Classes are matched by name; see `match_classes`.
        which: Images to use; see `choose_split`.
        workers: Worker processes that decode images; 0 decodes in this process.
        keep: Keep the outputs of each image, for report.html.

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
        evaluation = task.evaluate(engine, loader, keep=keep)
    return Report(evaluation, chosen, time.perf_counter() - started, model_file, engine, split)


def write_report(
    report: Report, out: Path, raw_cells: bool = False, model: str = "model.safetensors", data: str = "images"
) -> tuple[Path, ...]:
    """Write metrics.json, report.html, the files of the task, and bad_images.csv if there are bad images.

    Args:
        raw_cells: See `raw` in `files.to_cell`.
        model: Path of the model, for the commands on the page.
        data: Name of the dataset.

    Returns:
        The paths.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", report.to_dict())
    files = [out / "metrics.json", *report.evaluation.write(out, raw_cells)]
    if report.evaluation.bad:
        bad = [[report.chosen.images.names[index], reason] for index, reason in sorted(report.evaluation.bad.items())]
        write_csv(out / "bad_images.csv", ["image", "reason"], bad, raw_cells)
        files.append(out / "bad_images.csv")
    subject = ReportSubject(report.model_file, report.images, model)
    files.append(write_evaluation_report(out, report.evaluation, subject, report.engine, report.chosen.split, data))
    return tuple(files)
