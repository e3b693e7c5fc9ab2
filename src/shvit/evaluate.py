"""How good a model is on labelled images, by any engine; and a report of it as files."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from .classnames import match_classes, unique_names
from .console import literal_text, visible
from .data.coco import CocoSource, CocoSplit
from .data.identity import TrainedOn, drawn_before
from .data.loader import Loader, worker_death_as_failure
from .data.sources import Dataset, Split
from .engines import Runnable
from .engines.base import Engine
from .errors import InputError, notice
from .figures import new_figure, save_png
from .files import write_csv, write_json
from .tasks import Described, task_of
from .tasks.classify import ClassifyEvaluation
from .tasks.objects import ObjectsEvaluation

Which = Literal["auto", "train", "val", "all"]


@dataclass(frozen=True)
class Report:
    """An evaluation, and what it was made on."""

    evaluation: ClassifyEvaluation | ObjectsEvaluation
    split: str
    names: tuple[str, ...]
    """Of the images, in the order that `evaluation.bad` counts in."""
    seconds: float
    left_out: int = 0
    """Images of the split that were used in training, and so were not judged."""
    trained_on: int = 0
    """Judged images that were used in training, where the split was asked for by name."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: shares from 0 to 1, images, and images a second with decoding included."""
        metrics = self.evaluation.metrics()
        judged = {name: value for name, value in self.evaluation.per_class().items() if value is not None}
        speed = self.evaluation.images / self.seconds
        used = {"left_out": self.left_out, "trained_on": self.trained_on}
        return {**metrics, "per_class": judged, "split": self.split, **used, "images_per_second": speed}


@dataclass(frozen=True)
class Judged:
    """The images that a model is judged on; see `choose_split`."""

    split: str
    images: Split | CocoSplit
    left_out: int = 0
    trained_on: int = 0
    """As in `Report`."""


def open_as_trained(data: str | Path, model_file: Runnable) -> Any:
    """The data, as the model's task opens it; one pile is divided as it was for the model's training, else by default.

    Raises:
        InputError: No such data.
    """
    provenance = model_file.provenance
    recipe = provenance.get("recipe", {})
    how = {key: recipe[key] for key in ("seed", "val_share") if key in recipe}
    source = task_of(model_file).open(data, **how, drawn_by=provenance.get("drawn_by", drawn_before(recipe)))
    for text in source.warnings:
        notice(text)
    return source


def seen_as(model: Runnable, fit: str | None) -> Runnable:
    """The model, with another `Preprocess.fit`; None leaves it. Raises InputError for a detector."""
    if fit is None:
        return model
    if model.task != "classify":
        raise InputError(f"--fit is for classifiers, and this model's task is {model.task}")
    return replace(model, preprocess=replace(model.preprocess, fit=fit))


def evaluate(
    model_file: Runnable,
    engine: Engine,
    source: Dataset | CocoSource,
    which: Which = "auto",
    batch_size: int = 64,
    workers: int = 0,
) -> Report:
    """Top-1, top-5, confusion matrix; of detectors COCO's numbers.

    Args:
        model_file: Gives classes and preprocessing.
        engine: Runs the network.
        source: Labelled images, as the model's task opens them; their classes are found among the model's by name (see
            `match_classes`).
        which: Images to use; see `choose_split`.

    Raises:
        InputError: Classes that the model does not know, or no usable images.
    """
    judged = choose_split(model_file, source, which)
    split = relabel_for(model_file, source, judged.images)
    task = task_of(model_file)
    loader = Loader(split, task.eval_reader(model_file.preprocess), batch_size, workers)
    started = time.perf_counter()
    with worker_death_as_failure():
        evaluation = task.evaluate(engine, loader)
    seconds = time.perf_counter() - started
    return Report(evaluation, judged.split, tuple(split.names), seconds, judged.left_out, judged.trained_on)


class Trained(Protocol):
    """A model file, an exported one, or a study's subject."""

    @property
    def provenance(self) -> Mapping[str, Any]: ...


def choose_split(model: Trained, source: Dataset | CocoSource, which: Which = "auto") -> Judged:
    """The images to judge a model on; a notice says how many of them were used in training.

    Args:
        model: Its provenance names the images that it was trained on, by their content.
        source: Labelled images.
        which: `val`: the validation images. `train` or `all`: these. `auto`: the validation images where the data has
            them by itself or is the very data that the model was trained on; else all. Images used in training are
            left out of `auto` and `val`.

    Raises:
        InputError: There are no such images, or all of them were used in training.
    """
    chosen, known = which, TrainedOn.recorded(model.provenance)
    if which == "auto":
        trained_here = model.provenance.get("data_fingerprint") == source.fingerprint
        chosen = "all" if (source.drawn and not trained_here) or not len(source.val) else "val"
    images = source.whole() if chosen == "all" else {"train": source.train, "val": source.val}[chosen]
    if not (count := len(images)):
        raise InputError(f"{source.name} has no images in its split {chosen!r}")
    if known is None:
        if which == "auto" and chosen == "all" and "data_fingerprint" in model.provenance:
            notice(
                "The model file does not name its training images, since an earlier version of shvit wrote it: they "
                f"may be among the {count:,} images judged"
            )
        return Judged(chosen, images)
    used = known.among(images.images)
    if not (number := int(used.sum())):
        return Judged(chosen, images)
    if which in ("train", "all"):
        notice(f"{number:,} of {count:,} images were used in training")
        return Judged(chosen, images, 0, number)
    if number == count:
        raise InputError(
            f"all {count:,} images of {source.name}, split {chosen!r}, were used in training this model: judge it on "
            "other images, or use --split all to include these"
        )
    notice(f"{number:,} of {count:,} images were used in training and are left out")
    return Judged(chosen, images.subset(np.flatnonzero(~used).tolist()), number)


def relabel_for(model: Described, source: Dataset | CocoSource, split: Split | CocoSplit) -> Split | CocoSplit:
    """The same images, their labels counted as the model counts its classes. Raises InputError as `match_classes`."""
    return split.relabelled(match_classes(source.classes, model.classes))


def write_report(report: Report, out: Path, raw_cells: bool = False) -> list[Path]:
    """metrics.json and per_class.csv, of classifiers confusion.csv and .png, and bad_images.csv where there are any.

    Args:
        report: What was measured.
        out: A folder.
        raw_cells: Whether cells stay as they are that a spreadsheet takes for formulas; see `files.to_cell`.
    """
    out.mkdir(parents=True, exist_ok=True)
    evaluation = report.evaluation
    write_json(out / "metrics.json", report.to_dict())
    tables = _write_objects if isinstance(evaluation, ObjectsEvaluation) else _write_labels
    files = [out / "metrics.json", *tables(evaluation, out, raw_cells)]  # pyright: ignore[reportArgumentType]
    if evaluation.bad:
        bad = [[report.names[index], reason] for index, reason in sorted(evaluation.bad.items())]
        write_csv(out / "bad_images.csv", ["image", "reason"], bad, raw_cells)
        files.append(out / "bad_images.csv")
    return files


def _write_objects(evaluation: ObjectsEvaluation, out: Path, raw: bool) -> list[Path]:
    kinds = list(evaluation.numbers)
    rows = [[name, *(f"{by_kind[kind]:.6f}" for kind in kinds)] for name, by_kind in evaluation.per_class().items()]
    write_csv(out / "per_class.csv", ["class", *(f"{kind}_AP" for kind in kinds)], rows, raw)
    return [out / "per_class.csv"]


def _write_labels(evaluation: ClassifyEvaluation, out: Path, raw: bool) -> list[Path]:
    counts = evaluation.confusion.sum(axis=1)
    shares = evaluation.per_class()
    rows = [[name, int(counts[i]), f"{shares[name]:.6f}"] for i, name in enumerate(evaluation.classes) if counts[i]]
    write_csv(out / "per_class.csv", ["class", "images", "top1"], rows, raw)
    matrix = [[name, *row] for name, row in zip(evaluation.classes, evaluation.confusion.tolist(), strict=True)]
    write_csv(out / "confusion.csv", ["true \\ predicted", *evaluation.classes], matrix, raw)
    draw_confusion(evaluation, out / "confusion.png")
    return [out / name for name in ("per_class.csv", "confusion.csv", "confusion.png")]


@literal_text()
def draw_confusion(evaluation: ClassifyEvaluation, path: Path) -> None:
    """Rows are true classes, columns predictions, shades shares of the row. Classes that never occur are left out."""
    matrix = evaluation.confusion
    seen = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    names = unique_names([visible(name.partition(",")[0]) for name in evaluation.classes])
    matrix, classes = matrix[np.ix_(seen, seen)], [names[i] for i in seen]
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    count = len(classes)
    side = min(16.0, 3.5 + 0.42 * count)
    figure, [[axis]] = new_figure(side + 0.8, side)
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axis, shrink=0.7, label="share of the true class")
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(f"top-1 {evaluation.top1:.2%} of {evaluation.images} images", fontsize=11)
    if count <= 60:
        axis.set_xticks(range(count), classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axis.set_yticks(range(count), classes, fontsize=8)
    if count <= 25:
        for row, column in np.argwhere(matrix):
            shade = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(matrix[row, column]), ha="center", va="center", color=shade, fontsize=7)
    save_png(figure, path)
