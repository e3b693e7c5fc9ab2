"""Tasks: classification, detection, segmentation. A new task is one file and one row of `TASKS`."""

from collections.abc import Mapping
from typing import Any, Protocol

from ..errors import InputError
from .base import Task
from .classify import Classify
from .detect import Detect, DetectAnchors
from .segment import Segment, SegmentLight

TASKS: dict[str, type[Task]] = {"classify": Classify, "detect": Detect, "segment": Segment}
OTHER_HEADS: tuple[type[Task], ...] = (DetectAnchors, SegmentLight)
"""Variants of tasks whose networks have another detector than the default one."""
OLDEST = {"detect": "retinanet", "segment": "mask_rcnn"}
"""Detectors of exported files that do not name their architecture. Only early versions wrote such files."""


class Described(Protocol):
    """A description of a model: a model file, an exported file, or the network of a study."""

    @property
    def task(self) -> str:
        """A key of `TASKS`."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the outputs."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """How the model was trained; see `ModelFile`."""
        ...


def task_of(model: Described) -> Task:
    """The task of a model, with its classes. Raises InputError like `kind_of`."""
    kind: Any = kind_of(model)
    return kind(model.classes)


def kind_of(model: Described | str) -> type[Task]:
    """The `Task` class for the name of a task, with its default detector, or for a model.

    Raises:
        InputError: There is no such task, or the model's architecture belongs to another task.
    """
    if isinstance(model, str):
        if model not in TASKS:
            raise InputError(f"unknown task {model!r}: allowed are {', '.join(TASKS)}")
        return TASKS[model]
    if model.task not in TASKS:
        raise InputError(f"its task is {model.task!r}, but this version of shvit supports only {', '.join(TASKS)}")
    return with_detector(model.task, detector_of(model))


def with_detector(task: str, detector: str | None) -> type[Task]:
    """The `Task` class for a task whose network is this kind of detector. Raises InputError if there is none."""
    kinds = heads_of(task)
    if detector not in kinds:
        wanted = " or ".join(name or "classifier" for name in kinds)
        raise InputError(f"a model of task {task} needs a {wanted}, but its network is a {detector or 'classifier'}")
    return kinds[detector]


def with_head(task: str, head: str | None) -> type[Task]:
    """The `Task` class for a task and a value of `--head`. Raises InputError if there is none."""
    kinds = {kind.head: kind for kind in heads_of(task).values()}
    if head not in kinds:
        raise InputError(f"head of task {task} must be one of {', '.join(map(str, kinds))}, got {head!r}")
    return kinds[head]


def heads_of(task: str) -> dict[str | None, type[Task]]:
    """The variants of a task by the detector that they need, the default first."""
    return {kind.detector: kind for kind in (TASKS[task], *OTHER_HEADS) if kind.name == task}


def detector_of(model: Described | str) -> str | None:
    """The kind of detector that a model is, or the default one of a task; None for classifiers and unknown tasks."""
    if isinstance(model, str):
        return TASKS[model].detector if model in TASKS else None
    architecture = getattr(model, "architecture", None)
    if architecture is not None:
        return architecture.detector
    described = model.provenance.get("architecture")
    return described.get("detector") if isinstance(described, Mapping) else OLDEST.get(model.task)


def need_classifier(model: Described, verb: str) -> None:
    """Raises InputError if the model is not a classifier."""
    if not kind_of(model).labels_images:
        raise InputError(f"{verb} supports only classifiers, but the model's task is {model.task}")
