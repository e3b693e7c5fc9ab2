"""Estimate of the remaining time."""

import time
from collections.abc import Callable

MEASURED_STEPS, MEASURED_SECONDS = 5, 20.0
"""The whole run is estimated after this many measured steps, or when they have taken this many seconds."""


class TimeLeft:
    """Estimates the remaining time from measured steps and epoch ends, without the first step, which is slower.

    If the first step compiles, there is no estimate before the second step.

    The end of an epoch is everything between its last step and the next epoch: evaluation and writing files.

    Args:
        epochs: Epochs of the whole run.
        steps: Steps of an epoch.
        evaluates: Whether the network is evaluated after an epoch, counted from 1.
        eval_steps: Estimated duration of an evaluation, in steps. Used until an evaluation has been measured.
        compiled: Whether the first step compiles the network.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        epochs: int,
        steps: int,
        evaluates: Callable[[int], bool],
        eval_steps: float,
        compiled: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._epochs, self._steps, self._evaluates, self._eval_steps = epochs, steps, evaluates, eval_steps
        self._compiled, self._clock = compiled, clock
        self._began = self._last = clock()
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
        """Whether a step was measured. The first one counts only if it is an epoch of its own and does not compile."""
        return self._count > 0 or (bool(self._ends) and not self._compiled)

    @property
    def enough(self) -> bool:
        """Whether enough was measured to estimate the whole run: several steps, or the end of an epoch."""
        several = self._count >= MEASURED_STEPS or self._seconds >= MEASURED_SECONDS
        return self.measured and (several or bool(self._ends))

    @property
    def step_seconds(self) -> float:
        """Mean duration of a step."""
        return self._seconds / self._count if self._count else self._first or 0.0

    @property
    def compile_seconds(self) -> float:
        """How much longer the first step took than the others, if it compiled; otherwise 0."""
        return max(0.0, (self._first or 0.0) - self.step_seconds) if self._compiled else 0.0

    def seconds(self, epoch: int, step: int) -> float:
        """Remaining seconds after `epoch` epochs and `step` steps of the next epoch."""
        left = ((self._epochs - epoch) * self._steps - step) * self.step_seconds
        for number in range(epoch + 1, self._epochs + 1):
            evaluates = self._evaluates(number)
            left += self._ends.get(evaluates, self.step_seconds * self._eval_steps if evaluates else 0.0)
        return left

    def total(self, epoch: int, step: int) -> float:
        """Seconds from the start of this process's training to the end of the run; `epoch` and `step` as above."""
        return self._clock() - self._began + self.seconds(epoch, step)

    def _lap(self) -> float:
        now = self._clock()
        seconds, self._last = now - self._last, now
        return seconds
