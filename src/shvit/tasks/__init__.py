"""What can be learnt from images. A new task is one file and one row of `TASKS`."""

from typing import Any, Protocol

from ..errors import InputError
from .classify import Classify
from .detect import Detect
from .segment import Segment

TASKS: dict[str, Any] = {"classify": Classify, "detect": Detect, "segment": Segment}


class Described(Protocol):
    """A model file, or an exported one."""

    @property
    def task(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...


def task_of(model: Described) -> Any:
    """The task that a model was trained for: a `Classify`, `Detect` or `Segment`. Raises InputError as `kind_of`."""
    return kind_of(model)(model.classes)


def kind_of(model: Described | str) -> Any:
    """The class of a task, given its name or a model.

    Raises:
        InputError: There is no such task, or the model's architecture is that of another task.
    """
    if isinstance(model, str):
        if model not in TASKS:
            raise InputError(f"Unknown task {model!r}. Choose from: {', '.join(TASKS)}.")
        return TASKS[model]
    if model.task not in TASKS:
        raise InputError(f"the model's task is {model.task!r}: this shvit has {', '.join(TASKS)}")
    architecture = getattr(model, "architecture", None)
    if architecture is not None and architecture.detector != TASKS[model.task].detector:
        raise InputError(
            f"a model of task {model.task} has a {TASKS[model.task].detector or 'classifier'}, got "
            f"{architecture.detector or 'a classifier'}"
        )
    return TASKS[model.task]
