"""How good a model is on labelled images, by any engine; and a report of it as files."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .classnames import match_classes, unique_names
from .data.coco import CocoSource, Scenes
from .data.loader import Loader, lost_workers_told
from .data.sources import Source, Split
from .engines import Runnable
from .engines.base import Engine
from .errors import InputError, notice
from .files import write_csv
from .screen import literal_text
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

    def to_dict(self) -> dict[str, Any]:
        """For JSON: shares from 0 to 1, images, and images a second with decoding included."""
        metrics = self.evaluation.metrics()
        judged = {name: value for name, value in self.evaluation.per_class().items() if value is not None}
        speed = self.evaluation.images / self.seconds
        return {**metrics, "per_class": judged, "split": self.split, "images_per_second": speed}


def divided_as_trained(data: str | Path, model_file: Runnable) -> Any:
    """The data, as the model's task opens it; one pile is divided as it was for the model's training, else by default.

    Raises:
        InputError: No such data.
    """
    recipe = model_file.provenance.get("recipe", {})
    source = task_of(model_file).open(data, **{key: recipe[key] for key in ("seed", "val_share") if key in recipe})
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
    source: Source | CocoSource,
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
        which: Images to use. `auto`: the validation images where the data has them by itself or the model was trained
            on this very data; else all of them.

    Raises:
        InputError: Classes that the model does not know, or no usable images.
    """
    name, split = choose_split(model_file, source, which)
    split = labelled(model_file, source, split)
    task = task_of(model_file)
    loader = Loader(split, task.eval_reader(model_file.preprocess), batch_size, workers)
    started = time.perf_counter()
    with lost_workers_told():
        evaluation = task.evaluate(engine, loader)
    return Report(evaluation, name, tuple(split.names), time.perf_counter() - started)


def choose_split(model_file: Runnable, source: Source | CocoSource, which: Which) -> tuple[str, Split | Scenes]:
    """The images meant by `which`, and what to call them. Raises InputError where there are none."""
    if which == "auto":
        trained_on = model_file.provenance.get("data_fingerprint") == source.fingerprint
        which = "all" if (source.drawn and not trained_on) or not len(source.val) else "val"
    split = source.whole() if which == "all" else {"train": source.train, "val": source.val}[which]
    if not len(split):
        raise InputError(f"{source.name} has no images in its split {which!r}")
    return which, split


def labelled(model: Described, source: Source | CocoSource, split: Split | Scenes) -> Split | Scenes:
    """The same images, their labels counted as the model counts its classes. Raises InputError as `match_classes`."""
    return split.relabelled(match_classes(source.classes, model.classes))


def write_report(report: Report, out: Path) -> list[Path]:
    """metrics.json and per_class.csv, of classifiers confusion.csv and .png, and bad_images.csv where there are any."""
    out.mkdir(parents=True, exist_ok=True)
    evaluation = report.evaluation
    (out / "metrics.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    tables = _write_objects if isinstance(evaluation, ObjectsEvaluation) else _write_labels
    files = [out / "metrics.json", *tables(evaluation, out)]  # pyright: ignore[reportArgumentType]
    if evaluation.bad:
        bad = [[report.names[index], reason] for index, reason in sorted(evaluation.bad.items())]
        write_csv(out / "bad_images.csv", ["image", "reason"], bad)
        files.append(out / "bad_images.csv")
    return files


def _write_objects(evaluation: ObjectsEvaluation, out: Path) -> list[Path]:
    kinds = list(evaluation.numbers)
    rows = [[name, *(f"{by_kind[kind]:.6f}" for kind in kinds)] for name, by_kind in evaluation.per_class().items()]
    write_csv(out / "per_class.csv", ["class", *(f"{kind}_AP" for kind in kinds)], rows)
    return [out / "per_class.csv"]


def _write_labels(evaluation: ClassifyEvaluation, out: Path) -> list[Path]:
    counts = evaluation.confusion.sum(axis=1)
    shares = evaluation.per_class()
    rows = [[name, int(counts[i]), f"{shares[name]:.6f}"] for i, name in enumerate(evaluation.classes) if counts[i]]
    write_csv(out / "per_class.csv", ["class", "images", "top1"], rows)
    matrix = [[name, *row] for name, row in zip(evaluation.classes, evaluation.confusion.tolist(), strict=True)]
    write_csv(out / "confusion.csv", ["true \\ predicted", *evaluation.classes], matrix)
    draw_confusion(evaluation, out / "confusion.png")
    return [out / name for name in ("per_class.csv", "confusion.csv", "confusion.png")]


@literal_text()
def draw_confusion(evaluation: ClassifyEvaluation, path: Path) -> None:
    """Rows are true classes, columns predictions, shades shares of the row. Classes that never occur are left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix = evaluation.confusion
    seen = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    names = unique_names([name.partition(",")[0] for name in evaluation.classes])
    matrix, classes = matrix[np.ix_(seen, seen)], [names[i] for i in seen]
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    count = len(classes)
    side = min(16.0, 3.5 + 0.42 * count)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
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
    figure.savefig(path, dpi=120)
