"""The report of a detector: precision and recall, scores of each class, and pictures of misses and false alarms."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..data.image_file import BadImage
from ..data.letterbox import read_whole
from ..data.transforms import Preprocess
from ..errors import counted
from ..report.blocks import Card, Column, Gallery, Mark, Picture, Section, Table, Tone
from ..report.charts import Axis, Series, Spot, line_chart, percent
from ..report.pictures import jpeg
from .base import ReportSubject, TaskReport
from .object_matching import FALSE_ALARM, FOUND, IN_CROWD, MIN_IOU, RECALLS, Matched
from .objects import ObjectsEvaluation

CURVES = 40
"""Number of classes with a curve of their own: those with the most objects."""
OBJECT_PICTURES = 8
LONGEST_SIDE = 320
"""Longest side of a picture, in pixels."""


def object_cards(metrics: Mapping[str, Any]) -> tuple[Card, ...]:
    """The headline numbers of a detector."""
    names = {"segm": "masks", "bbox": "boxes"}
    kinds = [kind for kind in names if kind in metrics]
    notes = {
        "AP": "mean over IoU 0.50 to 0.95",
        "AP50": "at IoU 0.50",
        "AP75": "at IoU 0.75",
        "AR100": "average recall",
    }
    cards = [
        Card(f"{key} of {names[kind]}", f"{100 * metrics[kind][key]:.1f} %", note=note)
        for kind in kinds
        for key, note in notes.items()
        if metrics[kind].get(key, -1) >= 0 and (kind == kinds[0] or key == "AP")
    ]
    bad = metrics.get("bad_images", 0)
    note = f"{bad:,} more could not be used" if bad else ""
    return (*cards, Card("Images", f"{metrics['images']:,}", note=note))


def report_objects(evaluation: ObjectsEvaluation, subject: ReportSubject) -> TaskReport:
    """The sections of a detector's report."""
    cards = object_cards(evaluation.metrics())
    if evaluation.outputs is None:
        return TaskReport(cards, (), (_classes(evaluation),))
    matched = Matched.of(len(evaluation.classes), evaluation.outputs.truths, evaluation.outputs.found)
    if not matched.objects.any():
        return TaskReport(cards, ("The images have no objects.",), (_classes(evaluation),))
    threshold, precision, recall = matched.best_threshold()
    findings = [
        f"At a score of {threshold:.2f}, where precision and recall are balanced best, {percent(recall)} of "
        f"{counted(int(matched.objects.sum()), 'object')} are found, and {percent(precision)} of detections are right."
    ]
    if worst := sorted((values["bbox"], name) for name, values in evaluation.per_class().items())[:3]:
        findings.append(f"Lowest AP: {', '.join(f'{name} ({percent(max(0.0, value))})' for value, name in worst)}.")
    pictures = _Pictures(evaluation, subject, matched, threshold)
    sections = (
        _curves(evaluation, matched, Spot(recall, precision, f"score ≥ {threshold:.2f}")),
        _classes(evaluation, matched, threshold),
        pictures.section(),
    )
    return TaskReport(cards, tuple(findings), sections)


def _curves(evaluation: ObjectsEvaluation, matched: Matched, spot: Spot) -> Section:
    labels = np.flatnonzero(matched.objects)
    precisions = {label: matched.precisions(label) for label in labels.tolist()}
    largest = labels[np.argsort(-matched.objects[labels], kind="stable")][:CURVES].tolist()
    series = [
        Series(
            f"{evaluation.classes[label]}, AP50 {percent(float(precisions[label].mean()))}",
            _points(precisions[label]),
            "faint",
        )
        for label in largest
    ]
    mean = np.mean(list(precisions.values()), axis=0)
    series.append(Series("mean over the classes", _points(mean)))
    axes = Axis("recall", 0, 1, percent), Axis("precision", 0, 1, percent)
    caption = "Gray: single classes, by name under the pointer. Blue: their mean. "
    chart = line_chart(
        f"At IoU {MIN_IOU:.2f}", series, *axes, (spot,), caption + "The marked score is that of all classes together."
    )
    text = (
        f"Boxes at IoU {MIN_IOU:.1f}. Recall: the share of the objects that are found. Precision: the share of the "
        "detections that are right. A lower minimum score finds more objects, with more false alarms.",
    )
    return Section("Precision and recall", text, charts=(chart,))


def _points(precisions: Float[np.ndarray, "101"]) -> list[tuple[float, float]]:
    return list(zip(RECALLS.tolist(), precisions.tolist(), strict=True))


def _classes(evaluation: ObjectsEvaluation, matched: Matched | None = None, threshold: float = 0.0) -> Section:
    kinds = {
        kind: name for kind, name in (("bbox", "AP of boxes"), ("segm", "AP of masks")) if kind in evaluation.class_ap
    }
    rows: list[list[Any]] = []
    for name, values in sorted(evaluation.per_class().items(), key=lambda item: list(item[1].values())):
        row: list[Any] = [name, *(values[kind] if values[kind] >= 0 else None for kind in kinds)]
        if matched:
            label = evaluation.classes.index(name)
            right, scores = matched.of_class(label)
            kept, objects = right[scores >= threshold], int(matched.objects[label])
            row += [objects, kept.sum() / objects if objects else None, float(kept.mean()) if len(kept) else None]
        rows.append(row)
    more = Column("objects", "{:,}"), Column("found", "{:.1%}"), Column("precision", "{:.1%}")
    columns = (
        Column("class"),
        *(Column(name, "{:.1%}", bar=True) for name in kinds.values()),
        *(more if matched else ()),
    )
    note = f"Found and precision: at a score of at least {threshold:.2f}." if matched else ""
    return Section(
        "Classes", tables=(Table("per_class", "Scores of each class, lowest AP first", columns, rows, note),)
    )


class _Pictures:
    """Pictures with the objects and detections of an image."""

    def __init__(
        self, evaluation: ObjectsEvaluation, subject: ReportSubject, matched: Matched, threshold: float
    ) -> None:
        assert evaluation.outputs is not None
        self.classes, self.outputs, self.subject = evaluation.classes, evaluation.outputs, subject
        kept = matched.scores >= threshold
        self.alarms = matched.images[kept & (matched.verdicts == FALSE_ALARM)]
        """The images with false alarms, that of the highest score first. An image occurs once per false alarm."""
        self.shown: dict[int, list[tuple[int, int, int]]] = {}
        """By image: row, verdict and owner of each detection with a sufficient score."""
        columns = (matched.images, matched.rows, matched.verdicts, matched.owners)
        for image, *rest in zip(*(column[kept].tolist() for column in columns), strict=True):
            self.shown.setdefault(image, []).append((rest[0], rest[1], rest[2]))
        self.missed: dict[int, list[int]] = {}
        """By image: its objects that are not found."""
        for image, truth in enumerate(self.outputs.truths):
            found = {owner for _, _, owner in self.shown.get(image, ())}
            lost = [
                index for index in range(len(truth.objects)) if index not in found and not truth.objects.crowd[index]
            ]
            if lost:
                self.missed[image] = lost

    def section(self) -> Section:
        """The largest missed objects, and the false alarms with the highest scores."""
        largest = sorted(
            self.missed, key=lambda image: -max(self.outputs.truths[image].objects.areas[self.missed[image]])
        )
        galleries = (
            Gallery("Largest missed objects", list(islice(self._draw(largest), OBJECT_PICTURES))),
            Gallery(
                "False alarms with the highest scores",
                list(islice(self._draw(dict.fromkeys(self.alarms.tolist())), OBJECT_PICTURES)),
            ),
        )
        text = (
            f"{counted(sum(map(len, self.missed.values())), 'object')} missed, "
            f"{counted(len(self.alarms), 'false alarm')}. Green: found. Red, dashed: missed. Amber: false alarm. "
            "Point at a box to see its class and score.",
        )
        return Section("Misses and false alarms", text, galleries=galleries)

    def _draw(self, images: Any) -> Iterator[Picture]:
        """Pictures of the usable images."""
        for image in images:
            index, truth = self.outputs.indices[image], self.outputs.truths[image]
            size = truth.letterbox.height, truth.letterbox.width
            try:
                canvas, letterbox = read_whole(
                    self.subject.images.source(index), Preprocess(LONGEST_SIDE, fit="whole"), size
                )
            except BadImage:  # the file was removed, or became unreadable, after the evaluation
                continue
            height, width = (
                max(1, round(a * b)) for a, b in zip(size, (letterbox.down, letterbox.across), strict=True)
            )
            pixels = canvas[:, :height, :width].permute(1, 2, 0).numpy()
            name = "/".join(Path(str(self.subject.images.names[index])).parts[-1:])
            yield Picture(
                jpeg(np.ascontiguousarray(pixels)), f"{name}\n{self._summary(image)}", boxes=tuple(self._marks(image))
            )

    def _marks(self, image: int) -> Iterator[Mark]:
        truth, found = self.outputs.truths[image], self.outputs.found[image]
        scale = np.array([truth.letterbox.width, truth.letterbox.height] * 2)

        def mark(box: Any, text: str, tone: Tone) -> Mark:
            left, top, right, bottom = (np.asarray(box) / scale).tolist()
            return Mark((left, top, right, bottom), text, tone)

        for index in self.missed.get(image, ()):
            yield mark(truth.objects.boxes[index], f"missed: {self.classes[truth.objects.labels[index]]}", "wrong")
        for row, verdict, _ in self.shown.get(image, ()):
            if verdict != IN_CROWD:
                text = f"{self.classes[int(found.labels[row])]} {float(found.scores[row]):.0%}"
                right = verdict == FOUND
                yield mark(found.boxes[row], text if right else f"false alarm: {text}", "right" if right else "doubt")

    def _summary(self, image: int) -> str:
        verdicts = [verdict for _, verdict, _ in self.shown.get(image, ())]
        alarms, missed = verdicts.count(FALSE_ALARM), len(self.missed.get(image, ()))
        parts = (f"{verdicts.count(FOUND)} found", f"{missed} missed", counted(alarms, "false alarm") if alarms else "")
        return ", ".join(filter(None, parts))
