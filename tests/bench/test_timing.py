"""Rounds, medians and failures, with a clock that a test can turn."""

import pytest

from shvit.bench.timing import Timing, interleave, sample, warm_up
from shvit.errors import Failure


class Clock:
    """Time passes only when something is called."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        return lambda: setattr(self, "now", self.now + seconds)


class Fake:
    """Notes its turns; fails from a given one on."""

    def __init__(self, name, turns, seconds=1.0, fails_at=None):
        self.name, self.turns, self.seconds, self.fails_at, self.count = name, turns, seconds, fails_at, 0

    def time(self):
        self.turns.append(self.name)
        self.count += 1
        if self.count == self.fails_at:
            raise Failure("out of memory")
        return [self.seconds * self.count] * 3


def test_every_round_times_each_once_and_starts_one_further_on():
    turns = []
    rounds = []
    subjects = {name: Fake(name, turns) for name in "abc"}
    timings, failed = interleave(subjects, 4, lambda: rounds.append(len(turns)))
    assert "".join(turns) == "abcbcacababc"
    assert rounds == [3, 6, 9, 12]
    assert failed == {}
    assert all(timing.rounds == (1, 2, 3, 4) for timing in timings.values())


def test_a_failure_costs_only_its_own_row():
    turns = []
    subjects = {"a": Fake("a", turns), "b": Fake("b", turns, fails_at=2), "c": Fake("c", turns)}
    timings, failed = interleave(subjects, 3)
    assert failed == {"b": "out of memory"}
    assert list(timings) == ["a", "c"]
    assert turns.count("b") == 2
    assert turns.count("a") == turns.count("c") == 3


@pytest.mark.parametrize("calls", [0, 2])
def test_ctrl_c_keeps_what_was_timed(calls):
    class Interrupted(Fake):
        def time(self):
            if self.count == calls:
                raise KeyboardInterrupt
            return super().time()

    subjects = {"a": Interrupted("a", []), "b": Fake("b", [])}
    if calls == 0:
        with pytest.raises(KeyboardInterrupt):
            interleave(subjects, 5)
    else:
        timings, failed = interleave(subjects, 5)
        assert failed == {}
        assert {name: len(timing.rounds) for name, timing in timings.items()} == {"a": 2, "b": 2}


def test_the_median_gives_every_round_the_same_weight():
    timing = Timing.of([[1.0] * 100, [2.0, 2.0, 9.0], [4.0]])
    assert timing.rounds == (1.0, 2.0, 4.0)
    assert timing.median == 2.0
    assert timing.spread == 0.5


def test_p95_is_of_all_calls():
    assert Timing.of([[float(n) for n in range(1, 51)], [float(n) for n in range(51, 101)]]).p95 == 95.0
    assert Timing.of([[3.0]]).p95 == 3.0


@pytest.mark.parametrize(("seconds", "calls"), [(0.001, 50), (0.02, 3), (0.3, 1)])
def test_a_sample_is_long_enough(seconds, calls):
    clock = Clock()
    assert warm_up(clock.work(seconds), clock) == calls
    assert clock.now >= 0.2
    taken = sample(clock.work(seconds), calls, clock)
    assert taken == pytest.approx([seconds] * calls)
    assert sum(taken) >= 0.05 - 1e-9
