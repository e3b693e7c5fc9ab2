"""Estimate of the remaining time."""

import time
from collections.abc import Callable


class TimeLeft:
    """Estimates the remaining time from measured steps and epoch ends. Ignores the first step, which may compile.

    The end of an epoch is everything between its last step and the next epoch: evaluation and writing files.

    Args:
        epochs: Epochs of the whole run.
        steps: Steps of an epoch.
        eval_every: Epochs between evaluations.
        eval_steps: Estimated duration of an evaluation, in steps. Used until an evaluation has been measured.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        epochs: int,
        steps: int,
        eval_every: int,
        eval_steps: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._epochs, self._steps, self._eval_every, self._eval_steps = epochs, steps, eval_every, eval_steps
        self._clock, self._last = clock, clock()
        self._first: float | None = None
        self._count, self._seconds = 0, 0.0
        self._ends: dict[bool, float] = {}

    def step(self) -> None:
        """Call after each step."""
        seconds = self._lap()
        if self._first is None:
            self._first = seconds
        else:
            self._count, self._seconds = self._count + 1, self._seconds + seconds

    def end(self, epoch: int) -> None:
        """Call at the end of each epoch; `epoch` counts from 1."""
        self._ends[self._evaluates(epoch)] = self._lap()

    @property
    def measured(self) -> bool:
        """Whether any step after the first one was measured."""
        return self._count > 0

    def seconds(self, epoch: int, step: int) -> float:
        """Remaining seconds after `epoch` epochs and `step` steps of the next epoch."""
        step_seconds = self._seconds / self._count if self._count else self._first or 0.0
        left = ((self._epochs - epoch) * self._steps - step) * step_seconds
        for number in range(epoch + 1, self._epochs + 1):
            evaluates = self._evaluates(number)
            left += self._ends.get(evaluates, step_seconds * self._eval_steps if evaluates else 0.0)
        return left

    def _evaluates(self, epoch: int) -> bool:
        return epoch % self._eval_every == 0 or epoch == self._epochs

    def _lap(self) -> float:
        now = self._clock()
        seconds, self._last = now - self._last, now
        return seconds
