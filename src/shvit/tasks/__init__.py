"""Tasks: classification, detection, segmentation. A new task is one file and one row of `TASKS`."""

from collections.abc import Mapping
from typing import Any, Protocol

from ..errors import InputError
from .base import Task
from .classify import Classify
from .detect import Detect
from .segment import Segment

TASKS: dict[str, type[Task]] = {"classify": Classify, "detect": Detect, "segment": Segment}


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
    """The `Task` class for the name of a task or for a model.

    Raises:
        InputError: There is no such task, or the model's architecture belongs to another task.
    """
    if isinstance(model, str):
        if model not in TASKS:
            raise InputError(f"unknown task {model!r}: allowed are {', '.join(TASKS)}")
        return TASKS[model]
    if model.task not in TASKS:
        raise InputError(f"its task is {model.task!r}, but this version of shvit supports only {', '.join(TASKS)}")
    kind, architecture = TASKS[model.task], getattr(model, "architecture", None)
    if architecture is not None and architecture.detector != kind.detector:
        raise InputError(
            f"a model of task {model.task} needs a {kind.detector or 'classifier'}, but its network is a "
            f"{architecture.detector or 'classifier'}"
        )
    return kind


def need_classifier(model: Described, verb: str) -> None:
    """Raises InputError if the model is not a classifier."""
    if not kind_of(model.task).labels_images:
        raise InputError(f"{verb} supports only classifiers, but the model's task is {model.task}")
