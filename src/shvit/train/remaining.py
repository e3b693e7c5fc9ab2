"""How long a run still takes."""

import time
from collections.abc import Callable


class TimeLeft:
    """Estimated from the steps and the epochs' ends of this sitting; the first step, which may compile, is left out.

    An epoch's end is all from its last step to the next epoch: evaluation, and what is written.

    Args:
        epochs: Of the whole run.
        steps: Of an epoch.
        eval_every: Epochs from one evaluation to the next.
        eval_steps: How many steps an evaluation is likely to take as long as, until one was seen.
        clock: Gives seconds.
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
        """A step has ended."""
        seconds = self._lap()
        if self._first is None:
            self._first = seconds
        else:
            self._count, self._seconds = self._count + 1, self._seconds + seconds

    def end(self, epoch: int) -> None:
        """This epoch, counted from 1, has ended."""
        self._ends[self._evaluates(epoch)] = self._lap()

    @property
    def measured(self) -> bool:
        """Whether a step was timed that does not compile."""
        return self._count > 0

    def seconds(self, epoch: int, step: int) -> float:
        """From after this many whole epochs and steps of the next one."""
        a_step = self._seconds / self._count if self._count else self._first or 0.0
        left = ((self._epochs - epoch) * self._steps - step) * a_step
        for number in range(epoch + 1, self._epochs + 1):
            evaluates = self._evaluates(number)
            left += self._ends.get(evaluates, a_step * self._eval_steps if evaluates else 0.0)
        return left

    def _evaluates(self, epoch: int) -> bool:
        return epoch % self._eval_every == 0 or epoch == self._epochs

    def _lap(self) -> float:
        now = self._clock()
        seconds, self._last = now - self._last, now
        return seconds
