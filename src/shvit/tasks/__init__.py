"""What can be learnt from labelled images. A new task is one file and one row of `TASKS`."""

from typing import Protocol

from ..errors import InputError
from .classify import Classify

TASKS = {"classify": Classify}


class Described(Protocol):
    """A model file, or an exported one."""

    @property
    def task(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...


def task_of(model: Described) -> Classify:
    """The task that a model was trained for. Raises InputError where this shvit does not have it."""
    if model.task not in TASKS:
        raise InputError(f"the model's task is {model.task!r}: this shvit has {', '.join(TASKS)}")
    return TASKS[model.task](model.classes)
