"""Run an audit: look at all images once, compare them, check their labels, and write the findings."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import engines
from ..data.dataset import Dataset
from ..data.folders import find_coco
from ..data.identity import TrainedOn
from ..data.sources import open_source
from ..errors import InputError, counted, few, notice
from ..files import write_csv
from ..modelfile import ModelFile, ModelFileError
from ..pretrained import PUBLISHED_TOP1, load_model
from ..redact import redacted
from ..report.page import save_page
from ..requests.audit import NO_MODEL, AuditRequest
from ..tasks import need_classifier
from .findings import (
    CSV_HEADER,
    FINDING_KINDS,
    AuditedImages,
    Finding,
    by_severity,
    label_errors,
    near_duplicates,
    odd_images,
    small_classes,
    unusable_images,
)  # fmt: skip
from .labels import Suspects, assign_folds, find_suspects, out_of_fold
from .near_duplicates import find_pairs
from .page import audit_page
from .views import Views, view


@dataclass(frozen=True)
class Audit:
    """The result of an audit."""

    request: AuditRequest
    dataset: Dataset
    audited: AuditedImages
    findings: tuple[Finding, ...]
    seconds: dict[str, float]
    """Duration of each stage: images, duplicates, labels."""
    agreement: float | None = None
    """Share of the labels that a classifier predicts, too, when it is fitted to the other images."""
    unchecked: str = ""
    """Why labels were not checked; empty if they were."""
    files: tuple[Path, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings of each kind."""
        counts = Counter(finding.kind for finding in self.findings)
        return {kind: counts[kind] for kind in FINDING_KINDS}

    @property
    def notes(self) -> tuple[str, ...]:
        """How far the check of the labels can be trusted, or why there was none."""
        if self.agreement is None:
            return (self.unchecked,)
        return (
            f"the classifier that checks the labels agrees with {self.agreement:.1%} of them; the lower this is, the "
            "more of the listed labels are right",
        )

    def to_dict(self) -> dict[str, Any]:
        """The audit as plain data."""
        return {
            "data": redacted(self.request.data),
            "model": self.request.model,
            "images": dict(Counter(self.audited.splits)),
            "drawn": self.dataset.drawn,
            "counts": self.counts,
            "agreement": self.agreement,
            "labels_not_checked": self.unchecked or None,
            "findings": [dict(zip(CSV_HEADER, finding.row(), strict=True)) for finding in self.findings],
            "seconds": self.seconds,
            "files": [str(path) for path in self.files],
        }


def audit(request: AuditRequest, progress: Callable[[int, int], None] = lambda done, total: None) -> Audit:
    """Check a dataset, and write audit.csv and report.html. Nothing is written before the checks have finished.

    Args:
        progress: Called with the number of images that were read, and the number of all images.

    Raises:
        InputError: A field of the request is wrong, or the data or the model cannot be used.
        Failure: No image can be used.
    """
    request.check()
    if find_coco(Path(request.data)):
        raise InputError(f"audit supports only classification datasets, but {request.data} is a COCO folder")
    device = engines.pick_device(request.device)
    engines.check_threads(request.threads, device)
    model_file = _model(request)
    dataset = open_source(request.data, request.seed, 0.2 if request.val_share is None else request.val_share)
    if request.val_share is not None and not dataset.drawn:
        raise InputError(f"val_share has no effect, because {request.data} has validation images: leave it out")
    for text in dataset.warnings:
        notice(text)
    audited = AuditedImages.of(dataset)
    if not len(audited.images):
        raise InputError(f"{dataset.name} has no images")
    if model_file is not None:
        _warn_if_trained_on(request.model, model_file, audited)
    result = _checked(request, dataset, audited, model_file, device, progress)
    page = audit_page(request, audited, result.findings, result.notes)
    request.out.mkdir(parents=True, exist_ok=True)
    table, report = request.out / "audit.csv", request.out / "report.html"
    write_csv(table, CSV_HEADER, [finding.row() for finding in result.findings], request.raw_cells)
    save_page(page, report)
    return replace(result, files=(table, report))


def _model(request: AuditRequest) -> ModelFile | None:
    """The model whose features are used; None for an audit without a model."""
    if not request.with_model:
        return None
    try:
        model_file = load_model(request.model)
    except ModelFileError as error:
        if request.model not in PUBLISHED_TOP1:
            raise
        others = f"give --model a model file, or --model {NO_MODEL} to check everything but labels"
        raise InputError(f"{error}; or {others}") from None
    need_classifier(model_file, "audit")
    if (channels := model_file.architecture.in_channels) != 3:
        raise InputError(f"audit needs a model for images with 3 channels, but {request.model} has {channels}")
    return model_file


def _warn_if_trained_on(name: str, model_file: ModelFile, audited: AuditedImages) -> None:
    """Issue a notice if the model was trained on some of the images."""
    known = TrainedOn.recorded(model_file.provenance)
    if known is not None and (used := int(known.among(audited.images.images).sum())):
        notice(
            f"{name} was trained on {used:,} of {counted(len(audited.images), 'image')}: its features fit their labels "
            "and hide some of the errors"
        )


def _checked(
    request: AuditRequest,
    dataset: Dataset,
    audited: AuditedImages,
    model_file: ModelFile | None,
    device: str,
    progress: Callable[[int, int], None],
) -> Audit:
    """Run all checks."""
    total, done, times = len(audited.images), 0, [time.perf_counter()]

    def advance(images: int) -> None:
        nonlocal done
        done += images
        progress(done, total)

    views = view(audited.images, model_file, request.batch_size, request.workers, device, request.threads, advance)
    times.append(time.perf_counter())
    pairs = find_pairs(views.thumbnails, views.usable)
    times.append(time.perf_counter())
    groups, labels = pairs.groups(total), audited.labels
    of_class = np.unique(np.stack([labels, groups])[:, views.usable], axis=1)[0]
    distinct = np.bincount(of_class, minlength=len(dataset.classes))
    checkable = distinct >= request.folds
    unchecked, errors, agreement = "", [], None
    if views.features is None:
        unchecked = f"labels are not checked with --model {NO_MODEL}"
    elif len(dataset.classes) < 2:
        unchecked = f"labels cannot be checked, because there is only the class {few(dataset.classes)}"
    elif checkable.sum() < 2:
        least = counted(request.folds, "different image")
        unchecked = f"labels cannot be checked, because fewer than two classes have {least}: try fewer --folds"
    else:
        suspects, agreement = _suspects(views, labels, groups, checkable, request)
        errors = label_errors(audited, suspects)
    findings = by_severity(
        [
            *errors,
            *near_duplicates(audited, pairs),
            *unusable_images(audited, views.bad),
            *odd_images(audited, views),
            *small_classes(audited, distinct),
        ]
    )
    times.append(time.perf_counter())
    seconds = {name: times[i + 1] - times[i] for i, name in enumerate(("images", "duplicates", "labels"))}
    return Audit(request, dataset, audited, findings, seconds, agreement, unchecked)


def _suspects(
    views: Views, labels: np.ndarray, groups: np.ndarray, checkable: np.ndarray, request: AuditRequest
) -> tuple[Suspects, float]:
    """Check the labels of the usable images. Images of classes that are too small are used, but not checked.

    Returns the suspects, and the share of the labels that are the most probable class.
    """
    assert views.features is not None
    used = np.flatnonzero(views.usable)
    folds = assign_folds(labels[used], groups[used], request.folds, request.seed)
    probabilities = out_of_fold(views.features[used], labels[used], folds, len(checkable))
    suspects = find_suspects(probabilities, labels[used])
    suspects = suspects.only(checkable[labels[used][suspects.indices]])
    agreement = float((probabilities.argmax(1) == labels[used]).mean())
    return replace(suspects, indices=used[suspects.indices]), agreement
