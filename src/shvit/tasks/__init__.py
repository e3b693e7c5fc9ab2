"""What can be learnt from labelled images. A new task is one file and one row of `TASKS`."""

from ..errors import InputError
from ..modelfile import ModelFile
from .classify import Classify

TASKS = {"classify": Classify}


def task_of(model_file: ModelFile) -> Classify:
    """The task that a model file was trained for. Raises InputError where this shvit does not have it."""
    if model_file.task not in TASKS:
        raise InputError(f"the model's task is {model_file.task!r}: this shvit has {', '.join(TASKS)}")
    return TASKS[model_file.task](model_file.classes)
