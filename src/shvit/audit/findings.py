"""The findings of an audit: one per image and problem, sorted by kind and severity."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from ..data.dataset import EMPTY, Dataset, Split
from ..errors import counted
from .labels import Suspects
from .near_duplicates import MIN_CONTRAST, Pairs, contrasts
from .views import Views

FINDING_KINDS = {
    "label_error": "probable label errors",
    "duplicate_other_label": "near-duplicates with another label",
    "duplicate_across_splits": "near-duplicates in another split",
    "duplicate": "near-duplicates in the same split",
    "unusable": "unusable images",
    "odd": "odd images",
    "small_class": "classes with too few images",
}
"""The kinds of findings, the most important first, and their names for display."""
CSV_HEADER = ("kind", "image", "split", "label", "suggested_label", "score", "other_image", "reason")
RARE = 0.02
"""Maximum share of the images that a property may have to be odd: if more have it, it belongs to the dataset."""
DARK_LIGHT, BRIGHT = 12, 243
"""Mean brightness, of 255, below which an image is very dark, and above which it is very bright."""
SMALL_SIDE = 32
"""Shorter side in pixels below which an image is very small, if it is also below `SMALL_SHARE` of the median."""
SMALL_SHARE = 0.25
LONG_RATIO = 4.0
"""Longer side divided by shorter side above which an image is very long."""
MIN_IMAGES = 10
"""Classes with fewer different images are reported."""


@dataclass(frozen=True)
class AuditedImages:
    """The images of all splits, one split after the other."""

    images: Split
    splits: Sequence[str]
    """Name of the split of each image."""
    classes: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> "AuditedImages":
        """The images of a dataset, in the order train, val, test."""
        parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test or EMPTY}
        joined = dataset.train.joined(dataset.val).joined(parts["test"])
        return cls(joined, [name for name, split in parts.items() for _ in range(len(split))], dataset.classes)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Class numbers; -1 for a bad image without a label."""
        return np.asarray(self.images.labels, np.int64)

    def label(self, index: int) -> str:
        """The class name of an image; empty for a bad image without a label."""
        number = int(self.images.labels[index])
        return "" if number < 0 else self.classes[number]


@dataclass(frozen=True)
class Finding:
    """A problem of an image or a class."""

    kind: str
    """A key of `FINDING_KINDS`."""
    image: str
    """Name of the image; empty for a class."""
    split: str
    label: str
    reason: str
    suggested: str = ""
    """For a probable label error: the class that the image probably shows."""
    score: float | None = None
    """Severity. Probable label errors: 1 minus the probability of the label. Near-duplicates: similarity, at most 1."""
    other_image: str = ""
    """For near-duplicates: the other image of the pair. Which one is the original is not known."""
    index: int | None = None
    """Index of the image; None for a class."""
    other_index: int | None = None

    def row(self) -> list[str]:
        """The cells of the CSV file; see `CSV_HEADER`."""
        score = "" if self.score is None else f"{self.score:.4f}"
        return [
            self.kind, self.image, self.split, self.label, self.suggested, score, self.other_image, self.reason,
        ]  # fmt: skip


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings by kind, then by score."""
    order = {kind: number for number, kind in enumerate(FINDING_KINDS)}
    return tuple(sorted(findings, key=lambda finding: (order[finding.kind], -(finding.score or 0))))


def image_finding(audited: AuditedImages, index: int, kind: str, reason: str, **more: Any) -> Finding:
    """A finding about one image."""
    names = {"image": audited.images.names[index], "split": audited.splits[index], "label": audited.label(index)}
    return Finding(kind, **names, reason=reason, index=index, **more)


def label_errors(audited: AuditedImages, suspects: Suspects) -> Iterator[Finding]:
    """A finding for each image with a suspicious label."""
    columns = (suspects.indices, suspects.suggested, suspects.probabilities, suspects.given)
    for index, suggested, probability, given in zip(*(column.tolist() for column in columns), strict=True):
        name = audited.classes[suggested]
        reason = f"probability {probability:.1%} for {name}, {given:.1%} for {audited.label(index)}"
        yield image_finding(audited, index, "label_error", reason, suggested=name, score=1 - given)


def near_duplicates(audited: AuditedImages, pairs: Pairs) -> Iterator[Finding]:
    """A finding for each image with a near-duplicate among the images before it.

    If it has several, the one with another label counts, then one in another split, then the most similar one.
    """
    labels, splits = audited.labels, np.asarray(audited.splits)
    same_label = labels[pairs.first] == labels[pairs.second]
    same_split = splits[pairs.first] == splits[pairs.second]
    rank = np.where(same_label, np.where(same_split, 2, 1), 0)
    order = np.lexsort((pairs.differences, rank, pairs.second))
    _, chosen = np.unique(pairs.second[order], return_index=True)
    for pair in order[chosen].tolist():
        first, second = int(pairs.first[pair]), int(pairs.second[pair])
        kind = ("duplicate_other_label", "duplicate_across_splits", "duplicate")[rank[pair]]
        turned = "mirrored " if pairs.mirrored[pair] else ""
        reason = f"{turned}near-duplicate of an image of {audited.splits[first]} with label {audited.label(first)}"
        more = {"other_image": audited.images.names[first], "other_index": first}
        yield image_finding(audited, second, kind, reason, score=1 - float(pairs.differences[pair]), **more)


def unusable_images(audited: AuditedImages, bad: Mapping[int, str]) -> Iterator[Finding]:
    """A finding for each image that cannot be used."""
    for index, reason in sorted(bad.items()):
        yield image_finding(audited, index, "unusable", reason)


def odd_images(audited: AuditedImages, views: Views) -> Iterator[Finding]:
    """A finding for each image that is blank, very dark, very bright, very small or very long.

    A property that more than the share `RARE` of the images have is not odd.
    """
    sizes, usable = views.sizes, views.usable
    shorter, longer = sizes.min(1), sizes.max(1)
    light = views.thumbnails.mean((1, 2, 3))
    blank = contrasts(views.thumbnails) < MIN_CONTRAST
    median = np.median(shorter[usable])
    tests = (
        (blank, lambda index: "nearly uniform"),
        (~blank & (light < DARK_LIGHT), lambda index: f"very dark: mean brightness {light[index]:.0f} of 255"),
        (~blank & (light > BRIGHT), lambda index: f"very bright: mean brightness {light[index]:.0f} of 255"),
        (
            (shorter < SMALL_SIDE) & (shorter < SMALL_SHARE * median),
            lambda index: f"very small: {sizes[index][1]}x{sizes[index][0]} pixels, median shorter side {median:.0f}",
        ),
        (
            longer > LONG_RATIO * np.maximum(shorter, 1),
            lambda index: f"very long: {sizes[index][1]}x{sizes[index][0]} pixels",
        ),
    )
    most = max(1, RARE * usable.sum())
    reasons = defaultdict[int, list[str]](list)
    for is_odd, reason in tests:
        indices = np.flatnonzero(is_odd & usable)
        if len(indices) <= most:
            for index in indices.tolist():
                reasons[index].append(reason(index))
    for index, texts in sorted(reasons.items()):
        yield image_finding(audited, index, "odd", "; ".join(texts))


def small_classes(audited: AuditedImages, distinct: Int64[np.ndarray, " classes"]) -> Iterator[Finding]:
    """A finding for each class with few images that are not near-duplicates of each other; see `MIN_IMAGES`."""
    for number in np.flatnonzero(distinct < MIN_IMAGES).tolist():
        reason = f"only {counted(int(distinct[number]), 'usable image')}, without near-duplicates"
        yield Finding("small_class", "", "", audited.classes[number], reason)
