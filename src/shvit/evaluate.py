"""Evaluate a model on labelled images with any engine, and write a report."""

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from . import engines, modelfile
from .confidence import Calibration, Threshold, calibration_errors, choose_threshold, fitted_calibration, top1_scores
from .data.coco import CocoDataset, CocoSplit
from .data.dataset import Dataset, Split
from .data.loader import Loader, worker_death_as_failure
from .engines import Runnable
from .engines.base import Engine
from .errors import InputError, counted, few, notice
from .evaluation_report import write_evaluation_report
from .files import check_folder, write_csv, write_json
from .pretrained import load
from .requests.eval import EvalRequest
from .tasks import kind_of, need_classifier, task_of
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
    target_accuracy: float | None = None
    threshold: Threshold | None = None
    """The score threshold for the target accuracy; None if no score reaches it."""
    stored: Calibration | None = None
    """The calibration that was written into the model file; see `EvalRequest.store`."""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data: metrics, numbers of images, and throughput in images/s, which includes decoding."""
        return {
            **self.evaluation.metrics(),
            **self.confidence,
            "per_class": {name: value for name, value in self.evaluation.per_class().items() if value is not None},
            "split": self.chosen.split,
            "left_out": self.chosen.left_out,
            "trained_on": self.chosen.trained_on,
            "images_per_second": self.evaluation.images / self.seconds,
        }

    @cached_property
    def confidence(self) -> dict[str, Any]:
        """The calibration error of a classifier with its temperature (`ece`) and without (`ece_uncalibrated`), the
        threshold for the target accuracy, and what was stored."""
        outputs = self.evaluation.outputs
        if outputs is None or not kind_of(self.model_file).labels_images:
            return {}
        temperature = self.model_file.calibration.temperature
        found: dict[str, Any] = dict(calibration_errors(outputs.logits, outputs.labels, temperature))
        if temperature == 1 and isinstance(self.model_file, engines.Exported):  # whose networks contain it
            del found["ece_uncalibrated"]
        if self.target_accuracy is not None:
            found["target_accuracy"] = self.target_accuracy
            found["threshold"] = self.threshold and self.threshold.to_dict()
        return {**found, **({"stored": self.stored.to_dict()} if self.stored else {})}


def with_fit(model: Runnable, fit: str | None) -> Runnable:
    """The model with this `Preprocess.fit`; unchanged for None. If the model's own fit differs, a notice says so.

    Raises InputError if the task forbids this fit.
    """
    if fit is None:
        return model
    if fit not in (fits := kind_of(model).fits):
        raise InputError(f"for task {model.task}, fit must be {' or '.join(fits)}, got {fit}: change or remove --fit")
    if fit != (own := model.preprocess.fit):
        notice(
            f"the model was made for fit {own}: with fit {fit}, it sees images unlike those it was trained on and may "
            f"be less accurate (shvit train --fit {fit} trains for it)"
        )
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
    stored = load(request.model)
    engines.need_raw_outputs(stored, "shvit eval")
    if request.store and request.fit not in (None, stored.preprocess.fit):
        raise InputError("--store fits the temperature for the fit in the model file: leave out --fit")
    model_file = with_fit(stored, request.fit)
    _check_confidence(request, model_file, stored)
    source = open_as_trained(request.data, model_file, request.split)
    precision = request.precision or ("auto" if isinstance(model_file, engines.Exported) else "fp32")
    engine = engines.load(model_file, request.engine, precision, request.device, request.threads)
    batch_size = kind_of(model_file).eval_batch_size if request.batch_size is None else request.batch_size
    keep = request.out is not None
    report = evaluate_model(model_file, engine, source, request.split, batch_size, request.workers, keep)
    report = with_confidence(report, request)
    if request.out is None:
        return report
    return replace(report, files=write_report(report, request.out, request.raw_cells, request.model, source.name))


def _check_confidence(request: EvalRequest, model: Runnable, stored: Runnable) -> None:
    """Check --target-accuracy and --store. `stored` is the model in the file, `model` has the request's fit."""
    for flag, given in (("--target-accuracy", request.target_accuracy is not None), ("--store", request.store)):
        if given:
            need_classifier(model, flag)
    if request.target_accuracy is not None and not 0 < request.target_accuracy < 1:
        raise InputError(f"--target-accuracy must be above 0 and below 1, such as 0.99; got {request.target_accuracy}")
    if not request.store:
        return
    if isinstance(stored, engines.Exported) or not Path(request.model).is_file():
        raise InputError(f"--store needs a model file (.safetensors) to write into, but MODEL is {request.model}")
    if request.split not in ("auto", "val", "all"):
        raise InputError(
            f"--store needs images that are used neither for training nor for the test, not --split {request.split}"
        )


def with_confidence(report: Report, request: EvalRequest) -> Report:
    """The report with the threshold for the target accuracy. With `store`, also writes the calibration into MODEL.

    Raises:
        InputError: With `store`: images were used in training, the temperature cannot be fitted, or no score reaches
            the target accuracy. Nothing was written.
    """
    if request.target_accuracy is None and not request.store:
        return report
    if absent := [name for name, share in report.evaluation.per_class().items() if share is None]:
        notice(f"none of the evaluated images shows {few(absent)}: their confidence is not measured")
    outputs = report.evaluation.outputs
    calibration = _fitted(report, outputs) if request.store else report.model_file.calibration
    report = replace(report, target_accuracy=request.target_accuracy)
    if request.target_accuracy is not None:
        scores = top1_scores(outputs.logits, outputs.labels, calibration.temperature)
        report = replace(report, threshold=choose_threshold(*scores, request.target_accuracy))
    if not request.store:
        return report
    if report.threshold is not None:
        chosen = {"threshold": report.threshold.score, "target_accuracy": request.target_accuracy}
        measured = {"accuracy": report.threshold.accuracy, "coverage": report.threshold.coverage}
        calibration = replace(calibration, **chosen, **measured)
    elif request.target_accuracy is not None:
        raise InputError(f"{unreached(request.target_accuracy, len(outputs.labels))}. Nothing was stored")
    _store(calibration, Path(request.model))
    return replace(report, model_file=replace(report.model_file, calibration=calibration), stored=calibration)


def unreached(target: float, images: int) -> str:
    """Says that no score reaches the target accuracy, and what to do."""
    return (
        f"no score reaches an accuracy of {target:.2%} with 95 % confidence on {counted(images, 'image')}: evaluate "
        "more images, or lower --target-accuracy"
    )


def _fitted(report: Report, outputs: Any) -> Calibration:
    """The temperature fitted on images that the model was not trained on. Raises InputError if it cannot be fitted."""
    if report.chosen.trained_on:
        raise InputError(
            f"--store needs images that the model was not trained on, but {report.chosen.trained_on:,} of these were "
            "used in training. Nothing was stored"
        )
    fitted = fitted_calibration(outputs.logits, outputs.labels)
    if fitted is None:
        raise InputError(f"{unfitted(counted(len(outputs.labels), 'image'))}. Nothing was stored")
    return fitted


def unfitted(images: str) -> str:
    """Says that the temperature cannot be fitted, and why."""
    return f"the temperature cannot be fitted on {images}: all are classified correctly, or no better than by chance"


def _store(calibration: Calibration, path: Path) -> None:
    """Replace the calibration in a model file. The file is read again, so nothing else changes."""
    before = modelfile.load(path)
    if before.calibration.threshold is not None and calibration.threshold is None:
        notice(
            f"the threshold {before.calibration.threshold:g} was chosen for the previous temperature and is removed: "
            "give --target-accuracy to store a new one"
        )
    modelfile.save(replace(before, calibration=calibration), path.resolve())


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
        evaluation = task.evaluate(engine, loader, keep=keep or task.labels_images)
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
