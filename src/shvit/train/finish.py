"""The end of a run: fit the temperature of the best weights, evaluate them on the test images, write report.html."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .. import modelfile
from ..confidence import UNCALIBRATED, calibration_errors, fitted_calibration
from ..data.loader import Batch, Loader, worker_death_as_failure
from ..errors import Failure, InputError, counted, few
from ..evaluate import unfitted
from ..evaluation_report import PAGE
from ..modelfile import ModelFile
from ..tasks.base import Evaluation
from ..tasks.labelled_data import choose_split
from .loop import Trainer
from .progress import TrainResult
from .signals import on_stop_signal
from .training_report import write_training_report

BEST = "best.safetensors"


class _Stopped(Exception):
    """Ctrl-C or SIGTERM."""


def finish_run(trainer: Trainer, result: TrainResult, workers: int = 0) -> TrainResult:
    """Complete best.safetensors after the last epoch. Every process must call this; the main process does the work.

    A classifier gets the temperature that fits the validation images. The metrics get `ece` and `ece_uncalibrated`, and
    with a test split `test`: its metrics, measured once, after everything was chosen on the validation images. The file
    is written once, at the end, and then report.html. If both are complete, or if the run was stopped, nothing happens.
    """
    if result.interrupted:
        return result

    def stop(by: signal.Signals) -> None:
        trainer.stopped_by = by

    with on_stop_signal(stop), worker_death_as_failure():
        return trainer.group.on_main(lambda: _finished(trainer, result, workers))


def _finished(trainer: Trainer, result: TrainResult, workers: int) -> TrainResult:
    path = trainer.out / BEST
    if not path.exists():  # deleted, or an earlier version trained a detector on images without objects
        return result
    best = modelfile.load(path)
    calibrates, tests = trainer.task.labels_images, trainer.source.test is not None
    to_calibrate, to_test = calibrates and "ece" not in best.metrics, tests and "test" not in best.metrics
    completes = to_calibrate or to_test
    if not (completes or result.images_per_second):  # no epoch was trained either
        trainer.reporter.finished(trainer.out, trainer.epoch, trainer.recipe.epochs)
    if completes or not (trainer.out / PAGE).exists():
        try:
            evaluation = _evaluated(trainer, best, trainer.source.val, workers)
            best = _calibrated(trainer, best, evaluation) if to_calibrate else best
            best = _tested(trainer, best, workers) if to_test else best
        except _Stopped:
            return replace(result, stopped_by=trainer.stopped_by, trained=True)
        if completes:
            modelfile.save(best, path)
        device = str(trainer.device)
        write_training_report(trainer.out, best, evaluation, trainer.source.val, trainer.source, device)
    return replace(result, best=dict(best.metrics), calibration=best.calibration if calibrates else None)


def _calibrated(trainer: Trainer, best: ModelFile, evaluation: Any) -> ModelFile:
    """The model with the temperature fitted on the validation images."""
    if absent := [name for name, share in evaluation.per_class().items() if share is None]:
        trainer.reporter.warn(f"no validation image shows {few(absent)}: their confidence is not calibrated")
    outputs, images = evaluation.outputs, counted(evaluation.images, "validation image")
    fitted = fitted_calibration(outputs.logits, outputs.labels)
    calibration = fitted or UNCALIBRATED
    errors = calibration_errors(outputs.logits, outputs.labels, calibration.temperature)
    line = f"expected calibration error {errors['ece_uncalibrated']:.2%}"
    trainer.reporter.result(
        f"temperature {calibration.temperature:.3f}, fitted on {images}: {line} before, {errors['ece']:.2%} after "
        "(measured on the same images)"
        if fitted
        else f"{unfitted(images)}; {line}"
    )
    return replace(best, calibration=calibration, metrics={**best.metrics, **errors})


def _tested(trainer: Trainer, best: ModelFile, workers: int) -> ModelFile:
    """The model with its metrics on the test images; unchanged, with a warning, if none of them can be used."""
    try:
        images = choose_split(best, trainer.source, "test").images
        evaluation: Any = _evaluated(trainer, best, images, workers)
    except (InputError, Failure) as error:
        trainer.reporter.warn(f"the test images were not evaluated: {error}")
        return best
    metrics, line = evaluation.metrics(), evaluation.summary()
    if trainer.task.labels_images:
        outputs = evaluation.outputs
        metrics |= calibration_errors(outputs.logits, outputs.labels, best.calibration.temperature)
        line += f", expected calibration error {metrics['ece']:.2%}"
    trainer.reporter.result(f"test: {line} on {counted(evaluation.images, 'test image')}, evaluated once")
    return replace(best, metrics={**best.metrics, "test": metrics})


def _evaluated(trainer: Trainer, best: ModelFile, split: Any, workers: int) -> Evaluation:
    """The evaluation of the best weights, in the precision of training."""
    task, recipe = trainer.task, trainer.recipe
    reader, batch = task.eval_reader(best.preprocess, recipe.max_pixels), task.eval_batch(recipe.batch_size, 1)

    def batches() -> Iterator[Batch]:
        for each in Loader(split, reader, batch, workers):
            if trainer.stopped_by is not None:
                raise _Stopped
            yield each

    return task.evaluate(trainer.validate.predict(best.model), batches(), keep=True)
