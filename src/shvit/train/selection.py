"""Decides which epoch of a run is the best, and when the run ends."""

from collections.abc import Mapping
from typing import Any

from ..tasks.base import Task
from .recipe import Recipe


class Selection:
    """The best epoch so far.

    A checkpoint needs to store only `best`: its epoch gives the number of evaluations since then.
    """

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self._criterion, self._recipe = task.criterion(recipe.select_by), recipe
        self.metrics = tuple(dict.fromkeys([self._criterion.metric, task.headline]))
        """The metric that decides, then the task's headline metric if it is another one."""
        self.best: dict[str, Any] = {}
        """Metrics of the best weights, and their `epoch`. Empty before the first evaluation."""

    def better(self, scores: Mapping[str, Mapping[str, Any]]) -> str:
        """The name of the best metrics; the first name if they are equal or none of them has been measured."""
        return max(scores, key=lambda name: self._criterion.score(scores[name]))

    def improves(self, metrics: dict[str, Any]) -> bool:
        """Whether an evaluation is better than all before it. If so, it becomes `best`."""
        if self.best and self._criterion.score(metrics) <= self._criterion.score(self.best):
            return False
        self.best = metrics
        return True

    def ends(self, epoch: int) -> bool:
        """Whether the run ends after `epoch` epochs, unless the last of them becomes the best one."""
        return epoch == self._recipe.epochs or self.out_of_patience(epoch)

    def out_of_patience(self, epoch: int) -> bool:
        """Whether none of the last `patience` evaluations, up to this epoch, is the best one."""
        after_best = range(self.best.get("epoch", epoch) + 1, epoch + 1)
        return 0 < self._recipe.patience <= sum(map(self._recipe.evaluates, after_best))
