"""Time subjects in interleaved rounds of one short sample each, to spread drift in machine speed over all subjects."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Protocol, TypeVar

from ..errors import Failure

SAMPLE_SECONDS = 0.05
"""Minimum duration of a sample, so that clock resolution and interruptions have little effect."""
WARMUP_SECONDS = 0.2
"""Warm-up time, long enough for a runtime to choose its kernels."""

Clock = Callable[[], float]
Key = TypeVar("Key", bound=Hashable)


class Timed(Protocol):
    """Something that can be timed. Raises Failure when it can no longer run."""

    def time(self) -> list[float]:
        """Take one sample. Returns the seconds of each call."""
        ...


@dataclass(frozen=True)
class Timing:
    """Seconds per call. Every round has the same weight, regardless of the number of calls in its sample."""

    rounds: tuple[float, ...]
    """The median of each round."""
    p95: float
    """95th percentile of all calls."""

    @classmethod
    def of(cls, samples: list[list[float]]) -> "Timing":
        """Compute the timing from one sample per round."""
        calls = sorted(call for sample in samples for call in sample)
        return cls(tuple(median(sample) for sample in samples), calls[math.ceil(0.95 * len(calls)) - 1])

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.rounds)

    @property
    def spread(self) -> float:
        """Median absolute deviation of the rounds, relative to the median."""
        return median(abs(value - self.median) for value in self.rounds) / self.median


def interleave(
    subjects: Mapping[Key, Timed], rounds: int, after_round: Callable[[], None] = lambda: None
) -> tuple[dict[Key, Timing], dict[Key, str]]:
    """Time each subject once per round. Each round starts with a different subject, in turn.

    After Ctrl-C, no more rounds are run, and the samples taken so far are kept.

    Returns:
        The timings, and the error of each subject that failed. Later rounds leave that subject out.
    """
    samples: dict[Key, list[list[float]]] = {key: [] for key in subjects}
    failed: dict[Key, str] = {}
    keys = list(subjects)
    try:
        for number in range(rounds):
            start = number % max(1, len(keys))
            for key in keys[start:] + keys[:start]:
                if key in failed:
                    continue
                try:
                    samples[key].append(subjects[key].time())
                except Failure as failure:
                    failed[key] = str(failure)
            after_round()
    except KeyboardInterrupt:
        if not any(samples.values()):
            raise
    return {key: Timing.of(samples[key]) for key in keys if samples[key] and key not in failed}, failed


def warm_up(call: Callable[[], object], clock: Clock = time.perf_counter) -> int:
    """Call the function until `WARMUP_SECONDS` have passed. Returns the number of calls for one sample."""
    started, calls, last = clock(), 0, 0.0
    while calls < 3 or clock() - started < WARMUP_SECONDS:
        before = clock()
        call()
        calls += 1
        last = clock() - before
    return max(1, math.ceil(SAMPLE_SECONDS / max(last, 1e-9)))


def sample(call: Callable[[], object], repetitions: int, clock: Clock = time.perf_counter) -> list[float]:
    """Call the function `repetitions` times. Returns the seconds of each call."""
    seconds = []
    for _ in range(repetitions):
        before = clock()
        call()
        seconds.append(clock() - before)
    return seconds
