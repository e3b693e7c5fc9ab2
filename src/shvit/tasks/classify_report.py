"""The report of a classifier: scores of each class, confusions, calibration, mistakes, and where the network looks."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from ..classnames import unique_names
from ..confidence import (
    Threshold,
    accuracy_by_coverage,
    choose_threshold,
    expected_calibration_error,
    reliability,
    top1_scores,
    wilson_interval,
)
from ..data.image_file import BadImage
from ..data.transforms import Normalize
from ..errors import counted
from ..model.cam import activation_maps
from ..modelfile import ModelFile
from ..report.blocks import Card, Chart, Column, ConfusionMatrix, Gallery, Label, Picture, Section, Table
from ..report.charts import Axis, Series, Spot, line_chart, percent, reliability_chart
from ..report.pictures import PHOTO_SIDE, heat_png, jpeg
from .base import ReportSubject, TaskReport
from .classify_evaluation import ClassifyEvaluation, ClassScores, Outputs
from .intervals import balanced_accuracy_interval, macro_f1_interval

MATRIX_CLASSES = 40
"""Largest number of classes whose confusion matrix is shown. For more classes, the most confused pairs are shown."""
PAIRS = 20
MISTAKE_PICTURES, RIGHT_PICTURES = 20, 10
"""Number of pictures in the galleries."""
LONGEST_NAME = 60
CURVE_POINTS = 160
FIRST_IMAGES = 20
"""The curve of accuracy begins at this many images. With fewer images, the accuracy says little."""
TARGET = 0.99


def class_cards(
    metrics: Mapping[str, Any], classes: int, evaluation: ClassifyEvaluation | None = None
) -> tuple[Card, ...]:
    """The headline numbers of a classifier. With an evaluation, averages over classes have intervals, too."""
    images, bad = int(metrics["images"]), metrics.get("bad_images", 0)
    shares = {"top1": "Top-1 accuracy", "top5": "Top-5 accuracy"}
    if classes <= 5:
        del shares["top5"]
    averages = {
        "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes", balanced_accuracy_interval),
        "macro_f1": ("Macro F1", "mean F1 of the classes", macro_f1_interval),
    }
    cards = [
        Card(name, _score(metrics[key]), wilson_interval(round(metrics[key] * images), images))
        for key, name in shares.items()
        if key in metrics
    ]
    cards += [
        Card(name, _score(metrics[key]), interval(evaluation.confusion) if evaluation else None, note)
        for key, (name, note, interval) in averages.items()
        if key in metrics
    ]
    if "ece" in metrics:
        cards.append(Card("Calibration error", _score(metrics["ece"]), note="expected, of the confidence"))
    return (*cards, Card("Images", f"{images:,}", note=f"{bad:,} more could not be used" if bad else ""))


def report_classes(task: Any, evaluation: ClassifyEvaluation, subject: ReportSubject) -> TaskReport:
    """The sections of a classifier's report. `task` is the model's `Classify`."""
    names, confusion, scores = _display_names(evaluation.classes), evaluation.confusion, evaluation.scores()
    metrics = evaluation.metrics()
    findings = _about_classes(scores, confusion, names)
    sections = [_per_class(scores, confusion, names), _confusions(confusion, names)]
    if evaluation.outputs is not None:
        outputs, calibration = evaluation.outputs, subject.model.calibration
        confidence, right = top1_scores(outputs.logits, outputs.labels, calibration.temperature)
        metrics["ece"] = expected_calibration_error(confidence, right)
        more, trust = _trust(outputs, confidence, right, calibration)
        looks = _Looks(task, subject, outputs, confidence, names)
        mistakes = np.flatnonzero(~right)[np.argsort(-confidence[~right], kind="stable")]
        others = np.random.default_rng(0).permutation(np.flatnonzero(right))
        findings += more
        sections += [looks.mistakes(mistakes), trust, looks.places(others)]
    return TaskReport(class_cards(metrics, len(evaluation.classes), evaluation), tuple(findings), tuple(sections))


def _score(value: float) -> str:
    return f"{100 * value:.1f} %"


def _display_names(classes: Iterable[str]) -> tuple[str, ...]:
    """Names for a page: without synonyms, and cut if they are very long."""
    names = unique_names([name.partition(",")[0] for name in classes])
    return tuple(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in names)


def _pairs(confusion: Int64[np.ndarray, "classes classes"]) -> list[tuple[int, int]]:
    """The confused classes (true, predicted), the most frequent confusion first."""
    off = confusion - np.diag(np.diag(confusion))
    rows, columns = np.nonzero(off)
    order = np.argsort(-off[rows, columns], kind="stable")
    return list(zip(rows[order].tolist(), columns[order].tolist(), strict=True))


def _about_classes(scores: ClassScores, confusion: np.ndarray, names: tuple[str, ...]) -> list[str]:
    seen = np.flatnonzero(scores.images)
    worst = seen[np.argsort(scores.recall[seen], kind="stable")][: max(1, min(3, len(seen) // 2))]
    found = []
    if len(seen) > 1 and scores.recall[worst[0]] < 1:
        listed = ", ".join(f"{names[index]} ({percent(float(scores.recall[index]))})" for index in worst)
        found.append(f"Lowest recall: {listed}.")
    for true, predicted in _pairs(confusion)[:1]:
        count = int(confusion[true, predicted])
        found.append(
            f"Most frequent confusion: {counted(count, 'image')} of {names[true]} "
            f"{'was' if count == 1 else 'were'} predicted as {names[predicted]}."
        )
    return found


def _per_class(scores: ClassScores, confusion: np.ndarray, names: tuple[str, ...]) -> Section:
    seen = np.flatnonzero(scores.images)
    others = confusion - np.diag(np.diag(confusion))
    rows: list[list[Any]] = []
    for index in seen[np.argsort(scores.recall[seen], kind="stable")].tolist():
        recall, images = float(scores.recall[index]), int(scores.images[index])
        low, high = wilson_interval(int(confusion[index, index]), images)
        precision = float(scores.precision[index]) if scores.predictions[index] else None
        mostly = int(others[index].argmax())
        mixed = f"{names[mostly]} ({others[index, mostly]:,})" if others[index, mostly] else "–"
        interval = f"{100 * low:.0f}–{100 * high:.0f} %"
        rows.append([names[index], images, recall, interval, precision, float(scores.f1[index]), mixed])
    columns = (
        Column("class"),
        Column("images", "{:,}"),
        Column("recall", "{:.1%}", bar=True),
        Column("95 % interval"),
        Column("precision", "{:.1%}"),
        Column("F1", "{:.1%}"),
        Column("most often predicted instead"),
    )
    text = [
        "Recall: the share of a class's images that are recognized. Precision: the share of its predictions that are "
        "right."
    ]
    if missing := len(names) - len(seen):
        text.append(
            f"{counted(missing, 'class', 'classes')} without images {'is' if missing == 1 else 'are'} left out."
        )
    return Section("Classes", text, (Table("per_class", "Scores of each class, lowest recall first", columns, rows),))


def _confusions(confusion: np.ndarray, names: tuple[str, ...]) -> Section:
    seen = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    matrix = None
    if len(seen) <= MATRIX_CLASSES:
        matrix = ConfusionMatrix([names[index] for index in seen], confusion[np.ix_(seen, seen)].tolist())
    pairs, totals = _pairs(confusion), confusion.sum(axis=1)
    rows: list[list[Any]] = [
        [names[true], names[predicted], count, count / int(totals[true])]
        for true, predicted in pairs[: PAIRS if matrix is None else PAIRS // 2]
        for count in [int(confusion[true, predicted])]
    ]
    columns = (
        Column("true class"),
        Column("predicted"),
        Column("images", "{:,}"),
        Column("share of the class", "{:.1%}", bar=True),
    )
    table = Table(
        "confused", "Most confused pairs", columns, rows, f"{counted(len(pairs), 'pair')} of classes confused in all."
    )
    text = () if rows else ("No class was confused with another.",)
    return Section("Confusions", text, (table,) if rows else (), matrix=matrix)


def _trust(
    outputs: Outputs, confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], calibration: Any
) -> tuple[list[str], Section]:
    """Whether the confidence can be trusted: sentences and a section."""
    error, temperature = expected_calibration_error(confidence, right), calibration.temperature
    text = [
        "The confidence of a prediction is the probability of its class. If it can be trusted, predictions with a "
        f"confidence of 80 % are right in 80 % of the cases. The expected calibration error is {percent(error)}."
    ]
    if temperature != 1:
        before = expected_calibration_error(top1_scores(outputs.logits, outputs.labels)[0], right)
        text.append(
            f"The logits are divided by the temperature {temperature:.3g}. Without it, the error is {percent(before)}."
        )
    mean, top1, found = float(confidence.mean()), float(right.mean()), []
    if error > 0.02:
        tendency = "Too confident" if mean > top1 else "Not confident enough"
        found.append(f"{tendency}: the mean confidence is {percent(mean)}, the accuracy {percent(top1)}.")
    stored = calibration.threshold
    curve = accuracy_by_coverage(confidence, right)
    if stored is None:
        chosen = choose_threshold(confidence, right, TARGET)
    else:
        chosen = max((each for each in curve if each.score >= stored), key=lambda each: each.covered, default=None)
    spots = []
    if chosen:
        limit = chosen.score if stored is None else stored
        spots.append(Spot(chosen.coverage, chosen.accuracy, f"confidence ≥ {limit:.3g}"))
        start = "Predictions" if stored is None else "With the stored threshold, predictions"
        found.append(
            f"{start} with a confidence of at least {limit:.3g} cover {percent(chosen.coverage)} of the "
            f"images; {percent(chosen.accuracy)} of them are right."
        )
    caption = "The band is the 95 % confidence interval."
    if chosen and stored is None:
        caption += f" The marked threshold reaches {percent(TARGET)} with 95 % confidence."
    elif not chosen:
        caption += f" No threshold reaches {percent(TARGET)} with 95 % confidence." if stored is None else ""
    charts = (
        reliability_chart("Accuracy by confidence", reliability(confidence, right)),
        _coverage_chart(curve, spots, caption),
    )
    return found, Section("Confidence", text, charts=charts)


def _coverage_chart(curve: list[Threshold], spots: list[Spot], caption: str) -> Chart:
    """Accuracy of the most confident predictions, against their share of the images."""
    first = next(index for index, each in enumerate(curve) if each.covered >= min(FIRST_IMAGES, each.images))
    chosen = np.unique(np.linspace(first, len(curve) - 1, CURVE_POINTS).round().astype(int))
    shown = [curve[index] for index in chosen]
    band = [(each.coverage, *wilson_interval(each.correct, each.covered)) for each in shown]
    lowest = math.floor(10 * min(low for _, low, _ in band)) / 10
    return line_chart(
        "Accuracy of the most confident predictions",
        [Series("accuracy", [(each.coverage, each.accuracy) for each in shown], band=band)],
        Axis("share of the images", 0, 1, percent),
        Axis("accuracy", min(0.9, lowest), 1, percent),
        spots,
        caption,
    )


class _Looks:
    """Pictures of single images, and where the network looks in them."""

    def __init__(
        self, task: Any, subject: ReportSubject, outputs: Outputs, confidence: np.ndarray, names: tuple[str, ...]
    ) -> None:
        self.task, self.subject, self.outputs, self.names = task, subject, outputs, names
        self.predicted, self.confidence = outputs.logits.argmax(axis=1), confidence
        self.network = subject.model.model if isinstance(subject.model, ModelFile) else None
        self.grid: tuple[int, int] | None = None
        """Height and width of the maps; None if there are none."""

    def mistakes(self, rows: Int64[np.ndarray, " n"]) -> Section:
        """The wrong predictions with the highest confidence. `rows` are all wrong predictions in this order."""
        if not len(rows):
            return Section("Mistakes", ("Every prediction is right.",))
        pictures = list(islice(self._pictures(rows), MISTAKE_PICTURES))
        text = (
            f"{counted(len(rows), 'prediction')} of {len(self.predicted):,} {'is' if len(rows) == 1 else 'are'} wrong. "
            "Confident mistakes often show wrong labels, images of several classes, or classes that need more images.",
        )
        return Section("Mistakes", text, galleries=(Gallery("Most confident mistakes", pictures),))

    def places(self, rows: Int64[np.ndarray, " n"]) -> Section:
        """Where the network looks in right predictions. `rows` are right predictions in random order."""
        title = "Where the network looks"
        if self.network is None:
            return Section(
                title, ("An exported file has no gradients. Evaluate the model file to see where the network looks.",)
            )
        pictures = list(islice(self._pictures(rows), RIGHT_PICTURES))
        if self.grid is None:
            reason = "The features of this network are not maps." if pictures else "No picture to show."
            return Section(title, (reason,))
        text = (
            "Warm colors mark the places that raise the score of the predicted class (HiResCAM over the last two "
            f"feature maps, {self.grid[0]}×{self.grid[1]} cells). If they lie beside the object, the network may "
            "have learned the surroundings.",
        )
        return Section(
            title, text, galleries=(Gallery("Right predictions, chosen at random", pictures, overlaid=True),)
        )

    def _pictures(self, rows: Iterable[int]) -> Iterator[Picture]:
        """Pictures of the usable images among these rows of the outputs, as the network sees them, but sharper."""
        preprocess, images = self.subject.model.preprocess, self.subject.images
        read = self.task.eval_reader(replace(preprocess, image_size=PHOTO_SIDE))
        for row in rows:
            index = int(self.outputs.indices[row])
            try:
                pixels, _ = images.example(index, read)
                overlay = None if self.network is None else self._map(index, int(self.predicted[row]))
            except BadImage:  # the file was removed, or became unreadable, after the evaluation
                continue
            true, predicted = int(self.outputs.labels[row]), int(self.predicted[row])
            tone = "right" if true == predicted else "wrong"
            labels = [Label("", self.names[predicted], tone, float(self.confidence[row]))]
            if true != predicted:
                labels.append(Label("true", self.names[true]))
            image = jpeg(pixels.permute(1, 2, 0).numpy())
            yield Picture(
                image, "/".join(Path(str(images.names[index])).parts[-2:]), labels=tuple(labels), overlay=overlay
            )

    def _map(self, index: int, predicted: int) -> bytes | None:
        """A heat map of the places that raise the score of the predicted class."""
        assert self.network is not None
        preprocess, device = self.subject.model.preprocess, next(self.network.parameters()).device
        pixels, _ = self.subject.images.example(index, self.task.eval_reader(preprocess))
        images = Normalize(preprocess).to(device)(pixels[None])
        maps = activation_maps(self.network, images, torch.tensor([predicted], device=device))
        if maps is None:
            return None
        self.grid = maps.shape[1], maps.shape[2]
        return heat_png(maps[0].float().cpu().numpy())
