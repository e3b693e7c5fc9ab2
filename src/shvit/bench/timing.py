"""Timing of many things against each other on a machine whose speed drifts: a short sample of each, round by round."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Protocol, TypeVar

from ..errors import Failure

SAMPLE_SECONDS = 0.05
"""A sample lasts at least this long, so that neither the clock nor one interruption decides it."""
WARMUP_SECONDS = 0.2
"""Also as long as it takes a runtime to choose its kernels."""

Clock = Callable[[], float]
Key = TypeVar("Key", bound=Hashable)


class Subject(Protocol):
    """What is timed. Raises Failure when it can no longer run."""

    def time(self) -> list[float]:
        """One sample: the seconds of each of its calls."""
        ...


@dataclass(frozen=True)
class Timing:
    """Seconds a call. Every round counts the same, however many calls its sample held."""

    rounds: tuple[float, ...]
    """The median call of each round."""
    p95: float
    """Of all calls: one in twenty took longer."""

    @classmethod
    def of(cls, samples: list[list[float]]) -> "Timing":
        calls = sorted(call for sample in samples for call in sample)
        return cls(tuple(median(sample) for sample in samples), calls[math.ceil(0.95 * len(calls)) - 1])

    @property
    def median(self) -> float:
        return median(self.rounds)

    @property
    def spread(self) -> float:
        """Half of the rounds lie within so much of the median, as a share of it."""
        return median(abs(value - self.median) for value in self.rounds) / self.median


def interleave(
    subjects: Mapping[Key, Subject], rounds: int, after_round: Callable[[], None] = lambda: None
) -> tuple[dict[Key, Timing], dict[Key, str]]:
    """Time each subject once in every round; each round starts one subject further on.

    Ctrl-C ends the rounds; what was timed until then is kept.

    Returns:
        The timings, and for each subject that failed the reason; the others go on without it.
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
    """Call until the runtime has settled; returns how many calls make a sample."""
    started, calls, last = clock(), 0, 0.0
    while calls < 3 or clock() - started < WARMUP_SECONDS:
        before = clock()
        call()
        calls += 1
        last = clock() - before
    return max(1, math.ceil(SAMPLE_SECONDS / max(last, 1e-9)))


def sample(call: Callable[[], object], repetitions: int, clock: Clock = time.perf_counter) -> list[float]:
    """The seconds of each of so many calls."""
    seconds = []
    for _ in range(repetitions):
        before = clock()
        call()
        seconds.append(clock() - before)
    return seconds
